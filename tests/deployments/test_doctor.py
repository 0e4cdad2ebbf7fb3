"""`a0backup engine check` from the outside: what an engine lacks for the coming night."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
import yaml
from prefect.client.orchestration import PrefectClient

from a0backup.fleet.load import load_fleet
from deployments import doctor
from deployments.doctor import Remark, Verdict
from deployments.engine_objects import wanted
from tests.deployments.conftest import Desk
from tests.support.command import a0backup_in
from tests.support.login import logged_in
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually

BIN = Path(sys.executable).parent
# Prefect schedules nothing more than 100 days ahead.
FAR = f"0 2 1 {(datetime.now(UTC) + timedelta(days=180)).month} *"

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def check(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    return a0backup_in(desk.environment, "engine", "check", *arguments, cwd=desk.folder, loud=True)


def remarks(desk: Desk, verdict: str) -> list[str]:
    return [each["text"] for each in json.loads(check(desk, "--json").stdout) if each["verdict"] == verdict]


def test_missing_changed_and_disabled_objects_are_found_until_all_are_fixed(desk: Desk) -> None:
    empty = check(desk)
    assert empty.returncode == 1
    for missing in ("work pool appliance", "limit a0backup-a0-2", "deployment backup-fleet/nightly"):
        assert f"problem  the {missing} is missing\n" in empty.stdout
    assert "HINT: `a0backup engine register` fixes it" in empty.stdout

    assert desk.register().returncode == 0
    assert remarks(desk, "problem") == ["no worker of the pool appliance is online, so nothing runs"]
    assert eventually(lambda: "scheduled yet" not in str(remarks(desk, "warning")), 60)
    [unheard] = remarks(desk, "warning")
    assert "nobody is notified of failed or late runs" in unheard

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
        assert "ok       workers of the pool appliance: one\n" in check(desk).stdout
        assert re.search(
            r"^ok       the next run of nightly: \d{4}-\d\d-\d\d \d\d:\d\d UTC$", check(desk).stdout, re.MULTILINE
        )

        limits = desk.client.post("/v2/concurrency_limits/filter", json={}).json()
        [of_all] = [limit["id"] for limit in limits if limit["name"] == "a0backup"]
        desk.client.patch(f"/v2/concurrency_limits/{of_all}", json={"limit": 3}).raise_for_status()
        for name in ("backup-fleet/nightly", "check-fleet/hourly-check"):
            found = desk.deployment(name)
            path = f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}"
            desk.client.patch(path, json={"active": False}).raise_for_status()
        [automation] = desk.client.post("/automations/filter", json={}).json()
        desk.client.patch(f"/automations/{automation['id']}", json={"enabled": False}).raise_for_status()
        desk.client.patch("/work_pools/appliance", json={"is_paused": True}).raise_for_status()
        desk.client.patch("/work_pools/appliance/queues/default", json={"is_paused": True}).raise_for_status()
        assert set(remarks(desk, "problem")) == {
            "the limit a0backup differs: limit: 3 -> 16",
            "the work pool appliance is paused",
            "the work queue default of the pool appliance is paused",
            "no run of nightly is scheduled, so none will start by itself",
        }
        desk.client.patch("/work_pools/appliance", json={"is_paused": False, "concurrency_limit": 0}).raise_for_status()
        queue = {"is_paused": False, "concurrency_limit": 0}
        desk.client.patch("/work_pools/appliance/queues/default", json=queue).raise_for_status()
        nothing = "has a concurrency limit of 0: it runs nothing"
        assert {
            f"the work pool appliance {nothing}",
            f"the work queue default of the pool appliance {nothing}",
        } < set(remarks(desk, "problem"))
        warned = remarks(desk, "warning")
        assert "the schedule of hourly-check is paused" in warned
        assert "the automation 'a0backup: end zombie runs' is off" in warned
        assert check(desk).returncode == 1
    finally:
        for each in [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]:
            each.kill()
        worker.wait()


def test_the_engine_check_refuses_to_check_a_node(desk: Desk) -> None:
    refused = check(desk, "a0-1")
    assert refused.returncode == 2
    assert "unexpected extra argument (a0-1)" in refused.stderr


def test_a_run_that_no_worker_takes_is_reported_as_late(desk: Desk) -> None:
    assert desk.register().returncode == 0
    nightly = desk.deployment("backup-fleet/nightly")["id"]
    made = desk.client.post(f"/deployments/{nightly}/create_flow_run", json={"name": "forgotten"}).json()
    late = {"state": {"type": "SCHEDULED", "name": "Late", "state_details": {"scheduled_time": made["created"]}}}
    desk.client.post(f"/flow_runs/{made['id']}/set_state", json={**late, "force": True}).raise_for_status()
    assert "late runs (1): forgotten" in remarks(desk, "warning")
    assert desk.client.delete(f"/flow_runs/{made['id']}").status_code == httpx.codes.NO_CONTENT


@pytest_asyncio.fixture
async def client(desk: Desk) -> AsyncIterator[PrefectClient]:
    async with PrefectClient(desk.api, auth_string=":".join(logged_in())) as client:
        yield client


async def coming(desk: Desk, client: PrefectClient, **later: float) -> list[tuple[Verdict, str]]:
    """Return the remarks on the coming runs, as of *later* than now."""
    things = wanted(load_fleet(desk.folder / "fleet.yaml"))
    looked = doctor._coming(client, things, datetime.now(UTC) + timedelta(**later))
    return [(remark.verdict, remark.text) async for remark in looked]


def schedules(desk: Desk, **crons: str) -> None:
    """Write a prefect.yaml next to fleet.yaml with exactly these schedules."""
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    for entry in content["deployments"]:
        cron = crons.get(entry["name"].replace("-", "_"))
        entry["schedules"] = [{"cron": cron, "timezone": "Etc/UTC"}] if cron else []
    (desk.folder / "prefect.yaml").write_text(yaml.safe_dump(content))


async def test_a_backup_that_nothing_schedules_is_a_problem_but_one_registered_just_now_is_not(
    desk: Desk, client: PrefectClient
) -> None:
    schedules(desk, nightly=FAR, hourly_check=FAR)
    assert await coming(desk, client) == []  # what is missing is already reported elsewhere
    assert desk.register().returncode == 0
    yet = "is scheduled yet, because it was changed just now"
    none = "is scheduled, so none will start by itself"
    assert await coming(desk, client) == [
        (Verdict.WARNING, f"no run of nightly {yet}"),
        (Verdict.WARNING, f"no run of hourly-check {yet}"),
    ]
    assert await coming(desk, client, minutes=3) == [
        (Verdict.PROBLEM, f"no run of nightly {none}"),
        (Verdict.PROBLEM, f"no run of hourly-check {none}"),
    ]
    for name in ("backup-fleet/nightly", "check-fleet/hourly-check"):
        path = f"/deployments/{desk.deployment(name)['id']}"
        desk.client.patch(path, json={"paused": True}).raise_for_status()
    assert await coming(desk, client) == [
        (Verdict.PROBLEM, f"no run of nightly {none}"),
        (Verdict.WARNING, "the schedule of hourly-check is paused"),
    ]


async def test_a_run_that_a_person_set_for_later_does_not_count_as_a_schedule(
    desk: Desk, client: PrefectClient
) -> None:
    schedules(desk, nightly=FAR)
    assert desk.register().returncode == 0
    later = {"scheduled_time": (datetime.now(UTC) + timedelta(days=1)).isoformat()}
    body = {"state": {"type": "SCHEDULED", "name": "Scheduled", "state_details": later}}
    nightly = desk.deployment("backup-fleet/nightly")["id"]
    made = desk.client.post(f"/deployments/{nightly}/create_flow_run", json=body).raise_for_status().json()
    assert [verdict for verdict, _ in await coming(desk, client, minutes=3)] == [Verdict.PROBLEM]
    desk.client.delete(f"/flow_runs/{made['id']}").raise_for_status()


async def test_a_prefect_yaml_that_schedules_no_backup_is_a_problem(desk: Desk, client: PrefectClient) -> None:
    schedules(desk, hourly_check="30 * * * *")
    assert await coming(desk, client) == [(Verdict.PROBLEM, "prefect.yaml schedules no backup")]


async def test_a_worker_is_online_only_as_long_as_its_heartbeats_say_so(desk: Desk, client: PrefectClient) -> None:
    assert desk.register().returncode == 0
    await client.send_worker_heartbeat("appliance", "one", heartbeat_interval_seconds=30)

    async def said(**later: float) -> list[Remark]:
        return [remark async for remark in doctor._workers(client, datetime.now(UTC) + timedelta(**later))]

    assert [remark.text for remark in await said()] == ["workers of the pool appliance: one"]
    # Its state is still ONLINE: while the server's services are down, nothing changes it.
    assert [remark.verdict for remark in await said(seconds=95)] == [Verdict.PROBLEM]


async def test_a_run_whose_worker_died_before_it_began_is_reported(desk: Desk, client: PrefectClient) -> None:
    assert desk.register().returncode == 0
    nightly = desk.deployment("backup-fleet/nightly")["id"]
    # The state that a worker sets when it has taken a run.
    body = {"name": "taken", "state": {"type": "PENDING", "name": "Submitting"}}
    made = desk.client.post(f"/deployments/{nightly}/create_flow_run", json=body).raise_for_status().json()

    async def said(**later: float) -> list[str]:
        return [remark.text async for remark in doctor._stuck(client, datetime.now(UTC) + timedelta(**later))]

    assert await said() == []
    assert await said(minutes=11) == ["runs that a worker took up and did not start (1): taken"]
    desk.client.delete(f"/flow_runs/{made['id']}").raise_for_status()
