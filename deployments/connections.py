"""Bound the connections to our own server that nobody has logged in on: any user of the machine can open one."""

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Peer = tuple[str, int]

MOST = 100  # connections at once on which nobody has logged in; a browser opens six
SECONDS = 15.0  # after which such a connection is closed
_HEADERS = 1 << 14  # bytes at the beginning of a connection in which the credentials are looked for
MAX_LOG = 16 << 20


class Connections:
    """The open connections on which nobody has logged in yet, oldest first."""

    def __init__(self) -> None:
        self._open: dict[Peer, tuple[asyncio.Transport, float]] = {}

    def opened(self, peer: Peer, transport: asyncio.Transport) -> None:
        """Note a new connection; where there are too many, the oldest is closed."""
        self._open[peer] = transport, time.monotonic()
        if len(self._open) > MOST:
            self._close(next(iter(self._open)))

    def logged_in(self, peer: Peer) -> None:
        """Note that the connection has shown the credentials."""
        self._open.pop(peer, None)

    def close_old(self) -> None:
        """Close each connection on which nobody has logged in for too long."""
        latest = time.monotonic() - SECONDS
        for peer in [peer for peer, (_, since) in self._open.items() if since < latest]:
            self._close(peer)

    def _close(self, peer: Peer) -> None:
        transport, _ = self._open.pop(peer)
        transport.abort()


def protocol(connections: Connections, user_password: str) -> type[asyncio.Protocol]:
    """Return the HTTP protocol of a server that requires *user_password*, with its connections bounded."""
    credentials = b"Basic " + base64.b64encode(user_password.encode())

    class Bounded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        peer: Peer
        head: bytes | None = b""  # None once the credentials were seen

        def connection_made(self, transport: asyncio.Transport) -> None:
            self.peer = transport.get_extra_info("peername")
            connections.opened(self.peer, transport)
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if self.head is not None:
                # With the bytes before them: the header may come in pieces.
                seen = self.head + data
                self.head = seen[-_HEADERS:]
                if credentials in seen:
                    self.head = None
                    connections.logged_in(self.peer)
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.logged_in(self.peer)
            super().connection_lost(exc)

    return Bounded


def watching_websockets(app: App, connections: Connections) -> App:
    """Return *app*, with each websocket noted as logged in when the server says so: its client sends no header."""

    async def watched(scope: Message, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if '"auth_success"' in (message.get("text") or ""):
                connections.logged_in(tuple(scope["client"]))
            await send(message)

        await app(scope, receive, tell if scope["type"] == "websocket" else send)

    return watched


def bound_log(descriptor: int) -> None:
    """Empty the log file behind *descriptor* if it has become too large: its disk is needed for the database."""
    if os.fstat(descriptor).st_size > MAX_LOG:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"the log had become too large and was emptied\n")
