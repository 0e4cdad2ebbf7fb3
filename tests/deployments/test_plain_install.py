"""`pip install .` in a bare virtual environment, without the lock: the package's own requirements must suffice."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from simulator.fleet import SimulatedFleet
from tests.support.deployed import REPOSITORY, PatientClient, kill_with_all_it_started
from tests.support.login import logged_in
from tests.support.patience import eventually, patience

pytestmark = [pytest.mark.slow]

UNREACHED = ("connection", "timed out", "name resolution")
FOREIGN = ("PREFECT_", "XDG_", "COVERAGE_", "PYTHON", "VIRTUAL_ENV")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return what a fresh user has: nothing of this process's virtual environment and none of Prefect's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "A0_BACKUP_PASSWORD": "Canary7Password",
    }


@pytest.fixture
def a0backup(tmp_path: Path, environment: dict[str, str]) -> Path:
    """Return the command, installed as from a source download."""
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if not name.startswith(("tests/", "docs/", "requirements.lock")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source]
    installed = subprocess.run(
        pip, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=patience(600)
    )
    if installed.returncode != 0:
        if os.environ.get("A0BACKUP_ALL_PARTS") != "1" and any(word in installed.stderr for word in UNREACHED):
            pytest.skip("the package index cannot be reached")
        pytest.fail(installed.stderr[-4000:])
    shutil.rmtree(source)
    return tmp_path / "venv/bin/a0backup"


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as fleet:
        yield fleet


def test_a_plain_pip_install_gives_a_server_whose_schedules_and_worker_run(
    a0backup: Path, environment: dict[str, str], appliances: SimulatedFleet, tmp_path: Path
) -> None:
    operator = tmp_path / "operator"
    operator.mkdir()
    appliances.fleet_yaml(operator / "fleet.yaml")
    home = tmp_path / "state/a0backup/engine"
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        serve = subprocess.Popen(
            [a0backup, "serve", "--port", "0"],
            cwd=operator,
            env=environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        up = eventually(lambda: "Ctrl-C ends it" in log.read_text() or serve.poll() is not None, 180)
        assert up, log.read_text()
        assert serve.poll() is None, log.read_text()
        [address] = [word.rstrip(";") for word in log.read_text().split() if word.startswith("http://127.0.0.1:")][:1]
        with PatientClient(base_url=f"{address}/api", auth=logged_in(home)) as client:
            wanted = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
            assert eventually(lambda: client.post("flow_runs/filter", json=wanted).raise_for_status().json(), 60)
            single = client.get("deployments/name/backup-node/single-node").raise_for_status().json()["id"]
            body = {"parameters": {"node": "a0-1"}}
            run = client.post(f"deployments/{single}/create_flow_run", json=body).raise_for_status().json()["id"]

            def state() -> str:
                return str(client.get(f"flow_runs/{run}").raise_for_status().json()["state"]["name"])

            assert eventually(lambda: state() in ("Completed", "Failed", "Crashed"), 120), log.read_text()
            assert state() == "Completed"
        page = httpx.get(address, follow_redirects=True, trust_env=False, timeout=patience(60)).raise_for_status()
        assert page.headers["content-type"].startswith("text/html")
        serve.terminate()
        assert serve.wait(patience(60)) == 130
    finally:
        if serve.poll() is None:
            kill_with_all_it_started(psutil.Process(serve.pid))
            serve.wait()
    listed = subprocess.run(
        [a0backup, "list", "--json"], cwd=operator, env=environment, capture_output=True, check=True, text=True
    )
    assert [manifest["node"]["name"] for manifest in json.loads(listed.stdout)] == ["a0-1"]
