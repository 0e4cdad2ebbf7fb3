"""The health endpoints of all nodes: over https on one loopback port, a path for each node.

    https://127.0.0.1:PORT/NODE/testall              200 OK, or 503
    https://127.0.0.1:PORT/NODE/health/status/disk   204, 520, 401 without the key, 429 above ten requests in a second

As on an appliance, the status is all that an authenticated endpoint says. The certificate is signed by an authority of
this process alone, as those of appliances often are.
"""

import asyncio
import base64
import contextlib
import ipaddress
import secrets
import ssl
import time
from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from simulator.appliance import Call, Node, Record
from simulator.appliances import Appliances
from simulator.faults import HEALTH

USER = "api_keys_health"
MOST_IN_A_SECOND = 10
LONGEST_HEAD = 1 << 14
REASONS = {200: "OK", 204: "No Content", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


class Health:
    """The endpoints of the nodes of one process, and the record of the requests."""

    def __init__(self, appliances: Appliances) -> None:
        self.appliances, self.state = appliances, appliances.state
        self.requests = Record(self.state / "health.jsonl")
        self._recent: dict[str, deque[float]] = defaultdict(deque)

    async def open(self) -> dict[str, str]:
        """Begin to serve, and return where: the form of the address, and the files of the key and the authority."""
        key_file, ca_file = self.state / "health.key", self.state / "health-ca.pem"
        self.appliances.health_key = secrets.token_urlsafe(24)
        key_file.write_text(f"{self.appliances.health_key}\n", encoding="utf-8")
        key_file.chmod(0o600)
        context = _identity(ca_file, self.state / "health-server.pem")
        server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=context, limit=LONGEST_HEAD, ssl_handshake_timeout=10
        )
        port = server.sockets[0].getsockname()[1]
        return {
            "url": f"https://{{host}}:{port}/{{name}}/health",
            "key_file": str(key_file),
            "ca_file": str(ca_file),
            "requests": str(self.requests.path),
        }

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.appliances.spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.decode("latin-1").split("\r\n"), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, lines: list[str], writer: asyncio.StreamWriter) -> None:
        _, path, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        name, _, rest = path.removeprefix("/").partition("/")
        node, what = self.appliances.nodes.get(name), rest.removeprefix("health/")
        if node is not None and node.rules.has("unreachable"):
            raise ConnectionResetError
        call = Call(node, what, []) if node is not None and what in HEALTH else None
        status = self._status(call, headers.get("authorization"))
        more: dict[str, str] = {}
        body, reason = "OK" if status == 200 else "", REASONS.get(status, "")
        if call is not None and (said := call.met("health_answer")):
            status, more, body, reason = said["status"], said["headers"], said["body"], said["reason"]
        self._note(node, what, status, headers, call)
        if call is not None and call.met("health_silent"):
            await asyncio.to_thread(self.appliances.stopping.wait)
        if call is not None and (said := call.met("health_endless")):
            await self._send_without_end(said["what"], writer)
        length = {} if status == 204 else {"Content-Length": str(len(body))}
        head = [f"HTTP/1.1 {status} {reason}"]
        head += [f"{name}: {value}" for name, value in {**length, **more}.items()]
        writer.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())
        await writer.drain()

    def _status(self, call: Call | None, authorization: str | None) -> int:
        """Return the status of an appliance's answer."""
        if call is None:
            return 404
        recent = self._recent[call.node.name]
        recent.append(time.monotonic())
        while recent[0] <= recent[-1] - 1:
            recent.popleft()
        if len(recent) > MOST_IN_A_SECOND:
            return 429
        if call.command == "testall":
            return 503 if call.met("unwell") else 200
        if authorization != f"Basic {base64.b64encode(f'{USER}:{self.appliances.health_key}'.encode()).decode()}":
            return 401
        return 520 if call.met("unwell") else 204

    def _note(self, node: Node | None, what: str, status: int, headers: dict[str, str], call: Call | None) -> None:
        self.requests.write(
            node=node.name if node else None,
            what=what,
            status=status,
            with_key="authorization" in headers,
            faults=call.faults if call else [],
        )

    async def _send_without_end(self, what: str, writer: asyncio.StreamWriter) -> None:
        """Send a body, headers or single bytes until the client is gone."""
        writer.write(b"HTTP/1.1 204 No Content\r\n" if what != "body" else b"HTTP/1.1 200 OK\r\n\r\n")
        while not self.appliances.stopping.is_set():
            writer.write({"body": b"x" * 65536, "headers": b"X-More: more\r\n" * 100, "drip": b"X"}[what])
            await writer.drain()
            await asyncio.sleep(0.2 if what == "drip" else 0)


def _identity(ca_file: Path, server_file: Path) -> ssl.SSLContext:
    """Make an authority and a certificate for 127.0.0.1, and return the server's context."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A simulated appliance's own authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulated appliance")])
    ca = _signed(ca_name, ca_name, ca_key, ca_key, [(x509.BasicConstraints(ca=True, path_length=0), True)])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = _signed(name, ca_name, key, ca_key, [(address, False)])
    pem = serialization.Encoding.PEM
    ca_file.write_bytes(ca.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    server_file.write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_file)
    return context


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    extensions: list[tuple[Any, bool]],
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca_key, hashes.SHA256())
