"""Store an artifact: read it back from the disk, and write its manifest last."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from a0backup.errors import ArtifactDamagedError, VaultUnusableError
from a0backup.files import (
    Digests,
    UnsuitableFileError,
    fsync_directory,
    make_durable,
    make_private,
    publish,
    read_past_cache,
    read_whole,
)
from a0backup.identity import BackupIdentity
from a0backup.vault.leftovers import verified_file
from a0backup.vault.manifest import (
    _MD5_ONLY,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Encryption,
    Manifest,
    ManifestArtifact,
    ManifestNode,
    ManifestPassword,
    Verified,
)
from a0backup.vault.quarantine import quarantine
from a0backup.vault.vault import Vault, make_dated_folder


def confirm(vault: Vault, manifest: Manifest) -> None:
    """Read back an artifact that another run stored and make it durable, before the node's copy is deleted.

    That run may have been killed before its last fsync. Raise ArtifactDamagedError,
    VaultUnusableError.
    """
    vault.reread(manifest)
    folder = vault.root / manifest.id
    try:
        # The very bytes that are there: the places were given them, too.
        _publish(vault, manifest, read_whole(folder / MANIFEST, MAX_MANIFEST_BYTES))
        fsync_directory(folder.parent)
    except (OSError, UnsuitableFileError) as error:
        why = error.strerror if isinstance(error, OSError) else error.reason
        raise VaultUnusableError(manifest.node.name, f"{manifest.id} cannot be made durable: {why}") from error


def store(
    vault: Vault,
    *,
    node: ManifestNode,
    kind: str,
    name_on_node: str,
    expected: Digests,
    started_at: datetime | None,
    password: ManifestPassword,
    verified: Verified = _MD5_ONLY,
    flow_run: str,
    now: datetime,
) -> Manifest:
    """Store the verified bytes in `verified_file` as an artifact and return its manifest.

    When this returns, the artifact has been read back from the disk and matches *expected*, and
    both it and the manifest survive a power cut. Raise ArtifactDamagedError if the bytes read back
    differ, VaultUnusableError if the vault cannot be written; then there is no manifest.
    """
    source = verified_file(vault, node.name, kind)
    try:
        identity = BackupIdentity(name=name_on_node, md5=expected.md5)
        damaged = vault.holding(node.name, kind, identity, started_at=started_at)
        if damaged is not None and damaged.artifact.sha256 == expected.sha256:
            # Its manifest describes these very bytes: put them back in its place.
            _settle_bytes(vault, source, vault.artifact(damaged))
            vault.reread(damaged)
            return damaged
        folder = make_dated_folder(vault.folder(node.name), kind, started_at or now)
        manifest = Manifest(
            id=f"{node.name}/{folder.name}",
            node=node,
            kind=kind,
            name_on_node=name_on_node,
            started_at=started_at,
            stored_at=now,
            artifact=ManifestArtifact(file=f"{kind}.tar.gz.enc", **asdict(expected)),
            encryption=Encryption(password=password),
            verified=verified,
            flow_run=flow_run,
        )
        _settle_bytes(vault, source, vault.artifact(manifest))
        try:
            vault.reread(manifest)
        except ArtifactDamagedError as error:
            # Quarantine it: every run would search a folder without a manifest again.
            reason: dict[str, object] = {"node": node.name, "kind": kind, "reason": error.message()}
            quarantine(vault, node.name, kind, vault.artifact(manifest), reason=reason, now=now)
            folder.rmdir()
            raise
        # The manifest comes last: a crash before this line leaves no folder that looks like a backup.
        _publish(vault, manifest, json.dumps(manifest.to_json(), indent=2).encode() + b"\n")
    except OSError as error:
        raise VaultUnusableError(node.name, f"the artifact cannot be stored: {error.strerror}") from error
    return manifest


def _settle_bytes(vault: Vault, source: Path, target: Path) -> None:
    make_private(source, 0o600)
    source.replace(target)
    make_durable(target)


def _publish(vault: Vault, manifest: Manifest, content: bytes) -> None:
    """Write the manifest, and read it back before it takes its place. Raise OSError, ArtifactDamagedError."""

    def read_back(written: Path) -> None:
        if read_past_cache(written) != content:
            reason = "the disk returned a manifest that differs from what was written"
            raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)

    publish(vault.root / manifest.id / MANIFEST, content, check=read_back)
