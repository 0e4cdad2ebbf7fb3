"""Orders: the faults for nodes, and what an operator does by hand."""

import asyncio
import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulator.appliance import PARAMETERS, Call, Node
from simulator.appliances import Appliances
from simulator.faults import HEALTH, KINDS, OrderError


class Orders:
    """Carries out the orders that arrive on the control socket."""

    def __init__(self, appliances: Appliances) -> None:
        self.appliances = appliances

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
        """Carry out one order. Raise OrderError where it is invalid."""
        settings, known = dict(order), self.appliances.nodes
        verb, name = settings.pop("order", "tell"), settings.pop("node", None)
        if name not in (None, "*", *known):
            raise OrderError(f"there is no node {name}")
        nodes = [known[name]] if name in known else list(known.values())
        match verb:
            case "tell":
                named = {key: settings.pop(key, None) for key in ("fault", "command", "times", "skip")}
                for node in nodes:
                    self.tell(node, settings=settings, **named)
            case "forget":
                for node in nodes:
                    node.rules.clear()
                    await node.open(self.appliances.answer)
            case "swap":
                self._swap(settings.get("nodes"))
            case _:
                return await self._by_hand(verb, nodes, settings, order)
        return None

    def _swap(self, pair: object) -> None:
        known = self.appliances.nodes
        if not isinstance(pair, list) or len(pair) != 2 or not set(pair) <= known.keys() or pair[0] == pair[1]:
            raise OrderError(f"swap is for the names of two nodes, not {pair}")
        self.appliances.swap(*(known[name] for name in pair))

    async def _by_hand(
        self, verb: str, nodes: list[Node], settings: dict[str, Any], order: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Do what an operator does by hand; return what the node holds afterwards."""
        kind = settings.get("kind") or "backup"
        if len(nodes) != 1 or kind not in KINDS or verb not in ("put", "remove", "holds", "hand_start"):
            raise OrderError(
                f"{order} is no order: tell, forget, swap, or put, remove, holds, hand_start with one node and a kind"
            )
        node, appliance = nodes[0], nodes[0].appliance
        if verb == "hand_start":
            reply = self.appliances.start(Call(node, kind, [settings["password"]]))
            if reply.exit:
                raise OrderError(f"{node.name}: {reply.message}")
            return None
        if verb == "put":
            await self._put(node, kind, settings)
        if verb == "remove" and kind in appliance.held:
            self.appliances.discard(appliance, kind, None)
        held = appliance.held.get(kind)
        return asdict(held) | {"path": str(held.path)} if held else None

    async def _put(self, node: Node, kind: str, settings: dict[str, Any]) -> None:
        appliances, appliance = self.appliances, node.appliance
        if kind in appliance.held or kind in appliance.making:
            raise OrderError(f"{node.name} already holds or makes a {kind}")
        if file := settings.get("file"):
            appliances.lay(appliance, kind, appliances.copied(appliance, kind, Path(file), settings))
            return
        size = settings.get("size") or appliances.size
        appliance.making[kind] = appliances.spawn(
            appliances.backup(appliance, kind, settings["password"], size=size, seconds=0, pid=None)
        )
        await appliance.making[kind]

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
        if command not in (None, "*", *PARAMETERS, *HEALTH):
            raise OrderError(f"there is no command {command}; there are {', '.join(PARAMETERS)}")
        rule = node.rules.add(fault, command, times, skip, settings)
        if fault == "unreachable":
            node.close()
            if seconds := rule.settings["seconds"]:

                async def come_back() -> None:
                    await asyncio.sleep(seconds)
                    node.rules.drop(rule)
                    await node.open(self.appliances.answer)

                self.appliances.spawn(come_back())
