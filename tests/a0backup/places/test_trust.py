"""What is damaged, swapped or forged must not spread: neither from the vault, nor from a place, nor from a record."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places.catching_up import catch_up
from a0backup.places.copying import copy_artifact
from a0backup.places.opening import open_store
from a0backup.places.places import Place
from a0backup.places.records import note_proven, place_record, proven_in
from a0backup.places.restoring import bring_back
from a0backup.places.store import Store
from a0backup.places.transfer import Throttle, Transfer
from a0backup.places.verification import Verification
from a0backup.vault.vault import Vault
from tests.a0backup.fleet.test_copies import fleet_with
from tests.a0backup.places.conftest import Spot
from tests.a0backup.places.test_verification import Room, bad, flip, read_only
from tests.support.paths import REPOSITORY
from tests.support.stored import store


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    await room.copy()
    return room


def edit(folder: Path, **changes: object) -> None:
    """Change the manifest so that it can still be read."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, indent=2) + "\n")


def another(room: Room, place: str, artifact_id: str) -> bytes:
    """Put another whole artifact into the place under this id, and return its bytes."""
    other = room.folder / "other"
    made = store(other, "An0ther", nights=[each.id for each in room.manifests].index(artifact_id), size=5_000)
    shutil.rmtree(room.folder / place / artifact_id)
    shutil.copytree(other / made.id, room.folder / place / artifact_id)
    return (room.folder / place / artifact_id / "backup.tar.gz.enc").read_bytes()


async def test_a_damaged_manifest_of_the_vault_is_not_copied_and_comes_back(room: Room) -> None:
    before, damaged = room.contents(), room.manifests[0]
    edit(room.vault.root / damaged.id, flow_run="run-9")
    third = Place(room.vault, Copy(name="third", url=str(room.folder / "third")))
    caught_up = await catch_up(third, room.vault.manifests())
    assert "is not the one that was copied before" in caught_up.failed[damaged.id]
    assert len(caught_up.copied) == 2
    await room.repair()
    assert room.contents() == before


async def test_a_repair_of_a_place_alone_takes_nothing_from_a_damaged_vault(room: Room) -> None:
    damaged = room.manifests[0]
    flip(room.vault.artifact(damaged))
    edit(room.folder / "nas" / damaged.id, flow_run="run-9")
    whole = (room.folder / "nas" / damaged.id / "backup.tar.gz.enc").read_bytes()
    verification = Verification(room.vault, room.places[:1], of_vault=False)
    found = await verification.repaired(await verification.run())
    assert bad(found) == [("nas", damaged.id, "damaged")]
    assert "the vault's own is damaged" in next(finding for finding in found if not finding.ok).reason
    assert (room.folder / "nas" / damaged.id / "backup.tar.gz.enc").read_bytes() == whole
    # With the other place, everything comes back.
    assert bad(await room.repair()) == []


async def test_a_manifest_of_a_place_is_mended_and_its_whole_bytes_stay_where_they_are(room: Room) -> None:
    damaged = room.manifests[0]
    edit(room.folder / "nas" / damaged.id, flow_run="run-9")
    inode = (room.folder / "nas" / damaged.id / "backup.tar.gz.enc").stat().st_ino
    assert bad(await room.repair()) == []
    assert (room.folder / "nas" / damaged.id / "backup.tar.gz.enc").stat().st_ino == inode


@pytest.mark.parametrize("identity", [None, {"schema": 1, "id": "another", "made_at": "2026-11-23T02:00:00Z"}])
async def test_a_place_that_is_swapped_in_the_midst_of_a_run_counts_for_nothing(
    tmp_path: Path, identity: dict[str, object] | None
) -> None:
    room = Room(tmp_path)
    [nas, _] = room.places
    await nas.bring(room.manifests[0], nas.new_transfer())
    (tmp_path / "nas").rename(tmp_path / "away")
    if identity is not None:
        (tmp_path / "nas").mkdir()
        (tmp_path / "nas" / "vault.json").write_text(json.dumps(identity))
    with pytest.raises(PlaceError):
        await nas.bring(room.manifests[1], nas.new_transfer())
    assert proven_in(room.vault, room.manifests[1].id) == {}
    assert [path.name for path in (tmp_path / "nas").glob("*")] == (["vault.json"] if identity else [])


async def test_the_vault_under_another_name_is_no_place(tmp_path: Path) -> None:
    room = Room(tmp_path)
    (tmp_path / "link").symlink_to("vault")
    place = Place(room.vault, Copy(name="nas", url=str(tmp_path / "link")))
    caught_up = await catch_up(place, room.manifests)
    assert caught_up.error is not None
    assert "is the vault itself" in caught_up.error.reason


async def test_what_a_later_version_wrote_is_not_overwritten(room: Room) -> None:
    later = room.manifests[0].id
    bytes_there = another(room, "nas", later)
    edit(room.folder / "nas" / later, schema=2)
    (room.vault.root / later / "copies.json").unlink()
    caught_up = await catch_up(room.places[0], room.manifests)
    assert "schema 2" in caught_up.failed[later]
    await room.repair()
    assert (room.folder / "nas" / later / "backup.tar.gz.enc").read_bytes() == bytes_there


async def test_unexplained_bytes_in_a_place_are_kept_when_they_are_replaced(room: Room) -> None:
    unexplained = room.manifests[0].id
    bytes_there = another(room, "nas", unexplained)
    (room.folder / "nas" / unexplained / "manifest.json").unlink()
    assert not (await catch_up(room.places[0], room.manifests)).is_behind
    [kept] = (room.folder / "nas" / "a0-1" / "quarantine").rglob("backup.tar.gz.enc.damaged")
    assert kept.read_bytes() == bytes_there


async def test_the_vaults_manifest_decides_which_artifact_comes_back(room: Room) -> None:
    before, damaged = room.contents(), room.manifests[0]
    (room.vault.root / damaged.id / "copies.json").unlink()
    flip(room.vault.artifact(damaged))
    another(room, "nas", damaged.id)
    assert bad(await room.repair()) == [("nas", damaged.id, "differs")]
    after = room.contents()
    assert {p: c for p, c in after.items() if not p.startswith("nas")} == {
        p: c for p, c in before.items() if not p.startswith("nas")
    }


async def test_without_a_record_two_manifests_of_the_same_bytes_are_left_to_a_person(room: Room) -> None:
    damaged = room.manifests[0]
    (room.vault.root / damaged.id / "copies.json").unlink()
    edit(room.vault.root / damaged.id, flow_run="run-9")
    before = room.contents()
    assert bad(await room.repair()) == [("nas", damaged.id, "differs"), ("far", damaged.id, "differs")]
    assert room.contents() == before


async def test_a_forged_manifest_of_a_place_is_not_brought_back(room: Room) -> None:
    before, lost = room.contents(), room.manifests[0]
    shutil.rmtree(room.vault.root / lost.id)
    edit(room.folder / "nas" / lost.id, node={"name": "evil", "host": "127.0.0.1", "port": 10121})
    assert ("nas", lost.id, "foreign") in bad(await room.verify())
    await room.repair()
    assert room.contents() == before


async def test_no_repair_writes_through_a_link_in_the_vault(room: Room) -> None:
    linked = room.manifests[0]
    elsewhere = room.folder / "elsewhere"
    (room.vault.root / linked.id).rename(elsewhere)
    (room.vault.root / linked.id).symlink_to(elsewhere)
    flip(elsewhere / "backup.tar.gz.enc")
    before = (elsewhere / "backup.tar.gz.enc").read_bytes()
    found = bad(await room.repair())
    assert ("vault", linked.id, "damaged") in found
    assert (elsewhere / "backup.tar.gz.enc").read_bytes() == before


async def test_a_time_in_the_future_spares_no_artifact_its_verification(room: Room) -> None:
    await room.verify()
    damaged = room.manifests[0]
    file = room.vault.root / ".places" / "vault.json"
    record = json.loads(file.read_text())
    ahead = (datetime.now(UTC) + timedelta(days=3650)).isoformat()
    file.write_text(json.dumps(record | {"read": {damaged.id: ahead}, "tried": {damaged.id: ahead}}))
    flip(room.vault.artifact(damaged))
    assert ("vault", damaged.id, "damaged") in bad(await room.verify())


async def test_a_share_moves_on_from_what_cannot_be_mended(room: Room) -> None:
    for manifest in room.manifests:
        flip(room.vault.artifact(manifest))
    found = [await Verification(room.vault, [], share=1 / 3).run() for _ in range(3)]
    assert sorted(finding.id for findings in found for finding in findings) == [each.id for each in room.manifests]


async def test_a_pipe_in_the_place_of_a_file_concerns_that_artifact_alone(room: Room) -> None:
    before, piped = room.contents(), room.manifests[0]
    file = room.folder / "nas" / piped.id / "backup.tar.gz.enc"
    file.unlink()
    os.mkfifo(file)
    assert bad(await room.verify()) == [("nas", piped.id, "damaged")]
    assert bad(await room.repair()) == []
    assert room.contents() == before


async def test_a_new_file_system_with_lost_and_found_is_filled_again(room: Room) -> None:
    fleet = fleet_with(room.folder, {"name": "nas", "url": "nas"})
    shutil.rmtree(room.vault.root)
    (room.vault.root / "lost+found").mkdir(parents=True)
    assert await bring_back(fleet) == "nas"
    assert bad(await room.repair()) == []


async def test_a_record_that_cannot_be_read_does_not_make_a_place_new(room: Room) -> None:
    (room.vault.root / ".places" / "nas.json").write_text("torn")
    shutil.rmtree(room.folder / "nas")
    caught_up = await catch_up(room.places[0], room.manifests)
    assert caught_up.is_behind
    assert not (room.folder / "nas").exists()


async def test_an_address_that_was_used_before_is_remembered(room: Room) -> None:
    elsewhere = Place(room.vault, Copy(name="nas", url=str(room.folder / "elsewhere")))
    assert not (await catch_up(elsewhere, room.manifests)).is_behind
    shutil.rmtree(room.folder / "nas")
    assert (await catch_up(room.places[0], room.manifests)).is_behind
    record = place_record(room.vault, "nas")
    assert record is not None
    assert record.formerly == [str(room.folder / "nas")]


async def test_a_vault_that_cannot_be_written_is_verified_all_the_same(room: Room) -> None:
    damaged = room.manifests[0]
    flip(room.folder / "nas" / damaged.id / "backup.tar.gz.enc")
    with read_only(room.vault.root):
        assert bad(await room.verify()) == [("nas", damaged.id, "damaged")]


async def test_a_record_that_cannot_be_written_fails_its_artifact_and_no_other(tmp_path: Path) -> None:
    room = Room(tmp_path)
    (room.vault.root / room.manifests[0].id / "copies.json").mkdir()
    caught_up = await catch_up(room.places[0], room.manifests)
    assert list(caught_up.failed) == [room.manifests[0].id]
    assert "cannot be recorded" in caught_up.failed[room.manifests[0].id]
    assert len(caught_up.copied) == 2


async def test_what_was_there_and_is_whole_counts_as_held(room: Room) -> None:
    for manifest in room.manifests:
        (room.vault.root / manifest.id / "copies.json").unlink()
    caught_up = await catch_up(room.places[0], room.manifests)
    assert (len(caught_up.held), caught_up.copied) == (3, [])


async def test_a_verification_records_what_it_has_proven(room: Room) -> None:
    for manifest in room.manifests:
        (room.vault.root / manifest.id / "copies.json").unlink()
    assert bad(await room.verify()) == []
    assert all(set(proven_in(room.vault, manifest.id)) == {"nas", "far"} for manifest in room.manifests)


async def test_processes_that_record_at_once_lose_nothing_of_each_other(room: Room) -> None:
    [artifact, *_] = room.manifests
    program = """
import sys
from pathlib import Path
from a0backup.places.records import forget_proven, note_proven, proven_in
from a0backup.vault.vault import Vault
vault, artifact, ours = Vault(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
mine = proven_in(vault, artifact)[ours]
for _ in range(100):
    forget_proven(vault, artifact, ours)
    assert ours not in proven_in(vault, artifact)
    note_proven(vault, artifact, ours, mine, manifest="0" * 64)
    assert ours in proven_in(vault, artifact)
"""
    command = [sys.executable, "-c", program, str(room.vault.root), artifact.id]
    running = [await asyncio.create_subprocess_exec(*command, place, cwd=REPOSITORY) for place in ("nas", "far")]
    assert [await process.wait() for process in running] == [0, 0]
    assert set(proven_in(room.vault, artifact.id)) == {"nas", "far"}


async def test_the_first_manifest_that_was_copied_stays_the_measure(room: Room) -> None:
    [artifact, *_] = room.manifests
    proven = proven_in(room.vault, artifact.id)["nas"]
    note_proven(room.vault, artifact.id, "nas", proven, manifest="0" * 64)
    assert bad(await room.verify()) == []


class Lying:
    """A place that stores something else than it was sent, and says nothing."""

    def __init__(self, store: Store, change: Callable[[bytes], bytes]) -> None:
        self._store, self._change = store, change

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, path: str, chunks: Iterable[bytes], *, size: int) -> bool:
        content = self._change(b"".join(chunks))
        return self._store.write(path, [content], size=len(content))


@pytest.mark.parametrize("change", [lambda sent: sent[:-1], lambda sent: b"another object", lambda sent: b""])
def test_a_place_that_stores_other_bytes_than_it_was_sent_is_found_out(
    spot: Spot, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    """Whatever kind of place it is: it truncates silently, mixes objects up, or stores nothing."""
    manifest = store(tmp_path / "vault", "Passw0rd", size=4_000)
    vault = Vault(tmp_path / "vault")
    if spot.copy.scheme == "file":
        spot.folder.mkdir()
    with open_store(spot.copy) as place, pytest.raises(PlaceError, match="other bytes came back"):
        copy_artifact(vault, manifest, Lying(place, change), place="nas", transfer=Transfer(Throttle(None)))  # type: ignore[arg-type]
    with open_store(spot.copy) as place:
        assert place.size(f"{manifest.id}/manifest.json") is None
