"""One simulated fleet for all tests of the simulator. Each test gets its own node and directory."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.fleet import SimulatedFleet
from tests.support.patience import patience

NODES = 160


class Desk:
    """A directory with a key pair and one node's commands, and the a0cli calls made from it."""

    def __init__(self, fleet: SimulatedFleet, node: dict[str, Any], directory: Path) -> None:
        self.fleet, self.node, self.name, self.directory = fleet, node, str(node["name"]), directory

    def link_keys(self) -> None:
        for key in self.fleet.key_dir.iterdir():
            (self.directory / key.name).symlink_to(key)

    def argv(self, *args: str) -> list[str]:
        return [str(self.fleet.a0cli), "-t", str(self.node["host"]), "-p", str(self.node["port"]), *args]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*args), cwd=self.directory, capture_output=True, text=True, timeout=patience(60), check=False
        )

    @contextlib.contextmanager
    def start(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Start a call. Kill it at the end if it still runs."""
        with subprocess.Popen(
            self.argv(*args), cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def tell(self, command: str | None, fault: str, **settings: Any) -> None:
        self.fleet.tell(self.name, command, fault, **settings)

    def calls(self, command: str | None = None) -> list[dict[str, Any]]:
        return self.fleet.calls(self.name, command)

    def events(self) -> list[dict[str, Any]]:
        return self.fleet.events(self.name)

    def holds(self, kind: str = "backup") -> dict[str, Any] | None:
        return self.fleet.holds(self.name, kind)

    def put(self, size: int | None = None) -> dict[str, Any]:
        return self.fleet.put(self.name, password="Passw0rd", size=size)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("backup-status").stdout)
        return status

    @property
    def retrieved(self) -> Path:
        return self.directory / "backup-retrieve.tar.gz.enc"


@pytest.fixture(scope="session")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    state = tmp_path_factory.mktemp("fleet")
    builds = {"a0-1": 11637, "a0-2": 11638}
    with SimulatedFleet(state, NODES, size=20_000, backup_seconds=0.1, builds=builds, vault=state / "vault") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def unused_nodes(shared_fleet: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return iter(shared_fleet.nodes[1:])


@pytest.fixture
def old_desk(shared_fleet: SimulatedFleet, tmp_path: Path) -> Desk:
    """Return a desk for the node with the last build before the sensitive backup."""
    return _other_desk(shared_fleet, shared_fleet.nodes[0], tmp_path / "old")


@pytest.fixture
def bare_desk(shared_fleet: SimulatedFleet, unused_nodes: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    """Return a desk without a key pair and commands."""
    return Desk(shared_fleet, next(unused_nodes), tmp_path)


@pytest.fixture
def desk(bare_desk: Desk) -> Desk:
    bare_desk.link_keys()
    assert bare_desk.run("update-commands").returncode == 0
    return bare_desk


@pytest.fixture
def other_desk(shared_fleet: SimulatedFleet, unused_nodes: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    """Return a second desk, for another node."""
    return _other_desk(shared_fleet, next(unused_nodes), tmp_path / "other")


def _other_desk(fleet: SimulatedFleet, node: dict[str, Any], directory: Path) -> Desk:
    directory.mkdir()
    other = Desk(fleet, node, directory)
    other.link_keys()
    assert other.run("update-commands").returncode == 0
    return other
