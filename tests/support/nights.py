"""Nights without an engine: the product's own loop with a plain driver for its steps, for tests without Prefect.

ended = await night(fleet)                    # in this process
with Runs(room) as runs:                      # each in its own process, which may be killed
    run = runs.start(fleet_file, flow_run="run-1")
    print(run.wait(60))
"""

import asyncio
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from a0backup.backup.loop import NodeOutcomes, back_up_node
from a0backup.backup.session import NodeSession, Run
from a0backup.backup.steps import StepName
from a0backup.errors import A0BackupError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Existing, Fleet
from a0backup.passwords.shared import LoadShared, Source
from a0backup.report.outcomes import Ending, Outcome
from a0backup.vault.vault import Vault
from tests.support.paths import REPOSITORY
from tests.support.patience import patience

PASSWORD = "Passw0rd"
T = TypeVar("T")
Hook = Callable[[str], None]


# -- the driver --------------------------------------------------------------------------------------------------------

READS = (StepName.UPDATE_COMMANDS, StepName.PING, StepName.STATUS, StepName.DELETE, StepName.CONFIRM_DELETE)


@dataclass
class Plainly:
    """Takes each step directly, and retries an await or a transient fault after a moment, as the flows do.

    See `TakeStep`. *after* is called with the name of each step that succeeded, and *taken* lists them. Both include
    the steps of the node as a whole.
    """

    after: Hook = lambda name: None
    taken: list[str] = field(default_factory=list)

    async def __call__(self, name: StepName, session: NodeSession, kind: str, work: Callable[[], Awaitable[T]]) -> T:
        tries = 100_000 if name is StepName.AWAIT else 4 if name in READS else 1
        result = await again(work, tries)
        self.taken.append(name)
        self.after(name)
        return result


async def again(work: Callable[[], Awaitable[T]], tries: int) -> T:
    """Do *work*, at most *tries* times while its error is transient."""
    for _ in range(tries - 1):
        try:
            return await work()
        except A0BackupError as error:
            if not error.transient:
                raise
        await asyncio.sleep(0.02)
    return await work()


async def nothing_shared(source: Source) -> str | None:
    return None


def sharing(password: str) -> LoadShared:
    async def shared(source: Source) -> str | None:
        return None if source.sealed_to else password

    return shared


class Failures:
    """The error that stopped each kind, from what *outcomes* pass on."""

    outcomes: NodeOutcomes

    def __init__(self) -> None:
        self._from: dict[int, Exception] = {}  # by the kind that it stopped; those after it were not begun

    def __call__(self, error: Exception) -> None:
        self._from[len(self.outcomes.all)] = error

    def of_each_kind(self) -> list[Exception | None]:
        return [
            None if outcome.ok else self._from[max(first for first in self._from if first <= number)]
            for number, outcome in enumerate(self.outcomes.all)
        ]


@dataclass(frozen=True)
class Night:
    """How a run ended for one kind, and the steps that it took."""

    outcome: Outcome
    error: BaseException | None
    stages: list[str] = field(default_factory=list)

    @property
    def notes(self) -> str:
        return "; ".join(self.outcome.notes)


def run_of(fleet: Fleet, flow_run: str, *, existing: Existing | None = None, began: datetime | None = None) -> Run:
    """Return a run that begins now, or one that began when the vault held only what was stored before *began*."""
    run = Run.begin(fleet, fleet.nodes, id=flow_run, existing=existing)
    if began is None:
        return run
    stored = {
        node: snapshot._replace(ids=frozenset(m.id for m in Vault(fleet.vault).manifests(node) if m.stored_at < began))
        for node, snapshot in run.stored_before.items()
    }
    return replace(run, stored_before=stored)


async def night(fleet: Fleet, **said: Any) -> Night:
    """Run on one node of *fleet*. Return how its first kind ended. See `whole_night`."""
    [ended, *_] = await whole_night(fleet, **said)
    return ended


async def whole_night(
    fleet: Fleet,
    *,
    flow_run: str = "run-2",
    existing: Existing | None = None,
    began: datetime | None = None,
    password: str = PASSWORD,
    after: Hook = lambda name: None,
    run: Run | None = None,
    only: str = "",
) -> list[Night]:
    """Run on the only node of *fleet*, or on *only* that one. Return how each kind ended.

    *after* is called after each successful step.
    """
    [node] = fleet.chosen([only]) if only else fleet.nodes
    failures, plainly = Failures(), Plainly(after)
    outcomes = failures.outcomes = NodeOutcomes(node, fleet, failures)
    run = run or run_of(fleet, flow_run, existing=existing, began=began)
    await back_up_node(run, outcomes, take=plainly, shared=sharing(password))
    return [Night(*ended, plainly.taken) for ended in zip(outcomes.all, failures.of_each_kind(), strict=True)]


# -- runs in their own processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How the process of a run ended: killed by *signal*, or with the outcome of each kind."""

    signal: int
    outcomes: list[Outcome]
    errors: list[str]
    unforeseen: str = ""  # the traceback of an error other than A0BackupError

    @property
    def stored(self) -> bool:
        return bool(self.outcomes) and all(outcome.ok for outcome in self.outcomes)


class Running:
    """A run in its own process."""

    def __init__(self, runs: "Runs", pid: int, report: Path) -> None:
        self.runs, self.pid, self._report = runs, pid, report

    @property
    def lives(self) -> bool:
        """Whether the process still exists."""
        return Path(f"/proc/{self.pid}").exists()

    def wait(self, seconds: float = 120) -> Ended:
        """Return how it ended. Raise TimeoutError after *seconds*, with the process killed."""
        status = self.runs._status_of(self.pid, seconds)
        if status < 0:
            return Ended(-status, [], [])
        said = json.loads(self._report.read_text())
        outcomes = [Outcome(**{**each, "ending": Ending(each["ending"])}) for each in said["outcomes"]]
        return Ended(0, outcomes, said["errors"], said["unforeseen"])


class Runs:
    """A warm process that forks one for each run, which saves the start of Python.

    *environment* is added to that of the warm process, for example the library of a fault harness.
    """

    def __init__(self, room: Path, environment: Mapping[str, str] | None = None) -> None:
        self.room = room
        self._environment = {**os.environ, **(environment or {})}
        self._ended: dict[int, int] = {}
        self._count = 0

    def __enter__(self) -> Self:
        program = "from tests.support.nights import serve_runs; serve_runs()"
        with (self.room / "runs.log").open("ab") as log:
            self._warm = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # At the end of its stdin, the process kills its runs and ends.
        self._warm.communicate(timeout=patience(30))

    def start(self, fleet_file: Path, *, attach: Path | None = None, **said: object) -> Running:
        """Start `whole_night` with *said* in its own process, attached to the control file *attach* of the disk."""
        self._count += 1
        report = self.room / f"run-{self._count}.json"
        order = {"fleet_file": str(fleet_file), "report": str(report), "attach": str(attach or ""), "said": said}
        assert self._warm.stdin is not None
        self._warm.stdin.write(json.dumps(order, default=str).encode() + b"\n")
        self._warm.stdin.flush()
        return Running(self, int(self._line(patience(30))["started"]), report)

    def _line(self, seconds: float) -> dict[str, int]:
        """Return the next line, and record it if it reports an end. Raise TimeoutError after *seconds*."""
        stdout = self._warm.stdout
        assert stdout is not None
        ends = time.monotonic() + seconds
        while select.select([stdout], [], [], max(0, ends - time.monotonic()))[0]:
            # The lines are short and unbuffered: each is written in one piece and arrives whole.
            line = b""
            while not line.endswith(b"\n"):
                piece = os.read(stdout.fileno(), 1)
                if not piece:
                    raise RuntimeError(f"the warm process ended: {(self.room / 'runs.log').read_text()[-3000:]}")
                line += piece
            said: dict[str, int] = json.loads(line)
            if "started" in said:
                return said
            self._ended[said["ended"]] = said["status"]
            return said
        raise TimeoutError(f"nothing from the warm process for {seconds:.0f} s")

    def _status_of(self, pid: int, seconds: float) -> int:
        ends = time.monotonic() + patience(seconds)
        try:
            while pid not in self._ended:
                self._line(ends - time.monotonic())
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise
        return self._ended.pop(pid)


def serve_runs() -> None:
    """Be the warm process: fork a run for each line on stdin, and report its start and end on stdout."""
    os.nice(5)  # as in tests/support/warm.py
    pids: dict[int, int] = {}  # by the descriptor that becomes readable when the process ends
    orders = b""

    def tell(**line: int) -> None:
        os.write(1, json.dumps(line).encode() + b"\n")

    while True:
        for ready in select.select([0, *pids], [], [])[0]:
            if ready != 0:
                pid = pids.pop(ready)
                os.close(ready)
                tell(ended=pid, status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            piece = os.read(0, 1 << 16)
            if not piece:
                for pid in pids.values():
                    os.kill(pid, signal.SIGKILL)
                return
            *whole, orders = (orders + piece).split(b"\n")
            for order in map(json.loads, whole):
                pid = os.fork()
                if pid == 0:
                    _run_forked(order)
                pids[os.pidfd_open(pid)] = pid
                tell(started=pid)


def _run_forked(order: Mapping[str, Any]) -> NoReturn:
    """Do one run and end this process, whatever happens."""
    status = 1
    try:
        os.setsid()
        os.umask(0)  # the vault's files are private whatever the umask
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(f"{order['report']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.closerange(3, 1024)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
        if order["attach"]:
            ctypes.CDLL(None).a0_disk_attach(order["attach"].encode())
        said = dict(order["said"])
        if said.get("began") is not None:
            said["began"] = datetime.fromisoformat(said["began"])
        report: dict[str, Any] = {"outcomes": [], "errors": [], "unforeseen": ""}
        try:
            nights = asyncio.run(whole_night(load_fleet(order["fleet_file"]), **said))
            report["outcomes"] = [asdict(night.outcome) for night in nights]
            report["errors"] = [type(night.error).__name__ if night.error else "" for night in nights]
        except BaseException:  # noqa: BLE001 - reported to the process that started this one
            report["unforeseen"] = traceback.format_exc()
        Path(order["report"]).write_text(json.dumps(report))
        status = 0
    except BaseException:  # noqa: BLE001 - a fork must never continue the work of its parent
        traceback.print_exc()
    finally:
        os._exit(status)
