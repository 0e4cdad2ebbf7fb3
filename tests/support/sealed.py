"""A desk whose backups are sealed to recovery keys."""

import os
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from a0backup.passwords.recovery_keys import load_private
from a0backup.passwords.sealed import candidates
from a0backup.vault.manifest import Manifest
from tests.support.desk import Desk

KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=3072) for _ in range(2)]


def keep(key: rsa.RSAPrivateKey, folder: Path, name: str) -> tuple[Path, Path]:
    """Write both halves of *key* and return the paths of the public and the private one."""
    public, private = folder / f"{name}.pub.pem", folder / "offline" / f"{name}.key.pem"
    private.parent.mkdir(exist_ok=True)
    pem = serialization.Encoding.PEM
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    none = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return public, private


class Sealed:
    """A desk whose backups are sealed to *count* recovery keys."""

    def __init__(self, desk: Desk, count: int = 1) -> None:
        self.desk = desk
        self.pairs = [keep(key, desk.room, f"recovery-{number}") for number, key in enumerate(KEYS[:count])]
        self.public, self.private = self.pairs[0]
        self.configure()

    def configure(self, **overrides: object) -> None:
        sealed_to = {"sealed_to": [str(public) for public, _ in self.pairs]}
        self.desk.configure(**{"password": sealed_to, **overrides})

    @property
    def files(self) -> list[Path]:
        """The files of sealed passwords whose backups are not settled yet."""
        return sorted((self.desk.vault.folder(self.desk.name) / "passwords").glob("*"))

    def passwords(self, manifest: Manifest, *, key: int = 0) -> list[str]:
        """Return the passwords that a recovery key opens in the manifest."""
        sealed = manifest.encryption.password.sealed
        return candidates(sealed, load_private(self.pairs[key][1], None)) if sealed else []

    def opens(self, manifest: Manifest, password: str) -> bool:
        """Return whether openssl and tar read the whole stored artifact with *password*."""
        artifact = self.desk.vault.artifact(manifest)
        command = f"openssl enc -d -aes-256-ctr -md md5 -nosalt -pass env:P -in {artifact} | tar tzf - > /dev/null"
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env={**os.environ, "P": password}, capture_output=True
        )
        return ended.returncode == 0

    def can_be_opened(self, manifest: Manifest) -> bool:
        """Return whether the recovery key and the manifest alone are enough to open the artifact."""
        return any(self.opens(manifest, password) for password in self.passwords(manifest))
