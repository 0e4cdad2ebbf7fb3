"""`a0backup run` and `demo` as processes: on their own engine or the operator's, interrupted, killed, cut off."""

import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deployments.engine_runs import CRASHED
from simulator.fleet import SimulatedFleet
from tests.support.login import logged_in
from tests.support.patience import eventually, patience
from tests.support.place import STEPS_OF_A_NODE, Place, Terminal, gone, server_of

pytestmark = [pytest.mark.slow]


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        fleet.fleet_yaml(tmp_path / "fleet.yaml")
        yield fleet


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a place without its own engine yet, for runs on the operator's engine."""
    return Place(tmp_path)


@pytest.fixture
def own(place: Place, migrated_home: Path) -> Iterator[Place]:
    """Yield a place whose engine already has its database."""
    place.engine.parent.mkdir(parents=True)
    shutil.copytree(migrated_home, place.engine)
    yield place
    for process in psutil.process_iter():
        try:
            if str(place.root) in process.cwd():
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def hold(appliances: SimulatedFleet, node: str) -> None:
    """Make the node report 'in progress' from its start on, until it is told to forget."""
    assert eventually(lambda: bool(appliances.calls(node, "backup")), 60)
    appliances.tell(node, "backup-status", "in_progress")


@pytest.mark.engine
def test_a_run_starts_its_own_engine_records_every_step_there_and_leaves_nothing_behind(
    own: Place, appliances: SimulatedFleet
) -> None:
    ended = own.run("run")
    assert ended.returncode == 0, ended.stderr
    assert "our own" in ended.stderr
    assert own.stored() == ["a0-1", "a0-2"]
    assert own.work_left() == []
    [(state, _)] = own.flow_runs()
    assert state == "Completed"
    assert own.task_runs() == [Counter(Completed=2 * STEPS_OF_A_NODE + 1)]
    assert own.left() == []
    assert not [path for path in own.home.rglob("*") if path.is_file()]
    # Plain lines, for a log file, and the report on standard output.
    assert "\x1b" not in ended.stdout + ended.stderr
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  a0-1  ping: PONG$", ended.stderr, re.MULTILINE)
    assert ended.stdout.startswith("2 node backups: 2 stored\n")


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_in_time_and_the_next_one_finishes_its_backups(
    own: Place, tmp_path: Path, engine_server: str, number: signal.Signals
) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=4) as appliances:
        appliances.fleet_yaml(tmp_path / "fleet.yaml")
        appliances.tell("a0-1", "backup", "duration", seconds=3)
        appliances.tell("a0-2", "backup-retrieve", "hang", ignore_sigterm=True)
        appliances.tell("a0-3", "backup-status", "hang")
        process = own.start("run")
        hold(appliances, "a0-1")
        assert eventually(lambda: bool(appliances.calls("a0-2", "backup-retrieve")), 60)
        assert eventually(
            lambda: own.stored() == ["a0-4"] and not (tmp_path / "vault/a0-4/journal-backup.json").exists()
        )
        process.send_signal(number)
        out, err = process.communicate(timeout=patience(10))
        assert process.returncode == 130, err
        assert "interrupted" in err
        # The signal may come before the end of a0-4 is reported.
        assert re.match(r"4 node backups: [01] stored, [34] failed \([34] interrupted\)\n", out)
        for row in ("a0-1  interrupted (await)", "a0-2  interrupted (retrieve)", "a0-3  interrupted", "a0-4  "):
            assert row in out
        assert "Traceback" not in err
        assert own.left() == []
        [(state, _)] = own.flow_runs()
        [tasks] = own.task_runs()
        assert state == "Crashed"
        assert set(tasks) == {"Completed", "Crashed"}

        appliances.forget()
        # On another engine: only the node and the vault know what remains to be done.
        ended = own.run("run", "a0-1", "a0-2", "a0-3", PREFECT_API_URL=engine_server)
        assert ended.returncode == 0, ended.stderr
        assert own.stored() == ["a0-1", "a0-2", "a0-3", "a0-4"]
        assert [len(appliances.calls(node, "backup")) for node in appliances.names] == [1] * 4
        assert own.work_left() == []


@pytest.mark.engine
def test_a_signal_that_the_system_delivers_to_another_thread_interrupts_a_run_as_well(
    own: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup", "duration", seconds=3)
    process = own.start("run", "a0-1")
    hold(appliances, "a0-1")
    others = [thread.id for thread in psutil.Process(process.pid).threads() if thread.id != process.pid]
    assert ctypes.CDLL(None).tgkill(process.pid, others[0], signal.SIGTERM) == 0
    _, err = process.communicate(timeout=patience(10))
    assert process.returncode == 130, err
    assert own.left() == []


@pytest.mark.engine
def test_two_runs_begun_at_once_make_one_backup_per_node_although_one_engine_starts_much_later(
    own: Place, migrated_home: Path, tmp_path: Path, appliances: SimulatedFleet
) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.engine.parent.mkdir(parents=True)
    shutil.copytree(migrated_home, other.engine)
    late = other.start("run", "--fleet", str(tmp_path / "fleet.yaml"))
    assert eventually(lambda: server_of(late) is not None, 30)
    server = server_of(late)
    assert server is not None
    server.suspend()
    ended = own.run("run")
    server.resume()
    out, err = late.communicate(timeout=patience(120))
    assert (ended.returncode, late.returncode) == (0, 0), ended.stderr + err
    assert own.stored() == ["a0-1", "a0-2"]
    assert [len(appliances.calls(node, "backup")) for node in appliances.names] == [1, 1]
    assert out.count("after this run was due, and before it began") == 2


@pytest.mark.engine
def test_sigterm_while_the_engine_starts_ends_both(own: Place, appliances: SimulatedFleet) -> None:
    process = own.start("run")
    assert eventually(lambda: server_of(process) is not None, 30)
    process.terminate()
    _, err = process.communicate(timeout=patience(10))
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert own.left() == []
    assert appliances.calls() == []


@pytest.mark.engine
def test_after_a_kill_the_engine_ends_and_the_next_run_marks_the_dead_one_and_finishes_its_backup(
    own: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup", "duration", seconds=3)
    process = own.start("run", "a0-1")
    hold(appliances, "a0-1")
    server = server_of(process)
    assert server is not None
    if os.geteuid() == 0:  # its memory is private: only root can look
        assert "A0_BACKUP_PASSWORD" not in server.environ(), "only the run needs it"
    process.kill()
    process.communicate()
    assert eventually(lambda: gone(server))
    appliances.forget()
    ended = own.run("run", "a0-1")
    assert ended.returncode == 0, ended.stderr
    assert own.stored() == ["a0-1"]
    assert len(appliances.calls("a0-1", "backup")) == 1
    assert [state for state, _ in own.flow_runs()] == ["Crashed", "Completed"]
    assert own.flow_runs()[0][1] == CRASHED
    dead, whole = own.task_runs()
    assert set(dead) <= {"Completed", "Crashed"}
    assert set(whole) == {"Completed"}
    assert own.left() == []


@pytest.mark.engine
def test_a_run_whose_engine_dies_ends_with_the_right_vault_report_and_exit_code(
    own: Place, appliances: SimulatedFleet
) -> None:
    appliances.tell("a0-1", "backup", "duration", seconds=3)
    # By default, Prefect's client waits half a minute in all for the engine to come back.
    process = own.start("run", PREFECT_CLIENT_MAX_RETRIES="1")
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup")), 60)
    server = server_of(process)
    assert server is not None
    server.kill()
    out, err = process.communicate(timeout=patience(60))
    assert process.returncode == 0, err
    assert own.stored() == ["a0-1", "a0-2"]
    assert out.startswith("2 node backups: 2 stored\n")
    assert "its page does not show how the run ended" in err
    assert len(err) < 5000  # not every event that could not be sent
    assert own.left() == []


@pytest.mark.engine
def test_the_operators_engine_is_used_and_no_other_is_started(
    place: Place, appliances: SimulatedFleet, engine_server: str
) -> None:
    ended = place.run("run", "a0-1", PREFECT_API_URL=engine_server)
    assert ended.returncode == 0, ended.stderr
    assert engine_server in ended.stderr
    [manifest] = place.manifests()
    run = httpx.get(f"{engine_server}/flow_runs/{json.loads(manifest.read_text())['flow_run']}", auth=logged_in())
    assert run.json()["state"]["name"] == "Completed"
    assert not place.engine.exists()
    assert place.left() == []


@pytest.mark.parametrize("listens", [False, True])
def test_an_engine_that_does_not_answer_is_an_error_within_seconds(
    place: Place, appliances: SimulatedFleet, listens: bool
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        ended = place.run("run", PREFECT_API_URL=address)
        assert time.monotonic() - began < min(patience(30), 60)
    assert ended.returncode == 1
    assert f"error: the engine at {address} d" in ended.stderr
    assert "HINT: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert appliances.calls() == []


@pytest.mark.engine
def test_the_demo_stores_three_sealed_artifacts_and_its_drill_works_as_printed(own: Place) -> None:
    ended = own.run("demo", "--directory", str(own.root / "demo place"))
    assert ended.returncode == 0, ended.stderr
    assert len(list((own.root / "demo place" / "vault").glob("*/*/backup.tar.gz.enc"))) == 3
    [command] = re.findall(r"^ *a0backup (drill .*)$", ended.stdout, re.MULTILINE)
    drilled = own.run(*shlex.split(command))
    assert drilled.returncode == 0, drilled.stderr
    assert drilled.stdout.count(" ok: 5 members") == 3
    assert own.left() == []


@pytest.mark.engine
def test_a_terminal_shows_a_live_table_and_then_a_clean_report(
    place: Place, appliances: SimulatedFleet, engine_server: str
) -> None:
    appliances.tell("a0-1", "backup", "duration", seconds=2)
    terminal = Terminal(place, "run", PREFECT_API_URL=engine_server)
    assert terminal.exit_code(60) == 0
    assert re.search(rb"a0-1 +await +\d", terminal.shown)  # a row of the table
    assert terminal.shown.count(b"\x1b[?25l") == terminal.shown.count(b"\x1b[?25h") == 1  # cursor hidden, shown
    headline = b"2 node backups: 2 stored\r\n"
    _, found, report = terminal.shown.partition(headline)
    assert found == headline
    assert b"\x1b" not in report
    nodes = [line.split()[:2] for line in report.splitlines() if not line.startswith(b"warning: ")]
    assert nodes == [[b"a0-1", b"stored"], [b"a0-2", b"stored"]]


@pytest.mark.engine
def test_a_second_ctrl_c_ends_the_run_at_once_and_restores_the_cursor(
    place: Place, appliances: SimulatedFleet, engine_server: str
) -> None:
    appliances.tell("a0-1", "backup-retrieve", "hang", ignore_sigterm=True)
    terminal = Terminal(place, "run", "a0-1", PREFECT_API_URL=engine_server)
    assert eventually(lambda: bool(appliances.calls("a0-1", "backup-retrieve")), 60)
    terminal.press_ctrl_c()
    assert eventually(lambda: b"interrupted" in terminal.shown)
    terminal.press_ctrl_c()
    assert terminal.exit_code(5) == 130
    assert terminal.shown.rindex(b"\x1b[?25h") > terminal.shown.rindex(b"\x1b[?25l")
    assert b"Traceback" not in terminal.shown
    assert place.left() == []
