"""The shipped Caddyfile in front of a real server: who gets through and who does not."""

import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.deployed import PatientClient
from tests.support.login import logged_in
from tests.support.parts import BIN, REPOSITORY, Part, filled_settings, found, free_port, needed
from tests.support.patience import eventually, patience

# Sends an event on one websocket and waits for it on another.
ROUND_TRIP = """
import asyncio, sys
from prefect.events import emit_event
from prefect.events.clients import get_events_client, get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.events import Event, Resource

async def round_trip():
    wanted = EventFilter(event=EventNameFilter(name=["a0backup.tried"]))
    async with get_events_subscriber(filter=wanted) as events, get_events_client() as client:
        resource = Resource({"prefect.resource.id": sys.argv[1]})
        await client.emit(Event(event="a0backup.tried", resource=resource))
        async for event in events:
            if event.resource.id == sys.argv[1]:
                print("came back")
                return

asyncio.run(asyncio.wait_for(round_trip(), float(sys.argv[2])))
"""


@dataclass(frozen=True)
class Proxy:
    """Caddy as shipped, with its own certificate authority."""

    url: str
    authority: Path
    room: Path

    def settings(self, **more: str) -> dict[str, str]:
        """Return worker.env.example filled in for this proxy and the server behind it."""
        filled = {
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_API_AUTH_STRING": ":".join(logged_in()),
            "PREFECT_API_SSL_CERT_FILE": str(self.authority),
        }
        place = {"PATH": os.defpath, "HOME": str(self.room), "PREFECT_HOME": str(self.room / "prefect")}
        return place | filled_settings("worker.env.example", filled | more)

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = self.settings(**settings)
        return subprocess.run(
            command, env=environment, cwd=self.room, capture_output=True, text=True, timeout=patience(90)
        )


@contextmanager
def caddy(room: Path, server: str) -> Iterator[Proxy]:
    port = free_port()
    environment = {
        "PATH": os.defpath,
        "HOME": str(room),
        "XDG_DATA_HOME": str(room),
        "XDG_CONFIG_HOME": str(room),
        "A0BACKUP_SITE": f"localhost:{port}",
        "A0BACKUP_SERVER": server,
    }
    command = [found("caddy") or "caddy", "run", "--adapter", "caddyfile", "--config"]
    part = Part(
        [*command, str(REPOSITORY / "deployments/Caddyfile")], room / "caddy.log", folder=room, environment=environment
    )
    authority = room / "caddy/pki/authorities/local/root.crt"
    try:
        part.wait_until(lambda: part.said("certificate obtained successfully"))
        yield Proxy(f"https://localhost:{port}", authority, room)
    finally:
        part.end()


@pytest.fixture
def proxy(tmp_path: Path, engine_server: str) -> Iterator[Proxy]:
    needed("caddy", "setpriv")
    with caddy(tmp_path, httpx.URL(engine_server).netloc.decode()) as proxy:
        yield proxy


@pytest.mark.engine
@pytest.mark.slow
def test_tls_lets_authenticated_clients_through_and_nobody_else(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=str(proxy.authority))
    with httpx.Client(base_url=proxy.url, verify=context, trust_env=False, timeout=patience(30)) as client:
        assert client.get("/api/health").status_code == 200
        assert client.get("/api/admin/version").status_code == 401
        assert client.get("/api/admin/version", auth=("operator", "wrong")).status_code == 401
        answer = client.get("/api/admin/version", auth=logged_in())
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        page = client.get("/", follow_redirects=True)
        assert "text/html" in page.headers["content-type"]
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{proxy.url}/api/health", trust_env=False, timeout=patience(60))


@pytest.mark.engine
@pytest.mark.slow
def test_prefects_own_client_gets_through_only_with_the_authoritys_certificate(proxy: Proxy) -> None:
    tried = proxy.run(*round_trip())
    assert tried.stdout == "came back\n", tried.stderr[-2000:]

    refused = proxy.run(*round_trip(), PREFECT_API_AUTH_STRING="operator:wrong")
    assert refused.returncode != 0
    distrusted = proxy.run(*round_trip(), PREFECT_API_SSL_CERT_FILE=ssl_default())
    assert "CERTIFICATE_VERIFY_FAILED" in distrusted.stderr


def round_trip() -> list[str]:
    return [str(BIN / "python"), "-c", ROUND_TRIP, str(uuid4()), str(patience(30))]


def ssl_default() -> str:
    """Return the authorities that this machine trusts by default."""
    return ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


@pytest.mark.engine
@pytest.mark.slow
def test_a_worker_gets_through(proxy: Proxy, tmp_path: Path) -> None:
    pool = f"pool-{uuid4()}"
    command = [str(BIN / "prefect"), "worker", "start", "--pool", pool, "--type", "process", "--name", "one"]
    settings = proxy.settings(TMPDIR=str(tmp_path))
    worker = Part(command, tmp_path / "worker.log", folder=tmp_path, environment=settings, polite=signal.SIGTERM)
    context = ssl.create_default_context(cafile=str(proxy.authority))
    with PatientClient(base_url=proxy.url, auth=logged_in(), verify=context) as client:

        def online() -> bool:
            workers = client.post(f"/api/work_pools/{pool}/workers/filter", json={})
            return workers.is_success and [each["status"] for each in workers.json()] == ["ONLINE"]

        try:
            assert eventually(online, 60), worker.tail()
        finally:
            worker.end()
        assert "CERTIFICATE_VERIFY_FAILED" not in worker.tail()
        client.delete(f"/api/work_pools/{pool}").raise_for_status()
