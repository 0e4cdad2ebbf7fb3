"""From a place of any kind, everything comes back: one file, or the whole vault."""

import shutil
import time
from pathlib import Path

import pytest

from a0backup.errors import UnknownVaultError
from a0backup.fleet.models import Fleet
from a0backup.places.catching_up import catch_up
from a0backup.places.places import Places
from a0backup.places.restoring import bring_back
from a0backup.places.verification import Verification
from a0backup.places.verifying import Finding
from a0backup.vault.vault import Vault
from tests.a0backup.fleet.test_copies import fleet_with
from tests.a0backup.places.conftest import Spot
from tests.support.patience import patience
from tests.support.places import place
from tests.support.stored import store


class Room:
    """A fleet with one place that holds the two artifacts of its vault."""

    def __init__(self, folder: Path, spot: Spot) -> None:
        self.spot = spot
        settings = spot.copy.model_dump(include={"name", "url"})
        self.fleet: Fleet = fleet_with(folder, settings)
        self.manifests = [store(self.fleet.vault, "Passw0rd", nights=night, size=20_000) for night in range(2)]

    def verification(self) -> Verification:
        return Verification(Vault(self.fleet.vault), list(Places.of(self.fleet)))

    async def repaired(self) -> list[Finding]:
        verification = self.verification()
        return await verification.repaired(await verification.run())

    def contents(self) -> dict[str, bytes]:
        """Return what is in the vault, by path, without what it remembers of its places."""
        files = [path for path in self.fleet.vault.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.fleet.vault)): path.read_bytes()
            for path in files
            if ".places" not in path.parts and path.name in ("vault.json", "manifest.json", "backup.tar.gz.enc")
        }


@pytest.fixture
async def room(tmp_path: Path, spot: Spot) -> Room:
    room = Room(tmp_path, spot)
    for each in Places.of(room.fleet):
        caught_up = await catch_up(each, room.manifests)
        assert not caught_up.is_behind, caught_up.text()
    return room


async def test_a_vault_that_is_gone_comes_back_whole(room: Room) -> None:
    before = room.contents()
    assert len(before) == 5
    shutil.rmtree(room.fleet.vault)
    assert await bring_back(room.fleet) == room.spot.copy.name
    assert all(finding.ok for finding in await room.repaired())
    assert room.contents() == before
    assert all(finding.ok for finding in await room.verification().run())


async def test_one_flipped_byte_in_the_place_is_named_and_mended(room: Room) -> None:
    damaged = room.manifests[0].id
    file = room.spot.folder / damaged / "backup.tar.gz.enc"
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    # A server may show a moment later what was changed behind its back.
    until = time.monotonic() + patience(10)
    while not (bad := [each for each in await room.verification().run() if not each.ok]):
        assert time.monotonic() < until
    assert [(each.place, each.id, each.result) for each in bad] == [(room.spot.copy.name, damaged, "damaged")]
    assert "backup.tar.gz.enc has sha256" in bad[0].reason
    assert all(finding.ok for finding in await room.repaired())
    assert all(finding.ok for finding in await room.verification().run())


async def test_a_vault_that_is_there_is_not_brought_back(room: Room) -> None:
    assert await bring_back(room.fleet) is None


async def test_a_vault_is_not_brought_back_from_the_place_of_another(tmp_path: Path) -> None:
    fleet = fleet_with(tmp_path, {"name": "nas", "url": "nas"})
    (tmp_path / ".fleet.yaml.vault").write_text('{"schema": 1, "id": "ours", "path": "/elsewhere"}')
    (tmp_path / "nas").mkdir()
    (tmp_path / "nas" / "vault.json").write_text('{"schema": 1, "id": "theirs", "made_at": "2026-11-23T02:00:00Z"}')
    with pytest.raises(UnknownVaultError, match="nas: it has the copies of another vault"):
        await bring_back(fleet)
    assert list((tmp_path / "vault").glob("*")) == []


@pytest.mark.parametrize("left", [None, "torn", "[" * 4000])
async def test_a_vault_that_lost_only_its_identity_gets_it_back(room: Room, left: str | None) -> None:
    before, file = room.contents(), room.fleet.vault / "vault.json"
    file.unlink()
    if left is not None:
        file.write_text(left)
    assert await bring_back(room.fleet) == room.spot.copy.name
    assert room.contents() == before


async def test_another_disk_at_the_path_of_the_vault_does_not_become_the_vault(tmp_path: Path) -> None:
    room = Room(tmp_path, Spot(place("nas", str(tmp_path / "nas")), tmp_path / "nas"))
    for each in Places.of(room.fleet):
        await catch_up(each, room.manifests)
    shutil.rmtree(room.fleet.vault)
    (room.fleet.vault / "photos").mkdir(parents=True)
    with pytest.raises(UnknownVaultError, match="nas: it has none of the artifacts"):
        await bring_back(room.fleet)
    assert [path.name for path in room.fleet.vault.iterdir()] == ["photos"]
