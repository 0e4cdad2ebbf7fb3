"""Prove that an artifact can be restored, or decrypt it: bytes, password and contents are all checked.

contents = drill(vault, manifest, Secrets(key=load_private(path, passphrase)).passwords(manifest), limits)
drilled = prove(vault, manifest, secrets, limits, shrink=0.3, now=now)    # and record it
"""

import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from a0backup.artifact.encryption import decrypt_file
from a0backup.artifact.inspection import Contents, Limits, inspect, verified_by
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
from a0backup.fleet.models import Fleet, Node
from a0backup.passwords.recovery_keys import PrivateKey
from a0backup.passwords.sealed import candidates
from a0backup.upkeep.comparison import lost_since, previous
from a0backup.vault.drilled import Drilled, write_drilled
from a0backup.vault.manifest import Manifest, UnreadableManifest
from a0backup.vault.vault import Vault, is_ahead, reading, require_same


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


@dataclass(frozen=True)
class DrillResult:
    """How the drill of one artifact ended.

    *not tried*: what opens it is not at hand. *warnings* name what it lacks of the backup before it, and whether
    the result could not be recorded.
    """

    id: str
    result: Literal["ok", "damaged", "not opened", "not tried"]
    reason: str = ""
    hint: str = ""
    contents: Contents | None = None
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        return self.result in ("damaged", "not opened")


def newest_of(vault: Vault, fleet: Fleet, nodes: Iterable[Node]) -> list[Manifest | UnreadableManifest]:
    """Return the newest artifact of each of the *nodes* and of each kind that *fleet* makes of it.

    One whose time lies in the future counts only if there is no other. Raise OSError if a folder cannot be read.
    """
    at, found = datetime.now(UTC), []
    for node in nodes:
        for kind in fleet.kinds_of(node):
            ids = vault.ids(node.name, kind)
            # Those in the future last.
            newest_first = sorted(ids, key=lambda each: (not is_ahead(each, at), each), reverse=True)
            newest = next((entry for entry in map(vault.get, newest_first) if entry is not None), None)
            found += [newest] if newest is not None else []
    return found


def not_at_hand(entry: Manifest | UnreadableManifest, shared: str | None) -> DrillResult | None:
    """Return that *entry* is not tried, if the *shared* password of the fleet is not known to be the one that opens it.

    None if it is to be tried.
    """
    if isinstance(entry, UnreadableManifest):
        return None
    password = entry.encryption.password
    if password.sealed:
        reason = "its password is sealed: it needs the recovery key"
        hint = "where the private part is: `a0backup drill --vault COPY --key FILE`"
    elif password.mode != "shared":
        reason = "its password is not known: this vault did not start that backup"
        hint = "ask who started it, and use `a0backup drill --password-file FILE`"
    elif shared is None:
        reason = "its password is an earlier shared one, and fleet.yaml names none"
        hint = "`a0backup drill --password-file FILE`"
    else:
        return None
    return DrillResult(entry.id, "not tried", reason, hint)


def prove(
    vault: Vault,
    entry: Manifest | UnreadableManifest,
    secrets: Secrets,
    limits: Limits,
    *,
    shrink: float,
    now: datetime,
) -> DrillResult:
    """Drill the artifact, compare it with the backup before it, and record beside it how that ended.

    What the artifact was opened with proves nothing of it: a wrong password or key is not recorded.
    """
    now = now.replace(microsecond=0)
    try:
        if isinstance(entry, UnreadableManifest):
            raise entry.error()
        contents = drill(vault, entry, secrets.passwords(entry), limits)
    except A0BackupError as error:
        if isinstance(entry, UnreadableManifest):
            return DrillResult(entry.id, "damaged" if is_damage(error) else "not opened", error.message(), error.hint())
        hint = remedy(error, entry, with_key=secrets.key is not None)
        if not is_damage(error):
            return DrillResult(entry.id, "not opened", error.message(), hint)
        level: Literal["contents", "md5"] = "contents" if isinstance(error, ContentsError) else "md5"
        drilled = Drilled(drilled_at=now, passed=False, level=level, problem=error.text())
        return DrillResult(entry.id, "damaged", error.message(), hint, warnings=_recorded(vault, entry, drilled))
    drilled = Drilled(drilled_at=now, passed=True, level="contents")
    warnings = (*_losses(vault, entry, contents, shrink), *_recorded(vault, entry, drilled))
    return DrillResult(entry.id, "ok", contents=contents, warnings=warnings)


def _recorded(vault: Vault, manifest: Manifest, drilled: Drilled) -> tuple[str, ...]:
    """Record the result; return a warning if that is not possible, as in a copy that cannot be written."""
    try:
        write_drilled(vault.root / manifest.id, drilled)
    except OSError as error:
        return (f"the result cannot be recorded beside it: {error.strerror}",)
    return ()


def _losses(vault: Vault, manifest: Manifest, contents: Contents, shrink: float) -> tuple[str, ...]:
    """Return what the artifact lacks of the backup before it; its manifest may not know its contents."""
    read = manifest.model_copy(update={"verified": verified_by(contents)})
    try:
        before = previous(vault, read)
    except OSError as error:
        return (f"it cannot be compared with the backup before: {error.strerror}",)
    return () if before is None else lost_since(before, read.verified, size=read.artifact.size, shrink=shrink)


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
