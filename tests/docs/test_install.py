"""docs/install.md: the commands on the page, run as printed, bring up each way to run it."""

import base64
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from simulator.fleet import SimulatedFleet
from tests.support.parts import ENGINE_PARTS, filled_settings, needed, postgresql, redis
from tests.support.paths import REPOSITORY as ROOT
from tests.support.patience import eventually, patience

PAGE = ROOT / "docs" / "install.md"


def blocks(section: str) -> list[str]:
    """Return the runnable blocks of this section of the page, in order."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(r"^<!-- runnable -->\n```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@contextmanager
def port_4200() -> Iterator[None]:
    """Hold the port that the page uses. One test at a time can have it."""
    with (Path(os.environ["A0BACKUP_TEST_ROOM"]) / "port-4200").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Terminal:
    """An operator's shell, with its own home and nothing of this project on its PATH."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.folder = folder
        self.environment = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        if home.joinpath("password").exists():
            self.environment["A0_BACKUP_PASSWORD"] = home.joinpath("password").read_text()

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, script: str, seconds: float = 300) -> str:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(seconds),
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    home.joinpath("password").write_text("Canary7Password")
    return home


@pytest.fixture
def operator(tmp_path: Path, appliances: SimulatedFleet) -> Path:
    folder = tmp_path / "operator"
    folder.mkdir()
    appliances.fleet_yaml(folder / "fleet.yaml")
    return folder


@pytest.mark.engine
@pytest.mark.slow
def test_the_commands_on_the_page_bring_up_one_machine(home: Path, operator: Path, tmp_path: Path) -> None:
    set_up, serve, use = blocks("One machine")
    # As the page says, both start in the clone and continue in the folder of fleet.yaml.
    clone, change = Terminal(home, ROOT), f"cd '{operator}'\n"
    with port_4200():
        served = clone.start(set_up + change + "exec " + serve, tmp_path / "serve.log")
        try:
            ready = eventually(lambda: "serving at http://127.0.0.1:4200" in said(tmp_path), 180)
            assert ready, said(tmp_path)
            listed = clone.run(set_up + change + use)
            assert re.findall(r"^(a0-\d)/\d+T\d+Z-backup ", listed, re.MULTILINE) == ["a0-1", "a0-2"]
            assert "ok       workers of the pool appliance: a0backup-serve" in listed
            assert "problem" not in listed
            served.send_signal(signal.SIGINT)
            assert served.wait(patience(60)) == 130
        finally:
            end(served)
    assert "Traceback" not in said(tmp_path)


def said(place: Path) -> str:
    return (place / "serve.log").read_text(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            each.kill()
        process.wait()


@pytest.fixture
def parts_named(operator: Path) -> Iterator[None]:
    """Start PostgreSQL and Redis, and fill in the two settings files as for one machine without TLS."""
    needed(*ENGINE_PARTS)
    with postgresql() as database, redis(operator) as broker:
        auth = "operator:in-the-test-alone"
        filled = {
            "engine": {
                "PREFECT_SERVER_API_AUTH_STRING": auth,
                "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://127.0.0.1:4200",
                "PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:4200/api",
                "PREFECT_UI_URL": "http://127.0.0.1:4200",
                "PREFECT_SERVER_DATABASE_PORT": str(database.port),
                "PREFECT_SERVER_DATABASE_PASSWORD": database.password,
                "PREFECT_SERVER_ENCRYPTION_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
                "PREFECT_REDIS_MESSAGING_PORT": str(broker.port),
                "PREFECT_REDIS_MESSAGING_PASSWORD": broker.password,
            },
            "worker": {"PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": auth},
        }
        for side, values in filled.items():
            settings = filled_settings(f"{side}.env.example", values)
            lines = [f"{name}={value}\n" for name, value in settings.items()]
            (operator / f"{side}.env").write_text("".join(lines))
        yield


@pytest.mark.engine
@pytest.mark.slow
def test_the_commands_on_the_page_bring_up_a_server_with_workers_and_give_each_node_to_a_worker(
    home: Path, operator: Path, appliances: SimulatedFleet, parts_named: None, tmp_path: Path
) -> None:
    [set_up, *_] = blocks("One machine")
    server, services, worker, use = blocks("A server and workers")
    [give_out] = blocks("Many machines")
    clone, change = Terminal(home, ROOT), f"cd '{operator}'\n"
    with port_4200():
        started = [clone.start(set_up + change + server, tmp_path / "server.log")]
        try:
            answers = eventually(lambda: answers_at("http://127.0.0.1:4200/api/health"), 240)
            assert answers, (tmp_path / "server.log").read_text()
            started.append(clone.start(set_up + change + services, tmp_path / "services.log"))
            started.append(clone.start(set_up + change + worker, tmp_path / "worker.log"))
            working = eventually(lambda: "Worker 'ProcessWorker" in (tmp_path / "worker.log").read_text(), 180)
            assert working, (tmp_path / "worker.log").read_text()
            first = clone.run(set_up + change + use, 600)
            assert "problem" not in first
            then = clone.run(set_up + change + give_out, 600)
        finally:
            for process in reversed(started):
                end(process)
    listed = [re.findall(r"^(a0-\d)/\d+T\d+Z-backup ", each, re.MULTILINE) for each in (first, then)]
    assert listed == [["a0-1", "a0-2"], ["a0-1", "a0-1", "a0-2", "a0-2"]]
    # Each run is a separate process: one for both nodes on the first night, one per node on the second.
    runs = [{call["ppid"] for call in appliances.calls(node, "backup")} for node in ("a0-1", "a0-2")]
    assert len(runs[0] & runs[1]) == 1
    assert len(runs[0] | runs[1]) == 3


def written_with_passwords(section: str) -> str:
    """Return the page's lines that fill in the two settings files, as a shell reads them."""
    [text] = re.findall(rf"^### {section}\n(.*?)(?=^##|\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    [lines] = re.findall(r"^(site=.*?^SED\n.*?^SED\n)", text, re.MULTILINE | re.DOTALL)
    return f"{lines})\n"


@pytest.mark.parametrize("section", ["With systemd", "With Docker Compose"])
def test_the_passwords_are_generated_once_and_never_appear_in_process_arguments(section: str, tmp_path: Path) -> None:
    script = written_with_passwords(section).replace("/etc/a0backup", str(tmp_path))
    # -x prints each command with its arguments. Only separate programs appear in a process list.
    command = ["bash", "-x", "-c", script]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(60))
    assert made.returncode == 0, made.stderr
    files = {name: tmp_path / f"{name}.env" for name in ("engine", "worker")}
    engine, worker = [
        dict(line.split("=", 1) for line in file.read_text().splitlines() if line[:1] not in ("", "#"))
        for file in files.values()
    ]
    assert not [name for name, value in [*engine.items(), *worker.items()] if "REPLACE-ME" in value]
    assert engine["PREFECT_SERVER_API_AUTH_STRING"] == worker["PREFECT_API_AUTH_STRING"]
    assert engine["PREFECT_UI_URL"] == "https://backup.example.com"
    assert worker["PREFECT_API_URL"] == "https://backup.example.com/api"
    assert [file.stat().st_mode & 0o777 for file in files.values()] == [0o600, 0o600]

    own = [engine[name] for name in engine if name.endswith(("PASSWORD", "ENCRYPTION_KEY"))]
    passwords = {*own, worker["PREFECT_API_AUTH_STRING"].removeprefix("operator:")}
    assert len(passwords) == 4
    ran = [line for line in made.stderr.splitlines() if re.match(r"\++ (?!\w+=)", line)]
    assert any("sed -f -" in line for line in ran)
    assert not [line for line in ran if any(password in line for password in passwords)]

    before = {name: file.read_bytes() for name, file in files.items()}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(60))
    assert (again.returncode, again.stdout) == (1, "made already\n")
    assert {name: file.read_bytes() for name, file in files.items()} == before


def test_the_page_creates_every_settings_file_that_compose_reads() -> None:
    compose = (ROOT / "deployments/compose.yaml").read_text()
    named = set(re.findall(r"(?:path|file): (/etc/a0backup/[\w./-]+)", compose))
    assert "/etc/a0backup/caddy.env" in named
    assert [
        file for file in named if f">{file}\n" not in PAGE.read_text() and f">{file} <<" not in PAGE.read_text()
    ] == []


def test_the_auth_string_reaches_kubernetes_without_a_trailing_newline(tmp_path: Path) -> None:
    [pipe] = re.findall(r"^(sed .*\|)\n\s+kubectl", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "worker.env").write_text("A=b\nPREFECT_API_AUTH_STRING=operator:x=y\nDO_NOT_TRACK=1\n")
    script = pipe.replace("/etc/a0backup", str(tmp_path)) + " cat"
    assert subprocess.run(["bash", "-c", script], capture_output=True, timeout=patience(30)).stdout == b"operator:x=y"


def answers_at(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("goal", ["setup", "install"])
def test_make_notices_that_the_python_below_its_virtual_environment_was_upgraded(tmp_path: Path, goal: str) -> None:
    """Only what make decides: it would run the commands that make the environment anew."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    venv = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "bin" / "pip").touch()
    (venv / ".installed").touch()
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/usr/bin/python-that-is-gone")
    planned = subprocess.run(["make", "-n", goal], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "-m venv --clear .venv" in planned
    assert "pip install" in planned
