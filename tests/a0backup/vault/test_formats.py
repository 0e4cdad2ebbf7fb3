"""The file formats in a vault: files of schema 1 are readable, and a later schema is refused.

formats/ holds one small file of each format, left by a run that was killed after its deletion: a manifest next to its
artifact, a journal, a sealed password and the mark of the deletion. A change that makes one of them unreadable needs a
new schema. The passphrase of formats/recovery.key.pem is below. The key was made for these tests and has no other use.
"""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from a0backup.backup.deletion import DeletionMark
from a0backup.errors import ArtifactDamagedError, LaterVersionError
from a0backup.fleet.load import load_fleet
from a0backup.passwords import recovery_keys
from a0backup.upkeep.drill import Secrets, drill, is_damage
from a0backup.vault.journal import Journal, JournalFile
from a0backup.vault.known_vault import require_vault
from a0backup.vault.manifest import Manifest
from a0backup.vault.sealed_files import SealedFiles
from a0backup.vault.unverified import UnverifiedFile
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.support.nights import Night, night

FORMATS = Path(__file__).with_name("formats")
PASSPHRASE = "Canary9 Passphrase"
NODE = "a0-1"


class Left:
    """A copy of what that run left, and a simulated node without a backup."""

    def __init__(self, room: Path, simulated: SimulatedFleet) -> None:
        shutil.copytree(FORMATS / "vault", room / "vault")
        for path in [room / "vault", *(room / "vault").rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.simulated = simulated
        file = simulated.fleet_yaml(
            room / "fleet.yaml",
            password={"sealed_to": str(FORMATS / "recovery.pub.pem")},
            polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "20s"},
            a0cli={"call_timeout": "1s"},
        )
        self.fleet = load_fleet(file)
        self.vault, self.folder = Vault(self.fleet.vault), self.fleet.vault / NODE
        self.journal, self.sealed = JournalFile(self.folder, "backup"), SealedFiles(self.folder, "backup")
        self.mark = DeletionMark(self.folder, "backup")

    async def night(self) -> Night:
        return await night(self.fleet, flow_run="today")


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    with SimulatedFleet(tmp_path / "fleet", [NODE], size=3000, backup_seconds=0.05) as simulated:
        yield Left(tmp_path, simulated)


def test_each_file_is_readable(left: Left) -> None:
    [manifest] = left.vault.manifests(NODE)
    left.vault.reread(manifest)
    journal = left.journal.read()
    assert journal is not None
    assert (journal.sealed, journal.started_at) == (True, manifest.started_at)
    assert journal.pinned is not None
    assert journal.pinned.md5 == manifest.artifact.md5
    assert left.sealed.all() == manifest.encryption.password.sealed
    assert left.mark.is_there()
    assert require_vault(left.vault) == "5f0c2f7e-2b1d-4f0e-9f5b-3f8f4a0f6b11"
    second_night = datetime(2026, 11, 23, 2, tzinfo=UTC)
    assert UnverifiedFile(left.folder, "backup").count(journal.pinned, "0" * 32, second_night, within=60) == 2


def test_each_file_is_still_written_in_the_same_format(left: Left) -> None:
    [manifest] = left.vault.manifests(NODE)
    assert manifest.to_json() == json.loads((left.vault.root / manifest.id / "manifest.json").read_text())
    [password] = left.sealed.folder.iterdir()
    then = {path: path.read_bytes() for path in (left.journal.path, password)}
    journal = left.journal.read()
    assert journal is not None
    assert manifest.started_at is not None
    left.journal.write(journal)
    password.unlink()
    left.sealed.write(manifest.started_at, manifest.encryption.password.sealed)
    assert {path: path.read_bytes() for path in then} == then


def test_the_stored_artifact_can_be_opened(left: Left) -> None:
    key = recovery_keys.load_private(FORMATS / "recovery.key.pem", PASSPHRASE)
    [manifest] = left.vault.manifests(NODE)
    passwords = Secrets(key=key, password=None).passwords(manifest)
    assert drill(left.vault, manifest, passwords, left.fleet.contents).members == 5


async def test_the_next_run_finishes_the_work_of_the_killed_run(left: Left) -> None:
    [before] = left.vault.manifests(NODE)
    ended = await left.night()
    assert ended.outcome.ok, ended.error
    assert "finished the backup" in "; ".join(ended.outcome.notes)
    assert before in left.vault.manifests(NODE)
    assert left.journal.read() is None
    assert left.sealed.all() == ()


# -- a later schema ----------------------------------------------------------------------------------------------------


@pytest.fixture
def from_the_future(left: Left) -> Left:
    """Return the same files with schema 2 and unknown keys."""
    for path in [*left.folder.glob("*/manifest.json"), left.journal.path, *left.folder.glob("passwords/*.json")]:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"schema": 2, "something": {"new": True}}))
    return left


def test_a_manifest_of_a_later_schema_is_reported_as_such_and_not_as_damaged(from_the_future: Left) -> None:
    [entry] = from_the_future.vault.entries(NODE)
    assert not isinstance(entry, Manifest)
    assert entry.later
    assert entry.reason == "manifest.json has schema 2, and this a0backup knows 1: a later version wrote it"
    assert isinstance(entry.error(), LaterVersionError)
    assert not is_damage(entry.error())


def test_a_journal_or_sealed_password_of_a_later_schema_is_reported_as_such(from_the_future: Left) -> None:
    with pytest.raises(ValueError, match="has schema 2, and this a0backup knows 1"):
        from_the_future.journal.read()
    assert from_the_future.sealed.unreadable() == []
    assert len(from_the_future.sealed.later()) == 1


async def test_a_run_preserves_all_files_of_a_later_version(from_the_future: Left) -> None:
    left = from_the_future
    files = [path for path in left.folder.rglob("*") if path.is_file() and path != left.journal.path]
    done_with = (left.mark.path, left.folder / "unverified-backup.json")
    before = {path: path.read_bytes() for path in files if path not in done_with}
    journal = left.journal.path.read_bytes()
    ended = await left.night()
    assert ended.outcome.ok
    assert {path: path.read_bytes() for path in before} == before
    [aside] = left.folder.glob("journal-backup.json.unreadable-*")
    assert aside.read_bytes() == journal
    assert "has schema 2, and this a0backup knows 1" in ended.notes
    assert len(left.vault.manifests(NODE)) == 1


def test_an_invalid_schema_number_is_damage_and_not_a_later_schema(from_the_future: Left) -> None:
    [path] = from_the_future.folder.glob("*/manifest.json")
    for wrong in (0, -1, "2", None, True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": wrong}))
        [entry] = from_the_future.vault.entries(NODE)
        assert not isinstance(entry, Manifest)
        assert isinstance(entry.error(), ArtifactDamagedError)


def test_a_journal_without_a_required_key_of_schema_1_is_refused(left: Left) -> None:
    content = json.loads(left.journal.path.read_text())
    del content["sealed"]
    left.journal.path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a journal"):
        left.journal.read()
    assert Journal.model_validate(content | {"sealed": False}).sealed is False
