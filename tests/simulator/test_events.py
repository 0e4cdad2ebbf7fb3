"""What the nodes held and when, whether a deleted backup was kept, and what others than a0cli do to the nodes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simulator.artifact import fingerprint
from simulator.fleet import SimulatedFleet
from tests.support.patience import patience, until

if TYPE_CHECKING:
    from tests.simulator.conftest import Desk


def store(desk: "Desk", held: dict[str, Any], kind: str = "backup", **artifact: Any) -> Path:
    """Store the node's backup in the vault and return the path of the artifact."""
    folder = desk.fleet.state / "vault" / desk.name / f"20261123T020000Z-{kind}"
    folder.mkdir(parents=True)
    stored = folder / f"{kind}.tar.gz.enc"
    stored.write_bytes(Path(held["path"]).read_bytes())
    recorded = {"file": stored.name, "size": held["size"], "md5": held["md5"], **artifact}
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "kind": kind, "artifact": recorded}))
    return stored


def test_the_events_of_a_node_say_what_it_held_and_whose_call_changed_it(desk: "Desk") -> None:
    with desk.start("backup", "s3cret-word") as start:
        start.communicate(timeout=patience(20))
    until(desk.holds)
    held = desk.holds()
    assert held
    with desk.start("backup-delete") as delete:
        delete.communicate(timeout=patience(20))
    what = {key: held[key] for key in ("name", "md5", "password")}
    assert [{key: value for key, value in event.items() if key not in ("seq", "time")} for event in desk.events()] == [
        {"node": desk.name, "kind": "backup", "by": "a0cli", **event}
        for event in (
            {"event": "started", "name": None, "md5": None, "password": None, "pid": start.pid},
            {"event": "complete", **what, "pid": start.pid},
            {"event": "deleted", **what, "pid": delete.pid, "kept": False},
        )
    ]
    events = desk.fleet.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert "s3cret-word" not in (desk.fleet.state / "events.jsonl").read_text()


def test_events_distinguish_work_by_hand_from_a0cli(desk: "Desk") -> None:
    desk.put()
    desk.fleet.remove(desk.name)
    desk.fleet.hand_start(desk.name, password="theirs")
    until(desk.holds)
    desk.run("backup-delete")
    assert [(event["event"], event["by"], event["pid"] is None) for event in desk.events()] == [
        ("complete", "hand", True),
        ("removed", "hand", True),
        ("started", "hand", True),
        ("complete", "hand", True),
        ("deleted", "a0cli", False),
    ]


def test_a_call_that_changes_nothing_on_the_node_is_not_an_event(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-delete", "false_delete", times=1)
    for command in (["backup-delete"], ["backup", "P"], ["backup-status"], ["backup-retrieve"]):
        desk.run(*command)
    assert [event["event"] for event in desk.events()] == ["complete"]


def test_a_deletion_is_recorded_as_kept_if_the_vault_holds_those_bytes(desk: "Desk") -> None:
    store(desk, desk.put())
    desk.run("backup-delete")
    assert [event.get("kept", "no key") for event in desk.events()] == ["no key", True]


def lacks_its_end(stored: Path) -> None:
    os.truncate(stored, stored.stat().st_size - 1)


def has_a_wrong_bit(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)


def is_gone(stored: Path) -> None:
    stored.unlink()


def has_no_manifest(stored: Path) -> None:
    (stored.parent / "manifest.json").unlink()


def has_half_a_manifest(stored: Path) -> None:
    manifest = stored.parent / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-4])


def has_a_manifest_of_another_shape(stored: Path) -> None:
    (stored.parent / "manifest.json").write_text('["backup"]')


def lies_deeper(stored: Path) -> None:
    deeper = stored.parent.parent / "quarantine"
    deeper.mkdir()
    stored.parent.rename(deeper / stored.parent.name)


def lies_under_another_node(stored: Path) -> None:
    stored.parent.parent.rename(stored.parent.parent.with_name(f"not-{stored.parent.parent.name}"))


@pytest.mark.parametrize(
    "damaged",
    [
        lacks_its_end,
        has_a_wrong_bit,
        is_gone,
        has_no_manifest,
        has_half_a_manifest,
        has_a_manifest_of_another_shape,
        lies_deeper,
        lies_under_another_node,
    ],
)
def test_a_deletion_is_recorded_as_not_kept_if_the_artifact(desk: "Desk", damaged: Callable[[Path], None]) -> None:
    damaged(store(desk, desk.put()))
    desk.run("backup-delete")
    assert desk.events()[-1]["kept"] is False


@pytest.mark.parametrize("recorded", [{"size": 1}, {"md5": "0" * 32}, {"file": "../elsewhere"}, {"file": None}])
def test_a_deletion_is_recorded_as_not_kept_if_the_manifest_does_not_match_its_artifact(
    desk: "Desk", recorded: dict[str, Any]
) -> None:
    store(desk, desk.put(), **recorded)
    desk.run("backup-delete")
    assert desk.events()[-1]["kept"] is False


def test_a_deletion_is_recorded_as_not_kept_if_the_artifact_is_of_another_kind(desk: "Desk") -> None:
    store(desk, desk.put(), kind="backup-sensitive")
    desk.run("backup-delete")
    assert desk.events()[-1]["kept"] is False


def test_a_late_deletion_is_recorded_when_it_takes_effect(desk: "Desk") -> None:
    stored = store(desk, desk.put())
    desk.tell("backup-delete", "late", seconds=2, reply="ok")
    desk.run("backup-delete")
    assert [event["event"] for event in desk.events()] == ["complete"]
    stored.unlink()
    until(lambda: len(desk.events()) > 1)
    assert (desk.events()[-1]["event"], desk.events()[-1]["kept"]) == ("deleted", False)
    assert desk.events()[-1]["pid"] == desk.calls("backup-delete")[0]["pid"]


def test_a_deletion_by_an_orphan_is_recorded_when_it_takes_effect(desk: "Desk") -> None:
    store(desk, desk.put())
    desk.tell("backup-delete", "kill_parent", when="before", orphan=2)
    program = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", program, *desk.argv("backup-delete")]
    with subprocess.Popen(command, cwd=desk.directory) as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    assert len(desk.events()) == 1
    until(lambda: len(desk.events()) > 1)
    assert (desk.events()[-1]["event"], desk.events()[-1]["kept"]) == ("deleted", True)


def test_a_backup_started_by_hand_is_in_progress_then_found_and_blocks_another(desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=2)
    desk.fleet.hand_start(desk.name, password="theirs")
    assert desk.status() == {"message": "Backup in progress"}
    assert desk.run("backup", "P").returncode == 1
    with pytest.raises(ValueError, match="Backup already in progress"):
        desk.fleet.hand_start(desk.name, password="theirs")
    until(desk.holds)
    held = desk.holds()
    assert held
    assert held["password"] == fingerprint("theirs")
    assert [call["outcome"] for call in desk.calls("backup")] == ["refused"], "only a0cli is on record"


def test_the_other_kinds_can_be_started_by_hand_too(desk: "Desk") -> None:
    desk.fleet.hand_start(desk.name, kind="backup-sensitive", password="theirs")
    until(lambda: desk.holds("backup-sensitive"))
    assert desk.holds() is None


def test_two_appliances_can_swap_places_while_their_ports_stay(desk: "Desk", other_desk: "Desk") -> None:
    one, other = desk.put(), other_desk.put()
    desk.tell("backup-status", "pretty", times=1)
    desk.fleet.swap(desk.name, other_desk.name)
    assert desk.run("backup-status").stdout.startswith("{\n"), "a fault stays with its address"
    assert desk.status()["arguments"]["md5"] == other["md5"]
    assert other_desk.status()["arguments"]["md5"] == one["md5"]
    assert [event["md5"] for event in desk.events()] == [one["md5"], other["md5"]]
    assert (other_desk.events()[-1]["event"], other_desk.events()[-1]["md5"]) == ("swapped", one["md5"])
    desk.run("backup-delete")
    assert desk.holds() is None
    assert other_desk.holds() == one
    assert desk.events()[-1]["md5"] == other["md5"]


def test_a_backup_in_progress_moves_with_its_appliance(desk: "Desk", other_desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=2)
    desk.run("backup", "P")
    desk.fleet.swap(desk.name, other_desk.name)
    assert desk.status() == {"message": "No backup found"}
    assert other_desk.status() == {"message": "Backup in progress"}
    until(other_desk.holds)
    assert [event["event"] for event in desk.events()] == ["started"]
    assert [event["event"] for event in other_desk.events()] == ["complete"]


def test_no_two_backups_are_alike_even_after_a_swap(desk: "Desk", other_desk: "Desk") -> None:
    made = []
    for _ in range(2):
        for each in (desk, other_desk):
            made.append(each.put()["md5"])
            each.fleet.remove(each.name)
        desk.fleet.swap(desk.name, other_desk.name)
    assert len(set(made)) == 4


@pytest.mark.parametrize("nodes", [None, [], ["a0-1"], ["a0-1", "a0-1"], ["a0-1", "no-node"], "a0-1"])
def test_a_swap_of_anything_but_two_nodes_is_refused(shared_fleet: SimulatedFleet, nodes: object) -> None:
    with pytest.raises(ValueError, match="swap is for the names of two nodes"):
        shared_fleet.order("swap", nodes=nodes)


def test_without_a_vault_nothing_is_recorded_as_kept_and_a_second_server_continues_the_record(tmp_path: Path) -> None:
    for _ in range(2):
        with SimulatedFleet(tmp_path, 1) as fleet:
            fleet.put("a0-1", password="P")
            a0cli = [str(fleet.a0cli), "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"])]
            for command in ("update-commands", "backup-delete"):
                subprocess.run([*a0cli, command], cwd=fleet.key_dir, check=True, capture_output=True)
            events = fleet.events("a0-1")
    assert [(event["seq"], event["event"]) for event in events] == [
        (1, "complete"),
        (2, "deleted"),
        (3, "complete"),
        (4, "deleted"),
    ]
    assert events[-1]["kept"] is None
