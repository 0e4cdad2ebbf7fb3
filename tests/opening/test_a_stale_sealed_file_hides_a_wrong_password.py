"""(Of a fix by which any sealed file explains a shared password that does not open.)

The file of a start that was never sent makes what nobody can open this run's success.
"""

from typing import Any


async def test_what_the_shared_password_of_its_own_start_does_not_open_is_foreign(desk: Any, sealed: Any) -> None:
    desk.tell("backup", "kill_parent", when="before", times=1)
    await desk.killed_after("never that far")  # sealed, on the disk, and never sent
    assert len(sealed.files) == 1
    desk.configure(a0cli={"call_timeout": "0.5s"})  # shared from now on
    desk.tell("backup", "contents", are="noise", times=1)
    await desk.killed_after("await")
    ended = await desk.night(flow_run="run-3")
    assert ended.error is None
    # As without that file: kept as foreign, and a new one made that opens.
    assert ended.outcome.verified == "contents", (ended.outcome, ended.notes)
