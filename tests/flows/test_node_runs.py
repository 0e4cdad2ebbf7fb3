"""A node's backup as a separate run: what the night does if that run is not taken, is not started, or dies."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from pydantic import TypeAdapter

from a0backup.errors import EngineError, RefusedError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.report.outcomes import Ending, Outcome, outcome_of
from a0backup.vault.lock import read_holder
from deployments.home import use_api
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.support.deployed import Deployed, deployed_in, kill_with_all_it_started
from tests.support.patience import eventually, patience
from tests.system.faults.engines import operators_server

pytestmark = pytest.mark.engine


@pytest.fixture
def deployed(tmp_path: Path, own_home: Path, appliances: SimulatedFleet) -> Iterator[Deployed]:
    folder = tmp_path / "operator"
    folder.mkdir()
    # Short: a start waits this long for what an earlier run may have sent.
    appliances.fleet_yaml(
        folder / "fleet.yaml", kinds=["backup", "backup-sensitive"], lock_deadline="4s", a0cli={"call_timeout": "4s"}
    )
    with own_server(own_home) as api, deployed_in(folder, api) as place:
        yield place


@pytest.fixture
def nobody(engine: str, appliances: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> "Nobody":
    """Return a deployment whose runs no worker takes. This process stands in for the night's."""
    appliances.fleet_yaml(fleet_yaml, lock_deadline=f"{patience(1.2):.1f}s")
    nobody = Nobody(load_fleet(fleet_yaml), f"nobodys-{uuid4()}")
    monkeypatch.setattr("flows.node_runs.OF_FLEET", f"backup-node/{nobody.deployment}")
    monkeypatch.setattr("flows.node_runs.POLL", 0.1)
    return nobody


class Nobody:
    def __init__(self, fleet: Fleet, deployment: str) -> None:
        self.fleet, self.deployment = fleet, deployment

    async def register(self) -> None:
        from prefect.client.orchestration import get_client

        async with get_client() as client:
            flow = await client.create_flow_from_name("backup-node")
            await client.create_deployment(flow, self.deployment)

    def night(self) -> Any:
        from flows.node_runs import NodeRuns

        return NodeRuns(self.fleet, "as in fleet.yaml", str(uuid4()))

    async def refused(self) -> EngineError:
        """Return the night's error for a node for which no run ends well."""
        with pytest.raises(EngineError) as raised:
            await self.night().run(self.fleet.node("a0-1"))
        return raised.value

    async def runs(self) -> list[Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

        wanted = DeploymentFilter(name=DeploymentFilterName(any_=[self.deployment]))
        async with get_client() as client:
            return await client.read_flow_runs(deployment_filter=wanted)

    @asynccontextmanager
    async def worker(self, work: Callable[[Any, Any], Awaitable[None]], at_once: int = 10) -> AsyncIterator[None]:
        """Take the runs, *at_once* at a time, as a worker would, and do *work* for each with the engine's client."""
        from prefect.client.orchestration import get_client
        from prefect.states import Pending

        async def do(run: Any) -> None:
            async with get_client() as client:
                await client.set_flow_run_state(run.id, Pending())
                await work(client, run)

        async def take_up() -> None:
            done = set()
            async with asyncio.TaskGroup() as group:
                tasks: list[asyncio.Task[None]] = []
                while True:
                    with suppress(httpx.TransportError):  # workers, too, ask again while the engine is away
                        for run in await self.runs():
                            busy = sum(not task.done() for task in tasks)
                            if run.id not in done and run.state.is_scheduled() and busy < at_once:
                                done.add(run.id)
                                tasks.append(group.create_task(do(run)))
                    await asyncio.sleep(0.1)

        worker = asyncio.create_task(take_up())
        try:
            yield
        finally:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker

    async def hand_over(self, client: Any, run: Any, outcomes: list[Outcome]) -> None:
        """End *run* successfully, with *outcomes* as its report on its node."""
        from prefect.client.schemas.actions import ArtifactCreate
        from prefect.states import Completed, Running

        from tasks.hand_over import KEY

        said = {"outcomes": [json.loads(TypeAdapter(Outcome).dump_json(each)) for each in outcomes], "warnings": []}
        await client.create_artifact(
            ArtifactCreate(key=KEY, type="a0backup-outcomes", data=json.dumps(said), flow_run_id=run.id)
        )
        await client.set_flow_run_state(run.id, Running())
        await client.set_flow_run_state(run.id, Completed())


async def nothing(client: Any, run: Any) -> None:
    """Do nothing, as happens to a run whose worker dies after taking it."""


def failed(node: str, kind: str = "backup") -> Outcome:
    return outcome_of(node, kind, seconds=1, error=RefusedError(node, kind, "no"), step="ping")


async def test_a_run_that_no_worker_takes_is_cancelled_and_the_report_says_so(nobody: Nobody) -> None:
    await nobody.register()
    error = await nobody.refused()
    [waited] = re.findall(r"no worker took up the run backup-a0-1 within (\d+) s\b", str(error))
    assert round(nobody.fleet.lock_deadline) <= int(waited) <= nobody.fleet.lock_deadline + patience(5)
    assert "is a worker of the pool running?" in str(error)
    assert [run.state.name for run in await nobody.runs()] == ["Cancelled"]


async def test_a_run_that_its_worker_does_not_start_is_given_up_and_made_three_times_at_most(
    nobody: Nobody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.node_runs.STARTS_WITHIN", 0.5)
    await nobody.register()
    async with nobody.worker(nothing):
        error = await nobody.refused()
    assert "3 runs for the node ended without a result" in str(error)
    runs = await nobody.runs()
    assert [run.state.name for run in runs] == ["Crashed"] * 3
    assert "its worker has not started it" in runs[0].state.message


@pytest.mark.parametrize(
    ("state", "ends_as", "says"),
    [
        ("Running", "Crashed", "3 runs for the node ended without a result"),
        ("Cancelling", "Cancelled", "was cancelled"),
        ("Paused", "Crashed", "3 runs for the node ended without a result"),
    ],
)
async def test_a_run_whose_machine_died_is_ended_whatever_its_state(
    nobody: Nobody,
    appliances: SimulatedFleet,
    fleet_yaml: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    ends_as: str,
    says: str,
) -> None:
    from prefect import states

    appliances.fleet_yaml(fleet_yaml, lock_deadline="2m")  # however late the stand-in takes up a run
    nobody.fleet = load_fleet(fleet_yaml)
    monkeypatch.setattr("flows.node_runs.GONE_AFTER", 0.5)
    await nobody.register()

    async def die(client: Any, run: Any) -> None:
        await client.set_flow_run_state(run.id, states.Running())
        if state != "Running":
            await client.set_flow_run_state(run.id, getattr(states, state)())

    async with nobody.worker(die):
        error = await nobody.refused()
    assert says in str(error)
    runs = await nobody.runs()
    assert {run.state.name for run in runs} == {ends_as}
    assert {run.state.message for run in runs} == {"its process is gone: nobody holds the node's lock"}


async def test_a_run_waits_as_long_as_other_runs_of_the_night_are_working(nobody: Nobody) -> None:
    await nobody.register()

    async def takes_long(client: Any, run: Any) -> None:
        await asyncio.sleep(1.5 * nobody.fleet.lock_deadline)
        await nobody.hand_over(client, run, [failed(run.parameters["node"])])

    night = nobody.night()
    async with nobody.worker(takes_long, at_once=1):
        said = await asyncio.gather(*(night.run(nobody.fleet.node(name)) for name in ("a0-1", "a0-2", "a0-3")))
    assert [each.outcomes[0].node for each in said] == ["a0-1", "a0-2", "a0-3"]


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([], "reports nothing"),
        ([failed("a0-2")], "reports a0-2/backup"),
        ([failed("a0-1"), failed("a0-1", "user-export")], "reports a0-1/backup, a0-1/user-export"),
        ([replace(failed("a0-1"), id="a0-1/2026-01-01T00-00-00Z-backup", ending=Ending.STORED)], "is not in the vault"),
    ],
)
async def test_a_runs_report_is_rejected_if_it_is_not_about_its_node_or_not_in_the_vault(
    nobody: Nobody, outcomes: list[Outcome], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.node_runs.SHOWN_WITHIN", 0.2)
    await nobody.register()
    async with nobody.worker(lambda client, run: nobody.hand_over(client, run, outcomes)):
        error = await nobody.refused()
    assert says in str(error)
    assert "on every machine" in str(error)


@pytest.mark.slow
async def test_the_night_waits_for_an_engine_that_is_away_when_a_run_must_be_made(
    own_home: Path, appliances: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appliances.fleet_yaml(fleet_yaml, lock_deadline="2m")
    nobody = Nobody(load_fleet(fleet_yaml), "nobodys")
    monkeypatch.setattr("flows.node_runs.OF_FLEET", "backup-node/nobodys")
    monkeypatch.setattr("flows.node_runs.POLL", 0.1)
    with operators_server(own_home) as server, use_api(server.api, own_home):
        await nobody.register()
        server.kill()
        async with nobody.worker(lambda client, run: nobody.hand_over(client, run, [failed("a0-1")])):
            night = asyncio.create_task(nobody.night().run(nobody.fleet.node("a0-1")))
            await asyncio.to_thread(server.start)
            said = await night
        assert len(said.outcomes) == len(await nobody.runs()) == 1


async def test_the_hint_says_how_to_register_a_missing_deployment(nobody: Nobody) -> None:
    error = await nobody.refused()
    assert f"there is no deployment backup-node/{nobody.deployment}" in str(error)
    assert "a0backup engine register" in str(error)


@pytest.mark.slow
def test_neither_the_next_run_nor_a_retry_of_the_night_repeats_what_a_run_has_settled(
    deployed: Deployed, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup-sensitive-retrieve", "hang", times=1)
    appliances.tell("a0-2", "ping", "refuse")
    night = deployed.run("backup-fleet/nightly", nodes=["a0-1", "a0-2"], fan_out="workers").raise_for_status()
    run = night.json()["id"]
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup-sensitive-retrieve")), 90)
    holder = read_holder(deployed.folder / "vault/a0-1/lock")
    assert holder is not None
    kill_with_all_it_started(psutil.Process(holder.pid))

    assert deployed.ends_as("Failed", run, 180)
    assert "a0-2" in deployed.get(f"flow_runs/{run}")["state"]["message"]
    appliances.forget()
    deployed.set_state(run, type="SCHEDULED", name="AwaitingRetry")
    assert eventually(lambda: deployed.state(run) not in ("Failed", "AwaitingRetry"), 60)
    assert deployed.ends_as("Completed", run, 180)

    for node in ("a0-1", "a0-2"):
        assert len(appliances.calls(node, "backup")) == 1
        assert len(appliances.calls(node, "backup-sensitive")) == 1
        stored = [path.parent.name.split("-")[-1] for path in deployed.folder.glob(f"vault/{node}/*/manifest.json")]
        assert sorted(stored) == ["backup", "sensitive"]
