"""Sealed: after a start that was told to have had no effect, the backup that somebody makes by hand the next day is
stored as this vault's own, sealed, and is the night's success; no backup of our own is made."""

from typing import Any

from a0backup.errors import StartFailedError


async def test_what_stands_there_the_day_after_a_start_without_effect_is_not_the_nights_success(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    desk.tell("backup", "refuse", message="", exit=0, times=1)
    first = await desk.night(flow_run="run-1")
    assert isinstance(first.error, StartFailedError)  # 'was started and the node shows none'
    desk.put()  # by hand, with a password of their own
    second = await desk.night(flow_run="run-2")
    stored = desk.vault.get(second.outcome.id)
    assert second.error is not None or sealed.can_be_opened(stored), (stored, second.notes)
