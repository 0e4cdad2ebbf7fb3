"""The engine's housekeeping: history expires, an upgrade is tried on a copy first, a dead worker's slot is released."""

import base64
import contextlib
import os
import pwd
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.server import OwnServer
from simulator.fleet import REPOSITORY, SimulatedFleet
from tests.support.deployed import PatientClient
from tests.support.login import logged_in
from tests.support.parts import Part, found, free_port, needed
from tests.support.patience import eventually, patience

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BIN = Path(sys.executable).parent
A_LONG_TIME_AGO = datetime.now(UTC) - timedelta(days=91)

# Settings that delete the history of runs after 90 days.
RETENTION = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7776000",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P30D",
}
# As after an upgrade from a Prefect of spring 2025, whose tables, columns and foreign keys differ from today's.
EARLIER = "7655f31c5157"


class Home:
    """A home of our own engine, and what happens in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.api = ""

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of a command that uses the server running here now."""
        mine = {"PREFECT_HOME": str(self.path), "A0_BACKUP_PASSWORD": "Canary7Password"}
        if self.api:
            mine |= {"PREFECT_API_URL": self.api, "PREFECT_API_AUTH_STRING": ":".join(logged_in(self.path))}
        return {**{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}, **mine}

    @contextmanager
    def served(self, settings: Mapping[str, str] | None = None) -> Iterator[httpx.Client]:
        """Run our own server here, with *settings* in addition to its own."""

        class Tuned(OwnServer):
            def _environment(self, port: int) -> dict[str, str]:
                return super()._environment(port) | dict(settings or {})

        server = Tuned(self.path)
        server.start()
        self.api = server.api
        try:
            with PatientClient(base_url=server.api, auth=logged_in(self.path)) as client:
                yield client
        finally:
            server.stop()
            self.api = ""

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what the database answers. No server may be running on it."""
        with contextlib.closing(sqlite3.connect(self.path / "prefect.db")) as database, database:
            return database.execute(statement, values).fetchall()

    def prefect(self, *arguments: str, **settings: str) -> str:
        command = [BIN / "prefect", "--no-prompt", *arguments]
        environment = self.environment | settings
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(180))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def checked(self, fleet_yaml: Path) -> str:
        """Run `a0backup check` on the server running here and return the id of its flow run."""
        known = {run["id"] for run in self.runs()}
        command = [BIN / "a0backup", "check", "--fleet", fleet_yaml]
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=patience(120))
        assert ended.returncode == 0, ended.stderr
        [run] = [each for each in self.runs() if each["id"] not in known]
        assert run["state"]["name"] == "Completed"
        return str(run["id"])

    def runs(self) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.api}/flow_runs/filter", json={}, auth=logged_in(self.path), timeout=patience(60))
        found: list[dict[str, Any]] = answer.raise_for_status().json()
        return found

    def rows_of(self, run: str) -> dict[str, int]:
        """Return how many rows the database has for a run, by table."""
        tables = {"flow_run": "id", "task_run": "flow_run_id", "log": "flow_run_id", "artifact": "flow_run_id"}
        tables |= {"flow_run_state": "flow_run_id"}
        return {
            table: self.ask(f"select count(*) from {table} where {column} = ?", run)[0][0]
            for table, column in tables.items()
        }


@pytest.fixture
def home(own_home: Path) -> Home:
    return Home(own_home)


@pytest.fixture
def fleet_yaml(tmp_path: Path) -> Iterator[Path]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet.fleet_yaml(tmp_path / "fleet.yaml")


# -- history expires ---------------------------------------------------------------------------------------------------


def test_runs_that_ended_90_days_ago_are_deleted_and_younger_or_running_ones_are_kept(
    home: Home, fleet_yaml: Path
) -> None:
    with home.served() as client:
        old, young = home.checked(fleet_yaml), home.checked(fleet_yaml)
        flow = client.get(f"flow_runs/{old}").json()["flow_id"]
        running = client.post("flow_runs/", json={"flow_id": flow, "state": {"type": "RUNNING", "name": "Running"}})
        under_way = running.raise_for_status().json()["id"]
    for run in (old, young):
        assert all(home.rows_of(run).values()), home.rows_of(run)
    assert home.ask("update flow_run set end_time = ? where id = ? returning id", _text(A_LONG_TIME_AGO), old)
    assert home.ask("update flow_run set start_time = ? where id = ? returning id", _text(A_LONG_TIME_AGO), under_way)
    old_events = home.ask("update events set occurred = ? where id in (select id from events limit 5) returning id",
                          _text(A_LONG_TIME_AGO))  # fmt: skip

    # No shorter interval is needed: the vacuum also runs at each start of the server, even of one that lives for a
    # single run.
    with home.served(RETENTION) as client:
        assert eventually(lambda: client.get(f"flow_runs/{old}").status_code == httpx.codes.NOT_FOUND, 60)
        assert client.get(f"flow_runs/{young}").is_success
        assert client.get(f"flow_runs/{under_way}").json()["state"]["name"] == "Running"
        # Its children are deleted after it.
        artifacts = {"artifacts": {"flow_run_id": {"any_": [old]}}}
        assert eventually(lambda: client.post("artifacts/filter", json=artifacts).json() == [], 60)
        latest = client.get("artifacts/check-report/latest").raise_for_status().json()
        assert latest["flow_run_id"] == young
    assert set(home.rows_of(old).values()) == {0}
    assert all(home.rows_of(young).values())
    ids = ",".join("?" * len(old_events))
    assert home.ask(f"select id from events where id in ({ids})", *[row[0] for row in old_events]) == []
    assert home.ask("select count(*) from events")[0][0] > 0


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def test_a_run_leaves_nothing_in_the_engines_storage_except_its_error_if_it_failed(tmp_path: Path) -> None:
    """Prefect always writes the error of a failed flow, and never removes it: some hundred bytes a night."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "A0_BACKUP_PASSWORD": "Canary7Password"}
    del environment["PREFECT_HOME"]
    left = []
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        file = fleet.fleet_yaml(tmp_path / "fleet.yaml")
        for code in (0, 3):
            command = [BIN / "a0backup", "run", "--fleet", file]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(180))
            assert ended.returncode == code, ended.stderr
            engine = tmp_path / "state/a0backup/engine"
            left.append([path for path in engine.glob("storage/**/*") if path.is_file()])
            fleet.tell("a0-2", "backup-retrieve", "flip")
    assert (engine / "prefect.db").exists()
    assert left[0] == []
    [error] = left[1]
    assert b"RunFailedError" in base64.b64decode(error.read_bytes())
    assert error.stat().st_size < 1000


# -- an upgrade --------------------------------------------------------------------------------------------------------


def upgrade_as_printed() -> str:
    """Return the runnable blocks on the upgrade of our own engine, joined."""
    section = (REPOSITORY / "docs/upgrade.md").read_text().partition("\n## Upgrading\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^<!-- runnable -->\n```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def test_the_printed_upgrade_of_our_own_engine_is_tried_on_a_copy_and_keeps_its_runs(
    home: Home, fleet_yaml: Path, tmp_path: Path
) -> None:
    with home.served():
        run = home.checked(fleet_yaml)
    home.prefect("server", "database", "downgrade", "--yes", "--revision", EARLIER)
    before = home.rows_of(run)
    assert all(before.values())
    state = tmp_path / "state"
    (state / "a0backup").mkdir(parents=True)
    home.path = home.path.rename(state / "a0backup/engine")

    script = upgrade_as_printed()
    assert script
    environment = home.environment | {"XDG_STATE_HOME": str(state), "PATH": f"{BIN}:{os.environ['PATH']}"}
    del environment["PREFECT_HOME"]
    ended = subprocess.run(
        ["sh", "-e"],
        input=script,
        cwd=fleet_yaml.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert ended.returncode == 0, ended.stderr
    counts = re.findall(r"^(\d+) runs in .*/(engine\S*)/prefect.db$", ended.stdout, re.MULTILINE)
    assert counts == [("1", "engine.before"), ("2", "engine")]
    assert sorted(path.name for path in (state / "a0backup").iterdir()) == ["engine", "engine.before"]
    assert home.ask("select version_num from alembic_version") == [(EARLIER,)]

    with home.served() as client:
        assert client.get(f"flow_runs/{run}").json()["state"]["name"] == "Completed"
        following = home.checked(fleet_yaml)
        assert {found["id"] for found in home.runs()} == {run, following}
    assert home.ask("select version_num from alembic_version") != [(EARLIER,)]
    assert home.rows_of(run) == before


@contextmanager
def postgresql() -> Iterator[tuple[int, Callable[..., None]]]:
    """Run PostgreSQL with a database `prefect`. Yield its port and a function that runs one of its programs on it."""
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None  # it refuses to run as root
    # Not below pytest's folders, which only their owner can enter.
    room, port = Path(tempfile.mkdtemp(prefix="a0backup-upgrade-")), free_port()
    connection = {"PATH": os.defpath, "LC_ALL": "C", "PGHOST": str(room), "PGPORT": str(port), "PGUSER": "prefect"}

    def start(program: str, *arguments: str, **more: Any) -> Part:
        command = [found(program) or program, *arguments]
        return Part(command, room / f"{program}.log", folder=room, environment=connection, user=user, **more)

    try:
        if user is not None:
            os.chown(room, user.pw_uid, user.pw_gid)
        start("initdb", "-D", "files", "-U", "prefect", "-E", "UTF8", "--auth=trust", "--no-sync").ends_well()
        options = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={room}", "fsync=off"]
        settings = [word for option in options for word in ("-c", option)]
        server = start("postgres", "-D", "files", *settings, polite=signal.SIGINT)
        try:
            server.wait_until(lambda: server.said("ready to accept connections"))
            start("createdb", "prefect").ends_well()
            yield port, lambda *command: start(*command).ends_well()
        finally:
            server.end()
    finally:
        shutil.rmtree(room)


def test_an_upgrade_on_postgresql_is_tried_on_a_copy_and_keeps_its_runs(home: Home, fleet_yaml: Path) -> None:
    needed("initdb", "postgres", "createdb", "pg_dump", "pg_restore", "setpriv")
    with postgresql() as (port, program):

        def database(name: str) -> dict[str, str]:
            url = f"postgresql+asyncpg://prefect@127.0.0.1:{port}/{name}"
            return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}

        with home.served(database("prefect")):
            run = home.checked(fleet_yaml)
        home.prefect("server", "database", "downgrade", "--yes", "--revision", "-8", **database("prefect"))

        program("pg_dump", "-Fc", "-f", "prefect-before.dump", "prefect")
        program("createdb", "-T", "prefect", "prefect_tried")
        home.prefect("server", "database", "upgrade", "--yes", **database("prefect_tried"))
        home.prefect("server", "database", "upgrade", "--yes", **database("prefect"))
        # The way back: the dump is complete and belongs to the earlier Prefect.
        program("createdb", "prefect_back")
        program("pg_restore", "--exit-on-error", "-d", "prefect_back", "prefect-before.dump")
        home.prefect("server", "database", "upgrade", "--yes", **database("prefect_back"))
        as_shipped = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false"}
        for name in ("prefect_tried", "prefect", "prefect_back"):
            with home.served(database(name) | as_shipped) as client:
                assert client.get(f"flow_runs/{run}").json()["state"]["name"] == "Completed", name
                assert len(client.post("logs/filter", json={}).json()) > 0


# -- the slot of a dead worker -----------------------------------------------------------------------------------------

_HOLDER = """
import asyncio, sys
from tasks.slots import slots

async def hold():
    async with slots("a0-1", deadline=5):
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold())
"""


def limit(client: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"v2/concurrency_limits/{name}").raise_for_status().json()
    return found


def is_free(client: httpx.Client, name: str) -> bool:
    return bool(limit(client, name)["active_slots"] == 0)


def test_the_slot_of_a_killed_worker_is_free_again_within_a_minute_even_if_the_server_died_with_it(
    home: Home, migrated_home: Path, tmp_path: Path
) -> None:
    """60 s is the shortest lease that Prefect allows. The server looks for expired leases every 15 s."""
    from tasks.slots import ALL_NODES, limit_of

    other = Home(Path(shutil.copytree(migrated_home, tmp_path / "other")))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(other.served())]
        first = stack.enter_context(contextlib.ExitStack())
        clients.append(first.enter_context(home.served()))
        for client, each in zip(clients, (other, home), strict=True):
            for name in (ALL_NODES, limit_of("a0-1")):
                wanted = {"name": name, "limit": 1, "active": True}
                client.post("v2/concurrency_limits/", json=wanted).raise_for_status()
            command = [sys.executable, "-c", _HOLDER]
            with subprocess.Popen(
                command, cwd=REPOSITORY, env=each.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as holder:
                assert holder.stdout is not None
                assert holder.stdout.readline() == b"held\n"
                assert limit(client, limit_of("a0-1"))["active_slots"] == 1
                holder.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        first.close()
        again = stack.enter_context(home.served())
        for client in (clients[0], again):
            for name in (ALL_NODES, limit_of("a0-1")):
                assert limit(client, name)["active_slots"] == 1
        for client in (clients[0], again):
            for name in (ALL_NODES, limit_of("a0-1")):
                assert eventually(partial(is_free, client, name), 90)
        assert time.monotonic() - killed < patience(90)
        # The next night gets the slot.
        with subprocess.Popen(
            [sys.executable, "-c", _HOLDER],
            cwd=REPOSITORY,
            env=home.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert limit(again, ALL_NODES)["active_slots"] == 1
            holder.communicate(timeout=patience(20))
        assert eventually(partial(is_free, again, ALL_NODES))
