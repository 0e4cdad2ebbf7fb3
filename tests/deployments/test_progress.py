"""The progress of `a0backup run`: on its terminal, and on the page of whichever engine it runs on."""

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.support.patience import eventually
from tests.support.place import Place, Terminal

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2, size=300_000) as fleet:
        fleet.fleet_yaml(tmp_path / "fleet.yaml")
        yield fleet


@pytest.fixture
def place(tmp_path: Path, migrated_home: Path) -> Place:
    place = Place(tmp_path)
    shutil.copytree(migrated_home, place.engine)
    return place


def artifact(place: Place, key: str) -> Any:
    """Return what the page shows under this key, as stored in the engine's database."""
    database = sqlite3.connect(place.engine / "prefect.db")
    try:
        [(found,)] = database.execute("select data from artifact where key = ?", [key]).fetchall()
    finally:
        database.close()
    # A bare number is stored as such, anything else as JSON text of the artifact's data, which may itself be JSON text.
    while isinstance(found, str):
        found = json.loads(found)
    return found


def test_the_page_of_our_own_engine_shows_the_progress_too(place: Place, appliances: SimulatedFleet) -> None:
    appliances.tell("a0-2", "ping", "refuse")
    ended = place.run("run")
    assert ended.returncode == 3, ended.stderr
    assert artifact(place, "backup-progress") == 100
    shown = [(row["node"], row["step"]) for row in artifact(place, "backup-steps")]
    assert shown == [("a0-1", "stored"), ("a0-2", "failed (ping)")]
    assert "progress of this run" not in ended.stderr


def test_the_terminal_shows_the_bytes_that_have_arrived(place: Place, appliances: SimulatedFleet) -> None:
    appliances.tell("a0-1", "backup-retrieve", "drip", bytes_per_second=150_000)
    terminal = Terminal(place, "run")
    assert terminal.exit_code(120) == 0
    sizes = re.findall(rb"a0-1 +retrieve +\d[^B]*? s +(\d+\.\d) kB", terminal.shown)
    assert len(set(sizes)) > 2, terminal.shown
    assert sizes == sorted(sizes, key=float)


def test_every_node_is_stored_although_the_engine_goes_away_midway(
    place: Place, appliances: SimulatedFleet, own_home: Path
) -> None:
    from tests.system.faults.engines import Running, operators_server

    appliances.tell("a0-1", "backup-retrieve", "drip", bytes_per_second=30_000)
    with operators_server(own_home) as server:
        # Without the client's own retries: those at the end of the flow take a minute.
        run = Running(place, "run", "run", PREFECT_API_URL=server.api, PREFECT_CLIENT_MAX_RETRIES="0")
        assert eventually(lambda: bool(appliances.calls("a0-2", "backup-delete")), 60)
        assert eventually(lambda: bool(list(Vault(place.root / "vault").work("a0-1").glob("*/*.enc"))), 60)
        server.kill()
        assert run.exit_code(120) == 0, run.err
    assert sorted(place.stored()) == ["a0-1", "a0-2"]
    assert run.out.startswith("2 node backups: 2 stored\n")
    assert place.left() == []
