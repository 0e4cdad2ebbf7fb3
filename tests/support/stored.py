"""Artifacts in a vault, the keys that open them, and the command at a terminal, for tests that need no node.

keys = Keys.make(folder, "Passw0rd")
manifest = store(vault, "abc123", sealed=keys.seal("abc123", "recovery"))
code, shown = at_terminal("decrypt", manifest.id, "-o", "plain.tar.gz", cwd=place, answers=["Passw0rd"])
"""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from a0backup.files import digests
from a0backup.passwords import recovery_keys
from a0backup.vault import known_vault, storing
from a0backup.vault.leftovers import verified_file
from a0backup.vault.manifest import Manifest, ManifestNode, ManifestPassword, SealedPassword
from a0backup.vault.vault import Vault
from simulator.artifact import key_and_iv, make

A0BACKUP = Path(sys.executable).with_name("a0backup")
PASSPHRASE = "Canary9 Passphrase"
START = datetime(2026, 11, 22, 2, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Keys:
    """A folder with the pairs `recovery` and `other`, and files with the passphrase and the password."""

    folder: Path

    def seal(self, password: str, *names: str) -> tuple[SealedPassword, ...]:
        return tuple(recovery_keys.load_public(self.folder / f"{name}.pub.pem").seal(password) for name in names)

    def options(self, name: str = "recovery") -> list[object]:
        return ["--key", self.folder / f"{name}.key.pem", "--passphrase-file", self.folder / "passphrase"]

    @property
    def password(self) -> list[object]:
        return ["--password-file", self.folder / "password"]

    @classmethod
    def make(cls, folder: Path, password: str) -> Self:
        for name in ("recovery", "other"):
            recovery_keys.make_pair(folder / f"{name}.key.pem", folder / f"{name}.pub.pem", PASSPHRASE)
        for name, text in {"passphrase": PASSPHRASE, "password": password, "wrong": "Canary8Another"}.items():
            (folder / name).write_text(f"{text}\n")
            (folder / name).chmod(0o600)
        return cls(folder)


def store(
    root: Path,
    password: str,
    *,
    node: str = "a0-1",
    kind: str = "backup",
    nights: float = 0,
    sealed: Sequence[SealedPassword] = (),
    size: int = 40_000,
    plain: bytes | None = None,
) -> Manifest:
    """Store an artifact in the vault at *root*, as a run does."""
    vault = Vault(root)
    known_vault.create(vault)
    vault.make(node)
    place = verified_file(vault, node, kind)
    place.parent.mkdir(exist_ok=True, mode=0o700)
    if plain is None:
        make(place, kind=kind, seed=f"{node}{nights}", size=size, password=password, stopped=lambda: False)
    else:
        key, iv = key_and_iv(password)
        command = ["openssl", "enc", "-aes-256-ctr", "-K", key.hex(), "-iv", iv.hex()]
        place.write_bytes(subprocess.run(command, input=plain, capture_output=True, check=True).stdout)
    started = START + timedelta(days=nights)
    return storing.store(
        vault,
        node=ManifestNode(name=node, host="127.0.0.1", port=10121),
        kind=kind,
        name_on_node="22-11-2026-02-00-01.tar.gz",
        expected=digests(place),
        started_at=started,
        password=ManifestPassword(mode="sealed" if sealed else "shared", sealed=tuple(sealed)),
        flow_run="run-1",
        now=started + timedelta(minutes=14),
    )


def at_terminal(
    *arguments: object, cwd: Path, answers: Sequence[str] = (), prompt: str = r"[a-z0-9.]: $"
) -> tuple[int, str]:
    """Run the command at a terminal, and type *answers* when it shows *prompt*. Return its exit code and its output."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execv(A0BACKUP, [str(A0BACKUP), *map(str, arguments)])
    shown, left = b"", list(answers)
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # on Linux: the other end is closed
            break
        shown += piece
        if left and re.search(prompt.encode(), shown):
            os.write(terminal, left.pop(0).encode() + b"\n")
            shown += b"\n"
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()
