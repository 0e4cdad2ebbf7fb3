"""A simulated fleet for tests and benchmarks.

with SimulatedFleet(tmp_path / "fleet", nodes=3) as fleet:
    fleet.tell("a0-1", "backup-status", "wrong_md5", times=1)
    fleet.fleet_yaml(tmp_path / "fleet.yaml")
"""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[1]


class SimulatedFleet:
    """Start `python -m simulator serve` as a separate process on enter, and end it on exit.

    *nodes* is their number (a0-1, a0-2, ...) or their names. *builds* are the builds of the nodes that
    do not have the newest one. *scenario* is a list of orders. *vault* is where to check whether a
    deleted backup was kept. With *health*, there are health endpoints, too. Raise RuntimeError, with the
    process's output, where it does not come up.
    """

    def __init__(
        self,
        state: Path,
        nodes: int | Sequence[str] = 3,
        *,
        builds: Mapping[str, int] = MappingProxyType({}),
        size: int = 1 << 16,
        backup_seconds: float = 0.2,
        scenario: Sequence[Mapping[str, Any]] = (),
        vault: Path | None = None,
        health: bool = False,
    ) -> None:
        self.state = state
        self.names = [f"a0-{number}" for number in range(1, nodes + 1)] if isinstance(nodes, int) else list(nodes)
        self._builds = dict(builds)
        self._options = ["--size", str(size), "--backup-seconds", str(backup_seconds)]
        if vault is not None:
            self._options += ["--vault", str(vault.resolve())]
        self._options += ["--health"] if health else []
        self._scenario = list(scenario)

    def __enter__(self) -> Self:
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = self.state / "server.log"
        scenario = self.state / "scenario.json"
        scenario.write_text(json.dumps(self._scenario), encoding="utf-8")
        command = [sys.executable, "-m", "simulator", "serve", "--until-stdin-closes", "--state", str(self.state)]
        nodes = [f"{name}:{self._builds[name]}" if name in self._builds else name for name in self.names]
        command += ["--nodes", ",".join(nodes), "--scenario", str(scenario), *self._options]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            raise RuntimeError(f"the simulator did not come up: {log.read_text(errors='replace')[-2000:]}")
        ready = json.loads(line)
        self.a0cli, self.key_dir = Path(ready["a0cli"]), Path(ready["key_dir"])
        self.nodes: list[dict[str, Any]] = ready["nodes"]
        self.health: dict[str, str] = ready.get("health", {})
        self._control, self._calls, self._events = ready["control"], Path(ready["calls"]), Path(ready["events"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # This closes its stdin, which ends the process.
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def order(self, verb: str, **order: object) -> Any:
        """Send one order to the server and return its answer. Raise ValueError where the server refuses it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._control)
            connection.sendall(json.dumps({"order": verb, **order}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["ok"]

    def tell(
        self,
        node: str | None,
        command: str | None,
        fault: str,
        *,
        times: int | None = None,
        skip: int | None = None,
        **settings: object,
    ) -> None:
        """Order *fault* for a command on a node; None means every command or every node.

        The next *skip* calls that it would meet pass untouched; then it meets *times* calls, or all.
        """
        self.order("tell", node=node, command=command, fault=fault, times=times, skip=skip, **settings)

    def forget(self, node: str | None = None) -> None:
        """Clear the faults of *node*, or of all nodes; an unreachable node is back when this returns."""
        self.order("forget", node=node)

    def calls(self, node: str | None = None, command: str | None = None) -> list[dict[str, Any]]:
        """Return the record of the calls so far, oldest first."""
        calls = _lines(self._calls)
        return [call for call in calls if node in (None, call["node"]) and command in (None, call["command"])]

    def events(self, node: str | None = None) -> list[dict[str, Any]]:
        """Return the record of changes in what the nodes hold, oldest first."""
        return [event for event in _lines(self._events) if node in (None, event["node"])]

    def health_requests(self, node: str | None = None) -> list[dict[str, Any]]:
        """Return the record of the requests to the health endpoints, oldest first."""
        requests = _lines(Path(self.health["requests"]))
        return [request for request in requests if node in (None, request["node"])]

    def holds(self, node: str, kind: str = "backup") -> dict[str, Any] | None:
        """Return the name, md5, size, path and password fingerprint of what is on the node now, or None."""
        held: dict[str, Any] | None = self.order("holds", node=node, kind=kind)
        return held

    def put(
        self,
        node: str,
        *,
        password: str,
        kind: str = "backup",
        size: int | None = None,
        file: Path | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        """Put a finished backup that no call of ours started on the node, and return its description.

        With *file*, the backup is the bytes of that file, under *name*.
        """
        said = {"size": size} if file is None else {"file": str(file), "name": name}
        held: dict[str, Any] = self.order("put", node=node, kind=kind, password=password, **said)
        return held

    def remove(self, node: str, kind: str = "backup") -> None:
        """Remove what is on the node, as an operator at another desk would."""
        self.order("remove", node=node, kind=kind)

    def hand_start(self, node: str, *, password: str, kind: str = "backup") -> None:
        """Start a backup as an operator at another desk would. Raise ValueError where the node refuses it."""
        self.order("hand_start", node=node, kind=kind, password=password)

    def swap(self, one: str, other: str) -> None:
        """Swap the appliances behind the addresses of two nodes; ports and faults stay."""
        self.order("swap", nodes=[one, other])

    def fleet_yaml(self, path: Path, **overrides: object) -> Path:
        """Write a fleet.yaml of these nodes, deep-merged with *overrides*, and return its path.

        The password has one source, so a password in *overrides* is not merged but replaces ours.
        """
        fleet = {
            "vault": "./vault",
            "a0cli": {
                "path": str(self.a0cli),
                "key_dir": str(self.key_dir),
                "call_timeout": "10s",
                "retrieve_timeout": "2m",
            },
            "password": {"env": "A0_BACKUP_PASSWORD"},
            "polling": {"interval": "0.2s", "max_interval": "0.5s", "deadline": "1m"},
            "lock_deadline": "30s",
            "nodes": self.nodes,
        }
        if self.health:
            key, ca = self.health["key_file"], self.health["ca_file"]
            fleet["health"] = {"url": self.health["url"], "key": {"file": key}, "ca_file": ca}
        if "password" in overrides:
            del fleet["password"]
        path.write_text(_yaml(_merged(fleet, overrides)), encoding="utf-8")
        return path


def _lines(record: Path) -> list[dict[str, Any]]:
    # Up to the last newline: the server may be writing the line after it.
    whole = record.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merged(below[key], above[key])
    return merged


def _yaml(fleet: Mapping[str, Any]) -> str:
    """Return block YAML, one key per line; anything deeper than two levels is JSON, a subset of YAML."""
    lines = []
    for key, value in fleet.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{key}:", *(f"  {inner}: {json.dumps(held)}" for inner, held in value.items())]
        elif isinstance(value, list) and value:
            lines += [f"{key}:", *(f"  - {json.dumps(held)}" for held in value)]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
