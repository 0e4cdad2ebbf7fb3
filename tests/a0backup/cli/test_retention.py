"""`a0backup prune`, `keep` and `unkeep`."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.vault.pinned import read_pin
from tests.support.command import a0backup
from tests.support.pruning import Nights
from tests.support.stored import at_terminal


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    nights = Nights(tmp_path, copies=[{"name": "nas", "url": "nas"}])
    nights.add_nights(6)
    return nights


def run(nights: Nights, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return a0backup(command, "--fleet", nights.fleet_yaml, *arguments)


def ids(nights: Nights) -> list[str]:
    """Return the ids in the vault, newest first."""
    return sorted(nights.held(), reverse=True)


def test_a_dry_run_shows_each_artifact_with_every_reason_and_changes_nothing(nights: Nights) -> None:
    newest, *_, oldest = ids(nights)
    ended = run(nights, "prune", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    head, first, *_, last, counts, nas = ended.stdout.splitlines()
    assert head.split() == ["ID", "ACTION", "REASONS"]
    assert first == f"{oldest}  remove  no rule keeps it"
    assert last == f"{newest}  keep    daily; newest with verified contents; keep_min: one of the newest 1"
    assert (counts, nas) == ("3 artifacts to remove, 3 to keep", "nas: 0 artifacts to remove")
    assert len(nights.held()) == 6


def test_a_dry_run_shows_what_would_go_in_each_place_too_and_changes_nothing_there(nights: Nights) -> None:
    assert run(nights, "copy").returncode == 0
    before = nights.held("nas")
    gone = ids(nights)[:2:-1]
    ended = run(nights, "prune", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-4:] == [
        *(f"{each}  remove in nas" for each in gone),
        "nas: 3 artifacts to remove",
    ]
    assert nights.held("nas") == before
    assert run(nights, "prune", "--yes").returncode == 0
    assert nights.held("nas") == before - set(gone)


def test_a_dry_run_shows_what_a_place_would_lose_once_its_own_retention_is_gone(nights: Nights) -> None:
    nights.change(copies=[{"name": "nas", "url": "nas", "retention": {"keep_last": 5, "keep_min": 1}}])
    assert run(nights, "copy").returncode == 0
    *_, older, oldest = ids(nights)
    assert f"{oldest}  remove in nas\nnas: 1 artifact to remove\n" in run(nights, "prune", "--dry-run").stdout
    assert run(nights, "prune", "--yes").returncode == 0
    nights.change(copies=[{"name": "nas", "url": "nas"}])
    shown = run(nights, "prune", "--dry-run").stdout
    assert "0 artifacts to remove, 3 to keep\n" in shown
    assert f"{older}  remove in nas\n" in shown


def test_without_a_terminal_and_without_yes_nothing_goes_in_a_place_and_the_exit_code_says_so(nights: Nights) -> None:
    nights.change(copies=[{"name": "nas", "url": "nas", "retention": {"keep_last": 6}}])
    assert run(nights, "copy").returncode == 0
    assert run(nights, "prune", "--yes").returncode == 0
    nights.change(copies=[{"name": "nas", "url": "nas"}])
    ended = run(nights, "prune")
    assert ended.returncode == 2
    assert "--yes removes 3 in nas without asking" in ended.stderr
    assert len(nights.held("nas")) == 6


def test_a_dry_run_ends_with_3_if_a_place_cannot_be_looked_at(nights: Nights) -> None:
    assert run(nights, "copy").returncode == 0
    (nights.folder / "nas").rename(nights.folder / "unmounted")
    ended = run(nights, "prune", "--dry-run")
    assert ended.returncode == 3
    assert "3 artifacts to remove, 3 to keep\nnas: not looked at: " in ended.stdout


def test_a_dry_run_names_a_place_that_would_lose_too_much_at_once_without_force(nights: Nights) -> None:
    nights.change(copies=[{"name": "nas", "url": "nas", "retention": {"keep_last": 6}}])
    assert run(nights, "copy").returncode == 0
    assert run(nights, "prune", "--yes").returncode == 0
    nights.change(
        copies=[{"name": "nas", "url": "nas"}], retention=nights.settings["retention"] | {"prune_most": "40%"}
    )
    refused = run(nights, "prune", "--dry-run")
    assert refused.returncode == 3
    assert "3 of 6 artifacts would go at once, more than prune_most (40%)" in refused.stdout
    assert "nas: 3 artifacts to remove\n" in run(nights, "prune", "--dry-run", "--force").stdout
    assert run(nights, "prune", "--yes").returncode == 3
    assert len(nights.held("nas")) == 6
    assert run(nights, "prune", "--yes", "--force").returncode == 0
    assert len(nights.held("nas")) == 3


def test_json_has_id_action_and_reasons(nights: Nights) -> None:
    rows = json.loads(run(nights, "prune", "--dry-run", "--json").stdout)
    assert [row["action"] for row in rows] == ["remove"] * 3 + ["keep"] * 3
    assert rows[3] == {"id": ids(nights)[2], "action": "keep", "reasons": ["daily"]}


def test_yes_prunes_the_vault_and_its_places_without_asking(nights: Nights) -> None:
    assert run(nights, "copy").returncode == 0
    kept = set(ids(nights)[:3])
    ended = run(nights, "prune", "--yes")
    assert ended.returncode == 0, ended.stderr
    assert nights.held() == nights.held("nas") == kept
    assert "a0-1: 3 removed" in ended.stderr
    assert "nas: 3 removed" in ended.stderr
    assert run(nights, "verify").returncode == 0
    assert run(nights, "copy").stdout == "nas: 0 copied, 3 held already\n"


def test_without_a_terminal_and_without_yes_nothing_goes_and_the_exit_code_says_so(nights: Nights) -> None:
    ended = run(nights, "prune")
    assert ended.returncode == 2
    assert "3 artifacts to remove" in ended.stdout
    assert "--yes removes 3 artifacts without asking" in ended.stderr
    assert len(nights.held()) == 6


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 6), ("", 1, 6), ("y", 0, 3)])
def test_at_a_terminal_it_shows_the_plan_and_asks(nights: Nights, answer: str, code: int, left: int) -> None:
    ended, shown = at_terminal(
        "prune", "--fleet", nights.fleet_yaml, cwd=nights.folder, answers=[answer], prompt=r"\[y/N\]: $"
    )
    assert shown.index("no rule keeps it") < shown.index("remove 3 artifacts?")
    assert (ended, len(nights.held())) == (code, left)


def test_a_refused_prune_says_why_and_force_does_it(nights: Nights) -> None:
    nights.change(retention={"keep_last": 1, "keep_min": 1})
    for arguments in (["--yes"], ["--dry-run"]):
        ended = run(nights, "prune", *arguments)
        assert ended.returncode == 1
        assert "a0-1: 5 of 6 artifacts would go at once" in ended.stderr
        assert len(nights.held()) == 6
    assert run(nights, "prune", "--yes", "--force").returncode == 0
    assert len(nights.held()) == 1


def test_without_a_retention_there_is_nothing_to_prune(nights: Nights) -> None:
    del nights.settings["retention"]
    nights.change()
    ended = run(nights, "prune", "--yes")
    assert ended.returncode == 2
    assert "has no `retention`, so all artifacts stay" in ended.stderr
    assert len(nights.held()) == 6


def test_a_place_that_fails_ends_prune_with_3_after_the_vault_was_pruned(nights: Nights) -> None:
    assert run(nights, "copy").returncode == 0
    (nights.folder / "nas").rename(nights.folder / "unmounted")
    ended = run(nights, "prune", "--yes")
    assert ended.returncode == 3
    assert "nas: 0 removed; " in ended.stderr
    assert len(nights.held()) == 3


def test_keep_pins_an_artifact_and_unkeep_lets_it_go(nights: Nights) -> None:
    oldest = ids(nights)[-1]
    day = datetime.now(UTC).date() + timedelta(days=30)
    ended = run(nights, "keep", oldest, "--until", day, "--because", "before the\nupgrade")
    assert ended.returncode == 0, ended.stderr
    assert f"{oldest}: pinned until {day + timedelta(days=1)}T00:00:00Z: before the upgrade" in ended.stdout
    file = nights.vault.root / oldest / "pinned.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(file.read_text())) == {"schema", "until", "because", "pinned_at"}
    assert "pinned until" in run(nights, "show", oldest).stdout
    assert run(nights, "prune", "--yes").returncode == 0
    assert oldest in nights.held()
    assert run(nights, "unkeep", oldest).stdout == f"{oldest}: not pinned any more\n"
    assert run(nights, "unkeep", oldest).stdout == f"{oldest}: was not pinned\n"
    assert run(nights, "prune", "--yes").returncode == 0
    assert oldest not in nights.held()


def test_a_pin_ends_with_its_day_in_the_time_zone_of_the_retention(nights: Nights) -> None:
    nights.change(retention={"keep_last": 1, "timezone": "Asia/Tokyo"})
    newest = ids(nights)[0]
    assert run(nights, "keep", newest, "--until", "2099-12-31").returncode == 0
    pin = read_pin(nights.vault.root / newest)
    assert pin is not None
    assert pin.until == datetime(2099, 12, 31, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a0-1/20200101T000000Z-backup"], "has no artifact"),
        (["a0-1", "--until", "tomorrow"], "'tomorrow' is no date"),
        (["a0-1", "--until", "2020-01-01"], "2020-01-01 is over"),
        (["a0-1", "--until", "9999-12-31"], "is no date"),
        (["a0-1", "--because", "x" * 501], "at most 500 characters"),
    ],
)
def test_a_pin_that_cannot_be_meant_is_refused(nights: Nights, arguments: list[str], said: str) -> None:
    ended = run(nights, "keep", *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert list(nights.vault.root.glob("*/*/pinned.json")) == []
