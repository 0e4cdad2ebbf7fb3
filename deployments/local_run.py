"""Run one flow in this process, from the command line, on the operator's engine or on our own.

The command handles the signals. On Ctrl-C, SIGTERM or a closed terminal it cancels the flow, ends the flow's a0cli
processes, informs the engine, and exits within ten seconds, even if something hangs.
"""

import asyncio
import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from a0backup.a0cli.process import kill_running
from a0backup.errors import A0BackupError, EngineError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Existing
from a0backup.report import terminal
from a0backup.report.progress import Checked, Ended, News, watched_by
from deployments.engine_runs import drained
from deployments.home import CREDENTIALS, default_home, operators_api, use_api
from deployments.server import own_server, served_api
from deployments.working_directory import leave_untrusted_directory

FLOWS = {
    "backup-fleet": "flows.backup_fleet.backup_fleet",
    "check-fleet": "flows.check_fleet.check_fleet",
}

LAST_RESORT = 8.0  # seconds from the first signal to the end of the process, whatever still runs
AWAKE_EVERY = 0.5
DRAIN_INTERRUPTED = 4.0
DRAIN_GONE = 1.0  # the end of the flow has already waited for the engine
API_DEADLINE = 10.0
NO_API = "start that server or correct the address: `prefect config view --show-sources` shows where it comes from"
OR_OUR_OWN = f"{NO_API}; `--engine own` uses a server of our own for this run"


def run_here(
    flow_name: str, fleet: Path, nodes: Sequence[str], existing: Existing | None, *, own_engine: bool = False
) -> Exception | None:
    """Run the flow with that name; return the error that it ended with, or None where it succeeded.

    With *own_engine*, the API that the operator's Prefect profile names is not used.

    The result of each node is reported through a0backup.report.progress. Where all nodes were reported
    and only the engine failed, say so on the terminal and return None: the reported results are right
    without it. Raise KeyboardInterrupt when interrupted, EngineError where no engine is available,
    A0BackupError where the run ended before any node was tried.
    """
    began = datetime.now(UTC)
    fleet = fleet.absolute()
    leave_untrusted_directory()
    _quiet_prefect()
    settings = load_fleet(fleet)
    untold = {node.name for node in settings.chosen(nodes)}
    whole = len(untold)

    def tick_off(news: News) -> None:
        match news:
            case Ended():
                untold.discard(news.outcome.node)
            case Checked():
                untold.discard(news.finding.node)

    with (
        interruptible() as interrupt,
        _engine(own=own_engine, without=settings.secret_variables) as api,
        watched_by(tick_off),
    ):
        parameters: dict[str, Any] = {"fleet": fleet, "nodes": list(nodes)}
        if existing is not None:
            parameters["existing"] = existing
        error = run_in_thread(partial(_run_flow, flow_name, parameters, began), interrupt)
    if error is None or isinstance(error, A0BackupError):
        return error
    if len(untold) == whole:
        raise EngineError(f"the engine at {api} did not run the flow: {_in_words(error)}", OR_OUR_OWN) from error
    if not untold and _is_of_the_engine(error):
        terminal.say(f"the engine at {api} failed; its page does not show how the run ended: {_in_words(error)}")
        return None
    return error


def _is_of_the_engine(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.HTTPError)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error) or 'no reason given'}"


def _quiet_prefect() -> None:
    # We show ourselves what a run does. The engine's own lines go to the run's page, with those of the core.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "a0backup")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    # Otherwise Prefect prints every event and log line that it cannot send once the engine is unavailable.
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    logging.raiseExceptions = False


@contextlib.contextmanager
def _engine(*, own: bool, without: Collection[str]) -> Iterator[str]:
    api = None if own else operators_api()
    if api is not None:
        terminal.say(f"engine: {api} (your Prefect profile's)", chatter=True)
        asyncio.run(_require_answer(api))
        yield api
        return
    home = default_home()
    if (api := served_api(home)) is not None:
        terminal.say(f"engine: {api.removesuffix('/api')} (of the `a0backup serve` that runs on {home})", chatter=True)
        with use_api(api, home):
            asyncio.run(_require_answer(api))
            yield api
        return
    # Each retry doubles the wait: 62 s with the default of five. On loopback a server that does not answer is gone.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")
    terminal.say("engine: starting one of our own for this run ...", chatter=True)
    with own_server(home, without=without) as api, use_api(api, home):
        terminal.say(
            f"engine: {api.removesuffix('/api')} (our own; ends with this run, history kept in {home})", chatter=True
        )
        terminal.say(f"        log in to its pages with the credentials in {home / CREDENTIALS}", chatter=True)
        yield api


async def _require_answer(api: str) -> None:
    """Raise EngineError where nothing answers at *api*: Prefect's own retries would take minutes to find out."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        # Prefect's client knows the profile's certificates and proxies. Any answer will do; the flow handles the rest.
        async with asyncio.timeout(API_DEADLINE), get_client() as client:
            error = await client.api_healthcheck()
    except TimeoutError:
        raise EngineError(f"the engine at {api} did not answer within {API_DEADLINE:.0f} s", OR_OUR_OWN) from None
    if isinstance(error, httpx.TransportError | httpx.InvalidURL):
        raise EngineError(f"the engine at {api} does not answer: {_in_words(error)}", OR_OUR_OWN) from error


class Interrupt:
    """The signal handler: raise before a flow runs, cancel a running flow, exit at once on the second signal."""

    def __init__(self, last_resort: float) -> None:
        self.received = False
        self.last_resort = last_resort
        self.cancel: Callable[[], None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            _end_now()
        self.received = True
        terminal.say("interrupted: ending what is running (press again to end at once) ...")
        timer = threading.Timer(self.last_resort, _end_now)
        timer.daemon = True
        timer.start()
        if self.cancel is None:
            raise KeyboardInterrupt
        self.cancel()


def _end_now() -> None:
    # A vault survives an exit at any point, and a hanging process does not end by itself.
    kill_running()
    terminal.restore()
    os._exit(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def interruptible(last_resort: float = LAST_RESORT) -> Iterator[Interrupt]:
    """Handle Ctrl-C, SIGTERM and a closed terminal inside the block.

    The process exits *last_resort* seconds after the first signal. What the caller ignores, as
    `nohup` does SIGHUP, stays ignored.
    """
    interrupt = Interrupt(last_resort)
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_in_thread(work: Callable[[], Awaitable[None]], interrupt: Interrupt) -> Exception | None:
    """Do *work* in a separate thread: in the main thread Prefect would replace our SIGTERM handler with its own.

    Return the error it ended with, or None where it succeeded. Raise KeyboardInterrupt when interrupted.
    """
    ended: list[BaseException | None] = []
    ready = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        handles.append((asyncio.get_running_loop(), task))
        ready.set()
        await work()

    def body() -> None:
        try:
            asyncio.run(run())
            ended.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, whatever it is
            ended.append(error)
        finally:
            ready.set()

    cancelled = threading.Event()

    def cancel() -> None:
        # Only once: a second cancellation would interrupt the cleanup that the first one started.
        if handles and not cancelled.is_set():
            cancelled.set()
            loop, task = handles[0]
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)

    # From here on a signal must not raise in this thread: that would leave the other thread behind.
    interrupt.cancel = cancel
    thread = threading.Thread(target=body, name="flow")
    thread.start()
    # The system may deliver a signal to any thread. Python handles it in this one, and only once it is awake.
    while not ready.wait(AWAKE_EVERY):
        pass
    if interrupt.received:
        cancel()
    while thread.is_alive():
        thread.join(AWAKE_EVERY)
    [error] = ended
    if interrupt.received or isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        raise KeyboardInterrupt
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


async def _run_flow(flow_name: str, parameters: dict[str, Any], began: datetime) -> None:
    from prefect.utilities.importtools import import_object

    from flows.due import COMMAND_BEGAN
    from tasks.engine_task import task_runs

    COMMAND_BEGAN.set(began)

    flow = import_object(FLOWS[flow_name])

    deadline: float | None = None
    try:
        await flow(**parameters)
    except asyncio.CancelledError:
        deadline = DRAIN_INTERRUPTED
        raise
    except Exception as error:
        if _is_of_the_engine(error):
            deadline = DRAIN_GONE
        raise
    finally:
        for flow_run, begun in list(task_runs.items()):
            del task_runs[flow_run]
            await _drain(UUID(flow_run), begun, deadline)


async def _drain(flow_run: UUID, begun: set[UUID], deadline: float | None) -> None:
    """Wait until the engine has recorded the run: our own engine ends right after."""
    try:
        whole = await (drained(flow_run, begun) if deadline is None else drained(flow_run, begun, deadline=deadline))
    except Exception as error:  # noqa: BLE001 - the vault, the report and the exit code are right without the engine
        terminal.say(f"the engine could not be asked whether it has recorded the run: {_in_words(error)}")
        whole = False
    else:
        if not whole:
            terminal.say("the engine has not recorded all of the run; its page may show steps as running")
    if not whole:
        _drop_unsent()


def _drop_unsent() -> None:
    """Drop the events and log lines that the engine did not accept.

    At interpreter exit Prefect would retry each of them for several seconds: hours for a large fleet.
    """
    from prefect._internal.concurrency.services import _active_services

    for service in list(_active_services):
        with contextlib.suppress(queue.Empty):
            while True:
                service._queue.get_nowait()
        # The dropped items may have included the one that stops the service.
        service._queue.put_nowait(None)
