"""What dead runs left of a node: verified bytes that are not stored yet, and files to remove."""

import shutil
from pathlib import Path

from a0backup.files import Digests, digests
from a0backup.vault.journal import Journal, JournalFile
from a0backup.vault.manifest import MANIFEST
from a0backup.vault.quarantine import drop_quarantine
from a0backup.vault.vault import Vault


def verified_file(vault: Vault, node: str, kind: str) -> Path:
    """Return the path where bytes that matched the node's md5 wait to be stored."""
    return vault.work(node) / f"{kind}.tar.gz.enc"


def salvage(vault: Vault, node: str, kind: str, md5: str) -> Digests | None:
    """Search what a dead run left of *node* for the bytes with this *md5*, and return their digests.

    The bytes are moved to where verified bytes wait to be stored. Return None if there are none.
    """
    place = verified_file(vault, node, kind)
    without_manifest = [folder for folder in vault.folders(node) if not (folder / MANIFEST).exists()]
    candidates = [place, *sorted(vault.work(node).glob("*/*.tar.gz.enc"))]
    candidates += [path for folder in without_manifest for path in sorted(folder.glob("*.tar.gz.enc"))]
    for candidate in candidates:
        if candidate.is_symlink() or not candidate.is_file():
            continue
        try:
            found = digests(candidate, past_cache=True)
        except OSError:
            continue  # unreadable bytes do not count
        if found.md5 == md5:
            if candidate != place:
                candidate.rename(place)
            return found
    return None


def sweep(vault: Vault, node: str, *, kind: str, keep: Path) -> list[Path]:
    """Remove what dead runs left of *node*: their private directories (all but *keep*) and partial files.

    Call this only if none of it can be of use any more: the backup of *kind* is stored, or the node
    has none. Return the folders with bytes but without a manifest: only a person can tell whether
    these are worth anything.
    """
    verified_file(vault, node, kind).unlink(missing_ok=True)
    sweep_private(vault, node, kind=kind, keep=keep)
    drop_quarantine(vault, node, kind, but_newest=True)
    for path in vault.folder(node).glob(".*.partial"):
        path.unlink(missing_ok=True)
    without_manifest: list[Path] = []
    for folder in vault.folders(node):
        for path in folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
        if folder.name.endswith(f"Z-{kind}") and not (folder / MANIFEST).exists():
            left = list(folder.iterdir())
            if any(not path.is_file() or path.stat().st_size for path in left):
                without_manifest.append(folder)
            else:
                # A crash came before the folder was filled.
                shutil.rmtree(folder)
    return without_manifest


def sweep_private(vault: Vault, node: str, *, kind: str, keep: Path) -> None:
    """Remove the private directories of dead runs, all but *keep*; bytes that another kind than *kind* needs stay."""
    if any(path.parent != keep for path in vault.work(node).glob("*/*.tar.gz.enc")):
        for other, md5 in _pinned(vault, node).items():
            if other != kind:
                salvage(vault, node, other, md5)
    for path in vault.work(node).iterdir():
        if path != keep and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


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
