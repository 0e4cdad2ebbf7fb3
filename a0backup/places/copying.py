"""Copy one artifact to one place, and prove that it is there.

proof = copy_artifact(vault, manifest, store, place="nas", transfer=transfer)

The manifest comes last, as in the vault: a place where it is missing does not show the artifact.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from a0backup.errors import ArtifactDamagedError, PlaceArtifactError, PlaceError, VaultUnusableError
from a0backup.files import CHUNK, UnsuitableFileError, drop_cached_pages, open_regular, read_whole
from a0backup.places.records import known_manifest
from a0backup.places.store import Store
from a0backup.places.transfer import Transfer
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, UnreadableManifest
from a0backup.vault.pruned import Record
from a0backup.vault.vault import Vault, parsed, reading, require_size


class CopiedNow(NamedTuple):
    """How an artifact was proven in a place, whether its bytes were sent, and the SHA-256 of the manifest there."""

    by: Literal["read", "checksum"]
    sent: bool
    manifest: str


def copy_artifact(vault: Vault, manifest: Manifest, store: Store, *, place: str, transfer: Transfer) -> CopiedNow:
    """Make the place hold the artifact and its manifest, and prove that it does.

    What is there and proves to be whole is not sent again; what is not whole goes to the place's
    quarantine first. Raise PlaceError; PlaceArtifactError if the place has another artifact under
    this id, or one that a later version wrote; ArtifactDamagedError or VaultUnusableError if the
    vault's own bytes cannot be sent.
    """
    content = manifest_bytes(vault, manifest)
    known, here = known_manifest(vault, manifest.id), hashlib.sha256(content).hexdigest()
    if known not in (None, here):
        reason = f"{MANIFEST} is not the one that was copied before; `a0backup verify` says what to do"
        raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)
    there = read_small(store, manifest_path(manifest.id), MAX_MANIFEST_BYTES)
    if there not in (None, content):
        _require_no_other(there, manifest, place, is_known=known is not None)
    path = artifact_path(manifest)
    whole = _is_whole(store, manifest, transfer)
    by_server = False
    if whole:
        store.settle(path)
    else:
        _keep_aside(store, path, manifest.id, transfer)
        by_server = store.write(path, _sent(vault, manifest, transfer), size=manifest.artifact.size)
        if not by_server and not _is_whole(store, manifest, transfer):
            raise PlaceError(
                place, f"{path}: other bytes came back than were sent", "check the disk and the memory of the place"
            )
    if there not in (None, content):
        _keep_aside(store, manifest_path(manifest.id), manifest.id, transfer)
    write_small(store, manifest_path(manifest.id), content, place)
    if manifest.id in Record(vault):
        # Pruned while it was copied: the prune of this place may have removed the artifact before its manifest came.
        store.remove(manifest_path(manifest.id))
        store.remove(path)
        raise VaultUnusableError(manifest.node.name, f"{manifest.id} was pruned meanwhile")
    return CopiedNow("checksum" if by_server else "read", not whole, here)


def _require_no_other(there: bytes | None, manifest: Manifest, place: str, *, is_known: bool) -> None:
    """Raise PlaceArtifactError unless *there*, the manifest in the place, may be replaced by the vault's.

    It may if it is damaged: it cannot be read, or the vault knows (*is_known*) that the places were
    given another one for these bytes.
    """
    other = parsed(manifest.id, there or b"")
    if isinstance(other, UnreadableManifest):
        if other.later:
            raise PlaceArtifactError(place, f"{manifest.id}: {other.reason}", "use that version")
        return
    if other.artifact.sha256 != manifest.artifact.sha256:
        reason = f"it holds another artifact as {manifest.id} (sha256 {other.artifact.sha256})"
    elif not is_known:
        reason = f"its manifest of {manifest.id} is not the vault's, and nothing says which one is right"
    else:
        return
    raise PlaceArtifactError(
        place, reason, "nothing is overwritten: compare both with `a0backup verify`, and move one away"
    )


def _keep_aside(store: Store, path: str, artifact_id: str, transfer: Transfer) -> None:
    """Copy the damaged file into the quarantine of the place, as far as it can be read."""
    node, _, name = artifact_id.partition("/")
    kept = f"{node}/quarantine/{name}.damaged-{secrets.token_hex(4)}/{path.rpartition('/')[2]}.damaged"
    unread: list[PlaceError] = []

    def readable() -> Iterator[bytes]:
        try:
            yield from transfer.passing(store.read(path))
        except PlaceError as error:
            unread.append(error)
            raise

    try:
        size = store.size(path)
        if size is not None:
            store.write(kept, readable(), size=size)
    except PlaceArtifactError:
        return  # no regular file
    except PlaceError:
        if not unread:
            raise
        # A bad sector: what cannot be read cannot be kept. The vault's bytes, which are whole, replace it.


def manifest_bytes(vault: Vault, manifest: Manifest) -> bytes:
    """Return the bytes of the manifest in the vault. Raise VaultUnusableError."""
    try:
        return read_whole(vault.root / manifest.id / MANIFEST, MAX_MANIFEST_BYTES)
    except OSError as error:
        reason = f"the manifest of {manifest.id} cannot be read: {error.strerror}"
    except UnsuitableFileError as error:
        reason = f"the manifest of {manifest.id} {error.reason}"
    raise VaultUnusableError(manifest.node.name, reason)


def artifact_path(manifest: Manifest) -> str:
    """Return the path of the artifact in every place."""
    return f"{manifest.id}/{manifest.artifact.file}"


def manifest_path(artifact_id: str) -> str:
    """Return the path of the manifest in every place."""
    return f"{artifact_id}/{MANIFEST}"


def write_small(store: Store, path: str, content: bytes, place: str) -> None:
    """Make *path* hold *content*, and read it back unless it was there already. Raise PlaceError."""
    if read_small(store, path, len(content)) == content:
        store.settle(path)
        return
    store.write(path, [content], size=len(content))
    back = read_small(store, path, len(content))
    if back is None:
        raise PlaceError(place, f"{path} cannot be read back", "allow the credentials to read what they have written")
    if back != content:
        raise PlaceError(place, f"{path}: other bytes came back than were sent", "check the disk of the place")


def read_small(store: Store, path: str, most: int) -> bytes | None:
    """Return the content of *path*, cut after *most* bytes and one more; None if there is none. Raise PlaceError."""
    content = b""
    try:
        for chunk in store.read(path):
            content += chunk
            if len(content) > most:
                return content[: most + 1]
    except FileNotFoundError:
        return None
    return content


def sha256_of(chunks: Iterable[bytes]) -> tuple[str, int]:
    """Return the SHA-256 and the number of bytes of *chunks*."""
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
    return hasher.hexdigest(), size


def _is_whole(store: Store, manifest: Manifest, transfer: Transfer) -> bool:
    """Read the artifact in the place to its end and return whether it is what the manifest says."""
    expected = manifest.artifact
    try:
        if store.size(artifact_path(manifest)) != expected.size:
            return False
        return sha256_of(transfer.passing(store.read(artifact_path(manifest)))) == (expected.sha256, expected.size)
    except (FileNotFoundError, PlaceArtifactError):  # the latter: no regular file, or a bad sector
        return False


def _sent(vault: Vault, manifest: Manifest, transfer: Transfer) -> Iterator[bytes]:
    """Yield the bytes in the vault; raise ArtifactDamagedError at their end unless they are what the manifest says."""
    hasher, size = hashlib.sha256(), 0
    with reading(vault, manifest) as path:
        for chunk in transfer.passing(chunks_of(path)):
            hasher.update(chunk)
            size += len(chunk)
            yield chunk
    require_size(manifest, size)
    if hasher.hexdigest() != manifest.artifact.sha256:
        reason = f"the artifact's sha256 is {hasher.hexdigest()}, not what its manifest says"
        raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)


def chunks_of(path: Path, *, past_cache: bool = False) -> Iterator[bytes]:
    """Yield the bytes of the file in the vault, with *past_cache* as its disk has them. Raise OSError."""
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        if past_cache:
            drop_cached_pages(file.fileno())
        while chunk := file.read(CHUNK):
            yield chunk
