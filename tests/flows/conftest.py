"""A simulated fleet and its fleet.yaml for each flow test, and what the engine recorded of a run."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from simulator.fleet import SimulatedFleet

PASSWORD = "Canary7Password"


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=3) as fleet:
        yield fleet


@pytest.fixture
def fleet_yaml(appliances: SimulatedFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("A0_BACKUP_PASSWORD", PASSWORD)
    return appliances.fleet_yaml(tmp_path / "fleet.yaml")


class Recorded:
    """What the engine's API returns for a flow run once all of it is recorded."""

    def __init__(self, flow_run: Any, task_runs: list[Any], artifacts: list[Any], logs: list[Any]) -> None:
        self.flow_run, self.task_runs, self.artifacts, self.logs = flow_run, task_runs, artifacts, logs

    def states(self, prefix: str) -> list[str]:
        runs = sorted(self.task_runs, key=lambda run: run.start_time)
        return [run.state.name for run in runs if run.name.startswith(prefix)]

    def all_states(self) -> Counter[str]:
        return Counter(run.state.name for run in self.task_runs)


async def recorded(flow_run_id: UUID) -> Recorded:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        ArtifactFilter,
        ArtifactFilterFlowRunId,
        FlowRunFilter,
        FlowRunFilterId,
        LogFilter,
        LogFilterFlowRunId,
    )
    from prefect.client.schemas.sorting import ArtifactSort, LogSort, TaskRunSort

    from deployments.engine_runs import drained
    from tasks.engine_task import task_runs

    assert await drained(flow_run_id, task_runs.pop(str(flow_run_id), set()))
    async with get_client() as client:
        return Recorded(
            await client.read_flow_run(flow_run_id),
            await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
                sort=TaskRunSort.NAME_ASC,
                limit=200,
            ),
            await client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id])),
                sort=ArtifactSort.KEY_ASC,
                limit=50,
            ),
            await client.read_logs(
                log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])),
                sort=LogSort.TIMESTAMP_ASC,
                limit=200,
            ),
        )


def run_and_read(flow: Any, **parameters: Any) -> Recorded:
    """Run the flow to its end in this process and return what the engine recorded of it."""

    async def run() -> Recorded:
        state = await flow(**parameters, return_state=True)
        return await recorded(state.state_details.flow_run_id)

    return asyncio.run(run())


def environment_for(api: str) -> dict[str, str]:
    """Return the environment for an `a0backup` process that uses the shared engine."""
    return {**os.environ, "PREFECT_API_URL": api, "A0_BACKUP_PASSWORD": PASSWORD}
