"""The node's lock, with real processes: who holds it, who waits, and what a killed run leaves."""
# Other processes make the awaited conditions true, and nothing else runs in a test's event loop.
# ruff: noqa: ASYNC110, ASYNC220, ASYNC240

import asyncio
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from a0backup.errors import LockDeadlineError, VaultUnusableError
from a0backup.vault.lock import Holder, end_orphans, is_held, node_lock, read_holder
from tests.support.paths import REPOSITORY
from tests.support.patience import patience, until

# Holds the lock until its stdin ends. With a third argument, a child in that directory inherits the lock.
HOLD = """
import asyncio, subprocess, sys
from pathlib import Path
from a0backup.vault.lock import node_lock

async def hold(folder, run, work=None):
    async with node_lock(Path(folder), node="a0-1", run=run, deadline=20) as lock:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        child = work and subprocess.Popen(["sleep", "60"], cwd=work, pass_fds=[lock], start_new_session=True, **quiet)
        print(child.pid if child else 0, flush=True)
        sys.stdin.read()

asyncio.run(hold(*sys.argv[1:]))
"""


class Run:
    """A process that holds the lock, and the pid of the a0cli that it started."""

    def __init__(self, process: "subprocess.Popen[str]", child: int) -> None:
        self.process, self.child = process, child

    def end(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vault" / "a0-1"


@pytest.fixture
def work(folder: Path) -> Path:
    made = folder / "work" / "run-1"
    made.mkdir(parents=True)
    return made


@contextmanager
def held_by(folder: Path, run: str, work: Path | None = None) -> Iterator[Run]:
    arguments = [str(folder), run, *([str(work)] if work else [])]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield Run(process, child)
        finally:
            process.kill()
            if child and alive(child):
                os.kill(child, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def taken(
    folder: Path, *, deadline: float = 20, patience: float = 0, heard: list[str] | None = None
) -> Holder | None:
    """Take the lock as run-2, return the holder in the lock file, and release the lock."""
    listen = heard.append if heard is not None else lambda holder: None
    async with node_lock(folder, node="a0-1", run="run-2", deadline=deadline, patience=patience, waiting=listen):
        return read_holder(folder / "lock")


# -- one at a time -----------------------------------------------------------------------------------------------------


async def test_a_free_lock_is_taken_at_once_and_names_its_holder(folder: Path) -> None:
    heard: list[str] = []
    holder = await taken(folder, deadline=0, heard=heard)
    assert holder == replace(Holder.myself("run-2"), since=holder.since if holder else "")
    assert str(holder).startswith(f"run run-2 on {os.uname().nodename} (pid {os.getpid()}, since 20")
    assert heard == []


async def test_a_released_lock_is_not_held(folder: Path) -> None:
    await taken(folder)
    assert not is_held(folder / "lock")


async def test_a_recreated_lock_file_is_the_lock_and_the_removed_one_is_not(folder: Path) -> None:
    async with node_lock(folder, node="a0-1", run="first", deadline=1):
        (folder / "lock").unlink()
        async with node_lock(folder, node="a0-1", run="second", deadline=1):
            assert is_held(folder / "lock")
            with pytest.raises(LockDeadlineError, match="run second"):
                async with node_lock(folder, node="a0-1", run="third", deadline=0):
                    pass


async def test_a_holder_in_another_pid_namespace_never_counts_as_gone() -> None:
    holder = replace(Holder.myself("r"), born=f"{BOOT}/1")
    assert holder.is_gone()
    assert not replace(holder, space="pid:[1]").is_gone()


async def test_the_lock_file_is_private_whatever_the_umask(folder: Path) -> None:
    former = os.umask(0)
    try:
        await taken(folder)
    finally:
        os.umask(former)
    assert stat.S_IMODE((folder / "lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_second_run_waits_reports_the_holder_once_and_continues_when_the_first_ends(folder: Path) -> None:
    with held_by(folder, "run-1") as first:
        heard: list[str] = []
        waiting = asyncio.ensure_future(taken(folder, heard=heard))
        while not heard:
            await asyncio.sleep(0.01)
        assert is_held(folder / "lock")
        first.end()
        assert (await waiting) is not None
    assert [text.partition(",")[0] for text in heard] == [
        f"run run-1 on {os.uname().nodename} (pid {first.process.pid}"
    ]


async def test_the_error_at_the_deadline_names_the_holder(folder: Path) -> None:
    with held_by(folder, "run-1") as first:
        with pytest.raises(LockDeadlineError, match=rf"run run-1 on .* \(pid {first.process.pid}, since "):
            await taken(folder, deadline=0.1)
        assert alive(first.process.pid)


async def test_tasks_of_one_process_exclude_each_other_and_none_waits_forever(folder: Path) -> None:
    inside: list[str] = []

    async def turn(name: str) -> None:
        async with node_lock(folder, node="a0-1", run=name, deadline=20):
            inside.append(name)
            await asyncio.sleep(0)
            assert inside[-1] == name
            inside.append(name)

    async with asyncio.timeout(patience(20)):
        await asyncio.gather(*(turn(f"run-{number}") for number in range(5)))
    assert inside[::2] == inside[1::2]
    with pytest.raises(LockDeadlineError):
        async with node_lock(folder, node="a0-1", run="run-1", deadline=20):
            await taken(folder, deadline=0.1)


async def test_a_cancelled_wait_leaves_the_lock_to_others(folder: Path) -> None:
    with held_by(folder, "run-1") as first:
        heard: list[str] = []
        waiting = asyncio.ensure_future(taken(folder, heard=heard))
        while not heard:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        first.end()
    assert await taken(folder, deadline=0)


async def test_an_error_inside_the_lock_releases_it(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with node_lock(folder, node="a0-1", run="run-1", deadline=0):
            raise ZeroDivisionError
    assert not is_held(folder / "lock")


@pytest.mark.parametrize("obstacle", ["directory", "link", "pipe"])
async def test_a_lock_file_that_cannot_be_opened_makes_the_vault_unusable(folder: Path, obstacle: str) -> None:
    folder.mkdir(parents=True)
    if obstacle == "directory":
        (folder / "lock").mkdir()
    elif obstacle == "pipe":
        os.mkfifo(folder / "lock")
    else:
        (folder / "lock").symlink_to(folder / "elsewhere")
    with pytest.raises(VaultUnusableError, match="lock"):
        await taken(folder, deadline=0)
    assert not (folder / "elsewhere").exists()
    assert not is_held(folder / "lock")
    assert read_holder(folder / "lock") is None


async def test_an_error_of_the_work_inside_the_lock_is_not_reported_as_an_error_of_the_lock(folder: Path) -> None:
    with pytest.raises(ConnectionResetError):
        async with node_lock(folder, node="a0-1", run="run-1", deadline=0):
            raise ConnectionResetError


# -- what a killed run leaves ------------------------------------------------------------------------------------------


async def test_a_killed_run_releases_the_lock(folder: Path) -> None:
    with held_by(folder, "run-1") as first:
        first.kill()
        assert await taken(folder, deadline=0)


def test_an_a0cli_that_outlives_its_killed_run_keeps_the_node_locked(folder: Path, work: Path) -> None:
    with held_by(folder, "run-1", work) as first:
        first.kill()
        assert is_held(folder / "lock")
        os.kill(first.child, signal.SIGKILL)
        until(lambda: not is_held(folder / "lock"))


async def test_the_next_run_ends_the_a0cli_of_a_killed_run_and_continues(folder: Path, work: Path) -> None:
    with held_by(folder, "run-1", work) as first:
        first.kill()
        assert await taken(folder)
        assert not alive(first.child)


async def test_the_a0cli_of_a_killed_run_gets_time_to_end_by_itself(folder: Path, work: Path) -> None:
    """What it asked of the node is then done, and cannot take effect after another run has begun."""
    with held_by(folder, "run-1", work) as first:
        first.kill()
        heard: list[str] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await taken(folder, patience=10, heard=heard)
        assert alive(first.child)
        [told] = heard
        assert told.startswith(f"pid {first.child} (sleep); run run-1 ")
        # The patience never uses up the whole deadline.
        assert await taken(folder, deadline=1, patience=10)
        assert not alive(first.child)


async def test_the_patience_counts_from_the_death_of_the_run_and_not_from_the_start_of_the_wait(
    folder: Path, work: Path
) -> None:
    with held_by(folder, "run-1", work) as first:
        waiting = asyncio.create_task(taken(folder, patience=2))
        await asyncio.sleep(2.5)  # run-1 lives and works for longer than the patience
        first.kill()
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            assert alive(first.child)
            await asyncio.sleep(0.05)
        assert await waiting
        assert not alive(first.child)


async def test_the_a0cli_of_a_killed_run_is_found_even_if_its_directory_is_gone(folder: Path, work: Path) -> None:
    with held_by(folder, "run-1", work) as first:
        first.kill()
        work.rmdir()
        assert await taken(folder)
        assert not alive(first.child)


async def test_a_process_that_inherited_the_lock_of_a_killed_run_is_ended_wherever_it_works(
    folder: Path, tmp_path: Path
) -> None:
    """A descendant of a0cli may have changed its directory, and would hold the lock for ever."""
    with held_by(folder, "run-1", tmp_path) as first:
        first.kill()
        assert await taken(folder)
        assert not alive(first.child)


async def test_a_process_that_took_the_lock_itself_is_waited_for_named_and_left_alone(folder: Path) -> None:
    await taken(folder)
    holder = read_holder(folder / "lock")
    assert holder is not None
    (folder / "lock").write_text(json.dumps(asdict(holder) | {"born": f"{BOOT}/1"}))  # that run is gone
    by_hand = ["flock", "--no-fork", str(folder / "lock"), "sleep", "60"]
    with subprocess.Popen(by_hand, start_new_session=True) as process:
        try:
            until(lambda: is_held(folder / "lock"))
            heard: list[str] = []
            with pytest.raises(LockDeadlineError, match=rf"pid {process.pid} \(sleep\); run run-2 .* is gone"):
                await taken(folder, deadline=0.3, heard=heard)
            assert f"pid {process.pid} (" in heard[0]
            assert process.poll() is None
        finally:
            process.kill()


async def test_a_process_in_the_work_folder_without_the_lock_is_left_alone(folder: Path, work: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=work, start_new_session=True) as shell:
        try:
            with held_by(folder, "run-1", work) as first:
                first.kill()
                await taken(folder)
            assert shell.poll() is None
        finally:
            shell.kill()


async def test_the_a0cli_of_a_living_run_is_never_ended(folder: Path, work: Path) -> None:
    with held_by(folder, "run-1", work) as first:
        with pytest.raises(LockDeadlineError):
            await taken(folder, deadline=0.3)
        # Not even if the run took the lock after the lock file was read and before the processes were listed.
        assert end_orphans(folder / "lock") == []
        assert alive(first.child)


async def test_what_inherits_the_lock_cannot_name_another_holder_through_it(folder: Path) -> None:
    async with node_lock(folder, node="a0-1", run="run-1", deadline=0) as lock:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(lock, b"{}", 0)
        holder = read_holder(folder / "lock")
        assert holder is not None
        assert holder.run == "run-1"


async def test_the_processes_that_hold_the_lock_are_named_whatever_run_the_lock_file_names(
    folder: Path, work: Path
) -> None:
    myself = asdict(Holder.myself("run-7"))
    with orphan(folder, work, **myself) as child:
        heard: list[str] = []
        with pytest.raises(LockDeadlineError, match=rf"held by run run-7 .*; by /proc, pid {child} \(sleep\)"):
            await taken(folder, deadline=0.3, heard=heard)
        assert f"pid {child} (sleep)" in heard[0]
        assert alive(child)


# As a user that is not root: one process holds the lock and shows nothing of it, another one names what holds it.
HIDDEN = """
import ctypes, fcntl, os, signal, sys
from pathlib import Path
from a0backup.vault.lock import left_over
lock = Path(sys.argv[1])
ready, told = os.pipe()
def as_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
hiding = os.fork()
if hiding == 0:
    as_nobody()
    held = os.open(lock, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    os.write(told, b"x")
    signal.pause()
os.read(ready, 1)
if os.fork() == 0:
    as_nobody()
    print(hiding, left_over(lock), flush=True)
    os._exit(0)
os.wait()
os.kill(hiding, signal.SIGKILL)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_does_not_show_what_it_holds_is_named_as_one_that_may_hold_the_lock() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        (Path(place) / "lock").touch(0o644)
        done = subprocess.run(
            [sys.executable, "-c", HIDDEN, f"{place}/lock"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
    pid, _, text = done.stdout.partition(" ")
    assert re.search(rf"unknown of .*pid {pid} \(python.*which may not be looked at", text)


@contextmanager
def orphan(folder: Path, work: Path, **said: object) -> Iterator[int]:
    """Yield the pid of a process that holds the lock. In the lock file, *said* overwrites fields of its holder."""
    with held_by(folder, "run-1", work) as first:
        holder = read_holder(folder / "lock")
        assert holder is not None
        first.kill()
        (folder / "lock").write_text(json.dumps(asdict(holder) | said))
        yield first.child


async def test_a_holder_on_another_host_never_counts_as_gone_even_if_the_host_names_are_equal(
    folder: Path, work: Path
) -> None:
    with orphan(folder, work, born="another-boot/1") as child:
        with pytest.raises(LockDeadlineError, match="held by run "):
            await taken(folder, deadline=0.3)
        assert alive(child)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_a_lock_file_of_another_user_ends_no_process(folder: Path, work: Path) -> None:
    with orphan(folder, work) as child:
        os.chown(folder / "lock", 65534, 65534)
        with pytest.raises(LockDeadlineError):
            await taken(folder, deadline=0.3)
        assert alive(child)


async def test_a_holder_whose_pid_was_reused_counts_as_gone(folder: Path, work: Path) -> None:
    with orphan(folder, work, pid=os.getpid()) as child:
        assert await taken(folder)
        assert not alive(child)


def test_a_living_process_is_not_gone_and_a_zombie_is() -> None:
    assert not Holder.myself("run").is_gone()
    with subprocess.Popen(["sleep", "60"]) as process:
        born = f"{BOOT}/{process.pid}"
        holder = replace(Holder.myself("run"), pid=process.pid, born=born)
        assert holder.is_gone(), "another start time"
        process.kill()
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert replace(holder, born=f"{BOOT}/1").is_gone()


# -- reading -----------------------------------------------------------------------------------------------------------

WRITTEN = {
    "nothing": "",
    "no JSON": "run-1",
    "a list": "[]",
    "a number": "7",
    "other keys": '{"run": "run-1"}',
    "too deep": "[" * 4096,
    "a birth that is no text": json.dumps(asdict(Holder("r", "h", 1, "b", "s")) | {"born": 5}),
    "a pid that is no number": json.dumps(asdict(Holder("r", "h", 1, "b", "s")) | {"pid": "../../etc"}),
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
async def test_a_lock_file_that_names_no_holder_still_works_as_a_lock(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "lock").write_text(text)
    assert read_holder(folder / "lock") is None
    descriptor = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(LockDeadlineError, match="a run that has not written its name yet"):
            await taken(folder, deadline=0)
    finally:
        os.close(descriptor)
    assert await taken(folder, deadline=0)


def test_a_lock_that_was_never_taken_is_not_held_and_a_check_does_not_create_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert read_holder(tmp_path / "lock") is None
    assert end_orphans(tmp_path / "lock") == []
    assert list(tmp_path.iterdir()) == []
