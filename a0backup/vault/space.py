"""Space on the vault's disk for the next artifacts: the size of the last one, plus a quarter.

Within one process, what concurrent nodes are about to write is taken into account. A retrieval is
stopped where it writes far more than the last artifact, or into the space of others.
"""

import contextlib
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from a0backup.errors import VaultFullError
from a0backup.vault.quarantine import drop_all_quarantines, drop_quarantine
from a0backup.vault.vault import Vault

MARGIN = 1.25  # installations grow, and their artifacts with them

UNKNOWN = 1 << 60
_GROWTH, _GROWTH_BYTES = 10, 10**9  # an artifact may be this many times as large as the last one, and this much more
_KEPT_FREE = 100  # one part in so many of the disk, for what others write

_lock = threading.Lock()
_claims: dict[tuple[Path, str], "_Claim"] = {}


@dataclass(frozen=True)
class Space:
    """What the next artifact may take, what the last one took (None: no last one), and what is free, in bytes."""

    needed: int
    last: int | None
    free: int
    known: bool = True  # whether the file system says how much is free

    @property
    def enough(self) -> bool:
        return self.free >= self.needed


@dataclass(frozen=True)
class _Claim:
    needed: int
    arriving: Path

    def written(self) -> int:
        """Return the number of bytes that have arrived, under whatever name."""
        return _size(self.arriving)

    def outstanding(self) -> int:
        """Return the number of bytes that have not been written yet."""
        return max(0, self.needed - self.written())


def _size(folder: Path) -> int:
    """Return the size of all files below *folder*; what is removed meanwhile does not count."""
    size, folders = 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError):
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def space_for(vault: Vault, node: str, kind: str) -> Space:
    """Return the space that the next artifact of *node* needs and has. Raise OSError if the disk cannot be queried."""
    last = vault.newest(node, kind)
    size = last.artifact.size if last else None
    usage = shutil.disk_usage(nearest(vault.folder(node)))
    # Some file systems do not say how large they are, and then report zeros.
    known = usage.total > 0
    return Space(needed=int((size or 0) * MARGIN), last=size, free=usage.free if known else UNKNOWN, known=known)


def nearest(place: Path) -> Path:
    """Return *place*, or its nearest parent that exists."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def claim(vault: Vault, node: str, kind: str, *, arriving: Path) -> Space:
    """Claim and return space for the next artifact, which arrives in the directory *arriving*, until `release`.

    If too little remains beside the claims of other nodes, quarantines are emptied first: that of
    the node, then all. Raise VaultFullError if that is not enough, OSError.
    """
    for drop in (drop_quarantine, lambda *_: drop_all_quarantines(vault)):
        with contextlib.suppress(VaultFullError):
            return _claimed(vault, node, kind, arriving)
        drop(vault, node, kind)
    return _claimed(vault, node, kind, arriving)


def _claimed(vault: Vault, node: str, kind: str, arriving: Path) -> Space:
    with _lock:
        space = space_for(vault, node, kind)
        free = space.free - _outstanding(vault, besides=node)
        if free < space.needed:
            raise VaultFullError(node, kind, space.needed, max(0, free))
        _claims[vault.root, node] = _Claim(space.needed, arriving)
        return space


def _outstanding(vault: Vault, *, besides: str) -> int:
    """Return how much all other nodes are about to write."""
    return sum(claim.outstanding() for (root, name), claim in _claims.items() if root == vault.root and name != besides)


def excess(vault: Vault, node: str, space: Space, most: int | None) -> str:
    """Return why the retrieval of *node*, which has claimed *space*, must end now; an empty text if it may go on.

    *most*: the maximum size of an artifact in bytes, if the operator set one. Raise OSError if the
    disk cannot be queried.
    """
    with _lock:
        claim = _claims.get((vault.root, node))
        written = claim.written() if claim else 0
        others = _outstanding(vault, besides=node)
    if most is not None and written > most:
        return f"more than {most:,} bytes arrived, the maximum that contents.max_size allows"
    if most is None and space.last is not None and written > space.last * _GROWTH + _GROWTH_BYTES:
        return f"{written:,} bytes arrived, and the last artifact had {space.last:,}"
    usage = shutil.disk_usage(nearest(vault.folder(node)))
    if usage.total and written > usage.total:
        return f"{written:,} bytes arrived, more than the vault's disk can hold: the file is mostly empty"
    # Also where little has arrived: a file that was removed and is still open has no name, and takes space.
    margin = usage.total // _KEPT_FREE if written >= space.needed else 0
    if usage.total and usage.free < others + margin:
        return f"{written:,} bytes arrived, and the rest of the vault's disk is kept free for other nodes"
    return ""


def release(vault: Vault, node: str) -> None:
    """Release the claim of *node*: its bytes have arrived, or will not."""
    with _lock:
        _claims.pop((vault.root, node), None)
