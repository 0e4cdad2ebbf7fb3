"""`a0backup status` as a probe: its exit code, its first line and its rows."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from a0backup.vault.drilled import Drilled, write_drilled
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.command import a0backup
from tests.support.stored import START, store

KEYS = [
    *("node", "kind", "last", "age", "taken_at", "max_age", "fresh", "journal", "holder", "quarantine", "damaged"),
    *("behind", "drilled", "problems", "warnings", "notes", "error"),
]


class Room:
    """A fleet file for two nodes, and a vault with artifacts of chosen ages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.vault = folder, Vault(folder / "vault")
        self.write()

    def write(self, **settings: Any) -> None:
        nodes = [{"name": name, "host": f"{name}.test"} for name in ("a0-1", "a0-2")]
        fleet = {"vault": "vault", "password": {"env": "A0_BACKUP_PASSWORD"}, "nodes": nodes}
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(fleet | settings))

    def store(self, node: str, hours: float, kind: str = "backup") -> Manifest:
        """Store an artifact whose backup was started that many hours ago."""
        started = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=hours)
        nights = (started - START) / timedelta(days=1)
        return store(self.vault.root, "Passw0rd", node=node, kind=kind, nights=nights, size=2_000)

    def status(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return a0backup("status", *arguments, cwd=self.folder)

    def said(self) -> tuple[int, str]:
        """Return the exit code and the first line."""
        ended = self.status()
        assert ended.stderr == ""
        return ended.returncode, ended.stdout.splitlines()[0]

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.status("--json").stdout)
        return rows


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_before_the_first_night_every_node_is_missing_a_backup(room: Room) -> None:
    assert room.said() == (
        4,
        "CRITICAL - 2 of 2 backups not fresh: a0-1 backup: no backup yet; a0-2 backup: no backup yet",
    )
    assert [(row["last"], row["age"], row["fresh"]) for row in room.rows()] == [(None, None, False)] * 2
    assert f"there is no vault at {room.vault.root} yet: the first run makes it" in room.status().stdout
    assert not room.vault.root.exists()


def test_fresh_backups_are_ok(room: Room) -> None:
    room.store("a0-1", hours=3.01)
    room.store("a0-2", hours=20.01)
    assert room.said() == (0, "OK - 2 of 2 backups fresh, the oldest is 20 h 01 min old (a0-2 backup)")
    assert room.status().stdout.splitlines()[1].split() == [
        *("a0-1", "backup", "ok", "3", "h", "01", "min"),
        room.rows()[0]["last"],
    ]


def test_the_rows_are_a_contract(room: Room) -> None:
    last = room.store("a0-1", hours=2)
    rows = room.rows()
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert 7_200 <= rows[0].pop("age") < 7_300
    assert rows[0] == {
        **{"node": "a0-1", "kind": "backup", "last": last.id, "max_age": 93_600.0, "fresh": True, "error": None},
        **{"taken_at": f"{last.started_at:%Y-%m-%dT%H:%M:%SZ}", "journal": None, "holder": None, "quarantine": None},
        **{"damaged": [], "behind": {}, "drilled": None, "problems": [], "warnings": [], "notes": []},
    }


def test_one_backup_that_is_too_old_is_critical_and_named(room: Room) -> None:
    room.store("a0-1", hours=3)
    room.store("a0-2", hours=27)
    code, first = room.said()
    assert code == 4
    assert first == (
        "CRITICAL - 1 of 2 backups not fresh: a0-2 backup: 27 h 00 min old, and 26 h 00 min is the maximum"
    )
    assert [row["fresh"] for row in room.rows()] == [True, False]


def test_a_backup_that_the_last_verification_did_not_find_whole_does_not_count(room: Room) -> None:
    older = room.store("a0-1", 30)
    newest = room.store("a0-1", 6)
    room.store("a0-2", 6)
    file = room.vault.root / newest.id / newest.artifact.file
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert room.said()[0] == 0
    verified = a0backup("verify", cwd=room.folder)
    assert (verified.returncode, verified.stdout.splitlines()[0].count(newest.id)) == (4, 1)
    code, first = room.said()
    assert (code, first.startswith("CRITICAL - 1 of 2 backups not fresh: a0-1 backup: 30 h 00 min old")) == (4, True), (
        first
    )
    row = room.rows()[0]
    assert row["last"] == older.id
    assert row["warnings"] == [f"{newest.id} does not count: the last `a0backup verify` did not find it whole"]
    file.write_bytes(whole)
    assert a0backup("verify", cwd=room.folder).returncode == 0
    assert room.said()[0] == 0


def test_each_kind_has_its_own_age_unless_the_build_of_the_node_lacks_it(room: Room) -> None:
    nodes = [{"name": "a0-1", "host": "a", "build": 13451}, {"name": "a0-2", "host": "b", "build": 9000}]
    room.write(kinds=["backup", "backup-sensitive"], nodes=nodes)
    room.store("a0-1", hours=1)
    room.store("a0-2", hours=1)
    assert room.said() == (4, "CRITICAL - 1 of 3 backups not fresh: a0-1 backup-sensitive: no backup yet")


def test_the_fleet_and_each_node_say_how_old_is_too_old(room: Room) -> None:
    room.store("a0-1", hours=30)
    room.store("a0-2", hours=100)
    slow = {"name": "a0-2", "host": "b", "freshness": {"max_age": "8d"}}
    room.write(freshness={"max_age": "31h"}, nodes=[{"name": "a0-1", "host": "a"}, slow])
    assert room.said()[0] == 0
    room.write(freshness={"max_age": "29h"}, nodes=[{"name": "a0-1", "host": "a"}, slow])
    assert room.said()[0] == 4
    assert [row["max_age"] for row in room.rows()] == [104_400.0, 691_200.0]


def test_ages_are_shown_and_never_too_old_where_freshness_is_off(room: Room) -> None:
    room.write(freshness={"max_age": "off"}, drills={"max_age": "off"})
    room.store("a0-1", hours=9_000)
    assert room.said() == (0, "OK - 2 backups, 2 not watched, the oldest is 375 d 00 h old (a0-1 backup)")
    assert [row["fresh"] for row in room.rows()] == [None, None]
    nodes = [{"name": "a0-1", "host": "a", "freshness": {"max_age": "off"}}, {"name": "a0-2", "host": "b"}]
    room.write(nodes=nodes, drills={"max_age": "off"})
    room.store("a0-2", hours=2)
    assert room.said() == (0, "OK - 1 of 2 backups fresh, 1 not watched, the oldest is 2 h 00 min old (a0-2 backup)")


def test_a_backup_from_the_future_is_said_and_is_not_taken_for_fresh(room: Room) -> None:
    room.store("a0-1", hours=1)
    room.store("a0-2", hours=1)
    ahead = room.store("a0-1", hours=-20_000)
    code, first = room.said()
    assert code == 0
    assert first.startswith("WARNING - 2 of 2 backups fresh, ")
    assert f"{ahead.id}: its time lies in the future" in first
    room.store("a0-2", hours=-5)
    code, first = room.said()
    assert code == 4
    assert "a0-2 backup: a0-2/" in first
    assert "ahead of this machine's clock, so no age is known" in first


def test_a_place_is_behind_only_with_what_is_older_than_the_maximum(room: Room) -> None:
    room.write(copies=[{"name": "nas", "url": "nas"}], nodes=[{"name": "a0-1", "host": "a"}])
    room.store("a0-1", hours=20)
    assert room.said()[0] == 0
    assert "  copies         nas is 1 behind; " in room.status().stdout
    room.store("a0-1", hours=30)
    assert room.said() == (
        4,
        "CRITICAL - 1 of 1 backup not fresh: a0-1 backup: nas lacks 1 artifact older than 26 h 00 min",
    )
    assert a0backup("copy", cwd=room.folder).returncode == 0
    assert room.said()[0] == 0


def test_what_a_node_or_a_file_says_cannot_begin_the_numbers_of_a_monitoring_program(room: Room) -> None:
    room.store("a0-1", hours=1)
    quarantined = room.vault.folder("a0-1") / "quarantine" / "20261122T020000Z-backup"
    quarantined.mkdir(parents=True)
    (quarantined / "reason.json").write_text(json.dumps({"reason": "bad |age=0;; \n OK - \x1b[2J"}))
    shown = room.status().stdout
    assert "  quarantine     " in shown
    assert "bad /age=0;; OK - [2J" in shown
    assert "|" not in shown


def test_a_folder_that_cannot_be_read_is_critical_and_ends_with_1(room: Room) -> None:
    room.store("a0-1", hours=1)
    elsewhere = room.folder / "elsewhere"
    elsewhere.mkdir()
    room.vault.folder("a0-2").symlink_to(elsewhere)
    code, first = room.said()
    assert code == 1
    assert first.startswith("CRITICAL - 1 of 2 backups not fresh: a0-2 backup: ")
    assert "is a link" in first
    assert [row["error"] is None for row in room.rows()] == [True, False]


def test_the_first_line_stays_short_in_a_large_fleet(room: Room) -> None:
    room.write(nodes=[{"name": f"a0-{number}", "host": f"h{number}"} for number in range(100)])
    code, first = room.said()
    assert code == 4
    assert first.endswith("; and 95 more")
    assert len(first) < 500


@pytest.mark.parametrize("max_age", ["0s", "3651d", "26", 26, True, "offf", None])
def test_a_max_age_that_is_none_is_refused_with_what_to_write(room: Room, max_age: object) -> None:
    room.write(freshness={"max_age": max_age})
    ended = room.status()
    assert ended.returncode == 2
    assert "freshness.max_age" in ended.stderr
    assert "; or off" in ended.stderr


def test_an_unknown_key_of_a_node_s_freshness_is_compared_with_the_keys_that_it_has(room: Room) -> None:
    room.write(nodes=[{"name": "a0-1", "host": "a", "freshness": {"maxage": "1d"}}])
    assert "nodes[0].freshness.maxage: unknown key; did you mean max_age?" in room.status().stderr


# -- drills, and what the newest backup lacks --------------------------------------------------------------------------


def drilled(room: Room, manifest: Manifest, days_ago: float, *, problem: str | None = None) -> str:
    """Record a drill of *manifest*, and return its time as it is shown."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days_ago)
    record = Drilled(drilled_at=at, passed=problem is None, level="contents", problem=problem)
    write_drilled(room.vault.root / manifest.id, record)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def one_node(room: Room, **settings: Any) -> None:
    room.write(nodes=[{"name": "a0-1", "host": "a0-1.test"}], **settings)


def test_the_last_drill_of_a_node_is_shown_whichever_artifact_it_read(room: Room) -> None:
    one_node(room)
    old, new = room.store("a0-1", 30), room.store("a0-1", 2)
    drilled(room, new, 3)
    at = drilled(room, old, 2)
    ended = room.status()
    assert f"  drill          {at}: {old.id} opened" in ended.stdout.splitlines()
    assert (ended.returncode, ended.stdout.startswith("OK - ")) == (0, True)
    assert room.rows()[0]["drilled"] == {"id": old.id, "at": at, "passed": True, "problem": None}


def test_a_drill_that_is_too_old_or_never_was_is_a_warning(room: Room) -> None:
    one_node(room)
    old = room.store("a0-1", 24 * 91)
    room.store("a0-1", 2)
    code, line = room.said()
    assert (code, line.startswith("WARNING - ")) == (0, True)
    assert "a0-1 backup: never drilled, and 90 d 00 h is the maximum" in line
    drilled(room, old, 90.5)
    assert "a0-1 backup: last drilled 90 d 12 h ago, and 90 d 00 h is the maximum" in room.said()[1]
    one_node(room, drills={"max_age": "off"})
    assert room.said()[1].startswith("OK - ")


def test_a_new_vault_has_time_for_its_first_drill(room: Room) -> None:
    one_node(room)
    room.store("a0-1", 24 * 89)
    room.store("a0-1", 2)
    assert room.said()[1].startswith("OK - ")


def test_a_drill_that_did_not_pass_is_a_warning_until_another_one_does(room: Room) -> None:
    one_node(room)
    old, new = room.store("a0-1", 30), room.store("a0-1", 2)
    drilled(room, old, 2, problem="the artifact is missing")
    assert f"the last drill of {old.id} did not pass: the artifact is missing" in room.said()[1]
    drilled(room, new, 1)
    assert room.said()[1].startswith("OK - ")


def test_a_newest_backup_that_did_not_pass_its_drill_is_a_warning_whichever_passed_since(room: Room) -> None:
    one_node(room)
    old, new = room.store("a0-1", 30), room.store("a0-1", 2)
    drilled(room, new, 0.05, problem="the artifact is missing")
    drilled(room, old, 0.01)
    [warning] = room.rows()[0]["warnings"]
    assert warning == f"the last drill of {new.id} did not pass: the artifact is missing"
    room.store("a0-1", 1)
    assert room.said()[1].startswith("OK - ")


def test_a_record_from_the_future_or_of_nonsense_is_no_drill(room: Room) -> None:
    one_node(room)
    manifest = room.store("a0-1", 2)
    drilled(room, manifest, -1)
    assert room.rows()[0]["drilled"] is None
    (room.vault.root / manifest.id / "drilled.json").write_text("{")
    assert room.rows()[0]["drilled"] is None


def test_what_the_newest_backup_lacks_of_the_one_before_is_a_warning(room: Room) -> None:
    one_node(room)
    before, last = room.store("a0-1", 26), room.store("a0-1", 2)
    counts = {before.id: 2_000_000, last.id: 0}
    for artifact_id, count in counts.items():
        file = room.vault.root / artifact_id / "manifest.json"
        content = json.loads(file.read_text())
        size = 400 * count
        users = {"name": "auth0.users", "documents": count, "size": size}
        content["verified"] = {"level": "contents", "members": 5, "unpacked_size": 10**6, "collections": [users]}
        file.write_text(json.dumps(content))
    code, line = room.said()
    assert (code, line.startswith("WARNING - 1 of 1 backup fresh")) == (0, True), line
    assert "a0-1 backup: the collection auth0.users is empty; it had 2,000,000 documents" in line
