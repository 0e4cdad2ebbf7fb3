"""The appliance's side: many nodes on loopback ports in one process, and a control socket to order faults on.

    python -m simulator serve --state DIR --nodes a0-1,a0-2

A node refuses what the vendor's page says a node refuses. What the page leaves open is decided here and stands in
README.md; every such wording can be replaced with the fault `say`.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import marshal
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simulator.artifact import Artifact, fingerprint, make
from simulator.faults import KINDS, OrderError, Rules, group_of, kind_of

FILES = {
    "backup": "backup-retrieve.tar.gz.enc",
    "backup-sensitive": "backup-sensitive-retrieve.tar.gz.enc",
    "user-export": "user_export.tar.gz.enc",
}
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
# What `user-export PASSWORD FIELDS` takes, comma-separated.
EXPORT_FIELDS = (
    *("_id", "email", "email_verified", "phone_number", "phone_verified"),
    *("name", "user_id", "lastLogin", "updated_at", "__tenant"),
)
# Builds before this one have the encryption keys in the backup, and no commands for a sensitive one.
FIRST_SPLIT_BUILD, NEWEST_BUILD = 11638, 13451
PARAMETERS = {usage.split()[0]: usage.split()[1:] for usage in COMMANDS} | {"update-commands": []}
CHUNK = 1 << 18
CONTROL_LINE = 1 << 26


@dataclass
class Reply:
    state: str  # done, refused, found, absent, in progress
    message: str
    arguments: dict[str, Any] = field(default_factory=dict)
    exit: int = 0


class Appliance:
    """What stands behind a node's address: the backups that it holds and makes."""

    def __init__(self, node: str, folder: Path, build: int) -> None:
        self.node = node  # the name of the address that it is behind now
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


class Node:
    """An address: its port, the faults ordered for it, and the appliance behind it."""

    def __init__(self, name: str, folder: Path, build: int) -> None:
        self.name, self.rules, self.appliance = name, Rules(), Appliance(name, folder, build)
        self.server: asyncio.Server | None = None
        # Bound and never listening: keeps the port for this node, and refuses connections, while it is unreachable.
        self.anchor = self._bound(0)
        self.port: int = self.anchor.getsockname()[1]

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    async def open(self, appliances: "Appliances") -> None:
        if self.server is None and not self.rules.has("unreachable"):
            # In a task of ours: those that asyncio starts are reported as failed when the loop ends before them.
            def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                appliances.spawn(appliances.answer(self, reader, writer))

            self.server = await asyncio.start_server(answer, sock=self._bound(self.port), backlog=256)

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


@dataclass
class Call:
    """One call of a0cli as the node sees it, and the faults it met; without a pid, what an operator does by hand."""

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
        """What the node encrypts with: both `backup P` and `backup --password P` are taken."""
        return next((word for word in self.args if word != "--password"), None) if self.group == "start" else None

    def met(
        self, fault: str, fits: Callable[[dict[str, Any]], bool] = lambda settings: True, **wanted: object
    ) -> dict[str, Any] | None:
        """Return the settings of *fault* if it is in force for this call, and count it."""
        if settings := self.node.rules.meet(self.command, fault, fits, **wanted):
            self.faults.append(fault)
            return settings
        return None

    def kill(self, fault: str) -> None:
        """SIGKILL the process that *fault* is about: this a0cli or, for kill_parent, the one that called it."""
        victim = self.pid if fault == "kill_client" else self.ppid
        # 1 is the reaper of orphans: the parent has gone. Our own parent is the test that gave the order.
        if victim is not None and victim > 1 and victim not in (os.getpid(), os.getppid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)


class Record:
    """A file of JSON lines, numbered from where an earlier server left it."""

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


class Appliances:
    """All nodes of one process, the records of their calls and of what they hold, and the orders given about them."""

    def __init__(
        self, state: Path, builds: dict[str, int], *, size: int, backup_seconds: float, vault: Path | None
    ) -> None:
        self.state, self.size, self.backup_seconds, self.vault = state, size, backup_seconds, vault
        self.calls, self.events = Record(state / "calls.jsonl"), Record(state / "events.jsonl")
        # No two backups are alike, also not those of two servers that use one DIR after another.
        self.seed = f"{self.calls.before}-{self.events.before}"
        self.nodes = {name: Node(name, state / "nodes" / name, build) for name, build in builds.items()}
        for node in self.nodes.values():
            shutil.rmtree(node.appliance.folder, ignore_errors=True)
            node.appliance.folder.mkdir(parents=True)
        self.stopping = threading.Event()
        self._background: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- what a node does -------------------------------------------------------------------------------------------

    def effect(self, call: Call) -> Reply:
        """Do what *call* asks of the node, or refuse it as a node would."""
        node, command = call.node, call.command
        if not node.appliance.offers(command):
            return Reply("refused", f"unknown command {command}", exit=1)
        given, takes = [word for word in call.args if word != "--password"], PARAMETERS[command]
        if not sum(name.startswith("<") for name in takes) <= len(given) <= len(takes):
            return Reply("refused", f"usage: {' '.join([command, *takes])}", exit=1)
        if call.group == "start":
            for field in given[1].split(",") if command == "user-export" else ():
                if field not in EXPORT_FIELDS:
                    return Reply("refused", f"unknown field {field!r}; fields: {','.join(EXPORT_FIELDS)}", exit=1)
            return self.start(call)
        if call.group == "status":
            return self.status(call)
        if call.group in ("retrieve", "delete"):
            if call.kind in node.appliance.making:
                return Reply("refused", f"{KINDS[call.kind]} in progress", exit=1)
            if call.kind not in node.appliance.held:
                return Reply("absent", _absent(call.kind), exit=1)
            if call.group == "delete":
                self.discard(node.appliance, call.kind, call.pid)
            return Reply("done", f"{KINDS[call.kind]} {call.group}d")
        if call.group == "role":
            return self.give_role(call, *given)
        return Reply("done", {"ping": "PONG", "update-commands": "Commands updated"}.get(command, "OK"))

    def give_role(self, call: Call, device: str, force: str = "") -> Reply:
        """Give the node the backup role; its page refuses that where a backup folder exists, unless force is true."""
        node, appliance = call.node, call.node.appliance
        if not device.startswith("/dev/"):
            return Reply("refused", f"{device}: no such device", exit=1)
        folder = bool(appliance.held) or node.rules.has("backup_folder") or not node.rules.has("no_role")
        if folder and force != "true":
            return Reply("refused", "A backup folder already exists", exit=1)
        # The new folder is an empty one.
        for kind in list(appliance.held):
            self.discard(appliance, kind, call.pid)
        node.rules.clear("no_role")
        node.rules.clear("backup_folder")
        return Reply("done", "OK")

    def start(self, call: Call) -> Reply:
        node, appliance, kind = call.node, call.node.appliance, call.kind
        if kind == "backup" and node.rules.has("no_role"):
            return Reply("refused", "This node is not a backup node", exit=1)
        if kind in appliance.making or kind in appliance.held:
            state = "in progress" if kind in appliance.making else "exists"
            return Reply("refused", f"{KINDS[kind]} already {state}", exit=1)
        duration, size, contents = call.met("duration"), call.met("size"), call.met("contents")
        appliance.started[kind] = time.monotonic()
        self.event(appliance, kind, "started", None, call.pid)
        appliance.making[kind] = self.spawn(
            self.backup(
                appliance,
                kind,
                call.password or "",
                size=size["bytes"] if size else self.size,
                seconds=duration["seconds"] if duration else self.backup_seconds,
                pid=call.pid,
                spoilt=contents["are"] if contents else "",
            )
        )
        return Reply("done", f"{KINDS[kind]} in progress")

    async def backup(
        self,
        appliance: Appliance,
        kind: str,
        password: str,
        *,
        size: int,
        seconds: float,
        pid: int | None,
        spoilt: str = "",
    ) -> None:
        ends = time.monotonic() + seconds
        try:
            artifact = await self.make(appliance, kind, password, size, spoilt)
            await asyncio.sleep(ends - time.monotonic())
            appliance.held[kind] = artifact
            self.event(appliance, kind, "complete", artifact, pid)
        finally:
            del appliance.making[kind]

    async def make(self, appliance: Appliance, kind: str, password: str, size: int, spoilt: str = "") -> Artifact:
        number = next(appliance.serial)
        seed, path = f"{self.seed}/{appliance.origin}/{kind}/{number}", appliance.folder / f"{kind}-{number}.tar.gz.enc"
        # In a thread, so that the nodes go on answering while a large one is made.
        return await asyncio.to_thread(
            make, path, kind=kind, seed=seed, size=size, password=password, stopped=self.stopping.is_set, spoilt=spoilt
        )

    def copied(self, appliance: Appliance, kind: str, file: Path, settings: dict[str, Any]) -> Artifact:
        """Return the bytes of *file* as a finished backup of the name and password that an order gives."""
        path = appliance.folder / f"{kind}-{next(appliance.serial)}.tar.gz.enc"
        path.write_bytes(file.read_bytes())
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        return Artifact(settings["name"], md5, path.stat().st_size, path, fingerprint(settings["password"]))

    def discard(self, appliance: Appliance, kind: str, pid: int | None) -> None:
        """Take away what *appliance* holds: deleted by the a0cli *pid* or, without one, removed by hand."""
        artifact = appliance.held[kind]
        if pid is None:
            event, witnessed = "removed", {}
        else:
            kept = kept_in(self.vault / appliance.node, kind, artifact.md5) if self.vault else None
            event, witnessed = "deleted", {"kept": kept}
        appliance.deleted[kind] = appliance.held.pop(kind)
        artifact.path.unlink()
        self.event(appliance, kind, event, artifact, pid, **witnessed)

    def lay(self, appliance: Appliance, kind: str, laid: Artifact | None) -> None:
        """Do as another desk does: take away what *appliance* holds and lay *laid* there if the place is free."""
        if kind in appliance.held:
            self.discard(appliance, kind, None)
        if laid is not None and kind not in appliance.making:
            appliance.held[kind] = laid
            self.event(appliance, kind, "complete", laid, None)

    def swap(self, one: Node, other: Node) -> None:
        one.appliance, other.appliance = other.appliance, one.appliance
        kinds = [kind for kind in KINDS if kind in one.appliance.held or kind in other.appliance.held]
        for node in (one, other):
            node.appliance.node = node.name
            for kind in kinds:
                self.event(node.appliance, kind, "swapped", node.appliance.held.get(kind), None)

    def event(
        self, appliance: Appliance, kind: str, event: str, artifact: Artifact | None, pid: int | None, **more: object
    ) -> None:
        """Append a change of what a node holds to the record of events."""
        self.events.write(
            node=appliance.node,
            kind=kind,
            event=event,
            name=artifact and artifact.name,
            md5=artifact and artifact.md5,
            password=artifact and artifact.password,
            by="hand" if pid is None else "a0cli",
            pid=pid,
            **more,
        )

    def status(self, call: Call) -> Reply:
        appliance, kind = call.node.appliance, call.kind
        artifact, making = appliance.held.get(kind), kind in appliance.making
        age = time.monotonic() - appliance.started.get(kind, 0)
        if call.met("in_progress"):
            artifact, making = None, True
        elif kind in appliance.deleted and call.met("stale_status", lambda settings: bool(age < settings["seconds"])):
            artifact, making = appliance.deleted[kind], False
        if making:
            return Reply("in progress", f"{KINDS[kind]} in progress")
        if artifact is None:
            return Reply("absent", _absent(kind))
        return Reply("found", f"{KINDS[kind]} found", {"name": artifact.name, "md5": artifact.md5})

    # --- answering a call -------------------------------------------------------------------------------------------

    def record(self, call: Call, outcome: str, exit_code: int | None, **more: object) -> None:
        """Append *call* to the record. Its password is there as a fingerprint only."""
        password = call.password and fingerprint(call.password)
        self.calls.write(
            node=call.node.name,
            command=call.command,
            args=[password if word == call.password else word for word in call.args],
            password=password,
            pid=call.pid,
            ppid=call.ppid,
            cwd=call.cwd,
            key=call.key,
            faults=call.faults,
            outcome=outcome,
            exit=exit_code,
            **more,
        )

    def worded(self, call: Call, reply: Reply) -> dict[str, Any]:
        """Return what the client prints for *reply* and how it exits, after the faults in wording."""
        found, arguments = reply.state == "found", dict(reply.arguments)
        if found and call.met("wrong_md5"):
            arguments["md5"] = hashlib.md5(arguments["md5"].encode(), usedforsecurity=False).hexdigest()
        if found and (bad := call.met("bad_md5")):
            arguments["md5"] = bad["value"]
        if found and call.met("no_md5"):
            del arguments["md5"]
        body = {"message": reply.message} | ({"arguments": arguments} if arguments else {})
        # As in the screenshots: one line without spaces or newline, a started backup in plain text, ping with a space.
        out = json.dumps(body, separators=(",", ":"))
        if call.group == "start" and reply.state == "done":
            out = reply.message
        elif call.command == "ping":
            out = json.dumps(body) + "\n"
        if call.met("pretty"):
            out = json.dumps(body, indent=2) + "\n"
        if found and call.met("missing_comma"):
            out = json.dumps(body, indent=2).replace('",\n    "', '"\n    "') + "\n"
        if call.met("bad_json"):
            out = json.dumps(body)[:-3]
        if call.met("colours"):
            out = f"\x1b[32m{out}\x1b[39m"
        if banner := call.met("banner"):
            out = banner["before"] + out + banner["after"]
        err, code = "", reply.exit
        if code:
            out, err = "", out + "\n"
        if said := call.met("say", when=reply.state) or call.met("say", when=None):
            out, err = (
                said[stream].replace("{name}", str(arguments.get("name"))).replace("{md5}", str(arguments.get("md5")))
                for stream in ("stdout", "stderr")
            )
            code = code if said["exit"] is None else said["exit"]
        if replaced := call.met("exit"):
            code = replaced["code"]
        return {"out": out, "err": err, "exit": code}

    async def answer(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            request["key"] = _key_fingerprint(request["key"].encode())
            call = Call(node, **request)
        except (ConnectionError, ValueError, KeyError, TypeError):
            # No a0cli, or one that was killed before it had asked: a node hangs up on it.
            writer.close()
            return
        try:
            await self.converse(call, reader, writer)
        except ConnectionError:
            # A client that has gone needs no reply; what it asked for was done or not, and is on record.
            pass
        finally:
            writer.close()

    async def converse(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(**line: object) -> None:
            writer.write(json.dumps(line).encode() + b"\n")
            await writer.drain()

        async def sit() -> None:
            while await reader.read(CHUNK):
                pass

        if hang := call.met("hang"):
            self.record(call, "hang", None)
            await send(ignore_sigterm=hang["ignore_sigterm"])
            return await sit()
        if latency := call.met("latency"):
            await asyncio.sleep(latency["seconds"])
        if call.met("kill_client", when="before"):
            self.record(call, "kill_client", None)
            return call.kill("kill_client")
        if kill := call.met("kill_parent", when="before"):
            if kill["orphan"] is None:
                self.record(call, "kill_parent", None)
                return call.kill("kill_parent")
            call.kill("kill_parent")
            await asyncio.sleep(kill["orphan"])
        if refused := call.met("refuse"):
            self.record(call, "refuse", refused["exit"])
            texts = {"out": "", "err": "", {"stdout": "out", "stderr": "err"}[refused["stream"]]: refused["message"]}
            return await send(**texts, exit=refused["exit"])
        if call.key not in {_key_fingerprint(path.read_bytes()) for path in (self.state / "keys").glob("*.pub")}:
            self.record(call, "refused", 1)
            return await send(out="", err="error: this key is not known to the node\n", exit=1)
        words = {"start": "in progress", "delete": "deleted"}
        done = Reply("done", f"{KINDS[call.kind]} {words[call.group]}" if call.group in words else "OK")
        if late := call.met("late"):
            self.spawn(self.later(late["seconds"], call))
            told = self.worded(call, done)
            self.record(call, "late", told["exit"] if late["reply"] == "ok" else None)
            if late["reply"] == "ok":
                await send(**told)
            return await sit() if late["reply"] == "hang" else None
        # Another desk's backup is made before this call is answered, so as to lie there before the next one is.
        appliance, laid = call.node.appliance, None
        replaced = call.met("replaced") if call.kind in appliance.held else None
        taken = call.met("taken") if call.kind in appliance.held and not replaced else None
        if replaced:
            laid = await self.make(appliance, call.kind, replaced["password"], self.size)
        if call.met("false_delete"):
            reply, outcome = done, "false_delete"
        else:
            reply = self.effect(call)
            outcome = "refused" if reply.exit else "done"
        told, sent = self.worded(call, reply), {}
        if call.group == "retrieve" and outcome == "done":
            outcome, sent["bytes"] = await self.transfer(call, reader, writer)
        if cut := outcome in ("drop", "gone", "kill_client"):
            kills, silent = [], True
        else:
            kills = [fault for fault in ("kill_parent", "kill_client") if call.met(fault, when="after")]
            silent = "kill_client" in kills
        lost = not cut and call.met("lost_reply")
        self.record(call, outcome, None if silent or lost else told["exit"], **sent)
        if replaced or taken:
            self.lay(appliance, call.kind, laid)
        for fault in kills:
            call.kill(fault)
        if silent or lost:
            return None
        if call.command == "update-commands" and outcome == "done":
            bare = {"backup"} if call.node.rules.has("no_role") else set()
            offered = {c for c in PARAMETERS if appliance.offers(c)} - bare
            await send(commands={u: m for u, m in COMMANDS.items() if u.split()[0] in offered})
        return await send(**told)

    async def later(self, seconds: float, call: Call) -> None:
        await asyncio.sleep(seconds)
        self.effect(call)

    async def transfer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
        """Stream the artifact; return how that ended, and how many bytes were sent."""
        held = call.node.appliance.held[call.kind]
        truncate, drop, flip = call.met("truncate"), call.met("drop"), call.met("flip")
        drip, renamed = call.met("drip"), call.met("file_name")
        total = int(held.size * truncate["fraction"]) if truncate else held.size
        ends = int(total * drop["fraction"]) if drop else total
        kills = sorted(
            (min(int(total * kill["fraction"]), ends), fault)
            for fault in ("kill_parent", "kill_client")
            if (kill := call.met(fault, when="during"))
        )
        flipped = min(int(total * flip["fraction"]), total - 1) if flip else -1
        step, sent = max(1, min(CHUNK, drip["bytes_per_second"] // 10)) if drip else CHUNK, 0
        file_name = renamed["name"] if renamed else FILES[call.kind]
        try:
            writer.write(json.dumps({"file": file_name, "size": total}).encode() + b"\n")
            with held.path.open("rb") as file:
                while True:
                    due = [fault for at, fault in kills if at <= sent]
                    kills = kills[len(due) :]
                    for fault in due:
                        call.kill(fault)
                    if "kill_client" in due:
                        return "kill_client", sent
                    if sent >= ends:
                        break
                    piece = bytearray(file.read(min(step, (kills[0][0] if kills else ends) - sent)))
                    if sent <= flipped < sent + len(piece):
                        piece[flipped - sent] ^= 1
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
                    if drip:
                        await asyncio.sleep(len(piece) / drip["bytes_per_second"])
            if drop:
                return "drop", sent
            # The client answers once the file is written on its side.
            return ("truncate" if truncate else "done") if await reader.readline() else "gone", sent
        except ConnectionError:
            return "gone", sent

    # --- orders -----------------------------------------------------------------------------------------------------

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                try:
                    answer: dict[str, object] = {"ok": await self.obey(json.loads(line))}
                except (OrderError, KeyError, TypeError, ValueError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def obey(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out one order. Raise OrderError if it means nothing."""
        settings = dict(order)
        verb, name = settings.pop("order", "tell"), settings.pop("node", None)
        if name not in (None, "*", *self.nodes):
            raise OrderError(f"there is no node {name}")
        nodes = [self.nodes[name]] if name in self.nodes else list(self.nodes.values())
        if verb == "tell":
            named = {key: settings.pop(key, None) for key in ("fault", "command", "times", "skip")}
            for node in nodes:
                self.tell(node, settings=settings, **named)
            return None
        if verb == "forget":
            for node in nodes:
                node.rules.clear()
                await node.open(self)
            return None
        if verb == "swap":
            pair = settings.get("nodes")
            if not isinstance(pair, list) or len(pair) != 2 or not set(pair) <= self.nodes.keys() or pair[0] == pair[1]:
                raise OrderError(f"swap is for the names of two nodes, not {pair}")
            self.swap(*(self.nodes[name] for name in pair))
            return None
        kind = settings.get("kind") or "backup"
        if len(nodes) != 1 or kind not in KINDS or verb not in ("put", "remove", "holds", "hand_start"):
            raise OrderError(
                f"{order} is no order: tell, forget, swap, or put, remove, holds, hand_start with one node and a kind"
            )
        node, appliance = nodes[0], nodes[0].appliance
        if verb == "hand_start":
            reply = self.start(Call(node, kind, [settings["password"]]))
            if reply.exit:
                raise OrderError(f"{node.name}: {reply.message}")
            return None
        if verb == "put":
            if kind in appliance.held or kind in appliance.making:
                raise OrderError(f"{node.name} already holds or makes a {kind}")
            if file := settings.get("file"):
                self.lay(appliance, kind, self.copied(appliance, kind, Path(file), settings))
            else:
                size = settings.get("size") or self.size
                appliance.making[kind] = self.spawn(
                    self.backup(appliance, kind, settings["password"], size=size, seconds=0, pid=None)
                )
                await appliance.making[kind]
        if verb == "remove" and kind in appliance.held:
            self.discard(appliance, kind, None)
        held = appliance.held.get(kind)
        return asdict(held) | {"path": str(held.path)} if held else None

    def tell(
        self,
        node: Node,
        *,
        fault: str,
        command: str | None,
        times: int | None,
        skip: int | None,
        settings: dict[str, Any],
    ) -> None:
        if command not in (None, "*", *PARAMETERS):
            raise OrderError(f"there is no command {command}; there are {', '.join(PARAMETERS)}")
        rule = node.rules.add(fault, command, times, skip, settings)
        if fault == "unreachable":
            node.close()
            if seconds := rule.settings["seconds"]:

                async def come_back() -> None:
                    await asyncio.sleep(seconds)
                    node.rules.drop(rule)
                    await node.open(self)

                self.spawn(come_back())


def kept_in(folder: Path, kind: str, md5: str) -> bool:
    """Whether a manifest in a node's *folder* of the vault names that md5, and the artifact beside it is those bytes.

    Reads the vault as its page describes it, and shares no code with the product: it is a witness against it.
    """
    try:
        paths = [path for path in folder.glob("*/manifest.json") if path.is_file()]
    except OSError:
        return False
    for path in paths:
        try:
            manifest = json.loads(path.read_bytes())
            artifact = manifest["artifact"]
            file = path.with_name(Path(artifact["file"]).name)
            if (manifest["kind"], artifact["md5"]) != (kind, md5) or not file.is_file():
                continue
            with file.open("rb") as stored:
                found = hashlib.file_digest(stored, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                size = os.fstat(stored.fileno()).st_size
        except (OSError, ValueError, KeyError, TypeError):
            # What cannot be read keeps nothing.
            continue
        if (found, size) == (md5, artifact["size"]):
            return True
    return False


def _absent(kind: str) -> str:
    return f"No {KINDS[kind][0].lower()}{KINDS[kind][1:]} found"


def _key_fingerprint(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]


def install(state: Path) -> tuple[Path, Path]:
    """Write the stand-in a0cli to DIR/bin, have it make a key pair in DIR/keys, and return both paths."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    shebang = f"#!{sys.executable} -IS\n"
    if any(map(str.isspace, sys.executable)) or len(os.fsencode(shebang)) > 127:
        # What a kernel does not take as a shebang, a shell starts: the second line is a string to Python.
        shebang = f"#!/bin/sh\n'''exec' \"{sys.executable}\" -IS \"$0\" \"$@\"\n' '''\n"
    client, keys = state / "bin" / "a0cli", state / "keys"
    client.parent.mkdir(exist_ok=True)
    source = Path(__file__).with_name("client.py")
    # Compiled here, once, and not at each of its many starts.
    compiled = marshal.dumps(compile(source.read_bytes(), source, "exec"))
    client.write_text(f"{shebang}import marshal\nexec(marshal.loads({compiled!r}))\n", encoding="utf-8")
    client.chmod(0o700)
    if not keys.exists():
        keys.mkdir(mode=0o700)
        subprocess.run([client, "create-key"], cwd=keys, check=True, stdout=subprocess.DEVNULL)
    return client, keys


@contextlib.contextmanager
def control_path(state: Path) -> Iterator[Path]:
    """Yield where the control socket goes: the address of a Unix socket ends at 108 bytes."""
    if len(os.fsencode(state)) <= 90:
        path = state / "control.sock"
        path.unlink(missing_ok=True)
        yield path
        path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="a0-") as short:
            yield Path(short) / "control.sock"


async def serve(
    appliances: Appliances, orders: list[dict[str, Any]], ready: dict[str, Any], *, with_stdin: bool
) -> None:
    """Print the ready line and serve until SIGTERM, SIGINT, or the end of stdin where that is asked for."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if with_stdin:
        threading.Thread(target=_await_eof, args=(loop, ended), daemon=True).start()
    try:
        for order in orders:
            await appliances.obey(order)
        for node in appliances.nodes.values():
            await node.open(appliances)
        await asyncio.start_unix_server(appliances.control, ready["control"], limit=CONTROL_LINE)
        nodes = [{"name": n.name, "host": "127.0.0.1", "port": n.port} for n in appliances.nodes.values()]
        print(
            json.dumps(
                {**ready, "calls": str(appliances.calls.path), "events": str(appliances.events.path), "nodes": nodes}
            ),
            flush=True,
        )
        await ended.wait()
    finally:
        appliances.stopping.set()


def _await_eof(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    # A signal may have ended the loop before.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ended.set)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulator", description="A stand-in PSaaS Appliance on loopback.")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--state", type=Path, required=True, metavar="DIR")
    parser.add_argument("--nodes", required=True, metavar="NAME[:BUILD],...", help=f"build {NEWEST_BUILD} if not said")
    parser.add_argument("--scenario", type=Path, metavar="FILE.json", help="a list of orders, see README.md")
    parser.add_argument("--size", type=int, default=1 << 16, metavar="BYTES", help="of a backup, about")
    parser.add_argument("--backup-seconds", type=float, default=0.2, metavar="S", help="how long a backup takes")
    parser.add_argument("--vault", type=Path, metavar="DIR", help="where to look whether what is deleted was kept")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started this one")
    given = parser.parse_args()
    state, nodes = given.state.resolve(), given.nodes.split(",")
    read = [re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([0-9]{1,9}))?", node, re.ASCII) for node in nodes]
    builds = {node[1]: int(node[2] or NEWEST_BUILD) for node in read if node}
    if len(builds) < len(nodes):
        parser.error(f"--nodes {given.nodes}: names are unique, of letters, digits, '.', '_' and '-', builds of digits")
    os.umask(0o077)
    orders = json.loads(given.scenario.read_text(encoding="utf-8")) if given.scenario else []
    client, keys = install(state)
    vault = given.vault and given.vault.resolve()
    appliances = Appliances(state, builds, size=given.size, backup_seconds=given.backup_seconds, vault=vault)
    with control_path(state) as control:
        ready = {"a0cli": str(client), "key_dir": str(keys), "control": str(control)}
        asyncio.run(serve(appliances, orders, ready, with_stdin=given.until_stdin_closes))
    return 0
