"""compose.yaml and the Dockerfile, compared with the units. There is no Docker here to run them."""

import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.deployments.compose_file import COMPOSE, SERVICES
from tests.support.parts import UNITS, Unit, example_settings, needed, unit_lines
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually, patience

DOCKERFILE = (REPOSITORY / "deployments/Dockerfile").read_text()
WORKER = "${A0BACKUP_WORKER:-worker}"

each_service = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.parametrize("name", ["migrate", "server", "services", "worker"])
def test_a_service_runs_what_its_unit_runs(name: str, tmp_path: Path) -> None:
    program, *arguments = Unit.read(f"a0backup-{name}", tmp_path, H=WORKER).commands[-1]
    assert SERVICES[name]["command"] == [Path(program).name, *arguments]


def test_the_settings_check_before_the_migration_runs_here_too(tmp_path: Path) -> None:
    [check, _] = Unit.read("a0backup-migrate", tmp_path).commands
    settings = SERVICES["settings"]
    assert [*settings["entrypoint"], *(word.strip() for word in settings["command"])] == check
    assert SERVICES["migrate"]["depends_on"]["settings"] == {"condition": "service_completed_successfully"}


def test_no_part_of_the_engine_starts_before_the_migration_has_succeeded() -> None:
    for name in ("server", "services"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for name in ("worker", "caddy"):
        assert SERVICES[name]["depends_on"]["server"] == {"condition": "service_healthy"}


def hook() -> list[str]:
    """Return the command that runs in the worker's container before it is stopped."""
    [only] = SERVICES["worker"]["pre_stop"]
    command: list[str] = only["command"]
    return command


def test_a_stopped_worker_ends_its_runs_as_its_unit_does() -> None:
    stops = [value.removeprefix("-").split() for key, value in unit_lines("a0backup-worker") if key == "ExecStop"]
    in_unit = [shlex.join([Path(program).name, *words[:-2]]) for program, *words in stops]
    assert [part in hook()[-1] for part in in_unit] == [True, True]
    # The pattern matches the command with which Prefect's process worker starts the runs.
    from prefect.runner import _starter_engine

    assert '"-m", "prefect.engine"' in Path(_starter_engine.__file__).read_text()
    assert set(re.findall(r"--full '(.*?)'", hook()[-1])) == {"[p]refect.engine"}
    grace = dict(unit_lines("a0backup-worker"))["TimeoutStopSec"]
    assert SERVICES["worker"]["stop_grace_period"] == f"{grace}s"
    assert f"timeout {grace} " in hook()[-1]


def test_a_stop_waits_for_the_runs_and_also_succeeds_without_any() -> None:
    needed("pkill", "pidwait")
    # A name that no other process on this machine has.
    name = f"refect-{uuid4()}"
    command = [word.replace("refect.engine", name) for word in hook()]
    assert subprocess.run(command, timeout=patience(30)).returncode == 0
    with subprocess.Popen(["bash", "-c", f"exec -a p{name} sleep 60"]) as run:
        assert eventually(lambda: f"p{name}" in psutil.Process(run.pid).cmdline(), 30)
        assert subprocess.run(command, timeout=patience(30)).returncode == 0
        assert run.wait(patience(10)) == -signal.SIGTERM


@each_service
def test_every_container_is_locked_down(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert not service.get("privileged")
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])


def test_only_the_proxy_can_be_reached_from_outside() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "caddy": ["443:443"]
    }
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]
    assert {name for name, network in COMPOSE["networks"].items() if network.get("internal")} == {"back", "api"}
    outside = {name for name, service in SERVICES.items() if "outside" in service.get("networks", [])}
    assert outside == {"caddy", "services", "worker"}
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["back"]


def test_only_the_worker_sees_the_vault_and_it_writes_nowhere_else() -> None:
    bound = {
        name: {volume["target"]: volume.get("read_only", False) for volume in service.get("volumes", [])}
        for name, service in SERVICES.items()
        if isinstance(next(iter(service.get("volumes", [])), None), dict)
    }
    assert bound == {
        "worker": {
            "/srv/a0backup": True,
            "/srv/a0backup/vault": False,
            "/etc/a0backup/runs": True,
            "/opt/a0cli": True,
        },
        "caddy": {"/etc/caddy/Caddyfile": True, "/data": False},
    }
    [vault] = [volume for volume in SERVICES["worker"]["volumes"] if volume["target"] == "/srv/a0backup/vault"]
    assert vault["bind"] == {"create_host_path": False}
    assert "docker.sock" not in (REPOSITORY / "deployments/compose.yaml").read_text()


@each_service
def test_no_secret_is_in_clear_text(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|AUTH|TOKEN|KEY", variable):
            assert variable.endswith("_FILE"), variable
            assert value.startswith("/run/secrets/")
    assert {secret["file"].rpartition("/")[0] for secret in COMPOSE["secrets"].values()} == {"/etc/a0backup"}


def test_compose_overrides_only_addresses_of_the_settings_files() -> None:
    over = SERVICES["server"]["environment"]
    assert set(over) == {
        "PREFECT_SERVER_DATABASE_HOST",
        "PREFECT_REDIS_MESSAGING_HOST",
        "PREFECT_SERVER_API_HOST",
    }
    assert over.keys() <= example_settings("engine.env.example").keys()
    assert set(SERVICES["worker"]["environment"]) == {"PREFECT_API_URL", "A0BACKUP_FLEETS"}


def test_no_command_needs_a_variable_that_was_set_for_an_earlier_one() -> None:
    text = (REPOSITORY / "deployments/compose.yaml").read_text()
    assert [name for name in re.findall(r"\$\{(.*?)\}", text) if ":-" not in name] == []


@each_service
def test_every_lasting_listener_has_a_health_check(name: str) -> None:
    assert ("healthcheck" in SERVICES[name]) is (name in ("postgres", "redis", "server", "caddy"))


@each_service
def test_every_image_is_pinned_to_a_release(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+:\d+\.\d+(\.\d+)?(-bookworm)?", SERVICES[name]["image"])


def test_the_image_is_built_from_the_lock_on_a_pinned_base_for_an_unprivileged_user() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert SERVICES["worker"]["image"] == f"a0backup:{version}"
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert bases == ["python:3.11.13-slim-bookworm"] * 2
    assert "pip download --quiet --no-deps --require-hashes --only-binary :all:" in DOCKERFILE
    assert "--no-index" in DOCKERFILE
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == [SERVICES["worker"]["user"]]
    assert not re.search(r"COPY.*(key|a0cli|password|\.env)", DOCKERFILE)


def test_the_build_context_is_an_explicit_list() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {f"!{package}/**" for package in wheel["packages"]} <= set(rules)
    # `a0backup engine register` in the container looks for this file next to itself.
    assert wheel["force-include"] == {"prefect.yaml": "deployments/prefect.yaml"}
    assert {f"!{file}" for file in wheel["force-include"]} <= set(rules)


def test_each_unit_of_the_engine_and_the_worker_has_its_service() -> None:
    units = {path.stem.removeprefix("a0backup-") for path in UNITS.glob("a0backup-*.service")}
    assert units == set(SERVICES) - {"postgres", "redis", "settings", "caddy"}
