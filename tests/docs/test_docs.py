"""The documentation matches the code: commands, errors, settings, deployments, dependencies and files."""

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from a0backup import errors
from a0backup.cli.main import cli
from a0backup.exit_codes import ExitCode
from simulator.artifact import make
from tests.support.paths import REPOSITORY as ROOT
from tests.support.patience import patience

DOCS = (
    *("configuration", "copies", "dependencies", "design", "errors", "hardening", "install", "monitoring"),
    *("operations", "reconcile", "reliability", "restore", "retention", "upgrade"),
)
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "simulator/README.md",
    *(f"docs/{name}.md" for name in DOCS),
]
ROOMS = ("a0backup", "bench", "deployments", "docs", "flows", "simulator", "tasks", "tests")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def error_classes() -> Iterator[str]:
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.A0BackupError):
            yield name


def test_the_page_on_fleet_yaml_is_generated_from_the_models():
    script = runpy.run_path(str(ROOT / "docs/configuration.py"))
    assert text_of("docs/configuration.md") == script["page"](), (
        "run: python docs/configuration.py > docs/configuration.md"
    )


def commands(group: click.Group = cli, words: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{words}{name} ")
        else:
            yield f"{words}{name}", command


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_each_command_has_a_row_in_operations_that_names_its_options(name: str, command: click.Command):
    [row] = re.findall(rf"^\| `{name}[ `].*$", text_of("docs/operations.md"), re.MULTILINE)
    options = {opt for param in command.params if isinstance(param, click.Option) for opt in param.opts}
    assert [option for option in options - {"--fleet"} if option not in row] == []


@pytest.mark.parametrize("name", list(error_classes()))
def test_each_error_is_explained(name: str):
    assert f"`{name}`" in text_of("docs/errors.md")


def test_only_errors_that_exist_are_explained():
    assert set(re.findall(r"`(\w+Error)`", text_of("docs/errors.md"))) <= set(error_classes())


def test_each_deployment_is_named_in_operations_with_its_flow():
    deployments = yaml.safe_load(text_of("prefect.yaml"))["deployments"]
    named = [f"{d['entrypoint'].rpartition('.')[2].replace('_', '-')}/{d['name']}" for d in deployments]
    assert named
    assert [name for name in named if f"`{name}`" not in text_of("docs/operations.md")] == []


def test_each_dependency_has_a_reason():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    extras = [dependency for extra in project["optional-dependencies"].values() for dependency in extra]
    names = [re.match(r"[A-Za-z0-9_.-]+", dependency)[0] for dependency in [*project["dependencies"], *extras]]
    rows = re.findall(r"^\| (`.*?) \|", text_of("docs/dependencies.md"), re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] == names


@pytest.mark.parametrize("page", PAGES)
def test_each_file_that_a_page_names_exists(page: str):
    text = text_of(page)
    named = {ROOT / path for path in re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`", text)}
    named |= {(ROOT / page).parent / path for path in re.findall(r"\]\(([\w./-]+)\)", text)}
    assert [str(path) for path in named if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_command_that_a_page_runs_exists(page: str):
    named = set(re.findall(r"(?:`|bin/|^)a0backup ([a-z][a-z-]*)", text_of(page), re.MULTILINE))
    assert named <= set(cli.commands)


def test_the_readme_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert (
        {"demo", "test", "test-all", "test-faults", "setup"}
        <= set(re.findall(r"make ([a-z-]+)(?=`|\s+#)", text_of("README.md")))
        <= targets
    )


@pytest.mark.slow
def test_make_replaces_an_environment_that_was_left_without_pip(tmp_path: Path):
    # Debian without python3-venv leaves this behind, and `make setup` would take it for complete.
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    command = ["make", "-f", ROOT / "Makefile", f"PYTHON={sys.executable}", ".venv/bin/pip"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=patience(300))
    assert made.returncode == 0, made.stderr
    version = subprocess.run([tmp_path / ".venv/bin/python", "-m", "pip", "--version"], capture_output=True, text=True)
    assert str(tmp_path) in version.stdout


def test_production_and_the_image_are_installed_with_the_same_options():
    ours, theirs = text_of("Makefile"), text_of("deployments/Dockerfile")
    for words in (
        "--no-deps --require-hashes --only-binary :all:",
        "--no-index --find-links",
        '.[server,docker,kubernetes]"',
    ):
        assert words in ours
        assert words in theirs


@pytest.mark.parametrize("page", PAGES)
def test_no_page_gives_prefect_a_home_that_others_can_create_first(page: str):
    # The profiles.toml of a home can name a program for Prefect to start.
    assert re.findall(r"PREFECT_HOME=[\"']?/(?:var/)?tmp", text_of(page)) == []


def test_an_upgrade_stops_the_migration_before_it_starts_the_units_that_wait_for_it():
    commands = re.findall(r"^systemctl (stop|start) (.*)$", text_of("docs/upgrade.md"), re.MULTILINE)
    [stop, start, *_] = commands
    assert (stop[0], start[0]) == ("stop", "start")
    assert "a0backup-migrate" in stop[1].split()
    assert "a0backup-server" in start[1].split()


def test_the_openssl_line_of_the_readme_lists_an_artifact(tmp_path: Path):
    [line] = re.findall(r"^(openssl enc -d.*?\| tar tz)$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    [path] = re.findall(r"-in (\S+)", line)
    artifact = tmp_path / path
    artifact.parent.mkdir(parents=True)
    (tmp_path / "password").write_text("Passw0rd\n")
    make(artifact, kind="backup", seed="docs", size=20_000, password="Passw0rd", stopped=lambda: False)
    listed = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "dump/auth0/users.bson" in listed.stdout.splitlines()

    (tmp_path / "password").write_text("another\n")
    noise = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert noise.returncode
    assert "not in gzip format" in noise.stderr


@pytest.mark.parametrize(
    ("output", "code"), [("OK - fresh", 0), ("WARNING - odd", 1), ("CRITICAL - old", 2), ("error: fleet.yaml", 3)]
)
def test_the_plugin_of_the_page_on_monitoring_takes_its_state_from_the_first_word(
    tmp_path: Path, output: str, code: int
):
    plugin = text_of("docs/monitoring.md").partition("```sh\n")[2].partition("```")[0]
    probe = tmp_path / "a0backup"
    probe.write_text(f"#!/bin/sh\n[ $1 = status ] && echo '{output}' >&2\n")
    probe.chmod(0o755)
    plugin = plugin.replace("/opt/a0backup/.venv/bin/a0backup", str(probe))
    ended = subprocess.run(["sh", "-c", plugin], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, f"{output}\n")


def test_the_exit_codes_are_the_same_in_the_readme_in_operations_and_in_the_help():
    said = [
        set(re.findall(r"^\| (\d+) \|", text_of(page), re.MULTILINE)) for page in ("README.md", "docs/operations.md")
    ]
    codes = {str(code.value) for code in ExitCode}
    assert said == [codes, codes]
    assert set(re.findall(r"\b(\d+) [a-z]", cli.epilog or "")) == codes


@pytest.mark.parametrize("page", ["docs/design.md", "docs/operations.md", "docs/reconcile.md", "docs/reliability.md"])
def test_a_page_is_short_enough_to_read(page: str):
    assert len(text_of(page).splitlines()) < 260
