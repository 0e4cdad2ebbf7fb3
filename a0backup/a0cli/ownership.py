"""Take over what a0cli has written: from then on, nobody else can change the bytes.

What is hashed must be what is stored. A descendant of a0cli that left its process group may write on,
and another name of the file would let it be changed at any time.
"""

import contextlib
import errno
import fcntl
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from a0backup.files import CHUNK, open_private, open_regular, raise_if_stopped
from a0backup.processes import others, stat_fields

# Set for each a0cli, and inherited by all that it starts.
MARK = "A0BACKUP_DIRECTORY"

_ENDS = 5.0  # seconds for killed processes to end


def take_over(path: Path, *, spare: int = sys.maxsize) -> None:
    """End every process that a0cli left in the directory of *path*, and make sure that no other can write the file.

    Where another name or an open writer is left, or that cannot be known, the file is replaced by a
    copy of its bytes, which may take *spare* bytes of the disk. Raise OSError.
    """
    end_descendants(path.parent)
    if not _is_ours_alone(path):
        _replace_by_copy(path, spare)


def end_descendants(directory: Path) -> list[int]:
    """Kill all processes that a0cli started in *directory* and that outlived it; return their pids.

    They are found through Linux's /proc, by the mark in their environment.
    """
    ended: list[int] = []
    until = time.monotonic() + _ENDS
    while found := list(_descendants(directory)):
        for pid in found:
            with contextlib.suppress(OSError):  # it has ended, or belongs to another user
                os.kill(pid, signal.SIGKILL)
        ended += [pid for pid in found if pid not in ended]
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return ended


def _descendants(directory: Path) -> Iterator[int]:
    mark = os.fsencode(f"{MARK}={directory}")
    for process in others():
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            marked = mark in (process / "environ").read_bytes().split(b"\0")
            if marked and stat_fields(process)[0] not in ("Z", "X"):
                yield int(process.name)


def _is_ours_alone(path: Path) -> bool:
    """Return whether the file has this one name and the kernel says that no process has it open for writing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_nlink != 1 or not hasattr(fcntl, "F_SETLEASE"):
            return False
        # Whoever opens the file meanwhile breaks the lease, and the default signal for that would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # The kernel grants a read lease only while nobody has the file open for writing (fcntl(2)).
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        whole = fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            # There is a writer, or this file system grants no leases (NFS). /proc would not tell which: a process can
            # keep others of its user from seeing what it has open.
            return False
        raise
    else:
        return whole
    finally:
        os.close(descriptor)


def _replace_by_copy(path: Path, spare: int) -> None:
    copy = path.with_name(f".{path.name}.partial")
    copy.unlink(missing_ok=True)
    try:
        with (
            open(path, "rb", buffering=0, opener=open_regular) as source,
            open(copy, "xb", buffering=0, opener=open_private) as target,
        ):
            _copy(source, target, spare)
        copy.replace(path)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def _copy(source: io.FileIO, target: io.FileIO, spare: int) -> None:
    """Copy what is in *source* now, not what comes meanwhile; it may take *spare* bytes of the disk. Raise OSError."""
    status = os.fstat(source.fileno())
    left, taken = status.st_size, 0
    full = OSError(errno.ENOSPC, f"no room for a copy of what others can still write ({spare:,} bytes are free for it)")
    if min(status.st_size, status.st_blocks * 512) > spare:
        raise full
    while left and (chunk := source.read(min(CHUNK, left))):
        raise_if_stopped()
        left -= len(chunk)
        if chunk.count(0) == len(chunk):
            target.seek(len(chunk), os.SEEK_CUR)  # a hole stays one, or a file of holes would fill the disk
            continue
        taken += len(chunk)
        if taken > spare:
            raise full
        view = memoryview(chunk)
        while view:
            view = view[target.write(view) :]
    target.truncate(status.st_size - left)
