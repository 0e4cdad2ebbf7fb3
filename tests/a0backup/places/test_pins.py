"""A pin goes to the places with its artifact, and comes back with it."""

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from a0backup.places.catching_up import CaughtUp, catch_up
from a0backup.places.places import Place, Places
from a0backup.places.restoring import bring_back
from a0backup.places.verification import Verification
from a0backup.retention.pruning import prune_everything, prune_place
from a0backup.vault.pinned import PINNED, Pin, read_pin, remove_pin, write_pin
from tests.a0backup.places.conftest import Spot
from tests.support.pruning import Nights


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path, copies=[{"name": "nas", "url": "nas"}])


def copy(nights: Nights) -> CaughtUp:
    [place] = Places.of(nights.fleet)
    return asyncio.run(catch_up(place, nights.vault.manifests()))


def prune(nights: Nights) -> None:
    asyncio.run(prune_everything(nights.vault, nights.fleet, nights.plan(), now=nights.now))


def mend(nights: Nights) -> None:
    async def repaired() -> None:
        verification = Verification(nights.vault, list(Places.of(nights.fleet)))
        await verification.repaired(await verification.run())

    asyncio.run(repaired())


def make_again(nights: Nights) -> None:
    shutil.rmtree(nights.vault.root)
    asyncio.run(bring_back(nights.fleet))
    mend(nights)


def test_what_was_pinned_stays_after_the_vault_was_lost_and_made_again(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    write_pin(nights.vault.root / ids[5], Pin(pinned_at=nights.now, because="before the upgrade"))
    assert copy(nights).text() == "nas: 0 copied, 6 held already"
    make_again(nights)
    prune(nights)
    assert nights.held() == nights.held("nas") == {*ids[:3], ids[5]}
    assert str(read_pin(nights.vault.root / ids[5])) == "pinned: before the upgrade"


def test_the_last_pin_is_the_one_that_the_place_has(nights: Nights) -> None:
    [first] = nights.add_nights(1)
    for days in (10, 20):
        write_pin(nights.vault.root / first, Pin(pinned_at=nights.now, until=nights.now + timedelta(days=days)))
        copy(nights)
    assert read_pin(nights.folder / "nas" / first) == read_pin(nights.vault.root / first)


def test_an_artifact_that_the_vault_has_takes_no_pin_from_a_place(nights: Nights) -> None:
    [first] = nights.add_nights(1)
    write_pin(nights.vault.root / first, Pin(pinned_at=nights.now))
    copy(nights)
    remove_pin(nights.vault.root / first)
    (nights.vault.root / first / "backup.tar.gz.enc").write_bytes(b"?")
    mend(nights)
    assert (nights.held(), read_pin(nights.vault.root / first)) == ({first}, None)


@pytest.mark.parametrize("content", [b"", b"[" * 10_000, b"{}", b"x" * 100_000])
def test_what_is_no_pin_in_a_place_is_not_brought_back(nights: Nights, content: bytes) -> None:
    [first] = nights.add_nights(1)
    copy(nights)
    (nights.folder / "nas" / first / PINNED).write_bytes(content)
    make_again(nights)
    assert nights.held() == {first}
    assert not (nights.vault.root / first / PINNED).exists()


def test_a_link_in_the_place_of_a_pin_keeps_nothing_from_being_copied_or_brought_back(nights: Nights) -> None:
    ids = nights.add_nights(2)
    (nights.folder / "outside").write_text('{"schema": 1, "pinned_at": "2026-11-22T02:00:00Z"}')
    for each in ids:
        write_pin(nights.vault.root / each, Pin(pinned_at=nights.now))
    copy(nights)
    link = nights.folder / "nas" / ids[0] / PINNED
    link.unlink()
    link.symlink_to(nights.folder / "outside")
    assert not copy(nights).is_behind
    make_again(nights)
    assert nights.held() == set(ids)
    assert read_pin(nights.vault.root / ids[1]) is not None


def test_a_pin_is_in_a_place_of_every_kind_and_goes_with_its_artifact(spot: Spot, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    nights = Nights(tmp_path / "here")
    ids = nights.add_nights(6)
    place = Place(nights.vault, spot.copy)
    write_pin(nights.vault.root / ids[5], Pin(pinned_at=nights.now))

    async def in_place() -> set[str]:
        assert not (await catch_up(place, nights.vault.manifests())).is_behind
        await prune_everything(nights.vault, nights.fleet, nights.plan(), now=nights.now)
        assert (await prune_place(place, nights.fleet, now=nights.now)).text().endswith(" removed")
        return {path.parent.name for path in spot.folder.rglob(PINNED)}

    assert asyncio.run(in_place()) == {ids[5].partition("/")[2]}
    remove_pin(nights.vault.root / ids[5])
    assert asyncio.run(in_place()) == set()
    assert len(list(spot.folder.rglob("*.enc"))) == 3
