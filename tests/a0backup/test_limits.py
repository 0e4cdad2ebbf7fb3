"""The limits of the process: raised as far as they go, and then as many nodes at once as fit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from a0backup.limits import DESCRIPTORS, PROCESSES, RESERVED
from tests.support.paths import REPOSITORY


def under(limit: str, soft: int, hard: int, code: str) -> str:
    """Return what *code* prints in a process with this limit."""
    program = f"import resource as r; r.setrlimit(r.{limit}, ({soft}, {hard})); from a0backup.limits import *; {code}"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    return ended.stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    shown = under("RLIMIT_NOFILE", 256, 4096, "raise_limits(); print(*r.getrlimit(r.RLIMIT_NOFILE))")
    assert shown == "4096 4096"


@pytest.mark.parametrize(("limit", "share"), [("RLIMIT_NOFILE", DESCRIPTORS), ("RLIMIT_NPROC", PROCESSES)])
def test_what_remains_bounds_the_nodes_at_once(limit: str, share: int) -> None:
    hard = RESERVED + 10 * share
    assert under(limit, 150, hard, "print(at_most(256), at_most(4))") == "10 4"
    said = under(limit, 150, hard, "print(warning(256)); print(warning(10))")
    assert said.startswith(f"only 10 nodes are backed up at once, not 256: the system allows this process {hard} ")
    assert "\n" not in said


def test_the_memory_of_a_process_that_may_hold_a_password_is_never_written_to_a_core_file(tmp_path: Path) -> None:
    """Linux reports with bit 7 of the status whether a core was dumped, and shows in proc who may read the memory."""
    code = "import os, signal; from a0backup.limits import keep_memory_private; {}os.kill(os.getpid(), signal.SIGABRT)"
    dumpable = "import ctypes; assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0; "
    process = subprocess.Popen(
        [sys.executable, "-c", code.format("keep_memory_private(); " + dumpable)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    _, status = os.waitpid(process.pid, 0)
    process.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    assert list(tmp_path.iterdir()) == []
