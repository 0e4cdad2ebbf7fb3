"""`a0backup` without its startup: one process has imported everything, and forks a child for each run.

    with Warm(room, environment) as warm:
        run = warm.start("run", "--fleet", "fleet.yaml", cwd=place, disk=disk.control)
        assert run.wait() == 0, run.err

The tests need hundreds of runs, and starting Python and importing Prefect takes longer than a run. The child executes
the real command from its first line, in its own process, which can be killed. Prefect decides some things on import,
here in the forking process: its own log lines go where the command sends them, or where Prefect does (*loud*).
"""

import asyncio
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tests.support.paths import REPOSITORY
from tests.support.patience import patience

# All that a run imports later, so that no child has to.
IMPORTED = (
    *("anyio._backends._asyncio", "fastapi", "graphviz", "prefect.client.orchestration", "prefect.events.worker"),
    *("prefect.flow_engine", "prefect.logging.handlers", "prefect.task_engine", "prefect.utilities.importtools"),
    *("prefect.utilities.visualization", "a0backup.cli.main", "flows.backup_fleet", "flows.check_fleet"),
    *("flows.enrol_node", "deployments.register", "deployments.doctor"),
)


class Run:
    """One run of the command, seen from the outside."""

    def __init__(self, connection: socket.socket, place: Path) -> None:
        self._connection, self._place = connection, place
        self._lines: IO[bytes] = connection.makefile("rb")
        self.pid = int(self._lines.readline())

    @property
    def out(self) -> str:
        return (self._place / "stdout").read_text()

    @property
    def err(self) -> str:
        return (self._place / "stderr").read_text()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Return its exit code, or the negative number of the signal that killed it.

        Raise TimeoutError, with its output, after *seconds*. By then it and all that it started is killed.
        """
        self._connection.settimeout(patience(seconds))
        try:
            status = int(self._lines.readline())
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)  # it prints where it is
                time.sleep(1)
                os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"no end within {patience(seconds):.0f} s: {self.out}{self.err}") from None
        finally:
            self._lines.close()
            self._connection.close()
        return os.waitstatus_to_exitcode(status)


class Warm:
    """The process that has imported everything. It keeps the output of its runs in *room*.

    *environment* is added to this process's own environment for all runs.
    """

    def __init__(self, room: Path, environment: Mapping[str, str], *, loud: bool = False) -> None:
        self._room, self._socket, self._log, self._loud = room, room / "warm.sock", room / "warm.log", loud
        self._environment = {**os.environ, **environment}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(self._socket), *(["loud"] if self._loud else [])],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the warm process did not come up: {self._log.read_text()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, *arguments: str, cwd: Path, disk: Path | None = None, **environment: str) -> Run:
        """Start `a0backup` with these arguments in *cwd*, attached to the control file *disk* if given.

        *environment* is added to that of all runs.
        """
        return self._start({"arguments": arguments, "cwd": str(cwd), "disk": str(disk or ""), "added": environment})

    def start_in(
        self, environment: Mapping[str, str], *arguments: str, cwd: Path, program: str = "a0backup.cli.main"
    ) -> Run:
        """Start *program*, a module with a `main`, in *cwd*, with exactly this environment."""
        order = {"program": program, "arguments": arguments, "cwd": str(cwd), "disk": "", "whole": dict(environment)}
        return self._start(order)

    def _start(self, order: dict[str, object]) -> Run:
        place = self._room / f"run-{time.monotonic_ns()}"
        place.mkdir()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._socket))
        connection.sendall(json.dumps({**order, "place": str(place)}).encode() + b"\n")
        return Run(connection, place)


def main() -> None:
    # The server that all runs of a session share has priority: if starved, it answers 503.
    os.nice(5)
    sys.path.insert(0, str(REPOSITORY))
    from deployments import local_run

    if "loud" not in sys.argv[2:]:
        # Before the import of Prefect, which reads the environment once.
        local_run._quiet_prefect()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()

    # The kernel reaps its children. Each of them waits for its own run.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print("ready", flush=True)
        # The pipe closes when the process that started this one ends.
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    _supervise(connection)
                finally:
                    os._exit(0)
            connection.close()


def _supervise(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    order = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid == 0:
        try:
            connection.close()
            _run(order)
        finally:
            os._exit(70)  # not reached
    connection.sendall(b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    connection.sendall(b"%d\n" % status)


def _run(order: Mapping[str, object]) -> None:
    os.setsid()
    os.chdir(str(order["cwd"]))
    _set_environment(order)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{order['place']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGUSR1, _say_where)
    if order["disk"]:
        from tests.system.faults.disk import attach

        attach(Path(str(order["disk"])))
    assert isinstance(order["arguments"], list)
    sys.argv = ["a0backup", *order["arguments"]]
    code: object = 0
    try:
        importlib.import_module(str(order.get("program", "a0backup.cli.main"))).main()
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as in the interpreter
        import traceback

        traceback.print_exc()
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the interpreter's exit: it would run Prefect's own hooks, which must not run in a fork.
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _say_where(*_: object) -> None:
    """Print where each thread and each asyncio task of this process is."""
    faulthandler.dump_traceback(all_threads=True)
    for task in list(asyncio.tasks._all_tasks):  # of all event loops
        if not task.done():
            print(task.get_name(), file=sys.stderr)
            waiting: Any = task.get_coro()
            while waiting is not None:  # each awaits the next
                frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
                at = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame else waiting
                print(f"  {at}", file=sys.stderr)
                waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)


def _set_environment(order: Mapping[str, object]) -> None:
    from prefect.context import refresh_global_settings_context

    whole, added = order.get("whole"), order.get("added")
    if isinstance(whole, dict):
        os.environ.clear()
        os.environ.update(whole)
        refresh_global_settings_context()
    elif isinstance(added, dict):
        os.environ.update(added)


if __name__ == "__main__":
    main()
