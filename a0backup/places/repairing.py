"""Mend a damaged artifact from a place that has it whole: in the vault from a place, in a place from the vault.

The damaged bytes go to quarantine first. A whole artifact is never overwritten by a different one.
"""

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from a0backup.errors import ArtifactDamagedError, PlaceArtifactError, PlaceError
from a0backup.files import Hasher, make_durable, make_private, make_private_directory, open_private, publish
from a0backup.places.copying import CopiedNow, artifact_path, copy_artifact, manifest_bytes, manifest_path, read_small
from a0backup.places.records import known_manifest, now
from a0backup.places.store import Store
from a0backup.places.transfer import Transfer
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, UnreadableManifest
from a0backup.vault.quarantine import keep_damaged
from a0backup.vault.vault import Vault, parsed, require_same


def mend_vault(vault: Vault, artifact_id: str, store: Store, *, place: str, transfer: Transfer) -> None:
    """Bring the artifact in the vault back from the place; the caller holds the node's lock.

    Raise PlaceError if the place does not have it whole, or has another one under this id; OSError.
    """
    content = read_small(store, manifest_path(artifact_id), MAX_MANIFEST_BYTES)
    if content is None:
        raise PlaceArtifactError(place, f"it does not have {artifact_id}")
    manifest, known = parsed(artifact_id, content), known_manifest(vault, artifact_id)
    is_known = known in (None, hashlib.sha256(content).hexdigest())
    if isinstance(manifest, UnreadableManifest) or manifest.id != artifact_id or not is_known:
        raise PlaceArtifactError(place, f"its manifest of {artifact_id} is damaged, too")
    here = vault.get(artifact_id)
    if isinstance(here, Manifest) and here.artifact.sha256 != manifest.artifact.sha256 and _are_whole(vault, here):
        raise PlaceArtifactError(place, f"it has another artifact as {artifact_id}")
    manifest_is_whole = (
        isinstance(here, Manifest)
        and here.artifact == manifest.artifact
        and known in (None, hashlib.sha256(manifest_bytes(vault, here)).hexdigest())
    )
    folder = vault.root / artifact_id
    damaged = [] if manifest_is_whole else [MANIFEST]
    bytes_are_whole = _are_whole(vault, manifest)
    make_private_directory(folder)
    aside = folder / f".{manifest.artifact.file}.{secrets.token_hex(8)}.partial"
    try:
        if not bytes_are_whole:
            _fetch(store, manifest, aside, place, transfer)
            damaged.append(manifest.artifact.file)
        there = [name for name in damaged if (folder / name).is_symlink() or (folder / name).exists()]
        if there:
            keep_damaged(vault, artifact_id, there, reason="damaged in the vault, and mended from a place", now=now())
        if not bytes_are_whole:
            aside.replace(folder / manifest.artifact.file)
            make_durable(folder / manifest.artifact.file)
    finally:
        aside.unlink(missing_ok=True)
    vault.reread(manifest)
    if not manifest_is_whole:
        publish(folder / MANIFEST, content)


def mend_place(vault: Vault, manifest: Manifest, store: Store, *, place: str, transfer: Transfer) -> CopiedNow:
    """Bring the artifact in the place back from the vault, which has it whole, and prove it there.

    What the place has under this id goes to its quarantine first. The caller has found it damaged. Raise PlaceError,
    PlaceDeniedError if the place lets nothing be changed, VaultError.
    """
    for path in (manifest_path(manifest.id), artifact_path(manifest)):
        _keep_aside(store, path, manifest.id)
    return copy_artifact(vault, manifest, store, place=place, transfer=transfer)


def _are_whole(vault: Vault, manifest: Manifest) -> bool:
    try:
        vault.reread(manifest)
    except ArtifactDamagedError:
        return False
    return True


def _fetch(store: Store, manifest: Manifest, aside: Path, place: str, transfer: Transfer) -> None:
    """Write the place's bytes to *aside*. Raise PlaceError unless they are what the manifest says."""
    hasher = Hasher()
    try:
        with open(aside, "xb", buffering=0, opener=open_private) as file:
            make_private(file.fileno(), 0o600)
            for chunk in transfer.passing(store.read(artifact_path(manifest))):
                hasher.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[file.write(view) :]
        require_same(manifest, hasher.digests())
    except FileNotFoundError:
        raise PlaceArtifactError(place, f"it does not have {manifest.artifact.file} of {manifest.id}") from None
    except ArtifactDamagedError as error:
        raise PlaceArtifactError(place, f"its copy of {manifest.id} is damaged, too: {error.text()}") from None


def _keep_aside(store: Store, path: str, artifact_id: str) -> None:
    """Copy the file into the quarantine of the place, as far as it can be read, and remove it."""
    size = store.size(path)
    if size is None:
        return
    node, _, name = artifact_id.partition("/")
    kept = f"{node}/quarantine/{name}.damaged-{secrets.token_hex(4)}/{path.rpartition('/')[2]}.damaged"
    unread: list[PlaceError] = []

    def readable() -> Iterator[bytes]:
        try:
            yield from store.read(path)
        except PlaceError as error:
            unread.append(error)
            raise

    try:
        store.write(kept, readable(), size=size)
    except PlaceError:
        if not unread:
            raise
        # A bad sector: there is nothing to keep.
    store.remove(path)
