"""Copy one artifact to one place, and prove that it is there.

proof = copy_artifact(vault, manifest, store, place="nas", transfer=transfer)

The manifest comes last, as in the vault: a place where it is missing does not show the artifact.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from a0backup.errors import ArtifactDamagedError, PlaceArtifactError, PlaceError, VaultUnusableError
from a0backup.files import CHUNK, UnsuitableFileError, open_regular, read_whole
from a0backup.places.store import Store
from a0backup.places.transfer import Transfer
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from a0backup.vault.vault import Vault, reading, require_size


class CopiedNow(NamedTuple):
    """How an artifact was proven in a place, and the SHA-256 of the manifest that is there."""

    by: Literal["read", "checksum"]
    manifest: str


def copy_artifact(vault: Vault, manifest: Manifest, store: Store, *, place: str, transfer: Transfer) -> CopiedNow:
    """Make the place hold the artifact and its manifest, and prove that it does.

    What an earlier copy left there is used if it proves to be whole. Raise PlaceError;
    PlaceArtifactError if the place has another artifact under this id; ArtifactDamagedError or
    VaultUnusableError if the vault's own bytes cannot be sent.
    """
    content = manifest_bytes(vault, manifest)
    require_no_other(store, manifest, content, place)
    path = artifact_path(manifest)
    by_server = False
    if store.size(path) != manifest.artifact.size or not _is_whole(store, manifest, transfer):
        by_server = store.write(path, _sent(vault, manifest, transfer), size=manifest.artifact.size)
        if not by_server and not _is_whole(store, manifest, transfer):
            raise PlaceError(
                place, f"{path}: other bytes came back than were sent", "check the disk and the memory of the place"
            )
    write_small(store, manifest_path(manifest.id), content, place)
    return CopiedNow("checksum" if by_server else "read", hashlib.sha256(content).hexdigest())


def is_there(vault: Vault, manifest: Manifest, store: Store) -> bool:
    """Return whether the place shows an artifact of this size with this manifest; its bytes are not read.

    Raise PlaceError, VaultUnusableError.
    """
    content = manifest_bytes(vault, manifest)
    if store.size(artifact_path(manifest)) != manifest.artifact.size:
        return False
    return read_small(store, manifest_path(manifest.id), MAX_MANIFEST_BYTES) == content


def require_no_other(store: Store, manifest: Manifest, content: bytes, place: str) -> None:
    """Raise PlaceArtifactError if the place has a manifest with this id that describes another artifact.

    A manifest that cannot be read, or that describes these bytes in other words, is replaced.
    """
    found = read_small(store, manifest_path(manifest.id), MAX_MANIFEST_BYTES)
    if found is None or found == content:
        return
    try:
        other = Manifest.model_validate_json(found)
    except ValidationError:
        return
    if other.artifact.sha256 != manifest.artifact.sha256:
        raise PlaceArtifactError(
            place,
            f"it holds another artifact as {manifest.id} (sha256 {other.artifact.sha256})",
            "two artifacts have one name, and none is overwritten: compare both with `a0backup verify`, and move one"
            " away",
        )


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
        return sha256_of(transfer.passing(store.read(artifact_path(manifest)))) == (expected.sha256, expected.size)
    except FileNotFoundError:
        return False


def _sent(vault: Vault, manifest: Manifest, transfer: Transfer) -> Iterator[bytes]:
    """Yield the bytes in the vault; raise ArtifactDamagedError at their end unless they are what the manifest says."""
    hasher, size = hashlib.sha256(), 0
    with reading(vault, manifest) as path:
        for chunk in transfer.passing(_chunks(path)):
            hasher.update(chunk)
            size += len(chunk)
            yield chunk
    require_size(manifest, size)
    if hasher.hexdigest() != manifest.artifact.sha256:
        reason = f"the artifact's sha256 is {hasher.hexdigest()}, not what its manifest says"
        raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0, opener=open_regular) as file:
        while chunk := file.read(CHUNK):
            yield chunk
