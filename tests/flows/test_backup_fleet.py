"""The flow of a whole fleet, on a real engine, against simulated nodes."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import PASSWORD, environment_for, run_and_read
from tests.support.deployed import left_at_work
from tests.support.patience import patience

pytestmark = pytest.mark.engine

A0BACKUP = Path(sys.executable).with_name("a0backup")


def manifests(fleet_yaml: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(fleet_yaml.parent.glob("vault/*/*/manifest.json"))]


def run_killed(fleet_yaml: Path, api: str) -> None:
    """Run the fleet in a separate process that the simulator is told to kill."""
    command = [A0BACKUP, "run", "--fleet", fleet_yaml]
    ended = subprocess.run(command, env=environment_for(api), capture_output=True, timeout=patience(120))
    assert ended.returncode == -signal.SIGKILL


def test_every_node_is_stored_and_its_backup_is_deleted_on_the_node(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert [m["node"]["name"] for m in manifests(fleet_yaml)] == ["a0-1", "a0-2", "a0-3"]
    assert [appliances.holds(node["name"]) for node in appliances.nodes] == [None] * 3
    assert not list(fleet_yaml.parent.glob("vault/*/journal*"))
    assert not left_at_work(fleet_yaml.parent / "vault")


def test_every_step_is_recorded_under_the_name_of_its_node_and_none_is_rolled_back(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    run = run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-1"])
    assert {task_run.name for task_run in run.task_runs} == {
        "backup-a0-1",
        "update-commands-a0-1",
        "ping-a0-1",
        "status-backup-a0-1",
        "start-backup-a0-1",
        "await-backup-a0-1",
        "retrieve-backup-a0-1",
        "verify-backup-a0-1",
        "inspect-backup-a0-1",
        "store-backup-a0-1",
        "delete-backup-a0-1",
        "confirm-delete-backup-a0-1",
        "publish-report",
    }
    assert set(run.all_states()) == {"Completed"}


def test_polling_shows_as_awaiting_retry_of_the_await_step(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from prefect.client.orchestration import get_client

    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-1", "backup", "duration", seconds=2)
    run = run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-1"])
    [awaited] = [task_run for task_run in run.task_runs if task_run.name == "await-backup-a0-1"]
    assert awaited.run_count >= 2

    async def history() -> list[str]:
        async with get_client() as client:
            return [state.name for state in await client.read_task_run_states(awaited.id)]

    assert "AwaitingRetry" in asyncio.run(history())


def test_one_failed_node_fails_the_run_after_all_nodes_were_tried(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-1", "backup-status", "no_md5")
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "a0-1" in run.flow_run.state.message
    assert "md5" in run.flow_run.state.message
    assert [m["node"]["name"] for m in manifests(fleet_yaml)] == ["a0-2", "a0-3"]
    assert run.states("backup-a0-1") == ["Failed"]
    assert not appliances.calls("a0-1", "backup-retrieve")


def test_a_mismatch_is_retrieved_three_times_and_the_node_keeps_its_backup(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-2", "backup-retrieve", "flip")
    run = run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-2"])
    assert run.states("retrieve-backup-a0-2") == ["Completed"] * 3
    assert run.states("verify-backup-a0-2") == ["Failed"] * 3
    held = appliances.holds("a0-2")
    assert held is not None
    assert held["md5"] in run.flow_run.state.message
    [reason] = fleet_yaml.parent.glob("vault/a0-2/quarantine/*/reason.json")
    assert json.loads(reason.read_text())["md5_of_node"] == held["md5"]
    assert not manifests(fleet_yaml)


def test_a_temporary_mismatch_ends_well_without_a_rolled_back_step(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-2", "backup-retrieve", "drop", times=1, fraction=0.5)
    appliances.tell("a0-2", "ping", "exit", times=1, code=7)
    run = run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-2"])
    assert run.flow_run.state.name == "Completed"
    assert "RolledBack" not in run.all_states()
    assert len(appliances.calls("a0-2", "ping")) == 2


@pytest.mark.parametrize(
    ("command", "when", "retrieve", "store"),
    [
        ("backup-retrieve", "after", "Cached", "Completed"),  # killed between retrieve and store
        ("backup-delete", "before", "Cached", "Cached"),  # killed between store and delete
    ],
)
def test_after_a_kill_nothing_already_retrieved_is_retrieved_again(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path, command: str, when: str, retrieve: str, store: str
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.fleet_yaml(fleet_yaml, nodes=appliances.nodes[:1])
    appliances.tell("a0-1", command, "kill_parent", times=1, when=when)
    run_killed(fleet_yaml, engine)
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert run.states("retrieve-backup-a0-1") == [retrieve]
    assert run.states("store-backup-a0-1") == [store]
    assert len(appliances.calls("a0-1", "backup-retrieve")) == 1
    assert len(appliances.calls("a0-1", "backup")) == 1
    assert len(manifests(fleet_yaml)) == 1
    assert appliances.holds("a0-1") is None
    [work] = fleet_yaml.parent.glob("vault/a0-1/work")
    assert not list(work.iterdir())


def test_a_retry_of_a_failed_run_leaves_stored_nodes_alone(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow_async
    from prefect.states import Scheduled

    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-1", "backup-retrieve", "truncate")
    parameters = {"fleet": fleet_yaml, "nodes": ["a0-1", "a0-2"], "existing": "as in fleet.yaml"}
    first = run_and_read(backup_fleet, **parameters)
    assert first.flow_run.state.name == "Failed"
    appliances.forget()

    async def retry() -> str:
        async with get_client() as client:
            await client.set_flow_run_state(first.flow_run.id, Scheduled(name="AwaitingRetry"), force=True)
            flow_run = await client.read_flow_run(first.flow_run.id)
            await run_flow_async(backup_fleet, flow_run=flow_run, parameters=parameters, return_type="state")
            return (await client.read_flow_run(first.flow_run.id)).state.name

    assert asyncio.run(retry()) == "Completed"
    assert len(manifests(fleet_yaml)) == 2
    assert len(appliances.calls("a0-2", "backup")) == 1
    assert len(appliances.calls("a0-1", "backup")) == 1


def test_the_report_on_the_runs_page_names_every_node(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.fleet_yaml(
        fleet_yaml, a0cli={"call_timeout": f"{patience(1.5)}s"}
    )  # how long a deletion may take to take effect
    appliances.tell("a0-3", "backup-delete", "false_delete")
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    on_page = {artifact.key: artifact for artifact in run.artifacts}
    table, markdown = on_page["backup-table"], on_page["backup-report"]
    assert [row["node"] for row in json.loads(table.data)] == ["a0-1", "a0-2", "a0-3"]
    ids = [m["id"] for m in manifests(fleet_yaml)]
    assert len(ids) == 3
    for text in [*ids, "not deleted on the node"]:
        assert text in markdown.data.replace("\\", "")
    assert run.flow_run.state.name == "Failed"
    assert appliances.holds("a0-3") is not None


def test_the_password_is_nowhere_in_what_the_engine_stores(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.fleet_yaml(fleet_yaml, a0cli={"call_timeout": "2s"})
    # Nodes that repeat the password, on success and on failure.
    appliances.tell("a0-1", "backup", "say", stdout=f"Backup in progress with {PASSWORD}")
    appliances.tell("a0-2", "backup", "refuse", message=f"unknown password {PASSWORD}", exit=1, stream="stderr")
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    kept = repr([vars(part) for part in (run.flow_run, *run.task_runs, *run.artifacts, *run.logs)])
    assert "a0-2" in kept
    assert PASSWORD not in kept
    for path in fleet_yaml.parent.glob("vault/**/*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()


def test_the_cores_log_lines_are_on_the_runs_page(engine: str, appliances: SimulatedFleet, fleet_yaml: Path) -> None:
    command = [A0BACKUP, "run", "--fleet", fleet_yaml, "--json", "a0-1"]
    environment = environment_for(engine)
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=patience(120), text=True)
    assert ended.returncode == 0, ended.stderr
    [outcome] = json.loads(ended.stdout)["backups"]
    assert re.fullmatch(r"a0-1/\d{8}T\d{6}Z-backup", outcome["id"])

    async def lines() -> list[str]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
        from prefect.client.schemas.sorting import LogSort

        flow_run = UUID(manifests(fleet_yaml)[0]["flow_run"])
        async with get_client() as client:
            only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run]))
            return [log.message for log in await client.read_logs(only, sort=LogSort.TIMESTAMP_ASC, limit=200)]

    assert any("nothing is on the node: start a backup" in line for line in asyncio.run(lines()))
