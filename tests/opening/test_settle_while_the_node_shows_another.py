"""Settle removes every sealed password also where the node shows another backup by then, which one of them may
have made.
"""

import time
from typing import Any


async def test_a_late_backup_of_a_killed_run_keeps_its_password(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    # The first start takes effect much later than call_timeout, and its run is killed.
    desk.tell("backup", "late", seconds=6, reply="ok", times=1)
    await desk.killed_after("start")

    def late(stage: str) -> None:
        # Right after the deletion of this run's own: what stands there now is the first run's.
        while stage == "delete" and desk.holds is None:
            time.sleep(0.05)

    second = await desk.night(flow_run="run-2", after=late)
    assert second.error is None
    assert desk.holds is not None, "the status that this run saw last shows a backup that it cannot tell whose it is"
    third = await desk.night(flow_run="run-3")
    assert third.error is None
    late_one = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert sealed.can_be_opened(late_one), late_one.encryption
