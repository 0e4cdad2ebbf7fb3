"""The tests' own frame: what is left out is said, and a start in the background changes nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import patience

REPOSITORY = Path(__file__).parents[2]

# As a shell starts a job in the background: what it starts inherits that interrupts are ignored.
IN_THE_BACKGROUND = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
"""


def printed(*arguments: str) -> str:
    """Run pytest in the background with these arguments; return what it printed, once it has ended well."""
    command = [sys.executable, "-c", IN_THE_BACKGROUND, "-q", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=patience(60))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_test_starts_takes_interrupts(number: signal.Signals) -> None:
    started = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1, stderr=-1)
    with started:
        assert started.stdout is not None
        started.stdout.readline()
        started.send_signal(number)
        assert started.wait(patience(20)) == -number


def test_a_start_in_the_background_keeps_interrupts_from_nothing_that_a_test_starts() -> None:
    assert "2 passed" in printed("tests/support/test_extent.py", "-k", "takes_interrupts")


def test_the_closing_lines_name_what_only_other_commands_run() -> None:
    quick = printed(
        *("--extent", "quick", "--collect-only"), "tests/support", "tests/tasks", "tests/faults/test_two_engines.py"
    )
    assert "not run: 2 tests that only `make test-all` runs (faults 1, tasks 1)\n" in quick
    assert "not run: 2 tests that only `make test-faults` runs (faults 2)\n" in quick
    rest = printed("--extent", "rest", "--collect-only", "tests/tasks", "tests/support", "-n", "2")
    assert "tests that only `make test` runs (support " in rest
    assert "`make test-all` runs" not in rest
