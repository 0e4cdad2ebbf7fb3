"""A drill says how it ended, and records it beside the artifact."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest

from a0backup.fleet.models import ContentsLimits
from a0backup.upkeep.drill import DrillResult, Secrets, prove
from a0backup.vault.drilled import DRILLED, Drilled, read_drilled
from a0backup.vault.manifest import Manifest, UnreadableManifest
from a0backup.vault.vault import Vault
from simulator.artifact import bson
from tests.support.artifacts import END, file
from tests.support.stored import store

NOW = datetime(2026, 11, 29, 5, tzinfo=UTC)
PASSWORD = "Passw0rd"
USER = bson({"_id": bytes(12), "email": "user@example.com"})


def proven(root: Path, entry: Manifest | UnreadableManifest, password: str = PASSWORD) -> DrillResult:
    secrets = Secrets(password=password)
    return prove(Vault(root), entry, secrets, ContentsLimits(), shrink=0.3, now=NOW)


def test_a_drill_that_passed_is_recorded(tmp_path: Path) -> None:
    manifest = store(tmp_path, PASSWORD)
    drilled = proven(tmp_path, manifest)
    assert (drilled.result, drilled.failed, drilled.warnings) == ("ok", False, ())
    assert drilled.contents is not None
    assert drilled.contents.collections is not None
    assert read_drilled(tmp_path / manifest.id) == Drilled(drilled_at=NOW, passed=True, level="contents")


@pytest.mark.parametrize("spoil", ["bytes", "contents"])
def test_damage_is_recorded_with_its_reason_and_how_far_the_drill_came(tmp_path: Path, spoil: str) -> None:
    plain = gzip.compress(file("dump/auth0/users.bson", USER[:-1]) + END) if spoil == "contents" else None
    manifest = store(tmp_path, PASSWORD, plain=plain)
    if spoil == "bytes":
        Vault(tmp_path).artifact(manifest).write_bytes(bytes(manifest.artifact.size))
    drilled = proven(tmp_path, manifest)
    assert (drilled.result, drilled.failed) == ("damaged", True)
    record = read_drilled(tmp_path / manifest.id)
    assert record is not None
    assert (record.passed, record.level) == (False, "md5" if spoil == "bytes" else "contents")
    assert record.problem is not None
    assert ("its manifest says" if spoil == "bytes" else "dump/auth0/users.bson: it ends at byte") in record.problem


def test_what_a_wrong_password_shows_is_not_recorded(tmp_path: Path) -> None:
    manifest = store(tmp_path, PASSWORD)
    proven(tmp_path, manifest)
    assert proven(tmp_path, manifest, "another").result == "not opened"
    record = read_drilled(tmp_path / manifest.id)
    assert record is not None
    assert record.passed


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    manifest = store(tmp_path, PASSWORD)
    (tmp_path / manifest.id / "manifest.json").write_text("{")
    entry = Vault(tmp_path).get(manifest.id)
    assert isinstance(entry, UnreadableManifest)
    assert proven(tmp_path, entry).result == "damaged"


def test_a_record_that_a_folder_is_in_the_way_of_is_a_warning(tmp_path: Path) -> None:
    manifest = store(tmp_path, PASSWORD)
    (tmp_path / manifest.id / DRILLED / "x").mkdir(parents=True)
    [warning] = proven(tmp_path, manifest).warnings
    assert warning.startswith("the result cannot be recorded beside it: ")


def test_a_drill_names_what_is_lacking_also_where_the_manifest_knows_no_contents(tmp_path: Path) -> None:
    """The manifests of `store` know the md5 alone; that of the night before is completed here."""
    first = store(tmp_path, PASSWORD, plain=gzip.compress(file("dump/auth0/users.bson", USER * 500) + END))
    assert proven(tmp_path, first).warnings == ()
    text = (tmp_path / first.id / "manifest.json").read_text()
    known = (
        '"verified": {"level": "contents", "members": 1, "unpacked_size": 25000,'
        f' "collections": [{{"name": "auth0.users", "documents": 500, "size": {500 * len(USER)}}}]}}'
    )
    begin = text.index('"verified"')
    (tmp_path / first.id / "manifest.json").write_text(text[:begin] + known + text[text.index("}", begin) + 1 :])
    second = store(tmp_path, PASSWORD, nights=1, plain=gzip.compress(file("dump/auth0/users.bson", b"") + END))
    drilled = proven(tmp_path, second)
    assert drilled.result == "ok"
    assert (
        drilled.warnings[0] == f"the collection auth0.users is empty; it had 500 documents (compared with {first.id})"
    )
