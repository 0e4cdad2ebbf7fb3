"""One run's backup of one kind of a node: its phases, and the state between them."""

import asyncio
import logging

from a0backup.a0cli.status import Absent, Found, Status, shown
from a0backup.backup.await_ import Await
from a0backup.backup.context import Context
from a0backup.backup.deletion import Deletion
from a0backup.backup.facts import is_lost_by_node, stored_manifest
from a0backup.backup.keep import Storing
from a0backup.backup.reconcile import Action, Facts, Keep, reconcile
from a0backup.backup.retrieve import Next, Retrieval
from a0backup.backup.session import NodeSession
from a0backup.backup.start import Start
from a0backup.backup.steps import StepName, step
from a0backup.errors import A0BackupError, Md5MismatchError, RefusedError, VaultUnusableError
from a0backup.identity import BackupIdentity
from a0backup.report.outcomes import Outcome, outcome_of
from a0backup.vault.manifest import Manifest

log = logging.getLogger(__name__)


class NodeBackup:
    """The backup of one *kind* of a node, in the state that one run has reached."""

    def __init__(self, session: NodeSession, kind: str) -> None:
        self.session, self.kind = session, kind
        self.context = Context(session, kind)
        self.deletion = Deletion(self.context)
        self._start = Start(self.context, self.deletion)
        self._await = Await(self.context)
        self._outcome: Manifest | None = None  # the artifact that this run counts as its result
        self._read_back: frozenset[str] = frozenset()  # ids of artifacts that this run has read back
        self._given_up: BackupIdentity | None = None  # the backup that could not be verified and will be replaced
        self._asked_again = False

    # -- deciding ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the journal, and what another run or an earlier try of this one has stored since this run began.

        Raise RefusedError if the node does not offer this kind.
        """
        self.session.enter(StepName.PING)
        if self.kind in self.session.not_offered:
            raise RefusedError(self.session.node.name, self.kind, "the node does not offer this command")
        self.session.enter(StepName.RECONCILE)
        await self.context.on_disk(self._open)
        await self.deletion.look()

    def _open(self) -> None:
        context, run, node = self.context, self.session.run, self.session.node.name
        context.read_journal()
        last = context.vault.newest(node, self.kind)
        if last is not None and last.flow_run == run.id and last.started_at is not None:
            self._outcome = last
            return
        before = run.stored_before.get(node)
        if before is not None:
            self._outcome = context.vault.stored_since(node, self.kind, before)
        if self._outcome is not None:
            context.note(f"run {self._outcome.flow_run} stored {self._outcome.id} while this run waited for the lock")

    @step(StepName.STATUS)
    async def status(self) -> Status:
        """Return the node's current status. Raise A0cliError."""
        return await self.context.ask()

    async def next_action(self, status: Status) -> Action:
        """Return the next action according to reconcile. Raise VaultUnusableError."""
        self.session.enter(StepName.RECONCILE)
        action = reconcile(await self.context.on_disk(self._facts, status))
        log.info("%s: %s: %s", self.session.node.name, action.because, action.then)
        if isinstance(action, Keep) and action.ours and action.found.md5 and self._is_not_pinned():
            # Pin it: a later backup in its place is then known to be another one.
            await self.context.note_journal(shown(action.found), pinned=action.found.identity)
        return action

    def _is_not_pinned(self) -> bool:
        return self.context.journal is not None and self.context.journal.pinned is None

    def _facts(self, status: Status) -> Facts:
        context, vault, node = self.context, self.context.vault, self.session.node.name
        return Facts(
            status=status,
            existing=context.existing,
            journal=context.journal,
            unreadable=context.unreadable,
            stored=stored_manifest(vault, node, self.kind, status, context.journal),
            lost_by_node=is_lost_by_node(vault, node, self.kind, status, context.journal),
            outcome=self._outcome,
            read_back=self._read_back,
            asked_again=self._asked_again,
            given_up=self._given_up,
        )

    # -- doing -------------------------------------------------------------------------------------------------

    async def ask_again(self) -> Status:
        """Return the status after `call_timeout`: a start that was sent may still be under way. Raise A0cliError."""
        wait = self.session.fleet.a0cli.call_timeout
        self.session.enter(StepName.STATUS)
        self.context.tell(
            StepName.STATUS,
            f"a backup was started but the node does not show it yet; checking again in {wait:.0f} s",
        )
        await asyncio.sleep(wait)
        self._asked_again = True
        return await self.status()

    async def start(self) -> None:
        """Start a backup; `await_finished` shows its result. Raise what `Start.start` raises."""
        if self._asked_again:
            self.context.note("the backup that an earlier run started is no longer on the node")
        await self._start.start()
        self._await = Await(self.context, self._start.sent)

    async def await_finished(self) -> Status:
        """Return the status that ends the wait. Raise what `Await.poll` raises, except BackupInProgressError."""
        return await self._await.poll()

    def retrieval(self, action: Keep) -> Retrieval:
        """Return the retrieval of the bytes that *action* keeps."""
        return Retrieval(self.context, self._start, action)

    async def after_failure(self, retrieval: Retrieval, error: A0BackupError) -> Next:
        """Return what follows *error*, which ended an attempt of *retrieval*; quarantine bytes that never matched.

        A run gives up a backup that cannot be verified only once, and only if the operator asked
        for it.
        """
        may_give_up = self.context.may_give_up and self._given_up is None
        following = retrieval.after(error, may_give_up=may_give_up)
        if following is Next.GIVE_UP or (following is Next.FAIL and isinstance(error, Md5MismatchError)):
            await retrieval.keep_aside(error)
        if following is Next.GIVE_UP:
            self.context.note(f"given up and replaced by a new one: {error.text()}")
            self._given_up, self._outcome = retrieval.found.identity, None
        return following

    async def store(self, retrieval: Retrieval) -> None:
        """Store the bytes that *retrieval* has verified, and read them back. Raise VaultError."""
        storing = Storing(self.context, retrieval)
        try:
            await storing.store()
        finally:
            # Even if the step fails after it: the vault has the artifact, and the outcome must say so.
            if storing.stored is not None:
                self._read_back |= {storing.stored.id}
                if storing.is_outcome:
                    self._outcome = storing.stored

    async def delete(self, found: Found) -> Status:
        """Delete *found* on the node; return the status that no longer shows it. Raise A0BackupError."""
        await self.deletion.send(found)
        status = await self.deletion.confirm(found)
        if found.identity == self._given_up:
            await self.context.forget_journal()
        return status

    async def settle(self, outcome: Manifest) -> None:
        """Finish the backup: it is stored and off the node, and none of the work files remain."""
        self.session.enter(StepName.SETTLE)
        self._outcome = outcome
        journal = self.context.journal
        if journal is not None and journal.flow_run != self.session.run.id:
            self.context.note(
                f"finished the backup that run {journal.flow_run} started at {journal.started_at:%Y-%m-%d %H:%M:%S UTC}"
            )
        await self.context.forget_journal()
        # Last: until then, a run after a crash may still need them. Only if the node shows nothing: a start that
        # arrived late may have made its current backup with one of them.
        if isinstance(self.context.last_status, Absent):
            await self.context.on_disk(self._remove_passwords)
        await self.context.sweep()

    def _remove_passwords(self) -> None:
        manifests = self.context.vault.newest_first(self.session.node.name, self.kind)
        self.context.sealed_files.remove(but=self.context.sealed_files.only_here(manifests))

    # -- the end -----------------------------------------------------------------------------------------------

    async def abandon(self) -> None:
        """End a failed backup; if its artifact is stored, the next run starts from what the node then holds."""
        # Never remove the journal of a backup other than the stored one: that backup is unfinished.
        journal = self.context.journal
        if journal is None or self._outcome is None or not journal.is_of(self._outcome):
            return
        try:
            await self.context.forget_journal()
        except VaultUnusableError as error:
            self.context.note(f"the journal could not be removed: {error.reason}")

    def outcome(self, seconds: float, error: BaseException | None) -> Outcome:
        """Return the outcome: *error* or, without one, the artifact that is stored and off the node."""
        stored = self._outcome if error is None or self._is_what_failed() else None
        status = self.context.last_status
        match status:
            case Absent():
                off_node = True
            case Found():
                off_node = stored is not None and not status.identity.may_hold_bytes_of(stored.identity)
            case _:  # one in progress shows nothing of the backup before it
                off_node = False
        return outcome_of(
            self.session.node.name,
            self.kind,
            seconds=seconds,
            error=error,
            step=self.session.step,
            manifest=stored,
            off_node=off_node,
            notes=self.context.notes,
        )

    def _is_what_failed(self) -> bool:
        """Return whether the outcome belongs to the backup that failed, not to one that another run stored."""
        outcome, journal = self._outcome, self.context.journal
        if outcome is None:
            return False
        of_journal = journal is not None and journal.is_of(outcome)
        return of_journal or outcome.id in self._read_back or outcome.flow_run == self.session.run.id
