"""The flow of a single node, as the UI starts it."""

import json
from pathlib import Path

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import run_and_read

pytestmark = pytest.mark.engine


def test_one_node_is_backed_up_and_the_others_are_left_alone(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    run = run_and_read(backup_node, node="a0-2", fleet=fleet_yaml)
    assert run.flow_run.name == "backup-a0-2"
    assert run.flow_run.state.name == "Completed"
    assert {call["node"] for call in appliances.calls()} == {"a0-2"}
    # Nothing comes between a status and the deletion.
    assert [call["command"] for call in appliances.calls()][-3:] == ["backup-status", "backup-delete", "backup-status"]
    assert len(list(fleet_yaml.parent.glob("vault/a0-2/*/manifest.json"))) == 1


def test_an_unknown_node_fails_the_run_with_the_names_in_the_fleet(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    run = run_and_read(backup_node, node="a0-22", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "a0-2" in run.flow_run.state.message
    assert not appliances.calls()


def test_a_foreign_backup_is_kept_before_a_new_one_is_made(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    foreign = appliances.put("a0-1", password="somebody's")
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    kept = [json.loads(path.read_text()) for path in sorted(fleet_yaml.parent.glob("vault/a0-1/*/manifest.json"))]
    modes = {m["artifact"]["md5"]: (m["encryption"]["password"]["mode"], m["started_at"]) for m in kept}
    assert len(kept) == 2
    assert modes[foreign["md5"]] == ("unknown", None)
    [markdown] = [artifact.data for artifact in run.artifacts if artifact.key == "backup-report"]
    assert "did not start" in markdown


def test_a_backup_that_took_the_place_of_the_stored_one_is_not_deleted(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    appliances.tell("a0-1", "backup-retrieve", "replaced", times=1, password="theirs")
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    [stored] = [json.loads(path.read_text()) for path in fleet_yaml.parent.glob("vault/a0-1/*/manifest.json")]
    assert appliances.holds("a0-1")["md5"] != stored["artifact"]["md5"]
    assert not appliances.calls("a0-1", "backup-delete")


def test_existing_fail_leaves_the_node_alone(engine: str, appliances: SimulatedFleet, fleet_yaml: Path) -> None:
    from flows.backup_node import backup_node

    foreign = appliances.put("a0-1", password="somebody's")
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml, existing="fail")
    assert run.flow_run.state.name == "Failed"
    assert "did not start" in run.flow_run.state.message
    assert appliances.holds("a0-1")["md5"] == foreign["md5"]


@pytest.mark.parametrize(
    ("fault", "command", "settings"),
    [
        ("refuse", "ping", {"message": "error: unknown command 'ping'\n", "exit": 1, "stream": "stderr"}),
        ("no_role", None, {}),
    ],
)
def test_a_permanent_fault_fails_at_once(
    engine: str,
    appliances: SimulatedFleet,
    fleet_yaml: Path,
    fault: str,
    command: str | None,
    settings: dict[str, object],
) -> None:
    from flows.backup_node import backup_node

    appliances.tell("a0-1", command, fault, **settings)
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert len(appliances.calls("a0-1", "ping")) == 1
    assert not appliances.calls("a0-1", "backup")


def test_a_build_that_is_too_old_is_refused_without_touching_the_node(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    appliances.fleet_yaml(fleet_yaml, nodes=[appliances.nodes[0] | {"build": 6867}])
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "6868" in run.flow_run.state.message
    assert not appliances.calls()


def test_an_await_step_ends_at_its_deadline_and_the_next_run_resumes_it(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    appliances.fleet_yaml(fleet_yaml, polling={"interval": "1s", "max_interval": "1s", "deadline": "2s"})
    appliances.tell("a0-1", "backup-status", "in_progress", times=20)
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "no finished backup within 2 s" in run.flow_run.state.message
    appliances.forget()
    assert run_and_read(backup_node, node="a0-1", fleet=fleet_yaml).flow_run.state.name == "Completed"
    assert len(appliances.calls("a0-1", "backup")) == 1


def test_the_status_reveals_a_start_whose_reply_was_lost(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    appliances.tell("a0-1", "backup", "lost_reply", times=1)
    appliances.tell("a0-1", "backup-delete", "lost_reply", times=1)
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert len(appliances.calls("a0-1", "backup")) == 1
    assert len(appliances.calls("a0-1", "backup-delete")) == 1


def test_both_kinds_of_a_node_are_stored_one_after_the_other(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_node import backup_node

    appliances.fleet_yaml(fleet_yaml, kinds=["backup", "backup-sensitive"])
    run = run_and_read(backup_node, node="a0-1", fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    kinds = [path.name for path in sorted(fleet_yaml.parent.glob("vault/a0-1/*/*.tar.gz.enc"))]
    assert sorted(kinds) == ["backup-sensitive.tar.gz.enc", "backup.tar.gz.enc"]


def test_each_call_in_a_flow_of_the_operators_own_makes_a_backup(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from prefect import flow

    from flows.backup_node import backup_node

    @flow
    async def upgrade() -> None:
        await backup_node("a0-1", fleet=fleet_yaml)
        await backup_node("a0-1", fleet=fleet_yaml)

    run = run_and_read(upgrade)
    assert run.flow_run.state.name == "Completed"
    assert len(appliances.calls("a0-1", "backup")) == 2
    assert len(list(fleet_yaml.parent.glob("vault/a0-1/*/manifest.json"))) == 2
