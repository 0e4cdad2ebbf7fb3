"""One run's backup of one kind of a node: its phases, and the state between them."""

import asyncio
import logging
import time
from datetime import timedelta

from a0backup.a0cli.status import Absent, Found, InProgress, Status, shown
from a0backup.backup import reconcile as actions
from a0backup.backup.await_ import Await
from a0backup.backup.context import Context
from a0backup.backup.copies import Copies
from a0backup.backup.deletion import Deletion
from a0backup.backup.facts import is_lost_by_node, is_recent, stored_manifest
from a0backup.backup.keep import Storing
from a0backup.backup.reconcile import Action, Claim, Facts, Keep, SoFar, reconcile
from a0backup.backup.retrieve import Next, Retrieval
from a0backup.backup.session import NodeSession
from a0backup.backup.start import Start
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import (
    A0BackupError,
    ArtifactDamagedError,
    Md5MismatchError,
    NodeDeadlineError,
    NodeUnwellError,
    RefusedError,
    UnsettledError,
)
from a0backup.report.outcomes import Outcome, outcome_of
from a0backup.vault.journal import Effect, Journal
from a0backup.vault.manifest import Manifest
from a0backup.vault.quarantine import keep_given_up
from a0backup.vault.space import release
from a0backup.vault.storing import confirm
from a0backup.vault.vault import time_of

log = logging.getLogger(__name__)

MAX_FOREIGN = 2  # of one kind, stored in one run; a node that always shows another one would fill the vault


class NodeBackup:
    """The backup of one *kind* of a node, in the state that one run has reached."""

    def __init__(self, session: NodeSession, kind: str) -> None:
        self.session, self.kind = session, kind
        self.context = Context(session, kind)
        self.deletion = Deletion(self.context)
        self.so_far = SoFar()
        self._start = Start(self.context, self.deletion, self.so_far)
        self._await = Await(self.context)
        self._copies = Copies(self.context)
        self._began = time.monotonic()
        self._foreign = 0  # backups that were stored as foreign

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
        if last is not None and last.flow_run == run.id and self._counts(last):
            self.so_far.outcome = last
            return
        before = run.stored_before.get(node)
        last = context.vault.stored_since(node, self.kind, before) if before is not None else None
        if last is not None and self._counts(last):
            self.so_far.outcome = last
            context.note(f"run {last.flow_run} stored {last.id} while this run waited for the lock")
        elif (last := self._stored_since_due()) is not None:
            self.so_far.outcome = last
            context.note(f"run {last.flow_run} stored {last.id} after this run was due, and before it began")

    def _counts(self, stored: Manifest) -> bool:
        """Return whether what a run has stored may be this run's outcome: a run may have finished an older backup."""
        run = self.session.run
        return stored.started_at is not None and is_recent(
            stored.started_at, run.due or run.began, run.fleet.reuse_within
        )

    def _stored_since_due(self) -> Manifest | None:
        """Return the last artifact that a run stored after this run was due and before it began, if that is known."""
        run = self.session.run
        if run.due is None:
            return None
        oldest = run.due - timedelta(seconds=run.fleet.reuse_within)
        for manifest in self.context.vault.newest_first(self.session.node.name, self.kind):
            if run.due <= manifest.stored_at <= run.began and self._counts(manifest):
                return manifest
            if time_of(manifest.id) < oldest:
                return None  # all others were started still earlier
        return None

    @step(StepName.STATUS)
    async def status(self) -> Status:
        """Return the node's current status. Raise A0cliError."""
        return await self.context.ask()

    async def next_action(self, status: Status) -> Action:
        """Return the next action according to reconcile.

        Raise VaultUnusableError, and UnsettledError or NodeDeadlineError if the node would hold this
        run for ever.
        """
        self.session.enter(StepName.RECONCILE)
        action = reconcile(await self.context.on_disk(self._facts, status))
        log.info("%s: %s: %s", self.session.node.name, action.because, action.then)
        journal = self.context.journal
        self._require_end(action, status)
        if isinstance(action, Keep) and action.claim is not Claim.NONE and action.found.md5 and journal is not None:
            found = action.found.identity
            if journal.pinned != found:
                # Pin it: a later backup in its place is then known to be another one.
                await self.context.note_journal(shown(action.found), effect=Effect.UNKNOWN, pinned=found)
        return action

    def _require_end(self, action: Action, status: Status) -> None:
        """Raise UnsettledError or NodeDeadlineError if *action* would be one too many of those that take long."""
        fleet, node = self.session.fleet, self.session.node.name
        keeps = action if isinstance(action, Keep) and action.stored is None else None
        if keeps is not None and keeps.claim is Claim.NONE and self._foreign >= MAX_FOREIGN:
            raise UnsettledError(node, self.kind, shown(status))
        # Enough for a backup of an earlier run and one of this run. What is stored is finished, however late.
        limit = 2 * fleet.polling.deadline + fleet.a0cli.retrieve_timeout * fleet.retrieve_attempts
        long = keeps is not None or isinstance(action, actions.Start | actions.Await)
        if long and time.monotonic() - self._began > limit:
            raise NodeDeadlineError(node, self.kind, limit, shown(status))

    def _facts(self, status: Status) -> Facts:
        context, vault, node = self.context, self.context.vault, self.session.node
        journal, damaged = context.journal, self.so_far.damaged
        return Facts(
            status=status,
            existing=context.existing,
            journal=journal,
            unreadable=context.unreadable,
            moved=journal is not None and not journal.is_for(node.host, node.port),
            recent=journal is None or self._is_recent(journal),
            stored=stored_manifest(vault, node.name, self.kind, status, journal),
            hidden=vault.hides_manifest(node.name, self.kind),
            lost_by_node=is_lost_by_node(vault, node.name, self.kind, status, journal, damaged=damaged),
            copies=bool(self.session.run.places),
            run=self.so_far,
        )

    def _is_recent(self, journal: Journal) -> bool:
        """Return whether the journal's backup may be this run's outcome."""
        run = self.session.run
        return journal.flow_run == run.id or is_recent(journal.started_at, run.began, run.fleet.reuse_within)

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
        self.so_far.asked_again = True
        return await self.status()

    async def may_replace(self, found: Found) -> bool:
        """Return whether *found* may be deleted without a copy: it cannot be verified, or a new one will be made."""
        if found.identity == self.so_far.given_up:
            return True
        try:
            await self.session.require_well()
        except NodeUnwellError:
            return False
        return True

    async def start(self) -> None:
        """Start a backup; `await_finished` shows its result. Raise what `Start.start` raises."""
        journal = self.context.journal
        if journal is not None and self.so_far.asked_again:
            self.context.note(
                "the start that an earlier run sent has left nothing on the node; a new backup was started"
            )
        elif journal is not None and journal.pinned is not None:
            self._note_finished(journal)
        await self._start.start()
        self._await = Await(self.context, self._start.sent)

    async def await_finished(self) -> Status:
        """Return the status that ends the wait. Raise what `Await.poll` raises, except BackupInProgressError."""
        return await self._await.poll()

    @step(StepName.READ_BACK)
    async def read_back(self, stored: Manifest) -> Done:
        """Read back an artifact that is to be this run's outcome. Raise VaultUnusableError.

        A damaged one is noted, and is the outcome no more.
        """
        try:
            await self.context.on_disk(confirm, self.context.vault, stored)
        except ArtifactDamagedError as error:
            self.context.note(f"{error.message()}; a new backup is made")
            self.so_far.damaged |= {stored.id}
            if self.so_far.outcome is not None and self.so_far.outcome.id == stored.id:
                self.so_far.outcome = None
            return Done(f"{stored.id} is damaged")
        self.so_far.read_back |= {stored.id}
        return Done(f"{stored.id} was read back")

    def retrieval(self, action: Keep) -> Retrieval:
        """Return the retrieval of the bytes that *action* keeps."""
        return Retrieval(self.context, self._start, action)

    async def after_failure(self, retrieval: Retrieval, error: A0BackupError) -> Next:
        """Return what follows *error*, which ended an attempt of *retrieval*; quarantine bytes that never matched.

        A run gives up a backup that cannot be verified only once: if the operator asked for it, or
        after `give_up_after` nights. Then its bytes must be in quarantine.
        """
        # A refusal may have been wrong, and the backup on the node ours.
        possible = self.so_far.given_up is None and not self.so_far.refusals
        asked_for = possible and self.context.may_give_up
        following = retrieval.after(error, may_give_up=asked_for)
        if following is Next.RETRY:
            return following
        kept = None
        if following is Next.GIVE_UP or isinstance(error, Md5MismatchError):
            kept = await retrieval.keep_aside(error)
        nights = await retrieval.count_night(error)
        if following is Next.FAIL and possible and kept is not None and nights >= self.session.fleet.give_up_after:
            following = Next.GIVE_UP
        if following is Next.GIVE_UP:
            kept = kept and await self.context.on_disk(keep_given_up, kept)
            after = f" after {nights} nights" if nights > 1 else ""
            self.context.note(f"given up{after} and replaced by a new one: {error.text()}")
            self.so_far.given_up, self.so_far.outcome = retrieval.found.identity, None
        if kept is not None:
            removed = "; no run removes them" if following is Next.GIVE_UP else ""
            self.context.note(f"the bytes that could not be verified are kept in {kept}{removed}")
        return following

    async def store(self, retrieval: Retrieval) -> None:
        """Store the bytes that *retrieval* has verified, and read them back. Raise VaultError."""
        storing = Storing(self.context, retrieval)
        try:
            await storing.store()
        finally:
            # Even if the step fails after it: the vault has the artifact, and the outcome must say so.
            if storing.stored is not None:
                self.so_far.read_back |= {storing.stored.id}
                self._foreign += not storing.ours and retrieval.bytes.stored is None
                if storing.ours and self.context.journal is not None and self._is_recent(self.context.journal):
                    self.so_far.outcome = storing.stored

    async def copy_out(self, stored: Manifest) -> None:
        """Bring *stored* to the further places, and prove it there. Raise NotCopiedError, VaultError."""
        await self._copies.copy(stored)
        self.so_far.copied |= {stored.id}

    async def delete(self, found: Found) -> Status:
        """Delete *found* on the node; return the status that no longer shows it. Raise A0BackupError."""
        await self.deletion.send(found)
        sent = self.deletion.is_sent
        status = await self.deletion.confirm(found)
        if found.identity == self.so_far.given_up and sent:
            await self.context.forget_journal()
        elif found.identity == self.so_far.given_up:
            self.so_far.given_up = None  # the node shows something else now
        return status

    async def settle(self, outcome: Manifest) -> None:
        """Finish the backup: it is stored and off the node, and none of the work files remain."""
        self.session.enter(StepName.SETTLE)
        self.so_far.outcome = outcome
        journal = self.context.journal
        if journal is not None and journal.flow_run != self.session.run.id:
            self._note_finished(journal)
        await self.context.forget_journal()
        await self.context.clean_up("the count of unverified nights", self.context.unverified.remove)
        # Last: until then, a run after a crash may still need them. Only if the node shows nothing: a start that
        # arrived late may have made its current backup with one of them.
        if isinstance(self.context.last_status, Absent):
            await self.context.clean_up("the sealed passwords of earlier starts", self._remove_passwords)
        await self.context.sweep()

    def _note_finished(self, journal: Journal) -> None:
        started = f"{journal.started_at:%Y-%m-%d %H:%M:%S UTC}"
        new = "" if self._is_recent(journal) else "; that was too long ago for tonight's backup, so a new one is made"
        self.context.note(f"finished the backup that run {journal.flow_run} started at {started}{new}")

    def _remove_passwords(self) -> None:
        manifests = self.context.vault.newest_first(self.session.node.name, self.kind)
        self.context.sealed_files.remove(but=self.context.sealed_files.needed(manifests))

    # -- the end -----------------------------------------------------------------------------------------------

    async def abandon(self) -> None:
        """End a failed backup; if its artifact is stored, the next run starts from what the node then holds."""
        release(self.context.vault, self.session.node.name)  # the node may be at its next kind for hours
        # Never remove the journal of a backup other than the stored one: that backup is unfinished.
        journal = self.context.journal
        if journal is None or self.so_far.outcome is None or not journal.is_of(self.so_far.outcome):
            return
        await self.context.forget_journal()

    @property
    def is_in_progress(self) -> bool:
        """Whether the node was last seen making this backup, or may be: nothing came of a start of this run yet."""
        journal, sent = self.context.journal, self._start.sent
        unclear = journal is not None and journal.pinned is None and journal.effect is Effect.UNKNOWN
        return isinstance(self.context.last_status, InProgress) or (sent is not None and unclear)

    def outcome(self, seconds: float, error: BaseException | None) -> Outcome:
        """Return the outcome: *error* or, without one, the artifact that is stored and off the node."""
        stored = self.so_far.outcome if error is None or self._is_what_failed() else None
        if stored is not None and stored.id not in self.so_far.read_back:
            stored = None  # nothing is known about its bytes in this run
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
        outcome, journal = self.so_far.outcome, self.context.journal
        if outcome is None:
            return False
        of_journal = journal is not None and journal.is_of(outcome)
        return of_journal or outcome.id in self.so_far.read_back or outcome.flow_run == self.session.run.id
