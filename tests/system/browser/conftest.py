"""A real server with prefect.yaml deployed, a worker, simulated nodes, and a logged-in browser."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from a0backup.fleet.models import FIRST_SPLIT_BUILD
from a0backup.passwords.recovery_keys import make_pair
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.support.deployed import Deployed, deployed_in
from tests.support.login import logged_in
from tests.system.browser.ui import CHROMIUM, TAKING_PICTURES, UI, browser


@pytest.fixture(scope="module")
def appliances_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    if not CHROMIUM.exists() and os.environ.get("A0BACKUP_ALL_PARTS") != "1":
        pytest.skip(f"there is no {CHROMIUM}")
    # The last build whose `backup` is all that a recovery needs, so a fleet with one kind per node is healthy.
    builds = dict.fromkeys(("a0-1", "a0-2", "a0-3", "a0-4"), FIRST_SPLIT_BUILD - 1)
    room = tmp_path_factory.mktemp("sim")
    with SimulatedFleet(room, list(builds), builds=builds, size=4_000_000, backup_seconds=0.5) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def operators_folder() -> Iterator[Path]:
    """Yield a folder for this test alone. Its path is on the pages, and in the pictures it looks like an operator's."""
    folder = _such_as_an_operator_has() or Path(tempfile.mkdtemp(dir=os.environ["A0BACKUP_TEST_ROOM"], prefix="op-"))
    yield folder
    shutil.rmtree(folder)


def _such_as_an_operator_has() -> Path | None:
    folder = Path("/srv/a0backup")
    if TAKING_PICTURES and os.geteuid() == 0:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    return None


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory,
    appliances_of_module: SimulatedFleet,
    migrated_home: Path,
    operators_folder: Path,
) -> Iterator[Deployed]:
    """Yield the folder of an operator whose fleet has been backed up once."""
    room = tmp_path_factory.mktemp("engine")
    home = Path(shutil.copytree(migrated_home, room / "home"))
    make_pair(room / "recovery.key.pem", operators_folder / "recovery.pub.pem", "drop of ink on a map")
    appliances_of_module.fleet_yaml(
        operators_folder / "fleet.yaml",
        password={"sealed_to": "recovery.pub.pem"},
        # Short: a start waits this long for what an earlier run may have sent.
        a0cli={"call_timeout": "4s"},
    )
    with own_server(home) as api, deployed_in(operators_folder, api) as place:
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
    """Yield the pages as a person sees them. When the test has ended, no run is in progress."""
    yield logged_in_ui
    deployed.cancel_all()
