"""A room in which every process writes below one place, which is searched. What knows the secret is kept beside it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from a0backup.passwords.recovery_keys import load_private
from deployments.home import use_api
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.support.patience import patience
from tests.support.stored import A0BACKUP, at_terminal
from tests.system.redaction.canary import Hit, search

PATIENCE = 120.0  # seconds; a command has surely ended by then
PLAIN = "Canary7Password"
NASTY = "Canary 7'\"\\/%+&<é→>ß"

# Everything that an operator may enable to see more. Not the logs of the HTTP client and of asyncio on the run's page:
# Prefect itself logs through both, so it would wait for itself forever.
LOUD = {
    "PREFECT_DEBUG_MODE": "true",
    "PREFECT_LOGGING_LEVEL": "DEBUG",
    "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "DEBUG",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "a0backup",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
    "PYTHONASYNCIODEBUG": "1",
}


class Room:
    """*place* is searched. *beside* has the appliances, the talkative a0cli, and the operator's own keys.

    *migrated_home* saves our own engine from building its database.
    """

    def __init__(self, root: Path, nodes: int, migrated_home: Path, *, health: bool = False) -> None:
        self.place, self.beside = root / "place", root / "beside"
        self.engine = self.place / "state" / "a0backup" / "engine"
        self.appliances = SimulatedFleet(self.beside / "sim", nodes, size=20_000, backup_seconds=0.05, health=health)
        for folder in ("home", "state", "config", "cache", "share", "run", "tmp", "terminal", "storage"):
            (self.place / folder).mkdir(parents=True, mode=0o700)
        shutil.copytree(migrated_home, self.engine)
        (self.beside / "bin").mkdir(parents=True)
        self.program = [str(A0BACKUP)]
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

    def fleet(self, password: dict[str, str], folder: str = ".", **settings: Any) -> None:
        """Write a fleet.yaml with which failures come soon."""
        quick = {
            "a0cli": {"path": str(self.beside / "bin" / "a0cli"), "call_timeout": "4s", "retrieve_timeout": "10s"},
            "polling": {"interval": "0.2s", "max_interval": "0.5s", "deadline": "4s"},
            "retrieve_attempts": 2,
        }
        self.appliances.fleet_yaml(self.place / folder / "fleet.yaml", password=password, **quick | settings)

    def password_from(self, source: str, secret: str = PLAIN) -> dict[str, str]:
        """Return the password entry of fleet.yaml. *secret* is now in env, file or block, or each is sealed."""
        match source:
            case "env":
                self.environment["A0_BACKUP_PASSWORD"] = secret
                return {"env": "A0_BACKUP_PASSWORD"}
            case "file":
                path = self.beside / "password"
                path.touch(0o600)
                path.write_text(secret + "\n", encoding="utf-8")
                return {"file": str(path)}
            case "block":
                self.block("a0-backup-password", secret)
                return {"secret_block": "a0-backup-password"}
        key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.beside / "recovery.key.pem").write_bytes(private)
        (self.place / "recovery.pub.pem").write_bytes(public)
        return {"sealed_to": "recovery.pub.pem"}

    def block(self, name: str, value: str) -> None:
        """Store *value* in the Secret block *name* of our own engine."""
        from prefect.blocks.system import Secret

        with own_server(self.engine) as api, use_api(api, self.engine):
            Secret(value=value).save(name, overwrite=True)  # type: ignore[arg-type]  # it takes any text

    # -- what the nodes say ----------------------------------------------------------------------------------------

    def says(self, node: str, **by_command: dict[str, Any]) -> None:
        """Make the node's a0cli print the password that this run last told it. `backup_status=` is for `backup-status`.

        `which` selects "the first" password that this run told it, or the last one "of any run".
        """
        [port] = [each["port"] for each in self.appliances.nodes if each["name"] == node]
        script = {command.replace("_", "-"): said for command, said in by_command.items()}
        (self.beside / "bin" / f"{port}.json").write_text(json.dumps(script))

    def told(self) -> list[str]:
        """Return the passwords that the nodes were told, each once."""
        records = [path.read_text(encoding="utf-8") for path in sorted((self.beside / "bin").glob("*.told"))]
        return list(dict.fromkeys(json.loads(line)[1] for record in records for line in record.splitlines()))

    def environments_of_a0cli(self) -> bytes:
        return (self.beside / "bin" / "environments").read_bytes()

    # -- the commands ----------------------------------------------------------------------------------------------

    def start(self, *arguments: str, **environment: str) -> "Command":
        self._count += 1
        return Command(self, self.place / "terminal" / f"{self._count}-{arguments[0]}", arguments, environment)

    def run(self, *arguments: str, **environment: str) -> "Command":
        """Start the command and wait for its end."""
        command = self.start(*arguments, **environment)
        command.wait()
        return command

    def on_a_terminal(self, *arguments: str, answers: Sequence[str] = (), **environment: str) -> int:
        """Run it on a pseudo-terminal, whose output is searched like everything else. Return its exit code."""
        self._count += 1
        with patch.dict(os.environ, self.environment | {"TERM": "xterm-256color"} | environment, clear=True):
            code, shown = at_terminal(*arguments, cwd=self.place, answers=answers)
        (self.place / "terminal" / f"{self._count}-{arguments[0]}.shown").write_text(shown)
        return code

    # -- the search ------------------------------------------------------------------------------------------------

    def unsealed(self) -> list[str]:
        """Return every password that is sealed in the place, opened with the private half."""
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
    """`a0backup` as a process, and the files that receive its output."""

    def __init__(self, room: Room, said: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._files = [said.with_suffix(f".{stream}") for stream in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [*room.program, *arguments],
                cwd=room.place,
                env=room.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return its exit code, the negative number of the signal that killed it."""
        try:
            return self.process.wait(patience(seconds))
        finally:
            self.process.kill()

    def interrupt(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.wait(20)

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def report(self) -> str:
        return self._files[0].read_text()

    @property
    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self._files)
