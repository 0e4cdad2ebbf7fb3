"""fleet.yaml goes from sealed to shared while a backup is unfinished: our own backup is taken for foreign."""

from typing import Any

from a0backup.errors import ForeignBackupError


async def test_a_sealed_backup_is_finished_after_the_fleet_went_to_a_shared_password(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    desk.configure()  # shared
    ended = await desk.night()
    assert ended.error is None
    [manifest] = [each for each in desk.stored if each.encryption.password.sealed]
    # Its password is at hand nowhere in this run, so that nothing speaks against the journal.
    assert manifest.encryption.password.mode == "sealed"
    assert manifest.started_at is not None
    assert desk.counted("backup") == 1, "nor is a second backup made where the interrupted one can be finished"


async def test_with_existing_fail_it_does_not_block_the_node_for_good(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    desk.configure(existing="fail")  # shared
    nights = [await desk.night(flow_run=f"run-{number}") for number in (2, 3, 4)]
    assert not all(isinstance(each.error, ForeignBackupError) for each in nights), nights[-1].error
