"""A real server with prefect.yaml deployed, a worker, simulated nodes, and a browser that is logged in."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.browser.ui import CHROMIUM, UI, browser
from tests.deployed import Deployed, deployed_in
from tests.login import logged_in


@pytest.fixture(scope="module")
def appliances_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    if not CHROMIUM.exists() and os.environ.get("A0BACKUP_ALL_PARTS") != "1":
        pytest.skip(f"there is no {CHROMIUM}")
    with SimulatedFleet(tmp_path_factory.mktemp("sim"), nodes=4, size=4_000_000, backup_seconds=0.5) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory, appliances_of_module: SimulatedFleet, migrated_home: Path
) -> Iterator[Deployed]:
    """The folder of an operator whose fleet was backed up once already."""
    home = Path(shutil.copytree(migrated_home, tmp_path_factory.mktemp("engine") / "home"))
    # Its path is on the pages, and on their pictures.
    folder = Path(tempfile.mkdtemp(dir=os.environ["A0BACKUP_TEST_ROOM"], prefix="operator-"))
    # Short: a start waits that long for what an earlier run may have sent.
    appliances_of_module.fleet_yaml(folder / "fleet.yaml", a0cli={"call_timeout": "4s"})
    with own_server(home) as api, deployed_in(folder, api) as place:
        night = place.run("backup-fleet/nightly").raise_for_status().json()["id"]
        assert place.ends_as("Completed", night, 300)
        yield place


@pytest.fixture
def appliances(appliances_of_module: SimulatedFleet) -> Iterator[SimulatedFleet]:
    yield appliances_of_module
    appliances_of_module.forget()


@pytest.fixture(scope="module")
def logged_in_ui(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    with browser(tmp_path_factory.mktemp("browser")) as context:
        ui = UI(context, deployed.environment["PREFECT_API_URL"].removesuffix("/api"))
        ui.log_in(*logged_in())
        yield ui


@pytest.fixture
def ui(logged_in_ui: UI, deployed: Deployed) -> Iterator[UI]:
    """The pages as a person sees them; no run is under way any more when the test has ended."""
    yield logged_in_ui
    deployed.cancel_all()
