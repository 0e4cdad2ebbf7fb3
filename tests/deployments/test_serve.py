"""`a0backup serve`, from the outside: one machine, one command."""

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from a0backup.lock import is_held
from deployments.server import own_server, served_api
from simulator.fleet import SimulatedFleet
from tests.deployed import PatientClient
from tests.deployments.test_local_run import Place, gone, server_of
from tests.deployments.test_server import eventually
from tests.login import logged_in

A0BACKUP = Path(sys.executable).with_name("a0backup")

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class Served:
    """An `a0backup serve` with the state folder of *place*, on a port of its own choice."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self.place, self.log = place, place.root / "serve.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [A0BACKUP, "serve", "--port", "0", *arguments],
                cwd=place.root,
                env=place.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> None:
        assert eventually(lambda: "serving at" in self.said or self.process.poll() is not None, 180), self.said
        api = served_api(self.place.engine)
        assert api is not None, self.said
        self.client = PatientClient(base_url=api, auth=logged_in(self.place.engine))

    def start(self, deployment: str, **parameters: object) -> str:
        found = self.client.get(f"deployments/name/{deployment}").raise_for_status().json()["id"]
        made = self.client.post(f"deployments/{found}/create_flow_run", json={"parameters": parameters})
        return str(made.raise_for_status().json()["id"])

    def state(self, run: str) -> str:
        return str(self.client.get(f"flow_runs/{run}").raise_for_status().json()["state"]["name"])

    def end(self) -> None:
        if self.process.poll() is None:
            for each in [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]:
                each.kill()
            self.process.wait()


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet


@pytest.fixture
def place(tmp_path: Path, own_home: Path, appliances: SimulatedFleet) -> Place:
    place = Place(tmp_path)
    place.engine.parent.mkdir(parents=True)
    own_home.rename(place.engine)
    appliances.fleet_yaml(tmp_path / "fleet.yaml")
    return place


@pytest.fixture
def served(place: Place) -> Iterator[Served]:
    served = Served(place)
    try:
        served.wait()
        yield served
    finally:
        served.end()


def test_it_runs_what_is_started_lets_a_run_by_hand_use_its_server_and_calls_off_what_runs_when_it_is_stopped(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    # The schedules of prefect.yaml are served, too.
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    coming = lambda: served.client.post("flow_runs/filter", json=wanted).raise_for_status().json()  # noqa: E731
    assert eventually(lambda: len({run["deployment_id"] for run in coming()}) == 2, 60), coming()
    night = served.start("backup-fleet/nightly", fan_out="workers")
    by_hand = place.run("check", "a0-1")
    assert by_hand.returncode == 0, by_hand.stderr
    assert "of the `a0backup serve` that runs on" in by_hand.stderr
    assert eventually(lambda: served.state(night) in ("Completed", "Failed"), 180), served.said
    assert served.state(night) == "Completed"
    vault = place.root / "vault"
    assert sorted(path.parent.parent.name for path in vault.glob("*/*/manifest.json")) == ["a0-1", "a0-2"]

    refused = place.run("serve")
    assert refused.returncode == 1
    assert "another `a0backup serve` runs" in refused.stderr

    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    called_off = served.start("backup-node/single-node", node="a0-1")
    before = len(appliances.calls("a0-1", "backup-retrieve"))
    assert eventually(lambda: len(appliances.calls("a0-1", "backup-retrieve")) > before, 90), served.said
    server = server_of(served.process)
    assert server is not None
    children = psutil.Process(served.process.pid).children(recursive=True)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 130
    assert all(gone(process) for process in [server, *children])
    assert not is_held(vault / "a0-1/lock")
    assert served_api(place.engine) is None

    appliances.forget()
    following = place.run("run", "a0-1")
    assert following.returncode == 0, following.stderr
    with own_server(place.engine) as api:
        state = httpx.get(f"{api}/flow_runs/{called_off}", auth=logged_in(place.engine)).json()["state"]["name"]
    assert state == "Cancelled"
    assert "our own; ends with this run" in following.stderr
    assert len(appliances.calls("a0-1", "backup")) == 2


def test_a_night_over_workers_that_is_cancelled_cancels_the_run_of_each_node(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell(None, "backup-retrieve", "hang", ignore_sigterm=True)
    night = served.start("backup-fleet/nightly", fan_out="workers")
    assert eventually(lambda: len(appliances.calls(command="backup-retrieve")) == 2, 120), served.said
    served.client.post(f"flow_runs/{night}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def states() -> list[str]:
        runs = served.client.post("flow_runs/filter", json={}).raise_for_status().json()
        return [run["state_name"] for run in runs if run["state_type"] != "SCHEDULED"]

    assert eventually(lambda: states() == ["Cancelled"] * 3, 90), states()
    assert not any(is_held(place.root / f"vault/{node}/lock") for node in ("a0-1", "a0-2"))


def test_where_it_is_killed_its_server_ends_and_its_run_goes_on_and_the_next_serve_takes_over(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup", "duration", seconds=15)
    run = served.start("backup-node/single-node", node="a0-1")
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup")), 90), served.said
    server = server_of(served.process)
    assert server is not None
    orphans = psutil.Process(served.process.pid).children(recursive=True)
    served.process.kill()
    served.process.wait()
    assert eventually(lambda: gone(server), 20)
    appliances.forget()

    again = Served(place)
    try:
        again.wait()
        assert again.state(run) == "Crashed"
        following = again.start("backup-node/single-node", node="a0-1")
        assert eventually(lambda: again.state(following) in ("Completed", "Failed"), 180), again.said
        assert again.state(following) == "Completed", again.said
    finally:
        again.end()
        for orphan in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
    # Its run has gone on without it: what it stored before the next began is one more, what later the outcome of both.
    made = len(appliances.calls("a0-1", "backup"))
    assert made == len(list((place.root / "vault/a0-1").glob("*/manifest.json"))) in (1, 2)


def test_a_port_that_another_server_has_is_named(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = place.run("serve", "--port", str(port))
    assert refused.returncode == 1
    assert f"cannot have port {port} of 127.0.0.1" in refused.stderr
    assert "name another --port" in refused.stderr
