"""Fixtures for all tests: Prefect isolated from the developer's own profile, and an engine on request.

Everything lives in one temporary directory per session, the room. The pytest-xdist workers share it, and it is removed
at the end.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.extent import Extent, add_option
from tests.support.paths import REPOSITORY
from tests.support.patience import measure, patience

_ROOM = "A0BACKUP_TEST_ROOM"
_IGNORED = "A0BACKUP_TEST_IGNORES"
# The pytest-xdist workers inherit the room from the process that started first. That process removes it.
_first = _ROOM not in os.environ
_lifeline = -1

# More runs at once than these make one server answer so slowly that a run waits for minutes.
WORKERS_PER_SERVER = 4


def room() -> Path:
    """Return the temporary directory of this session."""
    return Path(os.environ[_ROOM])


def _make_room() -> None:
    os.environ[_ROOM] = tempfile.mkdtemp(prefix="a0backup-tests-")
    os.environ |= {"PREFECT_HOME": str(room() / "prefect"), "XDG_STATE_HOME": str(room() / "state")}


# Must come before anything imports Prefect, which reads the environment once.
for _name in [name for name in os.environ if name.startswith("PREFECT_") and (_first or name != "PREFECT_HOME")]:
    del os.environ[_name]
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A test that forgot to request an engine fails instead of starting Prefect's temporary server.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}
if _first:
    _make_room()
measure()

# A program started in the background ignores SIGINT and SIGHUP, and so do its children. The programs under test must
# not. Children inherit an ignored signal but not a handler, hence the handlers. The tests themselves still ignore both
# signals.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN or _number.name in os.environ.get(_IGNORED, ""):
        os.environ[_IGNORED] = f"{os.environ.get(_IGNORED, '')} {_number.name}"
        signal.signal(_number, lambda *_: None)

# Keeps a shared server running as long as any process holds the named pipe open for writing.
_KEEPER = """
import sys
from pathlib import Path
from deployments.server import own_server
home, address = map(Path, sys.argv[1:])
with own_server(home) as api:
    partial = address.with_suffix(".partial")
    partial.write_text(api)
    partial.rename(address)
    sys.stdin.read()
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    add_option(parser)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.together import Together

    return Together(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_configure(config: pytest.Config) -> None:
    global _lifeline
    config.pluginmanager.register(Extent(config))
    if _first:
        # A tool that tries many changes runs several sessions in one process. The previous session removed its room.
        if _ROOM not in os.environ:
            _make_room()
        os.mkfifo(room() / "lifeline", 0o600)
        _lifeline = os.open(room() / "lifeline", os.O_RDWR)


def pytest_unconfigure() -> None:
    if not _first:
        return
    os.close(_lifeline)
    for pid_file in room().glob("server-*.pid"):
        with _started(pid_file) as keeper:
            if keeper is not None:
                keeper.wait(patience(30))
    shutil.rmtree(room())
    del os.environ[_ROOM]


@contextmanager
def _started(pid_file: Path) -> Iterator[psutil.Process | None]:
    try:
        yield psutil.Process(int(pid_file.read_text()))
    except (FileNotFoundError, psutil.NoSuchProcess):
        yield None


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    with (room() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def migrated_home() -> Path:
    """Return an engine home with a migrated database. Copy it, do not use it."""
    from deployments.server import own_server

    home = room() / "migrated-home"
    with _one_at_a_time("migrated-home"):
        if not home.exists():
            with own_server(room() / "building-home"):
                pass
            (room() / "building-home").rename(home)
    return home


@pytest.fixture
def own_home(migrated_home: Path, tmp_path: Path) -> Path:
    """Return a home for this test alone. A server starts from it in 3 s instead of 10 s."""
    return Path(shutil.copytree(migrated_home, tmp_path / "engine"))


def _server() -> str:
    """Return the name of the server that the tests of this worker use."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    this = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return f"server-{this % -(-workers // WORKERS_PER_SERVER)}"


@pytest.fixture(scope="session")
def engine_server(migrated_home: Path) -> str:
    """Return the API address of a full server that the tests of several workers share."""
    name = _server()
    address, log_file, pid_file = (room() / f"{name}.{each}" for each in ("address", "log", "pid"))
    with _one_at_a_time(name):
        if not address.exists():
            home = Path(shutil.copytree(migrated_home, room() / name))
            with (room() / "lifeline").open() as lifeline, log_file.open("wb") as log:
                keeper = subprocess.Popen(
                    [sys.executable, "-c", _KEEPER, str(home), str(address)],
                    cwd=REPOSITORY,
                    stdin=lifeline,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            pid_file.write_text(str(keeper.pid))
            deadline = time.monotonic() + patience(120)
            while not address.exists():
                if keeper.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no engine for the tests: {log_file.read_text()}")
                time.sleep(0.1)
    # For processes that the tests start and point at this address.
    os.environ["PREFECT_API_AUTH_STRING"] = (room() / name / "credentials").read_text().strip()
    return address.read_text()


@pytest.fixture
def engine(engine_server: str) -> Iterator[str]:
    """Point Prefect in this process at the shared server and yield its API address. For tests marked `engine`."""
    from deployments.home import use_api

    with use_api(engine_server, room() / _server()):
        yield engine_server
