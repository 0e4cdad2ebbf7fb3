"""The backup of one node, from its lock to its settled journal: every run uses it, with or without an engine.

outcomes = NodeOutcomes(node, run.fleet)
await back_up_node(run, outcomes, take=take_step, shared=shared_password)
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from a0backup.a0cli.status import Found, Status, shown
from a0backup.backup.node_backup import NodeBackup
from a0backup.backup.reconcile import (
    AskAgain,
    Await,
    Claim,
    CopyOut,
    Delete,
    Keep,
    ReadBack,
    Refuse,
    Replace,
    Settle,
    Start,
)
from a0backup.backup.retrieve import Next
from a0backup.backup.session import NodeSession, Run, open_node
from a0backup.backup.steps import StepName, TakeStep
from a0backup.errors import A0BackupError, ForeignBackupError, NodeBusyError, UnsettledError
from a0backup.fleet.models import Fleet, Node
from a0backup.passwords.shared import LoadShared
from a0backup.report.outcomes import Outcome, halves, outcome_of
from a0backup.report.warnings import RunWarning
from a0backup.upkeep.comparison import losses_of
from a0backup.vault.journal import JournalFile
from a0backup.vault.manifest import Manifest

MAX_ROUNDS = 20  # a night takes three or four; more means that somebody else keeps changing the node


class NodeOutcomes:
    """The outcomes so far, one for each kind of *node*.

    The object lives outside the code that may fail. *failed* is called at once with each error that
    stops a kind or the node, before their outcomes are added.
    """

    def __init__(self, node: Node, fleet: Fleet, failed: Callable[[Exception], None] = lambda error: None) -> None:
        self.node, self.kinds, self.failed = node, fleet.kinds_of(node), failed
        self.all: list[Outcome] = []
        self.warnings: list[RunWarning] = []

    def note_rest(self, ended: "Ended", step: StepName) -> None:
        """Add the error of *ended*, if any, as the outcome of each remaining kind; it occurred in *step*."""
        if ended.error is None:
            return
        rest = self.kinds[len(self.all) :]
        if rest or all(outcome.ok for outcome in self.all):  # otherwise it only repeats what was reported
            self.failed(ended.error)
        for kind in rest:
            self.all.append(outcome_of(self.node.name, kind, seconds=ended.seconds, error=ended.error, step=step))


@dataclass
class Ended:
    """How a piece of work ended: the error, if any, and the duration in seconds."""

    error: Exception | None = None
    seconds: float = 0.0


@contextmanager
def error_kept() -> Iterator[Ended]:
    """Catch the error of the block and continue after it: a failed kind or node must not stop the others."""
    start = time.monotonic()
    ended = Ended()
    try:
        yield ended
    except Exception as error:  # noqa: BLE001 - also an unforeseen one
        ended.error = error
    ended.seconds = time.monotonic() - start


async def back_up_node(run: Run, outcomes: NodeOutcomes, *, take: TakeStep, shared: LoadShared) -> None:
    """Back up all kinds of a node, one after another under its lock, and add their outcomes.

    *take* runs each step; *shared* loads the password of fleet.yaml.
    """
    node, step = outcomes.node, StepName.LOCK
    with error_kept() as ended:
        async with open_node(run, node, take=take, shared=shared) as session:
            try:
                await session.update_commands()
                await session.ping()
            finally:
                step = session.step
            outcomes.kinds = await unfinished_first(session, outcomes.kinds)
            for kind in outcomes.kinds:
                await back_up_kind(session, kind, outcomes)
            if session.health is not None:
                outcomes.warnings += [RunWarning(text, node.name) for text in session.health.warnings]
            outcomes.warnings += await forgotten_kinds(session, outcomes.kinds)
            if half := halves(node.name, outcomes.kinds, splits=session.splits, outcomes=outcomes.all):
                outcomes.warnings.append(RunWarning(half, node.name))
            outcomes.warnings += await losses(session, outcomes.all)
    if ended.error is not None and len(outcomes.all) == len(outcomes.kinds):
        # Every backup has its outcome already, so only a warning can report it.
        why = ended.error.text() if isinstance(ended.error, A0BackupError) else repr(ended.error)
        outcomes.warnings.append(RunWarning(f"after its last backup: {why}", node.name))
    outcomes.note_rest(ended, step)


async def unfinished_first(session: NodeSession, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return *kinds* with those first whose backup may still be in progress: a node makes one at a time."""
    folder = session.vault.folder(session.node.name)
    unfinished = await session.on_disk(lambda: [kind for kind in kinds if JournalFile(folder, kind).path.exists()])
    return tuple(sorted(kinds, key=lambda kind: kind not in unfinished))


async def forgotten_kinds(session: NodeSession, kinds: Sequence[str]) -> list[RunWarning]:
    """Return a warning for each unfinished backup of a kind that is not among *kinds* any more."""
    folder, node = session.vault.folder(session.node.name), session.node.name
    journals = await session.on_disk(lambda: sorted(folder.glob("journal-*.json")))
    names = (path.stem.removeprefix("journal-") for path in journals)
    text = "an unfinished {} of an earlier run is not in `kinds` any more: no run finishes it"
    return [RunWarning(text.format(kind), node) for kind in names if kind not in kinds]


async def losses(session: NodeSession, outcomes: Sequence[Outcome]) -> list[RunWarning]:
    """Return a warning for each thing that a stored backup lacks of the one before it."""
    vault, shrink = session.vault, session.fleet.drills.shrink
    warnings = []
    for outcome in outcomes:
        stored = await session.on_disk(vault.get, outcome.id) if outcome.id else None
        if isinstance(stored, Manifest):
            found = await session.on_disk(losses_of, vault, stored, shrink)
            warnings += [RunWarning(text, session.node.name) for text in found]
    return warnings


async def back_up_kind(session: NodeSession, kind: str, outcomes: NodeOutcomes) -> None:
    """Back up one *kind* of the locked node and add its outcome."""
    backup = NodeBackup(session, kind)
    with error_kept() as ended:
        if session.in_progress:
            raise NodeBusyError(session.node.name, kind, session.in_progress)
        await backup.open()
        await make_and_keep(backup)
    if ended.error is not None:
        outcomes.failed(ended.error)
    outcomes.all.append(backup.outcome(ended.seconds, ended.error))
    if ended.error is not None:
        session.in_progress = session.in_progress or (kind if backup.is_in_progress else "")
        await backup.abandon()


async def make_and_keep(backup: NodeBackup) -> None:
    """Continue the node's backup from its current state until its artifact is stored and off the node.

    Each round does what reconcile decides from node, journal and vault. A backup that an earlier
    run began is finished, one that somebody else made is handled first, and then a new one is made.
    """
    status = await backup.status()
    for _ in range(MAX_ROUNDS):
        match await backup.next_action(status):
            case Start():
                await backup.session.require_well()
                await backup.start()
                status = await backup.await_finished()
            case Await():
                status = await backup.await_finished()
            case AskAgain():
                status = await backup.ask_again()
            case Keep() as action:
                status = await retrieve_and_store(backup, action, status)
            case ReadBack(stored):
                await backup.read_back(stored)
            case CopyOut(stored):
                await backup.copy_out(stored)
            case Replace(found) if not await backup.may_replace(found):
                keep = Keep(found, Claim.NONE, because="no new one will be made, as the node is not well")
                status = await retrieve_and_store(backup, keep, status)
            case Delete(found) | Replace(found):
                status = await backup.delete(found)
            case Refuse():
                raise ForeignBackupError(backup.session.node.name, backup.kind, shown(status))
            case Settle(outcome):
                await backup.settle(outcome)
                return
    raise UnsettledError(backup.session.node.name, backup.kind, shown(status))


async def retrieve_and_store(backup: NodeBackup, action: Keep, status: Status) -> Status:
    """Retrieve the backup of *action* until its md5 matches, at most `retrieve_attempts` times, then store it.

    Nothing is stored if the backup is given up, or if the node shows another md5 for it between two
    attempts: the first one was shown too early. Return the last status.
    """
    retrieval = backup.retrieval(action)
    while True:
        try:
            await retrieval.retrieve()
            await retrieval.verify()
            await retrieval.inspect()
        except A0BackupError as error:
            match await backup.after_failure(retrieval, error):
                case Next.RETRY:
                    now = await backup.status()
                    if isinstance(now, Found) and now.name == action.found.name and now != status:
                        return now
                    continue
                case Next.GIVE_UP:
                    return status
                case Next.FAIL:
                    raise
        await backup.store(retrieval)
        return status
