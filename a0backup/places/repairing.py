"""Bring an artifact back into the vault from a place that has it whole.

The damaged files go to quarantine first. A whole artifact is never overwritten by a different one.
"""

import hashlib
import os
import secrets
from pathlib import Path

from a0backup.errors import ArtifactDamagedError, PlaceArtifactError, VaultUnusableError
from a0backup.files import (
    Hasher,
    make_durable,
    make_private,
    make_private_directory,
    open_private,
    publish,
    raise_if_stopped,
)
from a0backup.places.copying import artifact_path, chunks_of, manifest_bytes, manifest_path, read_small, sha256_of
from a0backup.places.pins import take_pin
from a0backup.places.records import known_manifest, now
from a0backup.places.store import SYNC, Store
from a0backup.places.transfer import Transfer
from a0backup.vault.drilled import forget_damage
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, UnreadableManifest
from a0backup.vault.quarantine import keep_damaged
from a0backup.vault.vault import Vault, parsed, reading, require_same


def mend_vault(vault: Vault, artifact_id: str, store: Store, *, place: str, transfer: Transfer) -> Manifest:
    """Bring the artifact in the vault back from the place, and return its manifest; the caller holds the node's lock.

    The vault's manifest decides which artifact it is, unless it cannot be read or is not the one
    that the places were given. Raise PlaceArtifactError if the place does not have it whole, or has
    another one under this id; VaultUnusableError, OSError.
    """
    vault.require_no_links(artifact_id.partition("/")[0])
    content = read_small(store, manifest_path(artifact_id), MAX_MANIFEST_BYTES)
    if content is None:
        raise PlaceArtifactError(place, f"it does not have {artifact_id}")
    manifest, known = parsed(artifact_id, content), known_manifest(vault, artifact_id)
    if isinstance(manifest, UnreadableManifest) or known not in (None, hashlib.sha256(content).hexdigest()):
        raise PlaceArtifactError(place, f"its manifest of {artifact_id} is damaged, too")
    here = vault.get(artifact_id)
    manifest_is_whole = isinstance(here, Manifest) and known in (
        None,
        hashlib.sha256(manifest_bytes(vault, here)).hexdigest(),
    )
    if manifest_is_whole and isinstance(here, Manifest) and here.artifact.sha256 != manifest.artifact.sha256:
        raise PlaceArtifactError(place, f"it has another artifact as {artifact_id}")
    folder = vault.root / artifact_id
    damaged = [] if manifest_is_whole else [MANIFEST]
    bytes_are_whole = _are_whole(vault, manifest, transfer)
    is_lost = not os.path.lexists(folder)
    make_private_directory(folder)
    aside = folder / f".{manifest.artifact.file}.{secrets.token_hex(8)}.partial"
    try:
        if not bytes_are_whole:
            _fetch(store, manifest, aside, place, transfer)
            damaged.append(manifest.artifact.file)
        # Whoever gave up waiting for this thread has released the node's lock.
        raise_if_stopped()
        there = [name for name in damaged if (folder / name).is_symlink() or (folder / name).exists()]
        if there:
            keep_damaged(vault, artifact_id, there, reason="damaged in the vault, and mended from a place", now=now())
        if not bytes_are_whole:
            aside.replace(folder / manifest.artifact.file)
            make_durable(folder / manifest.artifact.file)
    finally:
        aside.unlink(missing_ok=True)
    if not bytes_are_whole and not _are_whole(vault, manifest, transfer):
        raise VaultUnusableError(manifest.node.name, f"the vault's disk returned other bytes of {artifact_id}")
    if is_lost:
        take_pin(vault, artifact_id, store)  # before the manifest: from then on, a prune may remove it
    if not manifest_is_whole:
        publish(folder / MANIFEST, content)
    forget_damage(folder)
    mended = vault.get(artifact_id)
    if not isinstance(mended, Manifest):
        raise VaultUnusableError(manifest.node.name, f"{artifact_id} is still not whole in the vault")
    return mended


def _are_whole(vault: Vault, manifest: Manifest, transfer: Transfer) -> bool:
    try:
        with reading(vault, manifest) as path:
            found = sha256_of(transfer.reading(chunks_of(path, past_cache=True)))
    except ArtifactDamagedError:
        return False
    return found == (manifest.artifact.sha256, manifest.artifact.size)


def _fetch(store: Store, manifest: Manifest, aside: Path, place: str, transfer: Transfer) -> None:
    """Write the place's bytes to *aside*. Raise PlaceArtifactError unless they are what the manifest says."""
    hasher, unsynced = Hasher(), 0
    try:
        with open(aside, "xb", buffering=0, opener=open_private) as file:
            make_private(file.fileno(), 0o600)
            for chunk in transfer.passing(store.read(artifact_path(manifest))):
                hasher.update(chunk)
                # Before it is written: a place may send without end, and the vault's disk is for backups.
                if file.tell() + len(chunk) > manifest.artifact.size:
                    raise PlaceArtifactError(place, f"its copy of {manifest.id} is damaged, too: it is too long")
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
                unsynced += len(chunk)
                if unsynced >= SYNC:
                    os.fdatasync(file.fileno())
                    unsynced = 0
        require_same(manifest, hasher.digests())
    except FileNotFoundError:
        raise PlaceArtifactError(place, f"it does not have {manifest.artifact.file} of {manifest.id}") from None
    except ArtifactDamagedError as error:
        raise PlaceArtifactError(place, f"its copy of {manifest.id} is damaged, too: {error.text()}") from None
