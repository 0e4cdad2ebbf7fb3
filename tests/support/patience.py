"""How long tests wait: the one place for time-outs.

    assert eventually(lambda: is_stored(node), 60)
    process.wait(patience(60))

Each time-out is given in seconds for an idle machine with two cores. It is stretched by one factor, which is measured
once, when the session begins: how much longer than such a machine this one takes to start a few interpreters at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

_FACTOR = "A0BACKUP_TEST_PATIENCE"  # for the workers of pytest-xdist, which inherit it
_PROGRAM = [sys.executable, "-I", "-c", "import asyncio, sqlite3, ssl, http.client, email.message, unittest.mock"]
_AT_ONCE = 8
_IDLE = 0.6  # seconds that this takes on an idle machine with two cores
_MOST = 4.0  # beyond it, a wait for what never comes would take too long, and 'soon' would mean nothing


def measure() -> None:
    """Measure the factor for this session and its workers; once, and before any worker is started."""
    if _FACTOR not in os.environ:
        # The better of two: the first may have to read the interpreter from the disk.
        took = min(_time_of_starts() for _ in range(2))
        os.environ[_FACTOR] = f"{min(max(1.0, took / _IDLE), _MOST):.2f}"


def _time_of_starts() -> float:
    started = time.monotonic()
    programs = [subprocess.Popen(_PROGRAM) for _ in range(_AT_ONCE)]
    for program in programs:
        program.wait()
    return time.monotonic() - started


def factor() -> float:
    """Return the factor: from 1 to 4; 1 outside a session of tests."""
    return float(os.environ.get(_FACTOR, "1"))


def patience(seconds: float) -> float:
    """Return how long to wait here for what takes less than *seconds* on an idle machine with two cores."""
    return seconds * factor()


def eventually(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Return whether *condition* came true within `patience(seconds)`."""
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def until(condition: Callable[[], object], what: str = "what the test waits for", seconds: float = 120) -> None:
    """Wait until *condition* is true; fail, with *what* was waited for, after `patience(seconds)`."""
    if not eventually(condition, seconds):
        pytest.fail(f"not within {patience(seconds):.0f} s: {what}")
