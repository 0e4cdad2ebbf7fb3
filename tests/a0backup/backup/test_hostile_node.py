"""A node that sends what it should not: the keys, the other nodes and the vault stay as they are."""

from a0backup.errors import A0BackupError
from tests.support.desk import Desk


async def test_a_node_that_names_its_backup_like_a_key_changes_no_key(desk: Desk) -> None:
    keys = {path.name: path.read_bytes() for path in desk.simulated.key_dir.iterdir()}
    for name in keys:
        desk.tell("backup-retrieve", "file_name", name=name, times=1)
    ended = await desk.night()
    assert isinstance(ended.error, A0BackupError)
    assert {path.name: path.read_bytes() for path in desk.simulated.key_dir.iterdir()} == keys
    assert desk.holds is not None
    assert desk.stored == []
    desk.forget()
    assert (await desk.night(flow_run="run-2")).error is None
