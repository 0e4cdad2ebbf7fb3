"""An unlucky world: no repair ends early, and none puts one artifact in the place of another."""

import contextvars
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from a0backup.errors import PlaceError
from a0backup.files import StoppedError, stoppable
from a0backup.places.opening import open_store
from a0backup.places.records import proven_in
from a0backup.places.repairing import mend_vault
from a0backup.places.store import Store
from a0backup.places.verification import Verification
from tests.a0backup.places.test_trust import another, edit
from tests.a0backup.places.test_verification import Room, bad, flip, read_only


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    await room.copy()
    return room


def planted(room: Room, place: str, node: str) -> str:
    """Put a whole artifact of a node that nobody knows into the place, and return its id."""
    made = room.manifests[0]
    artifact_id = f"{node}/{made.id.partition('/')[2]}"
    folder = room.folder / place / artifact_id
    shutil.copytree(room.folder / place / made.id, folder)
    edit(folder, id=artifact_id, node={"name": node, "host": "127.0.0.1", "port": 10121})
    return artifact_id


@pytest.mark.parametrize("node", ["n" * 240, "runs.jsonl"])
async def test_an_artifact_whose_node_can_have_no_folder_ends_no_repair(room: Room, node: str) -> None:
    (room.vault.root / "runs.jsonl").write_text("{}\n")
    strange = planted(room, "nas", node)
    lost = room.manifests[2]
    before = room.contents()
    shutil.rmtree(room.vault.root / lost.id)
    found = await room.repair()
    assert ("vault", strange, "missing") in bad(found) or (room.vault.root / strange / "manifest.json").exists()
    assert room.contents() == before


async def test_a_vault_that_cannot_be_written_ends_no_repair(room: Room) -> None:
    damaged = room.manifests[0].id
    flip(room.vault.root / damaged / "backup.tar.gz.enc")
    flip(room.folder / "nas" / room.manifests[1].id / "backup.tar.gz.enc")
    (room.vault.root / "a0-1" / "lock").unlink(missing_ok=True)
    with read_only(room.vault.root):
        found = await room.repair()
    [finding] = [each for each in found if each.place == "vault" and not each.ok]
    assert "not mended: " in finding.reason
    assert "Read-only file system" in finding.reason


async def test_a_node_folder_that_cannot_be_used_is_named_once_and_not_missed_in_places(room: Room) -> None:
    (room.vault.root / "a0-1").rename(room.folder / "elsewhere")
    (room.vault.root / "a0-1").symlink_to(room.folder / "elsewhere")
    before = sorted(room.folder.joinpath("elsewhere").rglob("*"))
    found = bad(await room.repair())
    assert ("vault", "a0-1", "damaged") in found
    assert not [each for each in found if each[0] != "vault"]
    assert sorted(room.folder.joinpath("elsewhere").rglob("*")) == before


async def test_a_sparse_file_of_a_place_never_fills_the_disk_of_the_vault(room: Room) -> None:
    lost = room.manifests[0]
    shutil.rmtree(room.vault.root / lost.id)
    os.truncate(room.folder / "nas" / lost.id / "backup.tar.gz.enc", 1 << 40)
    place = room.places[0]
    transfer = place.new_transfer()
    with pytest.raises(PlaceError):
        await place.ask(lambda s: mend_vault(room.vault, lost.id, s, place="nas", transfer=transfer), transfer)
    assert transfer.moved < 1 << 24


async def test_two_places_that_disagree_on_what_the_vault_lost_are_left_to_a_person(room: Room) -> None:
    lost = room.manifests[0]
    shutil.rmtree(room.vault.root / lost.id)
    another(room, "nas", lost.id)
    found = await room.repair()
    assert ("vault", lost.id, "differs") in bad(found)
    assert not (room.vault.root / lost.id / "manifest.json").exists()


async def test_a_whole_artifact_whose_manifest_is_damaged_does_not_give_way_to_another(room: Room) -> None:
    lost = room.manifests[0]
    (room.vault.root / lost.id / "manifest.json").write_bytes(b"torn")
    (room.vault.root / lost.id / "copies.json").unlink()
    ours = (room.vault.root / lost.id / "backup.tar.gz.enc").read_bytes()
    another(room, "nas", lost.id)
    await room.repair()
    assert (room.vault.root / lost.id / "backup.tar.gz.enc").read_bytes() == ours


async def test_a_lost_manifest_is_missing_also_where_no_place_can_be_listed(room: Room) -> None:
    (room.vault.root / room.manifests[0].id / "manifest.json").unlink()
    assert bad(await Verification(room.vault, []).run()) == [("vault", room.manifests[0].id, "missing")]


async def test_a_manifest_that_vanishes_meanwhile_ends_no_verification(room: Room) -> None:
    verification = Verification(room.vault, room.places)
    gone = room.manifests[0].id

    def told(finding: object) -> None:
        (room.vault.root / gone / "manifest.json").unlink(missing_ok=True)

    verification._told = told
    found = await verification.run()
    assert {each.id for each in found} >= {each.id for each in room.manifests}


async def test_a_record_that_is_wrong_is_named_with_what_to_do_about_it(room: Room) -> None:
    before, doubted = room.contents(), room.manifests[0].id
    record = room.vault.root / doubted / "copies.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"manifest": "0" * 64}))
    for found in (await room.verify(), await room.repair()):
        hints = {each.place: each.hint for each in found if not each.ok}
        assert set(hints) == {"vault", "nas", "far"}
        assert all(f"remove {doubted}/copies.json" in hint for hint in hints.values())
    record.unlink()
    assert bad(await room.verify()) == []
    assert room.contents() == before


async def test_a_record_that_is_huge_is_not_read(room: Room) -> None:
    record = room.vault.root / room.manifests[0].id / "copies.json"
    record.write_text("{" + ",".join(f'"k{number}": 0' for number in range(1_000_000)) + "}")
    began = time.process_time()
    assert proven_in(room.vault, room.manifests[0].id) == {}
    assert time.process_time() - began < 1


class Abandoning:
    """A place whose caller gives up waiting at its last byte."""

    def __init__(self, store: Store, stop: threading.Event) -> None:
        self._store, self._stop = store, stop

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read(self, path: str) -> Iterator[bytes]:
        yield from self._store.read(path)
        if path.endswith(".enc"):
            self._stop.set()


async def test_a_repair_that_was_given_up_changes_nothing_any_more(room: Room) -> None:
    damaged, stop = room.manifests[0].id, threading.Event()
    flip(room.vault.root / damaged / "backup.tar.gz.enc")
    before = room.contents()
    transfer = room.places[0].new_transfer()
    with open_store(room.places[0].copy) as store:
        place = Abandoning(store, stop)
        work = partial(mend_vault, room.vault, damaged, place, place="nas", transfer=transfer)  # type: ignore[arg-type]
        with pytest.raises(StoppedError):
            contextvars.copy_context().run(stoppable(stop, work))
    assert room.contents() == before
    assert bad(await room.repair()) == []
