"""The removal: what the plan says and nothing else, in the vault and then in the places."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from a0backup.places import copying
from a0backup.places.catching_up import catch_up
from a0backup.places.places import Places
from a0backup.places.store import Store
from a0backup.places.verification import Verification
from a0backup.places.verifying import Finding
from a0backup.retention.pruning import PrunedHere, prune_everything, prune_node
from a0backup.vault import lock, pruned
from a0backup.vault.pinned import Pin, write_pin
from a0backup.vault.pruned import MARK, RECORD, Record, remove_night
from tests.support.disks import as_root, small_disk
from tests.support.pruning import Nights
from tests.support.users import as_user, open_folder

PLACES = [{"name": "nas", "url": "nas"}, {"name": "far", "url": "far"}]


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path, copies=PLACES)


def prune(nights: Nights, *, force: bool = False) -> dict[str, PrunedHere]:
    results = asyncio.run(prune_everything(nights.vault, nights.fleet, nights.plan(), now=nights.now, force=force))
    return {result.where: result for result in results}


def copy(nights: Nights) -> None:
    manifests = nights.vault.manifests()
    for place in Places.of(nights.fleet):
        assert not asyncio.run(catch_up(place, manifests)).is_behind


def verify(nights: Nights, *, repair: bool = False) -> list[Finding]:
    async def findings() -> list[Finding]:
        verification = Verification(nights.vault, list(Places.of(nights.fleet)))
        found = await verification.run()
        return await verification.repaired(found) if repair else found

    return asyncio.run(findings())


def test_what_goes_leaves_nothing_and_what_stays_is_untouched(nights: Nights) -> None:
    ids = nights.add_nights(6)
    before = {path: path.read_bytes() for each in ids[:3] for path in (nights.vault.root / each).iterdir()}
    assert prune(nights)["a0-1"].removed == sorted(ids[3:])
    assert nights.held() == set(ids[:3])
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in nights.vault.folder("a0-1").iterdir() if path.is_dir()) == sorted(
        each.partition("/")[2] for each in ids[:3]
    )


def test_the_record_names_what_was_pruned_and_is_private(nights: Nights) -> None:
    ids = nights.add_nights(6)
    manifest = json.loads((nights.vault.root / ids[5] / "manifest.json").read_text())
    prune(nights)
    record = nights.vault.folder("a0-1") / RECORD
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(ids[3:])
    assert lines[0]["sha256"] == manifest["artifact"]["sha256"]
    assert record.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("instead", [Path.mkdir, os.mkfifo, lambda record: record.symlink_to("outside")])
def test_nothing_goes_where_the_record_cannot_be_written(nights: Nights, instead: Callable[[Path], None]) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    instead(nights.vault.folder("a0-1") / RECORD)
    ended = prune(nights)
    assert str(nights.vault.folder("a0-1") / RECORD) in ended["a0-1"].error
    assert (ended["a0-1"].removed, ended["nas"].removed) == ([], [])
    assert nights.held() == nights.held("nas") == set(ids)


def test_a_manifest_with_a_long_name_of_its_run_is_recorded_all_the_same(nights: Nights) -> None:
    ids = [nights.add(days_ago=days, run="r" * 10_000) for days in range(6)]
    copy(nights)
    prune(nights)
    assert [finding for finding in verify(nights) if not finding.ok] == []
    assert nights.held("nas") == set(ids[:3])


def test_only_what_was_approved_goes_though_more_has_aged_since(nights: Nights) -> None:
    ids = nights.add_nights(6)
    retention = nights.fleet.retention
    assert retention is not None
    ended = asyncio.run(prune_node(nights.vault, retention, "a0-1", approved=[ids[4]], now=nights.now))
    assert ended.removed == [ids[4]]


def test_a_pin_that_came_after_the_plan_keeps_its_artifact(nights: Nights) -> None:
    ids = nights.add_nights(6)
    plan = nights.plan()
    write_pin(nights.vault.root / ids[5], Pin(pinned_at=nights.now))
    asyncio.run(prune_everything(nights.vault, nights.fleet, plan, now=nights.now))
    assert nights.held() == {*ids[:3], ids[5]}


def test_a_pin_that_comes_while_its_artifact_goes_brings_it_back(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = nights.add_nights(6)
    sync = pruned.fsync_directory

    def pin_now(path: Path) -> None:
        sync(path)
        if path.name in ids[5] and (path / MARK).exists() and not (path / "pinned.json").exists():
            write_pin(path, Pin(pinned_at=nights.now, because="just in time"))

    monkeypatch.setattr(pruned, "fsync_directory", pin_now)
    ended = prune(nights)["a0-1"]
    assert ended.kept == {ids[5]: "pinned: just in time"}
    assert nights.held() == {*ids[:3], ids[5]}


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("moment", [(5, 1), (4, 0), (4, 1)])
def test_a_pin_that_comes_while_a_prune_removes_keeps_all_kinds_of_its_night(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, kind: int, moment: tuple[int, int]
) -> None:
    stored = [[nights.add(days_ago=day, kind=each) for each in ("backup", "backup-sensitive")] for day in range(6)]
    pinned, (day, marked), sync = nights.vault.root / stored[4][kind], moment, pruned.fsync_directory

    def pin_now(path: Path) -> None:
        sync(path)
        if (nights.vault.root / stored[day][marked] / MARK).exists() and not (pinned / "pinned.json").exists():
            write_pin(pinned, Pin(pinned_at=nights.now, because="just in time"))

    monkeypatch.setattr(pruned, "fsync_directory", pin_now)
    ended = prune(nights)["a0-1"]
    assert nights.held() == {each for night in (*stored[:3], stored[4]) for each in night}
    assert ended.kept == dict.fromkeys(stored[4], "pinned: just in time")


def test_a_node_that_a_run_holds_is_not_pruned_and_said(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("a0backup.retention.pruning.WAITS", 0.1)
    nights.add_nights(6)
    other = nights.add_nights(6, node="a0-2")

    async def held() -> list[PrunedHere]:
        async with lock.node_lock(nights.vault.folder("a0-1"), node="a0-1", run="night", deadline=1):
            return await prune_everything(nights.vault, nights.fleet, nights.plan(), now=nights.now)

    first, second, *_ = asyncio.run(held())
    assert "the node's lock, held by run night" in first.error
    assert second.removed == sorted(other[3:])
    assert len(nights.held()) == 6 + 3


@pytest.mark.parametrize("cut", [False, True])
def test_an_artifact_that_cannot_be_removed_is_said_and_keeps_no_other(nights: Nights, cut: bool) -> None:
    ids = nights.add_nights(6)
    folder = nights.vault.root / ids[5]
    if cut:
        (folder / "manifest.json").rename(folder / MARK)
        (folder / "backup.tar.gz.enc").unlink()
        (folder / "manifest.json.sig").mkdir()
    else:
        (folder / MARK / "protected").mkdir(parents=True)
    ended = prune(nights)["a0-1"]
    assert ended.removed == sorted(ids[3:5])
    assert str(folder / "manifest.json") in ended.error or "manifest.json.sig" in ended.error
    assert nights.held() == {*ids[:3]} | (set() if cut else {ids[5]})


def test_files_that_are_not_ours_stay_in_their_folder(nights: Nights) -> None:
    ids = nights.add_nights(6)
    note = nights.vault.root / ids[5] / "READ ME.txt"
    note.write_text("do not lose this")
    prune(nights)
    assert note.read_text() == "do not lose this"
    assert [path.name for path in note.parent.iterdir()] == ["READ ME.txt"]
    assert ids[5] not in nights.held()


@as_root
def test_a_prune_frees_room_on_a_vault_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        nights = Nights(disk)
        ids = nights.add_nights(6)
        (nights.vault.folder("a0-1") / "lock").write_text("{}")  # of the runs before
        with (disk / "fill").open("wb", buffering=0) as fill, suppress(OSError):
            while fill.write(b"x" * 4096):
                pass
        assert os.statvfs(disk).f_bavail == 0
        ended = prune(nights)["a0-1"]
        assert (ended.error, ended.removed) == ("", sorted(ids[3:]))
        assert nights.held() == set(ids[:3])
        assert sorted(Record(nights.vault).of_node("a0-1")) == sorted(ids[3:])


# -- places ------------------------------------------------------------------------------------------------------------


def test_places_follow_the_vault(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    assert prune(nights)["nas"].removed == sorted(ids[3:])
    assert nights.held("nas") == nights.held("far") == nights.held() == set(ids[:3])
    assert {path.name for path in (nights.folder / "nas" / "a0-1").iterdir()} == {
        each.partition("/")[2] for each in ids[:3]
    }


@pytest.mark.parametrize("node", ["AZ-1", "20261123T020000Z-backup", "aZ-"])
def test_a_node_whose_name_looks_like_a_part_of_an_id_is_pruned_like_any_other(nights: Nights, node: str) -> None:
    nights.change(nodes=[{"name": node, "host": "127.0.0.1"}])
    ids = nights.add_nights(6, node=node)
    copy(nights)
    assert prune(nights)["nas"].removed == sorted(ids[3:])
    assert nights.held() == nights.held("nas") == set(ids[:3])
    assert len(list((nights.folder / "nas" / node).rglob("*.enc"))) == 3
    assert [finding for finding in verify(nights) if not finding.ok] == []


def test_a_place_with_a_longer_retention_keeps_what_the_vault_does_not(nights: Nights) -> None:
    nights.change(copies=[PLACES[0], PLACES[1] | {"retention": {"keep_daily": 5}}])
    ids = nights.add_nights(8)
    copy(nights)
    prune(nights)
    assert nights.held("nas") == set(ids[:3])
    assert nights.held("far") == set(ids[:5])
    assert prune(nights)["far"].removed == []


def test_more_than_prune_most_of_a_node_goes_in_no_place_at_once_but_by_force(nights: Nights) -> None:
    archive = PLACES[0] | {"retention": {"keep_daily": 60, "prune_most": "100%"}}
    nights.change(copies=[archive, PLACES[1]])
    ids = nights.add_nights(9)
    copy(nights)
    prune(nights)
    nights.change(copies=PLACES, retention=nights.settings["retention"] | {"prune_most": "50%"})
    ended = prune(nights)
    assert ended["nas"].error.startswith("nothing was pruned: a0-1: 6 of 9 artifacts would go at once, more than")
    assert ended["nas"].removed == []
    assert nights.held("nas") == set(ids)
    assert (ended["far"].error, nights.held("far")) == ("", set(ids[:3]))
    assert prune(nights, force=True)["nas"].removed == sorted(ids[3:])


def test_a_node_that_fleet_yaml_does_not_name_is_left_alone_in_the_places_too(nights: Nights) -> None:
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 9}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    nights.change(copies=[PLACES[0]], nodes=[{"name": "a0-1-new", "host": "127.0.0.1"}])
    assert prune(nights)["nas"].removed == []
    assert nights.held("nas") == set(ids)


def test_what_the_vault_has_only_lost_is_removed_in_no_place(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    for each in ids[4:]:
        shutil.rmtree(nights.vault.root / each)
    prune(nights)
    assert nights.held("nas") == {*ids[:3], *ids[4:]}
    missing = {finding.id for finding in verify(nights) if finding.result == "missing"}
    assert missing == set(ids[4:])


def test_what_was_pruned_is_neither_missed_nor_copied_nor_brought_back(nights: Nights) -> None:
    nights.change(copies=[PLACES[0], PLACES[1] | {"retention": {"keep_daily": 5}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    assert [finding for finding in verify(nights) if not finding.ok] == []
    assert [finding for finding in verify(nights, repair=True) if not finding.ok] == []
    copy(nights)
    assert nights.held() == nights.held("nas") == set(ids[:3])


def test_what_is_pruned_while_a_verification_reads_is_no_warning(
    nights: Nights, caplog: pytest.LogCaptureFixture
) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    for each in ids:
        (nights.vault.root / each / "copies.json").unlink()  # so that what is found would be recorded
    record = Record(nights.vault)

    def prune_now(finding: Finding) -> None:
        for each in ids[3:]:
            if (nights.vault.root / each).exists():
                remove_night(nights.vault, [each], record, now=nights.now)

    verification = Verification(nights.vault, list(Places.of(nights.fleet)), of_vault=False, told=prune_now)
    findings = asyncio.run(verification.run())
    assert not nights.held() & {*ids[3:]}
    assert [finding for finding in findings if not finding.ok] == []
    assert caplog.records == []


def test_damage_to_what_a_place_keeps_for_longer_is_found(nights: Nights) -> None:
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 9}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    (nights.folder / "nas" / ids[5] / "backup.tar.gz.enc").write_bytes(b"?")
    assert [(each.id, each.result) for each in verify(nights) if not each.ok] == [(ids[5], "damaged")]


def test_damage_to_the_manifest_of_what_a_place_keeps_for_longer_is_found(nights: Nights) -> None:
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 9}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    manifest = nights.folder / "nas" / ids[5] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"port": 10121', '"port": 10122'))
    assert [(each.id, each.result) for each in verify(nights) if not each.ok] == [(ids[5], "damaged")]


def test_a_place_that_was_never_used_is_not_made_by_a_prune(nights: Nights) -> None:
    nights.add_nights(6)
    assert prune(nights)["nas"].text() == "nas: 0 removed"
    assert not (nights.folder / "nas").exists()


def test_another_artifact_under_the_id_of_a_pruned_one_stays_and_is_said(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    manifest = nights.folder / "nas" / ids[5] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    ended = prune(nights)["nas"]
    assert "its manifest here is not that of what was pruned" in ended.kept[ids[5]]
    assert nights.held("nas") == {*ids[:3], ids[5]}


def test_a_copy_that_is_under_way_while_its_artifact_is_pruned_leaves_nothing(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.change(copies=PLACES[:1])
    ids = nights.add_nights(3)
    copy(nights)
    old = nights.add(days_ago=9)
    [place] = Places.of(nights.fleet)
    write = copying.write_small

    def pruned_before(store: Store, path: str, content: bytes, name: str) -> None:
        if path == f"{old}/manifest.json":
            assert prune(nights)["a0-1"].removed == [old]
        write(store, path, content, name)

    monkeypatch.setattr(copying, "write_small", pruned_before)
    caught_up = asyncio.run(catch_up(place, nights.vault.manifests()))
    assert (caught_up.failed, caught_up.copied) == ({}, [])
    assert nights.held("nas") == set(ids)
    assert list((nights.folder / "nas" / old).rglob("*")) == []


def test_an_artifact_that_came_back_into_the_vault_is_removed_in_no_place(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    shutil.copytree(nights.folder / "nas" / ids[5], nights.folder / "saved")
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 6}}])
    prune(nights)
    shutil.copytree(nights.folder / "saved", nights.vault.root / ids[5])
    write_pin(nights.vault.root / ids[5], Pin(pinned_at=nights.now))
    nights.change(copies=[PLACES[0]])
    assert prune(nights)["nas"].removed == [*sorted(ids[3:5])]
    assert ids[5] in nights.held("nas")


def test_an_artifact_that_came_back_and_has_lost_its_manifest_is_mended_and_not_removed(nights: Nights) -> None:
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 9}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    shutil.copytree(nights.folder / "nas" / ids[5], nights.vault.root / ids[5])
    write_pin(nights.vault.root / ids[5], Pin(pinned_at=nights.now))
    (nights.vault.root / ids[5] / "manifest.json").unlink()
    assert prune(nights)["nas"].removed == []
    assert [(each.id, each.result) for each in verify(nights) if each.counts] == [(ids[5], "missing")]
    verify(nights, repair=True)
    assert nights.held() == {*ids[:3], ids[5]}


def test_a_place_that_was_away_catches_up_at_the_next_prune(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    (nights.folder / "nas").rename(nights.folder / "unmounted")
    ended = prune(nights)
    assert ended["nas"].error
    assert ended["far"].removed == sorted(ids[3:])
    (nights.folder / "unmounted").rename(nights.folder / "nas")
    assert prune(nights)["nas"].removed == sorted(ids[3:])


@pytest.fixture
def unprivileged(nights: Nights) -> Iterator[Path]:
    """A folder of a user who is not root, who may remove everything; everything below it becomes theirs."""
    # Imports all that is needed: that user may not be able to read it.
    nights.add_nights(4)
    copy(nights)
    prune(nights)
    verify(nights)
    with open_folder() as folder:
        folder.chmod(0o777)
        with as_user(12345, 12345) if os.geteuid() == 0 else nullcontext():
            yield folder


def test_a_place_that_refuses_deletion_is_said_once_and_is_no_failure(unprivileged: Path) -> None:
    nights = Nights(unprivileged, copies=PLACES)
    ids = nights.add_nights(6)
    copy(nights)
    protected = list((nights.folder / "nas" / "a0-1").iterdir())
    for folder in protected:
        folder.chmod(0o500)
    ended = prune(nights)
    assert "Permission denied" in ended["nas"].refusal
    assert (ended["nas"].error, ended["nas"].removed) == ("", [])
    assert nights.held("nas") == set(ids)
    assert nights.held() == nights.held("far") == set(ids[:3])
    assert [finding for finding in verify(nights) if not finding.ok] == []
    for folder in protected:
        folder.chmod(0o700)


def test_one_artifact_that_a_place_does_not_let_go_keeps_no_other_one_there(unprivileged: Path) -> None:
    nights = Nights(unprivileged, copies=PLACES[:1])
    ids = nights.add_nights(6)
    copy(nights)
    (nights.folder / "nas" / ids[5]).chmod(0o500)
    ended = prune(nights)["nas"]
    assert "Permission denied" in ended.refusal
    assert ended.removed == sorted(ids[3:5])
    assert nights.held("nas") == {*ids[:3], ids[5]}
    (nights.folder / "nas" / ids[5]).chmod(0o700)
    assert prune(nights)["nas"].removed == [ids[5]]


def test_the_last_that_is_whole_in_a_place_stays_there_and_not_a_damaged_one(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    for each in ids[:4]:
        shutil.rmtree(nights.folder / "nas" / each)
    artifact = nights.folder / "nas" / ids[4] / "backup.tar.gz.enc"
    artifact.write_bytes(b"?" * artifact.stat().st_size)
    verify(nights)
    prune(nights)
    assert nights.held("nas") == {ids[5]}


def test_the_last_artifact_of_a_node_in_a_place_stays(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    for each in ids[:4]:
        shutil.rmtree(nights.folder / "nas" / each)
    prune(nights)
    assert nights.held("nas") == {ids[4]}


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_what_is_damaged_in_a_place_takes_no_place_of_what_is_whole_there(nights: Nights, damage: str) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    for each in ids[:3]:
        artifact = nights.folder / "nas" / each / "backup.tar.gz.enc"
        artifact.write_bytes(b"" if damage == "cut" else b"?" * artifact.stat().st_size)
    if damage == "changed":
        verify(nights)
    assert prune(nights)["nas"].removed == sorted(ids[4:])
    assert (nights.folder / "nas" / ids[3] / "manifest.json").exists()
    verify(nights, repair=True)
    verify(nights)
    assert prune(nights)["nas"].removed == [ids[3]]
    assert nights.held("nas") == set(ids[:3])


@pytest.mark.parametrize("damage", ["manifest lost", "cut"])
def test_what_a_place_keeps_for_longer_and_has_damaged_stays_and_is_said(nights: Nights, damage: str) -> None:
    nights.change(copies=[PLACES[0] | {"retention": {"keep_daily": 5, "prune_most": "100%"}}])
    ids = nights.add_nights(6)
    copy(nights)
    prune(nights)
    folder = nights.folder / "nas" / ids[4]
    if damage == "cut":
        (folder / "backup.tar.gz.enc").write_bytes(b"")
    else:
        (folder / "manifest.json").unlink()
    ended = prune(nights)["nas"]
    assert ended.removed == []
    assert ended.kept == {ids[4]: f"{ids[4]}: it is damaged here, and would stay if it were whole"}
    assert (folder / "backup.tar.gz.enc").exists()
    nights.change(copies=[PLACES[0]])
    assert prune(nights)["nas"].removed == sorted(ids[3:5])
    assert not folder.exists()


def test_the_newest_that_was_drilled_in_a_place_stays_there(nights: Nights) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    nights.drilled(ids[4])
    shutil.copy(nights.vault.root / ids[4] / "drilled.json", nights.folder / "nas" / ids[4])
    (nights.vault.root / ids[4] / "drilled.json").unlink()
    prune(nights)
    assert nights.held("nas") == {*ids[:3], ids[4]}
    assert nights.held("far") == set(ids[:3])


@pytest.mark.parametrize("name", ["drilled.json", "manifest.json"])
def test_a_link_in_one_artifact_of_a_place_keeps_no_other_from_being_pruned(nights: Nights, name: str) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    (nights.folder / "outside").write_text("not ours")
    file = nights.folder / "nas" / ids[5] / name
    file.unlink(missing_ok=True)
    file.symlink_to(nights.folder / "outside")
    ended = prune(nights)["nas"]
    assert ended.error == ""
    assert {*ids[3:5]} <= {*ended.removed}
    assert (nights.folder / "outside").read_text() == "not ours"


def test_an_empty_folder_that_a_killed_prune_left_in_a_place_goes_with_a_later_copy(nights: Nights) -> None:
    nights.add_nights(2)
    copy(nights)
    old, new = (nights.folder / "nas" / "a0-1" / f"2026010{day}T020000Z-backup" for day in (1, 2))
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    copy(nights)
    assert (old.exists(), new.exists()) == (False, True)


# -- what a kill leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["renamed", "recorded", "emptied", "torn"])
def test_a_removal_that_was_cut_is_ended_by_the_next_prune(nights: Nights, left: str) -> None:
    ids = nights.add_nights(6)
    copy(nights)
    folder = nights.vault.root / ids[5]
    (folder / "manifest.json").rename(folder / MARK)
    record = nights.vault.folder("a0-1") / RECORD
    if left == "recorded":
        Record(nights.vault).note(pruned._line(folder, ids[5], nights.now - timedelta(hours=1)))
    elif left == "emptied":
        Record(nights.vault).note(pruned._line(folder, ids[5], nights.now - timedelta(hours=1)))
        for name in ("backup.tar.gz.enc", MARK):
            (folder / name).unlink()
    elif left == "torn":
        record.write_bytes(b'{"schema":1,"id":"a0-1/2026')
    assert [finding for finding in verify(nights) if not finding.ok] == []
    prune(nights)
    assert nights.held() == nights.held("nas") == set(ids[:3])
    assert not folder.exists()
    assert sorted(Record(nights.vault).of_node("a0-1")) == sorted(ids[3:])


def test_a_pin_keeps_its_artifact_though_a_prune_was_killed_when_it_had_begun_to_remove_it(nights: Nights) -> None:
    ids = nights.add_nights(6)
    folder = nights.vault.root / ids[5]
    # `keep` found the manifest in the moment before it was renamed, and said that the artifact is pinned.
    write_pin(folder, Pin(pinned_at=nights.now))
    (folder / "manifest.json").rename(folder / MARK)
    prune(nights)
    assert nights.held() == {*ids[:3], ids[5]}


def test_rules_that_keep_more_since_a_prune_was_killed_keep_what_is_still_whole(nights: Nights) -> None:
    ids = nights.add_nights(6)
    folder = nights.vault.root / ids[5]
    (folder / "manifest.json").rename(folder / MARK)
    nights.change(retention={"keep_daily": 6, "prune_most": "100%"})
    prune(nights)
    assert nights.held() == set(ids)


def test_a_folder_without_its_artifact_does_not_come_back_from_a_removal_that_was_cut(nights: Nights) -> None:
    ids = nights.add_nights(6)
    folder = nights.vault.root / ids[5]
    (folder / "manifest.json").rename(folder / MARK)
    (folder / "backup.tar.gz.enc").unlink()
    write_pin(folder, Pin(pinned_at=nights.now))  # by a `keep` that was told that the artifact is gone
    prune(nights)
    assert nights.held() == set(ids[:3])
    assert not folder.exists()
