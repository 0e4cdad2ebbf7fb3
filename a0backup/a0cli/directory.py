"""The private directory in which every a0cli call of one node's run takes place."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from a0backup.a0cli.text import quote
from a0backup.errors import (
    A0cliMissingError,
    RetrieveFailedError,
    VaultUnusableError,
)
from a0backup.files import make_private, open_regular, remove_tree

RETRIEVED = "*.tar.gz.enc"


class PrivateDirectory:
    """The private directory in which every a0cli call of one node's run takes place.

    a0cli reads its key pair from the current directory and writes there what it retrieves (vendor's page
    on the CLI). Nodes that shared a directory would overwrite each other's files.
    """

    def __init__(self, path: Path, *, node: str) -> None:
        self.path, self.node = path, node

    @classmethod
    def make(cls, parent: Path, name: str, *, key_dir: Path, node: str) -> "PrivateDirectory":
        """Create *parent*/*name* with mode 0700, whatever the umask, and a link to each file of *key_dir*.

        Anything that an earlier run left under this name is deleted first. Raise A0cliMissingError if
        there is no key to link, VaultUnusableError if the directory cannot be created.
        """
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise VaultUnusableError(node, f"{quote(name)!r} cannot name a private directory")
        keys = _key_files(key_dir, node)
        made = cls(parent.absolute() / name, node=node)
        made.remove()
        try:
            _make_private(made.path)
            for key in keys:
                _link(key, made.path / key.name)
        except OSError as error:
            raise VaultUnusableError(node, f"private directory {made.path}: {error.strerror}") from error
        return made

    def remove(self) -> None:
        """Delete the directory and its contents, but not the key files themselves.

        What cannot be removed stays: the next run's sweep tries again, and names it.
        """
        remove_tree(self.path)

    def clear_retrieved(self) -> None:
        """Delete everything that could be mistaken for a retrieved file. Raise VaultUnusableError."""
        try:
            for path in self.path.glob(RETRIEVED):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise VaultUnusableError(self.node, f"private directory {self.path}: {error.strerror}") from error

    def retrieved(self, kind: str = "backup") -> Path:
        """Return the one file that the last retrieve left, after setting its mode to 0600.

        Call *clear_retrieved* before that retrieve. Raise RetrieveFailedError if there is no file, more
        than one, or one that is not a regular file.
        """
        paths = sorted(self.path.glob(RETRIEVED))
        if len(paths) != 1:
            left = f"{len(paths)} {RETRIEVED} files" if paths else f"no {RETRIEVED} file"
            raise RetrieveFailedError(self.node, kind, 1, f"a0cli left {left}")
        try:
            descriptor = open_regular(str(paths[0]), os.O_RDONLY)
            try:
                regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
                if regular:
                    make_private(descriptor, 0o600)
            finally:
                os.close(descriptor)
        except OSError:
            regular = False
        if not regular:
            raise RetrieveFailedError(self.node, kind, 1, "what a0cli left is not a regular file")
        return paths[0]


def _key_files(key_dir: Path, node: str) -> list[Path]:
    try:
        files = sorted(path.absolute() for path in key_dir.iterdir() if path.is_file() and not path.match(RETRIEVED))
    except OSError as error:
        reason = f"key_dir {key_dir}: {error.strerror}"
        raise A0cliMissingError(node, "key pair", reason) from error
    if not files:
        raise A0cliMissingError(node, "key pair", f"key_dir {key_dir} holds no file")
    for path in files:
        if not os.access(path, os.R_OK):
            raise A0cliMissingError(node, "key pair", f"key file {path} cannot be read")
    return files


def _link(key: Path, link: Path) -> None:
    try:
        link.symlink_to(key)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # This file system has no links. The copy is as private as the directory, and goes with it.
        descriptor = os.open(link, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            copy.write(key.read_bytes())


def _make_private(path: Path) -> None:
    if not path.parent.is_dir():
        _make_private(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        make_private(path, 0o700)
