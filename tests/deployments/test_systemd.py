"""The systemd units: what systemd itself says about them, and what their commands do when run."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from a0backup.vault.lock import is_held
from simulator.fleet import SimulatedFleet
from tests.support.parts import (
    BIN,
    ENGINE_PARTS,
    INSTALLED,
    PLACEHOLDER,
    UNITS,
    Engine,
    Unit,
    engine_on_parts,
    example_settings,
    filled_settings,
    needed,
    unit_lines,
)
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually, patience

NAMES = sorted(path.stem for path in UNITS.glob("*.service"))
ENGINE = ("a0backup-migrate", "a0backup-server", "a0backup-services")
WORKER = "a0backup-worker"
EXPOSURE = 20  # tenths of systemd's own points, out of 100: "OK" is 10 to 49

each_unit = pytest.mark.parametrize("name", NAMES)


def settings(name: str) -> dict[str, str]:
    return dict(unit_lines(name))


@each_unit
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, tmp_path: Path) -> None:
    needed("systemd-analyze")
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, str(BIN)))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / f"{name}.service")]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@each_unit
def test_systemd_rates_the_exposure_of_a_unit_as_low(name: str) -> None:
    needed("systemd-analyze")
    file = UNITS / f"{name}.service"
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={EXPOSURE}", str(file)]
    rated = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
    assert rated.returncode == 0, rated.stdout[-300:]


@each_unit
def test_a_unit_writes_at_most_to_the_vault_and_its_own_state(name: str) -> None:
    assert settings(name)["ProtectSystem"] == "strict"
    assert settings(name)["UMask"] == "0077"
    assert settings(name)["StateDirectoryMode"] == "0700"
    assert settings(name).get("ReadWritePaths") == (None if name in ENGINE else "/srv/a0backup/vault")


@each_unit
def test_a_unit_that_writes_to_the_vault_starts_only_with_what_is_mounted_there(name: str) -> None:
    # If only ReadWritePaths makes the folder a mount, a run refuses it. With the file server's mount it does not have
    # to.
    assert settings(name).get("RequiresMountsFor") == settings(name).get("ReadWritePaths")


@each_unit
def test_nobody_else_can_place_prefect_settings_in_the_home_of_a_unit(name: str) -> None:
    [home] = [
        value.removeprefix("PREFECT_HOME=")
        for key, value in unit_lines(name)
        if key == "Environment" and value.startswith("PREFECT_HOME=")
    ]
    state = Path("/var/lib") / settings(name)["StateDirectory"]
    assert Path(home).is_relative_to(state)


def test_the_engine_runs_as_another_user_than_the_worker_and_does_not_see_its_processes() -> None:
    assert {settings(name)["User"] for name in ENGINE} == {"prefect"}
    assert {settings(name)["ProtectProc"] for name in ENGINE} == {"invisible"}
    assert settings(WORKER)["User"] == "a0backup"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ENGINE])
def test_a_unit_that_runs_flows_sees_the_boot_id_that_identifies_a_dead_run(name: str) -> None:
    assert "ProcSubset" not in settings(name)


def test_one_unit_migrates_and_the_others_wait_for_it() -> None:
    assert example_settings("engine.env.example")["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
    for name in ENGINE[1:]:
        assert settings(name)["Requires"] == "a0backup-migrate.service"
        assert "a0backup-migrate.service" in settings(name)["After"].split()


def test_a_migration_that_succeeds_later_starts_the_units_that_waited_for_one() -> None:
    started = settings("a0backup-migrate")["ExecStartPost"].split()
    assert started == ["-+/bin/systemctl", "start", "--no-block", *(f"{name}.service" for name in ENGINE[1:])]


def checked(environment: dict[str, str], tmp_path: Path) -> tuple[int, str]:
    """Return what the migration's own settings check says about *environment*."""
    check, _ = Unit.read("a0backup-migrate", tmp_path).commands
    ended = subprocess.run(
        check, env={"PATH": os.defpath} | environment, capture_output=True, text=True, timeout=patience(30)
    )
    return ended.returncode, ended.stdout


def test_the_migration_refuses_the_unchanged_settings_of_the_example(tmp_path: Path) -> None:
    example = example_settings("engine.env.example")
    left = {name for name, value in example.items() if PLACEHOLDER in value}
    assert {name for name in left if name.endswith(("PASSWORD", "AUTH_STRING", "KEY"))} == {
        "PREFECT_SERVER_ENCRYPTION_KEY",
        "PREFECT_SERVER_API_AUTH_STRING",
        "PREFECT_SERVER_DATABASE_PASSWORD",
        "PREFECT_REDIS_MESSAGING_PASSWORD",
    }
    code, said = checked(example, tmp_path)
    assert code == 1
    assert {line.partition(":")[0] for line in said.splitlines()} == left
    filled = example | dict.fromkeys(left, "operator:filled-in")
    assert checked(filled, tmp_path) == (0, "")


def test_the_migration_refuses_an_engine_that_would_let_everybody_in(tmp_path: Path) -> None:
    filled = {name: value for name, value in example_settings("engine.env.example").items() if PLACEHOLDER not in value}
    for auth in ({}, {"PREFECT_SERVER_API_AUTH_STRING": ""}, {"PREFECT_SERVER_API_AUTH_STRING": "operator:"}):
        code, said = checked(filled | auth, tmp_path)
        assert (code, said) == (1, "PREFECT_SERVER_API_AUTH_STRING: say user:password\n")


@pytest.mark.parametrize("example", ["engine.env.example", "worker.env.example"])
def test_prefect_knows_and_accepts_every_setting_of_an_example(example: str, tmp_path: Path) -> None:
    program = """
import json, os, sys, warnings
warnings.simplefilter("error")
from prefect.settings import get_current_settings
from prefect_redis.client import RedisMessagingSettings
known = get_current_settings().to_environment_variables(exclude_unset=True, include_aliases=True)
known["PREFECT_SERVER_ENCRYPTION_KEY"] = ""  # read by prefect.server.utilities.encryption
known |= {f"PREFECT_REDIS_MESSAGING_{name.upper()}": "" for name in RedisMessagingSettings.model_fields}
print(json.dumps([name for name in json.loads(sys.argv[1]) if name not in known]))
"""
    given = filled_settings(example, {n: v.replace(PLACEHOLDER, "x") for n, v in example_settings(example).items()})
    names = [name for name in given if name.startswith("PREFECT_")]
    environment = {"PATH": os.defpath, "PREFECT_HOME": str(tmp_path), **given}
    command = [str(BIN / "python"), "-c", program, json.dumps(names)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(60))
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == []


def test_a_notification_ends_with_a_link_to_the_run(tmp_path: Path) -> None:
    program = """
import uuid
from prefect.server.events.jinja_filters import ui_url
from prefect.server.schemas.core import FlowRun
print(ui_url({}, FlowRun(id=uuid.UUID(int=7), flow_id=uuid.uuid4())))
"""
    example = example_settings("engine.env.example")
    given = {name: value.replace(PLACEHOLDER, "backup.example.com") for name, value in example.items()}
    environment = {"PATH": os.defpath, "PREFECT_HOME": str(tmp_path), **given}
    command = [str(BIN / "python"), "-c", program]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(60))
    link = "https://backup.example.com/runs/flow-run/00000000-0000-0000-0000-000000000007"
    assert (printed.stdout.strip(), printed.returncode) == (link, 0), printed.stderr


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    needed(*ENGINE_PARTS, "pkill", "pidwait")
    with engine_on_parts(tmp_path_factory.mktemp("units") / "engine") as engine:
        yield engine


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as fleet:
        yield fleet


@pytest.fixture
def operator(tmp_path: Path, engine: Engine, appliances: SimulatedFleet) -> Path:
    """Return the folder with fleet.yaml and the prefect.yaml that was deployed from there."""
    folder = tmp_path / "operator"
    folder.mkdir()
    appliances.fleet_yaml(folder / "fleet.yaml")
    shutil.copy(REPOSITORY / "prefect.yaml", folder)
    engine.prefect("work-pool", "create", "appliance", "--type", "process", "--overwrite", folder=folder)
    engine.prefect("deploy", "--all", folder=folder)
    return folder


@pytest.mark.engine
@pytest.mark.slow
def test_the_services_schedule_what_is_deployed(engine: Engine, operator: Path) -> None:
    wanted = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}

    def scheduled() -> list[str]:
        runs = engine.client.post("flow_runs/filter", json=wanted).raise_for_status().json()
        return [run["expected_start_time"] for run in runs]

    assert eventually(lambda: scheduled() != [], 60)
    assert all("T02:00:00" in start for start in scheduled())


@pytest.mark.engine
@pytest.mark.slow
def test_stopping_the_worker_cleanly_ends_its_runs_and_their_a0cli(
    engine: Engine, appliances: SimulatedFleet, operator: Path
) -> None:
    more = {"A0_BACKUP_PASSWORD": "Canary7Password", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    worker = engine.start_worker("one", operator, **more)
    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)

    single = engine.client.get("deployments/name/backup-node/single-node").raise_for_status().json()["id"]
    body = {"parameters": {"node": "a0-1"}}
    run = engine.client.post(f"deployments/{single}/create_flow_run", json=body).raise_for_status().json()["id"]
    assert eventually(lambda: appliances.calls("a0-1", "backup-retrieve") != [], 60), worker.tail()
    started = psutil.Process(worker.process.pid).children(recursive=True)
    assert len(started) >= 2  # the run and its a0cli

    for key, value in unit_lines(WORKER):
        if key == "ExecStop":
            words = shlex.split(value.removeprefix("-").replace("$MAINPID", str(worker.process.pid)))
            subprocess.run(words, timeout=patience(30), check=True)
    assert worker.process.poll() is None
    assert not any(process.is_running() for process in started)
    assert not is_held(operator / "vault/a0-1/lock")
    assert engine.client.get(f"flow_runs/{run}").json()["state"]["type"] == "CRASHED"
    worker.end()
