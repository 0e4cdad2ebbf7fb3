"""Engines to strike: an operator's server that is killed and comes back, runs with several homes, a worker."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from a0backup.vault.lock import is_held
from simulator.fleet import SimulatedFleet
from tests.support.deployed import BIN, REPOSITORY, Deployed, deployed_in
from tests.support.login import reaching
from tests.support.patience import patience, until
from tests.support.place import Place

FILE_LEASES = "prefect.server.concurrency.lease_storage.filesystem"
A_WHILE = 120.0  # for a condition that is met within seconds on an idle machine


def _port_to_keep() -> int:
    """Return an unused port that the system never assigns by itself, so it is still free after a pause."""
    for port in random.sample(range(20_000, 30_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


class OperatorsServer:
    """`prefect server start` on a port and a home that stay the same across restarts."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self._settings = settings
        self._port = _port_to_keep()
        self.api = f"http://127.0.0.1:{self._port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = kept | {
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
            **self._settings,
        }
        with (self.home / "operators-server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port)],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.answers, "the operator's server answers")

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.api}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def operators_server(home: Path, **settings: str) -> Iterator[OperatorsServer]:
    server = OperatorsServer(home, **settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def worker_of(server: OperatorsServer, folder: Path, appliances: SimulatedFleet) -> Iterator[Deployed]:
    """Deploy prefect.yaml to *server* from *folder*, without schedules, and run a process worker there."""
    folder.mkdir(parents=True)
    appliances.fleet_yaml(folder / "fleet.yaml", polling={"deadline": "20m"})
    with deployed_in(folder, server.api) as deployed:
        try:
            yield deployed
        finally:
            end_all_in(folder)


def end_all_in(folder: Path) -> None:
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def made(appliances: SimulatedFleet) -> dict[str, int]:
    """Return how many backups each node was told to make."""
    return {node: len(appliances.calls(node, "backup")) for node in appliances.names}


def retrieved(appliances: SimulatedFleet) -> dict[str, int]:
    return {node: len(appliances.calls(node, "backup-retrieve")) for node in appliances.names}


def assert_clean(place: Place, appliances: SimulatedFleet, *nodes: str) -> None:
    """Assert that a successful run left nothing: no process, lock, journal, private directory or backup on a node."""
    assert place.left() == []
    assert place.work_left() == []
    for node in nodes or appliances.names:
        assert not is_held(place.root / "vault" / node / "lock")
        assert appliances.holds(node) is None


def assert_one_at_a_time(appliances: SimulatedFleet) -> None:
    """Assert that no run called a0cli on a node again after another run had."""
    for node in appliances.names:
        # Each run has its own directory.
        turns = [run for run, _ in itertools.groupby(call["cwd"] for call in appliances.calls(node))]
        assert len(turns) == len(set(turns)), f"{node} was driven by turns: {turns}"


def assert_next_run_is_healthy(place: Place, appliances: SimulatedFleet, **environment: str) -> None:
    """Assert that one more run makes and stores one more backup of every node, and leaves nothing."""
    before, stored = made(appliances), len(place.manifests())
    ended = place.run("run", **environment)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert made(appliances) == {node: count + 1 for node, count in before.items()}
    assert len(place.manifests()) == stored + len(appliances.names)
    verified = place.run("verify")
    assert verified.returncode == 0, verified.stdout
    assert_clean(place, appliances)


class Running:
    """`a0backup` as a process whose output can be read while it runs."""

    def __init__(self, place: Place, name: str, *arguments: str, **environment: str) -> None:
        self.name, self._files = name, [place.root / f"{name}.{stream}" for stream in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [BIN / "a0backup", *arguments],
                cwd=place.root,
                env=place.environment | reaching(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def exit_code(self, seconds: float = 2 * A_WHILE) -> int:
        """Wait for its end and return its exit code. It must not have shown a traceback."""
        try:
            code = self.process.wait(patience(seconds))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {patience(seconds):.0f} s: {self.err}")
        assert "Traceback" not in self.out + self.err
        return code

    def waits(self) -> list[str]:
        """Return the lines in which it says which run it waits for."""
        return [line for line in self.err.splitlines() if "waiting for the lock of the node, held by run " in line]
