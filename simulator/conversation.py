"""The answer to a call: what the client prints, how it exits, and the faults that the call meets."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.appliance import COMMANDS, PARAMETERS, Call, Node, Reply
from simulator.appliances import Appliances
from simulator.artifact import fingerprint
from simulator.faults import KINDS

FILES = {
    "backup": "backup-retrieve.tar.gz.enc",
    "backup-sensitive": "backup-sensitive-retrieve.tar.gz.enc",
    "user-export": "user_export.tar.gz.enc",
}


CHUNK = 1 << 18


async def answer(
    appliances: Appliances, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one a0cli call, from its request to its end."""
    try:
        request = json.loads(await reader.readline())
        request["key"] = _key_fingerprint(request["key"].encode())
        call = Call(node, **request)
    except (ConnectionError, ValueError, KeyError, TypeError):
        # Not an a0cli, or one that was killed before it sent its request: a node hangs up.
        writer.close()
        return
    try:
        await Conversation(appliances, call, reader, writer).hold()
    except ConnectionError:
        # A client that is gone needs no reply. Whether its command was done is on record.
        pass
    finally:
        writer.close()


class Conversation:
    """One call: its effect, and what its client is told."""

    def __init__(
        self, appliances: Appliances, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.appliances, self.call, self.reader, self.writer = appliances, call, reader, writer

    def worded(self, reply: Reply) -> dict[str, Any]:
        """Return what the client prints for *reply* and how it exits, with the faults in wording applied."""
        call, arguments = self.call, self._arguments(reply)
        out, err, code = self._printed(reply, arguments), "", reply.exit
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

    def _arguments(self, reply: Reply) -> dict[str, Any]:
        """Return name and md5 as the node shows them."""
        call, arguments = self.call, dict(reply.arguments)
        if reply.state != "found":
            return arguments
        if call.met("wrong_md5"):
            arguments["md5"] = hashlib.md5(arguments["md5"].encode(), usedforsecurity=False).hexdigest()
        if bad := call.met("bad_md5"):
            arguments["md5"] = bad["value"]
        if call.met("no_md5"):
            del arguments["md5"]
        return arguments

    def _printed(self, reply: Reply, arguments: dict[str, Any]) -> str:
        """Return *reply* as the node prints it on success."""
        call = self.call
        body = {"message": reply.message} | ({"arguments": arguments} if arguments else {})
        # As in the screenshots: one line without spaces or newline; a started backup in plain text; ping with a space.
        out = json.dumps(body, separators=(",", ":"))
        if call.group == "start" and reply.state == "done":
            out = reply.message
        elif call.command == "ping":
            out = json.dumps(body) + "\n"
        if call.met("pretty"):
            out = json.dumps(body, indent=2) + "\n"
        if reply.state == "found" and call.met("missing_comma"):
            out = json.dumps(body, indent=2).replace('",\n    "', '"\n    "') + "\n"
        if call.met("bad_json"):
            out = json.dumps(body)[:-3]
        if call.met("colours"):
            out = f"\x1b[32m{out}\x1b[39m"
        if banner := call.met("banner"):
            out = banner["before"] + out + banner["after"]
        return out

    async def hold(self) -> None:
        """Do what the call asks for and answer it, or apply the faults ordered for it."""
        call = self.call
        if await self._meets_a_fault_first():
            return
        if call.key not in {_key_fingerprint(path.read_bytes()) for path in self._known_keys()}:
            self.record("refused", 1)
            await self._send(out="", err="error: this key is not known to the node\n", exit=1)
            return
        words = {"start": "in progress", "delete": "deleted"}
        done = Reply("done", f"{KINDS[call.kind]} {words[call.group]}" if call.group in words else "OK")
        if late := call.met("late"):
            await self._answer_before(late, done)
            return
        # Make the other desk's backup before this call is answered: it must be on the node before the next call is.
        appliance, laid = call.node.appliance, None
        replaced = call.met("replaced") if call.kind in appliance.held else None
        taken = call.met("taken") if call.kind in appliance.held and not replaced else None
        if replaced:
            laid = await self.appliances.make(appliance, call.kind, replaced["password"], self.appliances.size)
        reply, outcome = (done, "false_delete") if call.met("false_delete") else self._effect()
        told, sent = self.worded(reply), {}
        if call.group == "retrieve" and outcome == "done":
            outcome, sent["bytes"] = await self.transfer()
        kills, answered = self._end(outcome)
        self.record(outcome, told["exit"] if answered else None, **sent)
        if replaced or taken:
            self.appliances.lay(appliance, call.kind, laid)
        for fault in kills:
            call.kill(fault)
        if answered:
            await self._tell(told, outcome)

    async def _meets_a_fault_first(self) -> bool:
        """Return whether a fault has ended the call before the node was asked for anything."""
        call = self.call
        if hang := call.met("hang"):
            self.record("hang", None)
            await self._send(ignore_sigterm=hang["ignore_sigterm"])
            await self._sit()
            return True
        if latency := call.met("latency"):
            await asyncio.sleep(latency["seconds"])
        if call.met("kill_client", when="before"):
            self.record("kill_client", None)
            call.kill("kill_client")
            return True
        if kill := call.met("kill_parent", when="before"):
            if kill["orphan"] is None:
                self.record("kill_parent", None)
                call.kill("kill_parent")
                return True
            call.kill("kill_parent")
            await asyncio.sleep(kill["orphan"])
        if refused := call.met("refuse"):
            self.record("refuse", refused["exit"])
            texts = {"out": "", "err": "", {"stdout": "out", "stderr": "err"}[refused["stream"]]: refused["message"]}
            await self._send(**texts, exit=refused["exit"])
            return True
        return False

    async def _answer_before(self, late: dict[str, Any], done: Reply) -> None:
        """Answer as *late* says, and do what was asked some time later."""
        self.appliances.spawn(self._later(late["seconds"]))
        told = self.worded(done)
        self.record("late", told["exit"] if late["reply"] == "ok" else None)
        if late["reply"] == "ok":
            await self._send(**told)
        if late["reply"] == "hang":
            await self._sit()

    async def _later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.appliances.effect(self.call)

    def _effect(self) -> tuple[Reply, str]:
        reply = self.appliances.effect(self.call)
        return reply, "refused" if reply.exit else "done"

    def _end(self, outcome: str) -> tuple[list[str], bool]:
        """Return the kill faults to apply at the end of the call, and whether its client gets an answer."""
        if outcome in ("drop", "gone", "kill_client"):
            return [], False
        kills = [fault for fault in ("kill_parent", "kill_client") if self.call.met(fault, when="after")]
        lost = self.call.met("lost_reply")
        return kills, "kill_client" not in kills and not lost

    async def _tell(self, told: dict[str, Any], outcome: str) -> None:
        call = self.call
        if call.command == "update-commands" and outcome == "done":
            bare = {"backup"} if call.node.rules.has("no_role") else set()
            offered = {c for c in PARAMETERS if call.node.appliance.offers(c)} - bare
            await self._send(commands={u: m for u, m in COMMANDS.items() if u.split()[0] in offered})
        await self._send(**told)

    async def _send(self, **line: object) -> None:
        self.writer.write(json.dumps(line).encode() + b"\n")
        await self.writer.drain()

    async def _sit(self) -> None:
        while await self.reader.read(CHUNK):
            pass

    def _known_keys(self) -> Iterator[Path]:
        return (self.appliances.state / "keys").glob("*.pub")

    async def transfer(self) -> tuple[str, int]:
        """Stream the artifact; return how that ended and how many bytes were sent."""
        call, reader, writer = self.call, self.reader, self.writer
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

    def record(self, outcome: str, exit_code: int | None, **more: object) -> None:
        """Append the call to the record, with its password as a fingerprint only."""
        call = self.call
        password = call.password and fingerprint(call.password)
        self.appliances.calls.write(
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


def _key_fingerprint(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()[:16]
