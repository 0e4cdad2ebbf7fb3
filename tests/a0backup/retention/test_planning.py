"""What becomes of each artifact: what is never removed, whatever the rules say, and when nothing is."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest

from a0backup.places.verification import Verification
from a0backup.vault.pinned import PINNED, Pin, write_pin
from a0backup.vault.vault import time_of
from tests.support.pruning import Nights


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def test_what_no_rule_keeps_goes_and_the_rest_stays_with_its_reasons(nights: Nights) -> None:
    newest, second, third, *old = nights.add_nights(6)
    assert nights.plan().removals == sorted(old)
    assert nights.reasons() == {
        third: ("daily",),
        second: ("daily",),
        newest: ("daily", "newest with verified contents", "keep_min: one of the newest 1"),
    }


def test_each_node_and_kind_is_judged_by_itself(nights: Nights) -> None:
    for node in ("a0-1", "a0-2"):
        nights.add_nights(5, node=node, kinds=("backup", "backup-sensitive"))
    assert len(nights.reasons()) == 12
    assert len(nights.plan().removals) == 8


def test_nothing_of_a_node_with_an_unfinished_backup_goes(nights: Nights) -> None:
    nights.add_nights(6)
    nights.add_nights(6, node="a0-2")
    for name in ("journal-backup.json", "deleting-backup.json", "journal-backup.json.unreadable-20261123T020000Z"):
        file = nights.vault.folder("a0-1") / name
        file.write_text("?")
        plan = nights.plan()
        assert {each.partition("/")[0] for each in plan.removals} == {"a0-2"}
        assert any(name in reason for each in plan.decisions for reason in each.reasons)
        file.unlink()
    assert {each.partition("/")[0] for each in nights.plan().removals} == {"a0-1", "a0-2"}


def test_a_pinned_artifact_stays_until_its_pin_is_over(nights: Nights) -> None:
    oldest = nights.add_nights(6)[-1]
    for until, stays in ((None, True), (timedelta(seconds=1), True), (timedelta(0), False), (-timedelta(1), False)):
        pin = Pin(pinned_at=nights.now, until=None if until is None else nights.now + until, because="before 7.1")
        write_pin(nights.vault.root / oldest, pin)
        assert (oldest in nights.reasons()) is stays
    (nights.vault.root / oldest / PINNED).write_text("{")
    assert "pinned.json is not a pin" in nights.reasons()[oldest][0]


def test_the_newest_whose_drill_passed_stays(nights: Nights) -> None:
    ids = nights.add_nights(8)
    nights.drilled(ids[4], passed=False)
    nights.drilled(ids[5])
    nights.drilled(ids[6])
    assert nights.reasons()[ids[5]] == ("newest whose drill passed",)
    assert {ids[4], ids[6]} <= set(nights.plan().removals)


def test_the_newest_with_verified_contents_stays_if_later_ones_were_not_opened(nights: Nights) -> None:
    for days in range(8):
        nights.add(days_ago=days, level="md5" if days < 5 else "contents")
    [opened] = [each for each, reasons in nights.reasons().items() if "newest with verified contents" in reasons]
    assert time_of(opened).date() == (nights.now - timedelta(days=5)).date()


def test_keep_min_keeps_verified_ones_first_and_others_where_they_are_too_few(nights: Nights) -> None:
    nights.change(retention={"keep_last": 1, "keep_min": 3})
    ids = [nights.add(days_ago=days, level="contents" if days in (5, 6) else "md5") for days in range(8)]
    assert set(nights.reasons()) == {ids[0], ids[5], ids[6]}


def test_the_kinds_of_one_night_stay_or_go_together(nights: Nights) -> None:
    nights.add_nights(6, kinds=("backup", "backup-sensitive"))
    old = nights.add(days_ago=10)
    other = nights.add(days_ago=10, kind="backup-sensitive")
    write_pin(nights.vault.root / other, Pin(pinned_at=nights.now))
    assert nights.reasons()[old] == (f"of one night with {other.partition('/')[2]}",)
    assert nights.reasons()[other] == ("pinned",)


def test_a_night_that_one_run_began_and_another_ended_is_one_night(nights: Nights) -> None:
    nights.add_nights(6, kinds=("backup", "backup-sensitive"))
    begun = nights.add(days_ago=10, run="killed")
    ended = nights.add(days_ago=10, kind="backup-sensitive", hour=5, run="resumed")
    write_pin(nights.vault.root / begun, Pin(pinned_at=nights.now))
    assert ended in nights.reasons()


def test_two_nights_stay_two_nights_though_one_run_is_named_in_both(nights: Nights) -> None:
    ids = [nights.add(days_ago=days, run="the same") for days in range(6)]
    assert set(nights.reasons()) == set(ids[:3])


def test_a_foreign_artifact_stays_and_takes_no_place_of_ours(nights: Nights) -> None:
    ids = nights.add_nights(6)
    foreign = [nights.add(days_ago=days, hour=9, ours=False, level="md5") for days in (0, 9)]
    assert set(nights.reasons()) == {*ids[:3], *foreign}
    assert nights.reasons()[foreign[1]] == ("not made by this vault's runs",)


@pytest.mark.parametrize("damage", ["manifest", "missing", "short", "foreign id"])
def test_what_is_damaged_stays_is_named_and_takes_no_place_of_another(nights: Nights, damage: str) -> None:
    ids = nights.add_nights(6)
    folder = nights.vault.root / ids[0]
    match damage:
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case "missing":
            (folder / "backup.tar.gz.enc").unlink()
        case "short":
            (folder / "backup.tar.gz.enc").write_text("")
        case _:
            other = json.loads((nights.vault.root / ids[1] / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps(other))
    assert set(nights.reasons()) == set(ids[:4])
    assert nights.reasons()[ids[0]][0].startswith("left as it is: ")


def test_what_the_last_verification_did_not_find_whole_takes_no_place_of_another(nights: Nights) -> None:
    ids = nights.add_nights(6)
    artifact = nights.vault.root / ids[0] / "backup.tar.gz.enc"
    whole = artifact.read_bytes()
    artifact.write_bytes(b"?" * len(whole))
    assert set(nights.reasons()) == set(ids[:3])
    asyncio.run(Verification(nights.vault, []).run())
    assert set(nights.reasons()) == set(ids[:4])
    assert nights.reasons()[ids[0]] == ("left as it is: the last verification did not find it whole",)
    artifact.write_bytes(whole)
    asyncio.run(Verification(nights.vault, []).run())
    assert set(nights.reasons()) == set(ids[:3])


def test_an_artifact_whose_drill_failed_is_not_the_newest_that_was_proven_to_open(nights: Nights) -> None:
    nights.change(retention={"keep_last": 1, "keep_min": 1, "prune_most": "100%"})
    ids = nights.add_nights(4)
    nights.drilled(ids[0], passed=False)
    assert set(nights.reasons()) == set(ids[:2])
    assert "newest with verified contents" in nights.reasons()[ids[1]]


def test_a_node_whose_folder_cannot_be_read_does_not_keep_others_from_being_pruned(nights: Nights) -> None:
    nights.add_nights(6)
    nights.vault.folder("a0-2").write_text("a file in the place of the folder")
    nights.vault.folder("a0-3").symlink_to("nowhere")
    assert len(nights.plan().removals) == 3


def test_a_node_that_fleet_yaml_does_not_name_is_left_alone(nights: Nights) -> None:
    nights.add_nights(6)
    nights.change(nodes=[{"name": "a0-2", "host": "127.0.0.1"}])
    assert nights.plan().removals == []


@pytest.mark.parametrize("ahead", [timedelta(days=2), timedelta(hours=1)])
def test_a_newest_artifact_in_the_future_refuses_the_whole_prune(nights: Nights, ahead: timedelta) -> None:
    newest, *_ = nights.add_nights(6, node="a0-2")
    nights.add(days_ago=2)
    assert nights.plan().refusals == []
    nights.now = time_of(newest) - ahead
    [refusal] = nights.plan().refusals
    assert refusal.startswith("a0-2: ")
    assert "lies in the future" in refusal


def test_clocks_that_differ_by_a_few_minutes_refuse_nothing(nights: Nights) -> None:
    newest, *_ = nights.add_nights(6)
    nights.now = time_of(newest) - timedelta(minutes=4)
    assert nights.plan().refusals == []


def test_a_folder_whose_name_holds_no_time_hides_no_artifact_in_the_future(nights: Nights) -> None:
    nights.add_nights(6)
    ahead = nights.add(days_ago=-30)
    (nights.vault.folder("a0-1") / "99999999T999999Z-backup").mkdir()
    (nights.vault.folder("a0-1") / "99999999T999999Z-backup" / "manifest.json").write_text("damaged")
    assert any(f"the newest artifact, {ahead}, lies in the future" in each for each in nights.plan().refusals)


@pytest.mark.parametrize("stamp", ["00010101T000000Z", "99991231T235959Z", "20261399T000000Z"])
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/Adak"])
def test_an_id_at_the_end_of_time_does_not_keep_the_vault_from_being_planned(
    nights: Nights, stamp: str, zone: str
) -> None:
    rules = {"keep_daily": 3, "keep_within_weekly": "9999y", "keep_min": 1, "prune_most": "100%", "timezone": zone}
    nights.change(retention=rules)
    for node in ("a0-1", "a0-2"):
        nights.add_nights(6, node=node)
    [there] = nights.add_nights(1, node="a0-3")
    odd = f"a0-1/{stamp}-backup"
    (nights.vault.root / there).rename(nights.vault.root / odd)
    manifest = nights.vault.root / odd / "manifest.json"
    manifest.write_text(manifest.read_text().replace(there, odd).replace('"name": "a0-3"', '"name": "a0-1"'))
    assert odd in {each.id for each in nights.plan().decisions}
    assert len({each for each in nights.reasons() if each.startswith("a0-2")}) >= 3


def test_more_than_prune_most_of_a_node_refuses_the_whole_prune(nights: Nights) -> None:
    nights.change(retention={"keep_daily": 3, "keep_min": 1})
    nights.add_nights(6)
    assert nights.plan().refusals == []
    nights.add(days_ago=6)
    assert nights.plan().refusals == ["a0-1: 4 of 7 artifacts would go at once, more than prune_most (50%)"]


def test_an_artifact_whose_id_names_no_time_stays(nights: Nights) -> None:
    ids = nights.add_nights(6)
    timeless = "a0-1/20261399T020000Z-backup"
    (nights.vault.root / ids[5]).rename(nights.vault.root / timeless)
    manifest = nights.vault.root / timeless / "manifest.json"
    manifest.write_text(manifest.read_text().replace(ids[5], timeless))
    assert nights.reasons()[timeless] == ("left as it is: its id names no time",)


def test_a_link_in_the_place_of_an_artifact_is_not_followed(nights: Nights, tmp_path: Path) -> None:
    ids = nights.add_nights(6)
    (nights.vault.root / ids[5]).rename(tmp_path / "elsewhere")
    (nights.vault.root / ids[5]).symlink_to(tmp_path / "elsewhere")
    assert "no link is followed" in nights.reasons()[ids[5]][0]
