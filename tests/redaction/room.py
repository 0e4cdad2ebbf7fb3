"""A room in which everything that runs writes below one place, which is searched; who knows the secret lives beside it."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from a0backup.recovery import load_private
from simulator.fleet import SimulatedFleet
from tests.redaction.canary import Hit, search

BIN = Path(sys.executable).parent
PATIENCE = 120.0  # seconds in which a command has surely ended
PLAIN = "Canary7Password"
NASTY = "Canary 7'\"\\/%+&<é→>ß"

# Whatever an operator may switch on to see more.
LOUD = {
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "DEBUG",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "a0backup,asyncio,httpx,httpcore,concurrent",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    "PYTHONASYNCIODEBUG": "1",
}


class Room:
    """*place* is searched. *beside* has the appliances, the a0cli that talks, and the operator's own keys."""

    def __init__(self, root: Path, nodes: int | Sequence[str]) -> None:
        self.place, self.beside = root / "place", root / "beside"
        self.engine = self.place / "state" / "a0backup" / "engine"
        self.appliances = SimulatedFleet(self.beside / "sim", nodes, size=20_000, backup_seconds=0.05)
        for folder in ("home", "state", "config", "cache", "share", "run", "tmp", "terminal", "storage"):
            (self.place / folder).mkdir(parents=True, mode=0o700)
        (self.beside / "bin").mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "XDG_"))}
        self.environment = kept | {
            "HOME": str(self.place / "home"),
            "TMPDIR": str(self.place / "tmp"),
            "XDG_STATE_HOME": str(self.place / "state"),
            "XDG_CONFIG_HOME": str(self.place / "config"),
            "XDG_CACHE_HOME": str(self.place / "cache"),
            "XDG_DATA_HOME": str(self.place / "share"),
            "XDG_RUNTIME_DIR": str(self.place / "run"),
            "PREFECT_LOCAL_STORAGE_PATH": str(self.place / "storage"),
        }
        self._count = 0

    def __enter__(self) -> "Room":
        self.appliances.__enter__()
        a0cli = self.beside / "bin" / "a0cli"
        a0cli.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("talkative.py").read_text())
        a0cli.chmod(0o700)
        (self.beside / "bin" / "a0cli.json").write_text(json.dumps(str(self.appliances.a0cli)))
        return self

    def __exit__(self, *error: Any) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if Path(process.cwd()).is_relative_to(self.place):
                    process.kill()
        self.appliances.__exit__(None, None, None)

    def fleet(self, password: dict[str, Any], **settings: Any) -> None:
        """Write fleet.yaml; what is quick there, is to fail soon."""
        quick = {
            "a0cli": {"path": str(self.beside / "bin" / "a0cli"), "call_timeout": "2s", "retrieve_timeout": "10s"},
            "polling": {"interval": "0.2s", "max_interval": "0.5s", "deadline": "4s"},
            "retrieve_attempts": 2,
        }
        self.appliances.fleet_yaml(self.place / "fleet.yaml", password=password, **quick | settings)

    # -- the operator's sources ------------------------------------------------------------------------------------

    def in_environment(self, secret: str) -> dict[str, str]:
        self.environment["A0_BACKUP_PASSWORD"] = secret
        return {"env": "A0_BACKUP_PASSWORD"}

    def in_file(self, secret: str) -> dict[str, str]:
        path = self.beside / "password"
        path.touch(0o600)
        path.write_text(secret + "\n", encoding="utf-8")
        return {"file": str(path)}

    def sealed(self) -> dict[str, str]:
        """The private half stays beside the place."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        pem, no_passphrase = serialization.Encoding.PEM, serialization.NoEncryption()
        (self.beside / "recovery.key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_passphrase)
        )
        (self.place / "recovery.pub.pem").write_bytes(
            key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return {"sealed_to": "recovery.pub.pem"}

    # -- what the nodes say ----------------------------------------------------------------------------------------

    def says(self, node: str, **by_command: dict[str, Any]) -> None:
        """Have the node's a0cli say the password that it was told last; `backup_status=` is about `backup-status`."""
        [port] = [each["port"] for each in self.appliances.nodes if each["name"] == node]
        script = {command.replace("_", "-"): said for command, said in by_command.items()}
        (self.beside / "bin" / f"{port}.json").write_text(json.dumps(script))

    def told(self) -> list[str]:
        """The passwords that the nodes were told, each once."""
        records = [path.read_text(encoding="utf-8") for path in sorted((self.beside / "bin").glob("*.told"))]
        return list(dict.fromkeys(json.loads(line) for record in records for line in record.splitlines()))

    def environments_of_a0cli(self) -> bytes:
        return (self.beside / "bin" / "environments").read_bytes()

    # -- the commands ----------------------------------------------------------------------------------------------

    def start(self, *arguments: str, **environment: str) -> "Command":
        self._count += 1
        return Command(self, self.place / "terminal" / f"{self._count}-{arguments[0]}", arguments, environment)

    def run(self, *arguments: str, **environment: str) -> "Command":
        """Start it and wait for its end."""
        command = self.start(*arguments, **environment)
        command.wait()
        return command

    def on_a_terminal(self, *arguments: str, **environment: str) -> int:
        """Run it on a pseudo-terminal; what is shown there is searched like all else. Return its exit code."""
        self._count += 1
        ours, its = pty.openpty()
        process = subprocess.Popen(
            [BIN / "a0backup", *arguments],
            cwd=self.place,
            env=self.environment | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"} | environment,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        os.close(its)
        shown = self.place / "terminal" / f"{self._count}-{arguments[0]}.shown"
        reader = threading.Thread(target=_copied, args=(ours, shown))
        reader.start()
        try:
            return process.wait(PATIENCE)
        finally:
            process.kill()
            reader.join()
            os.close(ours)

    # -- the search ------------------------------------------------------------------------------------------------

    def unsealed(self) -> list[str]:
        """Every password that lies sealed in the place, opened with the private half."""
        key = load_private(self.beside / "recovery.key.pem", None)
        found = []
        for path in [*self.place.glob("vault/*/*/manifest.json"), *self.place.glob("vault/*/passwords/*.json")]:
            content = json.loads(path.read_text())
            boxes = content.get("sealed") or content["encryption"]["password"]["sealed"]
            found += [key.unseal(box["box"]) for box in boxes]
        return list(dict.fromkeys(found))

    def hits(self, *secrets: str) -> list[Hit]:
        return search(secrets, [self.place])

    def is_clean_of(self, *secrets: str) -> None:
        """Assert that none of the secrets is in the place."""
        hits = self.hits(*secrets)
        assert not hits, f"{len(hits)} hits:\n" + "\n".join(map(str, hits[:40]))


class Command:
    """`a0backup` as a process, and the files to which its output goes."""

    def __init__(self, room: Room, said: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._files = [said.with_suffix(f".{stream}") for stream in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [BIN / "a0backup", *arguments],
                cwd=room.place,
                env=room.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return its exit code, the negative number of the signal that killed it."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def interrupt(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.wait(20)

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self._files)


def _copied(terminal: int, path: Path) -> None:
    with path.open("wb") as file, contextlib.suppress(OSError):  # the other end is closed
        while octets := os.read(terminal, 1 << 16):
            file.write(octets)


def names(room: Room) -> Iterator[str]:
    """The nodes, one after the other, for a fault each."""
    return iter(room.appliances.names)
