"""Fixtures that give each test of one node's runs its own node."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.fleet import SimulatedFleet
from tests.support.desk import Desk
from tests.support.sealed import Sealed


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 150, size=20_000, backup_seconds=0.05) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def unused(simulated: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return itertools.chain(simulated.nodes)


@pytest.fixture
def desk(simulated: SimulatedFleet, unused: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    return Desk(simulated, next(unused), tmp_path)


@pytest.fixture
def sealed(desk: Desk) -> Sealed:
    return Sealed(desk)
