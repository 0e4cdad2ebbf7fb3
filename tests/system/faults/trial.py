"""A trial: one fleet, its vault and its disk, struck once; then the promises, checked from outside.

Nothing here reads the vault with the product's own code: the checks see what a person with `md5sum` would see.
"""

import base64
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from simulator.artifact import fingerprint
from simulator.fleet import SimulatedFleet
from tests.support.login import reaching
from tests.support.warm import Run, Warm
from tests.system.faults.disk import Disk, Tree, preloaded, read_tree

PASSWORD = "Canary7Password"
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
HEALTHY = 120.0  # seconds; an undisturbed run has surely ended by then


class Arena:
    """What many trials share: the appliances, each used only once, and the warm process that forks their runs."""

    def __init__(self, room: Path, fleets: Iterator[SimulatedFleet], warm: Warm) -> None:
        self.room, self.warm, self._fleets = room, warm, fleets
        self.recovery_key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        self.numbers = itertools.count(1)
        self._start_fleet()

    def nodes(self, number: int) -> tuple[SimulatedFleet, list[dict[str, Any]]]:
        """Return this many nodes that no trial has used, and their fleet. Start a new fleet if too few are left."""
        if len(self._unused) < number:
            self._start_fleet()
        chosen, self._unused = self._unused[:number], self._unused[number:]
        return self.appliances, chosen

    def _start_fleet(self) -> None:
        self.appliances = next(self._fleets)
        self._unused: list[dict[str, Any]] = list(self.appliances.nodes)


@contextmanager
def arena(room: Path, api: str, nodes: int = 200) -> Iterator[Arena]:
    """Start appliances and a warm process on the engine at *api*."""
    environment = reaching({"PREFECT_API_URL": api, "A0_BACKUP_PASSWORD": PASSWORD})
    environment["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # a quarter of the engine's work, and not what is tested
    (room / "witness").mkdir()
    with ExitStack() as stack:

        def fleets() -> Iterator[SimulatedFleet]:
            for number in itertools.count():
                names = [f"a{number}-{serial}" for serial in range(1, nodes + 1)]
                fleet = SimulatedFleet(
                    room / f"sim-{number}", names, size=20_000, backup_seconds=0.02, vault=room / "witness"
                )
                yield stack.enter_context(fleet)

        yield Arena(room, fleets(), stack.enter_context(Warm(room, environment | preloaded())))


class Trial:
    """One fleet and its vault, on a disk that can be broken."""

    VAULT = DISK = "vault"  # the vault, and what can be broken, below the trial's room

    def __init__(self, arena: Arena, nodes: int = 1, **overrides: object) -> None:
        self.arena = arena
        self.room = arena.room / f"trial-{next(arena.numbers)}"
        self.room.mkdir()
        self.temporary = self.room / "tmp"
        self.temporary.mkdir()
        self.vault = self.room / self.VAULT
        self.vault.mkdir(mode=0o700, parents=True)
        self.appliances, chosen = arena.nodes(nodes)
        self.nodes = [str(node["name"]) for node in chosen]
        for node in self.nodes:
            (arena.room / "witness" / node).symlink_to(self.vault / node)
        quick = {"interval": "0.05s", "max_interval": "0.05s", "deadline": "20s"}
        self._settings = {"nodes": chosen, "polling": quick, "a0cli": {"call_timeout": "3s"}, **overrides}
        self.fleet_yaml = self.appliances.fleet_yaml(self.room / "fleet.yaml", **self._settings)
        self.disk = Disk(self.room / self.DISK, self.room / "disk")
        self.sealed = False
        self.cut = False  # whether the power was cut once: the disk's log starts anew with that
        self.spoilt = False  # whether a new retrieval is due: verified bytes were destroyed, or another backup came

    @property
    def node(self) -> str:
        [node] = self.nodes
        return node

    def seal(self) -> None:
        """From now on, give each backup its own password, sealed to the arena's recovery key."""
        self.sealed = True
        public = self.arena.recovery_key.public_key()
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        (self.room / "recovery.pub.pem").write_bytes(public.public_bytes(serialization.Encoding.PEM, spki))
        settings = self._settings | {"password": {"sealed_to": "recovery.pub.pem"}}
        self.fleet_yaml = self.appliances.fleet_yaml(self.fleet_yaml, **settings)

    def start(self, *arguments: str, **environment: str) -> Run:
        """Start `a0backup run` on the trial's disk."""
        return self.arena.warm.start(
            "run", *arguments, cwd=self.room, disk=self.disk.control, TMPDIR=str(self.temporary), **environment
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run `a0backup run` to its end. Return its exit code and everything that it printed."""
        run = self.start(*arguments, **environment)
        return run.wait(HEALTHY), run.out + run.err

    def calls(self, command: str) -> int:
        return sum(len(self.appliances.calls(node, command)) for node in self.nodes)

    def met(self, fault: str) -> bool:
        """Return whether a call has met the fault that was ordered."""
        return any(fault in call["faults"] for node in self.nodes for call in self.appliances.calls(node))

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these kinds on the nodes, oldest first."""
        return [event for node in self.nodes for event in self.appliances.events(node) if event["event"] in kinds]

    def journals(self) -> list[Path]:
        return sorted(self.vault.glob("*/journal-*.json"))

    def manifests(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.vault.glob("*/*/manifest.json"))]

    def has_opened_it(self) -> bool:
        """Return whether a run has written down that it opened the backup of its start."""
        return any(json.loads(path.read_bytes()).get("effect") == "opened" for path in self.journals())

    # -- the promises ------------------------------------------------------------------------------------------

    def broken(self) -> list[str]:
        """Return which promises do not hold now. Whatever has struck, nothing is lost and no manifest lies."""
        tree = read_tree(self.vault)
        lies, kept = true_in(tree)
        return [
            *lies,
            *self._lost(kept),
            *self._never_to_be_opened(tree),
            *self._not_durable_when_deleted(),
            *self._two_at_once(),
            *self._fetched_twice(),
        ]

    def _lost(self, kept: set[tuple[str, str, str]]) -> list[str]:
        lost = []
        for node in self.nodes:
            # Ask before and after reading the record: in between, an a0cli that outlived its run may delete a backup,
            # and one in progress may become complete.
            before = {kind: self.appliances.holds(node, kind) for kind in ("backup", "backup-sensitive")}
            on_node: dict[str, str] = {}
            for event in self.appliances.events(node):
                kind, md5 = event["kind"], event["md5"]
                match event["event"]:
                    case "complete":
                        on_node[kind] = md5
                    case "removed":
                        on_node.pop(kind, None)
                    case "swapped":
                        # Another appliance is behind the address now. The event names what that one holds.
                        on_node = {each: held for each, held in on_node.items() if each != kind}
                        on_node |= {kind: md5} if md5 else {}
                    case "deleted":
                        on_node.pop(kind, None)
                        if not event["kept"]:
                            lost.append(f"{node}: {kind} {md5} was deleted with no verified artifact in the vault")
                        elif (node, kind, md5) not in kept:
                            lost.append(f"{node}: the artifact of {kind} {md5} is in the vault no more")
            for kind, md5 in on_node.items():
                held = [each["md5"] for each in (before[kind], self.appliances.holds(node, kind)) if each]
                if md5 not in held:
                    lost.append(f"{node}: {kind} {md5} is on the node no more, and nobody deleted it")
        return lost

    def _never_to_be_opened(self, tree: Tree) -> list[str]:
        """Return each backup, on its node or in the vault, whose password is stored nowhere.

        Only backups that the runs themselves started count: the node's record has a fingerprint of each password.
        """
        found = []
        for node in self.nodes:
            started = {call["password"] for call in self.appliances.calls(node) if call["password"]}
            made = {(e["kind"], e["md5"]): e["password"] for e in self.appliances.events(node) if e["md5"]}
            kept: dict[str, set[str]] = {"": {fingerprint(PASSWORD)}}
            for place, content in tree.items():
                name = place.rpartition("/")[2]
                if not place.startswith(f"{node}/") or not name.endswith(".json") or not isinstance(content, bytes):
                    continue
                if "/passwords/" in place and not name.startswith("."):
                    kept[""] |= self._unsealed(json.loads(content)["sealed"])
                elif name == "manifest.json" and "quarantine" not in place:
                    manifest = json.loads(content)
                    password = manifest["encryption"]["password"]
                    shared = {fingerprint(PASSWORD)} if password["mode"] == "shared" else set()
                    kept[manifest["artifact"]["md5"]] = self._unsealed(password["sealed"]) | shared
            for (kind, md5), password in made.items():
                held = self.appliances.holds(node, kind)
                if password not in started:
                    continue
                if md5 in kept and password not in kept[md5]:
                    found.append(f"{node}: the password of the {kind} {md5} is not in its manifest")
                if held is not None and held["md5"] == md5 and password not in kept.get(md5, set()) | kept[""]:
                    found.append(f"{node}: the password of the {kind} {md5}, which is on the node, is not in the vault")
        return found

    def _unsealed(self, sealed: list[dict[str, str]]) -> set[str]:
        """Return the fingerprints of the sealed passwords."""
        boxes = (base64.b64decode(entry["box"]) for entry in sealed)
        return {fingerprint(self.arena.recovery_key.decrypt(box, OAEP).decode()) for box in boxes}

    def _not_durable_when_deleted(self) -> list[str]:
        """Return each deletion at whose instant a power cut would have taken the artifact."""
        if self.cut:
            return []  # the log starts anew with a cut
        found = []
        for event in self.events("deleted"):
            for names in ("lost", "kept"):
                tree = self.disk.durable(until=event["time"], names=names)  # type: ignore[arg-type]
                if not all((event["node"], event["kind"], event["md5"]) in kept for kept in self.kept_in(tree)):
                    found.append(f"{event['node']}: deleted {event['md5']} while a power cut could take it ({names})")
        return found

    def kept_in(self, tree: Tree) -> list[set[tuple[str, str, str]]]:
        """Return what each of the places on the disk holds whole: here the vault alone."""
        return [true_in(tree)[1]]

    def _two_at_once(self) -> list[str]:
        """Return each call, or change on a node, that came from a run after another one had taken over."""
        found = []
        for node in self.nodes:
            ended: set[str] = set()
            current = ""
            owner: dict[int, str] = {}
            for call in self.appliances.calls(node):
                place = call["cwd"]
                owner[call["pid"]] = place
                if place in ended:
                    found.append(f"{node}: {call['command']} of a run that another had taken over from")
                elif place != current:
                    ended.add(current)
                    current = place
            calls = self.appliances.calls(node)
            for event in self.appliances.events(node):
                if event["event"] not in ("deleted", "started") or event["by"] != "a0cli":
                    continue
                before = [call["cwd"] for call in calls if call["time"] <= event["time"]]
                if event["pid"] in owner and before and before[-1] != owner[event["pid"]]:
                    found.append(f"{node}: {event['event']} took effect after another run had taken over")
        return found

    def _fetched_twice(self) -> list[str]:
        """Return each retrieval of a backup whose verified bytes were already in the vault."""
        if self.cut or self.spoilt:
            return []
        found = []
        renames = [o for o in self.disk.operations() if o.name == "rename" and not o.error and o.killed != "before"]
        for node in self.nodes:
            for event in self.appliances.events(node):
                if event["event"] != "complete":
                    continue
                kind, begins = event["kind"], event["time"]
                ends = [e for e in self.appliances.events(node) if e["kind"] == kind and e["seq"] > event["seq"]]
                end = ends[0]["time"] if ends else float("inf")
                place = Path(self.VAULT, node, "work", f"{kind}.tar.gz.enc").relative_to(self.DISK)
                verified = [o.at for o in renames if Path(o.to) == place and begins <= o.at <= end]
                if not verified:
                    continue
                again = [
                    call
                    for call in self.appliances.calls(node, f"{kind}-retrieve")
                    if verified[0] < call["time"] <= end
                ]
                found += [f"{node}: {kind} was retrieved again though it was verified" for _ in again]
        return found

    def unsettled(self) -> list[str]:
        """Return what a successful run should not have left."""
        found = [f"{path.relative_to(self.vault)} is left" for path in self._leftovers()]
        found += [f"{path} is left in the temporary folder" for path in self.temporary.iterdir()]
        for node in self.nodes:
            held = self.appliances.holds(node)
            if held is not None:
                found.append(f"{node} still holds {held['md5']}")
            if _is_locked(self.vault / node / "lock"):
                found.append(f"{node} is still locked")
        return found + [f"a process is left: {words}" for words in self.processes()]

    def _leftovers(self) -> list[Path]:
        patterns = ["journal-*.json", ".*.partial", "*/.*.partial", "quarantine/*/.*.partial", "work/*", "passwords/.*"]
        found = [path for pattern in patterns for path in self.vault.glob(f"*/{pattern}")]
        passwords = [manifest["encryption"]["password"] for manifest in self.manifests()]
        listed = [entry["box"] for password in passwords if password["confirmed"] for entry in password["sealed"]]
        # A password that is not proven to open an artifact stays: its backup may be in another vault.
        for path in self.vault.glob("*/passwords/*.json"):
            if any(entry["box"] in listed for entry in json.loads(path.read_bytes())["sealed"]):
                found.append(path)
        folders = (path for path in self.vault.glob("*/*Z-*") if path.is_dir())
        return found + [path for path in folders if not (path / "manifest.json").exists()]

    def processes(self) -> list[str]:
        """Return the command lines of all processes that work in the trial's room."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.room) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def finish(self) -> list[str]:
        """Run once more, undisturbed. Return what is wrong after that."""
        self.disk.calm()
        self.appliances_calm()
        code, printed = self.run()
        found = [] if code == 0 else [f"the run after it ended with {code}: {printed}"]
        stored = {manifest["node"]["name"] for manifest in self.manifests()}
        found += [f"{node} is not stored" for node in self.nodes if node not in stored]
        return found + self.broken() + self.unsettled()

    def appliances_calm(self) -> None:
        for node in self.nodes:
            self.appliances.forget(node)


def true_in(tree: Tree) -> tuple[list[str], set[tuple[str, str, str]]]:
    """Return the manifests that lie, and the (node, kind, md5) of those that are true."""
    lies, kept = [], set()
    for place, content in tree.items():
        folder, _, name = place.rpartition("/")
        if name != "manifest.json" or "quarantine" in place or not isinstance(content, bytes):
            continue
        try:
            manifest = json.loads(content)
            artifact = tree.get(f"{folder}/{manifest['artifact']['file']}")
        except (ValueError, KeyError):
            lies.append(f"{place} cannot be read: {content!r}")
            continue
        expected = manifest["artifact"]
        if (
            not isinstance(artifact, bytes)
            or len(artifact) != expected["size"]
            or hashlib.md5(artifact, usedforsecurity=False).hexdigest() != expected["md5"]
            or hashlib.sha256(artifact).hexdigest() != expected["sha256"]
        ):
            lies.append(f"{place} does not speak of the artifact beside it")
        else:
            kept.add((manifest["node"]["name"], manifest["kind"], expected["md5"]))
    return lies, kept


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
