"""Run one flow in this process, from the command line: on the operator's engine, or on one of our own.

The command stays in charge of signals: Ctrl-C and SIGTERM call the flow off, its a0cli processes end, the engine is
told, and the process is gone within ten seconds, also where something hangs on the way.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID

from a0backup import terminal
from a0backup.a0cli import kill_running
from a0backup.fleet import Existing
from deployments.server import default_home, drained, operators_api, own_server, use_api

FLOWS = {
    "backup-fleet": "flows.backup_fleet.backup_fleet",
    "check-fleet": "flows.check_fleet.check_fleet",
}

INTERRUPTED = 130
LAST_RESORT = 8.0  # seconds from the first signal to the end of the process, whatever still runs
DRAIN_INTERRUPTED = 4.0


def run_here(flow_name: str, fleet: Path, nodes: Sequence[str], existing: Existing | None) -> Exception | None:
    """Run the flow of that name; return the error that it ended with, None where it ended well.

    What becomes of each node is told through a0backup.progress and is right also where the engine fails. Raise
    KeyboardInterrupt when called off, EngineError where no engine can be had.
    """
    _quiet_prefect()
    with _interruptible() as interrupt, _engine():
        parameters: dict[str, Any] = {"fleet": fleet.absolute(), "nodes": list(nodes)}
        if existing is not None:
            parameters["existing"] = existing
        return _run_in_thread(flow_name, parameters, interrupt)


def _quiet_prefect() -> None:
    # What a run does is shown by ourselves; the engine's own lines go to the run's page, with those of the core.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "a0backup")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    api = operators_api()
    if api is not None:
        terminal.say(f"engine: {api} (your Prefect profile's)")
        yield
        return
    terminal.say("engine: starting one of our own for this run ...")
    home = default_home()
    with own_server(home) as api, use_api(api, home):
        terminal.say(f"engine: {api.removesuffix('/api')} (our own; ends with this run, history kept in {home})")
        yield


class _Interrupt:
    """What a signal does: at first nothing but raise, once a flow runs call it off, the second time end at once."""

    def __init__(self) -> None:
        self.received = False
        self.call_off: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            _end_now()
        self.received = True
        terminal.say("interrupted: ends what is running (once more to end at once) ...")
        timer = threading.Timer(LAST_RESORT, _end_now)
        timer.daemon = True
        timer.start()
        if self.call_off is None:
            raise KeyboardInterrupt
        self.call_off()


def _end_now() -> None:
    # A vault survives being left at any point; a process that hangs does not end by itself.
    kill_running()
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    former = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _run_in_thread(flow_name: str, parameters: dict[str, Any], interrupt: _Interrupt) -> Exception | None:
    """Run the flow in a thread of its own: in the main thread Prefect would put its SIGTERM handler over ours."""
    ended: list[BaseException | None] = []
    ready = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        handles.append((asyncio.get_running_loop(), task))
        ready.set()
        await _run_flow(flow_name, parameters)

    def body() -> None:
        try:
            asyncio.run(run())
            ended.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, whatever it is
            ended.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=body, name="flow")
    thread.start()
    ready.wait()
    if handles:
        loop, task = handles[0]
        interrupt.call_off = lambda: loop.call_soon_threadsafe(task.cancel)
        if interrupt.received:
            interrupt.call_off()
    thread.join()
    [error] = ended
    if interrupt.received or isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        raise KeyboardInterrupt
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


async def _run_flow(flow_name: str, parameters: dict[str, Any]) -> None:
    from prefect.utilities.importtools import import_object

    from tasks.step import task_runs

    flow = import_object(FLOWS[flow_name])

    deadline: float | None = None
    try:
        await flow(**parameters)
    except asyncio.CancelledError:
        deadline = DRAIN_INTERRUPTED
        raise
    finally:
        for flow_run, begun in list(task_runs.items()):
            del task_runs[flow_run]
            await _drain(UUID(flow_run), begun, deadline)


async def _drain(flow_run: UUID, begun: set[UUID], deadline: float | None) -> None:
    """Wait until the engine has recorded the run: one of our own ends right after."""
    try:
        whole = await (drained(flow_run, begun) if deadline is None else drained(flow_run, begun, deadline=deadline))
    except Exception as error:  # noqa: BLE001 - the vault, the report and the exit code are right without the engine
        terminal.say(f"the engine could not be asked whether it has recorded the run: {error}")
        return
    if not whole:
        terminal.say("the engine has not recorded all of the run; its page may show steps as running")
