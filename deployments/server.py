"""The engine's server: the operator's where their Prefect profile names one, else a full one of our own.

    with own_server() as api, use_api(api, default_home()):
        state = asyncio.run(backup_fleet(..., return_state=True))

This module imports Prefect only when a function that needs it is called.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from a0backup.errors import EngineError
from deployments.engine_runs import crash_unfinished
from deployments.home import CREDENTIALS, credentials, default_home, make_home, past_the_proxy, using

if TYPE_CHECKING:
    pass


START_DEADLINE = 120.0


STOP_DEADLINE = 5.0


_SERVED = "served"


_CHILD = Path(__file__).with_name("_server_child.py")


log = logging.getLogger("a0backup.engine")


@contextmanager
def serving(home: Path) -> Iterator[Callable[[str], None]]:
    """Be the only `a0backup serve` on *home* inside the block; yield a function that announces the API's address.

    From then on `served_api` returns that address to every caller. Raise EngineError where another serves.
    """
    make_home(home)
    fd = _open_lock(home / _SERVED)
    try:
        # A caller of `served_api` holds the lock for a moment.
        _wait_for_lock(fd, fcntl.LOCK_EX, 1.0, f"another `a0backup serve` is running on {home}")
        os.ftruncate(fd, 0)

        def announce(api: str) -> None:
            os.pwrite(fd, api.encode(), 0)

        yield announce
    finally:
        os.close(fd)


def served_api(home: Path) -> str | None:
    """Return the API address of the `a0backup serve` that runs on *home*, or None where none runs.

    Raise EngineError where *home* cannot be used.
    """
    with using(home):
        try:
            fd = os.open(home / _SERVED, os.O_RDONLY)
        except FileNotFoundError:
            return None
    try:
        return None if _locked(fd, fcntl.LOCK_SH) else os.pread(fd, 1024, 0).decode() or None
    finally:
        os.close(fd)


@contextmanager
def own_server(home: Path | None = None, *, port: int = 0, without: Collection[str] = ()) -> Iterator[str]:
    """Run a full Prefect server on *port* of loopback (0 picks a free one) inside the block; yield its API address.

    Database, leases, results and log are in *home* (default: `default_home()`). Several servers may
    share one home. The first on a home marks the runs that a crash left unfinished there as Crashed.
    The server does not get the environment variables *without*. It ends with the block, and with this
    process however that ends. It answers only to the `credentials` of its home. Raise EngineError where
    it does not come up.
    """
    with lasting_server(home or default_home(), port, new_credentials=False, without=without) as server:
        yield server.api


@contextmanager
def lasting_server(
    home: Path, port: int, *, new_credentials: bool = True, without: Collection[str] = ()
) -> Iterator["OwnServer"]:
    """Do as `own_server` does, for a server on a port that is known before and after, and yield the server itself.

    While nobody serves, another program that listens on that port receives the credentials, from a
    browser or from a run that continues. So the first server on a home creates *new_credentials*.
    """
    make_home(home)
    with using(home):
        home.chmod(0o700)
    with _presence(home) as presence:
        if presence.alone and new_credentials:
            with using(home):
                (home / CREDENTIALS).unlink(missing_ok=True)
        server = OwnServer(home, port, without)
        try:
            server.start()
            if presence.alone:
                crash_unfinished(server.api, credentials(home))
            presence.share()
            yield server
        finally:
            server.stop()


class _Presence:
    """A lock on ``home/alive``: shared by all engines in the home, exclusive for one that found no other there."""

    def __init__(self, home: Path) -> None:
        # Not inheritable, like all of Python's descriptors: an a0cli that outlives us must not look like a live engine.
        self._fd = _open_lock(home / "alive")
        try:
            self.alone = _locked(self._fd, fcntl.LOCK_EX)
            if self.alone:
                self._wait_for_the_last_server(home)
            else:
                # An engine that is still starting here holds it exclusively: two must not create one database.
                _wait_for_lock(self._fd, fcntl.LOCK_SH, START_DEADLINE, f"another engine is still starting in {home}")
        except BaseException:
            self.leave()
            raise

    def _wait_for_the_last_server(self, home: Path) -> None:
        """Wait for a server whose parent was just killed: it may still record states, and gets seconds to end."""
        serving = _open_lock(home / "serving")
        try:
            _wait_for_lock(serving, fcntl.LOCK_EX, 2 * STOP_DEADLINE, f"a server is left over in {home}")
        finally:
            os.close(serving)

    def share(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def leave(self) -> None:
        os.close(self._fd)


def _open_lock(path: Path) -> int:
    with using(path.parent):
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _locked(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(fd: int, operation: int, deadline: float, reason: str) -> None:
    began = time.monotonic()
    while not _locked(fd, operation):
        if time.monotonic() - began > deadline:
            raise EngineError(f"{reason}, after {deadline:.0f} s of waiting")
        time.sleep(0.1)


@contextmanager
def _presence(home: Path) -> Iterator[_Presence]:
    presence = _Presence(home)
    try:
        yield presence
    finally:
        presence.leave()


class OwnServer:
    """A full Prefect server in a separate process, on a port of 127.0.0.1; 0 picks a free one."""

    def __init__(self, home: Path, port: int = 0, without: Collection[str] = ()) -> None:
        self.home, self.port, self.without = home, port, without
        self.log_file = home / "server.log"
        self.api = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers. Raise EngineError, with the end of its log, where it does not."""
        # Bound here and passed on: nobody can take the port in between, and nothing answers on it until it is served.
        with socket.socket() as listener, self._fresh_log() as output, self._serving() as serving:
            # Otherwise a server that just ended blocks its port for a minute.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind(listener)
            port = listener.getsockname()[1]
            self.api = f"http://127.0.0.1:{port}/api"
            self._process = subprocess.Popen(  # noqa: S603 - a fixed list, none of it is input
                [sys.executable, "-P", str(_CHILD), str(listener.fileno())],
                cwd=self.home,
                env=self._environment(port),
                # The server ends when this pipe does. Only this process holds the other end.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno(), serving],
                # Ctrl-C in the terminal is for us. The server must outlive it until the run's end is recorded.
                start_new_session=True,
            )
        log.info("starting the engine's server at %s", self.api.removesuffix("/api"))
        try:
            self._wait_until_healthy(self._process)
        except BaseException:
            self.stop()
            raise

    def _bind(self, listener: socket.socket) -> None:
        try:
            listener.bind(("127.0.0.1", self.port))
        except OSError as error:
            raise EngineError(
                f"the engine's server cannot use port {self.port} of 127.0.0.1: {error.strerror}",
                "another server uses it, perhaps one of Prefect; stop it or choose another --port",
            ) from error

    def stop(self) -> None:
        """End the server, gracefully within 5 s, else by force; nothing of it is left on return."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            log.warning("the engine's server did not end within %.0f s and is killed", STOP_DEADLINE)
        finally:
            process.kill()
            process.wait()

    async def ended(self) -> EngineError:
        """Wait until the started server has ended by itself, and return an error that says how."""
        import asyncio

        assert self._process is not None, "it was started"
        process, loop = self._process, asyncio.get_running_loop()
        code: asyncio.Future[int] = loop.create_future()

        def tell(said: int) -> None:
            if not code.done():
                code.set_result(said)

        def wait() -> None:
            said = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is waiting
                loop.call_soon_threadsafe(tell, said)

        # A daemon: a thread that nobody waits for must not delay the exit of this process.
        threading.Thread(target=wait, daemon=True).start()
        how = await code
        words = signal.Signals(-how).name if how < 0 else f"exit code {how}"
        return EngineError(
            f"the engine's server has ended ({words}){self._log_tail()}",
            "start it again: what ran is then shown as Crashed, and the next run resumes it",
        )

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        import httpx

        began = reported = time.monotonic()
        with httpx.Client(trust_env=False, timeout=5) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{self.api}/health").is_success:
                        return
                if process.poll() is not None:
                    raise EngineError(f"the engine's server ended at its start{self._log_tail()}")
                now = time.monotonic()
                if now - began > START_DEADLINE:
                    raise EngineError(
                        f"the engine's server did not answer within {START_DEADLINE:.0f} s{self._log_tail()}"
                    )
                if now - reported > 5:
                    reported = now
                    log.info("still starting the engine's server, for %.0f s now", now - began)
                time.sleep(0.1)

    @contextmanager
    def _fresh_log(self) -> Iterator[int]:
        """Open a new log file; the previous one stays beside it, even while its server still writes."""
        with using(self.home):
            with contextlib.suppress(FileNotFoundError):
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
            fd = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with using(self.home):
                # A full disk is detected here, with an error that names it: the server could not even log why it ends.
                os.write(fd, f"started by process {os.getpid()}\n".encode())
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _serving(self) -> Iterator[int]:
        """Open a lock that the server inherits and therefore holds until it has ended."""
        fd = _open_lock(self.home / "serving")
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield fd
        finally:
            os.close(fd)

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return f"; {self.log_file} ends:\n" + "\n".join(lines) if lines else f"; {self.log_file} is empty"

    def _environment(self, port: int) -> dict[str, str]:
        """Return this process's environment without the operator's Prefect settings: they are for another server."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFECT_") and name not in self.without
        }
        return kept | {
            **past_the_proxy(),
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_UI_URL": f"http://127.0.0.1:{port}",
            # As in engine.env.example: longer than clients keep a connection, else they use one that is being closed.
            "PREFECT_SERVER_API_KEEPALIVE_TIMEOUT": "75",
            "PREFECT_SERVER_API_AUTH_STRING": credentials(self.home),
            # The default keeps all runs forever.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 86400),
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P30D",
            # The UI is copied before it is served, by default into the installed package, which may be read-only.
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.home / "ui"),
            # The default keeps leases in memory: slots of runs that die with the server would never be freed.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # One transaction per state, the default, takes 40 s for the states of 1,200 task runs; this takes 3 s.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
            # Prefect uses only whole seconds: below one it would flush without a pause and use a whole core.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
        }
