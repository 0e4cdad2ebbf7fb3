"""`a0backup serve`: our own server, all deployments with their schedules, and a worker: one command for one machine."""

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
from a0backup.fleet.trusted import FOLDERS
from a0backup.report import terminal
from deployments.home import CREDENTIALS, default_home, environment, operators_api, use_api
from deployments.local_run import interruptible, run_in_thread
from deployments.register import NO_NOTIFICATION, engine_client, lines, register
from deployments.server import OwnServer, lasting_server, serving
from deployments.working_directory import leave_untrusted_directory

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State

PORT = 4200
# Running flows are cancelled first: their a0cli processes end, and the engine is informed.
# Each run is a process of more than 100 MB. After an absence, all missed runs are due at once.
MOST_RUNS = 8
CALLED_OFF_WITHIN = 10.0
WORKER_ENDS_WITHIN = 6.0
LAST_RESORT = 25.0
# More than a minute: Prefect replays the cancels of the last minute to a run that starts, and the run's own would end
# it again. The run is late, and reported as late, only where a restart takes longer.
BACK_IN = timedelta(seconds=75)


def serve(fleet: Fleet, port: int, *, asked: Callable[[str], str] | None = None) -> None:
    """Serve all deployments of *fleet* until the process is interrupted, which cancels what runs.

    A run that a schedule started resumes with the next start. *asked* returns the value of a missing
    Secret block, by the block's name. Raise KeyboardInterrupt when interrupted, EngineError where the
    server or the worker cannot run. If the server ends later, the process ends with an error and exit
    code 1.
    """
    leave_untrusted_directory()
    # Both where it is a link: a worker compares the file itself.
    own = dict.fromkeys(str(path.parent) for path in (fleet.path, fleet.path.resolve()))
    os.environ.setdefault(FOLDERS, os.pathsep.join(own))
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "a0backup")
    # Prefect's lines about each run that it starts, and the runs' own lines, are on the runs' pages.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    # From libraries only the worst: asyncio logs a traceback for each cancelled run.
    os.environ.setdefault("PREFECT_LOGGING_ROOT_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
    home, theirs = default_home(), operators_api()
    with (
        interruptible(LAST_RESORT) as interrupt,
        serving(home) as announce,
        _temporary_files_in(home / "tmp"),
        lasting_server(home, port, without=fleet.secret_variables) as server,
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
    """Make this process and its children keep temporary files in *place*, as other users' files in /tmp may collide.

    Prefect's worker needs a folder with a fixed name there, which belongs to the user who created it first.
    """
    place.mkdir(mode=0o700, exist_ok=True)
    place.chmod(0o700)
    # These hold environments, with passwords, of runs whose worker was killed. The rest may be in use by such a run.
    for left in place.glob("prefect-workspace-attempt-*"):
        shutil.rmtree(left, ignore_errors=True)
    with environment({"TMPDIR": str(place)}):
        tempfile.tempdir = None
        try:
            yield
        finally:
            tempfile.tempdir = None


def _say_where(api: str, home: Path, theirs: str | None) -> None:
    terminal.say(f"serving at {api.removesuffix('/api')}; log in with the credentials in {home / CREDENTIALS}")
    terminal.say("Ctrl-C ends it and cancels its runs; the next start resumes those that a schedule started")
    if theirs in (None, api):
        terminal.say("meanwhile `a0backup run` and `check` use this server, too")
    else:
        terminal.say(f"`a0backup run` and `check` use {theirs}, which your environment or Prefect profile names")


async def _work(server: OwnServer) -> None:
    """Run a worker of the pool until cancelled; then cancel its runs before ending it."""
    from prefect.workers.process import ProcessWorker

    from deployments.automations import POOL

    start = ProcessWorker(work_pool_name=POOL, name="a0backup-serve", limit=MOST_RUNS).start
    worker = asyncio.create_task(start(printer=_unsaid))
    alone = asyncio.create_task(server.ended())
    try:
        await asyncio.wait({worker, alone}, return_when=asyncio.FIRST_COMPLETED)
        if alone.done():
            _end_without(alone.result())
        await worker
    finally:
        alone.cancel()
        # Prefect's messages about each interrupted run are on its page. Here they would be tracebacks.
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.CRITICAL)
        cancelled = await _cancel_all()
        worker.cancel()
        await asyncio.wait({worker}, timeout=WORKER_ENDS_WITHIN)
        # Not earlier: the worker would take them up again.
        await _give_back(cancelled)


def _end_without(error: EngineError) -> None:
    """Exit at once: without the server nothing can be cancelled, and the worker would retry for minutes."""
    terminal.say(f"error: {error}")
    os._exit(ExitCode.FAILED)


def _unsaid(*_: object) -> None:
    """Discard what the worker would print: `serve` has printed it in our own words."""


async def _cancel_all() -> "list[FlowRun]":
    """Cancel all unfinished runs and return them; wait for their ends for as long as a stop allows."""
    from prefect.states import Cancelled, Cancelling

    async with engine_client() as client:
        cancelled = await _under_way(client)
        for run in cancelled:
            await client.set_flow_run_state(run.id, Cancelling())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLED_OFF_WITHIN):
                runs = cancelled
                while runs:
                    await asyncio.sleep(0.2)
                    runs = await _under_way(client)
        # The processes have seconds to end. A worker that takes longer to report that must not delay the stop.
        for run in await _under_way(client):
            await client.set_flow_run_state(
                run.id, Cancelled(message="cancelled because `a0backup serve` ended"), force=True
            )
    return cancelled


async def _give_back(cancelled: "list[FlowRun]") -> None:
    """Reschedule the runs that a schedule started, for the next start: nobody else would start them again."""
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled
    from prefect.types import DateTime

    # A run that was already being cancelled was cancelled by a person.
    ours = [run for run in cancelled if run.auto_scheduled and run.state and run.state.type is not StateType.CANCELLING]
    if not ours:
        return
    async with engine_client() as client:
        for run in ours:
            if (await client.read_flow_run(run.id)).state_type is StateType.CANCELLED:
                goes_on: State[Any] = Scheduled(
                    scheduled_time=DateTime.now("UTC") + BACK_IN,
                    message="cancelled because `a0backup serve` ended; resumes with its next start",
                )
                await client.set_flow_run_state(run.id, goes_on, force=True)


async def _under_way(client: "PrefectClient") -> "list[FlowRun]":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    states = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    return await client.read_flow_runs(flow_run_filter=wanted)
