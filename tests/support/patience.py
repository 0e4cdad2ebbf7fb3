"""How long tests wait: the only place for timeouts.

    assert eventually(lambda: is_stored(node), 60)
    process.wait(patience(60))

Each timeout is given in seconds for an idle machine with two cores, and is multiplied by one factor. The factor is
measured once, at the start of the session: how much longer this machine takes to start a few interpreters at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

_FACTOR = "A0BACKUP_TEST_PATIENCE"  # inherited by the workers of pytest-xdist
_PROGRAM = [sys.executable, "-I", "-c", "import asyncio, sqlite3, ssl, http.client, email.message, unittest.mock"]
_AT_ONCE = 8
_IDLE = 0.6  # seconds for these starts on an idle machine with two cores
_MOST = 4.0  # above it, a wait for what never comes takes too long, and 'soon' means nothing


def measure() -> None:
    """Measure the factor once for this session and its workers, before any worker starts."""
    if _FACTOR not in os.environ:
        # The better of two: the first may need to read the interpreter from the disk.
        took = min(_time_of_starts() for _ in range(2))
        os.environ[_FACTOR] = f"{min(max(1.0, took / _IDLE), _MOST):.2f}"


def _time_of_starts() -> float:
    started = time.monotonic()
    programs = [subprocess.Popen(_PROGRAM) for _ in range(_AT_ONCE)]
    for program in programs:
        program.wait()
    return time.monotonic() - started


def factor() -> float:
    """Return the factor, from 1 to 4. It is 1 outside a test session."""
    return float(os.environ.get(_FACTOR, "1"))


def patience(seconds: float) -> float:
    """Return how long to wait on this machine for what takes less than *seconds* on an idle one with two cores."""
    return seconds * factor()


def eventually(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Return whether *condition* became true within `patience(seconds)`."""
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition: Callable[[], object], what: str = "what the test waits for", seconds: float = 120) -> None:
    """Wait until *condition* is true. After `patience(seconds)`, fail the test and name *what* was expected."""
    if not eventually(condition, seconds):
        pytest.fail(f"not within {patience(seconds):.0f} s: {what}")
