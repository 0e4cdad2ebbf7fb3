"""A user's place: home, state folder and environment, commands started there, and what they leave."""

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.deployed import left_at_work
from tests.support.login import reaching
from tests.support.patience import eventually, patience

A0BACKUP = Path(sys.executable).with_name("a0backup")


STEPS_OF_A_NODE = 12


class Place:
    """A user's home and state folder, the environment that names them, and what runs leave there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.engine = root / "state" / "a0backup" / "engine"
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "XDG_"))}
        self.environment = kept | {
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(root / "state"),
            "A0_BACKUP_PASSWORD": "Canary7Password",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [A0BACKUP, *arguments],
            cwd=self.root,
            env=self.environment | reaching(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=patience(120))
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self) -> list[str]:
        """Return the command lines of all processes in this place, except the simulated appliance's server."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                where = [*words, process.cwd()]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if any(str(self.root) in word for word in where) and "serve" not in words:
                found.append(" ".join(words))
        return found

    def left(self) -> list[str]:
        """Return `processes`, but give those that are about to end the time to do so."""
        eventually(lambda: not self.processes(), 3)
        return self.processes()

    def flow_runs(self) -> list[tuple[str, str]]:
        """Return the name and message of each flow run's state, oldest first, from the engine's database file."""
        return self._query(
            "select s.name, s.message from flow_run r join flow_run_state s on s.id = r.state_id order by r.created"
        )

    def task_runs(self) -> list[Counter[str]]:
        """Return the number of task runs in each state for each flow run, oldest first."""
        found = []
        for (run,) in self._query("select id from flow_run order by created"):
            states = self._query("select state_name from task_run where flow_run_id = ?", run)
            found.append(Counter(name for (name,) in states))
        return found

    def _query(self, statement: str, *values: str) -> list[tuple[str, ...]]:
        database = sqlite3.connect(self.engine / "prefect.db")
        try:
            return database.execute(statement, values).fetchall()
        finally:
            database.close()

    def stored(self) -> list[str]:
        return [json.loads(path.read_text())["node"]["name"] for path in self.manifests()]

    def manifests(self) -> list[Path]:
        return sorted(self.root.glob("vault/*/*/manifest.json"))

    def work_left(self) -> list[Path]:
        return [*left_at_work(self.root / "vault"), *self.root.glob("vault/*/journal*")]


def server_of(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children():
        if any("_server_child" in word for word in child.cmdline()):
            return child
    return None


def gone(process: psutil.Process) -> bool:
    """Return whether *process* has ended. An orphan may stay listed until the machine's init process reaps it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Terminal:
    """A process on its own pseudo-terminal, and all that it shows there."""

    def __init__(self, place: Place, *arguments: str, **environment: str) -> None:
        self.shown = b""
        pid, self._fd = pty.fork()
        if pid == 0:
            os.chdir(place.root)
            settings = place.environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"} | reaching(environment)
            os.execve(A0BACKUP, [str(A0BACKUP), *arguments], settings)
        self._pid = pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while octets := os.read(self._fd, 65536):
                self.shown += octets
        except OSError:  # the other end is closed
            return

    def press_ctrl_c(self) -> None:
        os.write(self._fd, b"\x03")

    def exit_code(self, seconds: float) -> int:
        ended: list[int] = []

        def reaped() -> bool:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(ended)

        if not eventually(reaped, seconds):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            pytest.fail(f"still running after {seconds} s: {self.shown!r}")
        self._reader.join(patience(5))
        os.close(self._fd)
        return ended[0]
