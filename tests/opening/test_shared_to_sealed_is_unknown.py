"""fleet.yaml goes from shared to sealed while a backup is unfinished: its manifest calls the operator's own
password unknown.
"""

from typing import Any


async def test_a_backup_started_with_the_shared_password_is_said_to_be_so(desk: Any, sealed: Any) -> None:
    desk.configure()
    await desk.killed_after("await")
    sealed.configure()
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert manifest.started_at is not None
    # `unknown` sends the operator away: 'this vault did not start that backup: ask who did for its password'.
    assert manifest.encryption.password.mode == "shared", manifest.encryption
