"""The record of a drill on a copy comes to the vault with the next copy."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from a0backup.places.catching_up import CaughtUp, catch_up
from a0backup.places.places import Place
from a0backup.places.repairing import mend_vault
from a0backup.vault.drilled import DRILLED, Drilled, read_drilled, write_drilled
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.a0backup.places.conftest import Spot
from tests.support.stored import store

NOW = datetime.now(UTC).replace(microsecond=0)


def drilled(days_ago: float, *, passed: bool = True) -> Drilled:
    return Drilled(drilled_at=NOW - timedelta(days=days_ago), passed=passed, level="contents")


class Room:
    """A vault with three artifacts, and a place that has them, too; *place* is where its files can be seen."""

    def __init__(self, folder: Path, spot: Spot) -> None:
        self.vault, self.spot = Vault(folder / "vault"), spot
        self.place = spot.folder
        self.manifests: list[Manifest] = [
            store(folder / "vault", "Passw0rd", nights=night, size=4_000) for night in range(3)
        ]

    async def copy(self) -> CaughtUp:
        return await catch_up(Place(self.vault, self.spot.copy), self.vault.manifests())

    def records(self) -> list[Drilled | None]:
        return [read_drilled(self.vault.root / each.id) for each in self.manifests]


@pytest.fixture
async def room(tmp_path: Path, spot: Spot) -> Room:
    room = Room(tmp_path, spot)
    assert (await room.copy()).drilled == []
    return room


async def test_a_newer_record_of_a_place_comes_to_the_vault_and_an_older_one_does_not(room: Room) -> None:
    first, second, third = room.manifests
    write_drilled(room.place / first.id, drilled(1))
    write_drilled(room.place / second.id, drilled(3))
    write_drilled(room.vault.root / second.id, drilled(2))
    write_drilled(room.place / third.id, drilled(2, passed=False))
    write_drilled(room.vault.root / third.id, drilled(3))
    copied = await room.copy()
    assert copied.drilled == [first.id, third.id]
    assert "2 records of drills brought to the vault" in copied.text()
    assert room.records() == [drilled(1), drilled(2), drilled(2, passed=False)]
    assert (await room.copy()).drilled == []


def damaged(days_ago: float) -> Drilled:
    at = NOW - timedelta(days=days_ago)
    return Drilled(drilled_at=at, passed=False, level="md5", problem="the artifact's sha256 is another one")


async def test_what_a_drill_says_of_the_bytes_of_one_place_is_said_of_no_other(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = room.manifests
    write_drilled(room.place / first.id, damaged(1))
    write_drilled(room.vault.root / second.id, damaged(3))
    write_drilled(room.place / second.id, drilled(1))
    assert (await room.copy()).drilled == []
    assert room.records() == [None, damaged(3), None]
    assert f"{first.id} is damaged in the place {room.spot.copy.name}" in caplog.text


async def test_a_mended_artifact_has_no_record_of_its_damage_any_more(room: Room) -> None:
    first, second, _ = room.manifests
    for manifest, record in ((first, damaged(3)), (second, drilled(3, passed=False))):
        room.vault.artifact(manifest).write_bytes(bytes(manifest.artifact.size))
        write_drilled(room.vault.root / manifest.id, record)
        place = Place(room.vault, room.spot.copy)
        transfer = place.new_transfer()
        await place.ask(partial(mend_vault, room.vault, manifest.id, place="p", transfer=transfer), transfer)
    assert room.records() == [None, drilled(3, passed=False), None]
    write_drilled(room.place / first.id, drilled(1))
    assert (await room.copy()).drilled == [first.id]


async def test_what_is_no_record_or_lies_in_the_future_changes_nothing_and_hides_no_other(room: Room) -> None:
    first, second, third = room.manifests
    write_drilled(room.place / first.id, drilled(-1))
    (room.place / second.id / DRILLED).write_text("{" * 1000)
    (room.place / third.id / DRILLED).symlink_to(room.place / first.id / DRILLED)
    copied = await room.copy()
    assert (copied.drilled, copied.is_behind) == ([], False)
    write_drilled(room.place / third.id, drilled(1))
    assert (await room.copy()).drilled == [third.id]
    assert room.records() == [None, None, drilled(1)]


async def test_the_record_of_an_artifact_that_the_vault_does_not_have_is_left_alone(room: Room) -> None:
    gone = room.manifests[0].id
    write_drilled(room.place / gone, drilled(1))
    for path in (room.vault.root / gone).iterdir():
        path.unlink()
    (room.vault.root / gone).rmdir()
    assert (await room.copy()).drilled == []
    assert not (room.vault.root / gone).exists()
