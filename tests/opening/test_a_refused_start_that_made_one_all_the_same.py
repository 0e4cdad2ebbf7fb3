"""A refusal may be the answer to a second sending, where the first made the backup: its password is kept."""

from typing import Any


async def test_its_password_is_kept_where_the_run_is_killed_after_the_refusal(sealed: Any) -> None:
    desk = sealed.desk
    desk.tell("backup", "say", stdout="", stderr="error: a backup already exists\n", times=1)
    desk.tell("backup", "exit", code=1, times=1)
    await desk.killed_after("start")
    assert (await desk.night()).error is None
    made = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert sealed.can_be_opened(made), made.encryption
