"""The health endpoints as requests: their pace, their limits, and what each status means.

An endpoint answers with its status alone: 204 well, 520 not well, 429 asked too often. No body is kept, and no redirect
is followed, which would hand the key to whoever is there.
"""

import asyncio
import email.utils
import logging
import ssl
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

import httpx

from a0backup.files import in_thread

USER = "api_keys_health"
DECISIVE = ("disk", "replicaset")
OTHERS = ("cpu", "memory", "services", "network", "internet", "email", "db")
_MEANS = {
    "disk": "a volume is over 90 % full",
    "memory": "10 % of it or less is free",
    "replicaset": "a replica is down",
}

INTERVAL = 0.11  # seconds from one request to the next: a node answers 429 to more than ten in one second
TRIES = 3  # of a request that is answered 429
LONGEST_PAUSE = 10.0  # seconds before the next try, whatever the node asks for
SILENCE = 5.0  # seconds without an answer, or a part of one
REQUEST = 10.0  # seconds for a whole request, however slowly its answer drips
WHOLE = 60.0  # seconds for all requests
_MOST = 64 << 10  # bytes of a body that nobody reads; more, and the connection is closed
_TOO_OFTEN, _NOT_WELL = 429, 520


_asking: ContextVar[bool] = ContextVar("asking", default=False)


def _tells_nothing_of_a_node(record: logging.LogRecord) -> bool:
    """Return whether the record of the HTTP client is about anything else than our requests to a node."""
    return not _asking.get()


# They show the reason and the headers of each answer, and a node can put the key into these.
for _name in ("httpx", "httpcore.connection", "httpcore.http11"):
    logging.getLogger(_name).addFilter(_tells_nothing_of_a_node)


class _UnknownError(Exception):
    """The endpoints tell nothing, for a reason that concerns all of them."""


class Endpoints:
    """The endpoints of one node below *url*, asked one after another.

    *unwell* tells what is not well and must be for a backup, *doubts* what else is worth a warning.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url, self._auth = url, httpx.BasicAuth(USER, key.encode())
        self._next = 0.0  # seconds of the monotonic clock, before which no request is sent
        self.unwell: list[str] = []
        self.doubts: list[str] = []

    async def ask(self, *, ca_file: Path | None, everything: bool) -> None:
        """Ask what a backup needs, or *everything*. Raises nothing: what cannot be learnt is among the doubts."""
        unknown = ""
        quiet = _asking.set(True)
        try:
            context = await in_thread(_trusting, ca_file)
            async with (
                asyncio.timeout(WHOLE),
                httpx.AsyncClient(
                    # Not by what the environment says: a proxy, or the credentials in ~/.netrc.
                    verify=context,
                    trust_env=False,
                    follow_redirects=False,
                    timeout=SILENCE,
                ) as client,
            ):
                await self._ask_all(client, DECISIVE + OTHERS if everything else DECISIVE)
        except _UnknownError as error:
            unknown = str(error)
        except TimeoutError:
            unknown = f"the endpoints did not all answer within {WHOLE:.0f} s"
        finally:
            _asking.reset(quiet)
        if unknown:
            self.doubts.append(f"its health is not known: {unknown}")

    async def _ask_all(self, client: httpx.AsyncClient, parts: tuple[str, ...]) -> None:
        """Ask for *parts* and for /testall. Raise _UnknownError."""
        for part in parts:
            self._note(part, await self._status(client, f"{self._url}/status/{part}", self._auth))
        beside = self._url.removesuffix("/health")
        status = await self._status(client, f"{beside}/testall", None)
        if status >= 500:
            self.doubts.append(f"a service of the node is not well: /testall answers {status}")
        elif status != httpx.codes.OK:
            self.doubts.append(f"/testall answers {status}, which says nothing")

    def _note(self, part: str, status: int) -> None:
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            hint = "HINT: put the key of the node's dashboard (Settings, API Keys) where health.key says"
            raise _UnknownError(f"the node refuses the key (status {status}); {hint}")
        if status in range(300, 400):
            hint = "HINT: correct health.url; no redirect is followed, as the key would go there"
            raise _UnknownError(f"it answers with a redirect (status {status}); {hint}")
        if status == _NOT_WELL:
            means = f" ({_MEANS[part]})" if part in _MEANS else ""
            (self.unwell if part in DECISIVE else self.doubts).append(f"{part} is not well{means}")
        elif status == _TOO_OFTEN:
            self.doubts.append(f"{part} is not known: the node was asked too often")
        elif status not in (httpx.codes.OK, httpx.codes.NO_CONTENT):
            self.doubts.append(f"{part} is not known: the node answers {status}")

    async def _status(self, client: httpx.AsyncClient, url: str, auth: httpx.BasicAuth | None) -> int:
        """Return the status of the answer; ask again after a 429. Raise _UnknownError."""
        for left in reversed(range(TRIES)):
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))
            answer = await _sent(client, url, auth)
            # From the answer on: when the node counted the request is not known.
            self._next = time.monotonic() + INTERVAL
            if answer.status_code != _TOO_OFTEN or not left:
                break
            self._next = time.monotonic() + pause_after(answer.headers.get("Retry-After", ""))
        return answer.status_code


async def _sent(client: httpx.AsyncClient, url: str, auth: httpx.BasicAuth | None) -> httpx.Response:
    """Return the head of the answer. Raise _UnknownError, which knows nothing of the request and its key."""
    try:
        async with asyncio.timeout(REQUEST), client.stream("GET", url, auth=auth) as answer:
            size = 0
            # Raw: nothing is decompressed. Read at all, as the connection can then be used again.
            async for piece in answer.aiter_raw():
                size += len(piece)
                if size > _MOST:
                    break
            return answer
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
        text = _why(error)
    # Raised here: an error raised in the handler would keep the other one, with the request, as its context.
    raise _UnknownError(text)


def _why(error: BaseException) -> str:
    """Return why a request was not answered, in words that hold nothing of the request."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}); HINT: set health.ca_file to the certificate"
                " of the authority that signed it, and use the name in it in health.url"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        most = SILENCE if isinstance(error, httpx.TimeoutException) else REQUEST
        return f"its health endpoints do not answer within {most:.0f} s; HINT: check health.url and the firewall"
    if isinstance(error, httpx.ConnectError):
        return "its health endpoints cannot be reached; HINT: check health.url and the firewall"
    return f"its health endpoints give no usable answer ({type(error).__name__})"


def pause_after(retry_after: str) -> float:
    """Return for how many seconds to wait, as the header says: a number, or a date; a second without either."""
    try:
        seconds = float(retry_after) if retry_after.isdecimal() else _until(retry_after)
    except (ValueError, TypeError, OverflowError):
        seconds = 1.0
    return min(max(seconds, INTERVAL), LONGEST_PAUSE)


def _until(date: str) -> float:
    moment = email.utils.parsedate_to_datetime(date)
    return (moment - datetime.now(moment.tzinfo or UTC)).total_seconds()


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Return the context that trusts *ca_file*, or what this machine trusts. Raise _UnknownError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an ssl.SSLError, too
        reason = "holds no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        text = f"{ca_file} {reason}; HINT: health.ca_file in fleet.yaml is a file of certificates in PEM"
        raise _UnknownError(text) from None
