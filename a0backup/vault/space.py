"""Space on the vault's disk for the next artifacts: the size of the last one, plus a quarter.

Within one process, what concurrent nodes are about to write is taken into account. Where the disk
is short, smaller artifacts come first: one node must not take the space of all others. A retrieval
is stopped where it writes far more than the last artifact, or into the space of others.
"""

import contextlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
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


class Others:
    """The next artifacts of the other nodes of a fleet, whose space is kept free for them.

    *kinds*: those of each of these nodes. *since*: who has an artifact that was started after this
    has had its turn tonight.
    """

    def __init__(self, vault: Vault, kinds: Mapping[str, Sequence[str]], *, since: datetime) -> None:
        self._vault, self._since = vault, since
        self._kinds = [(node, kind) for node, all_of_it in kinds.items() for kind in all_of_it]

    def tonight(self, *, below: int) -> Counter[str]:
        """Return how many bytes each node may still need tonight for artifacts that may take less than *below*."""
        return self._sum(most=below - 1, since=self._since)

    def may_need(self, *, below: int) -> int:
        """Return a number of bytes that `tonight` never exceeds, without a look at the disk."""
        return below * len(self._kinds)

    @cached_property
    def next(self) -> Counter[str]:
        """How many bytes the next artifacts of each node may take, be it tonight or in the next night."""
        return self._sum(most=UNKNOWN, since=None)

    def _sum(self, *, most: int, since: datetime | None) -> Counter[str]:
        needed: Counter[str] = Counter()
        for node, kind in self._kinds:
            with contextlib.suppress(OSError):  # a folder that cannot be read is the problem of its own node
                last = self._vault.newest(node, kind)
                done = last and since and last.started_at and last.started_at >= since
                if last is not None and not done and (size := int(last.artifact.size * MARGIN)) <= most:
                    needed[node] += size
        return needed


def nearest(place: Path) -> Path:
    """Return *place*, or its nearest parent that exists and that this user can see."""
    # Not Path.exists(), which raises an error below a folder that this user may not enter.
    while not os.path.exists(place) and place != place.parent:  # noqa: PTH110
        place = place.parent
    return place


def leaves_room(vault: Vault, node: str, kind: str, others: Others) -> bool:
    """Return whether what is free suffices for the next artifact of *node* and of each of *others*. Raise OSError."""
    space = space_for(vault, node, kind)
    return space.free >= space.needed + sum(others.next.values())


def claim(vault: Vault, node: str, kind: str, *, arriving: Path, others: Others | None = None) -> Space:
    """Claim and return space for the next artifact, which arrives in the directory *arriving*, until `release`.

    Raise what `require_space` raises.
    """
    return _with_quarantines_emptied(vault, node, kind, others, arriving)


def require_space(vault: Vault, node: str, kind: str, *, others: Others | None = None) -> None:
    """Return if there is space for the next artifact now, without a claim: it may be hours until it arrives.

    If too little remains beside the claims of other nodes, and beside what *others* may still need
    for smaller artifacts, quarantines are emptied first: that of the node, then all. Raise
    VaultFullError if that is not enough, OSError.
    """
    _with_quarantines_emptied(vault, node, kind, others, None)


def _with_quarantines_emptied(
    vault: Vault, node: str, kind: str, others: Others | None, arriving: Path | None
) -> Space:
    for drop in (drop_quarantine, lambda *_: drop_all_quarantines(vault)):
        with contextlib.suppress(VaultFullError):
            return _claimed(vault, node, kind, others, arriving)
        drop(vault, node, kind)
    return _claimed(vault, node, kind, others, arriving)


def _claimed(vault: Vault, node: str, kind: str, others: Others | None, arriving: Path | None) -> Space:
    space = space_for(vault, node, kind)
    smaller: Counter[str] = Counter()
    if others is not None:
        with _lock:
            free = space.free - sum(_claims_of_others(vault, node).values())
        # The manifests of all nodes are read only where it matters.
        if free < space.needed + others.may_need(below=space.needed):
            smaller = others.tonight(below=space.needed)
    with _lock:
        free = space.free - sum((_claims_of_others(vault, node) | smaller).values())
        if free < space.needed:
            raise VaultFullError(node, kind, space.needed, max(0, free))
        if arriving is not None:
            _claims[vault.root, node] = _Claim(space.needed, arriving)
        return space


def _claims_of_others(vault: Vault, node: str) -> Counter[str]:
    """Return how much each other node is about to write."""
    claims = {name: claim for (root, name), claim in _claims.items() if root == vault.root and name != node}
    return Counter({name: claim.outstanding() for name, claim in claims.items()})


def excess(vault: Vault, node: str, space: Space, most: int | None, others: Others | None = None) -> str:
    """Return why the retrieval of *node*, which has claimed *space*, must end now; an empty text if it may go on.

    *most*: the maximum size of an artifact in bytes, if the operator set one. What it writes beyond
    its claim must leave space for the next artifact of each of *others*: a backup that is too large
    must not be what stops all later nights. Raise OSError if the disk cannot be queried.
    """
    with _lock:
        claim = _claims.get((vault.root, node))
        written = claim.written() if claim else 0
        kept = _claims_of_others(vault, node)
    if most is not None and written > most:
        return f"more than {most:,} bytes arrived, the maximum that contents.max_size allows"
    if most is None and space.last is not None and written > space.last * _GROWTH + _GROWTH_BYTES:
        return f"{written:,} bytes arrived, and the last artifact had {space.last:,}"
    usage = shutil.disk_usage(nearest(vault.folder(node)))
    if usage.total and written > usage.total:
        return f"{written:,} bytes arrived, more than the vault's disk can hold: the file is mostly empty"
    margin = 0
    if written >= space.needed:
        margin = usage.total // _KEPT_FREE
        kept |= others.next if others is not None else Counter()
    # Also where little has arrived: a file that was removed and is still open has no name, and takes space.
    if usage.total and usage.free < sum(kept.values()) + margin:
        return f"{written:,} bytes arrived, and the rest of the vault's disk is kept free for other nodes"
    return ""


def spare(vault: Vault, node: str) -> int:
    """Return how many bytes *node* may take for a moment besides its claim. Raise OSError."""
    usage = shutil.disk_usage(nearest(vault.folder(node)))
    with _lock:
        others = sum(_claims_of_others(vault, node).values())
    return max(0, usage.free - others - usage.total // _KEPT_FREE) if usage.total else UNKNOWN


def release(vault: Vault, node: str) -> None:
    """Release the claim of *node*: its bytes have arrived, or will not."""
    with _lock:
        _claims.pop((vault.root, node), None)
