"""The progress on a run's page: it follows the run, and the run never waits for it."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

import psutil
import pytest

from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Node
from a0backup.vault.lock import is_held
from simulator.fleet import SimulatedFleet
from tests.flows.conftest import Recorded, recorded
from tests.support.patience import patience

pytestmark = pytest.mark.engine

SIZE = 600_000


@pytest.fixture
def appliances(tmp_path: Path) -> Any:
    with SimulatedFleet(tmp_path / "sim", nodes=3, size=SIZE) as fleet:
        yield fleet


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update twice a second, for tests that must see several updates."""
    from tasks import progress

    monkeypatch.setattr(progress, "PACE", 0.5)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(patience(seconds)):
        while not await condition():  # noqa: ASYNC110 - the engine must be polled, it notifies nobody
            await asyncio.sleep(0.05)


class Page:
    """The progress of the run that this process started last, as the engine's API returns it."""

    async def artifacts(self) -> dict[str, Any]:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
        from prefect.client.schemas.sorting import ArtifactSort

        from tasks.engine_task import task_runs

        if not task_runs:
            return {}
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID([*task_runs][-1])]))
        async with get_client() as client:
            found = await client.read_artifacts(artifact_filter=of_run, sort=ArtifactSort.KEY_ASC, limit=50, offset=0)
        keys = [artifact.key for artifact in found if artifact.key]
        assert len(keys) == len(set(keys)), keys
        return {artifact.key: artifact for artifact in found}

    async def row(self, node: str) -> dict[str, str]:
        artifacts = await self.artifacts()
        rows = json.loads(artifacts["backup-steps"].data) if "backup-steps" in artifacts else []
        return next((row for row in rows if row["node"] == node), {})

    async def bytes(self, node: str) -> int:
        """Return how many bytes of the node's artifact have arrived, as precisely as the page shows."""
        words = (await self.row(node)).get("retrieved", "").split()
        return round(float(words[0]) * {"B": 1, "kB": 1000, "MB": 1_000_000}[words[1]]) if words else 0


@pytest.fixture
def page() -> Page:
    from tasks.engine_task import task_runs

    task_runs.clear()
    return Page()


def begin(fleet_yaml: Path, **parameters: Any) -> "asyncio.Task[Any]":
    from flows.backup_fleet import backup_fleet

    return asyncio.create_task(backup_fleet(fleet=fleet_yaml, return_state=True, **parameters))


async def end_of(run: "asyncio.Task[Any]") -> Recorded:
    state = await run
    return await recorded(state.state_details.flow_run_id)


async def test_the_page_shows_the_bytes_growing_during_a_retrieval_and_how_all_nodes_ended(
    engine: str, quick: None, appliances: SimulatedFleet, fleet_yaml: Path, page: Page
) -> None:
    appliances.tell("a0-2", "backup-retrieve", "drip", bytes_per_second=40_000)
    appliances.tell("a0-3", None, "unreachable")
    run = begin(fleet_yaml)
    seen = [0]

    async def three_times_more() -> bool:
        assert not run.done()
        seen.extend(size for size in [await page.bytes("a0-2")] if size > seen[-1])
        return len(seen) > 3

    await until(three_times_more)
    at_it = await page.row("a0-2")
    assert (at_it["step"], at_it["note"]) == ("retrieve", "")

    of_run = await end_of(run)
    shown = {artifact.key: artifact for artifact in of_run.artifacts if artifact.key}
    assert sorted(shown) == ["backup-progress", "backup-report", "backup-steps", "backup-table"]
    assert shown["backup-progress"].data == 100
    assert shown["backup-progress"].description.startswith("3 of 3 nodes ended, at ")
    rows = json.loads(shown["backup-steps"].data)
    assert [(row["node"], row["step"]) for row in rows] == [
        ("a0-1", "stored"),
        ("a0-2", "stored"),
        ("a0-3", "unreachable (update-commands)"),
    ]
    assert "does not answer" in rows[2]["note"]
    assert not [log for log in of_run.logs if "the progress of this run" in log.message]


async def test_a_second_night_shows_how_much_is_expected(
    engine: str, quick: None, appliances: SimulatedFleet, fleet_yaml: Path, page: Page
) -> None:
    assert (await begin(fleet_yaml, nodes=["a0-1"])).is_completed()
    appliances.tell("a0-1", "backup-retrieve", "drip", bytes_per_second=300_000)
    run = begin(fleet_yaml, nodes=["a0-1"])

    async def half_of_it_is_expected() -> bool:
        return " of about 6" in (await page.row("a0-1")).get("retrieved", "")

    await until(half_of_it_is_expected)
    assert (await run).is_completed()


async def test_a_cancelled_run_ends_at_once_and_its_page_shows_how_far_it_got(
    engine: str, quick: None, appliances: SimulatedFleet, fleet_yaml: Path, page: Page
) -> None:
    appliances.tell("a0-1", "backup-retrieve", "drip", bytes_per_second=50_000)
    run = begin(fleet_yaml, nodes=["a0-1"])

    async def some_has_come() -> bool:
        return await page.bytes("a0-1") > 0

    await until(some_has_come)
    run.cancel()
    await asyncio.wait([run], timeout=patience(10))
    assert run.done()
    assert (await page.row("a0-1"))["step"] == "retrieve"
    assert nothing_of_it_runs()
    assert not is_held(fleet_yaml.parent / "vault/a0-1/lock")
    [work] = fleet_yaml.parent.glob("vault/a0-1/work")
    assert not [each for each in psutil.Process().children() if str(work) in each.cwd()]


def nothing_of_it_runs() -> bool:
    tasks = [task for task in asyncio.all_tasks() if "keep_current" in repr(task)]
    return not tasks and not [thread for thread in threading.enumerate() if thread.name.startswith("progress")]


# -- an engine that does not accept it ---------------------------------------------------------------------------------


@asynccontextmanager
async def an_api_that_never_answers() -> AsyncIterator[str]:
    """Run a server that accepts every connection and says nothing."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"


@asynccontextmanager
async def an_api_that_is_gone() -> AsyncIterator[str]:
    """Yield the address of a server that has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}/api"


class LogLines(logging.Handler):
    """Keeps each line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def run_with_progress_on(api: str, nodes: list[Node], body: Callable[[], Awaitable[None]]) -> Any:
    """Run *body* in a flow whose progress goes to *api*. Return the flow's state."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.progress import progress_published

    @flow(name="with-progress", persist_result=False)
    async def with_progress() -> None:
        with temporary_settings({PREFECT_API_URL: api}):
            async with progress_published(nodes):
                await body()

    return await with_progress(return_state=True)


@pytest.mark.parametrize("api_of", [an_api_that_never_answers, an_api_that_is_gone])
async def test_an_api_that_does_not_accept_the_progress_fails_no_run_and_is_reported_once(
    engine: str,
    fleet_yaml: Path,
    monkeypatch: pytest.MonkeyPatch,
    api_of: Callable[[], Any],
) -> None:
    from tasks import progress

    monkeypatch.setattr(progress, "PACE", 0.1)
    monkeypatch.setattr(progress, "PATIENCE", 0.2)

    handler = LogLines()

    async def some_updates() -> None:
        # Here, as the first run of a process sets up Prefect's logging anew.
        logging.getLogger("prefect.flow_runs").addHandler(handler)
        await asyncio.sleep(1.5)
        logging.getLogger("prefect.flow_runs").removeHandler(handler)

    at = time.monotonic()
    async with api_of() as api:
        assert (await run_with_progress_on(api, list(load_fleet(fleet_yaml).nodes), some_updates)).is_completed()
    assert time.monotonic() - at < min(patience(10), 50)  # not the minute for which Prefect's client retries
    told = [line for line in handler.lines if "does not accept the progress" in line]
    assert told == ["the engine does not accept the progress of this run; retrying (no answer within 0.2 s)"]
    assert nothing_of_it_runs()


async def test_a_cancelled_run_does_not_wait_for_an_update_that_hangs(engine: str, fleet_yaml: Path) -> None:
    from tasks.progress import PATIENCE

    under_way, cancelled = asyncio.Event(), []

    async def long() -> None:
        await asyncio.sleep(0.5)
        under_way.set()
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.append(time.monotonic())

    async with an_api_that_never_answers() as api:
        run = asyncio.create_task(run_with_progress_on(api, list(load_fleet(fleet_yaml).nodes), long))
        await under_way.wait()
        run.cancel()
        await asyncio.wait([run], timeout=patience(10))
    # What remains is the time in which the engine records it.
    assert time.monotonic() - cancelled[0] < PATIENCE / 2
    assert run.cancelled()
    assert nothing_of_it_runs()


async def test_a_signal_during_an_update_cancels_the_run(
    engine: str, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from prefect.exceptions import TerminationSignal

    from tasks import progress

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise TerminationSignal(number)

    def table_at_the_wrong_time(rows: object) -> object:
        signal.raise_signal(signal.SIGUSR1)
        return rows

    async def long() -> None:
        await asyncio.sleep(600)

    before = signal.signal(signal.SIGUSR1, raise_it)
    monkeypatch.setattr(progress, "table", table_at_the_wrong_time)
    try:
        run = asyncio.create_task(run_with_progress_on(engine, list(load_fleet(fleet_yaml).nodes), long))
        await asyncio.wait([run], timeout=patience(20))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert run.cancelled()
    assert nothing_of_it_runs()
