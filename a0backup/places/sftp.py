"""A place that is a folder on an SFTP server.

User, keys, jump hosts and ciphers come from ~/.ssh/config, the agent and the key files in ~/.ssh, as for ssh. The
server must prove to have the key that ~/.ssh/known_hosts has for it.
"""

import asyncio
import logging
import posixpath
import secrets
import stat
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from a0backup.a0cli.text import quote
from a0backup.errors import PlaceArtifactError, PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places.credentials import SftpCredentials
from a0backup.places.store import CHUNK, LEFT_AFTER, PARTIAL, Entry, Store, can_be_nodes, missing_extra

if TYPE_CHECKING:
    from asyncssh import SFTPAttrs, SFTPClient, SFTPClientFile, SFTPName, SSHClientConnection

_BLOCK = 4 * CHUNK  # bytes that are asked for at once: enough for a server that is far away
_ON_THEIR_WAY = 4  # chunks that are sent before the first of them is acknowledged
_CONNECT = 20.0  # seconds
_KEEPALIVE = 15.0  # seconds
_GOODBYE = 5.0  # seconds
_FULL = CHUNK  # bytes; a disk with less free space refuses chunks

_HOST_KEY = (
    "if the server is new, connect once by hand with `ssh` and compare the fingerprint with the one that its operator "
    "names, or add what `ssh-keyscan` prints to ~/.ssh/known_hosts after the same comparison; if it is not new, "
    "another machine may pretend to be it"
)
_LOGIN = (
    "add the public key to ~/.ssh/authorized_keys of that user; start an agent, or name IdentityFile in ~/.ssh/config"
)
_RIGHTS = "make the folder writable for the user of this place"
_NETWORK = "check that the server runs, the network, and host and port of this place"
_SPACE = "free space on the disk of the server, or raise the quota"
# The names of classes of asyncssh and Python; the first that fits an error, from the narrowest on.
_REMEDIES = {
    "HostKeyNotVerifiable": _HOST_KEY,
    "PermissionDenied": _LOGIN,
    "SFTPPermissionDenied": _RIGHTS,
    "SFTPWriteProtect": _RIGHTS,
    "SFTPNoSpaceOnFilesystem": _SPACE,
    "SFTPQuotaExceeded": _SPACE,
    "SFTPConnectionLost": _NETWORK,
    "SFTPNoConnection": _NETWORK,
    "SFTPFailure": "look into the log of the server; the usual reasons are a full disk and a quota",
    "ChannelOpenError": "have the server offer SFTP to this user",
    "DisconnectError": _NETWORK,
    "OSError": _NETWORK,
    "ValueError": "correct ~/.ssh/config and the key files that it names",
}

log = logging.getLogger(__name__)

R = TypeVar("R")


@contextmanager
def open_server(copy: Copy, credentials: SftpCredentials | None = None) -> Iterator[Store]:
    """Yield the folder of *copy* on its server, connected and logged in. Raise PlaceError."""
    try:
        import asyncssh  # noqa: F401 - only whether it is there
    except ImportError:
        raise missing_extra(copy) from None
    with asyncio.Runner() as runner:
        server = _Server(copy, runner, credentials)
        try:
            server.connect()
            yield server
        finally:
            server.disconnect()


class _Server:
    """See `Store`. No link is followed below the root.

    SFTP has no way to make the new name of a file durable; its bytes are, if the server knows fsync.
    """

    def __init__(self, copy: Copy, runner: asyncio.Runner, credentials: SftpCredentials | None) -> None:
        self._copy, self._runner, self._credentials = copy, runner, credentials
        self._root = f"/{copy.root}"
        self._connection: SSHClientConnection | None = None
        self._sftp: SFTPClient | None = None
        self._folders = {""}  # those below the root that are known to be no links
        self._ended = False

    def connect(self) -> None:
        """Connect and log in, if that is not so already. Raise PlaceError."""
        if self._sftp is None:
            self._run(self._connect())

    def disconnect(self) -> None:
        """Leave the server; never raises."""
        if self._connection is not None:
            self._runner.run(self._goodbye(self._connection))
        self._connection, self._sftp, self._ended = None, None, True

    def size(self, path: str) -> int | None:
        return self._run(self._size(path), path)

    def read(self, path: str) -> Iterator[bytes]:
        size = self._run(self._size(path), path)
        if size is None:
            raise FileNotFoundError(path)
        file = self._run(self._open(path, "rb"), path)
        came = 0
        try:
            while came < size and (chunk := self._run(self._block(file, came, size), path)):
                came += len(chunk)
                yield chunk
        finally:
            self._forgive(file.close())
        if came != size:
            raise PlaceError(self._copy.name, f"{path} ended after {came} of {size} bytes", "try again")

    def write(self, path: str, chunks: Iterable[bytes], *, size: int) -> bool:
        folder, name = posixpath.split(path)
        aside = posixpath.join(folder, f".{name}.{secrets.token_hex(8)}.partial")
        file = self._run(self._create(aside), path)
        sending: set[asyncio.Task[int]] = set()
        try:
            sent = 0
            for chunk in chunks:
                if sent + len(chunk) <= size:
                    self._run(self._send(file, bytes(chunk), sent, sending), path)
                sent += len(chunk)
                if sent > size:
                    break
            if sent != size:
                raise PlaceError(self._copy.name, f"{path}: {sent} bytes or more were to be sent, not {size}")
            self._run(self._finish(file, aside, path, size, sending), path)
        except BaseException:
            self._forgive(self._give_up(file, aside, sending))
            raise
        return False

    def settle(self, path: str) -> None:
        """Do nothing: a file has its name only after its sync, and SFTP cannot sync names."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for entry, _ in self._walk(prefix):
            yield entry

    def remove(self, path: str) -> None:
        self._run(self._remove(path), path)

    def tidy(self) -> None:
        before = time.time() - LEFT_AFTER
        for entry, changed in self._walk(""):
            if PARTIAL.fullmatch(posixpath.basename(entry.path)) and changed is not None and changed < before:
                self.remove(entry.path)

    def _walk(self, prefix: str) -> Iterator[tuple[Entry, int | None]]:
        """Yield the files whose path begins with *prefix*, with the time of their last change."""
        folders = [prefix.rpartition("/")[0]]
        while folders:
            folder = folders.pop()
            below = []
            for name, attributes in self._run(self._list(folder), folder):
                path = posixpath.join(folder, name)
                mode = attributes.permissions or 0
                if stat.S_ISDIR(mode):
                    if folder or can_be_nodes(name):
                        below.append(path)
                elif (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) and path.startswith(prefix):
                    yield Entry(path, attributes.size or 0), attributes.mtime
            folders += reversed(below)

    def _run(self, work: Coroutine[Any, Any, R], path: str = "") -> R:
        """Return what *work* returns. Raise PlaceError, after which the next call may connect anew."""
        import asyncssh

        try:
            return self._runner.run(work)
        except TimeoutError as error:
            self._lose_connection()
            reason = f"the server did not answer for {self._copy.deadline:.0f} s"
            raise PlaceError(self._copy.name, reason, _NETWORK) from error
        except (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            self._lose_connection()
            raise self._explained(error, path) from error
        except asyncssh.SFTPFailure as error:
            # OpenSSH names no cause, and the most frequent one can be asked for.
            if self._is_full():
                raise PlaceError(self._copy.name, "there is no space left on the server", _SPACE) from error
            raise self._explained(error, path) from error
        except (asyncssh.Error, OSError, ValueError) as error:
            raise self._explained(error, path) from error

    def _is_full(self) -> bool:
        import asyncssh

        if self._sftp is None:
            return False
        try:
            free = self._runner.run(self._in_time(self._sftp.statvfs(self._root)))
        except (TimeoutError, asyncssh.Error, OSError) as error:
            log.debug("%s: its free space is unknown: %s", self._copy.name, error)
            return False
        return free.bavail * free.frsize < _FULL

    def _forgive(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* that matters only where the connection still works."""
        import asyncssh

        if self._sftp is None or self._ended:
            work.close()
            return
        try:
            self._runner.run(self._in_time(work))
        except (TimeoutError, asyncssh.Error, OSError) as error:
            log.debug("%s: %s", self._copy.name, error)

    def _lose_connection(self) -> None:
        if self._connection is not None:
            self._connection.abort()
        self._connection = self._sftp = None

    def _explained(self, error: Exception, path: str) -> PlaceError:
        names = [kind.__name__ for kind in type(error).__mro__]
        told = quote(str(error) or names[0])
        match names[0]:
            case "HostKeyNotVerifiable":
                reason = "the key of the server is not the one in ~/.ssh/known_hosts, or there is none for it"
            case "PermissionDenied":
                reason = f"the server refuses the login: {told}"
            case "SFTPFailure":
                reason = f"the server reports a failure without its cause: {told}"
            case _:
                reason = told
        remedy = next((_REMEDIES[name] for name in names if name in _REMEDIES), "")
        return PlaceError(self._copy.name, f"/{self._copy.root}/{path}: {reason}" if path else reason, remedy)

    async def _connect(self) -> None:
        import asyncssh

        parts = urlsplit(self._copy.url)
        host = parts.hostname or ""
        # What the URL does not name comes from ~/.ssh/config.
        named: dict[str, Any] = {}
        if parts.username is not None:
            named["username"] = unquote(parts.username)
        if parts.port is not None:
            named["port"] = parts.port
        named |= _login(self._copy, self._credentials)
        timeout = min(_CONNECT, self._copy.deadline)
        named |= {
            "connect_timeout": timeout,
            "login_timeout": timeout,
            "keepalive_interval": _KEEPALIVE,
            "keepalive_count_max": 4,
        }
        known_hosts = asyncssh.SSHClientConnectionOptions(host=host, **named).known_hosts
        if known_hosts is None:  # asyncssh then trusts every server, where ssh trusts none
            raise ValueError("UserKnownHostsFile in ~/.ssh/config names no file, so that no server can prove itself")
        try:
            async with asyncio.timeout(timeout):
                self._connection = await asyncssh.connect(host, known_hosts=known_hosts, **named)
                self._sftp = await self._connection.start_sftp_client(path_errors="surrogateescape")
        except TimeoutError as error:
            self._lose_connection()
            reason = f"the server did not let us in within {timeout:.0f} s"
            raise PlaceError(self._copy.name, reason, _NETWORK) from error

    async def _goodbye(self, connection: "SSHClientConnection") -> None:
        connection.close()
        try:
            async with asyncio.timeout(_GOODBYE):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()

    async def _client(self) -> "SFTPClient":
        if self._sftp is None:
            await self._connect()
        assert self._sftp is not None
        return self._sftp

    async def _in_time(self, work: Coroutine[Any, Any, R]) -> R:
        async with asyncio.timeout(self._copy.deadline):
            return await work

    @asynccontextmanager
    async def _asking(self, path: str) -> AsyncIterator[tuple["SFTPClient", str]]:
        """Yield client and whole path; all of the block must happen within the deadline, and below no link."""
        sftp = await self._client()
        async with asyncio.timeout(self._copy.deadline):
            folder = ""
            for part in path.split("/")[:-1]:
                folder = posixpath.join(folder, part)
                if folder not in self._folders:
                    with suppress(_no_such_file()):
                        self._require(stat.S_ISDIR, folder, await sftp.lstat(f"{self._root}/{folder}"))
                        self._folders.add(folder)
            yield sftp, f"{self._root}/{path}"

    def _require(self, kind: Any, path: str, attributes: "SFTPAttrs") -> None:
        if not kind(attributes.permissions or 0):
            what = "folder" if kind is stat.S_ISDIR else "regular file"
            raise PlaceArtifactError(self._copy.name, f"{self._root}/{path} is no {what}", "look at it, and remove it")

    async def _size(self, path: str) -> int | None:
        async with self._asking(path) as (sftp, whole):
            try:
                attributes = await sftp.lstat(whole)
            except _no_such_file():
                return None
            self._require(stat.S_ISREG, path, attributes)
            return attributes.size or 0

    async def _open(self, path: str, mode: str) -> "SFTPClientFile":
        import asyncssh

        async with self._asking(path) as (sftp, whole):
            private = asyncssh.SFTPAttrs(permissions=0o600)
            return await sftp.open(whole, mode, private if "x" in mode else asyncssh.SFTPAttrs(), encoding=None)

    async def _block(self, file: "SFTPClientFile", start: int, end: int) -> bytes:
        """Return the next bytes of *file* from *start* on; all of them are requested at once."""
        block: bytes = await self._in_time(file.read(min(_BLOCK, end - start), start))
        return block

    async def _create(self, path: str) -> "SFTPClientFile":
        """Make the new file *path*, and its folders where they are missing."""
        import asyncssh

        try:
            return await self._open(path, "xb")
        except _no_such_file():
            async with self._asking(path) as (sftp, whole):
                private = asyncssh.SFTPAttrs(permissions=0o700)
                await sftp.makedirs(posixpath.dirname(whole), private, exist_ok=True)
            return await self._open(path, "xb")

    async def _send(self, file: "SFTPClientFile", chunk: bytes, at: int, sending: "set[asyncio.Task[int]]") -> None:
        sending.add(asyncio.create_task(file.write(chunk, at)))
        await self._await_sent(sending, most=_ON_THEIR_WAY - 1)

    async def _await_sent(self, sending: "set[asyncio.Task[int]]", *, most: int) -> None:
        """Wait until at most so many chunks are on their way."""
        while len(sending) > most:
            async with asyncio.timeout(self._copy.deadline):
                done, _ = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            sending -= done
            for sent in done:
                await sent

    async def _finish(
        self, file: "SFTPClientFile", aside: str, path: str, size: int, sending: "set[asyncio.Task[int]]"
    ) -> None:
        """Make *aside* durable, and rename it to *path*."""
        import asyncssh

        await self._await_sent(sending, most=0)
        async with self._asking(path) as (sftp, whole):
            try:
                await file.fsync()
            except asyncssh.SFTPOpUnsupported:
                log.debug("%s: the server cannot make files durable on request", self._copy.name)
            await file.close()
            partial = f"{self._root}/{aside}"
            stored = (await sftp.lstat(partial)).size
            if stored != size:
                raise PlaceError(self._copy.name, f"{path}: the server has {stored} bytes of {size}", "try again")
            try:
                await sftp.posix_rename(partial, whole)
            except asyncssh.SFTPOpUnsupported:
                # The rename of old servers replaces nothing.
                with suppress(asyncssh.SFTPNoSuchFile):
                    await sftp.remove(whole)
                await sftp.rename(partial, whole)

    async def _give_up(self, file: "SFTPClientFile", aside: str, sending: "set[asyncio.Task[int]]") -> None:
        import asyncssh

        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        with suppress(asyncssh.Error):
            await file.close()
        await self._remove(aside)

    async def _remove(self, path: str) -> None:
        import asyncssh

        async with self._asking(path) as (sftp, whole):
            with suppress(asyncssh.SFTPNoSuchFile):
                await sftp.remove(whole)
                if "/" in path:
                    with suppress(asyncssh.SFTPError):  # other files are in it
                        await sftp.rmdir(posixpath.dirname(whole))

    async def _list(self, folder: str) -> "list[tuple[str, SFTPAttrs]]":
        """Return what is in *folder*, by name; nothing if there is no such folder."""
        sftp = await self._client()
        listing: AsyncIterator[SFTPName] = sftp.scandir(posixpath.join(self._root, folder))
        found: list[tuple[str, SFTPAttrs]] = []
        async with asyncio.timeout(self._copy.deadline) as timeout, aclosing(listing):  # type: ignore[type-var]
            with suppress(_no_such_file()):
                async for entry in listing:
                    timeout.reschedule(asyncio.get_running_loop().time() + self._copy.deadline)
                    name = str(entry.filename)
                    if name not in (".", ".."):
                        found.append((name, entry.attrs))
        return sorted(found, key=lambda each: each[0])


def _login(copy: Copy, credentials: SftpCredentials | None) -> dict[str, Any]:
    """Return the options of asyncssh for *credentials*, which it then uses alone. Raise PlaceError."""
    import asyncssh

    if credentials is None:
        return {}
    if credentials.password is not None:
        return {"password": credentials.password.get_secret_value(), "client_keys": None, "agent_path": None}
    assert credentials.private_key is not None, "there is a key or a password"
    passphrase = credentials.passphrase
    try:
        key = asyncssh.import_private_key(
            credentials.private_key.get_secret_value(), passphrase.get_secret_value() if passphrase else None
        )
    except (ValueError, asyncssh.Error) as error:
        failure = type(error).__name__
    else:
        return {"client_keys": [key], "agent_path": None}
    # Raised here, because an error raised in the handler would keep the other one as its context.
    reason = f"the private key in its Secret block {copy.secret_block} cannot be read ({failure})"
    raise PlaceError(copy.name, reason, "store a key of OpenSSH as it is, and its passphrase")


def _no_such_file() -> type[Exception]:
    import asyncssh

    return asyncssh.SFTPNoSuchFile
