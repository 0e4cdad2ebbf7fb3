"""The quarantine: retrievals that failed verification, only the newest of each kind, with the reason.

The quarantines of all nodes are bounded together, and give way to artifacts; those of backups that
were given up are bounded for each node.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from a0backup.files import (
    fsync_directory,
    make_durable,
    make_new_directory,
    make_private,
    publish,
    remove_tree,
)
from a0backup.vault.vault import Vault, make_dated_folder

_GIVEN_UP = ".given-up"
_DAMAGED = ".damaged"
_SHARE = 10  # the part of the disk that all quarantines may take: one in so many


def quarantine(
    vault: Vault, node: str, kind: str, retrieved: Path, *, reason: dict[str, object], now: datetime
) -> Path:
    """Move the failed retrieval *retrieved* into quarantine with *reason*; keep only the newest of its kind."""
    place = _quarantine(vault, node)
    # Do not make the node's folder along with it: a vault that has gone away must not be created again.
    with contextlib.suppress(FileExistsError):
        make_new_directory(place)
    former = quarantined(vault, node, kind)
    folder = make_dated_folder(place, kind, now)
    # The bytes come last: a folder without them comes from a killed run.
    publish(folder / "reason.json", json.dumps(reason, indent=2).encode() + b"\n")
    make_private(retrieved, 0o600)
    retrieved.replace(folder / f"{kind}.tar.gz.enc")
    for path in former:
        remove_tree(path, below=vault.root)
    return folder


def keep_damaged(vault: Vault, artifact_id: str, names: Iterable[str], *, reason: str, now: datetime) -> Path:
    """Move the damaged files *names* of a stored artifact into quarantine, and return their folder. Raise OSError."""
    node, _, name = artifact_id.partition("/")
    place = _quarantine(vault, node)
    with contextlib.suppress(FileExistsError):
        make_new_directory(place)
    folder = place / f"{name}{_DAMAGED}-{secrets.token_hex(4)}"
    make_new_directory(folder)
    why = {"id": artifact_id, "at": f"{now:%Y-%m-%dT%H:%M:%SZ}", "reason": reason}
    publish(folder / "reason.json", json.dumps(why, indent=2).encode() + b"\n")
    for each in names:
        with contextlib.suppress(FileNotFoundError):
            # Under another name: what is called manifest.json is taken for one.
            (vault.root / artifact_id / each).replace(folder / f"{each}.damaged")
    fsync_directory(folder)
    fsync_directory(vault.root / artifact_id)
    return folder


def keep_given_up(folder: Path) -> Path:
    """Rename a quarantined retrieval so that no run removes it: its backup is about to be deleted on the node.

    Return its new path, which survives a power cut. Raise OSError.
    """
    kept = folder.with_name(folder.name + _GIVEN_UP)
    folder.replace(kept)
    make_durable(next(kept.glob("*.tar.gz.enc")))
    fsync_directory(kept.parent)
    return kept


def drop_quarantine(vault: Vault, node: str, kind: str) -> None:
    """Remove the quarantined retrievals of *kind*."""
    for path in quarantined(vault, node, kind):
        remove_tree(path, below=vault.root)


def drop_all_quarantines(vault: Vault) -> None:
    """Remove the quarantined retrievals of all nodes, except those whose backup was given up."""
    for path in _all_quarantined(vault):
        if not path.name.endswith(_GIVEN_UP):
            remove_tree(path, below=vault.root)


def make_room(vault: Vault, node: str, kind: str, size: int) -> bool:
    """Return whether *size* more bytes of *node* fit into the quarantines, which may take a tenth of the disk.

    What the new one replaces does not count. The oldest retrievals are removed for it: first those
    of the node, then those of others. Those that were given up stay; they count against their own
    node only, or one node could keep all others from a quarantine for ever.
    """
    most = shutil.disk_usage(vault.root).total // _SHARE or sys.maxsize  # some file systems report zeros
    own, replaced = _quarantine(vault, node), quarantined(vault, node, kind)
    sizes = {path: _size(path) for path in _all_quarantined(vault) if path not in replaced}
    given_up = [path for path in sizes if path.name.endswith(_GIVEN_UP)]
    kept = sum(sizes[path] for path in given_up if path.parent == own)
    if kept + size > most:
        return False
    removable = sorted(sizes.keys() - given_up, key=lambda path: (path.parent != own, path.name))
    total = kept + sum(sizes[path] for path in removable)
    for path in removable:
        if total + size <= most:
            break
        remove_tree(path, below=vault.root)
        total -= sizes[path]
    return True


def _all_quarantined(vault: Vault) -> list[Path]:
    """Return the folders of all quarantined retrievals, of every node and kind."""
    return [path for node in vault.nodes() for path in _entries(_quarantine(vault, node))]


def _entries(folder: Path) -> list[Path]:
    """Return the folders in *folder*; none if it cannot be read or is a link: no node may disturb the others."""
    try:
        if folder.is_symlink():
            return []
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    except OSError:
        return 0  # a run of its node has just removed it


def outdated_quarantine(vault: Vault, node: str, kind: str) -> list[Path]:
    """Return the quarantined retrievals of *kind* that a killed run did not remove: all but the newest whole one."""
    all_of_kind = quarantined(vault, node, kind)
    whole = [path for path in all_of_kind if (path / f"{kind}.tar.gz.enc").exists()]
    return [path for path in all_of_kind if path not in whole[-1:]]


def _quarantine(vault: Vault, node: str) -> Path:
    return vault.folder(node) / "quarantine"


def quarantined(vault: Vault, node: str, kind: str) -> list[Path]:
    """Return the folders of the quarantined retrievals of *kind*, oldest first. Raise OSError."""
    return _matching(vault, node, f"*Z-{kind}")


def kept_damaged(vault: Vault, node: str, kind: str) -> list[Path]:
    """Return the folders with the damaged files of mended artifacts of *kind*, oldest first. Raise OSError."""
    return _matching(vault, node, f"*Z-{kind}{_DAMAGED}-*")


def _matching(vault: Vault, node: str, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in _quarantine(vault, node).iterdir() if fnmatchcase(path.name, pattern))
    except (FileNotFoundError, NotADirectoryError):
        return []
