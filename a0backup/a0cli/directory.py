"""The private directory in which every a0cli call of one node's run takes place."""

import contextlib
import errno
import hashlib
import os
import tempfile
from pathlib import Path

from a0backup.a0cli.characters import one_line
from a0backup.a0cli.text import quote
from a0backup.errors import (
    A0cliMissingError,
    NoHomeError,
    RetrieveFailedError,
    VaultUnusableError,
)
from a0backup.files import make_private, make_private_directory, open_private, open_regular, remove_tree
from a0backup.state_folder import state_folder

RETRIEVED = "*.tar.gz.enc"
_LARGEST = 16 << 20  # bytes of one file of `key_dir`


class PrivateDirectory:
    """The private directory in which every a0cli call of one node's run takes place.

    a0cli reads its key pair from the current directory and writes there what it retrieves (vendor's page
    on the CLI). Nodes that shared a directory would overwrite each other's files.
    """

    def __init__(self, parent: Path, name: str, *, node: str) -> None:
        """Name the directory *parent*/*name*; *make* creates it. Raise VaultUnusableError for a *name* that is none."""
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise VaultUnusableError(node, f"{quote(name)!r} cannot name a private directory")
        self.path, self.node = parent.absolute() / name, node
        self._keys: Path | None = None

    def make(self, key_dir: Path) -> None:
        """Create the directory with mode 0700, whatever the umask, and with the files of *key_dir*.

        Each is a link to a copy: what a call writes must reach neither *key_dir* nor another node. The
        copies are on this machine, as the vault may be on another.

        Anything that an earlier run left under this name is deleted first, and so are copies of the
        keys that a killed run left for the same parent. Raise A0cliMissingError if there is no key to
        link, VaultUnusableError if the directory cannot be created.
        """
        keys = _key_files(key_dir, self.node)
        self.remove()
        try:
            _make_private(self.path)
            self._keys = _new_place_for_keys(self.path.parent)
            for key in keys:
                _give(key, self._keys / key.name, self.path / key.name)
        except OSError as error:
            self.remove()
            place = error.filename or f"{self.path} or {tempfile.gettempdir()}"
            raise VaultUnusableError(self.node, f"private directory {self.path}: {place}: {error.strerror}") from error

    def remove(self) -> None:
        """Delete the directory and its contents, and the copies of the keys.

        What cannot be removed stays: the next run's sweep tries again, and names it.
        """
        remove_tree(self.path)
        if self._keys is not None:
            remove_tree(self._keys)

    def contents(self) -> frozenset[Path]:
        """Return all that is in the directory now. Raise OSError."""
        return frozenset(self.path.iterdir())

    def clear_retrieved(self, *, but: frozenset[Path] | None = None) -> None:
        """Delete everything that could be mistaken for a retrieved file; with *but*, also all else but these.

        Raise VaultUnusableError.
        """
        try:
            new = frozenset() if but is None else self.contents() - but
            for path in {*self.path.glob(RETRIEVED), *self.path.glob(".*.partial"), *new}:
                if path.is_dir() and not path.is_symlink():
                    if remove_tree(path):
                        raise OSError(errno.ENOTEMPTY, f"{one_line(str(path))} cannot be removed")
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
                make_private(descriptor, 0o600)
            finally:
                os.close(descriptor)
        except OSError:
            raise RetrieveFailedError(self.node, kind, 1, "what a0cli left is not a regular file") from None
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


def _new_place_for_keys(parent: Path) -> Path:
    """Return a new folder, mode 0700, for copies of keys; former ones for *parent* are from killed runs. Raise OSError.

    It is in the user's state folder or, where that cannot be written, as for a service, in that for temporary files.
    """
    prefix = f"a0backup-keys-{hashlib.sha256(os.fsencode(parent)).hexdigest()[:16]}-"
    try:
        base = state_folder() / "keys"
        make_private_directory(base)
        return _new_folder(base, prefix)
    except (OSError, NoHomeError):
        return _new_folder(Path(tempfile.gettempdir()), prefix)


def _new_folder(base: Path, prefix: str) -> Path:
    for left in base.glob(f"{prefix}*"):
        # In a folder for temporary files, others can make such ones, too.
        if left.lstat().st_uid == os.geteuid():
            remove_tree(left)
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    make_private(made, 0o700)
    return made


def _give(file: Path, copy: Path, name: Path) -> None:
    """Make *file* available as *name*, a link to *copy*."""
    with file.open("rb") as source:
        content = source.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        return  # neither a key nor a setting
    try:
        name.symlink_to(copy)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # This file system has no links. The copy in it is as private as the directory, and goes with it.
        copy = name
    with open(copy, "xb", opener=open_private) as target:
        make_private(target.fileno(), 0o600)
        target.write(content)


def _make_private(path: Path) -> None:
    if not path.parent.is_dir():
        _make_private(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        make_private(path, 0o700)
