"""A node that sends what it should not, and a vault with links in it: all else stays as it is."""

import asyncio
import gzip
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from a0backup.errors import (
    A0BackupError,
    ArtifactTooLargeError,
    NodeDeadlineError,
    UnsettledError,
    VaultUnusableError,
)
from a0backup.upkeep.handoff import handoff
from a0backup.vault.lock import is_held
from a0backup.vault.space import require_space
from a0backup.vault.vault import Vault
from tests.support.artifacts import END, PASSWORD, encrypted, file
from tests.support.command import a0backup
from tests.support.desk import Desk
from tests.support.disks import as_root, small_disk
from tests.support.patience import until
from tests.support.stored import store


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


@pytest.mark.parametrize("place", ["", "work", "passwords", "quarantine", "20200101T000000Z-backup"])
async def test_a_link_in_the_place_of_a_folder_is_refused_and_nothing_behind_it_changes(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    assert (await desk.night(flow_run="run-1")).error is None
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("backup.tar.gz.enc", "run-1-00000000", ".x.partial", "20200101T000000Z-backup"):
        (elsewhere / name).mkdir()
        (elsewhere / name / "precious").write_text("precious")
    before = sorted(elsewhere.rglob("*"))
    link = desk.vault.folder(desk.name) / place if place else desk.vault.folder(desk.name)
    if link.exists():
        shutil.rmtree(link)
    link.symlink_to(elsewhere)
    ended = await desk.night(flow_run="run-2")
    assert isinstance(ended.error, VaultUnusableError)
    assert f"{link} is a link" in ended.outcome.reason
    assert desk.counted("backup") == 1, "nothing was started"
    assert sorted(elsewhere.rglob("*")) == before


def test_a_link_in_the_place_of_a_nodes_or_an_artifacts_folder_is_listed_as_damaged(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    stored = store(vault.root, "abc123")
    (tmp_path / "elsewhere").mkdir()
    (vault.root / "a0-9").symlink_to(tmp_path / "elsewhere")
    (vault.folder(stored.node.name) / "20200101T000000Z-backup").symlink_to(vault.root / stored.id)
    for command in ("list", "verify"):
        ended = a0backup(command, "--vault", vault.root)
        assert ended.returncode == 4
        for name in ("a0-9", f"{stored.node.name}/20200101T000000Z-backup"):
            assert re.search(rf"{name}\b.*link", ended.stdout + ended.stderr, re.DOTALL)


async def test_a_retrieval_that_ends_before_anyone_looks_is_bounded_too(desk: Desk) -> None:
    desk.configure(contents={"max_size": "1MB"})
    desk.tell("backup", "size", bytes=20_000_000)
    ended = await desk.night()
    assert isinstance(ended.error, ArtifactTooLargeError)
    assert desk.stored == []
    assert desk.holds is not None


async def test_a_node_that_always_shows_another_backup_has_two_of_them_stored(desk: Desk) -> None:
    desk.put()

    def again(stage: str) -> None:
        if stage == "delete":
            desk.put()

    ended = await desk.night(after=again)
    assert isinstance(ended.error, UnsettledError)
    assert len(desk.stored) == 2
    assert desk.holds is not None, "what is not kept is not deleted"


async def test_a_node_whose_backup_changes_at_the_end_of_each_retrieval_does_not_hold_the_run(desk: Desk) -> None:
    desk.configure(
        polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "1s"},
        a0cli={"path": desk.fleet.a0cli.path, "key_dir": str(desk.simulated.key_dir), "retrieve_timeout": "2s"},
        retrieve_attempts=2,
    )
    desk.put()

    def another(stage: str) -> None:
        if stage in ("ping", "retrieve"):
            desk.forget()
            desk.tell("backup-status", "bad_md5", value=f"{time.time_ns():032x}")
            desk.tell("backup-retrieve", "latency", seconds=1)

    ended = await desk.night(after=another)
    assert isinstance(ended.error, NodeDeadlineError)
    assert ended.outcome.reason.startswith("the backup was not stored within 6 s; the last status was: ")
    assert desk.counted("backup-retrieve") < 12
    assert desk.counted("backup-delete") == 0


async def test_what_is_stored_is_finished_after_the_limit_of_time(desk: Desk) -> None:
    desk.configure(
        polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "1s"},
        a0cli={"path": desk.fleet.a0cli.path, "key_dir": str(desk.simulated.key_dir), "retrieve_timeout": "2s"},
        retrieve_attempts=1,
    )

    def slow(stage: str) -> None:
        if stage == "store":
            time.sleep(4.5)

    assert (await desk.night(after=slow)).error is None
    desk.is_settled()


@as_root
async def test_a_foreign_backup_leaves_the_room_for_the_next_backup_of_other_nodes(
    desk: Desk, unused: Iterator[dict[str, Any]]
) -> None:
    other = next(unused)
    with small_disk(desk.room / "disk", "20m") as disk:
        desk.configure(vault=str(disk), nodes=[other])
        assert (await desk.night(flow_run="run-1")).error is None
        [last] = desk.vault.manifests(other["name"])
        file = desk.vault.root / last.id / "manifest.json"
        file.write_text(file.read_text().replace(f'"size": {last.artifact.size}', '"size": 8000000'))
        desk.configure(vault=str(disk), nodes=[desk.node, other])
        desk.simulated.put(desk.name, password="their own", size=15_000_000)
        ended = await desk.night(flow_run="run-2", only=desk.name)
        assert isinstance(ended.error, ArtifactTooLargeError)
        assert "kept free for other nodes" in ended.outcome.reason
        assert shutil.disk_usage(disk).free > 10_000_000


async def test_a_node_that_makes_its_backup_for_hours_takes_no_space_meanwhile(desk: Desk) -> None:
    seen: list[bool] = []
    await desk.night(flow_run="run-1")
    desk.say_the_last_was(int(shutil.disk_usage(desk.fleet.vault).free * 0.7))
    shutil.copytree(desk.vault.folder(desk.name), desk.vault.folder("a0-other"))
    for each in desk.vault.folder("a0-other").rglob("manifest.json"):
        each.write_text(each.read_text().replace(f'"{desk.name}', '"a0-other'))
    other = desk.vault.newest("a0-other")
    assert other is not None

    def look(stage: str) -> None:
        if stage in ("start", "await"):
            require_space(desk.vault, "a0-other", "backup")
            seen.append(True)

    assert (await desk.night(flow_run="run-2", after=look)).error is None
    assert seen == [True, True]


async def test_a_retrieval_that_fills_a_subfolder_is_stopped_and_leaves_no_bytes(desk: Desk) -> None:
    wrapper = desk.room / "a0cli-that-fills-a-subfolder"
    wrapper.write_text(
        f"""#!/bin/sh
case "$*" in *backup-retrieve*) mkdir sub && head -c 3000000 /dev/zero >sub/more && sleep 60;; esac
exec {desk.fleet.a0cli.path} "$@"
"""
    )
    wrapper.chmod(0o700)
    quick = {"path": str(wrapper), "key_dir": str(desk.simulated.key_dir)}
    desk.configure(a0cli=quick, contents={"max_size": "1MB"}, kinds=["backup", "backup-sensitive"])
    seen: list[list[Path]] = []

    def look(stage: str) -> None:
        seen.append(list(desk.vault.work(desk.name).glob("*/sub")))

    ended = await desk.night(after=look)
    assert isinstance(ended.error, ArtifactTooLargeError)
    assert seen[-1] == [], "the next kind has the room"


async def test_a_call_that_is_stopped_leaves_no_process_that_holds_the_lock(desk: Desk) -> None:
    wrapper = desk.room / "a0cli-that-leaves-one"
    wrapper.write_text(
        f"""#!/bin/sh
case "$*" in *backup-retrieve*) setsid sh -c 'while :; do sleep 0.1; done' >/dev/null 2>&1 & sleep 60;; esac
exec {desk.fleet.a0cli.path} "$@"
"""
    )
    wrapper.chmod(0o700)
    quick = {"path": str(wrapper), "key_dir": str(desk.simulated.key_dir), "retrieve_timeout": "1s"}
    desk.configure(a0cli=quick, retrieve_attempts=1)
    assert (await desk.night(flow_run="run-1")).error is not None
    assert not is_held(desk.vault.folder(desk.name) / "lock")
    desk.configure(lock_deadline="0s")
    assert (await desk.night(flow_run="run-2")).error is None


async def test_a_file_in_another_folder_is_not_taken_for_bytes_of_ours(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await desk.killed_after("await")
    other = tmp_path_factory.mktemp("other-vault")
    held = desk.holds
    assert held is not None
    shutil.copy(held["path"], other / "backup.tar.gz.enc")
    (desk.vault.work(desk.name) / "run-0-00000000").symlink_to(other)
    assert (await desk.night(flow_run="run-2")).error is None
    assert (other / "backup.tar.gz.enc").exists()
    assert desk.counts == (1, 1, 1), "it was retrieved from the node"


@pytest.mark.parametrize("split", ["", "\\b", "\\u200b", "\\u001b[31m"])
async def test_a_name_with_the_password_in_it_is_stored_nowhere(desk: Desk, split: str) -> None:
    reply = f'{{"message":"Backup found","arguments":{{"name":"Pass{split}w0rd.tar.gz","md5":"{{md5}}"}}}}'
    desk.tell("backup-status", "say", stdout=reply, when="found")
    told: list[str] = []

    def look(stage: str) -> None:
        told.extend(path.read_text() for path in desk.vault.folder(desk.name).rglob("*.json"))

    ended = await desk.night(after=look)
    assert ended.error is None
    [manifest] = desk.stored
    assert manifest.name_on_node == "***.tar.gz"
    assert any("deletion intended" in text for text in told)
    assert not any("w0rd" in text for text in (*told, ended.notes, str(ended.outcome)))


async def test_a_member_named_like_the_password_is_neither_reported_nor_stored_nor_handed_out(desk: Desk) -> None:
    made = desk.room / "made"
    made.write_bytes(encrypted(gzip.compress(file(f"/dump/{PASSWORD}", b"users") + END)))
    desk.simulated.put(desk.name, password=PASSWORD, file=made, name="x.tar.gz")
    ended = await desk.night()
    assert ended.error is None
    assert "in the artifact: /dump/*** has an absolute name" in ended.outcome.notes
    theirs = desk.stored[0]
    assert theirs.verified.largest is not None
    assert theirs.verified.largest[0].name == "/dump/***"
    handoff(desk.vault, [theirs], desk.room / "handed")
    texts = [path for place in ("vault", "handed") for path in (desk.room / place).rglob("*") if path.suffix != ".enc"]
    assert desk.room / "handed" / "manifest.json" in texts
    assert not any(PASSWORD in path.read_text() for path in texts if path.is_file())


@pytest.mark.parametrize("name", ["\\u0001" * 1000, '"' * 60_000], ids=["as long as may be", "too long"])
async def test_a_name_of_any_length_leaves_files_that_the_next_run_can_read(desk: Desk, name: str) -> None:
    polling = {"interval": "0.05s", "max_interval": "0.05s", "deadline": "2s"}
    desk.configure(retrieve_attempts=1, polling=polling)
    reply = f"""{{"message":"Backup found","arguments":{{"name":'{name}',"md5":"{{md5}}"}}}}"""
    desk.tell("backup-status", "say", stdout=reply, when="found")
    desk.tell("backup-retrieve", "flip")
    for flow_run in ("run-1", "run-2"):
        ended = await desk.night(flow_run=flow_run)
        assert isinstance(ended.error, A0BackupError)
        assert desk.journal.read() is not None
        assert "cannot be read" not in ended.notes
    files = list(desk.vault.folder(desk.name).glob("*.json"))
    assert files
    assert max(path.stat().st_size for path in files) < 64 << 10
    assert desk.counts[0] == 1


async def test_no_reply_of_one_node_keeps_the_other_nodes_waiting(desk: Desk) -> None:
    """Each of the thousands of objects in it is read, which takes a second."""
    for command, exit_code in (("update-commands", 0), ("backup", 0), ("backup-retrieve", 1), ("backup-delete", 0)):
        desk.tell(command, "say", stdout="{} " * 21_000, exit=exit_code)
    longest, last = 0.0, time.thread_time()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()  # of the event loop alone: a busy machine does not count
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    try:
        ended = await desk.night()
    finally:
        ticking.cancel()
    assert ended.error is None
    assert desk.counts == (1, 1, 1)
    assert longest < 0.1
