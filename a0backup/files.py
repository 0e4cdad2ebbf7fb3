"""Files that survive a crash, and reading them as the disk has them."""

import asyncio
import contextlib
import contextvars
import errno
import hashlib
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

CHUNK = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


class StoppedError(Exception):
    """The work in this thread was called off by whoever waits for it."""


_stopping: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopping", default=None)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run *function* in a thread; when cancelled, call it off and wait for its end before going on.

    The wait keeps the node's lock from being released while the thread still renames or writes.
    """
    stop = threading.Event()
    context = contextvars.copy_context()
    context.run(_stopping.set, stop)
    work = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        # However often it is cancelled meanwhile.
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # taken, so that the loop does not report it as never retrieved
        raise


def raise_if_stopped() -> None:
    """Raise StoppedError where the work in this thread was called off; to be asked every chunk or so."""
    stop = _stopping.get()
    if stop is not None and stop.is_set():
        raise StoppedError


@dataclass(frozen=True)
class Digests:
    """What identifies a file's bytes: size in bytes, md5 and sha256 as lower-case hex."""

    size: int
    md5: str
    sha256: str


class Hasher:
    """Takes the digests of bytes that go by."""

    def __init__(self) -> None:
        self._md5, self._sha256, self._size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0

    def update(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        self._sha256.update(chunk)
        self._size += len(chunk)

    def digests(self) -> Digests:
        """Return those of all bytes so far."""
        return Digests(self._size, self._md5.hexdigest(), self._sha256.hexdigest())


def digests(path: Path, *, past_cache: bool = False) -> Digests:
    """Return the digests of *path*, reading it once in constant memory. Raise OSError, or StoppedError when called off.

    With *past_cache* the pages that the kernel holds of it are dropped first, so that what the disk has is read. They
    are dropped again on the way: a file larger than the memory of the machine must not push everything else out.
    """
    hasher = Hasher()
    with path.open("rb", buffering=0) as file:
        if past_cache:
            _drop_cached_pages(file.fileno())
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            raise_if_stopped()
        if past_cache:
            _drop_cached_pages(file.fileno())
    return hasher.digests()


class UnsuitableFileError(Exception):
    """A file is not what it was taken for; *reason* completes a sentence that begins with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExposedFileError(UnsuitableFileError):
    """Others than its owner may read or write a file that is to be private."""


def read_whole(path: Path, limit: int, *, follow: bool = False, private: bool = False) -> bytes:
    """Return the content of the regular file *path*, of *limit* bytes at most; no pipe is waited for.

    A link is refused unless *follow*. Raise UnsuitableFileError, OSError; ExposedFileError where it is to be *private*
    and others than its owner may read or write it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise UnsuitableFileError("is not a regular file") from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnsuitableFileError("is not a regular file")
        if private and status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise ExposedFileError(f"has mode {mode:04o}, which lets others than its owner in")
        content = b""
        while len(content) <= limit and (piece := os.read(fd, limit + 1 - len(content))):
            content += piece
    finally:
        os.close(fd)
    if len(content) > limit:
        most = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise UnsuitableFileError(f"is larger than {most}")
    return content


def open_regular(path: str, flags: int) -> int:
    """Open *path* for the `opener` of `open`: neither a link is followed nor a pipe waited for. Raise OSError."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)


def open_private(path: str, flags: int) -> int:
    """Open *path* for the `opener` of `open`; a new file is its owner's alone. Raise OSError."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def read_past_cache(path: Path) -> bytes:
    """Return the bytes of the small file *path* as the disk has them. Raise OSError."""
    with path.open("rb", buffering=0) as file:
        _drop_cached_pages(file.fileno())
        return file.readall()


def _drop_cached_pages(fd: int) -> None:
    # Linux only; elsewhere the read back is of the cache, which is still a read of what was written.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def make_private_directory(path: Path) -> None:
    """Make *path* and what is missing above it with mode 0700, whatever the umask; one that exists is left as it is."""
    if path.is_dir():
        return
    make_private_directory(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    path.chmod(0o700)
    fsync_directory(path.parent)


def make_new_directory(path: Path) -> None:
    """Make *path* with mode 0700 exclusively. Raise FileExistsError where it is there already."""
    path.mkdir(0o700)
    path.chmod(0o700)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in *path* durable."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def make_durable(path: Path) -> None:
    """Make the bytes of *path* durable, under this name; where fsync fails they are written anew, once. Raise OSError.

    After an error the same file is never synced again: the kernel may have forgotten what it could not write, and a
    second fsync would then lie (LWN, "PostgreSQL's fsync() surprise"). What is written anew is what the disk gives
    back.
    """
    try:
        _fsync(path, os.O_RDONLY | os.O_NOFOLLOW)
        fsync_directory(path.parent)
    except OSError:
        with open(path, "rb", buffering=0, opener=open_regular) as file:
            _drop_cached_pages(file.fileno())
            _write_and_rename(path, iter(lambda: file.read(CHUNK), b""))


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(path: Path, content: bytes, *, check: Callable[[Path], None] = lambda written: None) -> None:
    """Replace *path* by *content* atomically and durably, mode 0600: all of it is there after a crash, or none.

    *check* is given the written file before it takes its place, and raises where it must not.

    Where it cannot be made durable it is written anew, to another file, once. Raise OSError; nothing is left beside
    the file then, and the former one is still whole unless only the new name could not be made durable.
    """
    try:
        _write_and_rename(path, [content], check)
    except OSError:
        _write_and_rename(path, [content], check)


def _write_and_rename(
    path: Path, chunks: Iterable[bytes], check: Callable[[Path], None] = lambda written: None
) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        try:
            os.fchmod(fd, 0o600)
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        check(aside)
        # fsync before the rename: otherwise a crash can leave the new name on an empty file.
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def remove_durably(path: Path) -> None:
    """Remove the file *path*, if it is there, so that it stays away after a crash."""
    path.unlink(missing_ok=True)
    fsync_directory(path.parent)
