"""`a0backup copy`, `verify` and `status` with the places of fleet.yaml."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.command import a0backup
from tests.support.stored import store

FLEET = """\
vault: vault
a0cli: {{key_dir: keys}}
password: {{env: A0_BACKUP_PASSWORD}}
nodes: [{{name: a0-1, host: 127.0.0.1}}]
copies:
  - {{name: nas, url: nas}}
  - {{name: far, url: "file://{far}"}}
"""


class Room:
    """A fleet file with two places, and a vault with artifacts of two nights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fleet = folder, folder / "fleet.yaml"
        self.fleet.write_text(FLEET.format(far=folder / "far"))
        self.manifests = [store(folder / "vault", "Passw0rd", nights=night, size=4_000) for night in range(2)]

    def run(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return a0backup(command, "--fleet", self.fleet, *arguments)

    def held(self, place: str) -> list[Manifest]:
        """Return the artifacts of a place, each read to its end."""
        vault = Vault(self.folder / place)
        for manifest in vault.manifests():
            vault.reread(manifest)
        return vault.manifests()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.fixture
def copied(room: Room) -> Room:
    assert room.run("copy").returncode == 0
    return room


def test_copy_brings_every_place_to_what_the_vault_has(room: Room) -> None:
    ended = room.run("copy")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "nas: 2 copied, 0 held already\nfar: 2 copied, 0 held already\n"
    assert room.held("nas") == room.held("far") == room.manifests
    assert room.run("copy").stdout == "nas: 0 copied, 2 held already\nfar: 0 copied, 2 held already\n"


def test_a_copy_is_a_vault_of_its_own(copied: Room) -> None:
    listed = a0backup("list", "--vault", copied.folder / "nas", "--json")
    assert [entry["id"] for entry in json.loads(listed.stdout)] == [manifest.id for manifest in copied.manifests]
    assert a0backup("verify", "--vault", copied.folder / "nas").returncode == 0


def test_copy_to_one_place_leaves_the_others_alone(room: Room) -> None:
    assert room.run("copy", "--to", "far").returncode == 0
    assert room.held("far") == room.manifests
    assert not (room.folder / "nas").exists()


def test_copy_of_an_id_copies_nothing_else(room: Room) -> None:
    assert room.run("copy", room.manifests[0].id).returncode == 0
    assert room.held("nas") == room.manifests[:1]


def test_copy_replaces_what_a_place_has_lost(copied: Room) -> None:
    shutil.rmtree(copied.folder / "nas" / copied.manifests[1].id)
    assert copied.run("copy").stdout.startswith("nas: 1 copied, 1 held already\n")
    assert copied.held("nas") == copied.manifests


def test_a_place_with_a_new_disk_is_filled_once_its_record_is_removed(copied: Room) -> None:
    shutil.rmtree(copied.folder / "nas")
    assert copied.run("copy", "--to", "nas").returncode == 4
    assert not (copied.folder / "nas").exists()
    (copied.folder / "vault" / ".places" / "nas.json").unlink()
    assert copied.run("copy", "--to", "nas").returncode == 0
    assert copied.held("nas") == copied.manifests


def test_a_place_that_fails_ends_copy_with_4_and_does_not_stop_the_other(room: Room) -> None:
    (room.folder / "nas").write_text("not a folder")
    ended = room.run("copy", "--json")
    assert ended.returncode == 4
    nas, far = json.loads(ended.stdout)
    assert (nas["behind"], nas["copied"], far["behind"], len(far["copied"])) == (True, [], False, 2)
    assert "Not a directory" in nas["error"]


def test_an_unknown_place_is_a_usage_error_that_names_the_places(room: Room) -> None:
    for command in (["copy", "--to", "nowhere"], ["verify", "--place", "nowhere"]):
        ended = room.run(*command)
        assert ended.returncode == 2
        assert "no place is named 'nowhere'; write one of nas, far" in ended.stderr


def test_verify_names_the_place_of_what_is_damaged_and_repair_mends_it(copied: Room) -> None:
    damaged = copied.folder / "far" / copied.manifests[0].id / "backup.tar.gz.enc"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    ended = copied.run("verify", "--all")
    assert ended.returncode == 4
    [line] = [line for line in ended.stdout.splitlines() if "DAMAGED" in line]
    assert line.startswith(f"{copied.manifests[0].id}  far: DAMAGED: backup.tar.gz.enc has sha256 ")
    assert ended.stdout.count("ok\n") == 5
    mended = copied.run("verify", "--repair")
    assert mended.returncode == 0, mended.stdout
    assert f"{copied.manifests[0].id}  far: ok: mended from the vault\n" in mended.stdout
    assert "mended: 1 artifact (far); do not trust that disk\n" in mended.stderr
    assert copied.run("verify").returncode == 0
    assert copied.held("far") == copied.manifests


def test_a_mended_artifact_counts_again_as_soon_as_it_is_mended(copied: Room) -> None:
    damaged = copied.folder / "vault" / copied.manifests[-1].id / "backup.tar.gz.enc"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert copied.run("verify").returncode == 4
    assert "did not find it whole" in copied.run("status").stdout
    assert copied.run("verify", "--repair").returncode == 0
    assert "did not find it whole" not in copied.run("status").stdout


def test_verify_prints_a_line_for_each_place_what_is_not_ok_and_the_counts(copied: Room) -> None:
    whole = copied.run("verify")
    assert whole.stdout == (
        "vault: 2 artifacts read, all whole\n"
        "nas: 2 artifacts read, all whole\n"
        "far: 2 artifacts read, all whole\n"
        "6 read: 6 whole\n"
    )
    shutil.rmtree(copied.folder / "far" / copied.manifests[1].id)
    (copied.folder / "nas" / "odd").write_text("nobody's")
    ended = copied.run("verify")
    assert ended.returncode == 4
    assert sorted(ended.stdout.splitlines()[:-4]) == [
        "  HINT: `a0backup copy` copies it again",
        "  HINT: nothing of a0backup needs it: look at it, and remove it",
        f"{copied.manifests[1].id}  far: MISSING: manifest.json is missing",
        "odd  nas: STRAY: it belongs to no artifact",
    ]
    assert ended.stdout.splitlines()[-4:] == [
        "vault: 2 artifacts read, all whole",
        "nas: 2 artifacts read: 2 whole; 1 stray",
        "far: 2 artifacts read: 1 whole, 1 missing",
        "6 read: 5 whole, 1 missing; 1 stray",
    ]


def test_a_stray_file_alone_is_no_failure(copied: Room) -> None:
    (copied.folder / "nas" / "odd").write_text("nobody's")
    assert copied.run("verify").returncode == 0


def test_a_place_that_fails_is_counted_as_not_read(copied: Room) -> None:
    shutil.rmtree(copied.folder / "nas")
    (copied.folder / "nas").write_text("not a folder")
    ended = copied.run("verify")
    assert ended.returncode == 1
    assert "\nnas: 1 not read\n" in ended.stdout
    assert ended.stdout.endswith("\n4 read: 4 whole; 1 not read\n")


def test_a_repair_says_what_it_mended_and_gives_no_hint_to_repair(copied: Room) -> None:
    (copied.folder / "vault" / copied.manifests[0].id / "manifest.json").write_text("{")
    (copied.folder / "far" / copied.manifests[0].id / "backup.tar.gz.enc").unlink()
    shutil.rmtree(copied.folder / "far" / copied.manifests[1].id)
    assert "HINT: `a0backup verify --repair`" in copied.run("verify").stdout
    ended = copied.run("verify", "--repair")
    assert ended.returncode == 0, ended.stdout
    assert "HINT" not in ended.stdout
    lines = ended.stdout.splitlines()
    assert f"{copied.manifests[0].id}  ok: mended from nas" in lines
    assert f"{copied.manifests[0].id}  far: ok: mended from the vault" in lines
    assert len(lines) == len(set(lines))
    assert lines[-4:] == [
        "vault: 2 artifacts read: 2 whole (1 mended)",
        "nas: 2 artifacts read, all whole",
        "far: 2 artifacts read: 2 whole (2 mended)",
        "6 read: 6 whole (3 mended)",
    ]
    assert "mended: 3 artifacts (vault, far); do not trust that disk\n" in ended.stderr
    assert copied.run("verify").stdout.endswith("\n6 read: 6 whole\n")


def test_verify_of_one_place_reads_no_other(copied: Room) -> None:
    shutil.rmtree(copied.folder / "nas")
    ended = copied.run("verify", "--place", "far", "--json")
    assert ended.returncode == 0
    assert {(row["place"], row["result"]) for row in json.loads(ended.stdout)} == {("far", "ok")}


def test_verify_of_a_share_reads_another_part_each_time(copied: Room) -> None:
    seen = [json.loads(copied.run("verify", "--place", "vault", "--share", "1/2", "--json").stdout) for _ in range(2)]
    assert sorted(row["id"] for rows in seen for row in rows) == [manifest.id for manifest in copied.manifests]
    assert copied.run("verify", "--share", "half").returncode == 2


@pytest.mark.parametrize("place", ["nas", "far"])
def test_a_vault_that_is_gone_is_brought_back_from_one_place(copied: Room, place: str) -> None:
    before = (copied.folder / "vault" / "vault.json").read_bytes()
    shutil.rmtree(copied.folder / "vault")
    shutil.rmtree(copied.folder / ("far" if place == "nas" else "nas"))
    ended = copied.run("verify", "--repair", "--place", place, "--place", "vault")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the vault" in ended.stderr
    assert copied.held("vault") == copied.manifests
    assert (copied.folder / "vault" / "vault.json").read_bytes() == before
    assert copied.run("list").returncode == 0


def test_a_vault_that_is_gone_stays_gone_without_repair(copied: Room) -> None:
    shutil.rmtree(copied.folder / "vault")
    assert copied.run("verify").returncode == 1
    assert not (copied.folder / "vault").exists()


@pytest.mark.parametrize("remembered", [True, False])
def test_no_new_vault_is_made_while_a_place_holds_the_copies_of_the_lost_one(copied: Room, remembered: bool) -> None:
    before = {path: path.read_bytes() for path in (copied.folder / "nas").rglob("*.*") if path.is_file()}
    shutil.rmtree(copied.folder / "vault")
    if remembered:
        (copied.folder / ".fleet.yaml.vault").write_text('{"schema": 1, "id": "ours", "path": "vault"}')
    ended = a0backup("vault", "use", "--fleet", copied.fleet)
    assert ended.returncode == 1
    assert "the place nas holds the copies of one" in ended.stderr
    for command in ("list", "verify", "copy"):
        ended = copied.run(command)
        assert ended.returncode == 1
        assert "`a0backup verify --repair` brings it back" in ended.stderr
    # A vault that nobody remembers may never have been: then status says that nothing is backed up.
    ended = copied.run("status")
    assert ended.returncode == (1 if remembered else 4)
    assert "`a0backup verify --repair` brings it back" in ended.stdout + ended.stderr
    assert not (copied.folder / "vault").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_status_shows_how_far_behind_a_place_is(room: Room) -> None:
    assert room.run("copy", "--to", "far").returncode == 0
    ended = room.run("status", "--json")
    [row] = json.loads(ended.stdout)
    assert row["behind"] == {"nas": 2, "far": 0}
    assert "nas is 2 behind" in room.run("status").stdout
    assert room.run("copy").returncode == 0
    assert "behind" not in room.run("status").stdout


def test_status_names_the_places_that_are_complete(room: Room) -> None:
    assert ": complete" not in room.run("status").stdout
    assert room.run("copy", "--to", "far").returncode == 0
    shown = room.run("status").stdout
    assert "  copies         far: complete\n  copies         nas is 2 behind; " in shown
    assert room.run("copy").returncode == 0
    assert "  copies         nas, far: complete\n" in room.run("status").stdout


def test_status_calls_no_place_complete_before_the_first_artifact(room: Room) -> None:
    for manifest in room.manifests:
        shutil.rmtree(room.folder / "vault" / manifest.id)
    assert "complete" not in room.run("status").stdout


def test_status_shows_the_damaged_files_of_what_was_mended(copied: Room) -> None:
    damaged = copied.folder / "vault" / copied.manifests[0].id / "backup.tar.gz.enc"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert copied.run("verify", "--repair").returncode == 0
    [kept] = (copied.folder / "vault" / "a0-1" / "quarantine").iterdir()
    assert f"  quarantine     {kept}: damaged files of a mended artifact\n" in copied.run("status").stdout
    [row] = json.loads(copied.run("status", "--json").stdout)
    assert (row["damaged"], row["quarantine"]) == ([str(kept)], None)
    assert copied.run("verify").returncode == 0
    shutil.rmtree(kept)
    assert "quarantine" not in copied.run("status").stdout


def test_status_shows_the_damaged_files_that_a_place_keeps(copied: Room) -> None:
    damaged = copied.folder / "nas" / copied.manifests[0].id / "backup.tar.gz.enc"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert copied.run("verify", "--repair").returncode == 0
    [kept] = (copied.folder / "nas" / "a0-1" / "quarantine").iterdir()
    shown = f"  quarantine     nas: a0-1/quarantine/{kept.name}: damaged files of a mended artifact\n"
    assert shown in copied.run("status").stdout
    shutil.rmtree(kept)
    assert copied.run("verify").returncode == 0
    assert "quarantine" not in copied.run("status").stdout
