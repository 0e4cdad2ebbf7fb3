"""A node's backup as a run of its own: what the night does where that run is not taken up, not started, or dies."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from a0backup.errors import EngineError
from a0backup.fleet import Fleet
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.deployed import Deployed, deployed_in
from tests.deployments.test_server import eventually

pytestmark = pytest.mark.engine


@pytest.fixture
def deployed(tmp_path: Path, own_home: Path, appliances: SimulatedFleet) -> Iterator[Deployed]:
    folder = tmp_path / "operator"
    folder.mkdir()
    # Short: a start waits that long for what an earlier run may have sent.
    appliances.fleet_yaml(
        folder / "fleet.yaml", kinds=["backup", "backup-sensitive"], lock_deadline="4s", a0cli={"call_timeout": "4s"}
    )
    with own_server(own_home) as api, deployed_in(folder, api) as place:
        yield place


@pytest.fixture
def nobody(engine: str, appliances: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> "Nobody":
    """A deployment whose runs no worker takes, and this process where the night's would be."""
    appliances.fleet_yaml(fleet_yaml, lock_deadline="2s")
    nobody = Nobody(Fleet.load(fleet_yaml), f"nobodys-{uuid4()}")
    monkeypatch.setattr("flows.node_runs.OF_FLEET", f"backup-node/{nobody.deployment}")
    monkeypatch.setattr("flows.node_runs.POLL", 0.1)
    return nobody


class Nobody:
    def __init__(self, fleet: Fleet, deployment: str) -> None:
        self._fleet, self.deployment = fleet, deployment

    async def register(self) -> None:
        from prefect.client.orchestration import get_client

        async with get_client() as client:
            flow = await client.create_flow_from_name("backup-node")
            await client.create_deployment(flow, self.deployment)

    async def refused(self) -> EngineError:
        """What the night says of a node for which no run comes to an end."""
        from flows.node_runs import run_elsewhere

        with pytest.raises(EngineError) as raised:
            await run_elsewhere(self._fleet.node("a0-1"), self._fleet, "as in fleet.yaml")
        return raised.value

    async def runs(self) -> list[Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

        wanted = DeploymentFilter(name=DeploymentFilterName(any_=[self.deployment]))
        async with get_client() as client:
            return await client.read_flow_runs(deployment_filter=wanted)

    @asynccontextmanager
    async def takes_up(self) -> AsyncIterator[None]:
        """Be a worker on a machine that dies before it starts what it took up."""
        from prefect.client.orchestration import get_client
        from prefect.states import Pending

        async def take_up() -> None:
            async with get_client() as client:
                while True:
                    for run in await self.runs():
                        if run.state.is_scheduled():
                            await client.set_flow_run_state(run.id, Pending())
                    await asyncio.sleep(0.1)

        worker = asyncio.create_task(take_up())
        try:
            yield
        finally:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker


async def test_a_run_that_no_worker_takes_up_is_called_off_and_the_report_says_so(nobody: Nobody) -> None:
    await nobody.register()
    error = await nobody.refused()
    assert "no worker took up the run backup-a0-1 within 2 s" in str(error)
    assert "is a worker of the pool running?" in str(error)
    assert [run.state.name for run in await nobody.runs()] == ["Cancelled"]


async def test_a_run_that_its_worker_does_not_start_is_given_up_and_made_again_three_times_at_most(
    nobody: Nobody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.node_runs.STARTS_WITHIN", 0.5)
    await nobody.register()
    async with nobody.takes_up():
        error = await nobody.refused()
    assert "3 runs for the node ended without a word" in str(error)
    runs = await nobody.runs()
    assert [run.state.name for run in runs] == ["Crashed"] * 3
    assert "its worker has not started it" in runs[0].state.message


async def test_where_nothing_is_registered_the_hint_says_how(nobody: Nobody) -> None:
    error = await nobody.refused()
    assert f"there is no deployment backup-node/{nobody.deployment}" in str(error)
    assert "python -m deployments.register" in str(error)


@pytest.mark.slow
def test_what_a_run_has_settled_before_it_died_is_not_made_again(
    deployed: Deployed, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup-sensitive-retrieve", "hang", times=1)
    night = deployed.run("backup-fleet/nightly", nodes=["a0-1"], fan_out="workers").raise_for_status().json()["id"]
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup-sensitive-retrieve")), 90)
    [dies] = [process for process in processes_of_runs(deployed) if process.environ()["PREFECT__FLOW_RUN_ID"] != night]
    for process in [*dies.children(recursive=True), dies]:
        process.kill()

    assert deployed.ends_as("Completed", night, 180)
    assert len(appliances.calls("a0-1", "backup")) == 1
    assert len(appliances.calls("a0-1", "backup-sensitive")) == 1
    stored = [path.parent.name.split("-")[-1] for path in deployed.folder.glob("vault/a0-1/*/manifest.json")]
    assert sorted(stored) == ["backup", "sensitive"]


def processes_of_runs(place: Deployed) -> list[psutil.Process]:
    """The processes that the worker started, one for each run that it has."""
    return [
        process
        for process in psutil.Process(place.worker.pid).children()
        if process.environ().get("PREFECT__FLOW_RUN_ID")
    ]
