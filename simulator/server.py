"""The appliance's side: many nodes on loopback ports in one process, and a control socket for ordering faults.

    python -m simulator serve --state DIR --nodes a0-1,a0-2

A node refuses what the vendor's page says a node refuses. What the page leaves open is decided here and
documented in README.md; the fault `say` can replace every such wording.
"""

import argparse
import asyncio
import contextlib
import json
import marshal
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.appliance import NEWEST_BUILD, Node
from simulator.appliances import Appliances
from simulator.conversation import answer
from simulator.health import Health
from simulator.orders import Orders

CONTROL_LINE = 1 << 26


def install(state: Path) -> tuple[Path, Path]:
    """Write the stand-in a0cli to DIR/bin, let it create a key pair in DIR/keys, and return both paths."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    shebang = f"#!{sys.executable} -IS\n"
    if any(map(str.isspace, sys.executable)) or len(os.fsencode(shebang)) > 127:
        # A shell starts it where the kernel would reject the shebang; to Python the second line is a string.
        shebang = f"#!/bin/sh\n'''exec' \"{sys.executable}\" -IS \"$0\" \"$@\"\n' '''\n"
    client, keys = state / "bin" / "a0cli", state / "keys"
    client.parent.mkdir(exist_ok=True)
    source = Path(__file__).with_name("client.py")
    # Compiled once here, instead of at each of its many starts.
    compiled = marshal.dumps(compile(source.read_bytes(), source, "exec"))
    client.write_text(f"{shebang}import marshal\nexec(marshal.loads({compiled!r}))\n", encoding="utf-8")
    client.chmod(0o700)
    if not keys.exists():
        keys.mkdir(mode=0o700)
        subprocess.run([client, "create-key"], cwd=keys, check=True, stdout=subprocess.DEVNULL)
    return client, keys


@contextlib.contextmanager
def control_path(state: Path) -> Iterator[Path]:
    """Yield the path of the control socket: the address of a Unix socket is limited to 108 bytes."""
    if len(os.fsencode(state)) <= 90:
        path = state / "control.sock"
        path.unlink(missing_ok=True)
        yield path
        path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="a0-") as short:
            yield Path(short) / "control.sock"


async def serve(
    appliances: Appliances, orders: list[dict[str, Any]], ready: dict[str, Any], *, with_stdin: bool, with_health: bool
) -> None:
    """Print the ready line and serve until SIGTERM, SIGINT or, if *with_stdin*, the end of stdin."""
    health = Health(appliances) if with_health else None
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if with_stdin:
        threading.Thread(target=_await_eof, args=(loop, ended), daemon=True).start()

    def in_a_task(node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of ours: asyncio reports its own tasks as failed when the loop ends before them.
        appliances.spawn(answer(appliances, node, reader, writer))

    appliances.answer, desk = in_a_task, Orders(appliances)
    try:
        for order in orders:
            await desk.obey(order)
        for node in appliances.nodes.values():
            await node.open(appliances.answer)
        await asyncio.start_unix_server(desk.control, ready["control"], limit=CONTROL_LINE)
        if health is not None:
            ready = {**ready, "health": await health.open()}
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
    # A signal may have ended the loop already.
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
    parser.add_argument("--health", action="store_true", help="also serve the health endpoints, over https")
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
        asyncio.run(serve(appliances, orders, ready, with_stdin=given.until_stdin_closes, with_health=given.health))
    return 0
