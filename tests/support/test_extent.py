"""The test framework itself: it names the skipped tests, and a start in the background changes nothing."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.paths import REPOSITORY
from tests.support.patience import patience

# As a shell starts a background job: its child processes inherit that interrupts are ignored.
IN_THE_BACKGROUND = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
"""


def printed(*arguments: str) -> str:
    """Run pytest in the background with these arguments. Return its output. Fail unless it succeeds."""
    command = [sys.executable, "-c", IN_THE_BACKGROUND, "-q", *arguments]
    # Its own session, not a worker of this one.
    mine = ("A0BACKUP_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=patience(120)
    )
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


def test_a_background_session_changes_nothing_for_the_processes_it_starts() -> None:
    assert "2 passed" in printed("tests/support/test_extent.py", "-k", "takes_interrupts")


INTERRUPTS = "tests/support/test_extent.py::test_what_a_test_starts_takes_interrupts"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_closing_lines_name_the_tests_that_only_other_commands_run(workers: str) -> None:
    left_out = ["tests/tasks/test_slots.py", "tests/system/faults/test_two_engines.py"]
    quick = printed("-n", workers, "--extent", "quick", INTERRUPTS, *left_out)
    assert re.search(r"^not run by this command but by `make test-all`: faults 1, tasks \d+$", quick, re.MULTILINE)
    assert re.search(r"^not run by this command but by `make test-faults`: faults \d+$", quick, re.MULTILINE)
    assert "2 passed" in quick


def test_the_rest_excludes_the_quick_tests() -> None:
    rest = printed("--extent", "rest", "--collect-only", "tests/tasks/test_slots.py", INTERRUPTS)
    assert "test_what_a_test_starts" not in rest
    assert re.search(r"^not run by this command but by `make test`: support \d+$", rest, re.MULTILINE)
