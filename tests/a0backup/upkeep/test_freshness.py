"""How old the newest backup is: from the manifests, this machine's clock, and nothing else."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from a0backup.upkeep.freshness import Judgement, find_newest, judge
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.stored import START, store

DAY = 86_400.0


class Nights:
    """A vault with artifacts of some nights, counted from START, and a clock."""

    def __init__(self, root: Path) -> None:
        self.vault = Vault(root)

    def add(self, *nights: float) -> list[Manifest]:
        return [store(self.vault.root, "Passw0rd", nights=night, size=2_000) for night in nights]

    def judged(
        self, night: float, *, max_age: float | None = DAY, lacking: dict[str, list[str]] | None = None
    ) -> Judgement:
        """Return what is said when *night* days have passed since START."""
        now = at(night)
        newest = find_newest(self.vault, self.vault.ids("a0-1", "backup"), now=now)
        return judge(newest, lacking=lacking or {}, max_age=max_age, now=now)

    def change(self, manifest: Manifest, **values: object) -> None:
        file = self.vault.root / manifest.id / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


def at(night: float) -> datetime:
    return START + timedelta(days=night)


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path / "vault")


def test_a_backup_is_fresh_until_its_age_exceeds_the_maximum(nights: Nights) -> None:
    nights.add(0, 1)
    assert nights.judged(2) == Judgement(86_400, at(1), DAY)
    assert nights.judged(2).fresh
    late = nights.judged(2 + 1 / DAY)
    assert (late.age, late.fresh) == (86_401, False)
    assert late.problems == ("24 h 00 min old, and 24 h 00 min is the maximum",)


def test_the_age_counts_from_the_start_and_not_from_when_it_was_stored(nights: Nights) -> None:
    [stored_late] = nights.add(0)
    nights.change(stored_late, stored_at=f"{at(5):%Y-%m-%dT%H:%M:%SZ}")
    assert (nights.judged(5).age, nights.judged(5).fresh) == (5 * 86_400, False)


def test_nothing_is_not_fresh(nights: Nights) -> None:
    assert nights.judged(0) == Judgement(None, None, DAY, ("no backup yet",))
    assert nights.judged(0).fresh is False


def test_a_folder_without_a_manifest_is_no_backup(nights: Nights) -> None:
    nights.add(0)
    for night in (1, 1.5):
        (nights.vault.root / "a0-1" / f"{at(night):%Y%m%dT%H%M%SZ}-backup").mkdir()
    assert nights.judged(1).age == 86_400
    assert nights.judged(1).warnings == ()


def test_no_age_is_too_old_where_none_is_set(nights: Nights) -> None:
    nights.add(0)
    judged = nights.judged(900, max_age=None, lacking={"nas": nights.vault.ids("a0-1", "backup")})
    assert (judged.fresh, judged.age, judged.problems) == (None, 900 * 86_400, ())


@pytest.mark.parametrize("behind", [0.02, 0.5, 1, 3, 9])
def test_nothing_is_fresh_while_the_clock_is_behind(nights: Nights, behind: float) -> None:
    newest = nights.add(*range(10))[-1]
    judged = nights.judged(9 - behind)
    assert judged.fresh is False
    assert "ahead of this machine's clock, so no age is known: set the clock" in judged.problems[0]
    assert nights.judged(9).fresh, newest.id


def test_nothing_is_fresh_where_the_clock_is_before_all_backups(nights: Nights) -> None:
    first, *_ = nights.add(0, 1, 2)
    judged = nights.judged(-2_000)
    assert judged.problems == ("no backup that counts",)
    assert judged.warnings[0].startswith(f"{first.id} and 2 more: its time lies in the future")


def test_clocks_may_differ_by_a_few_minutes(nights: Nights) -> None:
    nights.add(0)
    assert nights.judged(-4 * 60 / DAY) == Judgement(0, at(0), DAY)
    assert nights.judged(-6 * 60 / DAY).fresh is False


def test_one_backup_made_while_the_clock_was_ahead_does_not_hide_the_age_of_the_others(nights: Nights) -> None:
    *_, ahead = nights.add(0, 1, 400)
    judged = nights.judged(1.5)
    assert (judged.fresh, judged.age) == (True, 43_200)
    assert judged.warnings[0].startswith(f"{ahead.id}: its time lies in the future, so it does not count as the newest")
    assert nights.judged(2.5).fresh is False


def test_a_backup_that_this_vault_did_not_start_does_not_make_a_node_fresh(nights: Nights) -> None:
    _, foreign = nights.add(0, 2)
    nights.change(foreign, started_at=None)
    assert (nights.judged(2).age, nights.judged(2).fresh) == (2 * 86_400, False)
    for manifest in nights.vault.manifests("a0-1"):
        nights.change(manifest, started_at=None)
    judged = nights.judged(2)
    assert judged.problems == ("no backup of known age: this vault started none of those that it holds",)


def test_a_start_in_the_future_does_not_count_whatever_the_id_says(nights: Nights) -> None:
    _, odd = nights.add(0, 1)
    nights.change(odd, started_at="2030-01-01T00:00:00Z")
    judged = nights.judged(1)
    assert judged.age == 86_400
    assert judged.warnings == (f"{odd.id} does not count: its manifest says that it was started in the future",)


@pytest.mark.parametrize("spoilt", ["the artifact is missing", "the artifact has 3 bytes", "manifest.json"])
def test_what_is_not_whole_does_not_count_and_is_named(nights: Nights, spoilt: str) -> None:
    _, newest = nights.add(0, 1)
    if spoilt == "manifest.json":
        (nights.vault.root / newest.id / "manifest.json").write_text("{")
    elif spoilt == "the artifact is missing":
        nights.vault.artifact(newest).unlink()
    else:
        nights.vault.artifact(newest).write_bytes(b"abc")
    judged = nights.judged(1)
    assert judged.age == 86_400
    [warning] = judged.warnings
    assert warning.startswith(f"{newest.id} does not count: ")
    assert warning.count(newest.id) == 1
    assert spoilt in warning


def test_only_the_newest_are_read(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = nights.add(*range(6))
    read = []
    get = Vault.get
    monkeypatch.setattr(Vault, "get", lambda vault, artifact_id: (read.append(artifact_id), get(vault, artifact_id))[1])
    nights.judged(5)
    assert read == [manifests[-1].id]


def test_a_place_is_too_far_behind_once_what_it_lacks_is_older_than_the_maximum(nights: Nights) -> None:
    ids = [manifest.id for manifest in nights.add(0, 1, 2)]
    assert nights.judged(2.5, lacking={"nas": ids[2:], "far": []}).fresh
    judged = nights.judged(2.5, lacking={"nas": ids, "far": ids[2:]})
    assert judged.problems == ("nas lacks 2 artifacts older than 24 h 00 min",)
    assert judged.fresh is False


def test_an_id_that_holds_no_time_does_not_hide_the_age_of_the_others(nights: Nights) -> None:
    _, odd = nights.add(0, 1)
    nights.change(odd, id="a0-1/20279999T999999Z-backup")
    folder = nights.vault.root / odd.id
    folder.rename(folder.with_name("20279999T999999Z-backup"))
    judged = nights.judged(0.5)
    assert (judged.fresh, judged.age) == (True, 43_200)
    assert "a0-1/20279999T999999Z-backup: its time lies in the future" in judged.warnings[0]
