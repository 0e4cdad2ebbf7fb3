"""Real PostgreSQL, Redis and engine, with the command lines and settings that we ship.

    needed(*ENGINE_PARTS)                                      # skips the test if they are not installed
    with engine_on_parts(tmp_path / "engine") as engine:
        engine.prefect("work-pool", "ls", folder=operator)     # a command of Prefect, to its end
        worker = engine.start_worker("one", operator)          # what a0backup-worker.service starts
        engine.client.get("flow_runs/...")                     # httpx, with the auth string and a CSRF token
        worker.kill()                                          # and all that it started, with SIGKILL

Engine, services and workers are what the systemd units start. Their settings are engine.env.example and
worker.env.example. Everything ends with the block, and with the test's process, however that ends.
"""

import base64
import contextlib
import os
import pwd
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.deployed import PatientClient
from tests.support.paths import REPOSITORY
from tests.support.patience import patience

UNITS = REPOSITORY / "deployments" / "systemd"
BIN = Path(sys.executable).parent
INSTALLED = "/opt/a0backup/.venv/bin"
PLACEHOLDER = "REPLACE-ME"
ENGINE_PARTS = ("initdb", "postgres", "psql", "redis-server", "setpriv")


def needed(*programs: str) -> None:
    """Skip the test if one of *programs* is not installed. Fail it instead if A0BACKUP_ALL_PARTS says that all are."""
    if missing := [program for program in programs if found(program) is None]:
        if os.environ.get("A0BACKUP_ALL_PARTS") == "1":
            pytest.fail(f"A0BACKUP_ALL_PARTS=1, and there is no {', no '.join(missing)}")
        pytest.skip(f"there is no {', no '.join(missing)}")


def found(program: str) -> str | None:
    # Debian keeps PostgreSQL's programs outside PATH, in one folder per version.
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/sbin")]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(map(str, folders)))


def example_settings(example: str) -> dict[str, str]:
    """Return the settings in deployments/*example*, as systemd reads them."""
    lines = (REPOSITORY / "deployments" / example).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled_settings(example: str, filled: Mapping[str, str]) -> dict[str, str]:
    """Return the settings in deployments/*example* as completed by an operator with *filled*."""
    settings = example_settings(example) | dict(filled)
    left = [name for name, value in settings.items() if PLACEHOLDER in value]
    assert not left, f"placeholders left of {example}: {left}"
    return settings


def unit_lines(name: str) -> list[tuple[str, str]]:
    """Return the settings in deployments/systemd/*name*.service in order. A key may occur more than once."""
    lines = (UNITS / f"{name}.service").read_text().splitlines()
    return [(key, value) for key, _, value in (line.partition("=") for line in lines if line[:1] not in "#[")]


@dataclass(frozen=True)
class Unit:
    """The commands of a systemd unit, and the unit's own settings."""

    commands: list[list[str]]  # of ExecStartPre and ExecStart, in order
    environment: dict[str, str]
    ends: bool  # the last command also ends by itself

    @classmethod
    def read(cls, name: str, state: Path, **specifiers: str) -> "Unit":
        """Read the unit as installed in this venv, with its state in *state*. *specifiers*: the values of %H etc."""
        commands, environment = [], {}
        for key, value in unit_lines(name):
            if key in ("ExecStartPre", "ExecStart"):
                for letter, meant in specifiers.items():
                    value = value.replace(f"%{letter}", meant)
                program, *arguments = shlex.split(value)
                commands.append([program.replace(INSTALLED, str(BIN)), *arguments])
            elif key == "Environment":
                variable, _, setting = value.partition("=")
                environment[variable] = setting.replace(f"/var/lib/{name}", str(state))
        return cls(commands, environment, ("Type", "oneshot") in unit_lines(name))


def free_port() -> int:
    """Return a free port on 127.0.0.1, below the range that the kernel uses for outgoing connections."""
    while True:
        port = random.randint(15000, 32000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Part:
    """A process that is ended reliably, with all that it started."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        folder: Path,
        environment: Mapping[str, str],
        polite: signal.Signals = signal.SIGTERM,
        user: pwd.struct_passwd | None = None,
        said: bytes = b"",
    ) -> None:
        """Start *command* as *user*, with *said* on its standard input.

        *polite* is the signal that ends it. The kernel sends it too, if this process is gone.
        """
        leash: list[str | Path] = [found("setpriv") or "setpriv", "--pdeathsig", polite.name.removeprefix("SIG")]
        if user is not None:
            leash += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self.log, self._polite = log, polite
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*leash, *command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(said)

    def wait_until(self, ready: Callable[[], bool], seconds: float = 180) -> None:
        """Wait until *ready* returns true. Otherwise fail the test, and show the end of the log."""
        deadline = time.monotonic() + patience(seconds)
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.log.stem} did not come up:\n{self.tail()}")
            time.sleep(0.05)

    def ends_well(self, seconds: float = 120) -> None:
        """Wait until it ends by itself. Fail the test unless its exit code is 0."""
        assert self.process.wait(patience(seconds)) == 0, self.tail()

    def said(self, words: str) -> bool:
        """Return whether its log contains *words*."""
        return words in self.log.read_text(errors="replace")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stand_still(self) -> None:
        """Stop it and all that it started, until `go_on`."""
        waiting = [psutil.Process(self.process.pid)]
        while waiting:
            process = waiting.pop()
            with contextlib.suppress(psutil.NoSuchProcess):
                # Before its children are read: a suspended process starts no more of them.
                process.suspend()
                waiting += process.children()

    def go_on(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
            process.resume()

    def kill(self) -> None:
        """Kill it and all that it started, as a power cut would."""
        self._sweep(self.process.kill, 0)

    def end(self, seconds: float = 20) -> None:
        """End it politely, kill it after *seconds*, and then kill whatever it left running."""
        self._sweep(lambda: self.process.send_signal(self._polite), seconds)

    def _sweep(self, ask: Callable[[], None], seconds: float) -> None:
        if self.process.poll() is not None:
            return
        started = psutil.Process(self.process.pid).children(recursive=True)
        ask()
        try:
            self.process.wait(patience(seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for child in started:
            if child.is_running():
                child.kill()


@dataclass(frozen=True)
class Database:
    """The test's own PostgreSQL server, with a database `prefect` that its user `prefect` owns."""

    port: int
    password: str


@contextmanager
def postgresql() -> Iterator[Database]:
    """Run PostgreSQL on a port of 127.0.0.1. Run it as the user postgres under root, where it refuses to run."""
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    # Not below pytest's folders: only their owner can enter them.
    room = Path(tempfile.mkdtemp(prefix="a0backup-postgresql-"))
    database = Database(free_port(), secrets.token_hex(12))

    def start(program: str, *arguments: str | Path, **more: Any) -> Part:
        command = [found(program) or program, *arguments]
        environment = {"PATH": os.defpath, "LC_ALL": "C"}
        return Part(command, room / f"{program}.log", folder=room, environment=environment, user=user, **more)

    try:
        if user is not None:
            os.chown(room, user.pw_uid, user.pw_gid)
        files = room / "files"
        start("initdb", "-D", files, "-U", "postgres", "-E", "UTF8", "--auth=trust", "--no-sync").ends_well()
        # Network connections need a password, as on a shared machine.
        access = "local all postgres trust\nhost prefect prefect 127.0.0.1/32 scram-sha-256\n"
        (files / "pg_hba.conf").write_text(access)
        options = [
            f"port={database.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={room}",
            "fsync=off",
        ]
        serve: list[str | Path] = ["-D", files]
        for option in options:
            serve += ["-c", option]
        server = start("postgres", *serve, polite=signal.SIGINT)
        try:
            server.wait_until(lambda: server.said("ready to accept connections"))
            statements = (
                f"create role prefect login password '{database.password}';\ncreate database prefect owner prefect;\n"
            )
            connection = ["-h", str(room), "-p", str(database.port), "-U", "postgres", "-v", "ON_ERROR_STOP=1"]
            start("psql", *connection, said=statements.encode()).ends_well()
            yield database
        finally:
            server.end()
    finally:
        shutil.rmtree(room)


@dataclass(frozen=True)
class Broker:
    """The test's own Redis server."""

    port: int
    password: str


@contextmanager
def redis(room: Path) -> Iterator[Broker]:
    """Run Redis on a port of 127.0.0.1, with a password and its append-only file in *room*."""
    broker = Broker(free_port(), secrets.token_hex(12))
    configuration = f"port {broker.port}\nbind 127.0.0.1\nrequirepass {broker.password}\nappendonly yes\ndir {room}\n"
    command = [found("redis-server") or "redis-server", "-"]
    environment = {"PATH": os.defpath}
    server = Part(command, room / "redis.log", folder=room, environment=environment, said=configuration.encode())
    try:
        server.wait_until(lambda: server.said("Ready to accept connections"))
        yield broker
    finally:
        server.end()


class Engine:
    """Migration, API with UI, services and workers, as the systemd units start them."""

    def __init__(self, room: Path, database: Database, broker: Broker, settings: Mapping[str, str]) -> None:
        """Start nothing yet. *settings* override those of engine.env.example."""
        self.room = room
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.url}/api"
        password = secrets.token_hex(12)
        self.auth = f"operator:{password}"
        # Calls the API with the auth string, and with a CSRF token once the engine has started.
        self.client = PatientClient(base_url=self.api, auth=("operator", password))
        self._settings = filled_settings(
            "engine.env.example",
            {
                "PREFECT_SERVER_API_AUTH_STRING": self.auth,
                "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": self.url,
                "PREFECT_SERVER_UI_API_URL": self.api,
                "PREFECT_UI_URL": self.url,
                "PREFECT_SERVER_API_PORT": str(self.port),
                "PREFECT_SERVER_DATABASE_PORT": str(database.port),
                "PREFECT_SERVER_DATABASE_PASSWORD": database.password,
                "PREFECT_SERVER_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "PREFECT_REDIS_MESSAGING_PORT": str(broker.port),
                "PREFECT_REDIS_MESSAGING_PASSWORD": broker.password,
                **settings,
            },
        )
        self._parts: list[Part] = []

    def start(self) -> None:
        """Migrate, start API and services, and wait until the API answers."""
        self._start("a0backup-migrate")
        server = self._start("a0backup-server")
        self._start("a0backup-services")
        server.wait_until(self._answers)
        token = self.client.get("csrf-token", params={"client": "test"}).raise_for_status().json()["token"]
        self.client.headers.update({"Prefect-Csrf-Client": "test", "Prefect-Csrf-Token": token})

    def end(self) -> None:
        """End the workers, then the services and the server."""
        self.client.close()
        for part in reversed(self._parts):
            part.end()

    def start_worker(self, name: str, folder: Path, **settings: str) -> Part:
        """Start a worker called *name* in *folder*. *settings* are added to those of worker.env.example."""
        return self._start("a0backup-worker", name=name, folder=folder, settings=self.worker_settings(**settings))

    def worker_settings(self, **settings: str) -> dict[str, str]:
        """Return worker.env.example as completed for this engine, with *settings*."""
        filled = {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": self.auth}
        return filled_settings("worker.env.example", filled | settings)

    def prefect(self, *arguments: str, folder: Path, **settings: str) -> str:
        """Run a command of Prefect in *folder* with a worker's settings, and return what it printed."""
        environment = self._environment("prefect") | self.worker_settings(**settings)
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=patience(120)
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def _start(
        self, unit: str, *, name: str = "", folder: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> Part:
        """Run the commands of *unit* to their end. The last one keeps running if the unit is a service."""
        name = name or unit
        environment = self._environment(name)
        read = Unit.read(unit, Path(environment["PREFECT_HOME"]), H=name)
        # Its WorkingDirectory is *folder* here.
        own = {name: text.replace("/srv/a0backup", str(folder)) for name, text in read.environment.items()}
        environment |= own | dict(self._settings if settings is None else settings)
        for command in read.commands:
            part = Part(command, self.room / f"{name}.log", folder=folder or self.room, environment=environment)
            if read.ends or command is not read.commands[-1]:
                part.ends_well()
        if not read.ends:
            self._parts.append(part)
        return part

    def _environment(self, name: str) -> dict[str, str]:
        """Return the environment that systemd gives every process, with the test's own folders."""
        home = self.room / name
        temporary = home / "tmp"
        temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {"PATH": os.defpath, "HOME": str(home), "TMPDIR": str(temporary), "PREFECT_HOME": str(home)}

    def _answers(self) -> bool:
        try:
            return self.client.get("health").is_success
        except httpx.TransportError:
            return False


@contextmanager
def engine_on_parts(room: Path, **settings: str) -> Iterator[Engine]:
    """Run PostgreSQL, Redis, and the engine on them, all in *room*. *settings* override those of engine.env.example."""
    room.mkdir(parents=True, exist_ok=True)
    with postgresql() as database, redis(room) as broker:
        engine = Engine(room, database, broker, settings)
        try:
            engine.start()
            yield engine
        finally:
            engine.end()
