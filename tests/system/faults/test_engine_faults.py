"""What can happen to the engine while nodes are backed up. Each time nothing is lost, and the next run is healthy."""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from a0backup.vault.lock import is_held, read_holder
from simulator.fleet import SimulatedFleet
from tests.support.deployed import BIN, Deployed, PatientClient, left_at_work
from tests.support.extent import deep
from tests.support.login import logged_in
from tests.support.patience import patience, until
from tests.support.place import STEPS_OF_A_NODE, Place, gone, server_of
from tests.system.faults.engines import (
    A_WHILE,
    FILE_LEASES,
    Running,
    assert_clean,
    assert_next_run_is_healthy,
    end_all_in,
    made,
    operators_server,
    retrieved,
    worker_of,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow, deep]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")

Record = Callable[[str, object], None]


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        fleet.fleet_yaml(tmp_path / "fleet.yaml", polling={"deadline": "5m"})
        yield fleet


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Yield a place without its own engine yet."""
    place = Place(tmp_path)
    yield place
    end_all_in(tmp_path)


@pytest.fixture
def own(place: Place, migrated_home: Path) -> Place:
    """Return a place whose engine already has its database."""
    shutil.copytree(migrated_home, place.engine)
    return place


def hold(appliances: SimulatedFleet, node: str) -> None:
    """Make the node report 'in progress' for the next backup that is started, until it is told to forget."""
    started = len(appliances.calls(node, "backup"))
    appliances.tell(node, "backup", "duration", seconds=3, times=1)
    until(lambda: len(appliances.calls(node, "backup")) > started, f"a backup of {node} is started")
    appliances.tell(node, "backup-status", "in_progress")


def is_done(folder: Path, node: str) -> bool:
    """Return whether the node's artifact is in the vault there, with nothing of the work on it left."""
    vault = folder / "vault" / node
    return bool([*vault.glob("*/manifest.json")]) and not [*vault.glob("journal*"), *vault.glob("work/*")]


def note(record_property: Record, fault: str, *, points: int = 1, killed: int = 0, resumed: int = 0) -> None:
    found = {"fault": fault, "points": points, "killed": killed, "resumed": resumed, "violations": 0}
    record_property("faults", [found])


# -- the API goes away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["after the outage", "within the outage"])
def test_an_api_outage_of_a_minute_costs_the_run_nothing_but_time(
    place: Place, appliances: SimulatedFleet, own_home: Path, ends: str, record_property: Record
) -> None:
    with operators_server(own_home) as server:
        run = Running(place, "run", "run", PREFECT_API_URL=server.api)
        hold(appliances, "a0-1")
        until(lambda: is_done(place.root, "a0-2"), "a0-2 is stored")
        server.kill()
        back = time.monotonic() + 60
        if ends == "within the outage":
            appliances.forget()
            until(lambda: place.stored() == ["a0-1", "a0-2"], "a0-1 is stored without the engine")
        until(lambda: time.monotonic() > back, "the outage ends")
        server.start()
        appliances.forget()
        assert run.exit_code() == 0, run.err
        assert place.stored() == ["a0-1", "a0-2"]
        assert made(appliances) == {"a0-1": 1, "a0-2": 1}
        assert run.out.startswith("2 node backups: 2 stored\n")
        # What was done during the outage was sent afterwards.
        assert _states(own_home) == (["Completed"], Counter(Completed=2 * STEPS_OF_A_NODE + 1))
        assert_clean(place, appliances)
        assert_next_run_is_healthy(place, appliances, PREFECT_API_URL=server.api)
    note(record_property, "API away for a minute", killed=1, resumed=1)


def _states(home: Path) -> tuple[list[str], Counter[str]]:
    """Return the states of the flow runs, and how many task runs are in each state, from the server's database."""
    database = sqlite3.connect(home / "prefect.db")
    try:
        flow_runs = [state for (state,) in database.execute("select state_name from flow_run order by created")]
        return flow_runs, Counter(state for (state,) in database.execute("select state_name from task_run"))
    finally:
        database.close()


def test_an_operators_api_that_is_gone_for_good_does_not_affect_vault_report_and_exit_code(
    place: Place, appliances: SimulatedFleet, own_home: Path, record_property: Record
) -> None:
    with operators_server(own_home) as server:
        run = Running(place, "run", "run", PREFECT_API_URL=server.api)
        hold(appliances, "a0-1")
        until(lambda: is_done(place.root, "a0-2"), "a0-2 is stored")
        server.kill()
        appliances.forget()
        # Prefect's client retries for minutes.
        assert run.exit_code(600) == 0, run.err
    assert place.stored() == ["a0-1", "a0-2"]
    assert run.out.startswith("2 node backups: 2 stored\n")
    assert "its page does not show how the run ended" in run.err
    assert len(run.err) < 5000  # not every event that could not be sent
    assert_clean(place, appliances)
    refused = place.run("run", PREFECT_API_URL=server.api)
    assert refused.returncode == 1
    assert f"error: the engine at {server.api} does not answer" in refused.stderr
    assert made(appliances) == {"a0-1": 1, "a0-2": 1}
    assert_next_run_is_healthy(place, appliances)
    note(record_property, "API away for good", killed=1)


def test_a_night_under_a_worker_survives_an_api_outage_of_a_minute(
    tmp_path: Path, appliances: SimulatedFleet, own_home: Path, record_property: Record
) -> None:
    with (
        operators_server(own_home, PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=FILE_LEASES) as server,
        worker_of(server, tmp_path / "operator", appliances) as deployed,
    ):
        night = start_nightly(deployed)
        hold(appliances, "a0-1")
        until(lambda: is_done(deployed.folder, "a0-2"), "a0-2 is stored")
        server.kill()
        back = time.monotonic() + 60
        until(lambda: time.monotonic() > back, "the outage ends")
        server.start()
        appliances.forget()
        assert deployed.ends_as("Completed", night, 240)
        assert stored_by(deployed) == ["a0-1", "a0-2"]
        assert made(appliances) == {"a0-1": 1, "a0-2": 1}
        assert_folder_is_clean(deployed)
        following = start_nightly(deployed)
        assert deployed.ends_as("Completed", following, 240)
        assert made(appliances) == {"a0-1": 2, "a0-2": 2}
        assert_folder_is_clean(deployed)
    note(record_property, "API away for a minute, under a worker", killed=1, resumed=1)


def test_prefect_ends_a_night_whose_lease_a_restarted_server_forgot_and_the_next_one_finishes_it(
    tmp_path: Path, appliances: SimulatedFleet, own_home: Path, record_property: Record
) -> None:
    # Leases in memory are Prefect's default: the flow engine cannot renew its own and cancels the run.
    with operators_server(own_home) as server, worker_of(server, tmp_path / "operator", appliances) as deployed:
        limit_nightly(server.api)
        night = start_nightly(deployed)
        hold(appliances, "a0-1")
        until(lambda: is_done(deployed.folder, "a0-2"), "a0-2 is stored")
        server.kill()
        server.start()
        # It renews every 225 s.
        assert deployed.ends_as("Crashed", night, 480)
        assert_nothing_runs(deployed)
        appliances.forget()
        following = start_nightly(deployed)
        assert deployed.ends_as("Completed", following, 240)
        assert made(appliances) == {"a0-1": 1, "a0-2": 2}
        assert stored_by(deployed) == ["a0-1", "a0-2", "a0-2"]
        assert_folder_is_clean(deployed)
    note(record_property, "API restarted, leases in memory", killed=1, resumed=1)


def start_nightly(deployed: Deployed) -> str:
    with PatientClient(base_url=deployed.environment["PREFECT_API_URL"], auth=logged_in()) as client:
        nightly = client.get("deployments/name/backup-fleet/nightly").raise_for_status().json()["id"]
        return str(client.post(f"deployments/{nightly}/create_flow_run", json={}).raise_for_status().json()["id"])


def run_by_hand(deployed: Deployed) -> None:
    """Run `a0backup run` in the worker's folder, on the worker's server. It must succeed."""
    command = [str(BIN / "a0backup"), "run"]
    ended = subprocess.run(
        command,
        cwd=deployed.folder,
        env=deployed.environment,
        capture_output=True,
        text=True,
        timeout=patience(2 * A_WHILE),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def stored_by(deployed: Deployed) -> list[str]:
    return sorted(path.parents[1].name for path in deployed.folder.glob("vault/*/*/manifest.json"))


def assert_nothing_runs(deployed: Deployed) -> None:
    until(lambda: deployed.a0clis() == [], "no a0cli is left", 30)
    assert not any(is_held(lock) for lock in deployed.folder.glob("vault/*/lock"))


def assert_folder_is_clean(deployed: Deployed) -> None:
    assert_nothing_runs(deployed)
    assert [*left_at_work(deployed.folder / "vault"), *deployed.folder.glob("vault/*/journal*")] == []


# -- its database ------------------------------------------------------------------------------------------------------


@contextmanager
def locked_database(home: Path) -> Iterator[None]:
    database = sqlite3.connect(home / "prefect.db", isolation_level=None, timeout=60)
    try:
        database.execute("begin exclusive")
        yield
        database.execute("rollback")
    finally:
        database.close()


def test_a_temporarily_locked_database_costs_the_run_nothing_but_time(
    own: Place, appliances: SimulatedFleet, record_property: Record
) -> None:
    run = Running(own, "run", "run")
    hold(appliances, "a0-1")
    with locked_database(own.engine):
        appliances.forget()
        freed = time.monotonic() + 20
        until(lambda: own.stored() == ["a0-1", "a0-2"], "both are stored while it is locked")
        until(lambda: time.monotonic() > freed, "20 s are over")
    assert run.exit_code() == 0, run.err
    assert own.stored() == ["a0-1", "a0-2"]
    assert _states(own.engine) == (["Completed"], Counter(Completed=2 * STEPS_OF_A_NODE + 1))
    assert_clean(own, appliances)
    assert_next_run_is_healthy(own, appliances)
    note(record_property, "SQLite locked")


# -- signals and the UI ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_next_run_finishes_a_night_whose_worker_was_stopped(
    tmp_path: Path, appliances: SimulatedFleet, own_home: Path, number: signal.Signals, record_property: Record
) -> None:
    with operators_server(own_home) as server, worker_of(server, tmp_path / "operator", appliances) as deployed:
        night = start_nightly(deployed)
        hold(appliances, "a0-1")
        until(lambda: is_done(deployed.folder, "a0-2"), "a0-2 is stored")
        [flow_process] = psutil.Process(deployed.worker.pid).children()
        deployed.worker.send_signal(number)
        deployed.worker.wait(patience(60))
        until(lambda: gone(flow_process), "the flow's process is gone")
        assert_nothing_runs(deployed)
        assert deployed.state(night) != "Completed"
        appliances.forget()
        run_by_hand(deployed)
        assert made(appliances) == {"a0-1": 1, "a0-2": 2}
        assert stored_by(deployed) == ["a0-1", "a0-2", "a0-2"]
        assert_folder_is_clean(deployed)
    note(record_property, f"{number.name} to the worker", killed=1, resumed=1)


def test_a_retry_of_a_failed_run_stores_what_failed_and_touches_nothing_stored(
    tmp_path: Path, appliances: SimulatedFleet, own_home: Path, record_property: Record
) -> None:
    with operators_server(own_home) as server, worker_of(server, tmp_path / "operator", appliances) as deployed:
        appliances.tell("a0-2", "backup-retrieve", "drop")
        night = start_nightly(deployed)
        assert deployed.ends_as("Failed", night, 240)
        assert stored_by(deployed) == ["a0-1"]
        tried = retrieved(appliances)
        assert tried["a0-1"] == 1
        appliances.forget()
        # As the UI's Retry button does.
        deployed.set_state(night, type="SCHEDULED", name="AwaitingRetry")
        until(lambda: deployed.get(f"flow_runs/{night}")["run_count"] == 2, "it runs again")
        assert deployed.ends_as("Completed", night, 240)
        assert stored_by(deployed) == ["a0-1", "a0-2"]
        assert made(appliances) == {"a0-1": 1, "a0-2": 1}
        assert retrieved(appliances) == {"a0-1": 1, "a0-2": tried["a0-2"] + 1}
        assert len(appliances.calls("a0-1", "backup-delete")) == 1
        assert_folder_is_clean(deployed)
        following = start_nightly(deployed)
        assert deployed.ends_as("Completed", following, 240)
        assert made(appliances) == {"a0-1": 2, "a0-2": 2}
        assert_folder_is_clean(deployed)
    note(record_property, "Prefect's own retry of a failed run", resumed=1)


# -- a stopped run -----------------------------------------------------------------------------------------------------


def waits_for(waiting: Running, holder: Running) -> bool:
    return any(f"(pid {holder.process.pid}," in line for line in waiting.waits())


@pytest.mark.parametrize("where", ["while the node makes it", "while it is retrieved"])
def test_a_run_stopped_while_another_waits_and_continued_later_makes_one_backup_for_both(
    place: Place, appliances: SimulatedFleet, engine_server: str, where: str, record_property: Record
) -> None:
    first = Running(place, "first", "run", "a0-1", PREFECT_API_URL=engine_server)
    if where == "while the node makes it":
        hold(appliances, "a0-1")
    else:
        appliances.tell("a0-1", "backup-retrieve", "drip", bytes_per_second=8192, times=1)
        until(lambda: bool(appliances.calls("a0-1", "backup-retrieve")), "it is being retrieved")
    first.process.send_signal(signal.SIGSTOP)
    second = Running(place, "second", "run", "a0-1", PREFECT_API_URL=engine_server)
    until(lambda: waits_for(second, first), "the second run waits for the first, by name")
    appliances.forget()
    assert second.process.poll() is None
    first.process.send_signal(signal.SIGCONT)
    assert first.exit_code() == 0, first.err
    assert second.exit_code() == 0, second.err
    assert made(appliances)["a0-1"] == 1
    assert retrieved(appliances)["a0-1"] == 1
    assert place.stored() == ["a0-1"]
    assert_clean(place, appliances, "a0-1")
    assert_next_run_is_healthy(place, appliances, PREFECT_API_URL=engine_server)
    note(record_property, "a run stopped and continued while another waits", resumed=1)


def test_a_run_that_waits_for_a_stopped_one_until_its_deadline_fails_and_names_it(
    place: Place, appliances: SimulatedFleet, engine_server: str, record_property: Record
) -> None:
    appliances.fleet_yaml(place.root / "fleet.yaml", lock_deadline="3s", polling={"deadline": "5m"})
    first = Running(place, "first", "run", "a0-1", PREFECT_API_URL=engine_server)
    hold(appliances, "a0-1")
    holder = read_holder(place.root / "vault/a0-1/lock")
    assert holder is not None
    first.process.send_signal(signal.SIGSTOP)
    second = Running(place, "second", "run", "a0-1", PREFECT_API_URL=engine_server)
    assert second.exit_code() == 1
    assert str(holder) in second.out
    assert f"(pid {first.process.pid}," in second.out
    assert "HINT: " in second.out
    # The other node is not delayed by it.
    third = Running(place, "third", "run", PREFECT_API_URL=engine_server)
    assert third.exit_code() == 3
    assert place.stored() == ["a0-2"]
    appliances.forget()
    first.process.send_signal(signal.SIGCONT)
    assert first.exit_code() == 0, first.err
    assert made(appliances) == {"a0-1": 1, "a0-2": 1}
    assert place.stored() == ["a0-1", "a0-2"]
    assert_clean(place, appliances)
    assert_next_run_is_healthy(place, appliances, PREFECT_API_URL=engine_server)
    note(record_property, "a run stopped until the waiting one's deadline", points=2, resumed=1)


# -- a leaked slot -----------------------------------------------------------------------------------------------------


def limit_nightly(api: str) -> None:
    """Limit the engine to one night at a time, as an operator may want. Our own deployments have no such limit."""
    limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "ENQUEUE"}}
    with PatientClient(base_url=api, auth=logged_in()) as client:
        nightly = client.get("deployments/name/backup-fleet/nightly").raise_for_status().json()["id"]
        client.patch(f"deployments/{nightly}", json=limit).raise_for_status()


def test_the_slot_of_a_killed_night_blocks_no_run_by_hand_and_is_free_again_after_some_minutes(
    tmp_path: Path, appliances: SimulatedFleet, own_home: Path, record_property: Record
) -> None:
    with (
        operators_server(own_home, PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=FILE_LEASES) as server,
        worker_of(server, tmp_path / "operator", appliances) as deployed,
    ):
        limit_nightly(server.api)
        dead = start_nightly(deployed)
        hold(appliances, "a0-1")
        until(lambda: is_done(deployed.folder, "a0-2"), "a0-2 is stored")
        [flow_process] = psutil.Process(deployed.worker.pid).children()
        # The worker first: it would report the crash and release the slot.
        deployed.worker.kill()
        flow_process.kill()
        deployed.worker.wait()
        appliances.forget()
        deployed.start_worker()
        night = start_nightly(deployed)
        until(lambda: deployed.state(night) == "AwaitingConcurrencySlot", "the next night waits for the slot")
        assert deployed.state(dead) == "Running"

        run_by_hand(deployed)
        assert made(appliances) == {"a0-1": 1, "a0-2": 2}
        assert_folder_is_clean(deployed)

        # Prefect's flow engine renews the slot for five minutes at a time. The server may be restarted meanwhile.
        server.kill()
        server.start()
        assert deployed.ends_as("Completed", night, 480)
        assert made(appliances) == {"a0-1": 2, "a0-2": 3}
        assert_folder_is_clean(deployed)
    note(record_property, "a leaked engine slot", killed=1, resumed=1)


# -- the server's life -------------------------------------------------------------------------------------------------


def test_a_server_whose_run_is_killed_during_its_start_is_gone_within_seconds(
    own: Place, appliances: SimulatedFleet, record_property: Record
) -> None:
    process = own.start("run")
    until(lambda: server_of(process) is not None, "the server is started")
    server = server_of(process)
    assert server is not None
    process.kill()
    _, err = process.communicate()
    assert "Traceback" not in err
    until(lambda: gone(server), "the server is gone", 20)
    assert own.left() == []
    assert appliances.calls() == []
    assert_next_run_is_healthy(own, appliances)
    note(record_property, "an orphaned server", killed=1)


def test_files_that_a_dead_engine_left_in_its_home_are_ignored(
    own: Place, appliances: SimulatedFleet, record_property: Record
) -> None:
    for name in ("alive", "serving", "server.log", "server.log.1"):
        (own.engine / name).write_text("1\n")
        (own.engine / name).chmod(0o644)
    assert_next_run_is_healthy(own, appliances)
    note(record_property, "stale files of an engine")


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fail_to_start(place: Place, appliances: SimulatedFleet) -> str:
    """Run, and return the error output. The run must fail with an error of the engine before any node is touched."""
    run = Running(place, "fails", "run")
    assert run.exit_code() == 1
    assert run.out == ""
    assert "error: the engine's home " in run.err
    assert "HINT: " in run.err
    assert appliances.calls() == []
    assert place.left() == []
    assert not left_at_work(place.root / "vault")
    return run.err


@as_root
@pytest.mark.parametrize("fault", ["read-only", "full", "no inode", "a folder in the place of a lock"])
def test_an_unwritable_home_of_the_engine_is_a_clear_error_before_any_node_is_touched(
    own: Place, appliances: SimulatedFleet, fault: str, record_property: Record
) -> None:
    if fault == "a folder in the place of a lock":
        (own.engine / "alive").unlink()
        (own.engine / "alive").mkdir()
        assert "Is a directory" in fail_to_start(own, appliances)
        (own.engine / "alive").rmdir()
    else:
        database = (own.engine / "prefect.db").read_bytes()
        with mounted(own.engine, "-o", "size=32m,nr_inodes=100"):
            (own.engine / "prefect.db").write_bytes(database)
            if fault == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", own.engine], check=True)
                assert "Read-only file system" in fail_to_start(own, appliances)
            else:
                use_up = fill if fault == "full" else use_up_inodes
                use_up(own.engine)
                assert "No space left on device" in fail_to_start(own, appliances)
    assert_next_run_is_healthy(own, appliances)
    note(record_property, f"an engine's home: {fault}")


def use_up_inodes(folder: Path) -> None:
    for number in itertools.count():
        try:
            (folder / f"filler-{number}").touch()
        except OSError:
            return


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            return


@as_root
def test_a_disk_that_fills_below_the_engine_during_a_run_loses_nothing(
    own: Place, appliances: SimulatedFleet, record_property: Record
) -> None:
    spare = own.root / "spare"
    shutil.copytree(own.engine, spare)
    with mounted(own.engine, "-o", "size=64m"):
        shutil.copytree(spare, own.engine, dirs_exist_ok=True)
        run = Running(own, "run", "run")
        hold(appliances, "a0-1")
        until(lambda: is_done(own.root, "a0-2"), "a0-2 is stored")
        fill(own.engine)
        appliances.forget()
        assert run.exit_code(600) == 0, run.err
        assert own.stored() == ["a0-1", "a0-2"]
        assert run.out.startswith("2 node backups: 2 stored\n")
        assert_clean(own, appliances)
        (own.engine / "filler").unlink()
        assert_next_run_is_healthy(own, appliances)
    note(record_property, "a full disk below the engine in the middle")
