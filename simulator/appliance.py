"""A node: its address, the appliance behind it, and one a0cli call as the node sees it."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from simulator.artifact import Artifact
from simulator.faults import Rules, group_of, kind_of

COMMANDS = {
    "backup <password>": "start a backup",
    "backup-status": "show the state of the backup",
    "backup-retrieve": "retrieve the backup into the current path",
    "backup-delete": "delete the backup from the node",
    "backup-sensitive <password>": "start a backup of the encryption keys",
    "backup-sensitive-status": "show the state of the sensitive backup",
    "backup-sensitive-retrieve": "retrieve the sensitive backup",
    "backup-sensitive-delete": "delete the sensitive backup",
    "user-export <password> <fields>": "start an export of the users",
    "user-export-status": "show the state of the export",
    "user-export-retrieve": "retrieve the export",
    "user-export-delete": "delete the export",
    "ping": "ask whether the node is there",
    "set-as-backup <device> [force]": "give the node the backup role",
    "re-ip <hosts>": "change the addresses of the nodes",
    "nslookup <host>": "look a host up from the node",
    "test-port <host> <port>": "test a connection from the node",
}


# The fields that `user-export PASSWORD FIELDS` accepts, comma-separated.
EXPORT_FIELDS = (
    *("_id", "email", "email_verified", "phone_number", "phone_verified"),
    *("name", "user_id", "lastLogin", "updated_at", "__tenant"),
)


# Builds before FIRST_SPLIT_BUILD have the encryption keys in the backup, and no commands for a sensitive one.
FIRST_SPLIT_BUILD, NEWEST_BUILD = 11638, 13451


PARAMETERS = {usage.split()[0]: usage.split()[1:] for usage in COMMANDS} | {"update-commands": []}


@dataclass
class Reply:
    state: str  # done, refused, found, absent, in progress
    message: str
    arguments: dict[str, Any] = field(default_factory=dict)
    exit: int = 0


class Appliance:
    """What is behind a node's address: the backups that it holds and makes."""

    def __init__(self, node: str, folder: Path, build: int) -> None:
        self.node = node  # the name of the address it is behind now
        self.build = build
        self.folder, self.origin = folder, node
        self.held: dict[str, Artifact] = {}
        self.deleted: dict[str, Artifact] = {}
        self.started: dict[str, float] = {}
        self.making: dict[str, asyncio.Task[None]] = {}
        self.serial = itertools.count(1)

    def offers(self, command: str) -> bool:
        """Return whether its build has *command*."""
        return command in PARAMETERS and (self.build >= FIRST_SPLIT_BUILD or kind_of(command) != "backup-sensitive")


Answer = Callable[["Node", asyncio.StreamReader, asyncio.StreamWriter], None]


class Node:
    """An address: its port, the faults ordered for it, and the appliance behind it."""

    def __init__(self, name: str, folder: Path, build: int) -> None:
        self.name, self.rules, self.appliance = name, Rules(), Appliance(name, folder, build)
        self.server: asyncio.Server | None = None
        # Bound but never listening: reserves the port for this node, and refuses connections while it is unreachable.
        self.anchor = self._bound(0)
        self.port: int = self.anchor.getsockname()[1]

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    async def open(self, answer: "Answer") -> None:
        """Answer each call with *answer*, unless the node is unreachable."""
        if self.server is None and not self.rules.has("unreachable"):
            self.server = await asyncio.start_server(partial(answer, self), sock=self._bound(self.port), backlog=256)

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


@dataclass
class Call:
    """One a0cli call as the node sees it, and the faults it met; without a pid, an operator's action by hand."""

    node: Node
    command: str
    args: list[str]
    pid: int | None = None
    ppid: int | None = None
    cwd: str = ""
    key: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return kind_of(self.command)

    @property
    def group(self) -> str:
        return group_of(self.command)

    @property
    def password(self) -> str | None:
        """The password that the node encrypts with; both `backup P` and `backup --password P` are accepted."""
        return next((word for word in self.args if word != "--password"), None) if self.group == "start" else None

    def met(
        self, fault: str, fits: Callable[[dict[str, Any]], bool] = lambda settings: True, **wanted: object
    ) -> dict[str, Any] | None:
        """Return the settings of *fault* if it is in force for this call, and count the call."""
        if settings := self.node.rules.meet(self.command, fault, fits, **wanted):
            self.faults.append(fault)
            return settings
        return None

    def kill(self, fault: str) -> None:
        """SIGKILL the process that *fault* targets: this a0cli or, for kill_parent, its caller."""
        victim = self.pid if fault == "kill_client" else self.ppid
        # Pid 1 adopts orphans, so the parent is gone. Our own parent is the test that gave the order.
        if victim is not None and victim > 1 and victim not in (os.getpid(), os.getppid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)


class Record:
    """A file of JSON lines, numbered from where an earlier server stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        with path.open("rb") as lines:
            self.before = sum(1 for _ in lines)
        self._sequence = itertools.count(self.before + 1)

    def write(self, **fields: object) -> None:
        line = json.dumps({"seq": next(self._sequence), "time": time.time(), **fields})
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
