"""prefect.yaml: what it says, and what comes of it under `prefect deploy --all` and a worker."""

import os
import shutil
import signal
import subprocess
import sys
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from a0backup.lock import is_held
from simulator.fleet import SimulatedFleet
from tests.deployments.test_local_run import gone
from tests.deployments.test_server import eventually

REPOSITORY = Path(__file__).parents[2]
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
BIN = Path(sys.executable).parent

each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])


def flow_of(deployment: dict[str, Any]) -> Any:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


@each_deployment
def test_every_entrypoint_loads_and_takes_the_parameters_given(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    given = dict(deployment["parameters"])
    if deployment["name"] == "single-node":  # the one thing that whoever starts it must say
        given["node"] = "a0-1"
    assert flow.validate_parameters(given).keys() == flow.parameters.properties.keys()
    assert deployment["enforce_parameter_schema"] is True


@each_deployment
def test_every_parameter_is_typed_and_described_and_offers_its_choices(deployment: dict[str, Any]) -> None:
    for name, parameter in flow_of(deployment).parameters.properties.items():
        assert parameter["description"].endswith("."), name
        assert "type" in parameter, name
    choices = flow_of(deployment).parameters.properties["existing"]["enum"]
    assert choices == ["as in fleet.yaml", "preserve", "replace", "fail"]


@each_deployment
def test_every_deployment_is_described_tagged_and_in_the_pool(deployment: dict[str, Any]) -> None:
    assert deployment["description"].endswith(".")
    assert "a0backup" in deployment["tags"]
    # The lease of a limit crashes a healthy run where the server is restarted meanwhile: none on what backs up.
    assert ("concurrency_limit" in deployment) is (deployment["name"] == "hourly-check")
    assert deployment["work_pool"]["name"] == "appliance"
    for schedule in deployment.get("schedules", []):
        assert len(schedule["cron"].split()) == 5
        assert schedule["timezone"] in zoneinfo.available_timezones()


def test_the_night_and_the_hourly_check_are_scheduled_and_the_single_node_is_not() -> None:
    crons = {each["name"]: [schedule["cron"] for schedule in each.get("schedules", [])] for each in DEPLOYMENTS}
    assert crons == {"nightly": ["0 2 * * *"], "hourly-check": ["30 * * * *"], "single-node": []}


class PatientClient(httpx.Client):
    """Asks again where the server says that its database is busy (503), as Prefect's own client does."""

    def request(self, *arguments: Any, **options: Any) -> httpx.Response:
        answers = [super().request(*arguments, **options)]

        def answered() -> bool:
            if answers[-1].status_code == httpx.codes.SERVICE_UNAVAILABLE:
                answers.append(super(PatientClient, self).request(*arguments, **options))
            return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

        eventually(answered, 60)
        return answers[-1]


class Deployed:
    """prefect.yaml deployed from a folder with a fleet.yaml, as an operator would, and a worker there."""

    def __init__(self, folder: Path, api: str) -> None:
        # No connection is kept: the server closes an idle one after as many seconds as the client would use it again.
        fresh = httpx.Limits(max_keepalive_connections=0)
        self.folder, self._api = folder, PatientClient(base_url=api, timeout=60, limits=fresh)
        self.environment = os.environ | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder / "prefect"),
            # A worker keeps its runs in the temporary folder, under a name that all users of the machine share.
            "TMPDIR": str(folder / "tmp"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "A0_BACKUP_PASSWORD": "Canary7Password",
        }
        (folder / "tmp").mkdir()
        self.log = folder / "worker.log"

    def prefect(self, *arguments: str) -> None:
        command = [BIN / "prefect", "--no-prompt", *arguments]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def start_worker(self) -> None:
        command = [BIN / "prefect", "worker", "start", "--pool", "appliance"]
        with self.log.open("wb") as log:
            # A folder of its own: the deployment says where it runs.
            self.worker = subprocess.Popen(
                command, cwd=self.folder / "elsewhere", env=self.environment, stdout=log, stderr=log
            )

    def end(self) -> None:
        for process in [psutil.Process(self.worker.pid)] if self.worker.poll() is None else []:
            for each in [*process.children(recursive=True), process]:
                each.kill()
        self.worker.wait()
        self._api.close()

    def run(self, deployment: str, **parameters: object) -> httpx.Response:
        found = self.get(f"deployments/name/{deployment}")
        return self._api.post(f"deployments/{found['id']}/create_flow_run", json={"parameters": parameters})

    def pause_schedules(self, deployment: str) -> None:
        found = self.get(f"deployments/name/{deployment}")
        for schedule in found["schedules"]:
            path = f"deployments/{found['id']}/schedules/{schedule['id']}"
            self._api.patch(path, json={"active": False}).raise_for_status()

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._api.get(path).raise_for_status().json()
        return found

    def filter(self, what: str, run: str, **more: object) -> list[dict[str, Any]]:
        wanted = {what: {"flow_run_id": {"any_": [run]}}} | more
        found: list[dict[str, Any]] = self._api.post(f"{what}/filter", json=wanted).raise_for_status().json()
        return found

    def log_of(self, run: str) -> list[str]:
        lines = self.filter("logs", run, sort="TIMESTAMP_ASC")
        return [line["message"] for line in lines if "a0backup" in line["name"]]

    def set_state(self, run: str, **state: str) -> None:
        answer = self._api.post(f"flow_runs/{run}/set_state", json={"state": state})
        assert answer.raise_for_status().json()["status"] == "ACCEPT"

    def state(self, run: str) -> str:
        return str(self.get(f"flow_runs/{run}")["state"]["name"])

    def ends_as(self, state: str, run: str, seconds: float = 60) -> bool:
        final = ("Completed", "Failed", "Crashed", "Cancelled")
        eventually(lambda: self.state(run) in final, seconds)
        assert self.state(run) == state, self.log.read_text()[-4000:]
        return True

    def a0clis(self) -> list[psutil.Process]:
        """The a0cli processes that run for this vault."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder / "vault") in process.cwd():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet


@pytest.fixture
def deployed(tmp_path: Path, engine_server: str, appliances: SimulatedFleet) -> Iterator[Deployed]:
    folder = tmp_path / "operator"
    (folder / "elsewhere").mkdir(parents=True)
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    appliances.fleet_yaml(folder / "fleet.yaml")
    place = Deployed(folder, engine_server)
    place.prefect("work-pool", "create", "appliance", "--type", "process", "--overwrite")
    place.prefect("deploy", "--all")
    for deployment in ("backup-fleet/nightly", "check-fleet/hourly-check"):
        # Otherwise a schedule may be due in the middle of a test.
        place.pause_schedules(deployment)
    place.start_worker()
    try:
        yield place
    finally:
        place.end()


@pytest.mark.engine
@pytest.mark.slow
def test_the_deployments_run_for_real_under_a_worker_and_what_it_leaves_is_finished_by_the_next_run(
    deployed: Deployed, appliances: SimulatedFleet
) -> None:
    night = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert deployed.ends_as("Completed", night)
    vault = deployed.folder / "vault"
    assert sorted(path.parent.parent.name for path in vault.glob("*/*/manifest.json")) == ["a0-1", "a0-2"]
    artifacts = deployed.filter("artifacts", night)
    assert {artifact["key"] for artifact in artifacts} == {"backup-report", "backup-table"}
    # The flow's process sends the last of its log after its final state.
    assert eventually(lambda: any(line.startswith("a0-1: nothing is on the node") for line in deployed.log_of(night)))

    single = deployed.run("backup-node/single-node", node="a0-2", existing="fail").raise_for_status().json()
    assert single["parameters"] == {"fleet": "fleet.yaml", "node": "a0-2", "existing": "fail"}
    assert deployed.ends_as("Completed", single["id"])
    assert [len(appliances.calls(node, "backup")) for node in ("a0-1", "a0-2")] == [1, 2]

    refused = deployed.run("backup-node/single-node", node="a0-2", existing="whatever")
    assert refused.is_client_error
    assert "whatever" in refused.text

    appliances.tell("a0-1", "backup", "duration", seconds=3)
    appliances.tell("a0-2", "backup-retrieve", "hang", ignore_sigterm=True)
    run = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert eventually(lambda: len(appliances.calls("a0-1", "backup")) == 2, 60)
    appliances.tell("a0-1", "backup-status", "in_progress")
    assert eventually(lambda: len(appliances.calls("a0-2", "backup-retrieve")) == 3, 60)
    deployed.set_state(run, type="CANCELLING", name="Cancelling")
    assert deployed.ends_as("Cancelled", run)
    assert eventually(lambda: deployed.a0clis() == [], 3)
    assert not is_held(deployed.folder / "vault/a0-1/lock")
    assert not is_held(deployed.folder / "vault/a0-2/lock")

    appliances.forget()
    following = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert deployed.ends_as("Completed", following)
    assert [len(appliances.calls(node, "backup")) for node in ("a0-1", "a0-2")] == [2, 3]

    # A worker that is stopped ends the flow's process without a word: its a0cli lives on, and keeps the node's lock.
    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    before = len(appliances.calls("a0-1", "backup-retrieve"))
    run = deployed.run("backup-node/single-node", node="a0-1").raise_for_status().json()["id"]
    assert eventually(lambda: len(appliances.calls("a0-1", "backup-retrieve")) > before, 60)
    [orphan] = deployed.a0clis()
    [flow_process] = psutil.Process(deployed.worker.pid).children()
    deployed.worker.send_signal(signal.SIGTERM)
    assert deployed.worker.wait(30) is not None
    assert eventually(lambda: gone(flow_process))
    assert deployed.a0clis() == [orphan]
    assert is_held(deployed.folder / "vault/a0-1/lock")
    deployed.set_state(run, type="CRASHED", name="Crashed")

    appliances.forget()
    command = [BIN / "a0backup", "run", "a0-1"]
    ended = subprocess.run(
        command, cwd=deployed.folder, env=deployed.environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert deployed.a0clis() == []
    assert [len(appliances.calls(node, "backup")) for node in ("a0-1", "a0-2")] == [3, 3]
    assert gone(orphan)
