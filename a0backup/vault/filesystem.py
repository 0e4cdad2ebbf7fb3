"""What the vault's file system must be able to do. Nothing is written: vault.json is opened and locked."""

import fcntl
import os
from pathlib import Path

from a0backup.errors import UnknownVaultError
from a0backup.files import fsync_directory
from a0backup.vault.vault import VAULT

REMEDY = "move the vault to a file system of Linux, such as ext4 or XFS, or to NFS with locks"


def require_able(root: Path) -> None:
    """Return if locks work on the file system of the vault at *root*, and names can be made durable.

    Raise UnknownVaultError, which names the call that fails and what it means.
    """
    descriptors: list[int] = []
    try:
        descriptors = [os.open(root / VAULT, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW) for _ in range(2)]
        _require_locks(root, *descriptors)
        try:
            fsync_directory(root)
        except OSError as error:
            raise UnknownVaultError(
                str(root),
                f"is on a file system that cannot make names durable (fsync of a folder: {error.strerror}): a power cut"
                " could take what was stored",
                REMEDY,
            ) from None
    except OSError as error:
        raise UnknownVaultError(str(root), f"cannot be written: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _require_locks(root: Path, one: int, other: int) -> None:
    without = "two runs would work on one node at once"
    try:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another process does the same at this moment: locks work
    except OSError as error:
        reason = f"is on a file system without locks (flock: {error.strerror}): {without}"
        raise UnknownVaultError(str(root), reason, REMEDY) from None
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    reason = f"is on a file system whose locks lock nothing (flock succeeds twice): {without}"
    raise UnknownVaultError(str(root), reason, REMEDY)
