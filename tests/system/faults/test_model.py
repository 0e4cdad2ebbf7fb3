"""Random sequences of runs, kills, faults and work by hand, checked after each step against a model of the promises.

The model never asks the product. The simulator's record says what the node held and lost, the vault's files say what is
stored, and the rest is what the sequence itself did. A failure shows the whole sequence.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from simulator.fleet import SimulatedFleet
from tests.support.extent import WHOLE
from tests.support.nights import Ended, Running, Runs
from tests.support.patience import patience
from tests.system.faults.disk import Disk, preloaded

PARTS = 3 if WHOLE else 1
SEQUENCES, STEPS = (30, 14) if WHOLE else (3, 6)
KINDS = ("backup", "backup-sensitive")
OURS, THEIRS = "Canary7Password", "Their0wnWord"
CALL_TIMEOUT = 2.0  # seconds; a run waits this long for a started backup that shows no sign

Event = dict[str, Any]


class Tail:
    """The lines of a growing record, by node. Each is read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._lines: defaultdict[str, list[Event]] = defaultdict(list)

    def lines(self, node: str) -> list[Event]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._offset += len(whole) + 1
            for line in map(json.loads, whole.splitlines()):
                self._lines[line["node"]].append(line)
        return self._lines[node]


class World:
    """Simulated nodes, one for each sequence, a vault, and the warm process that runs are forked from."""

    def __init__(self, room: Path) -> None:
        self.room, self.vault = room, room / "vault"
        self.tried: Counter[str] = Counter()
        self._fleets: list[SimulatedFleet] = []
        self._unused: Iterator[dict[str, Any]] = iter(())

    def __enter__(self) -> "World":
        self.vault.mkdir(mode=0o700)
        (self.room / "runs").mkdir()
        self.runs = Runs(self.room / "runs", preloaded()).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.runs.__exit__(None, None, None)
        for fleet in self._fleets:
            fleet.__exit__(None, None, None)

    def fresh(self) -> tuple[SimulatedFleet, dict[str, Any], Tail, Tail]:
        """Return a node that no sequence has used yet, its fleet, and the records of its calls and events."""
        node = next(self._unused, None)
        if node is None:
            number = len(self._fleets) + 1
            names = [f"a{number}-{serial}" for serial in range(1, 41)]
            state = self.room / f"sim-{number}"
            fleet = SimulatedFleet(state, names, size=8_000, backup_seconds=0.05, vault=self.vault).__enter__()
            self._fleets.append(fleet)
            self._unused = iter(fleet.nodes)
            self._records = Tail(state / "calls.jsonl"), Tail(state / "events.jsonl")
            node = next(self._unused)
        return self._fleets[-1], node, *self._records


@dataclass
class Said:
    """What a run was told, and what it had to meet."""

    existing: str
    kinds: tuple[str, ...]
    faults: list[str]


@dataclass
class Made:
    """A finished node backup as the node itself knows it."""

    kind: str
    md5: str
    at: float
    started: float
    by: str | None  # the run that started it; None: somebody else
    gone: Event | None = None


@dataclass
class Stored:
    """An artifact with its manifest."""

    folder: Path
    manifest: dict[str, Any]
    whole: bool
    since: float

    @property
    def md5(self) -> str:
        return str(self.manifest["artifact"]["md5"])


# By name: the command (None: any; "": the start), the fault and its settings.
FAULTS: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "drop": ("-retrieve", "drop", {"fraction": 0.5}),
    "truncate": ("-retrieve", "truncate", {"fraction": 0.9}),
    "flip": ("-retrieve", "flip", {}),
    "file_name": ("-retrieve", "file_name", {}),
    "wrong_md5": ("-status", "wrong_md5", {}),
    "no_md5": ("-status", "no_md5", {}),
    "in_progress": ("-status", "in_progress", {}),
    "bad_json": ("-status", "bad_json", {}),
    "stale_status": ("-status", "stale_status", {"seconds": 0.5}),
    "replaced": ("-status", "replaced", {}),
    "taken": ("-status", "taken", {}),
    "lost start": ("", "lost_reply", {}),
    "lost delete": ("-delete", "lost_reply", {}),
    "lost any": (None, "lost_reply", {}),
    "late start": ("", "late", {"seconds": 0.8, "reply": "lost"}),
    "late start, ok": ("", "late", {"seconds": 0.8, "reply": "ok"}),
    "late start, hangs": ("", "late", {"seconds": CALL_TIMEOUT + 0.5, "reply": "hang"}),
    "late delete": ("-delete", "late", {"seconds": 0.8, "reply": "lost"}),
    "late delete, ok": ("-delete", "late", {"seconds": 0.8, "reply": "ok"}),
    "late delete, hangs": ("-delete", "late", {"seconds": 0.8, "reply": "hang"}),
    "false_delete": ("-delete", "false_delete", {}),
    "refused start": ("", "refuse", {}),
    "refused delete": ("-delete", "refuse", {}),
    "slow start": ("", "duration", {"seconds": 1.0}),
    "hang start": ("", "hang", {}),
    "hang delete": ("-delete", "hang", {"ignore_sigterm": True}),
    "hang any": (None, "hang", {}),
    "exit any": (None, "exit", {"code": 3}),
    "killed a0cli before": (None, "kill_client", {"when": "before"}),
    "killed a0cli after": (None, "kill_client", {"when": "after"}),
    "killed a0cli during": ("-retrieve", "kill_client", {"when": "during"}),
}
LYING = {"wrong_md5", "no_md5", "in_progress", "stale_status", "replaced", "taken", "false_delete", "by hand"}
LOSING = {name for name in FAULTS if name.startswith(("lost", "late", "hang", "killed"))}
UNVERIFIABLE = {"flip", "truncate", "wrong_md5", "no_md5"}

existings = st.sampled_from(["preserve", "preserve", "replace", "fail"])
kinds = st.sampled_from([("backup",), ("backup",), ("backup-sensitive",), KINDS])
one_kind = st.sampled_from(KINDS)
began = st.sampled_from([None, None, None, -3600, 3600])
times = st.sampled_from([1, 2, 3, 99])
faults = st.lists(
    st.tuples(st.sampled_from(sorted(FAULTS)), one_kind, times, st.integers(0, 2)), min_size=1, max_size=3
)
maybe_faults: st.SearchStrategy[list[tuple[str, str, int, int]]] = st.one_of(st.just([]), st.just([]), faults)
damages = st.sampled_from(["flipped", "cut", "removed", "empty", "folder", "manifest"])
works = st.sampled_from(["start", "slow start", "lay", "retrieve", "delete", "remove"])


class Nights(RuleBasedStateMachine):
    """One node, its vault, an operator at another desk, and the promises about them."""

    world: World
    failures: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.simulated, self.node, self._calls, self._events = self.world.fresh()
        self.name = str(self.node["name"])
        self.room = self.world.room / self.name
        self.room.mkdir()
        self.folder = self.world.vault / self.name
        self.folder.mkdir(mode=0o700)
        self.disk = Disk(self.folder, self.room / "disk")
        self.story: list[str] = []
        self.said: dict[str, Said] = {}
        self.damaged: set[str] = set()  # md5s of artifacts that the sequence itself spoilt or removed
        self.torn: set[str] = set()  # folders whose manifest the sequence itself spoilt
        self.doubts: dict[str, list[float]] = {
            kind: [] for kind in KINDS
        }  # times from which nobody can tell whose backup it is
        self.verified: dict[str, set[str]] = {kind: set() for kind in KINDS}
        self.unfinished: dict[str, Made] = {}
        self.to_be_stored: dict[str, str] = {}  # kind by md5: backups of ours whose verified bytes were here
        self.runs_before = 0
        self.sound = False
        self.world.tried["sequences"] += 1

    # -- what happens ------------------------------------------------------------------------------------------

    @rule(existing=existings, kinds=kinds, began=began)
    def a_run(self, existing: str, kinds: tuple[str, ...], began: int | None) -> None:
        self.note(f"a run: {existing}, {kinds}, began {began}")
        self.ended(self.run(existing, kinds, began=began))

    @rule(
        existing=existings,
        kinds=kinds,
        call=st.integers(0, 16),
        when=st.sampled_from(["before", "after", "during"]),
        orphan=st.sampled_from([None, 0.3, 1.0]),
        faults=maybe_faults,
    )
    def a_run_killed_at_a_call(
        self,
        existing: str,
        kinds: tuple[str, ...],
        call: int,
        when: str,
        orphan: float | None,
        faults: list[tuple[str, str, int, int]],
    ) -> None:
        if when == "during":
            call, orphan = call % 2, None
        orphan = orphan if when == "before" else None
        self.note(f"a run killed {when} call {call}: {existing}, {kinds}, orphan {orphan}, meets {faults}")
        self.order(faults)
        self.tell(None, "kill_parent", when=when, orphan=orphan, skip=call, times=1)
        self.ended(self.run(existing, kinds, faults=[fault[0] for fault in faults]))

    @rule(existing=existings, kinds=kinds, at=st.integers(1, 110), after=st.booleans())
    def a_run_killed_at_the_disk(self, existing: str, kinds: tuple[str, ...], at: int, after: bool) -> None:
        self.note(f"a run killed at change {at} of the disk (after: {after}): {existing}, {kinds}")
        self.disk.calm()
        self.disk.kill_at(at, after=after)
        self.ended(self.run(existing, kinds, attach=self.disk.control))

    @rule(kinds=kinds, at=st.integers(1, 110), after=st.booleans(), names=st.sampled_from(["lost", "kept"]))
    def a_power_cut(self, kinds: tuple[str, ...], at: int, after: bool, names: Any) -> None:
        self.note(f"the power fails in a run at change {at} of the disk (after: {after}, names {names}): {kinds}")
        self.disk.calm()
        self.disk.start_anew()
        self.disk.kill_at(at, after=after)
        self.ended(self.run("preserve", kinds, attach=self.disk.control))
        self.end_orphans()
        self.disk.cut_power(names)

    @rule(existing=existings, kinds=kinds, began=began, faults=faults)
    def a_run_that_meets_faults(
        self, existing: str, kinds: tuple[str, ...], began: int | None, faults: list[tuple[str, str, int, int]]
    ) -> None:
        self.note(f"a run: {existing}, {kinds}, began {began}, meets {faults}")
        self.order(faults)
        self.ended(self.run(existing, kinds, began=began, faults=[fault[0] for fault in faults]))

    @rule(existing=existings, kinds=kinds, seconds=st.sampled_from([0.2, 0.6, 2.0]))
    def a_run_while_the_node_is_away(self, existing: str, kinds: tuple[str, ...], seconds: float) -> None:
        self.note(f"a run: {existing}, {kinds}, the node is away for {seconds} s")
        self.tell(None, "unreachable", seconds=seconds)
        self.ended(self.run(existing, kinds, faults=["unreachable"]))

    @rule(
        existing=existings,
        other=existings,
        kinds=kinds,
        other_kinds=kinds,
        call=st.one_of(st.none(), st.integers(0, 16)),
        fault=st.one_of(st.none(), st.tuples(st.sampled_from(sorted(FAULTS)), one_kind, st.just(1), st.integers(0, 2))),
    )
    def two_runs_at_the_same_time(
        self,
        existing: str,
        other: str,
        kinds: tuple[str, ...],
        other_kinds: tuple[str, ...],
        call: int | None,
        fault: tuple[str, str, int, int] | None,
    ) -> None:
        self.note(f"two runs: {existing}, {kinds} and {other}, {other_kinds}; killed at {call}, meet {fault}")
        if call is not None:
            self.tell(None, "kill_parent", when="after", skip=call, times=1)
        if fault is not None:
            self.order([fault])
        met = [fault[0]] if fault else []
        both = [self.run(existing, kinds, began=0, faults=met), self.run(other, other_kinds, began=0, faults=met)]
        for run in both:
            self.ended(run)

    @rule(kind=one_kind, what=works)
    def somebody_works_by_hand(self, kind: str, what: str) -> None:
        self.note(f"by hand: {what} {kind}")
        self.work_by_hand(kind, what)

    @rule(existing=existings, kinds=kinds, call=st.integers(2, 12), kind=one_kind, what=works)
    def somebody_works_by_hand_during_a_run(
        self, existing: str, kinds: tuple[str, ...], call: int, kind: str, what: str
    ) -> None:
        self.note(f"a run: {existing}, {kinds}; by hand after its call {call}: {what} {kind}")
        self.open_desk()
        before = len(self.calls)
        self.tell(None, "latency", seconds=0.5, skip=call, times=1)
        run = self.run(existing, kinds, faults=["by hand"])
        # Wait until the delayed call is in progress.
        while run[1].lives:
            under_way = set(self.orphans()) - {each["pid"] for each in self.calls[before:]}
            if len(self.calls) >= before + call and under_way:
                break
            time.sleep(0.02)
        self.work_by_hand(kind, what)
        self.ended(run)

    @rule(kind=one_kind, how=st.sampled_from(["cut", "empty", "garbage", "list", "another's", "directory", "link"]))
    def a_journal_is_torn(self, kind: str, how: str) -> None:
        path = self.folder / f"journal-{kind}.json"
        if not path.exists() and how in ("cut", "empty"):
            return
        self.note(f"the journal of {kind}: {how}")
        self.doubts[kind].append(time.time())
        content = path.read_bytes() if path.is_file() else b""
        self.away(path)
        another = {"schema": 1, "node": "a0-other", "kind": kind, "flow_run": "x", "started_at": "2026-11-23T02:00:00Z"}
        match how:
            case "cut":
                self.write(path, content[: len(content) // 2])
            case "empty":
                self.write(path, b"")
            case "garbage":
                self.write(path, b"\0\xff{" * 99)
            case "list":
                self.write(path, b"[1, 2]")
            case "another's":
                self.write(path, json.dumps(another).encode())
            case "directory":
                path.mkdir(mode=0o700)
            case "link":
                path.symlink_to("/nowhere/at/all")

    @rule(which=st.integers(0, 3), how=damages)
    def an_artifact_is_damaged(self, which: int, how: str) -> None:
        self.note(f"an artifact is damaged: {how}")
        self.damage(which, how)

    @rule(existing=existings, kind=one_kind, when=st.sampled_from(["before", "after"]), how=damages)
    def a_run_killed_at_its_deletion_and_the_artifact_damaged(
        self, existing: str, kind: str, when: str, how: str
    ) -> None:
        self.note(f"a run killed {when} its deletion: {existing}, {kind}; then the artifact: {how}")
        self.tell(f"{kind}-delete", "kill_parent", when=when, times=1)
        if self.ended(self.run(existing, (kind,))).signal:
            self.damage(0, how)

    @rule(existing=existings, kind=one_kind, what=st.sampled_from(["replaced", "taken"]))
    def somebody_acts_between_the_retrieval_and_the_deletion(self, existing: str, kind: str, what: str) -> None:
        self.note(f"{what} after its retrieval: {existing}, {kind}")
        self.tell(f"{kind}-retrieve", what, times=1)
        self.ended(self.run(existing, (kind,), faults=[what]))

    @rule(kind=one_kind, how=st.sampled_from(["directory", "partial", "folder", "verified"]))
    def a_dead_run_left_something(self, kind: str, how: str) -> None:
        self.note(f"left lying: {how} {kind}")
        place = self.folder / "work"
        place.mkdir(mode=0o700, exist_ok=True)
        match how:
            case "directory":
                dead = place / f"dead-{time.monotonic_ns():x}-01234567"
                dead.mkdir(mode=0o700)
                self.write(dead / f"{kind}-retrieve.tar.gz.enc", b"part of it")
            case "partial":
                self.write(self.folder / f".journal-{kind}.json.{time.monotonic_ns():x}.partial", b"{")
            case "folder":
                (self.folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{kind}").mkdir(mode=0o700, exist_ok=True)
            case "verified":
                path = place / f"{kind}.tar.gz.enc"
                if not path.exists():
                    self.write(path, b"not what the node has")

    # -- how it happens ----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.sound = False
        self.story.append(text)
        self.world.tried["steps"] += 1
        self.verified = self._verified_files()
        self.runs_before = len(self.said)
        self._note_the_unfinished()

    def _note_the_unfinished(self) -> None:
        """Find the backups that are ours, finished on the node and not stored: the next run has to finish them."""
        stored = {each.md5 for each in self.stored()}
        self.unfinished = {}
        for kind in KINDS:
            try:
                journal = json.loads((self.folder / f"journal-{kind}.json").read_text())
                pinned, started = journal["pinned"], datetime.fromisoformat(journal["started_at"]).timestamp()
            except (OSError, ValueError, LookupError, TypeError):
                continue
            for one in self.made():
                ours = (
                    one.kind == kind and one.by is not None and one.md5 not in stored and -1 < one.started - started < 8
                )
                if ours and not self.is_doubtful(one) and (pinned is None or pinned["md5"] == one.md5):
                    if one.gone is None:
                        self.unfinished[kind] = one
                    if pinned is not None and one.md5 in self.verified[kind]:
                        self.to_be_stored[one.md5] = kind

    def tell(self, command: str | None, fault: str, **settings: Any) -> None:
        self.simulated.tell(self.name, command, fault, **settings)

    def order(self, faults: list[tuple[str, str, int, int]]) -> None:
        for name, kind, times, skip in faults:
            command, fault, settings = FAULTS[name]
            self.tell(None if command is None else kind + command, fault, times=times, skip=skip, **settings)
            if name in LYING:
                self.doubts[kind].append(time.time())

    def run(
        self,
        existing: str,
        kinds: tuple[str, ...],
        *,
        began: int | None = None,
        faults: list[str] | None = None,
        attach: Path | None = None,
        call_timeout: float = CALL_TIMEOUT,
    ) -> tuple[str, Running]:
        """Start a run. *began*: seconds from now; None: later than everything stored so far."""
        flow_run = f"run-{len(self.said) + 1}"
        self.said[flow_run] = Said(existing, kinds, faults or [])
        file = self.simulated.fleet_yaml(
            self.room / f"{flow_run}.yaml",
            vault=str(self.world.vault),
            nodes=[self.node],
            kinds=list(kinds),
            lock_deadline="30s",
            polling={"interval": "1s", "max_interval": "1s", "deadline": "3s"},
            a0cli={"call_timeout": f"{call_timeout}s", "retrieve_timeout": "3s"},
        )
        now = datetime.now(UTC).replace(microsecond=0)
        when = now + timedelta(seconds=began) if began is not None else now + timedelta(seconds=1)
        said = {"flow_run": flow_run, "existing": existing, "began": when.isoformat(), "password": OURS}
        self.world.tried["runs"] += 1
        return flow_run, self.world.runs.start(file, attach=attach, **said)

    def ended(self, started: tuple[str, Running]) -> Ended:
        flow_run, running = started
        try:
            ended = running.wait(90)
        except TimeoutError:
            self.fail(f"{flow_run} has no end")
        self.simulated.forget(self.name)
        if ended.signal:
            self.world.tried["killed"] += 1
            self.story.append(f"  {flow_run} was killed")
        for outcome in ended.outcomes:
            self.story.append(f"  {flow_run} {outcome.kind}: {outcome.ending} {outcome.reason} {outcome.notes}")
            self.world.tried[f"ended {outcome.ending}"] += 1
            self.world.tried["resumed"] += any("finished the backup" in note for note in outcome.notes)
            if outcome.ok:
                found = [stored for stored in self.stored() if outcome.id == stored.manifest["id"]]
                if not found or found[0].md5 != outcome.md5:
                    self.fail(f"{flow_run} says {outcome.id} is stored, and it is not")
        if ended.unforeseen:
            self.fail(f"{flow_run} ended with what nobody foresaw: {ended.unforeseen}")
        if ended.signal not in (0, signal.SIGKILL):
            self.fail(f"{flow_run} died of signal {ended.signal}")
        return ended

    def by_hand(self, *command: str) -> None:
        """Call a0cli as an operator at another desk does."""
        self.open_desk()
        call = [self.simulated.a0cli, "-t", self.node["host"], "-p", str(self.node["port"]), *command]
        subprocess.run(call, cwd=self.room / "desk", check=False, capture_output=True, timeout=patience(60))

    def open_desk(self) -> None:
        if not (self.room / "desk").exists():
            shutil.copytree(self.simulated.key_dir, self.room / "desk")
            self.by_hand("update-commands")

    def damage(self, which: int, how: str) -> None:
        whole = [stored for stored in self.stored() if stored.whole]
        if not whole:
            return
        stored = sorted(whole, key=lambda each: each.since)[-1 - which % len(whole)]
        self.story.append(f"  the artifact in {stored.folder.name}: {how}")
        self.damaged.add(stored.md5)
        path = stored.folder / stored.manifest["artifact"]["file"]
        content = bytearray(path.read_bytes())
        match how:
            case "flipped":
                content[len(content) // 2] ^= 1
                self.write(path, bytes(content))
            case "cut":
                self.write(path, bytes(content[:-1]))
            case "empty":
                self.write(path, b"")
            case "removed":
                path.unlink()
            case "folder":
                shutil.rmtree(stored.folder)
            case "manifest":
                self.torn.add(stored.folder.name)
                self.write(stored.folder / "manifest.json", b'{"schema": 1, "id"')

    def work_by_hand(self, kind: str, what: str) -> None:
        match what:
            case "lay":
                if self.simulated.holds(self.name, kind) is None:
                    with contextlib.suppress(ValueError):  # one is in progress
                        self.simulated.put(self.name, kind=kind, password=THEIRS)
            case "remove":
                self.simulated.remove(self.name, kind=kind)
            case "start":
                self.by_hand(kind, THEIRS)
            case "slow start":
                self.tell(kind, "duration", seconds=0.8, times=1)
                self.by_hand(kind, THEIRS)
            case _:
                self.by_hand(f"{kind}-{what}")

    def write(self, path: Path, content: bytes) -> None:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)

    def away(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def orphans(self) -> list[int]:
        """Return the processes that work below the node's folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cwd").readlink().is_relative_to(self.folder):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def end_orphans(self) -> None:
        while pids := self.orphans():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    # -- what is known -----------------------------------------------------------------------------------------

    def stored(self) -> list[Stored]:
        found = []
        for path in sorted(self.folder.glob("*/manifest.json")):
            try:
                manifest = json.loads(path.read_text())
            except ValueError:
                if path.parent.name not in self.torn:
                    self.fail(f"{path} cannot be read")
                continue
            expected, file = manifest["artifact"], path.with_name(manifest["artifact"]["file"])
            whole = False
            if file.is_file():
                content = file.read_bytes()
                md5, sha256 = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
                whole = (len(content), md5, sha256) == (expected["size"], expected["md5"], expected["sha256"])
            found.append(Stored(path.parent, manifest, whole, path.stat().st_mtime))
        return found

    def made(self) -> list[Made]:
        """Return every backup that was ever complete on the node."""
        cwds = {call["pid"]: call["cwd"] for call in self.calls}
        made: list[Made] = []
        started: dict[str, Event] = {}
        for event in self._events.lines(self.name):
            kind = event["kind"]
            if event["event"] == "started":
                started[kind] = event
            elif event["event"] == "complete":
                start = started.pop(kind, event)
                by = self.run_of(cwds.get(start["pid"], "")) if start["by"] == "a0cli" else None
                made.append(Made(kind, event["md5"], event["time"], start["time"], by))
            else:
                [lost] = [one for one in made if one.kind == kind and one.md5 == event["md5"] and one.gone is None]
                lost.gone = event
        return made

    @property
    def calls(self) -> list[Event]:
        return self._calls.lines(self.name)

    def run_of(self, cwd: str) -> str | None:
        """Return the run that works in this directory, None for an operator."""
        path = Path(cwd)
        return path.name.rpartition("-")[0] if path.parent == self.folder / "work" else None

    def _is_of_this_step(self, run: str) -> bool:
        return int(run.removeprefix("run-")) > self.runs_before

    def is_doubtful(self, made: Made) -> bool:
        """Return whether, since its start, something happened after which no run could tell that it is ours."""
        return any(doubt > made.started - 5 for doubt in self.doubts[made.kind])

    def _verified_files(self) -> dict[str, set[str]]:
        files = {kind: self.folder / "work" / f"{kind}.tar.gz.enc" for kind in KINDS}
        return {k: {hashlib.md5(f.read_bytes()).hexdigest()} if f.is_file() else set() for k, f in files.items()}

    def fail(self, text: str) -> Any:
        calls = [
            f"{c['seq']} {c['time'] % 1000:.3f} {Path(c['cwd']).name} {c['command']} {c['outcome']} {c['faults']}"
            for c in self.calls
        ]
        events = [
            f"{e['time'] % 1000:.3f} {e['kind']} {e['event']} {e.get('md5')} {e['by']} {e.get('kept')}"
            for e in self._events.lines(self.name)
        ]
        lines = [text, "what happened:", *self.story, "calls:", *calls[-80:], "events:", *events]
        told = "\n".join([*lines, f"vault: {self.folder}"])
        self.failures.append(told)
        raise AssertionError(told)

    # -- what is promised --------------------------------------------------------------------------------------

    @invariant()
    def all_promises_hold(self) -> None:
        if self.sound:
            return
        made = self.made()
        stored = self.stored()
        self._nothing_is_lost(made, stored)
        self._manifests_are_true(made, stored)
        self._one_run_at_a_time()
        self._nothing_safe_is_retrieved_again(made, stored)
        self._nothing_is_started_twice()
        self._nothing_is_public()
        self.sound = True

    def _nothing_is_lost(self, made: list[Made], stored: list[Stored]) -> None:
        whole = {each.md5 for each in stored if each.whole} | self.damaged
        for one in made:
            if one.gone is None or one.gone["event"] != "deleted":
                continue
            call = next(call for call in reversed(self.calls) if call["pid"] == one.gone["pid"])
            run = self.run_of(call["cwd"])
            if run is None:
                continue
            if one.gone["kept"]:
                if one.md5 not in whole:
                    self.fail(f"{one.md5} was deleted by {run}, and is stored no more")
                continue
            earlier = [each for each in self.calls if each["cwd"] == call["cwd"] and each["seq"] < call["seq"]]
            asked_last = bool(earlier) and earlier[-1]["command"] == f"{one.kind}-status"
            if asked_last and one.at > earlier[-1]["time"] and one.gone["time"] - call["time"] < 0.1:
                continue  # another one appeared right before: the node has no conditional delete
            said = self.said[run]
            if said.existing == "replace" and (
                one.by is None or self.is_doubtful(one) or UNVERIFIABLE.intersection(said.faults)
            ):
                continue
            self.fail(f"{one} was deleted by {run} ({said}) and is not stored")

    def _manifests_are_true(self, made: list[Made], stored: list[Stored]) -> None:  # noqa: C901 - one independent rule after another
        for each in stored:
            manifest = each.manifest
            if not each.whole and each.md5 not in self.damaged:
                self.fail(f"the artifact in {each.folder.name} is not what its manifest says")
            known = [one for one in made if one.md5 == each.md5 and one.kind == manifest["kind"]]
            if not known:
                self.fail(f"{each.folder.name} holds what the node never had")
            [one] = known
            password, started = manifest["encryption"]["password"], manifest["started_at"]
            if password["mode"] not in (("shared",) if started is not None else ("shared", "unknown")):
                self.fail(f"{each.folder.name}: {password['mode']}, started at {started}")
            if password["confirmed"] and one.by is None:
                self.fail(f"{each.folder.name} says that our password opens it, and somebody else made it")
            # If its journal is lost, nobody can tell when it was started. That our password opens it is proven.
            if password["mode"] == "shared" and started is None and not password["confirmed"]:
                self.fail(f"{each.folder.name} says that our password opens it, and nothing proves that")
            if started is None:
                if one.by is not None and not self.is_doubtful(one):
                    self.fail(f"{each.folder.name} is our own and is kept as foreign")
                continue
            said = datetime.fromisoformat(started).timestamp()
            if one.by is None:
                refused = [
                    call
                    for call in self.calls
                    if call["command"] == one.kind
                    and call["exit"]
                    and call["outcome"] in ("refuse", "refused")
                    and self.run_of(call["cwd"]) is not None
                    and -1 < call["time"] - said < 2
                    and not LOSING.intersection(self.said[str(self.run_of(call["cwd"]))].faults)
                ]
                if refused:
                    self.fail(f"{each.folder.name} is somebody else's: our start was refused, and it says it is ours")
                # Somebody else's backup is taken for ours if we meant to start one that never came, and theirs came
                # after it.
                others = {other.md5 for other in stored if other is not each and other.manifest["started_at"]}
                came = any(
                    o.by and o.kind == one.kind and abs(o.started - said) < 1 and o.md5 not in others for o in made
                )
                if came or one.started <= said - 1:
                    self.fail(f"{each.folder.name} is somebody else's and says that we started it")
            elif not -1 < one.started - said < 8:
                self.fail(f"{each.folder.name} was started at {one.started}, its manifest says {said}")

    def _one_run_at_a_time(self) -> None:
        over: set[str] = set()
        at_work = ""
        for call in self.calls:
            cwd = call["cwd"]
            if self.run_of(cwd) is None or cwd == at_work:
                continue
            if cwd in over:
                self.fail(f"a call of {Path(cwd).name} took effect after {Path(at_work).name} took over")
            over.add(cwd)
            at_work = cwd

    def _nothing_safe_is_retrieved_again(self, made: list[Made], stored: list[Stored]) -> None:
        for call in self.calls:
            run = self.run_of(call["cwd"])
            if run is None or not call["command"].endswith("-retrieve") or call["outcome"] == "refused":
                continue
            kind = call["command"].removesuffix("-retrieve")
            held = [
                one.md5
                for one in made
                if one.kind == kind and one.at < call["time"] and (one.gone is None or one.gone["time"] > call["time"])
            ]
            if not held or held[0] in self.damaged or LYING.intersection(self.said[run].faults):
                continue
            if any(each.md5 == held[0] and each.since < call["time"] for each in stored):
                self.fail(f"{run} retrieved {held[0]}, which was stored")
            if self._is_of_this_step(run) and held[0] in self.verified[kind]:
                self.fail(f"{run} retrieved {held[0]}, whose verified bytes were there")

    def _nothing_is_started_twice(self) -> None:
        starts = Counter(
            (call["cwd"], call["command"])
            for call in self.calls
            if call["command"] in KINDS and call["outcome"] != "refused" and self.run_of(call["cwd"]) is not None
        )
        for (cwd, kind), times in starts.items():
            said = self.said[str(self.run_of(cwd))]
            most = 2 if said.existing == "replace" or LYING.intersection(said.faults) else 1
            if times > most:
                self.fail(f"{Path(cwd).name} started {times} times a {kind}")
            given_up = said.existing == "replace" and UNVERIFIABLE.intersection(said.faults)
            meddled = LYING.intersection(said.faults)
            if (
                self._is_of_this_step(str(self.run_of(cwd)))
                and kind in self.unfinished
                and not given_up
                and not meddled
            ):
                self.fail(f"{Path(cwd).name} started another {kind} while ours was there: {self.unfinished[kind]}")

    def _nothing_is_public(self) -> None:
        for path in self.folder.rglob("*"):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600):
                self.fail(f"{path} has mode {stat.S_IMODE(mode):o}")
            if stat.S_ISREG(mode) and OURS.encode() in path.read_bytes():
                self.fail(f"{path} holds the password")

    def teardown(self) -> None:
        if not self.sound:
            return
        self.note("at the end, a run with everything calm")
        self.simulated.forget(self.name)
        for attempt in range(3):
            flow_run, running = self.run("preserve", KINDS, call_timeout=CALL_TIMEOUT + attempt)
            ended = self.ended((flow_run, running))
            if ended.stored:
                break
        else:
            self.fail("a calm run does not succeed")
        self.all_promises_hold()
        if any(one.gone is None for one in self.made()):
            self.fail("the node still holds a backup")
        stored = {each.md5 for each in self.stored()} | self.damaged
        for md5, kind in self.to_be_stored.items():
            [one] = [one for one in self.made() if one.md5 == md5]
            if md5 not in stored and not self.is_doubtful(one):
                self.fail(f"the verified bytes of {md5} ({kind}) were here and are not stored")
        left = [path for path in self.folder.rglob("*") if path.match("work/*") or path.name.endswith(".partial")]
        left += self.folder.glob("journal-*.json")
        if left:
            self.fail(f"left lying: {left}")
        with (self.folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if self.orphans():
            self.fail("a process is left")
        shutil.rmtree(self.room)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.mark.parametrize("existing", ["preserve", "replace", "fail"])
def test_the_promises_hold_if_the_backup_is_replaced_between_its_retrieval_and_its_deletion(
    world: World, existing: str
) -> None:
    """The sequences rarely have just this event, and it is the one that the status before a deletion is for."""

    class Machine(Nights):
        pass

    Machine.world, Machine.failures = world, []
    machine = Machine()
    machine.somebody_acts_between_the_retrieval_and_the_deletion(existing, "backup", "replaced")
    machine.all_promises_hold()
    machine.teardown()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_promises_hold_in_any_sequence(
    world: World, part: int, record_property: Callable[[str, object], None]
) -> None:
    class Machine(Nights):
        pass

    Machine.world, Machine.failures = world, []
    before = Counter(world.tried)
    # Not shrunk: each step takes a second of real processes, and no two runs of a sequence are quite alike.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=STEPS,
                phases=phases,
                deadline=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except Exception as error:
        if Machine.failures:
            # Report what failed first, even if the same steps succeeded the second time.
            raise AssertionError(Machine.failures[0]) from error
        raise
    tried = world.tried - before
    row = {"fault": "random sequences (model)", "points": tried["steps"], "killed": tried["killed"]}
    record_property("faults", [{**row, "resumed": tried["resumed"], "violations": 0}])
