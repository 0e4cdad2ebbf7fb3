"""`a0backup serve`: one machine, one command. Our own server, all deployments with their schedules, and a worker."""

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a0backup.errors import EngineError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.models import Fleet
from a0backup.report import terminal
from deployments.home import CREDENTIALS, default_home, environment, operators_api, use_api
from deployments.local_run import interruptible, run_in_thread
from deployments.register import NO_NOTIFICATION, engine_client, lines, register
from deployments.server import OwnServer, lasting_server, serving

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State

PORT = 4200
# What runs is called off first: its a0cli processes end, and the engine hears of it.
CALLED_OFF_WITHIN = 10.0
WORKER_ENDS_WITHIN = 6.0
LAST_RESORT = 25.0
# More than a minute: to a run that starts, Prefect replays the cancels of the last minute, and its own would end it
# again. The run is late, and told of as such, only where a restart takes longer.
BACK_IN = timedelta(seconds=75)


def serve(fleet: Fleet, port: int, *, asked: Callable[[str], str] | None = None) -> None:
    """Serve all deployments of *fleet* until the process is interrupted, which calls off what runs.

    What a schedule has started goes on with the next start. *asked* gives the value of a Secret block that is missing
    by the block's name. Raise KeyboardInterrupt then, EngineError where the server
    or the worker cannot run; where the server ends later, the process does, with an error and exit code 1.
    """
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "a0backup")
    # Prefect's lines about each run it starts, and the runs' own, are on the runs' pages.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    # Of libraries, the worst: asyncio has a traceback for each run that is called off.
    os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
    home, theirs = default_home(), operators_api()
    with (
        interruptible(LAST_RESORT) as interrupt,
        serving(home) as announce,
        _temporary_files_in(home / "tmp"),
        lasting_server(home, port) as server,
        use_api(server.api, home),
    ):
        registered = asyncio.run(register(fleet, may_move=True, asked=asked))
        for line in lines(registered.changes, dry_run=False):
            terminal.say(line)
        if not registered.told_of_failures:
            terminal.say(NO_NOTIFICATION)
        announce(server.api)
        _say_where(server.api, home, theirs)
        error = run_in_thread(partial(_work, server), interrupt)
    if error is not None:
        raise EngineError(f"the worker ended: {type(error).__name__}: {error}") from error


@contextmanager
def _temporary_files_in(place: Path) -> Iterator[None]:
    """Have this process and what it starts keep temporary files in *place*: what others have in /tmp may be in the way.

    Prefect's worker wants a folder of a certain name there, which belongs to whoever made it first.
    """
    place.mkdir(mode=0o700, exist_ok=True)
    place.chmod(0o700)
    # They hold environments, with passwords, of runs whose worker was killed. The rest may be in use by such a run.
    for left in place.glob("prefect-workspace-attempt-*"):
        shutil.rmtree(left, ignore_errors=True)
    with environment({"TMPDIR": str(place)}):
        tempfile.tempdir = None
        try:
            yield
        finally:
            tempfile.tempdir = None


def _say_where(api: str, home: Path, theirs: str | None) -> None:
    terminal.say(f"serving at {api.removesuffix('/api')}; log in with what stands in {home / CREDENTIALS}")
    terminal.say("Ctrl-C ends it: what runs is called off, and goes on with the next start where a schedule started it")
    if theirs in (None, api):
        terminal.say("meanwhile `a0backup run` and `check` use it, too")
    else:
        terminal.say(f"`a0backup run` and `check` use {theirs}, which your environment or Prefect profile names")


async def _work(server: OwnServer) -> None:
    """Run a worker of the pool until this is cancelled; then call off its runs first."""
    from prefect.workers.process import ProcessWorker

    from deployments.automations import POOL

    worker = asyncio.create_task(ProcessWorker(work_pool_name=POOL, name="a0backup-serve").start(printer=_unsaid))
    alone = asyncio.create_task(server.ended())
    try:
        await asyncio.wait({worker, alone}, return_when=asyncio.FIRST_COMPLETED)
        if alone.done():
            _end_without(alone.result())
        await worker
    finally:
        alone.cancel()
        # What Prefect has to say of each run that is cut short is on its page; here it would be a traceback.
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.CRITICAL)
        called_off = await _call_off_all()
        worker.cancel()
        await asyncio.wait({worker}, timeout=WORKER_ENDS_WITHIN)
        # Not before: it would take them up once more.
        await _give_back(called_off)


def _end_without(error: EngineError) -> None:
    """End this process as it is: without the server nothing can be called off, and the worker would try for minutes."""
    terminal.say(f"error: {error}")
    os._exit(ExitCode.FAILED)


def _unsaid(*_: object) -> None:
    """Take what the worker would print: who serves has said it in words of ours."""


async def _call_off_all() -> "list[FlowRun]":
    """Cancel each run that is under way and return them; wait for their ends as long as that may take at a stop."""
    from prefect.states import Cancelled, Cancelling

    async with engine_client() as client:
        called_off = await _under_way(client)
        for run in called_off:
            await client.set_flow_run_state(run.id, Cancelling())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLED_OFF_WITHIN):
                runs = called_off
                while runs:
                    await asyncio.sleep(0.2)
                    runs = await _under_way(client)
        # The processes have seconds to end; that the worker then takes longer to say so must not hold up the stop.
        for run in await _under_way(client):
            await client.set_flow_run_state(
                run.id, Cancelled(message="called off, as `a0backup serve` ended"), force=True
            )
    return called_off


async def _give_back(called_off: "list[FlowRun]") -> None:
    """Have the next start go on with those that a schedule started: nobody would start them again."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled
    from prefect.types import DateTime

    # One that was being cancelled already was so by a person.
    ours = [
        run for run in called_off if run.auto_scheduled and run.state and run.state.type is not StateType.CANCELLING
    ]
    if not ours:
        return
    async with engine_client() as client:
        for run in ours:
            if (await client.read_flow_run(run.id)).state_type is StateType.CANCELLED:
                goes_on: State[Any] = Scheduled(
                    scheduled_time=DateTime.now("UTC") + BACK_IN,
                    message="called off, as `a0backup serve` ended; goes on with its next start",
                )
                await client.set_flow_run_state(run.id, goes_on, force=True)


async def _under_way(client: "PrefectClient") -> "list[FlowRun]":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    states = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    return await client.read_flow_runs(flow_run_filter=wanted)
