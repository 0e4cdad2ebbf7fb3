"""A place that is a directory: another disk, or a file server that is mounted."""

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from a0backup.errors import PlaceArtifactError, PlaceDeniedError, PlaceError
from a0backup.files import drop_cached_pages, folder_below, fsync_directory, make_private, make_private_directory
from a0backup.fleet.copies import Copy
from a0backup.places.store import CHUNK, LEFT_AFTER, PARTIAL, SYNC, Entry, Store, can_be_nodes
from a0backup.vault.mounts import unmounted

# A bad sector, a link, a folder or a pipe in the place of a file: the other files may be well.
_OF_ONE_FILE = (errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)


@contextmanager
def open_directory(copy: Copy) -> Iterator[Store]:
    """Yield the directory of *copy*. Raise PlaceError if the disk below it should be mounted and is not."""
    root = Path(copy.root)
    if (mount := unmounted(root)) is not None:
        raise PlaceError(copy.name, f"nothing is mounted at {mount}", f"mount {mount}")
    yield _Directory(copy.name, root)


class _Directory:
    """See `Store`. No link is followed below the root."""

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root

    def size(self, path: str) -> int | None:
        with self._failing(path):
            try:
                with self._parent(path) as parent:
                    status = os.stat(Path(path).name, dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not stat.S_ISREG(status.st_mode):
                raise PlaceArtifactError(
                    self._name, f"{self._root / path} is not a regular file", "look at it, and remove it"
                )
            return status.st_size

    def read(self, path: str) -> Iterator[bytes]:
        with self._failing(path, missing=True), self._parent(path) as parent:
            file = os.open(Path(path).name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise PlaceArtifactError(self._name, f"{self._root / path} is not a regular file")
                drop_cached_pages(file)
                while chunk := os.read(file, CHUNK):
                    yield chunk
            finally:
                os.close(file)

    def write(self, path: str, chunks: Iterable[bytes], *, size: int) -> bool:
        name = Path(path).name
        aside = f".{name}.{secrets.token_hex(8)}.partial"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._failing(path):
            if "/" in path and not self._root.is_dir():
                raise PlaceError(self._name, f"{self._root} is gone", "mount its disk")
            make_private_directory((self._root / path).parent)
            with self._parent(path) as parent:
                file = os.open(aside, flags, 0o600, dir_fd=parent)
                try:
                    try:
                        make_private(file, 0o600)
                        written = _write(file, chunks)
                        os.fsync(file)
                    finally:
                        os.close(file)
                    if written != size:
                        raise PlaceError(self._name, f"{path}: {written} bytes were sent, not {size}")
                    os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(aside, dir_fd=parent)
                    raise
                os.fsync(parent)
            self._make_names_durable(path)
        return False

    def settle(self, path: str) -> None:
        with self._failing(path), self._parent(path) as parent:
            file = os.open(Path(path).name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.fsync(file)
            finally:
                os.close(file)
            os.fsync(parent)
            self._make_names_durable(path)

    def _make_names_durable(self, path: str) -> None:
        """Make the names of the folders above the file durable: who made them may have been killed before they were."""
        for folder in (self._root / path).parent.parents:
            if folder == self._root.parent:
                with suppress(PermissionError):  # the folder above the root may be somebody else's
                    fsync_directory(folder)
                return
            fsync_directory(folder)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        def fail(error: OSError) -> None:
            if error.errno != errno.ENOENT:
                raise error

        with self._failing(prefix):
            for folder, folders, names in os.walk(self._root / prefix.rpartition("/")[0], onerror=fail):
                if Path(folder) == self._root:
                    folders[:] = filter(can_be_nodes, folders)
                folders.sort()
                # No link is followed; one to a folder is an entry like one to a file.
                names += [name for name in folders if Path(folder, name).is_symlink()]
                for name in sorted(names):
                    file = Path(folder, name)
                    path = file.relative_to(self._root).as_posix()
                    if path.startswith(prefix):
                        with suppress(FileNotFoundError):
                            yield Entry(path, file.lstat().st_size)

    def remove(self, path: str) -> None:
        with self._failing(path), suppress(FileNotFoundError), self._parent(path) as parent:
            os.unlink(Path(path).name, dir_fd=parent)
            os.fsync(parent)
        with suppress(OSError):  # other files are in it
            (self._root / path).parent.rmdir()
            fsync_directory((self._root / path).parent.parent)

    def tidy(self) -> None:
        for entry in self.entries():
            with suppress(FileNotFoundError):
                if PARTIAL.fullmatch(Path(entry.path).name):
                    age = time.time() - (self._root / entry.path).lstat().st_mtime
                    if age > LEFT_AFTER:
                        self.remove(entry.path)
        for folder, folders, names in os.walk(self._root, topdown=False):
            # A killed prune leaves an empty folder. One that is new may be that of a copy under way.
            is_empty = not folders and not names and Path(folder) != self._root
            with suppress(OSError):
                if is_empty and time.time() - Path(folder).lstat().st_mtime > LEFT_AFTER:
                    Path(folder).rmdir()

    @contextmanager
    def _parent(self, path: str) -> Iterator[int]:
        with folder_below(self._root, (self._root / path).parent) as parent:
            yield parent

    @contextmanager
    def _failing(self, path: str, *, missing: bool = False) -> Iterator[None]:
        """Turn an OSError of the block into a PlaceError; where a file may be *missing*, not that it is."""
        try:
            yield
        except OSError as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            remedies = {
                errno.ENOSPC: f"free space on the disk of {self._root}",
                errno.EDQUOT: f"free space, or raise the quota, on the disk of {self._root}",
                errno.EACCES: f"make {self._root} writable for this user",
                errno.EPERM: "the file or its folder is protected; if it is meant to be, this is as it should be",
                errno.EROFS: f"mount the disk of {self._root} so that it can be written",
                errno.ELOOP: "a link is in the way, and no link is followed in a place; put a folder there",
                errno.ENOTDIR: "a link or a file is in the way; put a folder there",
            }
            where = self._root / path if path else self._root
            remedy = remedies.get(error.errno or 0, "")
            kind: type[PlaceError] = PlaceError
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                kind = PlaceDeniedError
            elif "/" in path and error.errno in _OF_ONE_FILE:
                kind = PlaceArtifactError
            raise kind(self._name, f"{where}: {error.strerror}", remedy) from error


def _write(file: int, chunks: Iterable[bytes]) -> int:
    written = unsynced = 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            count = os.write(file, view)
            view = view[count:]
            written, unsynced = written + count, unsynced + count
        if unsynced >= SYNC:
            os.fdatasync(file)
            unsynced = 0
    return written
