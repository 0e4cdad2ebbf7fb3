"""Send a0cli commands to one node and read the replies.

directory = PrivateDirectory(vault / "a0-1" / "work", "run-1", node="a0-1")
directory.make(settings.key_dir)
a0cli = A0cli(settings, node="a0-1", host="192.168.1.186", port=10121, directory=directory.path)
await a0cli.update_commands()
await a0cli.ping()
print(await a0cli.status("backup"))
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from a0backup.a0cli.printed import Printed
from a0backup.a0cli.process import run_program
from a0backup.a0cli.redaction import LOOKED_FOR
from a0backup.a0cli.replies import read_ping, read_status, refusal
from a0backup.a0cli.status import Status
from a0backup.a0cli.text import quote
from a0backup.a0cli.wordings import Wordings
from a0backup.errors import (
    A0cliError,
    A0cliMissingError,
    A0cliTimeoutError,
    FleetFileError,
    PasswordError,
    UnknownReplyError,
    UnreachableError,
)
from a0backup.files import in_thread

Answer = TypeVar("Answer")


class Settings(Protocol):
    """The `a0cli` section of fleet.yaml."""

    @property
    def path(self) -> str: ...
    @property
    def call_timeout(self) -> float: ...
    @property
    def retrieve_timeout(self) -> float: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def password_style(self) -> str: ...
    @property
    def replies(self) -> Mapping[str, Sequence[str]]: ...


PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


class A0cli:
    """The a0cli calls for one node, each run in the node's private *directory*.

    Each process inherits the file descriptors *inherit*. They hold the node's lock, which thus lasts
    until the last a0cli has ended, even if the run is killed.
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
        """Raise FleetFileError if a0cli would read *host* as an option, or if `a0cli.replies` is unusable."""
        self.settings, self.node, self.host, self.port = settings, node, host, port
        self.directory, self.inherit = directory, tuple(inherit)
        self.wordings = Wordings.extended(settings.replies)
        self._known: list[str] = []
        if not _plain(host):
            raise FleetFileError("fleet.yaml", [f"host of node {node}: give a host name or an address"])

    async def call(
        self, command: str, *arguments: str, deadline: float | None = None, secret: str | None = None
    ) -> Printed:
        """Run one command and return its output without *secret*, whatever the exit code.

        Raise A0cliMissingError if a0cli cannot be started, A0cliTimeoutError after *deadline* seconds
        (default: `call_timeout`), FleetFileError for an argument that a0cli would read as an option.
        """
        _require_plain(command, *arguments)
        return await self._run(command, [command, *arguments], deadline=deadline, secret=secret)

    async def update_commands(self) -> Printed:
        """Ask the node which commands it accepts; the private directory keeps the answer.

        Raise RefusedError, UnreachableError or UnknownReplyError unless the exit code is 0 and the reply is no refusal.
        """

        def read(printed: Printed) -> Printed:
            error = refusal(printed, node=self.node, command=printed.command, wordings=self.wordings)
            if printed.exit_code != 0 or not isinstance(error, UnknownReplyError):
                raise error
            return printed

        return await self._asked("update-commands", read)

    async def commands(self) -> Printed:
        """Return what `a0cli` prints without arguments: the commands that it offers now."""
        return await self._run("a0cli", None)

    async def ping(self) -> None:
        """Return if the node answers PONG. Otherwise raise RefusedError, UnreachableError or UnknownReplyError."""
        await self._asked("ping", lambda p: read_ping(p, node=self.node, wordings=self.wordings))

    async def status(self, kind: str) -> Status:
        """Return the status of *kind* on the node. Raise RefusedError, UnreachableError or UnknownReplyError."""
        command = f"{kind}-status"
        return await self._asked(
            command, lambda p: read_status(p, node=self.node, command=command, wordings=self.wordings)
        )

    async def start(self, kind: str, password: str, *arguments: str) -> Printed:
        """Send the command that starts a node backup; only the status tells whether it had an effect.

        *arguments* follow the password: the fields of a user-export. Raise PasswordError if a0cli would
        read the password as an option, FleetFileError if it would read one of *arguments* as an option.
        """
        if not _plain(password):
            raise PasswordError(
                "its source", "it starts with '-', is empty or holds a NUL byte", "choose another password"
            )
        _require_plain(kind, *arguments)
        style = {"positional": [], "option": ["--password"]}[self.settings.password_style]
        # From here on the node knows the password and may repeat it in any later reply.
        self.know(password)
        return await self._run(kind, [kind, *style, password, *arguments], secret=password)

    def know(self, password: str) -> None:
        """Remove *password* from every reply from now on.

        A short password is not removed: cutting it out of words would make valid replies unreadable.
        """
        if len(password) >= LOOKED_FOR and password not in self._known:
            self._known.append(password)

    @property
    def known(self) -> tuple[str, ...]:
        """The passwords that are removed from every reply."""
        return tuple(self._known)

    async def retrieve(self, kind: str) -> Printed:
        """Retrieve the node backup into the private directory within `retrieve_timeout`."""
        return await self.call(f"{kind}-retrieve", deadline=self.settings.retrieve_timeout)

    async def delete(self, kind: str) -> Printed:
        """Send the command that deletes the node backup; only the status tells whether it had an effect."""
        return await self.call(f"{kind}-delete")

    async def _asked(self, command: str, read: Callable[[Printed], Answer]) -> Answer:
        """Make a read-only call; raise UnreachableError for its failure if the port accepts no connection."""
        try:
            printed = await self.call(command)
            return await in_thread(read, printed)
        except (UnknownReplyError, A0cliTimeoutError, UnreachableError) as error:
            explained = await self._explained(error)
            if explained is error:
                raise
            raise explained from error

    async def _explained(self, error: A0cliError) -> A0cliError:
        unpassed = [name for name in PROXIES if name in os.environ and name not in self.settings.env]
        proxies = f"; {', '.join(unpassed)} set here and not given to a0cli, see a0cli.env" if unpassed else ""
        if isinstance(error, UnreachableError):
            reason = error.reason
        elif not await listening(self.host, self.port):
            reason = f"{self.host}:{self.port} takes no connection"
        else:
            return error
        if isinstance(error, UnreachableError) and not proxies:
            return error
        return UnreachableError(self.node, error.command, f"{reason}{proxies}", error.exit_code, error.tail)

    async def _run(
        self,
        command: str,
        arguments: Sequence[str] | None,
        *,
        deadline: float | None = None,
        secret: str | None = None,
    ) -> Printed:
        limit = self.settings.call_timeout if deadline is None else deadline
        program = self._program(command)
        secrets = (*self._known, *([secret] if secret and secret not in self._known else []))
        try:
            ended = await run_program(
                program,
                [] if arguments is None else ["-t", self.host, "-p", str(self.port), *arguments],
                directory=self.directory,
                limit=limit,
                inherit=self.inherit,
                environment=self.settings.env,
                secrets=secrets,
            )
        except OSError as error:
            gone = "" if self.directory.is_dir() else f" (private directory {self.directory} is gone)"
            raise A0cliMissingError(self.node, command, f"{program}: {error.strerror}{gone}") from None
        if ended.exit_code is None:
            reason = f"no end within {limit:g} s (waited for {self.host}:{self.port})"
            if ended.left is not None:
                reason += f"; process {ended.left} could not be killed"
            tail = await in_thread(quote, f"{ended.stdout}\n{ended.stderr}")
            raise A0cliTimeoutError(self.node, command, reason, tail=tail)
        return Printed(command, ended.exit_code, ended.stdout, ended.stderr, ended.seconds, secrets)

    def _program(self, command: str) -> str:
        found = shutil.which(self.settings.path)
        if found is None:
            if "/" in self.settings.path and shutil.which(self.settings.path, os.F_OK):
                reason = f"{self.settings.path} is not executable"
            else:
                reason = f"no program {self.settings.path}" + ("" if "/" in self.settings.path else " on PATH")
            raise A0cliMissingError(self.node, command, reason)
        # The call runs in another directory, where a relative path would resolve differently.
        return str(Path(found).absolute())


async def listening(host: str, port: int, timeout: float = 5) -> bool:  # noqa: ASYNC109 - part of the interface
    """Return whether *host* accepts a TCP connection on *port* within *timeout* seconds."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, UnicodeError):
        return False
    writer.transport.abort()
    return True


def _require_plain(command: str, *arguments: str) -> None:
    if not all(map(_plain, (command, *arguments))):
        raise FleetFileError("fleet.yaml", [f"an argument of `a0cli {command}` starts with '-' or is empty"])


def _plain(text: str) -> bool:
    """Return whether a0cli can take *text* as an argument without reading it as an option."""
    try:
        return bool(text) and not text.startswith("-") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
