"""Prove that an artifact can be restored, or decrypt it: bytes, password and contents are all checked.

contents = drill(vault, manifest, Secrets(key=load_private(path, passphrase)).passwords(manifest), limits)
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from a0backup.artifact.encryption import decrypt_file
from a0backup.artifact.inspection import Contents, Limits, inspect
from a0backup.errors import (
    A0BackupError,
    ArtifactDamagedError,
    ContentsError,
    PasswordError,
    RecoveryKeyError,
    TooLargeUnpackedError,
    WrongPasswordError,
)
from a0backup.files import fsync_directory, open_private, take_name
from a0backup.passwords.recovery_keys import PrivateKey
from a0backup.passwords.sealed import candidates
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault, reading, require_same


@dataclass(frozen=True)
class Secrets:
    """What opens artifacts: the private half of a recovery key, a password, or both."""

    key: PrivateKey | None = None
    password: str | None = field(default=None, repr=False)

    def passwords(self, manifest: Manifest) -> list[str]:
        """Return the passwords that may open the artifact of *manifest*. Raise RecoveryKeyError, PasswordError."""
        given = [] if self.password is None else [self.password]
        sealed = manifest.encryption.password.sealed
        if sealed and self.key is not None:
            try:
                return [*candidates(sealed, self.key), *given]
            except RecoveryKeyError:
                if not given:
                    raise
        if sealed and not given:
            raise RecoveryKeyError(
                sealed[0].recovery_key if len(sealed) == 1 else "of its manifest",
                "the password is sealed, and no private part was given",
                "give the private part with --key",
            )
        if not given:
            raise PasswordError("anywhere", "none was given", "give the password in a file, with --password-file")
        return given


def drill(vault: Vault, manifest: Manifest, passwords: Sequence[str], limits: Limits) -> Contents:
    """Read the artifact to its end and return its contents; nothing is written.

    Raise ArtifactDamagedError if the bytes do not match the manifest. Raise one of the
    ContentsErrors if they match but cannot be read to their end with any of *passwords*.
    """
    with reading(vault, manifest) as path:
        inspection = inspect(path, passwords, node=manifest.node.name, kind=manifest.kind, limits=limits)
    # First: if the bytes differ, the contents prove nothing about the password.
    require_same(manifest, inspection.digests)
    if inspection.contents is None:
        assert inspection.error is not None, "contents or an error"
        raise inspection.error
    return inspection.contents


def decrypt(vault: Vault, manifest: Manifest, passwords: Sequence[str], limits: Limits, target: Path) -> Contents:
    """Write the decrypted artifact to the new file *target*, mode 0600, and return its contents.

    The artifact is read to its end first: *target* exists only if bytes, password and contents were
    all correct. Raise what `drill` raises, FileExistsError if *target* already exists, OSError.
    """
    # Before reading the artifact, which may take an hour.
    if os.path.lexists(target):
        raise FileExistsError(17, os.strerror(17), str(target))
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    with open(aside, "xb", opener=open_private) as file:
        try:
            os.fchmod(file.fileno(), 0o600)
            contents = drill(vault, manifest, passwords, limits)
            require_same(manifest, decrypt_file(vault.artifact(manifest), file, passwords[contents.opened_by]))
            file.flush()
            os.fsync(file.fileno())
            take_name(aside, target)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    fsync_directory(target.parent)
    return contents


def is_damage(error: A0BackupError) -> bool:
    """Return whether *error* of a drill means that the artifact itself is bad, not what it was opened with."""
    if isinstance(error, WrongPasswordError | TooLargeUnpackedError):
        return False
    return isinstance(error, ArtifactDamagedError | ContentsError)


def remedy(error: A0BackupError, manifest: Manifest, *, with_key: bool) -> str:
    """Return what to do next after a drill of *manifest*, with or without a private key, ended with *error*."""
    if not isinstance(error, WrongPasswordError):
        return error.hint()
    if manifest.encryption.password.mode == "unknown":
        return "this vault did not start that backup: ask who did for its password, and give it with --password-file"
    if manifest.encryption.password.sealed and not with_key:
        return "its password is sealed: give the private part of the recovery key with --key"
    if manifest.encryption.password.sealed:
        return "what the recovery key opened is not the password of this artifact; `a0backup show` tells what is known"
    return "give the password of that time with --password-file; letters, case and blanks count"
