"""A node of its own for each test, and a desk whose backups are sealed."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from a0backup.passwords.recovery_keys import candidates, load_private
from a0backup.vault.manifest import Manifest
from simulator.fleet import SimulatedFleet
from tests.desk import Desk

KEY = rsa.generate_private_key(public_exponent=65537, key_size=3072)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 8, size=20_000, backup_seconds=0.05) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def unused(simulated: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return itertools.chain(simulated.nodes)


@pytest.fixture
def desk(simulated: SimulatedFleet, unused: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    return Desk(simulated, next(unused), tmp_path)


class Sealed:
    """A desk whose backups are sealed to one recovery key."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.public, self.private = desk.room / "recovery.pub.pem", desk.room / "offline.key.pem"
        spki, pkcs8 = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PrivateFormat.PKCS8
        pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
        self.public.write_bytes(KEY.public_key().public_bytes(pem, spki))
        self.private.write_bytes(KEY.private_bytes(pem, pkcs8, none))
        self.configure()

    def configure(self, **overrides: object) -> None:
        self.desk.configure(**{"password": {"sealed_to": str(self.public)}, **overrides})

    @property
    def files(self) -> list[Path]:
        return sorted((self.desk.vault.folder(self.desk.name) / "passwords").glob("*"))

    def passwords(self, manifest: Manifest) -> list[str]:
        sealed = manifest.encryption.password.sealed
        return candidates(sealed, load_private(self.private, None)) if sealed else []

    def opens(self, artifact: Path, password: str) -> bool:
        """Whether openssl and tar read *artifact* to its end with *password*."""
        command = f"openssl enc -d -aes-256-ctr -md md5 -nosalt -pass env:P -in {artifact} | tar tzf - > /dev/null"
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env={**os.environ, "P": password}, capture_output=True
        )
        return ended.returncode == 0

    def can_be_opened(self, manifest: Manifest) -> bool:
        """Whether the recovery key and the manifest alone open the artifact."""
        artifact = self.desk.vault.artifact(manifest)
        return any(self.opens(artifact, password) for password in self.passwords(manifest))


@pytest.fixture
def sealed(desk: Desk) -> Sealed:
    return Sealed(desk)
