"""Write files that survive a crash, and read files as the disk has them."""

import asyncio
import contextlib
import contextvars
import errno
import hashlib
import os
import pwd
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from a0backup.access import has_acl

CHUNK = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


class StoppedError(Exception):
    """The caller that waits for this thread has cancelled its work."""


_stopping: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopping", default=None)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run *function* in a thread; when cancelled, stop the thread's work and wait for its end.

    The wait keeps the node's lock from being released while the thread still renames or writes.
    """
    stop = threading.Event()
    context = contextvars.copy_context()
    called = stoppable(stop, partial(function, *args, **kwargs))
    # A thread of its own: in the few that asyncio shares, long reads of some nodes would stop all others, and the look
    # at what they write.
    thread = ThreadPoolExecutor(1, "in-thread")
    work = asyncio.get_running_loop().run_in_executor(thread, context.run, called)
    thread.shutdown(wait=False)  # it ends with its only work
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        # Wait to the end, however often this is cancelled.
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # retrieved here, or the loop reports it as never retrieved
        raise


def stoppable(stop: threading.Event, work: Callable[[], R]) -> Callable[[], R]:
    """Return *work* as one that `raise_if_stopped` ends once *stop* is set; call it in a context of its own."""

    def call() -> R:
        _stopping.set(stop)
        return work()

    return call


def raise_if_stopped() -> None:
    """Raise StoppedError if the work in this thread was cancelled; call it about once per chunk."""
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
    """Computes the digests of a stream of bytes."""

    def __init__(self) -> None:
        self._md5, self._sha256, self._size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0

    def update(self, chunk: bytes) -> None:
        self._md5.update(chunk)
        self._sha256.update(chunk)
        self._size += len(chunk)

    def digests(self) -> Digests:
        """Return the digests of all bytes so far."""
        return Digests(self._size, self._md5.hexdigest(), self._sha256.hexdigest())


def digests(path: Path, *, past_cache: bool = False) -> Digests:
    """Return the digests of *path*, read once in constant memory. Raise OSError, or StoppedError when cancelled.

    With *past_cache*, the kernel's cached pages of the file are dropped first: the bytes then come
    from the disk. They are dropped again at the end: a file larger than the machine's memory must
    not push everything else out.
    """
    hasher = Hasher()
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        if past_cache:
            drop_cached_pages(file.fileno())
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            raise_if_stopped()
        if past_cache:
            drop_cached_pages(file.fileno())
    return hasher.digests()


class UnsuitableFileError(Exception):
    """A file is not what it was expected to be; *reason* completes a sentence that begins with the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExposedFileError(UnsuitableFileError):
    """Others than the owner may read or write a file that must be private."""


class ForeignFileError(UnsuitableFileError):
    """Somebody else than this user and root owns a file that must be private."""


def read_whole(path: Path | str, limit: int, *, follow: bool = False, private: bool = False) -> bytes:
    """Return the content of the regular file *path*, at most *limit* bytes, without waiting for a pipe.

    A link is refused unless *follow*. Raise UnsuitableFileError, OSError; if the file must be
    *private*, ForeignFileError if somebody else than this user and root owns it, ExposedFileError if
    others than its owner may read or write it.
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
        foreign = status.st_uid not in (0, os.geteuid()) and not os.fstatvfs(fd).f_flag & os.ST_RDONLY
        if private and foreign:
            raise ForeignFileError(f"belongs to {user_name(status.st_uid)}, who can change it")
        if private and status.st_mode & 0o077 and not _is_only_for_our_group(fd, status):
            mode = stat.S_IMODE(status.st_mode)
            raise ExposedFileError(f"has mode {mode:04o}, which gives others access")
        content = b""
        while len(content) <= limit and (piece := os.read(fd, limit + 1 - len(content))):
            content += piece
    finally:
        os.close(fd)
    if len(content) > limit:
        most = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise UnsuitableFileError(f"is larger than {most}")
    return content


def _is_only_for_our_group(fd: int, status: os.stat_result) -> bool:
    """Return whether besides the owner only our own group may read the file, and we cannot change that.

    Container platforms mount secrets like this: owned by root, readable by the group, read-only.
    """
    ours = status.st_gid in (os.getegid(), *os.getgroups())
    fixed = status.st_uid != os.geteuid() or bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
    return ours and fixed and not status.st_mode & 0o037 and not has_acl(fd)


def open_regular(path: str, flags: int) -> int:
    """Open *path* as the `opener` of `open`, without following a link or waiting for a pipe.

    Raise OSError, also for what is not a regular file.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "is not a regular file", path)


def open_private(path: str, flags: int) -> int:
    """Open *path* as the `opener` of `open`; only the owner may access a new file. Raise OSError."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def read_past_cache(path: Path) -> bytes:
    """Return the bytes of the small file *path* as the disk has them. Raise OSError."""
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        drop_cached_pages(file.fileno())
        return file.readall()


def drop_cached_pages(fd: int) -> None:
    """Make the next read of the file come from the disk."""
    # Linux only. Elsewhere the read back comes from the cache, which still reads what was written.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def make_private(file: Path | int, mode: int) -> None:
    """Set the mode of a file or directory, by its path or descriptor, to *mode*, which is for the owner alone.

    A file system without modes refuses that; it is accepted if nobody else has access anyway. Raise OSError.
    """
    try:
        os.chmod(file, mode)  # noqa: PTH101 - also of a descriptor
    except OSError:
        if os.stat(file).st_mode & 0o077:  # noqa: PTH116 - also of a descriptor
            raise


def make_private_directory(path: Path) -> None:
    """Make *path* and its missing parents with mode 0700, whatever the umask; existing ones stay unchanged."""
    if path.is_dir():
        return
    make_private_directory(path.parent)
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    make_private(path, 0o700)
    fsync_directory(path.parent)


def make_new_directory(path: Path) -> None:
    """Make the new directory *path* with mode 0700. Raise FileExistsError if it already exists."""
    path.mkdir(0o700)
    make_private(path, 0o700)
    fsync_directory(path.parent)


@contextlib.contextmanager
def folder_below(root: Path, folder: Path) -> Iterator[int]:
    """Yield a descriptor of *folder*, which is *root* or lies below it; no link is followed on the way from *root*.

    What is done with the descriptor happens in that very folder, whatever becomes of its name. Raise
    OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in folder.relative_to(root).parts:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def remove_tree(path: Path, *, below: Path | None = None) -> list[Path]:
    """Remove the directory *path* with all that is in it; return what could not be removed, by whole paths.

    No link is followed on the way from *below* (default: the parent) to it. Folders of this user that
    are closed to it are opened. A file server may put a folder of its own into each directory, which
    only its owner can remove.
    """
    left: list[Path] = []

    def keep(function: Callable[..., object], name: str, error: object) -> None:
        if os.path.lexists(path.parent / name):
            left.append(path.parent / name)

    try:
        with folder_below(below or path.parent, path.parent) as parent:
            shutil.rmtree(path.name, dir_fd=parent, onerror=keep)
            if left:
                left.clear()
                _open_up(path.name, parent)
                shutil.rmtree(path.name, dir_fd=parent, onerror=keep)
    except FileNotFoundError:
        return []
    except (OSError, RecursionError):  # the latter for thousands of nested folders
        return [path]
    return left


def _open_up(name: str, parent: int) -> None:
    """Give this user all rights on the directory *name* in *parent* and on those in it, if they are its own."""
    _let_in(name, parent)
    for _, folders, _, folder in os.fwalk(name, dir_fd=parent):
        for each in folders:
            _let_in(each, folder)


def _let_in(name: str, parent: int) -> None:
    with contextlib.suppress(OSError):
        # Linux opens with O_PATH what is closed to this user. No link is followed.
        flags = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.chmod(f"/proc/self/fd/{descriptor}", 0o700)  # noqa: PTH101 - fchmod takes no such descriptor
        finally:
            os.close(descriptor)


def remove_file(path: Path, *, below: Path) -> None:
    """Remove the file *path* if it exists; no link is followed on the way from *below* to it. Raise OSError."""
    with folder_below(below, path.parent) as parent, contextlib.suppress(FileNotFoundError):
        os.unlink(path.name, dir_fd=parent)


def owner_of(path: Path, *, follow: bool = True) -> str:
    """Return the name of the user whom *path* belongs to, or the number if it has no name. Raise OSError."""
    return user_name(path.stat(follow_symlinks=follow).st_uid)


def user_name(uid: int) -> str:
    """Return the name of the user *uid*, or the number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def fsync_directory(path: Path) -> None:
    """Make the names in *path* durable."""
    _fsync(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def make_durable(path: Path) -> None:
    """Make the bytes of *path* durable under this name; if fsync fails, rewrite them once. Raise OSError.

    After an error the same file is never synced again: the kernel may have forgotten what it could
    not write, and a second fsync would then report a false success (LWN, "PostgreSQL's fsync()
    surprise"). The rewrite uses the bytes that the disk returns.
    """
    try:
        _fsync(open_regular(str(path), os.O_RDONLY))
        fsync_directory(path.parent)
    except OSError:
        with open(path, "rb", buffering=0, opener=open_regular) as file:
            drop_cached_pages(file.fileno())
            _write_and_rename(path, iter(lambda: file.read(CHUNK), b""))


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(path: Path, content: bytes, *, check: Callable[[Path], None] = lambda written: None) -> None:
    """Replace *path* by *content* atomically and durably, mode 0600: after a crash, all of it is there or none.

    *check* receives the written file before it takes its place, and raises an error to prevent
    that.

    If the file cannot be made durable, it is written once more, to another file. Raise OSError;
    then no other file is left, and the former file is still whole unless only the new name could
    not be made durable.
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
            make_private(fd, 0o600)
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


def publish_new(path: Path, content: bytes) -> None:
    """Write *content* to the new file *path* as `publish` does; a file that exists stays as it is. Raise OSError."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        publish(aside, content)
        with contextlib.suppress(FileExistsError):
            take_name(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_directory(path.parent)


def take_name(aside: Path, path: Path) -> None:
    """Rename *aside* to the new name *path*. Raise FileExistsError if *path* exists, OSError."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no links (a USB stick, for example): take the name first, then replace it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            aside.replace(path)
        except BaseException:
            path.unlink()
            raise
    else:
        aside.unlink(missing_ok=True)


def remove_durably(path: Path) -> None:
    """Remove the file *path* if it exists; it stays removed after a crash."""
    path.unlink(missing_ok=True)
    fsync_directory(path.parent)
