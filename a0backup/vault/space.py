"""Space on the vault's disk for the next artifacts: the size of the last one, plus a quarter.

Within one process, what concurrent nodes are about to write is taken into account. A first artifact
has no known size and may take all free space.
"""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from a0backup.errors import VaultFullError
from a0backup.vault.quarantine import drop_quarantine
from a0backup.vault.vault import Vault

MARGIN = 1.25  # installations grow, and their artifacts with them

UNKNOWN = 1 << 60

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

    def outstanding(self) -> int:
        """Return the number of bytes that have not been written yet."""
        try:
            written = sum(path.stat().st_size for path in self.arriving.glob("*.tar.gz.enc"))
        except OSError:
            written = 0
        return max(0, self.needed - written)


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

    If too little remains beside the claims of other nodes, the node's quarantine is deleted first.
    Raise VaultFullError if that is not enough, OSError.
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
    """Release the claim of *node*: its bytes have arrived, or will not."""
    with _lock:
        _claims.pop((vault.root, node), None)
