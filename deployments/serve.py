"""`a0backup serve`: one machine, one command. Our own server, all deployments with their schedules, and a worker."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from a0backup import terminal
from a0backup.errors import EngineError
from a0backup.fleet import Fleet
from deployments.local_run import interruptible, run_in_thread
from deployments.register import NO_NOTIFICATION, asked, engine_client, lines, register
from deployments.server import CREDENTIALS, default_home, own_server, serving, use_api

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

PORT = 4200
# What runs is called off first: its a0cli processes end, and the engine hears of it.
CALLED_OFF_WITHIN = 10.0
LAST_RESORT = 25.0


def serve(fleet: Fleet, port: int) -> None:
    """Serve all deployments of *fleet* until the process is interrupted, which calls off what runs.

    Raise KeyboardInterrupt then, EngineError where the server or the worker cannot run.
    """
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "a0backup")
    # Prefect's lines about each run it starts, and the runs' own, are on the runs' pages.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
    home = default_home()
    with (
        interruptible(LAST_RESORT) as interrupt,
        serving(home) as announce,
        own_server(home, port=port) as api,
        use_api(api, home),
    ):
        registered = asyncio.run(register(fleet, may_move=True, asked=asked if sys.stdin.isatty() else None))
        for line in lines(registered.changes, dry_run=False):
            terminal.say(line)
        if not registered.told_of_failures:
            terminal.say(NO_NOTIFICATION)
        announce(api)
        _say_where(api, home)
        error = run_in_thread(_work, interrupt)
    if error is not None:
        raise EngineError(f"the worker ended: {type(error).__name__}: {error}") from error


def _say_where(api: str, home: Path) -> None:
    terminal.say(f"serving at {api.removesuffix('/api')}; log in with what stands in {home / CREDENTIALS}")
    terminal.say("Ctrl-C ends it, and calls off what runs; `a0backup run` and `check` use it meanwhile")


async def _work() -> None:
    """Run a worker of the pool until this is cancelled; then call off its runs first."""
    from prefect.workers.process import ProcessWorker

    from deployments.engine_objects import POOL

    worker = asyncio.create_task(ProcessWorker(work_pool_name=POOL, name="a0backup-serve").start(printer=_unsaid))
    try:
        await asyncio.shield(worker)
    finally:
        await _call_off_all()
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


def _unsaid(*_: object) -> None:
    """Take what the worker would print: who serves has said it in words of ours."""


async def _call_off_all() -> None:
    """Cancel each run that is under way; wait until all have ended, as long as that may take at a stop."""
    from prefect.states import Cancelled, Cancelling

    async with engine_client() as client:
        for run in await _under_way(client):
            await client.set_flow_run_state(run, Cancelling())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLED_OFF_WITHIN):
                runs = await _under_way(client)
                while runs:
                    await asyncio.sleep(0.2)
                    runs = await _under_way(client)
        # The processes have seconds to end; that the worker then takes longer to say so must not hold up the stop.
        for run in await _under_way(client):
            await client.set_flow_run_state(run, Cancelled(message="called off, as `a0backup serve` ended"), force=True)


async def _under_way(client: "PrefectClient") -> list[UUID]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    states = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    return [run.id for run in await client.read_flow_runs(flow_run_filter=wanted)]
