import asyncio
import contextlib
import functools
import http.client
import http.server
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from a0backup.errors import EngineError
from deployments.connections import MAX_LOG, bound_log
from deployments.engine_runs import CRASHED, drained
from deployments.home import credentials, default_home, operators_api, use_api
from deployments.server import lasting_server, own_server, served_api, serving
from tests.support.login import logged_in
from tests.support.paths import REPOSITORY
from tests.support.patience import eventually, patience

get, post = (functools.partial(ask, timeout=patience(60)) for ask in (httpx.get, httpx.post))

# A process with its own server and, on it, a flow whose one task waits.
HOLDER = """
import asyncio, sys
from pathlib import Path
from deployments.home import use_api
from deployments.server import own_server

with own_server(Path(sys.argv[1])) as api, use_api(api, Path(sys.argv[1])):
    from prefect import flow, task
    from prefect.runtime import flow_run

    @task
    async def wait():
        print(api, flow_run.id, flush=True)
        await asyncio.sleep(600)

    @flow
    async def hold():
        await wait()

    asyncio.run(hold())
"""


@contextmanager
def holder(home: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run a process with a server in *home*. Yield the process, the API address and the id of its flow run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    with process:
        try:
            assert process.stdout is not None
            api, flow_run = process.stdout.readline().split()
            yield process, api, flow_run
        finally:
            process.kill()


def states(api: str, flow_run: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Return the states of the flow run and of its task runs. A task run appears a moment before its state does."""
    of_run = {"flow_runs": {"id": {"any_": [flow_run]}}}
    (flow,) = post(f"{api}/flow_runs/filter", json=of_run, auth=logged_in()).raise_for_status().json()
    tasks = post(f"{api}/task_runs/filter", json=of_run, auth=logged_in()).raise_for_status().json()
    return flow["state"], [task["state"] for task in tasks if task["state"]]


def servers(of: psutil.Process) -> list[psutil.Process]:
    """Return the servers that this process itself holds. The one that all tests share has a keeper."""
    return [child for child in of.children() if any("_server_child" in word for word in child.cmdline())]


@pytest.mark.engine
@pytest.mark.slow
def test_the_server_serves_api_and_ui_from_a_private_home_and_outlives_a_stop_signal_but_not_its_parent(
    own_home: Path,
) -> None:
    own_home.chmod(0o755)
    with holder(own_home) as (process, api, _):
        (server,) = servers(psutil.Process(process.pid))
        assert get(f"{api}/health").json() is True
        page = get(
            api.removesuffix("/api"), headers={"accept": "text/html"}, follow_redirects=True, timeout=patience(60)
        )
        assert "<html" in page.text
        assert get(api.replace("/api", "/ui-settings")).json()["api_url"] == api
        if os.geteuid() == 0:  # its memory is private: only root can look
            assert {connection.laddr.ip for connection in server.net_connections("tcp")} == {"127.0.0.1"}
        assert stat.S_IMODE(own_home.stat().st_mode) == 0o700
        assert stat.S_IMODE((own_home / "server.log").stat().st_mode) == 0o600
        server.send_signal(signal.SIGINT)
        server.send_signal(signal.SIGTERM)
        assert get(f"{api}/health").json() is True
        process.kill()
        process.wait()
        assert eventually(lambda: not server.is_running())


@pytest.mark.engine
@pytest.mark.slow
def test_the_server_keeps_an_idle_connection_longer_than_its_clients_use_it(own_home: Path) -> None:
    with own_server(own_home) as api:
        url = httpx.URL(api)
        connection = http.client.HTTPConnection(url.host, url.port)
        try:
            connection.request("GET", f"{url.path}/health")
            assert connection.getresponse().read() == b"true"
            # Prefect's own client uses it for 5 s. A closed connection is readable.
            assert select.select([connection.sock], [], [], 8) == ([], [], [])
        finally:
            connection.close()


@pytest.mark.engine
@pytest.mark.slow
def test_the_server_sleeps_while_nothing_runs(own_home: Path) -> None:
    """Otherwise `a0backup serve` uses up a core of the machine, night and day."""

    def sleeps_mostly(server: psutil.Process) -> bool:
        # Not measured by CPU time: a process that wants to run is not sleeping, however busy the machine is.
        looks = []
        for _ in range(100):
            looks.append(server.status())
            time.sleep(0.02)
        return looks.count(psutil.STATUS_SLEEPING) > len(looks) / 2

    with own_server(own_home):
        (server,) = servers(psutil.Process())
        assert eventually(lambda: sleeps_mostly(server), 60)


@pytest.mark.engine
@pytest.mark.slow
def test_the_next_start_marks_runs_left_by_a_crash_as_crashed_and_a_second_server_does_not(own_home: Path) -> None:
    with holder(own_home) as (process, api, flow_run):
        assert eventually(lambda: [state["type"] for state in states(api, flow_run)[1]] == ["RUNNING"])
        with own_server(own_home) as second:
            assert second != api
            flow, tasks = states(second, flow_run)
            assert [flow["type"], *(task["type"] for task in tasks)] == ["RUNNING", "RUNNING"]
        process.kill()
    with own_server(own_home) as next_one:
        flow, tasks = states(next_one, flow_run)
        assert [(state["name"], state["message"]) for state in [flow, *tasks]] == [("Crashed", CRASHED)] * 2


@pytest.mark.engine
def test_a_server_that_ends_while_starting_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(EngineError, match="file is not a database"), own_server(tmp_path):
        pass
    assert servers(psutil.Process()) == []


def test_a_home_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be used"), own_server(tmp_path / "file" / "engine"):
        pass


@pytest.mark.parametrize("make", ["serving(home)", "own_server(home, port=taken)", "open(credentials(home))"])
def test_the_home_and_the_folders_made_above_it_are_private_whatever_the_umask(tmp_path: Path, make: str) -> None:
    program = f"""
import contextlib, os, socket
from pathlib import Path
from deployments.home import credentials
from deployments.server import own_server, serving
os.umask(0)
home = Path("state/a0backup/engine")
with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.suppress(Exception):
    taken = listener.getsockname()[1]
    with {make}:
        pass
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("state", "state/a0backup/engine")]
    assert modes == [0o700, 0o700]


def test_a_home_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "state" / "engine"
    home.mkdir(0o700, parents=True)
    for place in (home, home.parent):
        place.chmod(0o777)
        for use in (serving(home), own_server(home), contextlib.ExitStack()):
            with pytest.raises(EngineError, match="others can replace what is in the engine's home") as refused, use:
                credentials(home)
            assert refused.value.hint().startswith(f"chmod go-w {place}")
        place.chmod(0o700)


def test_the_default_home_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_home() == tmp_path / "a0backup" / "engine"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_home() == Path.home() / ".local" / "state" / "a0backup" / "engine"


def test_the_operators_api_is_the_one_that_prefect_resolves(tmp_path: Path) -> None:
    assert operators_api() is None
    with use_api("http://127.0.0.1:9/api", tmp_path):
        from prefect.settings import get_current_settings

        assert operators_api() == "http://127.0.0.1:9/api"
        assert get_current_settings().results.local_storage_path == tmp_path / "storage"
    assert operators_api() is None
    assert "PREFECT_API_URL" not in os.environ


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that lets nobody through. Yield its address and everything that it was asked for."""
    asked: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        do_POST = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_requests_to_our_own_server_bypass_the_company_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[str]], name: str
) -> None:
    from prefect.client.orchestration import get_client

    address, asked = proxy
    for each in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, address)
    with use_api("http://127.0.0.1:9/api", tmp_path):
        async with get_client() as client:
            assert isinstance(await client.api_healthcheck(), httpx.ConnectError)
    assert asked == []


@pytest.mark.parametrize(
    ("theirs", "lower", "upper"),
    [
        ({}, "127.0.0.1", "127.0.0.1"),
        ({"NO_PROXY": ".corp"}, ".corp,127.0.0.1", ".corp,127.0.0.1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1", "b,127.0.0.1"),
        ({"no_proxy": "*"}, "*", "*"),
    ],
)
def test_the_exceptions_of_the_company_proxy_stay_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, str], lower: str, upper: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    with use_api("http://127.0.0.1:9/api", tmp_path):
        assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (lower, upper)
        # The function that the events client asks.
        assert urllib.request.proxy_bypass("127.0.0.1:9")
    assert {name: os.environ[name] for name in ("no_proxy", "NO_PROXY") if name in os.environ} == theirs


@pytest.mark.engine
async def test_drained_waits_until_every_task_run_is_recorded(engine: str) -> None:
    from prefect import flow, task
    from prefect.runtime import flow_run, task_run

    ids: list[UUID] = []

    @task(persist_result=False)
    async def step() -> None:
        ids.append(UUID(str(task_run.id)))

    @flow(persist_result=False)
    async def run() -> str:
        await asyncio.gather(*(step.with_options(name=f"step-{number}")() for number in range(50)))
        return str(flow_run.id)

    flow_run_id = await run()
    assert await drained(UUID(flow_run_id), ids)
    flow_state, task_states = states(engine, flow_run_id)
    assert [state["type"] for state in [flow_state, *task_states]] == ["COMPLETED"] * 51

    assert not await drained(UUID(flow_run_id), [*ids, uuid4()], deadline=0.5)


@pytest.mark.engine
@pytest.mark.slow
def test_the_server_answers_nobody_without_the_credentials_that_only_its_owner_can_read(own_home: Path) -> None:
    path = own_home / "credentials"
    former = path.read_text()
    path.unlink()
    with own_server(own_home) as api:
        assert path.read_text() != former
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert post(f"{api}/flow_runs/filter", json={}).status_code == httpx.codes.UNAUTHORIZED
        user, password = logged_in(own_home)
        for wrong in ((user, "guess"), ("", ""), (user, password + "x")):
            assert post(f"{api}/flow_runs/filter", json={}, auth=wrong).status_code == httpx.codes.UNAUTHORIZED
        assert post(f"{api}/flow_runs/filter", json={}, auth=(user, password)).is_success
    assert not list(own_home.glob(".credentials-*"))


def test_a_server_is_announced_only_while_it_serves_and_only_one_can_serve(tmp_path: Path) -> None:
    assert served_api(tmp_path) is None
    with serving(tmp_path) as announce:
        assert served_api(tmp_path) is None
        announce("http://127.0.0.1:4200/api")
        assert served_api(tmp_path) == "http://127.0.0.1:4200/api"
        with pytest.raises(EngineError, match="another `a0backup serve`"), serving(tmp_path):
            pass
        assert served_api(tmp_path) == "http://127.0.0.1:4200/api"
    assert served_api(tmp_path) is None


@pytest.mark.parametrize("left", ["", "\n", "a0backup:", ":secret", "secret"])
def test_credentials_that_would_let_everybody_in_are_refused(tmp_path: Path, left: str) -> None:
    (tmp_path / "credentials").write_text(left)
    with pytest.raises(EngineError, match="holds no user:password") as raised:
        credentials(tmp_path)
    assert "delete it" in raised.value.hint()


def test_an_unreadable_home_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be used"):
        served_api(tmp_path / "file" / "engine")


@pytest.mark.engine
@pytest.mark.slow
async def test_a_lasting_server_has_new_credentials_unless_it_shares_its_home_and_says_how_it_ended(
    own_home: Path,
) -> None:
    former = credentials(own_home)
    with lasting_server(own_home, 0) as server:
        assert (new := credentials(own_home)) != former
        with lasting_server(own_home, 0):
            assert credentials(own_home) == new
        ended = asyncio.create_task(server.ended())
        await asyncio.sleep(0)
        assert not ended.done()
        (process,) = servers(psutil.Process())
        process.kill()
        error = await asyncio.wait_for(ended, patience(10))
        assert str(error).startswith(f"the engine's server has ended (SIGKILL); {own_home}/server.log ends:\n")


# -- connections of other users ----------------------------------------------------------------------------------------


def connected(api: str, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(api.split(":")[2].split("/")[0])), timeout=patience(20))
    with contextlib.suppress(OSError):
        connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection, without waiting."""
    connection.setblocking(False)
    try:
        while connection.recv(1024):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


WITHOUT_CREDENTIALS = {
    "nothing": b"",
    "half a request": b"GET /api/health HTTP/1.1\r\nHost: a\r\n",
    "a websocket": b"GET /api/events/out HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: prefect\r\n\r\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("sent", WITHOUT_CREDENTIALS.values(), ids=WITHOUT_CREDENTIALS)
def test_a_thousand_connections_without_credentials_do_not_stop_the_server(own_home: Path, sent: bytes) -> None:
    with own_server(own_home) as api, contextlib.ExitStack() as opened:
        with httpx.Client(auth=logged_in(own_home), timeout=patience(20)) as client:
            assert client.post(f"{api}/flow_runs/count", json={}).status_code == 200
            pool = client._transport._pool  # type: ignore[attr-defined]
            ours = list(pool.connections)
            theirs = [opened.enter_context(contextlib.closing(connected(api, sent))) for _ in range(1000)]
            assert client.post(f"{api}/flow_runs/count", json={}).status_code == 200
            assert pool.connections == ours, "our connection was kept"
        assert post(f"{api}/flow_runs/count", json={}, auth=logged_in(own_home)).status_code == 200
        assert eventually(lambda: sum(map(is_closed, theirs)) >= 900, 10)
        assert (own_home / "server.log").stat().st_size < 1 << 20


@pytest.mark.slow
def test_a_connection_is_closed_where_nobody_logs_in_and_a_websocket_stays_where_somebody_has(own_home: Path) -> None:
    with own_server(own_home) as api, contextlib.ExitStack() as opened:
        user_password = ":".join(logged_in(own_home))
        websocket = opened.enter_context(connect(f"ws{api[4:]}/events/out", subprotocols=[Subprotocol("prefect")]))
        websocket.send(json.dumps({"type": "auth", "token": user_password}))
        assert json.loads(websocket.recv(patience(20)))["type"] == "auth_success"
        theirs = [
            opened.enter_context(contextlib.closing(connected(api, sent))) for sent in WITHOUT_CREDENTIALS.values()
        ]
        assert eventually(lambda: all(map(is_closed, theirs)), 40)
        assert websocket.ping().wait(patience(20))


def test_the_log_of_a_server_is_bounded(tmp_path: Path) -> None:
    log = os.open(tmp_path / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.ftruncate(log, MAX_LOG)
        bound_log(log)
        assert os.fstat(log).st_size == MAX_LOG
        os.write(log, b"one line more\n")
        bound_log(log)
        os.write(log, b"the next line\n")
        assert (tmp_path / "server.log").read_text() == "the log had become too large and was emptied\nthe next line\n"
    finally:
        os.close(log)
