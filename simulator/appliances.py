"""All nodes of one process: what they hold and make, and the record of it."""

import asyncio
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from simulator.appliance import EXPORT_FIELDS, PARAMETERS, Answer, Appliance, Call, Node, Record, Reply
from simulator.artifact import Artifact, fingerprint, make
from simulator.faults import KINDS


class Appliances:
    """All nodes of one process, the records of their calls and of what they hold, and the orders about them."""

    def __init__(
        self, state: Path, builds: dict[str, int], *, size: int, backup_seconds: float, vault: Path | None
    ) -> None:
        self.state, self.size, self.backup_seconds, self.vault = state, size, backup_seconds, vault
        self.calls, self.events = Record(state / "calls.jsonl"), Record(state / "events.jsonl")
        # No two backups are alike, not even those of two servers that use one DIR in turn.
        self.seed = f"{self.calls.before}-{self.events.before}"
        self.nodes = {name: Node(name, state / "nodes" / name, build) for name, build in builds.items()}
        for node in self.nodes.values():
            shutil.rmtree(node.appliance.folder, ignore_errors=True)
            node.appliance.folder.mkdir(parents=True)
        self.health_key = ""  # of the health endpoints, once they are there
        self.answer: Answer = lambda node, reader, writer: writer.close()  # until a server sets it
        self.stopping = threading.Event()
        self._background: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

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
        """Give the node the backup role; its page refuses where a backup folder exists, unless *force* is true."""
        node, appliance = call.node, call.node.appliance
        if not device.startswith("/dev/"):
            return Reply("refused", f"{device}: no such device", exit=1)
        folder = bool(appliance.held) or node.rules.has("backup_folder") or not node.rules.has("no_role")
        if folder and force != "true":
            return Reply("refused", "A backup folder already exists", exit=1)
        # The new folder is empty.
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
        # In a thread: the nodes keep answering while a large artifact is made.
        return await asyncio.to_thread(
            make, path, kind=kind, seed=seed, size=size, password=password, stopped=self.stopping.is_set, spoilt=spoilt
        )

    def copied(self, appliance: Appliance, kind: str, file: Path, settings: dict[str, Any]) -> Artifact:
        """Return the bytes of *file* as a finished backup with the name and password of an order's *settings*."""
        path = appliance.folder / f"{kind}-{next(appliance.serial)}.tar.gz.enc"
        path.write_bytes(file.read_bytes())
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        return Artifact(settings["name"], md5, path.stat().st_size, path, fingerprint(settings["password"]))

    def discard(self, appliance: Appliance, kind: str, pid: int | None) -> None:
        """Discard what *appliance* holds: deleted by the a0cli *pid* or, without one, removed by hand."""
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
        """Act as another desk: discard what *appliance* holds, and put *laid* there unless a backup is being made."""
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
        """Append a change in what a node holds to the record of events."""
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


def kept_in(folder: Path, kind: str, md5: str) -> bool:
    """Return whether a manifest in a node's *folder* of the vault names that md5 and its artifact is those bytes.

    This reads the vault as its page describes it, and shares no code with the product: it is an
    independent witness.
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
            # What is unreadable does not count as kept.
            continue
        if (found, size) == (md5, artifact["size"]):
            return True
    return False


def _absent(kind: str) -> str:
    return f"No {KINDS[kind][0].lower()}{KINDS[kind][1:]} found"
