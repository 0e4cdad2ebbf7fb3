"""prefect.yaml: its contents, and its effect under `prefect deploy --all` and a worker."""

import signal
import subprocess
import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from a0backup.errors import EngineError
from a0backup.vault.lock import is_held
from deployments.engine_objects import Deployment
from deployments.prefect_yaml import prefect_yaml, read_deployments
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.support.deployed import BIN, REPOSITORY, Deployed, deployed_in
from tests.support.patience import eventually, patience
from tests.support.place import gone

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]

each_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])


def flow_of(deployment: dict[str, Any]) -> Any:
    from prefect.flows import load_flow_from_entrypoint

    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


@each_deployment
def test_every_entrypoint_loads_and_accepts_the_given_parameters(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    # What the person who starts it must give.
    asked = {"single-node": ["node"], "of-fleet": ["node"], "enrol": ["node", "device"]}
    given = deployment["parameters"] | dict.fromkeys(asked.get(deployment["name"], []), "/dev/sdb")
    assert flow.validate_parameters(given).keys() == flow.parameters.properties.keys()
    assert deployment["enforce_parameter_schema"] is True


@each_deployment
def test_every_parameter_is_typed_and_described_and_offers_its_choices(deployment: dict[str, Any]) -> None:
    for name, parameter in flow_of(deployment).parameters.properties.items():
        assert parameter["description"].endswith("."), name
        assert "type" in parameter, name
    if "existing" in (properties := flow_of(deployment).parameters.properties):
        choices = properties["existing"]["enum"]
        assert choices == ["as in fleet.yaml", "preserve", "replace", "fail"]


@each_deployment
def test_every_deployment_is_described_tagged_and_in_the_pool(deployment: dict[str, Any]) -> None:
    assert deployment["description"].endswith(".")
    # One node's part of a night is not reported on top of the night itself.
    assert ("a0backup" if deployment["name"] != "of-fleet" else "a0backup-node") in deployment["tags"]
    # The lease of a concurrency limit crashes a healthy run if the server restarts meanwhile, so no deployment that
    # backs up has one.
    of_one = ("hourly-check", "watch-freshness", "daily-copy", "nightly-verify", "prune", "drill")
    assert ("concurrency_limit" in deployment) is (deployment["name"] in of_one)
    assert deployment["work_pool"]["name"] == "appliance"
    for schedule in deployment.get("schedules", []):
        assert len(schedule["cron"].split()) == 5
        assert schedule["timezone"] in zoneinfo.available_timezones()


def test_only_what_needs_nobody_is_scheduled() -> None:
    crons = {each["name"]: [schedule["cron"] for schedule in each.get("schedules", [])] for each in DEPLOYMENTS}
    scheduled = {"nightly": ["0 2 * * *"], "hourly-check": ["30 * * * *"]}
    scheduled |= {"watch-freshness": ["45 * * * *"], "drill": ["0 12 * * 0"]}
    scheduled |= {"daily-copy": ["0 8 * * *"], "nightly-verify": ["0 5 * * *"], "prune": ["0 7 * * *"]}
    assert crons == {"single-node": [], "of-fleet": [], "enrol": []} | scheduled


def read(tmp_path: Path, **changes: Any) -> list[Any]:
    """Read a prefect.yaml whose deployment nightly has these *changes*."""
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    content["deployments"][0] |= changes
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
    return read_deployments(tmp_path / "prefect.yaml")


EVERY_NIGHT = {"cron": "0 2 * * *", "timezone": "Etc/UTC"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": "blue"}, "colour: is not known here"),
        ({"schedules": [EVERY_NIGHT | {"activ": False}]}, "schedules.0.activ: is not known here"),
        ({"schedules": [EVERY_NIGHT | {"parameters": {"nodes": ["a0-1"]}}]}, "schedules.0.parameters: is not known"),
        ({"schedules": [EVERY_NIGHT | {"slug": "x"}]}, "schedules.0.slug: is not known here"),
        ({"schedules": [EVERY_NIGHT | {"day_or": False}]}, "schedules.0.day_or: "),
        ({"schedules": [{"cron": "0 2 * * *"}]}, "schedules.0.timezone: is missing"),
        ({"schedules": [EVERY_NIGHT | {"cron": "61 2 * * *"}]}, "schedules.0.cron: Invalid cron string"),
        (
            {"schedules": [EVERY_NIGHT | {"timezone": "Mars/Base"}]},
            'schedules.0.timezone: Invalid timezone: "Mars/Base"',
        ),
        ({"schedules": None}, "schedules: "),
        ({"work_pool": "appliance"}, "work_pool: "),
        ({"work_pool": {"name": "appliance", "work_queue_name": "urgent"}}, "work_pool.work_queue_name: is not known"),
        ({"concurrency_limit": 1}, "concurrency_limit: "),
        ({"concurrency_limit": {"limit": 1}}, "concurrency_limit.collision_strategy: is missing"),
        ({"parameters": None}, "parameters: "),
        ({"parameters": {"fanout": "workers"}}, "parameters: the flow has no fanout; it takes fleet, nodes"),
        ({"tags": None}, "tags: "),
        ({"entrypoint": "flows.nope.x"}, "entrypoint: flows.nope.x cannot be loaded: ModuleNotFoundError"),
        ({"entrypoint": "flows.backup_fleet.x"}, "entrypoint: flows.backup_fleet.x cannot be loaded: AttributeError"),
        ({"entrypoint": "flows.backup_fleet.Path"}, "entrypoint: flows.backup_fleet.Path is not a flow"),
        ({"entrypoint": "flows/nope.py:x"}, "entrypoint: flows/nope.py:x cannot be loaded"),
        ({"entrypoint": "..x"}, "entrypoint: ..x cannot be loaded"),
    ],
)
def test_a_setting_that_would_not_be_honoured_is_refused_with_its_deployment_and_key(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(EngineError) as refused:
        read(tmp_path, **changes)
    assert f"{tmp_path / 'prefect.yaml'}: the deployment nightly: {said}" in refused.value.message()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content["deployments"].append(content["deployments"][0]),
            "backup-fleet/nightly is there twice",
        ),
        (lambda content: content["deployments"].append("nightly"), "the deployment nightly: "),
        (lambda content: content["deployments"][0].pop("name"), "the deployment None: name: is missing"),
        (lambda content: content["deployments"][0].update({1: 2}), "the deployment nightly: 1: "),
        (lambda content: content.update(deployments={"nightly"}), "prefect.yaml: deployments: "),
        (lambda content: content.update(pull=[]), "prefect.yaml: pull: is not known here"),
        (lambda content: content.pop("deployments"), "prefect.yaml: deployments: is missing"),
        (lambda content: content.clear(), "prefect.yaml: deployments: is missing"),
    ],
)
def test_a_malformed_file_is_refused_with_a_clear_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    content = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    change(content)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(EngineError) as refused:
        read_deployments(tmp_path / "prefect.yaml")
    assert said in refused.value.message()
    (tmp_path / "prefect.yaml").write_text("")
    with pytest.raises(EngineError, match=r"prefect.yaml: Input should be"):
        read_deployments(tmp_path / "prefect.yaml")


def test_an_inactive_schedule_is_registered_as_off(tmp_path: Path) -> None:
    entries = read(tmp_path, schedules=[EVERY_NIGHT | {"active": False}, EVERY_NIGHT | {"cron": "0 4 * * *"}])
    registered = Deployment(entries[0], tmp_path / "fleet.yaml").wanted()
    assert registered["schedules"] == ["0 2 * * * Etc/UTC, off", "0 4 * * * Etc/UTC"]


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet


@pytest.fixture
def deployed(tmp_path: Path, own_home: Path, appliances: SimulatedFleet) -> Iterator[Deployed]:
    folder = tmp_path / "operator"
    folder.mkdir()
    appliances.fleet_yaml(folder / "fleet.yaml")
    with own_server(own_home) as api, deployed_in(folder, api) as place:
        yield place


@pytest.mark.engine
@pytest.mark.slow
def test_the_deployments_run_under_a_real_worker_and_the_next_run_finishes_what_it_leaves(
    deployed: Deployed, appliances: SimulatedFleet
) -> None:
    night = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
    assert deployed.ends_as("Completed", night)
    vault = deployed.folder / "vault"
    assert sorted(path.parent.parent.name for path in vault.glob("*/*/manifest.json")) == ["a0-1", "a0-2"]
    artifacts = deployed.filter("artifacts", night)
    report, progress = {"backup-report", "backup-table"}, {"backup-progress", "backup-steps"}
    assert {artifact["key"] for artifact in artifacts} == report | progress
    # The flow's process sends the end of its log after its final state.
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

    # A worker that is stopped ends the flow's process without warning. Its a0cli survives and keeps the node's lock.
    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    before = len(appliances.calls("a0-1", "backup-retrieve"))
    run = deployed.run("backup-node/single-node", node="a0-1").raise_for_status().json()["id"]
    assert eventually(lambda: len(appliances.calls("a0-1", "backup-retrieve")) > before, 60)
    [orphan] = deployed.a0clis()
    [flow_process] = psutil.Process(deployed.worker.pid).children()
    deployed.worker.send_signal(signal.SIGTERM)
    assert deployed.worker.wait(patience(30)) is not None
    assert eventually(lambda: gone(flow_process))
    assert deployed.a0clis() == [orphan]
    assert is_held(deployed.folder / "vault/a0-1/lock")
    deployed.set_state(run, type="CRASHED", name="Crashed")

    appliances.forget()
    command = [BIN / "a0backup", "run", "a0-1"]
    ended = subprocess.run(
        command, cwd=deployed.folder, env=deployed.environment, capture_output=True, text=True, timeout=patience(60)
    )
    assert ended.returncode == 0, ended.stderr
    assert deployed.a0clis() == []
    assert [len(appliances.calls(node, "backup")) for node in ("a0-1", "a0-2")] == [3, 3]
    assert gone(orphan)


def test_a_prefect_yaml_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """It names the code that runs."""
    file = tmp_path / "prefect.yaml"
    file.write_text("deployments: []\n")
    file.chmod(0o644)
    assert prefect_yaml(tmp_path) == file
    file.chmod(0o666)
    with pytest.raises(EngineError, match="can be written or replaced by others"):
        prefect_yaml(tmp_path)
    file.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(EngineError, match="can be written or replaced by others"):
        prefect_yaml(tmp_path)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "America/Santiago", "Australia/Lord_Howe"])
@pytest.mark.parametrize("cron", ["0 0 * * *", "30 0 * * *", "0 2 * * *", "30 2 * * *", "0 3 * * *"])
async def test_each_date_has_one_night_also_when_the_clocks_change(zone: str, cron: str) -> None:
    from prefect.server.schemas.schedules import CronSchedule

    schedule, here = CronSchedule(cron=cron, timezone=zone), zoneinfo.ZoneInfo(zone)
    noons = [datetime(2027, 1, 1, 12, tzinfo=here) + timedelta(days=day) for day in range(365)]
    changes = [noon for noon in noons if noon.utcoffset() != (noon - timedelta(days=1)).utcoffset()]
    assert len(changes) == 2
    for noon in changes:
        # The server asks again and again for the runs to come, also in the hours of the change.
        first = noon.astimezone(UTC) - timedelta(hours=18)
        asked = [first + timedelta(minutes=20 * step) for step in range(54)]
        nights = {night for start in asked for night in await schedule.get_dates(n=2, start=start)}
        dates = Counter(night.astimezone(here).date() for night in nights)
        assert noon.date() in dates
        assert set(dates.values()) == {1}
