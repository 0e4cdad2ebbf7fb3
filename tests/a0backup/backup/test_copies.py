"""A node's backup is deleted only once the artifact is proven in as many places as fleet.yaml demands."""

import json
import shutil
from pathlib import Path

import pytest

from a0backup.errors import ArtifactDamagedError, NotCopiedError, UnknownVaultError
from a0backup.places import places as module
from a0backup.report.outcomes import Ending
from a0backup.vault.known_vault import create
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.desk import Desk

NAS = {"name": "nas", "url": "nas"}
FAR = {"name": "far", "url": "far"}


def held(place: Path) -> list[Manifest]:
    """Return the artifacts of a place, each read to its end."""
    vault = Vault(place)
    for manifest in vault.manifests():
        vault.reread(manifest)
    return vault.manifests()


def block(place: Path) -> None:
    """Make the place fail: a file is where its folder should be."""
    place.write_text("not a folder")


async def test_each_artifact_is_in_every_place_before_it_is_deleted_on_the_node(desk: Desk) -> None:
    desk.configure(copies=[NAS, FAR], require_copies=2)
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert ended.stages.index("copy") < ended.stages.index("delete")
    [stored] = desk.stored
    assert held(desk.room / "nas") == held(desk.room / "far") == [stored]
    for name in ("nas", "far"):
        files = [path.name for path in (desk.room / name).rglob("*") if path.is_file()]
        assert sorted(files) == ["backup.tar.gz.enc", "manifest.json", "vault.json"]
        modes = {path.stat().st_mode & 0o777 for path in (desk.room / name).rglob("*")}
        assert modes == {0o600, 0o700}
    desk.is_settled()


async def test_a_backup_that_is_in_too_few_places_stays_on_the_node(desk: Desk) -> None:
    desk.configure(copies=[NAS, FAR], require_copies=2)
    block(desk.room / "nas")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert ended.outcome.step == "copy"
    assert isinstance(ended.error, NotCopiedError)
    assert "1 of 2 required copies; " in ended.outcome.reason
    assert "nas: " in ended.outcome.reason
    assert desk.holds is not None
    assert desk.counted("backup-delete") == 0


async def test_the_next_run_copies_what_is_missing_and_deletes_it_without_retrieving_it_again(desk: Desk) -> None:
    desk.configure(copies=[NAS], reuse_within="6h")
    block(desk.room / "nas")
    await desk.night(flow_run="run-1")
    (desk.room / "nas").unlink()
    ended = await desk.night(flow_run="run-2")
    assert ended.outcome.ending is Ending.STORED
    first = desk.stored[0]
    assert first in held(desk.room / "nas")
    starts, retrievals, deletions = desk.counts
    assert (starts, retrievals, deletions) == (len(desk.stored), len(desk.stored), len(desk.stored))
    desk.is_settled()


async def test_a_place_that_fails_is_a_note_where_enough_others_hold_the_artifact(desk: Desk) -> None:
    desk.configure(copies=[NAS, FAR])
    block(desk.room / "nas")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert "not copied to nas: " in ended.notes
    assert held(desk.room / "far") == desk.stored
    assert desk.holds is None


async def test_no_copy_is_needed_where_none_is_required(desk: Desk) -> None:
    desk.configure(copies=[NAS], require_copies=0)
    block(desk.room / "nas")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert "not copied to nas: " in ended.notes


async def test_an_artifact_whose_copy_returns_other_bytes_stays_on_the_node(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.configure(copies=[NAS])
    from a0backup.places import directory

    honest = directory._write
    monkeypatch.setattr(directory, "_write", lambda file, chunks: honest(file, (c[:-1] + b"?" for c in chunks)))
    ended = await desk.night()
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert "other bytes came back than were sent" in ended.outcome.reason
    assert held(desk.room / "nas") == []


async def test_a_copy_that_is_gone_is_made_again_before_the_deletion(desk: Desk) -> None:
    """What is recorded as proven last night is looked for tonight."""
    desk.configure(copies=[NAS])
    desk.tell("backup-delete", "false_delete")
    assert (await desk.night(flow_run="run-1")).outcome.ending is Ending.NOT_DELETED
    [stored] = desk.stored
    shutil.rmtree(desk.room / "nas" / stored.id)
    desk.forget()
    assert (await desk.night(flow_run="run-2")).outcome.ending is Ending.STORED
    assert stored in held(desk.room / "nas")


async def test_a_place_that_held_copies_and_is_empty_now_is_not_filled_anew(desk: Desk) -> None:
    desk.configure(copies=[NAS])
    assert (await desk.night(flow_run="run-1")).outcome.ending is Ending.STORED
    shutil.rmtree(desk.room / "nas")
    ended = await desk.night(flow_run="run-2")
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert "it is empty, or another disk is in its place" in ended.outcome.reason
    assert ended.outcome.hint.startswith("mount the right one; ")
    assert ended.outcome.hint.endswith("; the next run copies it and then deletes it on the node")
    assert not (desk.room / "nas").exists()


async def test_a_place_of_another_vault_is_left_alone(desk: Desk) -> None:
    desk.configure(copies=[NAS])
    create(desk.vault)
    (desk.room / "nas").mkdir()
    identity = {"schema": 1, "id": "another", "made_at": "2026-11-23T02:00:00Z"}
    (desk.room / "nas" / "vault.json").write_text(json.dumps(identity))
    ended = await desk.night()
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert "holds the copies of another vault" in ended.outcome.reason
    assert [path.name for path in (desk.room / "nas").iterdir()] == ["vault.json"]


async def test_an_artifact_that_is_damaged_in_the_vault_is_not_copied_and_not_deleted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.configure(copies=[NAS, FAR], require_copies=0)

    def damage(reached: str) -> None:
        if reached == "store":
            [stored] = desk.stored
            with desk.vault.artifact(stored).open("r+b") as file:
                file.write(b"flipped")

    ended = await desk.night(after=damage)
    assert isinstance(ended.error, ArtifactDamagedError)
    assert held(desk.room / "nas") == held(desk.room / "far") == []
    assert desk.holds is not None


async def test_a_place_that_fails_is_left_alone_for_a_while(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.configure(copies=[NAS], kinds=["backup", "backup-sensitive"])
    asked: list[str] = []
    original = module.open_store
    monkeypatch.setattr(module, "open_store", lambda copy, *of: (asked.append(copy.name), original(copy, *of))[1])
    block(desk.room / "nas")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert asked == ["nas"]


async def test_a_copy_of_an_earlier_night_is_read_again_before_it_counts(desk: Desk) -> None:
    desk.configure(copies=[NAS, FAR], require_copies=2)
    block(desk.room / "far")
    await desk.night(flow_run="run-1")
    [stored] = desk.stored
    copy = desk.room / "nas" / stored.id / "backup.tar.gz.enc"
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    (desk.room / "far").unlink()
    assert (await desk.night(flow_run="run-2")).outcome.ending is Ending.STORED
    assert stored in held(desk.room / "nas")
    assert stored in held(desk.room / "far")


async def test_a_night_makes_no_new_vault_while_a_place_holds_the_copies_of_the_lost_one(desk: Desk) -> None:
    desk.configure(copies=[NAS])
    await desk.night(flow_run="run-1")
    shutil.rmtree(desk.fleet.vault)
    for memory in desk.room.glob(".fleet.yaml.vault"):
        memory.unlink()
    with pytest.raises(UnknownVaultError, match="the place nas holds the copies of one"):
        await desk.night(flow_run="run-2")
    assert not desk.fleet.vault.exists()
    assert len(held(desk.room / "nas")) == 1
