"""docs/install.md: each way is up by the commands on the page, run as they stand there."""

import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from simulator.fleet import SimulatedFleet
from tests.deployments.test_server import eventually

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "install.md"


def blocks(section: str) -> list[str]:
    """Return the runnable blocks of that section of the page, in order."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(r"^<!-- runnable -->\n```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@contextmanager
def port_4200() -> Iterator[None]:
    """The page's port, which one test at a time may have."""
    with (Path(os.environ["A0BACKUP_TEST_ROOM"]) / "port-4200").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Terminal:
    """A shell of an operator's, with a home of its own and nothing of ours on its PATH."""

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
            timeout=seconds,
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
def test_one_machine_is_up_by_the_commands_on_the_page(home: Path, operator: Path, tmp_path: Path) -> None:
    set_up, serve, use = blocks("One machine")
    # Both begin in the clone, as the page says, and go on in the folder of fleet.yaml.
    clone, change = Terminal(home, ROOT), f"cd '{operator}'\n"
    with port_4200():
        served = clone.start(set_up + change + "exec " + serve, tmp_path / "serve.log")
        try:
            ready = eventually(lambda: "serving at http://127.0.0.1:4200" in said(tmp_path), 180)
            assert ready, said(tmp_path)
            listed = clone.run(set_up + change + use)
            assert re.findall(r"^(a0-\d)/\d+T\d+Z-backup ", listed, re.MULTILINE) == ["a0-1", "a0-2"]
            assert "well     workers of the pool appliance: a0backup-serve" in listed
            assert "problem" not in listed
            served.send_signal(signal.SIGINT)
            assert served.wait(60) == 130
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
