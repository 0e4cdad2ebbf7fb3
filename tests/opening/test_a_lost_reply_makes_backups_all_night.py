"""Where the reply to the start does not come in time, an artifact that cannot be opened is made again and again."""

from typing import Any


async def test_one_run_keeps_at_most_one_backup_of_its_own_that_cannot_be_opened(desk: Any) -> None:
    # An a0cli that sits until the backup is made: the call's deadline ends it, the backup is there all the same.
    desk.configure(a0cli={"call_timeout": "0.4s"}, contents={"max_unpacked": "1MB"})
    desk.tell("backup", "late", seconds=0.05, reply="hang")
    desk.tell("backup", "size", bytes=3_000_000)
    ended = await desk.night()
    assert ended.error is not None
    assert desk.counted("backup") == 1, (ended.error, desk.counts, [m.id for m in desk.stored])
