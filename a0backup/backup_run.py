"""One run's work on one node: what each step does, with the node's lock held and a private directory for a0cli.

The steps are called one after another by a flow; each can be called again after a crash, and finds its work done where
journal and vault say that it is.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from a0backup import progress
from a0backup.a0cli import A0cli, Printed, PrivateDirectory
from a0backup.errors import (
    A0BackupError,
    A0cliError,
    A0cliMissingError,
    ArtifactDamagedError,
    AwaitDeadlineError,
    BackupInProgressError,
    DeleteNotConfirmedError,
    ForeignBackupError,
    Md5MismatchError,
    Md5MissingError,
    RefusedError,
    RetrieveFailedError,
    StartFailedError,
    UnreachableError,
    UnsettledError,
    VaultUnusableError,
)
from a0backup.files import Digests, digests, in_thread
from a0backup.fleet import Existing, Fleet, Node
from a0backup.journal import Journal, JournalFile, Pair, pair
from a0backup.lock import node_lock
from a0backup.reconcile import Action, Plan, may_be, reconcile
from a0backup.replies import Absent, Found, InProgress, Status, Wordings, quote, refusal
from a0backup.report import Ending, Outcome
from a0backup.vault import Manifest, ManifestNode, ManifestPassword, Vault

# Commands that a node takes whatever its role (vendor's page on the CLI).
ALWAYS_OFFERED = {"ping", "nslookup", "re-ip", "test-port", "set-as-backup"}

MOST_ROUNDS = 20  # a night takes three or four; more is a node that somebody else works on all the time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """How a step ended: what it did in one sentence, and whether the work was found done already."""

    text: str
    cached: bool = False


class NodeSession:
    """A node with its lock held: what its backups of all kinds share."""

    def __init__(
        self,
        fleet: Fleet,
        node: Node,
        *,
        directory: PrivateDirectory,
        lock: int,
        flow_run: str,
        began: datetime,
        existing: Existing | None,
    ) -> None:
        self.fleet, self.node, self.directory, self.flow_run, self.began = fleet, node, directory, flow_run, began
        self.existing = existing  # said for this run, by the operator
        self.vault = Vault(fleet.vault)
        self.a0cli = A0cli(
            fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path, inherit=[lock]
        )
        self.step = "check"

    def enter(self, step: str) -> None:
        """Note the step that is at work, for the report of a failure in it."""
        self.step = step

    async def update_commands(self) -> Done:
        """Ask the node which commands it takes. Raise A0cliError."""
        self.enter("update-commands")
        await self.a0cli.update_commands()
        return Done("the node said which commands it takes")

    async def ping(self) -> Done:
        """See that the node answers and offers the commands that a backup needs. Raise A0cliError."""
        self.enter("ping")
        await self.a0cli.ping()
        missing = missing_commands((await self.a0cli.commands()).stdout, self.fleet.kinds)
        if missing:
            raise RefusedError(self.node.name, missing[0], "the node does not offer this command")
        return Done("PONG")


@contextlib.asynccontextmanager
async def open_node(
    fleet: Fleet, node: Node, *, flow_run: str, began: datetime, existing: Existing | None = None
) -> AsyncIterator[NodeSession]:
    """Hold the node's lock and a private directory for as long as the block runs.

    Raise BuildTooOldError, VaultUnusableError, LockDeadlineError, A0cliMissingError; nothing was done then.
    """
    node.require_build()
    vault = Vault(fleet.vault)
    await in_thread(vault.ensure_writable, node.name)

    def waiting(holder: str) -> None:
        _say(node.name, "", "lock", f"waits for its turn: the node is held by {holder}")

    async with node_lock(
        vault.folder(node.name), node=node.name, run=flow_run, deadline=fleet.lock_deadline, waiting=waiting
    ) as lock:
        name = f"{flow_run}-{uuid.uuid4().hex[:8]}"  # a retry of the same run must not wipe what its first try left
        directory = PrivateDirectory.make(vault.work(node.name), name, key_dir=fleet.a0cli.key_dir, node=node.name)
        try:
            yield NodeSession(
                fleet, node, directory=directory, lock=lock, flow_run=flow_run, began=began, existing=existing
            )
        finally:
            directory.remove()


class BackupRun:
    """One run's work on the backup of one kind of a node."""

    def __init__(self, session: NodeSession, kind: str) -> None:
        self.session, self.kind = session, kind
        self.notes: list[str] = []
        self.manifest: Manifest | None = None  # the artifact that is this run's outcome
        self._existing = session.existing or session.fleet.existing
        self._wordings = Wordings().extended(session.fleet.a0cli.replies)
        self._journal_file = JournalFile(session.vault.folder(session.node.name), kind)
        self._journal: Journal | None = None
        self._unreadable = False  # the journal that is there
        # What this run has in hand.
        self._retrieved: Path | None = None  # bytes from the node, not verified
        self._verified: Digests | None = None  # of bytes that match, not stored
        self._proven: Manifest | None = None  # stored, and read back by this run
        self._attempts = 0
        self._kept: Found | None = None  # what of the node is stored and was read back
        self._given_up: Found | None = None  # what could not be verified, and is to be replaced
        self._verified_at_hand = False  # bytes of our own backup, of which the node shows nothing any more
        self._rounds = 0
        # What the status showed.
        self._last_seen: Pair | None = None
        self._seen_in_progress = False
        self._asked_again = False
        # The start and the await of this run, in seconds of the monotonic clock.
        self._start_refused: RefusedError | None = None
        self._start_reply = ""
        self._started: float | None = None
        self._await_began: float | None = None

    @property
    def node(self) -> Node:
        return self.session.node

    @property
    def fleet(self) -> Fleet:
        return self.session.fleet

    @property
    def vault(self) -> Vault:
        return self.session.vault

    @property
    def _pinned(self) -> Pair | None:
        return self._journal.pinned if self._journal else None

    # -- deciding ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the journal, and what another run or an earlier try of this one has stored since this run began."""
        self.session.enter("reconcile")
        await in_thread(self._open)

    def _open(self) -> None:
        try:
            self._journal = self._journal_file.read()
        except ValueError as error:
            # It stays in its place, and forces the next run too, until what is on the node has been dealt with.
            self._unreadable, self._existing = True, "preserve"
            self.note(f"the journal could not be read, so that what is on the node is preserved ({error})")
        newest = self.vault.manifests(self.node.name, self.kind)[-1:]
        for manifest in newest:
            by_this_run = manifest.flow_run == self.session.flow_run
            if manifest.started_at is not None and (by_this_run or manifest.stored_at >= self.session.began):
                self.manifest = manifest
                if not by_this_run:
                    self.note(f"run {manifest.flow_run} stored {manifest.id} while this one waited for its turn")

    async def status(self) -> Status:
        """Return what the node holds now. Raise A0cliError."""
        self.session.enter("backup-status")
        status = await self.session.a0cli.status(self.kind)
        if isinstance(status, Found):
            self._last_seen = pair(status) or self._last_seen
        return status

    async def plan(self, status: Status) -> Plan:
        """Return what to do next, by reconcile's table. Raise ForeignBackupError where that is to leave the node."""
        self.session.enter("reconcile")
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            raise UnsettledError(self.node.name, self.kind, shown(status))
        if self._is_done(status) and self.manifest is not None:
            return Plan(Action.DONE, True, f"{self.manifest.id} is stored")
        self._verified_at_hand = await in_thread(self._at_hand, status)
        plan = reconcile(
            status,
            journal=self._journal,
            stored=await in_thread(self._stored, status),
            proven=isinstance(status, Found) and status == self._kept,
            existing=self._existing,
            asked_again=self._asked_again,
            at_hand=self._verified_at_hand,
            give_up=isinstance(status, Found) and status == self._given_up,
        )
        log.info("%s: %s: %s", self.node.name, plan.because, plan.action)
        if plan.action is Action.REFUSE:
            raise ForeignBackupError(self.node.name, self.kind, shown(status))
        if isinstance(status, Found) and not plan.ours and self._journal is not None:
            self.note("the backup that this vault had started is gone from the node; another one is there")
            await self._forget_journal()
        if (
            plan.action is Action.KEEP
            and plan.ours
            and self._pinned is None
            and isinstance(status, Found)
            and status.md5
        ):
            # Whatever stands in its place later is known to be another.
            await self._note_journal(shown(status), pinned=pair(status))
        return plan

    def _is_done(self, status: Status) -> bool:
        """Return whether this run's outcome is stored, off the node, and nothing older is left to be finished."""
        if self.manifest is None or _has_md5(status, self.manifest.artifact.md5):
            return False
        if self._unreadable and not isinstance(status, Absent):
            return False
        if self._journal is None:
            return True
        same_bytes = self._pinned is not None and self._pinned.md5 == self.manifest.artifact.md5
        return same_bytes and self._journal.started_at == self.manifest.started_at

    def _stored(self, status: Status) -> Manifest | None:
        return stored_manifest(self.vault, self.node.name, self.kind, status, self._journal)

    def _at_hand(self, status: Status) -> bool:
        """Return whether the node shows our pinned backup no more, and its verified bytes are here, not stored yet."""
        pinned, journal = self._pinned, self._journal
        if pinned is None or journal is None or (isinstance(status, Found) and may_be(status, pinned)):
            return False
        if self.vault.with_md5(self.node.name, self.kind, pinned.md5, started_at=journal.started_at) is not None:
            return False
        return self.vault.salvage(self.node.name, self.kind, pinned.md5) is not None

    def to_keep(self, status: Status) -> Found:
        """Return what to keep: our own backup that only its bytes here are left of, else what the node shows."""
        pinned = self._pinned
        if pinned is not None and self._verified_at_hand:
            return Found(pinned.name, pinned.md5)
        assert isinstance(status, Found), "something is to be kept"
        return status

    async def ask_again_later(self) -> None:
        """Wait `call_timeout`: a start that was sent may still be under way to the node."""
        self.session.enter("backup-status")
        wait = self.fleet.a0cli.call_timeout
        _say(
            self.node.name,
            self.kind,
            "status",
            f"a backup was started and is not shown yet; asks again in {wait:.0f} s",
        )
        await asyncio.sleep(wait)
        self._asked_again = True

    # -- making ------------------------------------------------------------------------------------------------

    async def start(self, password: str) -> Done:
        """Have the node start a backup. Its effect is judged by the status that follows, not by the reply.

        Raise A0cliMissingError where a0cli could not even be run.
        """
        self.session.enter("start")
        if self._asked_again:
            self.note("the backup that an earlier run had started is not on the node")
        await self._sweep()
        await self._set_aside_unreadable()
        self._journal = Journal(
            node=self.node.name,
            kind=self.kind,
            flow_run=self.session.flow_run,
            started_at=_now(),
            seen_before=self._last_seen,
        )
        # Durable before the call: after a crash in it the next run must know that this backup may be ours.
        await self._note_journal("start intended")
        # What was seen and tried so far was about another backup.
        self._start_refused, self._start_reply = None, ""
        self._seen_in_progress, self._await_began, self._attempts = False, None, 0
        try:
            printed = await self.session.a0cli.start(self.kind, password)
        except A0cliMissingError:
            await self._forget_journal()
            raise
        except A0cliError as error:
            self._start_reply = error.reason
        else:
            self._start_reply = _reply(printed, secret=password)
            said = refusal(printed, node=self.node.name, command=self.kind, wordings=self._wordings, secret=password)
            self._start_refused = said if isinstance(said, RefusedError) and printed.exit_code != 0 else None
        self._started = time.monotonic()  # only now: one that hung until its deadline may be under way still
        await self._note_journal(f"start sent: {self._start_reply}")
        return Done(f"the node replied {self._start_reply!r}")

    async def poll(self) -> Status:
        """Return the finished backup; Absent where one that we did not start is gone from the node.

        Raise BackupInProgressError while there is none yet, AwaitDeadlineError at the deadline, StartFailedError or
        RefusedError where our start had no effect, other A0cliErrors.
        """
        self.session.enter("await")
        now = time.monotonic()
        self._await_began = self._await_began or now
        waited = now - self._await_began
        try:
            status = await self.status()
        except A0cliError as error:
            if error.transient and waited >= self.fleet.polling.deadline:
                raise AwaitDeadlineError(self.node.name, self.kind, waited, error.reason) from error
            raise
        finally:
            self.session.enter("await")
        ours = self._journal is not None and self._journal.pinned is None
        before = self._journal.seen_before if ours and self._journal else None
        if isinstance(status, Found) and (status.md5 is None or pair(status) != before):
            if status.md5 is None:
                raise Md5MissingError(self.node.name, self.kind, status.shown)
            if ours:
                await self._note_journal(shown(status), pinned=pair(status))
            return status
        if isinstance(status, Absent):
            if self._journal is None:
                return status
            self._raise_if_start_failed()
        self._seen_in_progress = self._seen_in_progress or isinstance(status, InProgress)
        if waited >= self.fleet.polling.deadline:
            raise AwaitDeadlineError(self.node.name, self.kind, waited, shown(status))
        raise BackupInProgressError(self.node.name, self.kind, waited)

    def _raise_if_start_failed(self) -> None:
        if self._start_refused is not None:
            raise self._start_refused
        # A start may take effect late, also one whose reply was lost; after `call_timeout` it has not.
        since = time.monotonic() - (self._started or self._await_began or 0)
        if self._seen_in_progress or since >= self.fleet.a0cli.call_timeout:
            gone = "the backup was in progress and then gone; " if self._seen_in_progress else ""
            raise StartFailedError(self.node.name, self.kind, gone + self._start_reply)

    # -- keeping -----------------------------------------------------------------------------------------------

    async def retrieve(self, found: Found) -> Done:
        """Have the bytes of *found* here: from the vault, from what an earlier run left, or from the node.

        Raise Md5MissingError before anything is retrieved, RetrieveFailedError, A0cliError.
        """
        self.session.enter("retrieve")
        wanted = self._md5_of(found)
        self._proven = self._verified = self._retrieved = None
        stored = await in_thread(self._stored, found)
        if stored is not None:
            try:
                await in_thread(self.vault.reread, stored)
            except ArtifactDamagedError as error:
                self.note(f"{error.message()}; it is retrieved again")
            else:
                self._proven = stored
                return Done(f"verified in the vault as {stored.id}, read back just now", cached=True)
        self._verified = await in_thread(self.vault.salvage, self.node.name, self.kind, wanted)
        if self._verified is not None:
            return Done("an earlier run retrieved these bytes; their md5 still matches", cached=True)
        self._attempts += 1
        self.session.directory.clear_retrieved()
        last = self.vault.manifests(self.node.name, self.kind)[-1:]
        size = last[0].artifact.size if last else None
        _say(self.node.name, self.kind, "retrieve", watch=self.session.directory.path, size=size)
        printed = await self.session.a0cli.retrieve(self.kind)
        if printed.exit_code != 0:
            said = refusal(printed, node=self.node.name, command=f"{self.kind}-retrieve", wordings=self._wordings)
            if isinstance(said, RefusedError):
                raise said
            log.warning("%s: %s-retrieve ended with exit code %d", self.node.name, self.kind, printed.exit_code)
        try:
            self._retrieved = self.session.directory.retrieved()
        except RetrieveFailedError as error:
            reason = f"{error.reason}; a0cli said {_reply(printed)!r}"
            raise RetrieveFailedError(self.node.name, self.kind, self._attempts, reason) from error
        return Done(f"retrieved {self._retrieved.stat().st_size} bytes")

    async def verify(self, found: Found) -> Done:
        """See that the bytes that are here are those of *found*. Raise Md5MismatchError."""
        self.session.enter("verify")
        wanted = self._md5_of(found)
        if self._proven is not None:
            return Done(f"the artifact in the vault has md5 {wanted}", cached=True)
        if self._verified is not None:
            return Done(f"md5 {wanted} matches", cached=True)
        assert self._retrieved is not None, "verify comes after retrieve"
        actual = await in_thread(digests, self._retrieved)
        if actual.md5 != wanted:
            raise Md5MismatchError(self.node.name, wanted, actual.md5, self._attempts)
        self._retrieved.replace(self.vault.verified_file(self.node.name, self.kind))
        self._verified, self._retrieved = actual, None
        return Done(f"md5 {wanted} matches")

    async def goes_on_after(self, error: A0BackupError, found: Found) -> bool:
        """Return whether another attempt to retrieve is due after *error*; raise it where it was the last one.

        False means that the operator's `--existing replace` gives up this backup. The bytes of a last whole retrieval
        that did not match are kept aside in the node's quarantine.
        """
        bad_bytes = isinstance(error, Md5MismatchError | RetrieveFailedError)
        if (bad_bytes or error.transient) and self._attempts < self.fleet.retrieve_attempts:
            text = f"{error.message().removeprefix(f'{self.node.name}: ')}; retrieves it again"
            log.warning("%s: %s", self.node.name, text)
            _say(self.node.name, self.kind, "verify", text)
            return True
        if isinstance(error, Md5MismatchError) and self._retrieved is not None:
            reason: dict[str, object] = {
                "node": self.node.name,
                "kind": self.kind,
                "flow_run": self.session.flow_run,
                "at": f"{_now():%Y-%m-%dT%H:%M:%SZ}",
                "reason": error.message(),
                "md5_of_node": error.expected,
                "md5_of_bytes": error.actual,
            }
            try:
                await in_thread(self.vault.quarantine, self.node.name, self.kind, self._retrieved, reason, _now())
            except OSError as full:
                self.note(f"the bytes that did not match could not be kept in quarantine: {full.strerror}")
        unverifiable = bad_bytes or isinstance(error, Md5MissingError)
        allowed = self.session.existing == self._existing == "replace"  # not so after an unreadable journal
        if allowed and unverifiable and self._given_up is None:
            self.note(f"given up for a new one: {error.message()}")
            self._given_up, self.manifest = found, None
            self._attempts = 0
            return False
        raise error

    async def store(self, found: Found, *, ours: bool) -> Done:
        """Have the verified bytes in the vault, read back from its disk, with their manifest. Raise VaultError."""
        self.session.enter("store")
        if self._proven is not None:
            done = Done(f"stored already as {self._proven.id}", cached=True)
        else:
            assert self._verified is not None, "store comes after verify"
            self._proven = await in_thread(
                self.vault.store,
                node=ManifestNode(name=self.node.name, host=self.node.host, port=self.node.port),
                kind=self.kind,
                name_on_node=found.name,
                expected=self._verified,
                started_at=self._journal.started_at if ours and self._journal else None,
                password=ManifestPassword(mode="shared" if ours else "unknown"),
                flow_run=self.session.flow_run,
                now=_now(),
            )
            done = Done(f"stored as {self._proven.id} and read back")
        if ours and self._journal is not None:
            self.manifest = self._proven
            await self._note_journal(f"stored {self._proven.id}", pinned=pair(found))
        elif not done.cached:
            self.note(f"a backup that this vault did not start was on the node: kept as {self._proven.id}")
        self._kept = found
        await self._sweep()
        return done

    # -- deleting ----------------------------------------------------------------------------------------------

    async def delete(self, found: Found) -> Done:
        """Delete *found* on the node, if the node still shows just that. Its effect is judged by confirm_deleted."""
        self.session.enter("delete")
        status = await self.session.a0cli.status(self.kind)
        if not (isinstance(status, Found) and status.name == found.name and status.md5 == found.md5):
            return Done(f"the node shows something else by now ({shown(status)}); nothing was deleted", cached=True)
        if self._journal is not None:
            await self._note_journal(f"deletion intended: {shown(found)}")
        try:
            reply = _reply(await self.session.a0cli.delete(self.kind))
        except A0cliMissingError:
            raise
        except A0cliError as error:
            reply = error.reason
        return Done(f"the node replied {reply!r}")

    async def confirm_deleted(self, found: Found) -> Status:
        """Return the status, which does not show *found* any more. Raise DeleteNotConfirmedError, A0cliError."""
        self.session.enter("confirm-delete")
        try:
            status = await self.session.a0cli.status(self.kind)
        except A0cliError as error:
            if not error.transient:
                raise
            raise DeleteNotConfirmedError(self.node.name, self.kind, f"the status failed: {error.reason}") from error
        same = isinstance(status, Found) and status.name == found.name and status.md5 == found.md5
        if same or isinstance(status, InProgress):
            raise DeleteNotConfirmedError(self.node.name, self.kind, f"the status still is: {shown(status)}")
        self._asked_again = False
        if found == self._given_up:
            await self._forget_journal()
        return status

    async def settle(self) -> Done:
        """End the backup: it is stored, the node holds it no more, and nothing of the work is left."""
        self.session.enter("settle")
        if self.manifest is None:
            self.manifest = await in_thread(self._stored, Absent())
        assert self.manifest is not None, "settle comes after store"
        if self._journal is not None and self._journal.flow_run != self.session.flow_run:
            self.note(f"finished the backup that run {self._journal.flow_run} started at {self._journal.started_at:%c}")
        await self._forget_journal()
        await self._sweep()
        return Done(f"{self.manifest.id} is stored and off the node")

    # -- the end -----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Have *text* in the run's report."""
        self.notes.append(text)
        log.warning("%s: %s", self.node.name, text)

    async def settle_undeleted(self) -> None:
        """End a backup that is safe in the vault though the node kept it: the next run deletes it there first."""
        if self.manifest is not None:
            await self._forget_journal()

    async def _note_journal(self, what: str, *, pinned: Pair | None = None) -> None:
        assert self._journal is not None, "there is a journal while a backup of our own is unfinished"
        self._journal = self._journal.noted(_now(), what, pinned=pinned)
        try:
            await in_thread(self._journal_file.write, self._journal)
        except OSError as error:
            reason = f"the journal cannot be written: {error.strerror}"
            raise VaultUnusableError(self.node.name, reason) from error

    async def _set_aside_unreadable(self) -> None:
        if self._unreadable:
            aside = await in_thread(self._journal_file.set_aside, _now())
            self._unreadable = False
            self.note(f"the unreadable journal was set aside as {aside.name}")

    async def _forget_journal(self) -> None:
        await self._set_aside_unreadable()
        self._journal = None
        await in_thread(self._journal_file.remove)

    async def _sweep(self) -> None:
        keep = self.session.directory.path
        await in_thread(self.vault.sweep, self.node.name, kind=self.kind, keep=keep)

    def _md5_of(self, found: Found) -> str:
        if found.md5 is None:
            raise Md5MissingError(self.node.name, self.kind, found.shown)
        return found.md5


def _has_md5(status: Status, md5: str) -> bool:
    return isinstance(status, Found) and status.md5 == md5


def stored_manifest(vault: Vault, node: str, kind: str, status: Status, journal: Journal | None) -> Manifest | None:
    """Return the manifest of the backup that *status* shows or, where it shows nothing, of the journal's.

    Of a backup of our own it is that of this very backup: the bytes of another night may be the same.
    """
    pinned = journal.pinned if journal else None
    if isinstance(status, Found) and status.md5 is not None:
        ours = journal is not None and pinned in (None, pair(status))
        return vault.with_md5(node, kind, status.md5, started_at=journal.started_at if journal and ours else None)
    if isinstance(status, Absent) and journal is not None and pinned is not None:
        return vault.with_md5(node, kind, pinned.md5, started_at=journal.started_at)
    return None


def outcome_of(
    node: str, kind: str, seconds: float, run: BackupRun | None, error: BaseException | None, step: str
) -> Outcome:
    """Return how a node's backup ended, from what stopped it (*error*) or, where nothing did, from what is stored."""
    manifest = run.manifest if run else None
    ending = Ending.STORED
    if error is not None:
        ending = Ending.FAILED
        if isinstance(error, DeleteNotConfirmedError) and manifest is not None:
            ending = Ending.NOT_DELETED
        elif isinstance(error, UnreachableError):
            ending = Ending.UNREACHABLE
    reason, hint = "", ""
    if isinstance(error, A0BackupError):
        reason, hint = error.message(), error.hint()
    elif error is not None:
        reason = f"{type(error).__name__}: {error}"
    return Outcome(
        node=node,
        kind=kind,
        ending=ending,
        seconds=seconds,
        step=step if error is not None else "",
        reason=reason,
        hint=hint,
        id=manifest.id if manifest else "",
        size=manifest.artifact.size if manifest else None,
        md5=manifest.artifact.md5 if manifest else "",
        notes=tuple(run.notes) if run else (),
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def missing_commands(listing: str, kinds: Sequence[str]) -> list[str]:
    """Return which kinds' commands are not in what `a0cli` alone lists.

    It is read where it names one command a line, first on the line; the words after it may name others. A listing in
    another form proves nothing, the start will tell: then none is missing.
    """
    offered = {line.split()[0] for line in listing.splitlines() if line.strip()}
    return [kind for kind in kinds if kind not in offered] if len(offered & ALWAYS_OFFERED) > 1 else []


def shown(status: Status) -> str:
    """Return the status in words, fit to be printed."""
    match status:
        case Absent():
            return "nothing there"
        case InProgress():
            return "in progress"
        case Found():
            return f"found {quote(status.name, limit=80)} ({status.md5 or status.shown})"


def _reply(printed: Printed, *, secret: str | None = None) -> str:
    text = quote(f"{printed.stdout}\n{printed.stderr}".strip(), secret=secret)
    return text if printed.exit_code == 0 else f"{text} (exit code {printed.exit_code})"


def _say(
    node: str, kind: str, step: str, text: str = "", *, watch: Path | None = None, size: int | None = None
) -> None:
    progress.tell(progress.Step(node, kind, step, text, watch, size))
