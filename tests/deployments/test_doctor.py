"""`a0backup check --engine`, from the outside: what an engine lacks for the night to come."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deployments.test_register import Desk, api, desk
from tests.deployments.test_server import eventually

BIN = Path(sys.executable).parent
__all__ = ["api", "desk"]  # the fixtures

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def check(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "a0backup", "check", "--engine", *arguments],
        cwd=desk.folder,
        env=desk.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def remarks(desk: Desk, verdict: str) -> list[str]:
    return [each["text"] for each in json.loads(check(desk, "--json").stdout) if each["verdict"] == verdict]


def test_what_is_missing_another_or_switched_off_is_found_until_all_is_well(desk: Desk) -> None:
    empty = check(desk)
    assert empty.returncode == 1
    for missing in ("work pool appliance", "limit a0backup-a0-2", "deployment backup-fleet/nightly"):
        assert f"problem  the {missing} is missing\n" in empty.stdout
    assert "HINT: `python -m deployments.register` puts it right" in empty.stdout

    assert desk.register().returncode == 0
    assert remarks(desk, "problem") == ["no worker of the pool appliance is online, so nothing runs"]
    [unheard] = remarks(desk, "warning")
    assert "nobody is told of failed or late runs" in unheard

    worker = subprocess.Popen(
        [BIN / "prefect", "worker", "start", "--pool", "appliance", "--name", "one"],
        cwd=desk.folder,
        env=desk.environment | {"TMPDIR": str(desk.folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: check(desk).returncode == 0, 120)
        assert "well     workers of the pool appliance: one\n" in check(desk).stdout

        limits = desk.client.post("/v2/concurrency_limits/filter", json={}).json()
        [of_all] = [limit["id"] for limit in limits if limit["name"] == "a0backup"]
        desk.client.patch(f"/v2/concurrency_limits/{of_all}", json={"limit": 3}).raise_for_status()
        nightly = desk.deployment("backup-fleet/nightly")
        path = f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
        desk.client.patch(path, json={"active": False}).raise_for_status()
        [automation] = desk.client.post("/automations/filter", json={}).json()
        desk.client.patch(f"/automations/{automation['id']}", json={"enabled": False}).raise_for_status()
        desk.client.patch("/work_pools/appliance", json={"is_paused": True}).raise_for_status()
        assert set(remarks(desk, "problem")) == {
            "the limit a0backup is another: limit: 3 -> 16",
            "the work pool appliance is paused",
        }
        warned = remarks(desk, "warning")
        assert "the schedule of nightly is paused" in warned
        assert "the automation 'a0backup: end zombie runs' is off" in warned
        assert check(desk).returncode == 1
    finally:
        for each in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            each.kill()
        worker.wait()


def test_it_looks_at_no_node_and_says_so(desk: Desk) -> None:
    refused = check(desk, "a0-1")
    assert refused.returncode == 2
    assert "--engine looks at no node" in refused.stderr


def test_a_run_that_no_worker_takes_is_named_as_late(desk: Desk) -> None:
    assert desk.register().returncode == 0
    nightly = desk.deployment("backup-fleet/nightly")["id"]
    made = desk.client.post(f"/deployments/{nightly}/create_flow_run", json={"name": "forgotten"}).json()
    late = {"state": {"type": "SCHEDULED", "name": "Late", "state_details": {"scheduled_time": made["created"]}}}
    desk.client.post(f"/flow_runs/{made['id']}/set_state", json={**late, "force": True}).raise_for_status()
    assert "late runs (1): forgotten" in remarks(desk, "warning")
    assert desk.client.delete(f"/flow_runs/{made['id']}").status_code == httpx.codes.NO_CONTENT
