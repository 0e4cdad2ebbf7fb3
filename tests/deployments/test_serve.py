"""`a0backup serve` from the outside: one machine, one command."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from a0backup.vault.lock import is_held
from deployments.serve import MOST_RUNS
from deployments.server import own_server, served_api
from simulator.fleet import SimulatedFleet
from tests.support.deployed import REPOSITORY, PatientClient, kill_with_all_it_started
from tests.support.login import logged_in
from tests.support.patience import eventually, patience
from tests.support.place import Place, gone, server_of

A0BACKUP = Path(sys.executable).with_name("a0backup")

pytestmark = [pytest.mark.engine, pytest.mark.slow]


class Served:
    """An `a0backup serve` with the state folder of *place*, on a port that it picks itself."""

    def __init__(self, place: Place, *arguments: str, cwd: Path | None = None, **environment: str) -> None:
        self.place, self.log = place, place.root / "serve.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [A0BACKUP, "serve", "--port", "0", *arguments],
                cwd=cwd or place.root,
                env=place.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> None:
        assert eventually(lambda: "Ctrl-C ends it" in self.said or self.process.poll() is not None, 180), self.said
        api = served_api(self.place.engine)
        assert api is not None, self.said
        self.client = PatientClient(base_url=api, auth=logged_in(self.place.engine))

    def start(self, deployment: str, **parameters: object) -> str:
        found = self.client.get(f"deployments/name/{deployment}").raise_for_status().json()["id"]
        made = self.client.post(f"deployments/{found}/create_flow_run", json={"parameters": parameters})
        return str(made.raise_for_status().json()["id"])

    def state(self, run: str) -> str:
        return str(self.client.get(f"flow_runs/{run}").raise_for_status().json()["state"]["name"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the runs that a worker has taken, oldest first."""
        wanted = {
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found: list[dict[str, Any]] = self.client.post("flow_runs/filter", json=wanted).raise_for_status().json()
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(patience(60)) == 130, self.said
        assert "Traceback" not in self.said

    def end(self) -> None:
        if self.process.poll() is None:
            kill_with_all_it_started(psutil.Process(self.process.pid))
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


def test_serve_runs_what_is_started_shares_its_server_with_a_run_by_hand_and_cancels_its_runs_when_stopped(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    # The schedules of prefect.yaml are served too.
    wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    coming = lambda: served.client.post("flow_runs/filter", json=wanted).raise_for_status().json()  # noqa: E731
    scheduled = [
        each for each in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"] if "schedules" in each
    ]
    assert eventually(lambda: len({run["deployment_id"] for run in coming()}) == len(scheduled), 60), coming()
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
    assert "another `a0backup serve` is running" in refused.stderr

    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    cancelled = served.start("backup-node/single-node", node="a0-1")
    before = len(appliances.calls("a0-1", "backup-retrieve"))
    assert eventually(lambda: len(appliances.calls("a0-1", "backup-retrieve")) > before, 90), served.said
    server = server_of(served.process)
    assert server is not None
    if os.geteuid() == 0:  # its memory is private: only root can look
        assert "A0_BACKUP_PASSWORD" not in server.environ(), "only the runs need it"
    assert server.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    children = psutil.Process(served.process.pid).children(recursive=True)
    served.stop()
    assert all(gone(process) for process in [server, *children])
    assert not is_held(vault / "a0-1/lock")
    assert served_api(place.engine) is None

    appliances.forget()
    following = place.run("run", "a0-1")
    assert following.returncode == 0, following.stderr
    with own_server(place.engine) as api:
        state = httpx.get(f"{api}/flow_runs/{cancelled}", auth=logged_in(place.engine), timeout=patience(60)).json()[
            "state"
        ]["name"]
    assert state == "Cancelled"
    assert "our own; ends with this run" in following.stderr
    assert len(appliances.calls("a0-1", "backup")) == 2


def test_cancelling_a_night_over_workers_cancels_the_run_of_each_node(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell(None, "backup-retrieve", "hang", ignore_sigterm=True)
    night = served.start("backup-fleet/nightly", fan_out="workers")
    assert eventually(lambda: len(appliances.calls(command="backup-retrieve")) == 2, 120), served.said
    served.client.post(f"flow_runs/{night}/set_state", json={"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def states() -> list[str]:
        runs = served.client.post("flow_runs/filter", json={}).raise_for_status().json()
        # Without the scheduled runs, one of which may be due during the test.
        return [run["state_name"] for run in runs if not run["auto_scheduled"]]

    assert eventually(lambda: states() == ["Cancelled"] * 3, 90), states()
    assert not any(is_held(place.root / f"vault/{node}/lock") for node in ("a0-1", "a0-2"))


def test_when_serve_is_killed_its_server_ends_its_run_continues_and_the_next_serve_takes_over(
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

    # On the same port, which the continuing run still talks to.
    again = Served(place, "--port", str(served.client.base_url.port))
    try:
        again.wait()
        assert again.client.auth != served.client.auth
        assert again.state(run) == "Crashed"
        following = again.start("backup-node/single-node", node="a0-1")
        assert eventually(lambda: again.state(following) in ("Completed", "Failed"), 180), again.said
        assert again.state(following) == "Completed", again.said
    finally:
        again.end()
        for orphan in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()
    # Its run continued without it. If that run stored its artifact before the next run began, there is one more; if
    # later, it is the outcome of both.
    made = len(appliances.calls("a0-1", "backup"))
    assert made == len(list((place.root / "vault/a0-1").glob("*/manifest.json"))) in (1, 2)


def test_a_port_that_another_server_uses_is_named(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = place.run("serve", "--port", str(port))
    assert refused.returncode == 1
    assert f"cannot use port {port} of 127.0.0.1" in refused.stderr
    assert "choose another --port" in refused.stderr


def every_minute(place: Place) -> None:
    """Make the night start every minute, with the place's own prefect.yaml."""
    ours = (REPOSITORY / "prefect.yaml").read_text()
    assert ours.count('cron: "0 2 * * *"') == 1
    (place.root / "prefect.yaml").write_text(ours.replace('cron: "0 2 * * *"', 'cron: "* * * * *"'))


def test_missed_nights_make_one_backup_per_node_and_a_bounded_number_of_processes(
    served: Served, appliances: SimulatedFleet
) -> None:
    nightly = served.client.get("deployments/name/backup-fleet/nightly").raise_for_status().json()["id"]
    twice = [{"active": True, "schedule": {"cron": "0 3 * * *", "timezone": "Etc/UTC"}}]
    served.client.post(f"deployments/{nightly}/schedules", json=twice).raise_for_status()
    now, nights = datetime.now(UTC), MOST_RUNS // 2 + 1
    # The server makes the runs of the past days, as it would have made them ahead of time.
    past = {"start_time": (now - timedelta(days=nights)).isoformat(), "end_time": now.isoformat(), "min_runs": nights}
    served.client.post(f"deployments/{nightly}/schedule", json=past).raise_for_status()

    wanted = {
        "deployments": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"expected_start_time": {"before_": now.isoformat()}},
    }
    worker, most = psutil.Process(served.process.pid), 0

    def states() -> Counter[str]:
        runs = served.client.post("flow_runs/filter", json=wanted).raise_for_status().json()
        return Counter(run["state_name"] for run in runs)

    def ended() -> bool:
        nonlocal most
        # The server is a child, too.
        most = max(most, sum(not gone(each) for each in worker.children()) - 1)
        return states().keys() <= {"Completed", "Skipped", "Failed", "Crashed"}

    assert eventually(ended, 300), states()
    # One that has not been skipped takes the backups of another for its own.
    assert states()["Skipped"] + states()["Completed"] == states().total() == 2 * nights
    assert states()["Skipped"] > 0
    assert [len(appliances.calls(node, "backup")) for node in appliances.names] == [1, 1]
    assert 1 < most <= MOST_RUNS


@pytest.mark.parametrize("fan_out", ["in this run", "workers"])
def test_the_next_serve_resumes_a_scheduled_run_that_a_stop_interrupted(
    place: Place, appliances: SimulatedFleet, fan_out: str
) -> None:
    every_minute(place)
    text = (place.root / "prefect.yaml").read_text()
    (place.root / "prefect.yaml").write_text(text.replace("fan_out: in this run", f"fan_out: {fan_out}"))
    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    first = Served(place)
    second: Served | None = None
    try:
        first.wait()
        assert eventually(lambda: bool(first.runs("nightly")), 100), first.said
        # One night is enough: this deletes those that have not begun.
        deployment = first.client.get("deployments/name/backup-fleet/nightly").raise_for_status().json()["id"]
        first.client.patch(f"deployments/{deployment}", json={"paused": True}).raise_for_status()
        [night] = [run["id"] for run in first.runs("nightly")]
        assert eventually(lambda: bool(appliances.calls("a0-1", "backup-retrieve")), 150), first.said
        assert eventually(lambda: len(place.stored()) == 1, 60), first.said
        by_hand = first.start("backup-node/single-node", node="a0-1")
        assert eventually(lambda: first.state(by_hand) == "Running", 60), first.said
        first.stop()

        appliances.forget()
        second = Served(place)
        second.wait()
        assert second.state(by_hand) == "Cancelled"
        assert second.state(night) in ("Scheduled", "Late", "Pending", "Running", "Completed")
        assert eventually(lambda: second.state(night) in ("Completed", "Failed"), 180), second.said
        assert second.state(night) == "Completed", second.said
        # The night does not repeat what it had stored before the stop.
        assert [len(appliances.calls(node, "backup")) for node in appliances.names] == [1, 1]
        assert sorted(place.stored()) == appliances.names
        second.stop()
    finally:
        first.end()
        if second is not None:
            second.end()


def test_when_its_server_dies_serve_ends_soon_and_says_so(
    served: Served, place: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup-retrieve", "hang")
    served.start("backup-node/single-node", node="a0-1")
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup-retrieve")), 90), served.said
    orphans = psutil.Process(served.process.pid).children(recursive=True)
    try:
        server = server_of(served.process)
        assert server is not None
        server.kill()
        assert served.process.wait(patience(10)) == 1
        assert "error: the engine's server has ended (SIGKILL)" in served.said
        assert "HINT: start it again" in served.said
    finally:
        for orphan in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()


def test_a_proxy_and_what_others_can_write_do_not_disturb_serve(place: Place, appliances: SimulatedFleet) -> None:
    folder = place.root / "of-all"
    folder.mkdir()
    (folder / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
    theirs = appliances.fleet_yaml(folder / "fleet.yaml", a0cli={"path": "/bin/false"})
    folder.chmod(0o777)
    # Stands for another user's: nobody else can use it.
    (folder / "runner_storage").touch()
    left = place.engine / "tmp" / "prefect-workspace-attempt-former"
    left.mkdir(parents=True)
    in_the_way = {"TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    served = Served(place, "--fleet", str(place.root / "fleet.yaml"), cwd=folder, **in_the_way)
    try:
        served.wait()
        assert not left.exists()
        run = served.start("backup-node/single-node", node="a0-1")
        assert eventually(lambda: served.state(run) in ("Completed", "Failed", "Crashed"), 180), served.said
        assert served.state(run) == "Completed", served.said
        assert f"{folder / 'prefect.toml'} is ignored" in served.said
        refused = served.start("check-fleet/hourly-check", fleet=str(theirs))
        assert eventually(lambda: served.state(refused) in ("Completed", "Failed", "Crashed"), 180), served.said
        assert "so this worker refuses it" in served.client.get(f"flow_runs/{refused}").json()["state"]["message"]
        assert (place.engine / "tmp").stat().st_mode & 0o777 == 0o700
        served.stop()
        assert sorted(path.name for path in folder.iterdir()) == ["fleet.yaml", "prefect.toml", "runner_storage"]
    finally:
        served.end()


def test_nothing_in_the_folder_of_the_fleet_file_is_run(place: Place, appliances: SimulatedFleet) -> None:
    folder, ran = place.root / "of-all", place.root / "ran"
    folder.mkdir()
    appliances.fleet_yaml(folder / "fleet.yaml")
    (folder / "sitecustomize.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    (folder / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
    folder.chmod(0o777)
    served = Served(place, "--fleet", str(folder / "fleet.yaml"))

    def reason(**parameters: object) -> str:
        run = served.start("backup-node/single-node", node="a0-1", **parameters)
        assert eventually(lambda: served.state(run) in ("Failed", "Crashed", "Completed"), 180), served.said
        return str(served.client.get(f"flow_runs/{run}").json()["state"]["message"])

    try:
        served.wait()
        assert "so this worker refuses it" in reason()
        assert "name the fleet file by its absolute path" in reason(fleet="fleet.yaml")
        served.stop()
        assert not ran.exists()
    finally:
        served.end()


def test_serve_says_which_commands_do_not_use_it(place: Place) -> None:
    served = Served(place, PREFECT_API_URL="http://127.0.0.1:9/api")
    try:
        assert eventually(lambda: "a0backup run" in served.said or served.process.poll() is not None, 180), served.said
        assert "`a0backup run` and `check` use http://127.0.0.1:9/api, which your environment" in served.said
    finally:
        served.end()
