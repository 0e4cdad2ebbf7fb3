"""The only place where a0cli is started.

    directory = PrivateDirectory.make(vault / "a0-1" / "work", "run-1", key_dir=settings.key_dir, node="a0-1")
    a0cli = A0cli(settings, node="a0-1", host="192.168.1.186", port=10121, directory=directory.path)
    await a0cli.update_commands()
    await a0cli.ping()
    print(await a0cli.status("backup"))

Every call is an argument list, never a shell, in the node's private directory; its output is kept in bounded amounts,
and at its deadline, on cancellation and on any error its whole process group is gone before the caller goes on. (A
grandchild that opened a session of its own escapes that; it holds the node's lock, and so is not forgotten.)
"""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeVar

from a0backup import replies
from a0backup.errors import (
    A0cliError,
    A0cliMissingError,
    A0cliTimeoutError,
    FleetFileError,
    PasswordError,
    RetrieveFailedError,
    UnknownReplyError,
    UnreachableError,
    VaultUnusableError,
)

RETRIEVED = "*.tar.gz.enc"

# The rest of the environment stays with the run: it may hold the password, and a0cli asks for none of it.
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "LD_LIBRARY_PATH"),
)
_KEPT = 32 * 1024
_POLITE = 1.0  # seconds between SIGTERM and SIGKILL
_PIPES = 0.5  # seconds for the pipes to close once a0cli has ended
_KILLED = 5.0  # seconds for a killed process to go; longer only where the kernel itself waits

_running: set[int] = set()

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Printed:
    """What one call left: the first and last 32 KiB of each stream, the secret replaced by ``***``."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


class Settings(Protocol):
    """The `a0cli` part of fleet.yaml."""

    @property
    def path(self) -> str: ...
    @property
    def call_timeout(self) -> float: ...
    @property
    def retrieve_timeout(self) -> float: ...
    @property
    def password_style(self) -> str: ...
    @property
    def replies(self) -> Mapping[str, Sequence[str]]: ...


class PrivateDirectory:
    """The one directory in which all calls of a0cli for one node's run happen.

    a0cli reads its key pair from the current directory and writes there what it retrieves (vendor's page on the CLI),
    so nodes that shared one would overwrite each other.
    """

    def __init__(self, path: Path, *, node: str) -> None:
        self.path, self.node = path, node

    @classmethod
    def make(cls, parent: Path, name: str, *, key_dir: Path, node: str) -> "PrivateDirectory":
        """Make *parent*/*name*, mode 0700 whatever the umask, with a link to each file of *key_dir*.

        What an earlier run left under this name is removed first. Raise A0cliMissingError where there is no key to
        link, VaultUnusableError where the directory cannot be made.
        """
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise VaultUnusableError(node, f"{replies.quote(name)!r} cannot name a private directory")
        keys = _key_files(key_dir, node)
        made = cls(parent.absolute() / name, node=node)
        made.remove()
        try:
            _make_private(made.path)
            for key in keys:
                (made.path / key.name).symlink_to(key)
        except OSError as error:
            raise VaultUnusableError(node, f"private directory {made.path}: {error.strerror}") from error
        return made

    def remove(self) -> None:
        """Remove the directory and all that is in it; the key files themselves stay. Raise VaultUnusableError."""
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise VaultUnusableError(self.node, f"private directory {self.path}: {error.strerror}") from error

    def clear_retrieved(self) -> None:
        """Remove whatever could be taken for a retrieved file. Raise VaultUnusableError."""
        try:
            for path in self.path.glob(RETRIEVED):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise VaultUnusableError(self.node, f"private directory {self.path}: {error.strerror}") from error

    def retrieved(self, kind: str = "backup") -> Path:
        """Return the one file that the last retrieve left, its mode now 0600.

        Call *clear_retrieved* before that retrieve. Raise RetrieveFailedError where there is none, more than one, or
        something else than a regular file.
        """
        paths = sorted(self.path.glob(RETRIEVED))
        if len(paths) != 1:
            left = f"{len(paths)} {RETRIEVED} files" if paths else f"no {RETRIEVED} file"
            raise RetrieveFailedError(self.node, kind, 1, f"a0cli left {left}")
        try:
            # Neither a link is followed nor a named pipe waited for.
            descriptor = os.open(paths[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
                if regular:
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
        except OSError:
            regular = False
        if not regular:
            raise RetrieveFailedError(self.node, kind, 1, "what a0cli left is not a regular file")
        return paths[0]


def _key_files(key_dir: Path, node: str) -> list[Path]:
    try:
        files = sorted(path.absolute() for path in key_dir.iterdir() if path.is_file() and not path.match(RETRIEVED))
    except OSError as error:
        reason = f"key_dir {key_dir}: {error.strerror}"
        raise A0cliMissingError(node, "key pair", reason) from error
    if not files:
        raise A0cliMissingError(node, "key pair", f"key_dir {key_dir} holds no file")
    for path in files:
        if not os.access(path, os.R_OK):
            raise A0cliMissingError(node, "key pair", f"key file {path} cannot be read")
    return files


def _make_private(path: Path) -> None:
    if not path.parent.is_dir():
        _make_private(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        path.chmod(0o700)


_LOOKED_FOR = 8  # characters: passwords from this length on are removed from every reply


class A0cli:
    """The calls of a0cli for one node, each in the node's private *directory*.

    Each started process inherits the file descriptors *inherit*: the node's lock, so that it lasts until the last
    a0cli has ended, even where the run is killed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        node: str,
        host: str,
        port: int,
        directory: Path,
        inherit: Sequence[int] = (),
    ) -> None:
        """Raise FleetFileError for a host that a0cli would read as an option, or for unusable `a0cli.replies`."""
        self.settings, self.node, self.host, self.port = settings, node, host, port
        self.directory, self.inherit = directory, tuple(inherit)
        self.wordings = replies.Wordings.extended(settings.replies)
        self._known: list[str] = []
        if not _plain(host):
            raise FleetFileError("fleet.yaml", [f"host of node {node}: give a host name or an address"])

    async def call(
        self, command: str, *arguments: str, deadline: float | None = None, secret: str | None = None
    ) -> Printed:
        """Run one command and return what it printed, whatever its exit code; *secret* is removed from that.

        Raise A0cliMissingError where it cannot be started, A0cliTimeoutError after *deadline* seconds (without one:
        `call_timeout`), FleetFileError for an argument that a0cli would read as an option.
        """
        _require_plain(command, *arguments)
        return await self._run(command, [command, *arguments], deadline=deadline, secret=secret)

    async def update_commands(self) -> Printed:
        """Ask the node which commands it takes; the private directory keeps the answer.

        Raise RefusedError, UnreachableError or UnknownReplyError unless it ended with exit code 0 and no refusal.
        """

        def read(printed: Printed) -> Printed:
            error = replies.refusal(printed, node=self.node, command=printed.command, wordings=self.wordings)
            if printed.exit_code != 0 or not isinstance(error, UnknownReplyError):
                raise error
            return printed

        return await self._asked("update-commands", read)

    async def commands(self) -> Printed:
        """Return what `a0cli` alone prints: the commands that it has now."""
        return await self._run("a0cli", None)

    async def ping(self) -> None:
        """Return if the node answers PONG. Raise RefusedError, UnreachableError or UnknownReplyError."""
        await self._asked("ping", lambda p: replies.read_ping(p, node=self.node, wordings=self.wordings))

    async def status(self, kind: str) -> replies.Status:
        """Return what the node holds of *kind*. Raise RefusedError, UnreachableError or UnknownReplyError."""
        command = f"{kind}-status"
        return await self._asked(
            command, lambda p: replies.read_status(p, node=self.node, command=command, wordings=self.wordings)
        )

    async def start(self, kind: str, password: str, *arguments: str) -> Printed:
        """Send the start of a node backup; what came of it, only the status tells.

        *arguments* follow the password: the fields of a user-export. Raise PasswordError for a password that a0cli
        would read as an option, FleetFileError for such an argument.
        """
        if not _plain(password):
            raise PasswordError(
                "its source", "it starts with '-', is empty or holds a NUL byte", "choose another password"
            )
        _require_plain(kind, *arguments)
        style = {"positional": [], "option": ["--password"]}[self.settings.password_style]
        # From here on the node knows it, and may say it again in any later reply.
        self.know(password)
        return await self._run(kind, [kind, *style, password, *arguments], secret=password)

    def know(self, password: str) -> None:
        """Remove *password* from every reply from now on.

        A short one is not looked for: taken out of the middle of words it would make good replies unreadable.
        """
        if len(password) >= _LOOKED_FOR and password not in self._known:
            self._known.append(password)

    async def retrieve(self, kind: str) -> Printed:
        """Have the node backup written into the private directory, within `retrieve_timeout`."""
        return await self.call(f"{kind}-retrieve", deadline=self.settings.retrieve_timeout)

    async def delete(self, kind: str) -> Printed:
        """Send the deletion of the node backup; what came of it, only the status tells."""
        return await self.call(f"{kind}-delete")

    async def _asked(self, command: str, read: Callable[[Printed], _Answer]) -> _Answer:
        """Make a call that only reads; its failure is UnreachableError where the port takes no connection."""
        try:
            return read(await self.call(command))
        except (UnknownReplyError, A0cliTimeoutError) as error:
            explained = await self._explained(error)
            if explained is error:
                raise
            raise explained from error

    async def _explained(self, error: A0cliError) -> A0cliError:
        if isinstance(error, UnknownReplyError | A0cliTimeoutError) and not await listening(self.host, self.port):
            reason = f"{self.host}:{self.port} takes no connection"
            return UnreachableError(self.node, error.command, reason, error.exit_code, error.tail)
        return error

    async def _run(
        self,
        command: str,
        arguments: Sequence[str] | None,
        *,
        deadline: float | None = None,
        secret: str | None = None,
    ) -> Printed:
        limit = self.settings.call_timeout if deadline is None else deadline
        hidden = [*self._known, *([secret] if secret and secret not in self._known else [])]
        program = self._program(command)
        target = [] if arguments is None else ["-t", self.host, "-p", str(self.port), *arguments]
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with contextlib.AsyncExitStack() as stack:
            stdout, stdout_end = await _pipe(stack)
            stderr, stderr_end = await _pipe(stack)
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    program,
                    *target,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout_end,
                    stderr=stderr_end,
                    cwd=self.directory,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,
                    umask=0o077,
                    pass_fds=self.inherit,
                )
            )
            # A process half started cannot be ended: a cancellation waits until it can.
            cancelled = await _to_the_end(starting)
            stdout_end.close()
            stderr_end.close()
            try:
                process = starting.result()
            except OSError as error:
                if cancelled is not None:
                    raise cancelled from None
                gone = "" if self.directory.is_dir() else f" (private directory {self.directory} is gone)"
                raise A0cliMissingError(self.node, command, f"{program}: {error.strerror}{gone}") from None
            _running.add(process.pid)
            exit_code = None
            try:
                if cancelled is not None:
                    raise cancelled
                async with asyncio.timeout_at(began + limit):
                    exit_code = await process.wait()
                await asyncio.wait({stdout.closed, stderr.closed}, timeout=_PIPES)
            except TimeoutError:
                pass  # told below, once the group is gone
            finally:
                ending = asyncio.ensure_future(_end_group(process, (stdout, stderr)))
                cancelled = await _to_the_end(ending)
                if ending.cancelled():  # the loop itself is being closed
                    _signal_group(process.pid, signal.SIGKILL)
                if process.returncode is not None:
                    _running.discard(process.pid)
            if cancelled is not None:
                raise cancelled
            out, err = stdout.text(hidden), stderr.text(hidden)
            if exit_code is None:
                reason = f"no end within {limit:g} s (waited for {self.host}:{self.port})"
                if process.returncode is None:
                    reason += f"; process {process.pid} could not be killed"
                tail = replies.quote(f"{out}\n{err}")
                raise A0cliTimeoutError(self.node, command, reason, tail=tail)
            return Printed(command, exit_code, out, err, loop.time() - began)

    def _program(self, command: str) -> str:
        found = shutil.which(self.settings.path)
        if found is None:
            if "/" in self.settings.path and Path(self.settings.path).is_file():
                reason = f"{self.settings.path} is not executable"
            else:
                reason = f"no program {self.settings.path}" + ("" if "/" in self.settings.path else " on PATH")
            raise A0cliMissingError(self.node, command, reason)
        # The call happens in another directory, from which a relative path would lead elsewhere.
        return str(Path(found).absolute())


def kill_running() -> None:
    """Kill every a0cli that is running now and all that it started: for a process on its way out."""
    for group in tuple(_running):
        _signal_group(group, signal.SIGKILL)


async def listening(host: str, port: int, timeout: float = 5) -> bool:  # noqa: ASYNC109 - part of the promise
    """Return whether *host* takes a TCP connection on *port* within *timeout* seconds."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, UnicodeError):
        return False
    writer.transport.abort()
    return True


class _Stream(asyncio.Protocol):
    """Reads a pipe to its end and keeps its first and last 32 KiB, so that neither side ever waits or grows."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head, self._tail, self._size = b"", b"", 0

    def data_received(self, octets: bytes) -> None:
        self._size += len(octets)
        room = _KEPT - len(self._head)
        self._head += octets[:room]
        self._tail = (self._tail + octets[room:])[-_KEPT:] if len(octets) > room else self._tail

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def text(self, secrets: Sequence[str]) -> str:
        """Return what was kept, without *secrets*."""
        left_out = self._size - len(self._head) - len(self._tail)
        if not left_out:
            return _without(secrets, (self._head + self._tail).decode(errors="replace"))
        # A secret cut in two would not be recognised: its length is left out on both sides of the cut.
        margin = max((replies.longest_form(secret) for secret in secrets), default=0)
        head, tail = self._head[: max(0, _KEPT - margin)], self._tail[margin:]
        parts = [_without(secrets, part.decode(errors="replace")) for part in (head, tail)]
        return f"{parts[0]}\n[{left_out + 2 * margin} bytes left out]\n{parts[1]}"


def _without(secrets: Sequence[str], text: str) -> str:
    """Return *text* without *secrets*, also where a colour or a control character splits one."""
    for secret in secrets:
        text = replies.redact(text, secret)
        bare = replies.clean(text)
        if (redacted := replies.redact(bare, secret)) != bare:
            text = redacted
    return text


async def _pipe(stack: contextlib.AsyncExitStack) -> tuple[_Stream, IO[bytes]]:
    """Return a stream and its writing end.

    asyncio's own pipes would keep `wait` from returning while a grandchild holds them open.
    """
    read_end, write_end = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    stack.callback(write_end.close)
    stack.callback(read_end.close)
    transport, stream = await asyncio.get_running_loop().connect_read_pipe(_Stream, read_end)
    stack.callback(transport.close)
    return stream, write_end


async def _to_the_end(work: asyncio.Future[_Answer]) -> asyncio.CancelledError | None:
    """Wait until *work* is done, even through cancellations; return the first one for the caller to raise."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled


async def _end_group(process: asyncio.subprocess.Process, streams: Sequence[_Stream]) -> None:
    """End all that is left of the process group: politely where a0cli itself has not ended."""

    def silent() -> bool:
        return process.returncode is not None and all(stream.closed.done() for stream in streams)

    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        await _until(lambda: silent() or _gone(process), _POLITE)
    if _signal_group(process.pid, signal.SIGKILL):
        await _until(lambda: process.returncode is not None, _KILLED)
        # Dead children that nobody reaps, as in a container without an init, stay in the group for ever.
        await _until(lambda: _gone(process), _PIPES)
        await asyncio.wait({stream.closed for stream in streams}, timeout=_PIPES)


def _gone(process: asyncio.subprocess.Process) -> bool:
    return process.returncode is not None and not _signal_group(process.pid, 0)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until *condition* holds, up to *seconds*; the kernel tells of no end but that of one's own child."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - no event tells of a group's end
        await asyncio.sleep(0.01)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS: nothing but zombies is left
        return False
    return True


def _require_plain(command: str, *arguments: str) -> None:
    if not all(map(_plain, (command, *arguments))):
        raise FleetFileError("fleet.yaml", [f"an argument of `a0cli {command}` starts with '-' or is empty"])


def _plain(text: str) -> bool:
    """Return whether *text* can be an argument that a0cli does not read as an option."""
    try:
        return bool(text) and not text.startswith("-") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
