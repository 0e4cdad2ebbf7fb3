"""The vault: a manifest never lies, stored artifacts survive, no path leads out of it, and nothing is lost in it."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from a0backup.errors import ArtifactDamagedError, VaultUnusableError
from a0backup.files import Digests
from a0backup.vault.known_vault import create
from a0backup.vault.leftovers import salvage, sweep, verified_file
from a0backup.vault.manifest import Manifest, ManifestNode, ManifestPassword, UnreadableManifest
from a0backup.vault.mounts import unmounted
from a0backup.vault.quarantine import drop_quarantine, quarantine
from a0backup.vault.storing import confirm, store
from a0backup.vault.vault import Vault, kind_of
from tests.support.paths import REPOSITORY
from tests.support.patience import patience

STARTED = datetime(2026, 11, 23, 2, 0, 0, tzinfo=UTC)
STORED = datetime(2026, 11, 23, 2, 14, 9, tzinfo=UTC)
NODE = ManifestNode(name="a0-1", host="192.168.1.186", port=10121)
ID = "a0-1/20261123T020000Z-backup"
BYTES = b"exactly the bytes that the node sent"


def digests_of(content: bytes) -> Digests:
    return Digests(len(content), hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest())


class Room:
    """A vault, with methods that place verified bytes and store them in it."""

    def __init__(self, root: Path) -> None:
        self.vault = Vault(root)

    @property
    def node(self) -> Path:
        return self.vault.folder("a0-1")

    @property
    def work(self) -> Path:
        return self.vault.work("a0-1")

    def verified(self, content: bytes = BYTES, kind: str = "backup") -> Path:
        place = verified_file(self.vault, "a0-1", kind)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def store(self, content: bytes = BYTES, kind: str = "backup", **said: Any) -> Manifest:
        self.verified(content, kind)
        known: dict[str, Any] = {
            "name_on_node": "04-06-2016-15-04-30.tar.gz",
            "started_at": STARTED,
            "flow_run": "run-1",
        }
        known |= {"password": ManifestPassword(mode="shared"), "now": STORED, "expected": digests_of(content)}
        return store(self.vault, node=NODE, kind=kind, **known | said)

    def write_manifest(self, **changes: object) -> Path:
        """Write a manifest that is valid except for *changes*."""
        folder = self.vault.root / ID
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "schema": 1,
            "id": ID,
            "node": NODE.model_dump(),
            "kind": "backup",
            "name_on_node": "n",
            "started_at": "2026-11-23T02:00:00Z",
            "stored_at": "2026-11-23T02:14:09Z",
            "artifact": {"file": "backup.tar.gz.enc", **asdict(digests_of(BYTES))},
            "encryption": {"password": {"mode": "shared"}},
            "flow_run": "run-1",
        }
        content |= changes
        (folder / "manifest.json").write_text(json.dumps(content))
        return folder


@pytest.fixture
def room(tmp_path: Path) -> Room:
    (tmp_path / "vault").mkdir(mode=0o700)
    return Room(tmp_path / "vault")


@pytest.fixture
def umask_zero() -> Iterator[None]:
    former = os.umask(0)
    yield
    os.umask(former)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- storing -----------------------------------------------------------------------------------------------------------


def test_a_manifest_is_exactly_as_documented(room: Room) -> None:
    manifest = room.store()
    assert json.loads((room.vault.root / ID / "manifest.json").read_text()) == {
        "schema": 1,
        "id": ID,
        "node": {"name": "a0-1", "host": "192.168.1.186", "port": 10121},
        "kind": "backup",
        "name_on_node": "04-06-2016-15-04-30.tar.gz",
        "started_at": "2026-11-23T02:00:00Z",
        "stored_at": "2026-11-23T02:14:09Z",
        "artifact": {"file": "backup.tar.gz.enc", **asdict(digests_of(BYTES))},
        "encryption": {
            "cipher": "aes-256-ctr",
            "key_derivation": "EVP_BytesToKey-md5-nosalt",
            "password": {"mode": "shared", "confirmed": False, "sealed": []},
        },
        "verified": {"level": "md5"},
        "flow_run": "run-1",
    }
    assert room.vault.get(ID) == manifest
    assert room.vault.artifact(manifest).read_bytes() == BYTES


def test_the_id_has_the_start_time_or_for_a_foreign_backup_the_time_of_storing(room: Room) -> None:
    assert room.store().id == ID
    foreign = room.store(b"another", started_at=None)
    assert foreign.id == "a0-1/20261123T021409Z-backup"
    assert foreign.to_json()["started_at"] is None


def test_a_time_in_another_zone_is_stored_in_utc(room: Room) -> None:
    started = datetime.fromisoformat("2026-11-23T04:00:00+02:00")
    assert room.store(started_at=started).id == ID


def test_the_next_free_second_is_used_if_one_is_taken(room: Room) -> None:
    ids = [room.store(bytes([number])).id for number in range(3)]
    assert ids == [f"a0-1/2026112{3}T02000{number}Z-backup" for number in range(3)]
    assert room.store(b"s", kind="backup-sensitive").id == "a0-1/20261123T020000Z-backup-sensitive"


def test_the_next_year_is_used_if_the_last_second_of_a_year_is_taken(room: Room) -> None:
    last = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert [room.store(b"1", started_at=last).id[5:13], room.store(b"2", started_at=last).id[5:13]] == [
        "20261231",
        "20270101",
    ]


@pytest.mark.usefixtures("umask_zero")
def test_everything_in_the_vault_is_private_whatever_the_umask(room: Room) -> None:
    room.vault.ensure_writable("a0-1")
    retrieved = room.node / "retrieved"
    retrieved.write_bytes(b"bad")
    quarantine(room.vault, "a0-1", "backup", retrieved, reason={"reason": "md5"}, now=STORED)
    room.store()
    shutil.rmtree(room.work)
    for path in room.vault.root.rglob("*"):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_artifact_is_durable_and_read_back_from_the_disk_before_its_manifest_appears(room: Room) -> None:
    room.verified()
    log = room.vault.root.parent / "trace"
    program = f"""
from pathlib import Path
from tests.a0backup.vault.test_vault import *
store(Room(Path({str(room.vault.root)!r})).vault, node=NODE, kind="backup", name_on_node="n", started_at=STARTED,
    flow_run="r", password=ManifestPassword(mode="shared"), now=STORED, expected=digests_of(BYTES))
"""
    calls = "trace=fsync,rename,renameat2,fadvise64,read,mkdir"
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", program],
        cwd=REPOSITORY,
        check=True,
        timeout=patience(60),
    )
    told: list[str] = []
    for line in log.read_text().splitlines():
        call = line.split()[1].partition("(")[0]
        names = re.findall(rf"{re.escape(str(room.vault.root))}[^\">]*", line)
        if names:
            told.append(f"{call} {Path(names[-1]).name}")
    told = [re.sub(r"\.[0-9a-f]{32}", "", line) for line in told]
    start, folder = told.index("mkdir 20261123T020000Z-backup"), "20261123T020000Z-backup"
    assert [line for line in told[start:] if line != "read backup.tar.gz.enc"] == [
        f"mkdir {folder}",
        "fsync a0-1",
        "rename backup.tar.gz.enc",
        "fsync backup.tar.gz.enc",
        f"fsync {folder}",
        "fadvise64 backup.tar.gz.enc",
        "fadvise64 backup.tar.gz.enc",
        "fsync .manifest.json.partial",
        "fadvise64 .manifest.json.partial",
        "read .manifest.json.partial",
        "read .manifest.json.partial",
        "rename manifest.json",
        f"fsync {folder}",
    ]
    assert "read backup.tar.gz.enc" in told[told.index("fadvise64 backup.tar.gz.enc") :]


def test_bytes_that_differ_when_read_back_get_no_manifest(room: Room) -> None:
    with pytest.raises(ArtifactDamagedError):
        room.store(b"not what was verified", expected=digests_of(BYTES))
    assert room.vault.manifests() == []
    assert list(room.vault.entries()) == []


def test_an_id_whose_path_already_exists_in_any_form_is_skipped(room: Room) -> None:
    room.verified()
    taken = room.vault.root / ID
    taken.mkdir()
    (room.node / "20261123T020001Z-backup").symlink_to("/proc/nowhere")
    room.vault.folder("a0-1").joinpath("20261123T020002Z-backup").write_text("a file in the way")
    assert room.store().id == "a0-1/20261123T020003Z-backup"


def test_a_full_disk_gives_no_manifest_and_the_bytes_are_found_again(room: Room) -> None:
    room.verified()
    program = f"""
import resource
from pathlib import Path
from tests.a0backup.vault.test_vault import *
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    store(Room(Path({str(room.vault.root)!r})).vault, node=NODE, kind="backup", name_on_node="n", started_at=STARTED,
        flow_run="r", password=ManifestPassword(mode="shared"), now=STORED, expected=digests_of(BYTES))
except VaultUnusableError as error:
    print(error.message())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert ran.stdout == "a0-1: the artifact cannot be stored: File too large\n"
    assert list(room.vault.entries()) == []
    assert [path.name for path in (room.vault.root / ID).iterdir()] == ["backup.tar.gz.enc"]
    assert salvage(room.vault, "a0-1", "backup", digests_of(BYTES).md5) == digests_of(BYTES)


# -- reading back ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "sha256": flip,
    "bytes, its manifest says": truncate,
    "missing": Path.unlink,
    "not a regular file": replace_by_link,
    "a regular file": replace_by_pipe,
}


@pytest.mark.parametrize(("words", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_damage_is_detected_by_rereading_and_repaired_by_storing_the_same_bytes(
    room: Room, words: str, damage: Any
) -> None:
    manifest = room.store()
    room.vault.reread(manifest)
    damage(room.vault.artifact(manifest))
    with pytest.raises(ArtifactDamagedError, match=words):
        room.vault.reread(manifest)
    assert room.store(now=STORED + timedelta(days=1)) == manifest
    room.vault.reread(manifest)
    assert room.vault.manifests() == [manifest]


def test_a_repair_does_not_follow_a_link(room: Room) -> None:
    manifest = room.store()
    replace_by_link(room.vault.artifact(manifest))
    (room.node / "elsewhere").write_bytes(b"precious")
    room.store()
    assert (room.node / "elsewhere").read_bytes() == b"precious"
    assert not room.vault.artifact(manifest).is_symlink()


def test_the_same_bytes_from_another_night_are_a_separate_artifact(room: Room) -> None:
    first = room.store()
    second = room.store(started_at=STARTED + timedelta(days=1))
    assert room.vault.manifests() == [first, second]
    assert first.identity == second.identity
    assert room.vault.holding("a0-1", "backup", first.identity) == second
    assert room.vault.holding("a0-1", "backup", first.identity, started_at=STARTED) == first


def test_the_same_bytes_under_another_name_are_another_backup(room: Room) -> None:
    identity = room.store().identity
    assert room.vault.holding("a0-1", "backup", identity) is not None
    assert room.vault.holding("a0-1", "backup", identity.model_copy(update={"name": "another.tar.gz"})) is None


# -- listing -----------------------------------------------------------------------------------------------------------


def test_a_missing_vault_is_listed_as_empty(room: Room) -> None:
    assert room.vault.nodes() == []
    assert room.vault.manifests() == []
    assert room.vault.manifests("a0-1") == []
    assert room.vault.get(ID) is None


def test_a_folder_without_a_manifest_is_not_an_artifact(room: Room) -> None:
    (room.vault.root / ID).mkdir(parents=True)
    (room.vault.root / ID / "backup.tar.gz.enc").write_bytes(BYTES)
    assert list(room.vault.entries()) == []
    assert room.vault.get(ID) is None


def test_folders_that_are_not_artifact_folders_are_ignored(room: Room) -> None:
    manifest = room.store()
    for name in ("quarantine/20261123T020000Z-backup", "work/run", "20261123T020000Z-backup.old", "passwords"):
        (room.node / name).mkdir(parents=True)
        shutil.copy(room.vault.root / ID / "manifest.json", room.node / name)
    assert list(room.vault.entries()) == [manifest]


def test_artifacts_are_listed_by_node_and_oldest_first(room: Room) -> None:
    for node, day in (("b", 2), ("b", 1), ("a", 3)):
        room.vault.work(node).mkdir(parents=True, exist_ok=True)
        verified_file(room.vault, node, "backup").write_bytes(BYTES)
        store(
            room.vault,
            node=ManifestNode(name=node, host="h", port=1),
            kind="backup",
            name_on_node="n",
            expected=digests_of(BYTES),
            started_at=STARTED + timedelta(days=day),
            password=ManifestPassword(mode="shared"),
            flow_run="r",
            now=STORED,
        )
    assert [manifest.id[:12] for manifest in room.vault.manifests()] == ["a/20261126T0", "b/20261124T0", "b/20261125T0"]
    assert len(room.vault.manifests("b")) == 2
    assert room.vault.manifests("b", "backup-sensitive") == []


def sealed(recovery_key: str, box: str) -> dict[str, str]:
    return {"recovery_key": recovery_key, "box": box}


HOSTILE = {
    "the id of another": {"id": "a0-1/20261124T020000Z-backup"},
    "an id that leads elsewhere": {"id": f"../{ID}"},
    "a file that leads elsewhere": {"artifact": {"file": "../lock", **asdict(digests_of(BYTES))}},
    "an absolute file": {"artifact": {"file": "/etc/passwd", **asdict(digests_of(BYTES))}},
    "a file with a line end": {"artifact": {"file": "backup.tar.gz.enc\n", **asdict(digests_of(BYTES))}},
    "another schema": {"schema": 2},
    "an unknown key": {"more": 1},
    "a negative size": {"artifact": {"file": "backup.tar.gz.enc", **asdict(digests_of(BYTES)), "size": -1}},
    "no digest": {"artifact": {"file": "backup.tar.gz.enc", **asdict(digests_of(BYTES)), "sha256": ""}},
    "a time without zone": {"stored_at": "2026-11-23T02:14:09"},
    "a time at the end of all time": {"stored_at": "9999-12-31T23:59:59-12:00"},
    "a time before all time": {"started_at": "0001-01-01T00:00:00+12:00"},
    "an unknown password mode": {"encryption": {"password": {"mode": "plain"}}},
    "the kind of another": {"kind": "backup-sensitive"},
    "a size that no file has": {"verified": {"level": "contents", "unpacked_size": 10**400}},
    "a number of members that no file has": {"verified": {"level": "contents", "members": -1}},
    "a port that no node has": {"node": {"name": "a0-1", "host": "h", "port": 65536}},
    "a recovery key that is none": {"encryption": {"password": {"mode": "sealed", "sealed": [sealed("x", "QUJD")]}}},
    "a box that is none": {"encryption": {"password": {"mode": "sealed", "sealed": [sealed("0" * 64, "\n")]}}},
    "the node of another": {"node": {"name": "a0-2", "host": "h", "port": 1}},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_that_cannot_be_true_is_listed_as_unreadable(room: Room, changes: dict[str, object]) -> None:
    room.write_manifest()
    assert isinstance(room.vault.get(ID), Manifest)
    room.write_manifest(**changes)
    [entry] = room.vault.entries()
    assert isinstance(entry, UnreadableManifest)
    assert entry.id == ID
    assert entry.reason.startswith("manifest.json")
    assert room.vault.manifests() == []


CONTENTS = {
    "nothing": b"",
    "torn": b'{"schema": 1',
    "not text": b"\xff\xfe\x00",
    "too deep": b"[" * 100_000,
    "a list": b"[]",
    "huge": b" " * ((10 << 20) + 1),
}
MANY = {
    "keys": b'{"schema": 1,%s}' % b",".join(b'"%x":1' % number for number in range(700_000)),
    "passwords": b'{"encryption":{"password":{"mode":"sealed","sealed":[%s]}}}' % b",".join([b"{}"] * 2_500_000),
    "members": b'{"verified":{"largest":[%s]}}' % b",".join([b"1"] * 4_000_000),
    "texts": b'{"verified":{"largest":[%s]}}' % b",".join([b'","'] * 2_500_000),
    "escapes": b'{"verified":{"largest":[%s]}}' % b",".join([b'"\\"\\\\"'] * 1_200_000),
}


@pytest.mark.parametrize("content", MANY.values(), ids=MANY)
def test_a_manifest_with_a_million_values_is_refused_in_little_memory_and_time(room: Room, content: bytes) -> None:
    (room.write_manifest() / "manifest.json").write_bytes(content)
    program = f"""
import resource
from pathlib import Path
from a0backup.vault.vault import Vault
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
[entry] = Vault(Path({str(room.vault.root)!r})).entries()
used = resource.getrusage(resource.RUSAGE_SELF)
print(type(entry).__name__, (used.ru_maxrss - before) // 1024 < 100, used.ru_utime < 10)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.stdout == "UnreadableManifest True True\n", ran.stderr


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_not_a_manifest_is_listed_as_unreadable(room: Room, content: bytes) -> None:
    (room.write_manifest() / "manifest.json").write_bytes(content)
    assert [type(entry) for entry in room.vault.entries()] == [UnreadableManifest]


@pytest.mark.parametrize("what", ["directory", "pipe", "link"])
def test_a_manifest_that_is_not_a_regular_file_is_neither_followed_nor_waited_for(room: Room, what: str) -> None:
    place = room.write_manifest() / "manifest.json"
    whole = place.rename(room.vault.root / "whole")
    if what == "directory":
        place.mkdir()
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(whole)
    assert [type(entry) for entry in room.vault.entries()] == [UnreadableManifest]


def test_the_reason_for_an_unreadable_manifest_is_printable(room: Room) -> None:
    room.write_manifest(**{"\x1b[31mred\x1b]0;title\x07": 1})
    [entry] = room.vault.entries()
    assert isinstance(entry, UnreadableManifest)
    assert entry.reason.isprintable()


@pytest.mark.parametrize(
    "artifact_id",
    [
        "../" + ID,
        "/" + ID,
        "a0-1/../" + ID,
        "..",
        "",
        "a0-1",
        "a0-1/",
        f"{ID}/",
        f"{ID}\n",
        f"./{ID}",
        "a0-1/work",
        "../20261123T020000Z-backup",
        "\0",
    ],
)
def test_an_id_is_never_followed_out_of_the_vault(room: Room, artifact_id: str) -> None:
    room.store()
    shutil.copytree(room.vault.root / ID, room.vault.root.parent / "a0-1" / "20261123T020000Z-backup")
    shutil.copytree(room.vault.root / ID, room.vault.root.parent / "20261123T020000Z-backup")
    assert room.vault.get(artifact_id) is None


def test_a_linked_folder_is_not_followed_out_of_the_vault_but_named(room: Room) -> None:
    room.store()
    shutil.move(room.vault.root / ID, room.vault.root.parent / "elsewhere")
    (room.vault.root / ID).symlink_to(room.vault.root.parent / "elsewhere")
    [link] = room.vault.entries()
    assert isinstance(link, UnreadableManifest)
    assert (link.id, link.damaged) == (ID, True)
    assert room.vault.get(ID) == link


# -- what dead runs left -----------------------------------------------------------------------------------------------


def dead_run(
    room: Room, content: bytes, name: str = "dead-1-01234567", file: str = "backup-retrieve.tar.gz.enc"
) -> Path:
    folder = room.work / name
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    return folder / file


def salvaged(room: Room) -> Digests | None:
    return salvage(room.vault, "a0-1", "backup", digests_of(BYTES).md5)


def test_there_is_nothing_to_salvage_in_an_empty_vault(room: Room) -> None:
    assert salvaged(room) is None


def test_bytes_that_wait_to_be_stored_are_found_in_place(room: Room) -> None:
    place = room.verified()
    assert salvaged(room) == digests_of(BYTES)
    assert place.read_bytes() == BYTES


def test_bytes_that_a_dead_run_retrieved_are_found_among_others(room: Room) -> None:
    room.verified(b"of another backup")
    dead_run(room, BYTES[:-1], "dead-1")
    left = dead_run(room, BYTES, "dead-2")
    assert salvaged(room) == digests_of(BYTES)
    assert verified_file(room.vault, "a0-1", "backup").read_bytes() == BYTES
    assert not left.exists()


def test_bytes_that_lack_only_their_manifest_are_found(room: Room) -> None:
    manifest = room.store()
    (room.vault.root / ID / "manifest.json").unlink()
    assert salvaged(room) == digests_of(BYTES)
    assert room.store() != manifest


def test_bytes_with_a_manifest_are_not_salvaged(room: Room) -> None:
    manifest = room.store()
    assert salvaged(room) is None
    room.vault.reread(manifest)


def test_links_pipes_and_directories_are_not_salvaged(room: Room) -> None:
    elsewhere = room.vault.root.parent / "elsewhere"
    elsewhere.write_bytes(BYTES)
    left = dead_run(room, b"")
    left.unlink()
    left.symlink_to(elsewhere)
    os.mkfifo(left.with_name("pipe.tar.gz.enc"))
    (left.with_name("folder.tar.gz.enc")).mkdir()
    assert salvaged(room) is None
    assert elsewhere.read_bytes() == BYTES


@pytest.mark.parametrize("size", [1 << 40, 15 << 40])
def test_files_that_hold_almost_no_bytes_are_not_read_to_salvage_anything(room: Room, size: int) -> None:
    """To read them would take hours, with the node's lock held."""
    room.verified(b"of another backup")
    for place in (dead_run(room, b"x"), verified_file(room.vault, "a0-1", "backup")):
        with place.open("r+b") as file:
            file.truncate(size)
    dead_run(room, BYTES, "dead-2")
    assert salvaged(room) == digests_of(BYTES)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_unreadable_bytes_do_not_hide_readable_ones(room: Room) -> None:
    """A bad sector under bytes that a dead run left must not fail every later night."""
    bad, good = dead_run(room, b"unreadable", "dead-1"), dead_run(room, BYTES, "dead-2")
    program = f"""
from pathlib import Path
from tests.a0backup.vault.test_vault import *
print(salvaged(Room(Path({str(room.vault.root)!r}))) == digests_of(BYTES))
"""
    fault = ["-P", str(bad), "-e", "trace=read", "-e", "inject=read:error=EIO", "-o", "/dev/null"]
    ran = subprocess.run(
        ["strace", "-f", "-qq", *fault, sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert ran.stdout == "True\n"
    assert not good.exists()


def test_sweeping_removes_what_dead_runs_left_and_nothing_else(room: Room) -> None:
    manifest = room.store()
    mine = room.work / "mine"
    mine.mkdir()
    (mine / "a0cli-key").symlink_to(room.vault.root / ID / "manifest.json")
    dead_run(room, BYTES)
    room.verified(b"waits")
    other = room.verified(b"waits too", "backup-sensitive")
    empty, bytes_alone = room.node / "20261124T020000Z-backup", room.node / "20261125T020000Z-backup"
    for folder in (empty, bytes_alone):
        folder.mkdir()
    (empty / ".manifest.json.0.partial").write_text("{")
    (bytes_alone / "backup.tar.gz.enc").write_bytes(b"verified once")
    (room.node / ".journal-backup.json.0.partial").write_text("{")
    kept = ["lock", "journal-backup.json", "journal-backup.json.unreadable-20261123T020000Z", "note.txt"]
    for name in kept:
        (room.node / name).write_text(name)
    (room.node / "quarantine").mkdir()

    assert sweep(room.vault, "a0-1", kind="backup", keep=mine).without_manifest == [bytes_alone]

    left = sorted(
        str(path.relative_to(room.node)) for path in room.node.rglob("*") if not path.is_dir() or path == mine
    )
    assert left == sorted(
        [
            *kept,
            "20261123T020000Z-backup/backup.tar.gz.enc",
            "20261123T020000Z-backup/manifest.json",
            "20261125T020000Z-backup/backup.tar.gz.enc",
            "work/mine",
            "work/mine/a0cli-key",
            str(other.relative_to(room.node)),
        ]
    )
    assert (room.node / "quarantine").is_dir()
    assert not empty.exists()
    room.vault.reread(manifest)


def test_sweeping_leaves_alone_and_names_what_it_did_not_make(room: Room) -> None:
    """Some file servers put a folder of their own into each directory."""
    theirs = room.work / "@eaDir" / "thumbnail"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    dead = room.work / "run-1-01234567"
    dead.mkdir()
    (dead / "a0cli-key").touch()
    swept = sweep(room.vault, "a0-1", kind="backup", keep=room.work / "mine")
    assert swept.others == [theirs.parent]
    assert theirs.exists()
    assert not dead.exists()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_sweeping_removes_around_what_it_cannot_remove(room: Room) -> None:
    dead = room.work / "run-1-01234567"
    stuck = dead / "@eaDir"
    stuck.mkdir(parents=True)
    (dead / "backup-retrieve.tar.gz.enc").write_bytes(b"part of it")
    program = (
        "from pathlib import Path; from a0backup.vault.leftovers import sweep; from a0backup.vault.vault import Vault;"
        f"print(*sweep(Vault(Path({str(room.vault.root)!r})), 'a0-1', kind='backup', keep=Path('none')).others)"
    )
    fault = ["-e", "trace=unlinkat,rmdir", "-e", "inject=unlinkat,rmdir:error=EACCES:when=2+", "-o", "/dev/null"]
    ran = subprocess.run(
        ["strace", "-f", "-qq", *fault, sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    assert len(ran.stdout.split()) == 1
    assert ran.stdout.startswith(str(dead)), "paths are whole"


def test_sweeping_follows_no_link(room: Room, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    room.work.mkdir(parents=True)
    (room.work / "linked").symlink_to(precious)
    sweep(room.vault, "a0-1", kind="backup", keep=room.work / "mine")
    assert (precious / "file").read_text() == "kept"


# -- writability, quarantine -------------------------------------------------------------------------------------------


def test_the_write_check_leaves_only_the_nodes_folder_in_the_vault(room: Room) -> None:
    room.vault.ensure_writable("a0-1")
    assert list(room.node.iterdir()) == []


@pytest.mark.usefixtures("umask_zero")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_file_of_the_write_check_is_private_although_it_is_deleted_at_once(room: Room) -> None:
    log = room.vault.root.parent / "trace"
    program = f"from a0backup.vault.vault import *; Vault(Path({str(room.vault.root)!r})).ensure_writable('a0-1')"
    calls = ["strace", "-f", "-qq", "-e", "trace=openat", "-o", str(log)]
    subprocess.run([*calls, sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=patience(60))
    [made] = [line for line in log.read_text().splitlines() if "O_CREAT" in line and str(room.vault.root) in line]
    assert ", 0600)" in made


def test_the_error_of_a_vault_that_cannot_be_created_names_its_path(room: Room) -> None:
    room.vault.root.rmdir()
    room.vault.root.write_text("a file in the way")
    with pytest.raises(VaultUnusableError, match=re.escape(str(room.vault.root))):
        room.vault.ensure_writable("a0-1")


def test_a_mount_point_without_a_mounted_file_system_is_detected(tmp_path: Path) -> None:
    """Otherwise, without its disk, the vault would be created in the mount point and hidden once the disk is back."""
    missing = tmp_path / "my disk"
    missing.mkdir()
    fstab = tmp_path / "fstab"
    fstab.write_text(
        "# <file system> <mount point>\n"
        "UUID=1 / ext4 defaults 0 1\n"
        "UUID=2 none swap sw 0 0\n"
        "broken\n"
        f"# UUID=4 {tmp_path} ext4 defaults 0 2\n"
        f"UUID=3 {tmp_path}/my\\040disk ext4 defaults,nofail 0 2\n"
    )
    assert unmounted(missing / "vault", fstab=fstab) == missing
    assert unmounted(missing, fstab=fstab) == missing
    assert unmounted(tmp_path / "my disks" / "vault", fstab=fstab) is None
    assert unmounted(missing, fstab=tmp_path / "none") is None
    (tmp_path / "linked").symlink_to(missing)
    assert unmounted(tmp_path / "linked" / "vault", fstab=fstab) == missing


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(
    ("mounts", "mounted"),
    [
        ([("data", "my disk")], True),  # another directory of the same disk
        ([("my disk", "my disk")], False),  # onto itself, as systemd does with each of ReadWritePaths
        ([("data", "my disk"), ("my disk", "my disk")], True),
        ([(".", "."), ("my disk", "my disk")], False),
    ],
)
def test_a_bind_mount_counts_as_mounted_unless_it_binds_a_directory_onto_itself(
    tmp_path: Path, mounts: list[tuple[str, str]], mounted: bool
) -> None:
    for name in ("data", "my disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "fstab").write_text(f"{tmp_path}/data {tmp_path}/my\\040disk none bind 0 0\n")
    question = (
        "from a0backup.vault.mounts import *; print(unmounted(Path('my disk/vault').absolute(), fstab=Path('fstab')))"
    )
    # In a separate mount namespace, which ends with the process.
    binds = " && ".join(f'mount --bind "$0/{what}" "$0/{where}"' for what, where in mounts)
    script = f'cd "$0" && "$1" -c "{question}" && {binds} && cd "$0" && "$1" -c "{question}"'
    told = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), sys.executable],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == [str(tmp_path / "my disk"), "None" if mounted else str(tmp_path / "my disk")]


def test_quarantine_does_not_create_a_missing_vault(room: Room, tmp_path: Path) -> None:
    room.vault.root.rmdir()
    (tmp_path / "retrieved").write_bytes(BYTES)
    with pytest.raises(FileNotFoundError):
        quarantine(room.vault, "a0-1", "backup", tmp_path / "retrieved", reason={}, now=STORED)
    assert not room.vault.root.exists()


def test_concurrent_write_checks_do_not_disturb_each_other(room: Room) -> None:
    """Runs check before they have the lock, while the run that has it sweeps."""
    room.work.mkdir(parents=True)
    errors: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(60):
                room.vault.ensure_writable("a0-1")
        except VaultUnusableError as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sweep(room.vault, "a0-1", kind="backup", keep=room.work / "mine")
    assert errors == []


def test_quarantine_keeps_the_newest_of_each_kind_with_its_reason_and_no_manifest(room: Room) -> None:
    for second, kind in enumerate(["backup", "backup-sensitive", "backup"]):
        room.work.mkdir(parents=True, exist_ok=True)
        retrieved = room.work / "retrieved"
        retrieved.write_bytes(b"%d" % second)
        quarantine(room.vault, "a0-1", kind, retrieved, reason={"n": second}, now=STORED + timedelta(seconds=second))
        assert not retrieved.exists()
    place = room.node / "quarantine"
    assert {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()} == {
        "20261123T021410Z-backup-sensitive/backup-sensitive.tar.gz.enc": "1",
        "20261123T021410Z-backup-sensitive/reason.json": '{\n  "n": 1\n}\n',
        "20261123T021411Z-backup/backup.tar.gz.enc": "2",
        "20261123T021411Z-backup/reason.json": '{\n  "n": 2\n}\n',
    }
    assert list(room.vault.entries()) == []


def test_sweeping_removes_empty_and_outdated_quarantine_of_a_killed_run(room: Room) -> None:
    room.work.mkdir(parents=True)
    place = room.node / "quarantine"
    for name in ("20261121T020000Z-backup", "20261122T020000Z-backup", "20261120T020000Z-backup-sensitive"):
        (place / name).mkdir(parents=True)
        (place / name / f"{name.partition('-')[2]}.tar.gz.enc").write_bytes(BYTES)
    (place / "20261123T020000Z-backup").mkdir()
    (place / "20261123T020000Z-backup" / ".reason.json.0.partial").write_text("{")
    sweep(room.vault, "a0-1", kind="backup", keep=room.work / "mine")
    left = sorted(path.name for path in place.iterdir())
    assert left == ["20261120T020000Z-backup-sensitive", "20261122T020000Z-backup"]


def test_the_quarantine_of_one_kind_can_be_deleted(room: Room) -> None:
    room.work.mkdir(parents=True)
    for kind in ("backup", "backup-sensitive"):
        (room.work / "retrieved").write_bytes(BYTES)
        quarantine(room.vault, "a0-1", kind, room.work / "retrieved", reason={}, now=STORED)
    drop_quarantine(room.vault, "a0-1", "backup")
    assert [path.name for path in (room.node / "quarantine").iterdir()] == ["20261123T021409Z-backup-sensitive"]


def test_an_artifact_of_another_run_is_made_durable_again_before_it_counts(room: Room) -> None:
    """That run may have been killed between the manifest's rename and the fsync of its folder."""
    manifest = room.store()
    file = room.vault.root / ID / "manifest.json"
    before, content = file.stat().st_ino, file.read_bytes()
    confirm(room.vault, manifest)
    assert file.stat().st_ino != before
    assert file.read_bytes() == content
    room.vault.artifact(manifest).write_bytes(b"damaged")
    with pytest.raises(ArtifactDamagedError):
        confirm(room.vault, manifest)


def test_a_folder_that_cannot_belong_to_a_node_is_ignored(room: Room) -> None:
    manifest = room.store()
    (room.vault.root / "lost+found").mkdir(mode=0o000)
    assert room.vault.nodes() == ["a0-1"]
    assert list(room.vault.entries()) == [manifest]


def test_quarantined_bytes_are_never_salvaged(room: Room) -> None:
    room.work.mkdir(parents=True)
    (room.work / "retrieved").write_bytes(BYTES)
    quarantine(room.vault, "a0-1", "backup", room.work / "retrieved", reason={}, now=STORED)
    assert salvaged(room) is None


def test_newest_returns_the_newest_readable_artifact_of_the_kind(room: Room) -> None:
    assert room.vault.newest("a0-1") is None
    nights = [room.store(b"%d" % day, started_at=STARTED + timedelta(days=day)) for day in range(3)]
    sensitive = room.store(b"keys", "backup-sensitive", started_at=STARTED + timedelta(days=5))
    assert room.vault.newest("a0-1") == sensitive
    assert room.vault.newest("a0-1", "backup") == nights[2]
    (room.vault.root / nights[2].id / "manifest.json").write_text("{")
    assert room.vault.newest("a0-1", "backup") == nights[1]


# -- files of another user ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("file", ["backup.tar.gz.enc", "manifest.json"])
def test_what_this_user_may_not_read_is_not_damaged_and_its_owner_is_named(room: Room, file: str) -> None:
    room.store()
    create(room.vault)
    path = room.vault.root / ID / file
    os.chown(path.parent, 12345, -1)
    os.chown(path, 12345, -1)
    deny = ["-P", str(path), "-e", "trace=openat", "-e", "inject=openat:error=EACCES", "-o", "/dev/null"]
    ended = subprocess.run(
        ["strace", "-f", "-qq", *deny, sys.executable, "-m", "a0backup", "verify", "--vault", str(room.vault.root)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert ended.returncode == 1, ended.stderr
    assert f"{ID}  NOT READ: " in ended.stdout
    assert "belongs to uid 12345, and this user may not read it" in ended.stdout
    assert "chown -R" in ended.stdout
    assert "DAMAGED" not in ended.stdout


@pytest.mark.parametrize("node", ["a0-1", "AZ-1", "20261123T020000Z-backup", "aZ-"])
def test_the_kind_in_an_id_is_that_of_the_folder_whatever_the_node_is_called(node: str) -> None:
    assert kind_of(f"{node}/20261123T020000Z-backup-sensitive") == "backup-sensitive"
