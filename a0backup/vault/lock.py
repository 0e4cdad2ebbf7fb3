"""One run at a time on a node: `flock` on a file in the vault.

The kernel or the file server frees the lock when the last process that holds the file open has
ended, so no lock needs a clock or a person. Every a0cli of the run inherits it, where possible
without the right to write the file. An a0cli that outlives its killed run keeps the node locked
until it has ended, and the waiting run ends it.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import json
import os
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from a0backup.a0cli.text import quote
from a0backup.errors import LockDeadlineError, VaultUnusableError
from a0backup.files import (
    UnsuitableFileError,
    make_private,
    make_private_directory,
    open_regular,
    read_whole,
)
from a0backup.processes import hidden_from_us, opened, others, stat_fields

_NAMED = 8  # processes in a message
FIRST_LOOK, LONGEST_LOOK = 0.05, 1.0  # seconds between two attempts


@dataclass(frozen=True)
class Holder:
    """Who holds a node's lock, as written into the lock file for messages and to find what a dead run left."""

    run: str
    host: str
    pid: int
    born: str  # where and when the kernel started that process: a pid alone may have been reused
    since: str
    space: str = ""  # the namespace of the pid

    @classmethod
    def myself(cls, run: str) -> "Holder":
        pid = os.getpid()
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(run=run, host=socket.gethostname(), pid=pid, born=_born(pid), since=since, space=_space())

    def is_gone(self) -> bool:
        """Return whether that process has certainly ended; about another host nothing is certain."""
        # A pid is valid only in its namespace: outside a container, its pid is another process. The boot id identifies
        # a machine: host names change, and cloned machines share one.
        same_place = bool(_boot()) and self.born.startswith(f"{_boot()}/") and self.space == _space()
        return same_place and _born(self.pid) != self.born

    def __str__(self) -> str:
        return quote(f"run {self.run} on {self.host} (pid {self.pid}, since {self.since})")


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Return the boot and start time of process *pid* from Linux's /proc; '' if it has ended."""
    try:
        fields = stat_fields(Path(f"/proc/{pid}"))
    except OSError:
        return ""
    # Field 22 of proc(5), counted from 1. A zombie has ended, though it is still listed.
    return "" if fields[0] == "Z" else f"{_boot()}/{fields[19]}"


def read_holder(lock_file: Path) -> Holder | None:
    """Return the holder named in *lock_file*; None if none is named, or it cannot be read as a holder."""
    try:
        holder = Holder(**json.loads(read_whole(lock_file, 4096)))
    except (OSError, UnsuitableFileError, ValueError, TypeError, RecursionError):
        return None
    texts = (holder.run, holder.host, holder.born, holder.since, holder.space)
    return holder if type(holder.pid) is int and all(isinstance(text, str) for text in texts) else None


def is_held(lock_file: Path) -> bool:
    """Return whether a process holds the lock now."""
    try:
        fd = open_regular(str(lock_file), os.O_RDONLY)
    except OSError:
        return False  # there is none, or it is none: a run says so
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks: a run refuses it
    else:
        return False
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def node_lock(
    folder: Path,
    *,
    node: str,
    run: str,
    deadline: float,
    patience: float = 0,
    waiting: Callable[[str], None] = lambda holder: None,
) -> AsyncIterator[int]:
    """Hold the lock of the node whose folder in the vault is *folder*; yield the descriptor for a0cli to inherit.

    An a0cli that a dead run left has *patience* seconds to end by itself: what it asked of the node
    is then done and cannot take effect later. If the lock is taken, *waiting* is called once with
    its holder. Raise LockDeadlineError after *deadline* seconds, VaultUnusableError if the lock is
    impossible.
    """
    path = folder / "lock"
    async with contextlib.AsyncExitStack() as held:
        try:
            make_private_directory(folder)
            fd = await _acquire(path, node, deadline, patience, waiting)
            held.callback(os.close, fd)
            make_private(fd, 0o600)
            _write(path, fd, json.dumps(asdict(Holder.myself(run))).encode())
        except OSError as error:
            raise VaultUnusableError(node, f"the lock {path} cannot be taken: {error.strerror}") from error
        # Keep the name when the lock is released, so that an orphaned a0cli can be traced to its run.
        yield fd


async def _acquire(path: Path, node: str, deadline: float, patience: float, waiting: Callable[[str], None]) -> int:
    began = time.monotonic()
    ends_orphans: float | None = None  # seconds of waiting after which orphans are ended
    pause = FIRST_LOOK
    told = False
    while (fd := _try(path)) is None:
        holder = read_holder(path)
        gone = holder is not None and holder.is_gone()
        waited = time.monotonic() - began
        if not gone:
            ends_orphans = None
        elif ends_orphans is None:
            # Below the deadline: an a0cli that never ends by itself must not keep the node from the waiting run.
            ends_orphans = waited + max(0.0, min(patience, (deadline - waited) / 2))
        if ends_orphans is not None and waited >= ends_orphans:
            end_orphans(path)
        name = str(holder) if holder else "a run that has not written its name yet"
        if not told or waited >= deadline:
            found = left_over(path)
            # Also if that run lives: whoever can write the file can name any run in it.
            name = (
                f"{found or 'a process'}; {name} is gone" if gone else "; by /proc, ".join(filter(None, [name, found]))
            )
        if not told:
            waiting(name)
            told = True
        if waited >= deadline:
            raise LockDeadlineError(node, name, waited)
        await asyncio.sleep(min(pause, deadline - waited))
        pause = min(pause * 2, LONGEST_LOOK)
    return fd


def _try(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if somebody else holds it."""
    try:
        # Read-only: who inherits the lock must not be able to name another holder through it.
        return _try_with(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return _try_with(path, os.O_RDWR)  # NFS locks only what may be written (flock(2))


def _try_with(path: Path, access: int) -> int | None:
    fd = os.open(path, access | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been removed since it was opened: the next run would not find this lock.
        if os.path.samestat(os.fstat(fd), path.lstat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def end_orphans(lock_file: Path) -> list[int]:
    """Kill the process groups that a dead run left and that still hold *lock_file*; return the pids of such processes.

    None is killed while the run that the lock file names may be alive. Only a process that inherited
    the lock from that run, or that works below the node's own folder, is killed: somebody else may
    hold the lock by hand. They are found through Linux's /proc; without it, the caller just waits.
    """
    ended: list[int] = []
    with contextlib.suppress(OSError):
        if lock_file.lstat().st_uid != os.geteuid():
            return []  # who owns it can name anyone as its holder
    work = lock_file.parent.resolve() / "work"
    for pid, locked_by in _lock_holders(lock_file):
        # Read again for each process: another run may have taken over the node, and a run writes its name into the lock
        # file before it starts an a0cli.
        holder = read_holder(lock_file)
        if holder is None or not holder.is_gone():
            return ended
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            group = os.getpgid(pid)
            if group == os.getpgrp() or not (holder.pid in locked_by or _works_below(pid, work)):
                continue
            os.killpg(group, signal.SIGKILL)
            ended.append(pid)
    return ended


def _lock_holders(lock_file: Path) -> Iterator[tuple[int, set[int]]]:
    """Yield each other process that has *lock_file* open, and the pids that locked it through its descriptors.

    Only processes whose descriptors this user may see.
    """
    try:
        wanted = lock_file.stat()
    except OSError:
        return
    for process in others():
        with contextlib.suppress(OSError):
            if infos := list(opened(process, wanted)):
                yield int(process.name), {by for info in infos for by in _locked_by(info)}


def _locked_by(info: str) -> Iterator[int]:
    """Yield the pids that locked an open file: `lock: 1: FLOCK  ADVISORY  WRITE 1234 08:01:99 0 EOF` (proc(5))."""
    for line in info.splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and "FLOCK" in words and words[5].isdigit():
            yield int(words[5])


def _works_below(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder)
    except OSError:
        return False


def left_over(lock_file: Path) -> str:
    """Return which other processes hold *lock_file*, for a message: "pid 12 (node), pid 13 (sh)"; empty if none.

    Processes of this user that do not let it see what they have open are named as such.
    """
    holding = [f"pid {pid} ({_name(pid)})" for pid, locked_by in _lock_holders(lock_file) if locked_by]
    hidden = [f"pid {pid} ({_name(pid)})" for pid in hidden_from_us()]
    more = f" and {len(hidden) - _NAMED} more" if len(hidden) > _NAMED else ""
    unsure = f"unknown of {', '.join(hidden[:_NAMED])}{more}, which may not be looked at" if hidden else ""
    return "; ".join(filter(None, [", ".join(holding), unsure]))


def _name(pid: int) -> str:
    """Return the name of a process's program; never its arguments, which may hold a password."""
    try:
        return quote(Path(f"/proc/{pid}/comm").read_text(errors="replace"), limit=40)
    except OSError:
        return "ended"


def _write(path: Path, lock: int, content: bytes) -> None:
    """Write *content* into the file *path* of which *lock* is a descriptor. Raise OSError."""
    if fcntl.fcntl(lock, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        # NFS: another descriptor is not needed, and its end might release the lock.
        _overwrite(lock, content)
        return
    try:
        fd = open_regular(str(path), os.O_WRONLY)
    except FileNotFoundError:
        return  # somebody has removed it since: the lock is no longer found under this name
    try:
        if os.path.samestat(os.fstat(fd), os.fstat(lock)):
            _overwrite(fd, content)
    finally:
        os.close(fd)


def _overwrite(fd: int, content: bytes) -> None:
    # Written over the old content, whose room it takes on a full disk: a prune must get the lock to free some.
    os.pwrite(fd, content, 0)
    os.ftruncate(fd, len(content))
