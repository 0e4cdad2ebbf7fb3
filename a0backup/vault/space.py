"""Room on the vault's disk for the artifacts that are to come: as much as the last one took, and a quarter more.

What nodes that run at the same time are about to write is reckoned with, within one process. A first artifact, of which
nothing is known, may take what there is.
"""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from a0backup.errors import VaultFullError
from a0backup.vault.quarantine import drop_quarantine
from a0backup.vault.vault import Vault

MARGIN = 1.25  # installations grow, and a night's artifact with them

_lock = threading.Lock()
_claims: dict[tuple[Path, str], "_Claim"] = {}


@dataclass(frozen=True)
class Space:
    """What the next artifact may take, what the last one took (None: there is none), and what is free; in bytes."""

    needed: int
    last: int | None
    free: int

    @property
    def enough(self) -> bool:
        return self.free >= self.needed


@dataclass(frozen=True)
class _Claim:
    needed: int
    arriving: Path

    def outstanding(self) -> int:
        """Return how many of the bytes have not been written yet."""
        try:
            written = sum(path.stat().st_size for path in self.arriving.glob("*.tar.gz.enc"))
        except OSError:
            written = 0
        return max(0, self.needed - written)


def space_for(vault: Vault, node: str, kind: str) -> Space:
    """Return how much room the next artifact of *node* needs and has. Raise OSError where the disk cannot be asked."""
    last = vault.newest(node, kind)
    size = last.artifact.size if last else None
    free = shutil.disk_usage(nearest(vault.folder(node))).free
    return Space(needed=int((size or 0) * MARGIN), last=size, free=free)


def nearest(place: Path) -> Path:
    """Return *place*, or the nearest above it that exists."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def claim(vault: Vault, node: str, kind: str, *, arriving: Path) -> Space:
    """Claim room for the artifact that is to come into the directory *arriving*, until `release`; return what it is.

    Where there is too little beside what other nodes have claimed, the node's quarantine goes first. Raise
    VaultFullError where that is not enough, OSError.
    """
    try:
        return _claimed(vault, node, kind, arriving)
    except VaultFullError:
        drop_quarantine(vault, node, kind)
        return _claimed(vault, node, kind, arriving)


def _claimed(vault: Vault, node: str, kind: str, arriving: Path) -> Space:
    with _lock:
        space = space_for(vault, node, kind)
        others = [claim for (root, name), claim in _claims.items() if root == vault.root and name != node]
        free = space.free - sum(claim.outstanding() for claim in others)
        if free < space.needed:
            raise VaultFullError(node, kind, space.needed, max(0, free))
        _claims[vault.root, node] = _Claim(space.needed, arriving)
        return space


def release(vault: Vault, node: str) -> None:
    """Give up what was claimed for *node*: its bytes have come, or will not."""
    with _lock:
        _claims.pop((vault.root, node), None)
