"""A node that sends what it should not: the keys, the other nodes and the vault stay as they are."""

import asyncio

from a0backup.errors import A0BackupError, ArtifactTooLargeError
from tests.support.desk import Desk
from tests.support.patience import until


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


async def test_what_a_process_that_a0cli_left_writes_later_is_not_stored(desk: Desk) -> None:
    """It left the process group and closed every descriptor; it would write after the artifact was verified."""
    wrapper = desk.room / "a0cli-that-leaves-one"
    wrapper.write_text(
        f"""#!/bin/sh
{desk.fleet.a0cli.path} "$@" || exit $?
node=$(cd ../.. && pwd)
case "$*" in
*backup-retrieve*)
    exec >/dev/null 2>&1
    setsid sh -c 'exec 3>&-; sleep 0.5; for f in $0/*/*.enc $0/*/*/*.enc; do echo x >>$f; done; touch $0/wrote' $node &
    sleep 0.2
esac
"""
    )
    wrapper.chmod(0o700)
    desk.configure(a0cli={"path": str(wrapper), "key_dir": str(desk.simulated.key_dir)})
    ended = await desk.night()
    assert ended.error is None
    await asyncio.sleep(1)
    assert not (desk.vault.folder(desk.name) / "wrote").exists()
    [stored] = desk.stored
    desk.vault.reread(stored)


async def test_a_retrieval_without_end_is_stopped_and_leaves_the_disk_to_others(desk: Desk) -> None:
    desk.configure(contents={"max_size": "1MB"})
    desk.tell("backup", "size", bytes=50_000_000)
    desk.tell("backup-retrieve", "drip", bytes_per_second=2_000_000)
    ended = await desk.night()
    assert isinstance(ended.error, ArtifactTooLargeError)
    assert "contents.max_size" in ended.outcome.hint
    until(lambda: desk.counted("backup-retrieve"), "the node has noticed that the call has ended")
    assert desk.counted("backup-retrieve") == 1, "it is not tried again"
    assert not [path for path in desk.vault.folder(desk.name).rglob("*.enc") if path.stat().st_size]
    assert desk.holds is not None
    desk.forget()
    desk.configure(contents={"max_size": "60MB"})
    assert (await desk.night(flow_run="run-2")).error is None
