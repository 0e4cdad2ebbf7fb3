"""What dead runs left of a node: verified bytes that are not stored yet, and files to remove."""

import os
import re
import shutil
import stat
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from a0backup.a0cli.ownership import take_over
from a0backup.files import Digests, digests, remove_file, remove_tree
from a0backup.vault.journal import Journal, JournalFile
from a0backup.vault.manifest import MANIFEST
from a0backup.vault.pruned import MARK
from a0backup.vault.quarantine import outdated_quarantine
from a0backup.vault.space import spare
from a0backup.vault.vault import Vault

_SMALL = 1 << 30  # bytes: read in seconds
_PRIVATE = re.compile(r".+-[0-9a-f]{8}\Z")


def verified_file(vault: Vault, node: str, kind: str) -> Path:
    """Return the path where bytes that matched the node's md5 wait to be stored."""
    return vault.work(node) / f"{kind}.tar.gz.enc"


def salvage(vault: Vault, node: str, kind: str, md5: str) -> Digests | None:
    """Search what a dead run left of *node* for the bytes with this *md5*, and return their digests.

    The bytes are moved to where verified bytes wait to be stored. Return None if there are none.
    """
    place = verified_file(vault, node, kind)
    without_manifest = [
        folder for folder in vault.folders(node) if not any(os.path.lexists(folder / name) for name in (MANIFEST, MARK))
    ]
    candidates = [place, *_arrived(vault, node)]
    candidates += [path for folder in without_manifest for path in sorted(folder.glob("*.tar.gz.enc"))]
    for candidate in candidates:
        try:
            status, disk = candidate.lstat(), shutil.disk_usage(candidate.parent).total
            if not stat.S_ISREG(status.st_mode) or _is_mostly_empty(status, disk):
                continue
            if candidate != place:
                take_over(candidate, spare=spare(vault, node))
            found = digests(candidate, past_cache=True)
        except OSError:
            continue  # unreadable bytes do not count
        if found.md5 == md5:
            if candidate != place:
                candidate.rename(place)
            return found
    return None


def _is_mostly_empty(status: os.stat_result, disk: int) -> bool:
    """Return whether a file is larger than its *disk*, or holds far fewer bytes than its size: encrypted bytes do not.

    Some file systems report zero for the size of the disk, and no blocks for a file that is small.
    """
    sparse = status.st_size > _SMALL and status.st_blocks * 512 < status.st_size // 10
    return sparse or 0 < disk < status.st_size


def _arrived(vault: Vault, node: str) -> list[Path]:
    """Return the files with bytes of artifacts in the private directories of *node*; no link is followed."""
    try:
        directories = [entry.path for entry in os.scandir(vault.work(node)) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(path for directory in directories for path in Path(directory).glob("*.tar.gz.enc"))


def private_name(run_id: str) -> str:
    """Return a new name for the private directory of a run; `sweep` removes only directories with such a name."""
    # Unique: a retry of the same run must not delete what its first try left.
    return f"{run_id}-{uuid.uuid4().hex[:8]}"


@dataclass
class Swept:
    """What a sweep left: folders with bytes but without a manifest, and what it did not make or cannot remove."""

    root: Path
    without_manifest: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def remove(self, path: Path) -> None:
        """Remove the file or directory *path*, or note what of it remains."""
        try:
            if path.is_dir() and not path.is_symlink():
                left = remove_tree(path, below=self.root)
                self.others += [each for each in left if not any(each in other.parents for other in left)]
            else:
                remove_file(path, below=self.root)
        except OSError:
            if os.path.lexists(path):
                self.others.append(path)


def sweep(vault: Vault, node: str, *, kind: str, keep: Path) -> Swept:
    """Remove what dead runs left of *node*: their private directories (all but *keep*) and partial files.

    Call this only if none of it can be of use any more: the backup of *kind* is stored, or the node
    has none. Bytes without a manifest are never removed: only a person can tell whether these are
    worth anything. Raise OSError if the node's folder cannot be read.
    """
    swept = sweep_private(vault, node, kind=kind, keep=keep)
    swept.remove(verified_file(vault, node, kind))
    for path in outdated_quarantine(vault, node, kind):
        swept.remove(path)
    for path in vault.folder(node).glob(".*.partial"):
        swept.remove(path)
    for folder in vault.folders(node):
        for path in folder.glob(".*.partial"):
            swept.remove(path)
        if os.path.lexists(folder / MARK):
            continue  # the next prune ends its removal
        if folder.name.endswith(f"Z-{kind}") and not (folder / MANIFEST).exists():
            artifact = folder / f"{kind}.tar.gz.enc"
            if os.path.lexists(artifact) and (not artifact.is_file() or artifact.stat().st_size):
                swept.without_manifest.append(folder)
            else:
                # A crash came before the folder was filled.
                swept.remove(folder)
    return swept


def sweep_private(vault: Vault, node: str, *, kind: str, keep: Path) -> Swept:
    """Remove the private directories of dead runs, all but *keep*; bytes that another kind than *kind* needs stay."""
    if any(path.parent != keep for path in _arrived(vault, node)):
        for other, md5 in _pinned(vault, node).items():
            if other != kind:
                salvage(vault, node, other, md5)
    swept = Swept(vault.root)
    for path in vault.work(node).iterdir():
        if path == keep or not path.is_dir() or path.is_symlink():
            continue
        if _PRIVATE.match(path.name):
            swept.remove(path)
        else:
            swept.others.append(path)
    return swept


def _pinned(vault: Vault, node: str) -> dict[str, str]:
    """Return the md5 of each backup of *node* that is pinned and not settled, by kind."""
    pinned = {}
    for path in vault.folder(node).glob("journal-*.json"):
        journal = _readable(JournalFile(vault.folder(node), path.stem.removeprefix("journal-")))
        if journal is not None and journal.pinned is not None and journal.pinned.md5 is not None:
            pinned[journal.kind] = journal.pinned.md5
    return pinned


def _readable(file: JournalFile) -> Journal | None:
    try:
        return file.read()
    except ValueError:
        return None
