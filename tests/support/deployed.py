"""prefect.yaml deployed as by an operator, and a worker, for tests that need both.

with deployed_in(folder, api) as place:  # the folder has a fleet.yaml
    run = place.run("backup-fleet/nightly").json()["id"]
    assert place.ends_as("Completed", run)
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from a0backup.vault.vault import Vault
from tests.support.login import logged_in
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually, patience

BIN = Path(sys.executable).parent


def left_at_work(vault: Path) -> list[Path]:
    """Return the files that runs left in the work folders of all nodes below *vault*."""
    return [left for node in vault.glob("*") for left in Vault(vault).work(node.name).glob("*")]


def kill_with_all_it_started(process: psutil.Process) -> None:
    for each in [*process.children(recursive=True), process]:
        each.kill()


class PatientClient(httpx.Client):
    """Retries when the server answers that its database is busy (503), as Prefect's own client does.

    It keeps no connection open: the server closes an idle one after the same time for which a client would reuse it.
    """

    def __init__(self, **options: Any) -> None:
        fresh = httpx.Limits(max_keepalive_connections=0)
        super().__init__(timeout=patience(60), trust_env=False, limits=fresh, **options)

    def request(self, *arguments: Any, **options: Any) -> httpx.Response:
        answers = [super().request(*arguments, **options)]

        def answered() -> bool:
            if answers[-1].status_code == httpx.codes.SERVICE_UNAVAILABLE:
                answers.append(super(PatientClient, self).request(*arguments, **options))
            return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

        eventually(answered, 60)
        return answers[-1]


class Deployed:
    """prefect.yaml deployed as by an operator from a folder with a fleet.yaml, and a worker for it."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self._api = folder, PatientClient(base_url=api, auth=logged_in())
        self.environment = os.environ | {
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": ":".join(logged_in()),
            "PREFECT_HOME": str(folder / "prefect"),
            # A worker keeps its runs in the temporary folder under a name shared by all users of the machine.
            "TMPDIR": str(folder / "tmp"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "A0_BACKUP_PASSWORD": "Canary7Password",
        }
        (folder / "tmp").mkdir()
        self.log = folder / "worker.log"

    def prefect(self, *arguments: str) -> None:
        command = [BIN / "prefect", "--no-prompt", *arguments]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=patience(120)
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def start_worker(self) -> None:
        command = [BIN / "prefect", "worker", "start", "--pool", "appliance"]
        with self.log.open("wb") as log:
            # In another folder: the deployment states where it runs.
            self.worker = subprocess.Popen(
                command, cwd=self.folder / "elsewhere", env=self.environment, stdout=log, stderr=log
            )

    def end(self) -> None:
        if self.worker.poll() is None:
            kill_with_all_it_started(psutil.Process(self.worker.pid))
        self.worker.wait()
        self._api.close()

    def run(self, deployment: str, **parameters: object) -> httpx.Response:
        found = self.get(f"deployments/name/{deployment}")
        return self._api.post(f"deployments/{found['id']}/create_flow_run", json={"parameters": parameters})

    def pause_schedules(self) -> None:
        """Pause the schedules of all deployments: one may become due during a test."""
        for found in self._api.post("deployments/filter", json={}).raise_for_status().json():
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

    def cancel_all(self) -> None:
        """Cancel all pending and running flow runs, and wait until none is left."""

        def under_way(*states: str) -> list[str]:
            wanted = {"flow_runs": {"state": {"type": {"any_": states}}}}
            return [run["id"] for run in self._api.post("flow_runs/filter", json=wanted).raise_for_status().json()]

        for run in under_way("PENDING", "RUNNING"):
            self.set_state(run, type="CANCELLING", name="Cancelling")
        assert eventually(lambda: not under_way("PENDING", "RUNNING", "CANCELLING"), 60)

    def ends_as(self, state: str, run: str, seconds: float = 60) -> bool:
        final = ("Completed", "Failed", "Crashed", "Cancelled")
        eventually(lambda: self.state(run) in final, seconds)
        assert self.state(run) == state, self.log.read_text()[-4000:]
        return True

    def a0clis(self) -> list[psutil.Process]:
        """Return the a0cli processes that run for this vault."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder / "vault") in process.cwd():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@contextmanager
def deployed_in(folder: Path, api: str) -> Iterator[Deployed]:
    """Deploy prefect.yaml from *folder* with all schedules paused, and start a worker for its runs.

    The server at *api* must be this deployment's own: a second worker of the same pool would take its runs.
    """
    (folder / "elsewhere").mkdir()
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    place = Deployed(folder, api)
    place.prefect("work-pool", "create", "appliance", "--type", "process", "--overwrite")
    place.prefect("deploy", "--all")
    place.pause_schedules()
    place.start_worker()
    try:
        yield place
    finally:
        place.end()
