"""A check says which places a run could not use, and changes nothing there."""

from pathlib import Path

import pytest

from a0backup.fleet.models import Fleet
from a0backup.places.catching_up import catch_up
from a0backup.places.looking import look_at_places, same_disk_warnings
from a0backup.places.places import Places
from a0backup.vault.vault import Vault
from tests.a0backup.fleet.test_copies import fleet_with
from tests.support.stored import store


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return fleet_with(tmp_path, {"name": "nas", "url": "nas"}, {"name": "far", "url": "far"})


async def test_places_that_can_be_used_are_no_problem_and_stay_as_they_are(fleet: Fleet, tmp_path: Path) -> None:
    assert await look_at_places(fleet) == ([], [])
    assert not (tmp_path / "nas").exists()
    assert not (tmp_path / "vault").exists()


async def test_a_place_that_cannot_be_used_is_a_warning_while_enough_others_can(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "nas").write_text("not a folder")
    problems, warnings = await look_at_places(fleet)
    assert problems == []
    assert [text.partition(":")[0] for text in warnings] == ["nas"]


async def test_too_few_places_that_can_be_used_are_a_problem(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("nas", "far"):
        (tmp_path / name).write_text("not a folder")
    problems, _ = await look_at_places(fleet)
    assert [problem.text.partition(":")[0] for problem in problems] == ["nas", "far"]


async def test_a_place_that_is_empty_now_and_was_not_before_is_named(fleet: Fleet, tmp_path: Path) -> None:
    store(fleet.vault, "Passw0rd", size=4_000)
    for place in Places.of(fleet):
        await catch_up(place, Vault(fleet.vault).manifests())
    (tmp_path / "nas" / "vault.json").unlink()
    _, [warning] = await look_at_places(fleet)
    assert "it is empty, or another disk is in its place" in warning


def test_a_place_on_the_disk_of_the_vault_is_warned_of(tmp_path: Path) -> None:
    fleet = fleet_with(tmp_path, {"name": "nas", "url": "nas"}, {"name": "memory", "url": "/dev/shm/a0backup-none"})
    assert [text.split()[2] for text in same_disk_warnings(fleet)] == ["nas"]
