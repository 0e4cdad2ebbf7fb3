"""A night on two workers, as two machines would run it, on PostgreSQL and Redis."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from a0backup.vault.lock import is_held, read_holder
from simulator.fleet import SimulatedFleet
from tests.support.parts import ENGINE_PARTS, Engine, Part, engine_on_parts, needed
from tests.support.patience import eventually, patience

NODES = 16
PASSWORD = "Canary7Password"


def register(engine: Engine, folder: Path) -> None:
    settings = {"PATH": os.defpath, "PREFECT_HOME": str(folder / "prefect")} | engine.worker_settings()
    command = [sys.executable, "-m", "a0backup", "engine", "register"]
    ended = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=patience(120))
    assert ended.returncode == 0, ended.stderr


def start_run(engine: Engine, deployment: str, **parameters: str) -> str:
    """Return the id of a new run of the deployment."""
    found = engine.client.get(f"deployments/name/{deployment}").raise_for_status().json()["id"]
    answer = engine.client.post(f"deployments/{found}/create_flow_run", json={"parameters": parameters})
    run_id: str = answer.raise_for_status().json()["id"]
    return run_id


def end_zombies_sooner(engine: Engine) -> None:
    """Make it take as little as three heartbeats of the runs allow, instead of nine minutes."""
    [zombies] = engine.client.post("automations/filter", json={}).raise_for_status().json()
    zombies["trigger"]["within"] = 95
    kept = {key: zombies[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    engine.client.put(f"automations/{zombies['id']}", json=kept).raise_for_status()


def runs_of(worker: Part) -> set[str]:
    """Return the flow runs whose processes belong to the worker."""
    found = set()
    for process in processes_of(worker):
        with contextlib.suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found - {""}


def processes_of(worker: Part) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children(recursive=True)


def sessions(appliances: SimulatedFleet, node: str, vault: Path) -> list[str]:
    """Return the backup runs that called the node, in the order of their calls, by the names of their directories.

    A check calls the node from a directory outside of the vault, at the same time as a run if need be.
    """
    directories = [Path(call["cwd"]) for call in appliances.calls(node)]
    made_by_runs = [path.name for path in directories if path.is_relative_to(vault)]
    return [name for name, _ in itertools.groupby(made_by_runs)]


@pytest.mark.engine
@pytest.mark.slow
def test_each_of_16_nodes_is_stored_once_although_one_of_two_workers_dies_midway(tmp_path: Path) -> None:
    needed(*ENGINE_PARTS)
    operator = tmp_path / "operator"
    operator.mkdir()
    vault = operator / "vault"
    settings = {
        "A0_BACKUP_PASSWORD": PASSWORD,
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    with (
        engine_on_parts(tmp_path / "engine") as engine,
        SimulatedFleet(tmp_path / "sim", NODES, backup_seconds=6) as appliances,
    ):
        appliances.fleet_yaml(operator / "fleet.yaml", max_parallel=5, lock_deadline="5m")
        register(engine, operator)
        end_zombies_sooner(engine)

        first = engine.start_worker("one", operator, **settings)
        night = start_run(engine, "backup-fleet/nightly", fan_out="workers")
        # The night runs on the first worker, so the second is the one to die. A night that died too could not start
        # again the runs that died with it.
        assert eventually(lambda: night in runs_of(first), 60), first.tail()
        second = engine.start_worker("two", operator, **settings)
        # The hourly check may come at any time.
        start_run(engine, "check-fleet/hourly-check")

        def flow_run(run: str) -> dict[str, Any]:
            found: dict[str, Any] = engine.client.get(f"flow_runs/{run}").raise_for_status().json()
            return found

        def state_of(run: str) -> dict[str, str]:
            found: dict[str, str] = flow_run(run)["state"]
            return found

        def stored() -> int:
            return len(list(vault.glob("*/*/manifest.json")))

        def at_work() -> set[str]:
            """Return the nodes that a run of the second worker is in the middle of, with nothing stored yet."""
            its_own = {process.pid for process in processes_of(second)}
            locks = [
                lock
                for lock in vault.glob("*/lock")
                if is_held(lock) and (holder := read_holder(lock)) and holder.pid in its_own
            ]
            begun = {lock.parent for lock in locks if (lock.parent / "journal-backup.json").exists()}
            return {folder.name for folder in begun if not list(folder.glob("*/manifest.json"))}

        def caught() -> bool:
            """Return whether the worker now stands still in the middle of nodes."""
            if stored() < 4 or not at_work():
                return False
            second.stand_still()
            if at_work():
                return True
            second.go_on()
            return False

        assert eventually(caught, 900), first.tail() + second.tail()
        left_behind = at_work()
        # A run that was done with its node may have sent its last state just before it stood still.
        died = {run for run in runs_of(second) if flow_run(run)["parameters"].get("node") in left_behind}
        assert len(died) == len(left_behind)
        second.kill()
        assert stored() < NODES - 2

        assert eventually(lambda: state_of(night)["type"] in ("COMPLETED", "FAILED", "CRASHED"), 900), first.tail()
        assert state_of(night)["type"] == "COMPLETED", state_of(night)

        manifests = Counter(path.parent.parent.name for path in vault.glob("*/*/manifest.json"))
        assert manifests == {f"a0-{number}": 1 for number in range(1, NODES + 1)}
        assert Counter(call["node"] for call in appliances.calls(command="backup")) == manifests
        for node in manifests:
            # Each run appears once, so no two overlapped.
            runs = sessions(appliances, node, vault)
            assert len(runs) == len(set(runs)), node
            assert appliances.holds(node) is None
        # The interrupted nodes were taken over, and the dead runs are known as dead.
        assert left_behind
        for node in left_behind:
            assert len(sessions(appliances, node, vault)) == 2, node
        assert any(not Path(call["cwd"]).is_relative_to(vault) for call in appliances.calls())
        for run in died:
            assert state_of(run)["type"] == "CRASHED"
        [page] = engine.client.post(
            "artifacts/filter",
            json={"artifacts": {"flow_run_id": {"any_": [night]}, "key": {"any_": ["backup-report"]}}},
        ).json()
        assert f"{NODES} node backups" in page["data"]
