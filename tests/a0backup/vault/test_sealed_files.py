"""A sealed password is on disk before the node gets it, never replaced, and removed once its backup is settled."""

import base64
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from a0backup import files
from a0backup.errors import VaultUnusableError
from a0backup.vault import sealed_files
from a0backup.vault.manifest import SealedPassword
from a0backup.vault.sealed_files import SealedFiles
from tests.support.environment import unwatched

START = datetime(2026, 11, 23, 2, 0, 0, tzinfo=UTC)


def box(number: int) -> SealedPassword:
    return SealedPassword(recovery_key=f"{number:064x}", box=base64.b64encode(number.to_bytes(2, "big") * 256).decode())


@pytest.fixture
def node_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a0-1"
    folder.mkdir(0o700)
    return folder


@pytest.fixture
def of_backup(node_folder: Path) -> SealedFiles:
    return SealedFiles(node_folder, "backup")


def names(sealed: SealedFiles) -> list[str]:
    return sorted(path.name for path in sealed.folder.iterdir())


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_written_password_can_be_read_back(of_backup: SealedFiles, node_folder: Path) -> None:
    path = of_backup.write(START, [box(1), box(2)])
    assert path == node_folder / "passwords" / "20261123T020000Z-backup.json"
    assert json.loads(path.read_text()) == {
        "schema": 1,
        "node": "a0-1",
        "kind": "backup",
        "made_at": "2026-11-23T02:00:00Z",
        "sealed": [box(1).model_dump(), box(2).model_dump()],
    }
    assert of_backup.all() == (box(1), box(2))
    assert names(of_backup) == [path.name]


def test_the_file_name_is_in_utc(of_backup: SealedFiles) -> None:
    path = of_backup.write(START.astimezone(timezone(timedelta(hours=5))), [box(1)])
    assert path.name == "20261123T020000Z-backup.json"


def test_files_are_private_whatever_the_umask(of_backup: SealedFiles) -> None:
    former = os.umask(0)
    try:
        path = of_backup.write(START, [box(1)])
    finally:
        os.umask(former)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(of_backup.folder.stat().st_mode) == 0o700


def test_a_second_password_in_the_same_second_takes_the_next_free_second(of_backup: SealedFiles) -> None:
    written = [of_backup.write(START, [box(number)]) for number in (1, 2, 3)]
    assert [path.name[:16] for path in written] == ["20261123T020000Z", "20261123T020001Z", "20261123T020002Z"]
    assert of_backup.all() == (box(1), box(2), box(3))


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("elsewhere"), os.mkfifo])
def test_nothing_that_already_has_the_name_is_replaced(of_backup: SealedFiles, make) -> None:
    of_backup.folder.mkdir()
    taken = of_backup.folder / "20261123T020000Z-backup.json"
    make(taken)
    before = taken.lstat()
    assert of_backup.write(START, [box(1)]).name == "20261123T020001Z-backup.json"
    after = taken.lstat()
    assert (before.st_ino, before.st_mode, before.st_size) == (after.st_ino, after.st_mode, after.st_size)


def test_concurrent_writers_replace_nothing(of_backup: SealedFiles) -> None:
    gate = threading.Barrier(8)
    written: list[Path] = []

    def write(number: int) -> None:
        gate.wait()
        written.append(of_backup.write(START, [box(number)]))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(written)) == 8
    assert set(of_backup.all()) == {box(number) for number in range(8)}


def test_a_password_that_the_disk_returns_altered_is_not_kept(
    of_backup: SealedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_files, "read_past_cache", lambda path: files.read_past_cache(path)[:-2] + b"\0\n")
    with pytest.raises(VaultUnusableError, match="returned a sealed password that differs"):
        of_backup.write(START, [box(1)])
    assert names(of_backup) == []


def test_a_failed_write_is_an_error_and_leaves_no_file(of_backup: SealedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", refuse)
    of_backup.folder.mkdir()
    with pytest.raises(OSError, match="Input/output error"):
        of_backup.write(START, [box(1)])
    assert names(of_backup) == []


def test_a_missing_vault_is_not_created_again(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SealedFiles(tmp_path / "gone" / "a0-1", "backup").write(START, [box(1)])
    assert list(tmp_path.iterdir()) == []


_WATCHED = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from a0backup.vault.sealed_files import SealedFiles
from a0backup.vault.manifest import SealedPassword

def hear(event, args):
    if event in ("os.link", "os.rename"):
        print(event, Path(args[1]).suffix)

def synced(descriptor, fsync=os.fsync):
    print("fsync", os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].rpartition(".")[2])
    fsync(descriptor)

os.fsync = synced
sys.addaudithook(hear)
SealedFiles(Path(sys.argv[1]), "backup").write(datetime.now(UTC), [SealedPassword(recovery_key="0" * 64, box="QUJD")])
"""


def test_the_bytes_are_synced_before_the_name_and_the_file_is_linked_not_renamed(node_folder: Path) -> None:
    command = [sys.executable, "-c", _WATCHED, str(node_folder)]
    seen = subprocess.run(command, env=unwatched(), capture_output=True, text=True, check=True).stdout.splitlines()
    assert seen.index("fsync partial") < seen.index("os.link .json")
    assert seen[-1] == "fsync passwords"
    assert "os.rename .json" not in seen


# -- reading -----------------------------------------------------------------------------------------------------------


def test_without_a_folder_there_are_no_passwords(of_backup: SealedFiles) -> None:
    assert (of_backup.all(), of_backup.unreadable()) == ((), [])
    of_backup.remove()
    assert not of_backup.folder.exists()


def test_passwords_are_listed_oldest_first_and_once_each(of_backup: SealedFiles) -> None:
    of_backup.write(START + timedelta(days=1), [box(1), box(2)])
    of_backup.write(START, [box(3), box(1)])
    assert of_backup.all() == (box(3), box(1), box(2))


def test_kinds_do_not_see_each_others_passwords(of_backup: SealedFiles, node_folder: Path) -> None:
    sensitive = SealedFiles(node_folder, "backup-sensitive")
    of_backup.write(START, [box(1)])
    sensitive.write(START, [box(2)])
    assert (of_backup.all(), sensitive.all()) == ((box(1),), (box(2),))
    of_backup.remove()
    assert (of_backup.all(), sensitive.all()) == ((), (box(2),))


GOOD = {
    "schema": 1,
    "node": "a0-1",
    "kind": "backup",
    "made_at": "2026-11-23T02:00:00Z",
    "sealed": [box(1).model_dump()],
}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "null",
        json.dumps(GOOD | {"schema": 0}),
        json.dumps(GOOD | {"node": "a0-2"}),
        json.dumps(GOOD | {"kind": "backup-sensitive"}),
        json.dumps(GOOD | {"made_at": "2026-11-23T02:00:00"}),
        json.dumps(GOOD | {"sealed": []}),
        json.dumps(GOOD | {"more": 1}),
        json.dumps(GOOD | {"sealed": [{"recovery_key": "\x1b[2J", "box": "QUJD"}]}),
        json.dumps(GOOD | {"sealed": [{"recovery_key": "0" * 64, "box": "not base64!"}]}),
        json.dumps(GOOD | {"sealed": [{"recovery_key": "0" * 64, "box": "A" * 9000}]}),
        json.dumps(GOOD) + " " * 300_000,
        b"\xff\xfe",
    ],
    ids=range(15),
)
def test_an_invalid_file_is_reported_and_hides_no_other(of_backup: SealedFiles, content: str | bytes) -> None:
    good = of_backup.write(START, [box(7)])
    bad = of_backup.folder / "20261122T020000Z-backup.json"
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert of_backup.all() == (box(7),)
    assert of_backup.unreadable() == [bad.name]
    of_backup.remove()
    assert (good.exists(), bad.exists()) == (False, True)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.with_name("good"))])
def test_directories_pipes_and_links_are_never_read(of_backup: SealedFiles, make) -> None:
    of_backup.write(START, [box(1)]).rename(of_backup.folder / "good")
    make(of_backup.folder / "20261123T020000Z-backup.json")
    assert of_backup.all() == ()
    assert of_backup.unreadable() == ["20261123T020000Z-backup.json"]


def test_other_files_in_the_folder_are_ignored(of_backup: SealedFiles) -> None:
    of_backup.write(START, [box(1)])
    (of_backup.folder / "notes.txt").write_text("x")
    (of_backup.folder / "20261123T020000Z-other.json").write_text("x")
    assert of_backup.unreadable() == []
    of_backup.remove()
    assert names(of_backup) == ["20261123T020000Z-other.json", "notes.txt"]


# -- removing ----------------------------------------------------------------------------------------------------------


def test_passwords_that_are_still_needed_stay(of_backup: SealedFiles) -> None:
    for number in (1, 2, 3):
        of_backup.write(START, [box(number), box(10 + number)])
    of_backup.remove(but=[box(12)])
    assert of_backup.all() == (box(2), box(12))


def test_the_partial_file_of_a_killed_writer_is_removed(of_backup: SealedFiles) -> None:
    of_backup.folder.mkdir()
    (of_backup.folder / ".abc.partial").write_text("{")
    of_backup.remove()
    assert names(of_backup) == []
