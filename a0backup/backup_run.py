"""One run's work on the backup of one kind of a node: what each step does, with the node's lock held.

The steps are called one after another by a flow; each can be called again after a crash, and finds its work done where
journal and vault say that it is.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from a0backup import password, progress, recovery
from a0backup.contents import Inspection, inspect
from a0backup.deletion import Deletion
from a0backup.errors import (
    A0BackupError,
    A0cliError,
    A0cliMissingError,
    ArtifactDamagedError,
    AwaitDeadlineError,
    BackupInProgressError,
    ContentsError,
    ForeignBackupError,
    Md5MismatchError,
    Md5MissingError,
    PasswordError,
    RefusedError,
    RetrieveFailedError,
    StartFailedError,
    UnsettledError,
    VaultFullError,
    VaultUnusableError,
)
from a0backup.files import Digests, digests
from a0backup.fleet import Fleet, Node
from a0backup.journal import Journal, JournalFile, NotOpened, Pair, pair
from a0backup.node_session import Done, NodeSession
from a0backup.password import LoadShared
from a0backup.reconcile import Action, Plan, may_be, reconcile
from a0backup.replies import Absent, Found, InProgress, Status, made_nothing, quoted, refusal, shown
from a0backup.report import Outcome, human_size, outcome_of
from a0backup.sealed_files import SealedFiles
from a0backup.space import Space, claim, release, space_for
from a0backup.vault import (
    Manifest,
    ManifestNode,
    ManifestPassword,
    SealedPassword,
    Vault,
    Verified,
    VerifiedMember,
)

MOST_ROUNDS = 20  # a night takes three or four; more is a node that somebody else works on all the time

log = logging.getLogger(__name__)

Mode = Literal["shared", "sealed", "unknown"]


@dataclass(frozen=True)
class _Password:
    """A password that is at hand, and what it was sealed as where it was made for one backup."""

    text: str = field(repr=False)
    sealed: tuple[SealedPassword, ...] = ()


@dataclass
class _Await:
    """What is known of a backup that is being waited for; times in seconds of the monotonic clock."""

    sent_at: float | None = None  # when our start was sent, None for one that this run did not start
    reply: str = "none in this run"
    accepted: bool = False  # whether a0cli said that our start went well
    before: Pair | None = None  # what the node showed last before our start
    refused: A0BackupError | None = None  # what to raise where the node shows nothing after a start that made nothing
    first_look: float | None = None
    seen_in_progress: bool = False


@dataclass
class _InHand:
    """What this run has of the bytes of one node backup."""

    attempts: int = 0
    all_whole: bool = True  # a0cli itself said of every retrieval that it went well
    last_reply: str = ""  # what it said of the last one, where that did not go well
    retrieved: Path | None = None  # bytes from the node, not verified
    verified: Digests | None = None  # of bytes that match, not stored
    tried: tuple[_Password, ...] = ()  # the passwords that the inspection was given
    inspection: Inspection | None = None  # of those bytes, where a password was at hand
    not_opened: NotOpened | None = None  # why they are kept as nobody's, though the journal calls them ours
    proven: Manifest | None = None  # stored, and read back by this run


class BackupRun:
    """One run's work on the backup of one kind of a node."""

    def __init__(self, session: NodeSession, kind: str) -> None:
        self.session, self.kind = session, kind
        self.notes: list[str] = []
        self.manifest: Manifest | None = None  # the artifact that is this run's outcome
        self._existing = session.existing or session.fleet.existing
        self._journal_file = JournalFile(session.vault.folder(session.node.name), kind)
        self._journal: Journal | None = None
        self._unreadable = False  # the journal that is there
        self._sealed_files = SealedFiles(session.vault.folder(session.node.name), kind)
        self._await = _Await()
        self._started_with: _Password | None = None  # the last start of this run
        self._starts = 0
        self._in_hand = _InHand()
        self._last_seen: Pair | None = None
        self._asked_again = False
        self._meanwhile = False  # whether another run stored what is this run's outcome
        self._kept: Found | None = None  # what of the node is stored and was read back
        self._given_up: Found | None = None  # what could not be verified, and is to be replaced
        self._only_bytes_left = False  # of our own backup: the node shows it no more, its verified bytes are here
        self._off_node = False
        self._shows_nothing = False  # whether the last status said so
        self._rounds = 0
        self._deletion = Deletion(session, kind)

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
        """Read the journal, and what another run or an earlier try of this one has stored since this run began.

        Raise RefusedError where the node does not offer this kind.
        """
        self.session.enter("ping")
        if self.kind in self.session.not_offered:
            raise RefusedError(self.node.name, self.kind, "the node does not offer this command")
        self.session.enter("reconcile")
        await self.session.on_disk(self._open)
        await self._deletion.look()

    def _open(self) -> None:
        try:
            self._journal = self._journal_file.read()
        except ValueError as error:
            # It stays in its place, and forces the next run too, until what is on the node has been dealt with.
            self._unreadable, self._existing = True, "preserve"
            self.note(f"the journal could not be read, so that what is on the node is preserved ({error})")
        node, before = self.node.name, self.session.stored_before
        last = self.vault.newest(node, self.kind)
        if last is not None and last.flow_run == self.session.flow_run and last.started_at is not None:
            self.manifest = last
            return
        meanwhile = self.vault.stored_since(node, self.kind, before) if before is not None else None
        if meanwhile is not None:
            self.manifest, self._meanwhile = meanwhile, True
            self.note(f"run {meanwhile.flow_run} stored {meanwhile.id} while this one waited for its turn")

    async def status(self) -> Status:
        """Return what the node holds now. Raise A0cliError."""
        self.session.enter("backup-status")
        status = await self.session.a0cli.status(self.kind)
        self._shows_nothing = isinstance(status, Absent)
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
            self._off_node = True
            return Plan(Action.DONE, True, f"{self.manifest.id} is stored")
        self._only_bytes_left = await self.session.on_disk(self._at_hand, status)
        plan = reconcile(
            status,
            journal=self._journal,
            stored=await self.session.on_disk(self._stored, status),
            proven=isinstance(status, Found) and status == self._kept,
            existing=self._existing,
            asked_again=self._asked_again,
            at_hand=self._only_bytes_left,
            give_up=isinstance(status, Found) and status == self._given_up,
        )
        log.info("%s: %s: %s", self.node.name, plan.because, plan.action)
        if plan.action is Action.REFUSE:
            raise ForeignBackupError(self.node.name, self.kind, shown(status))
        if plan.action is Action.KEEP and plan.ours and self._pinned is None and isinstance(status, Found):
            # Whatever stands in its place later is known to be another.
            await self._note_journal(shown(status), pinned=pair(status))
        return plan

    def _is_done(self, status: Status) -> bool:
        """Return whether this run's outcome is stored, off the node, and nothing older is left to be finished."""
        if self.manifest is None or _shows(status, self.manifest):
            return False
        if self._unreadable and not isinstance(status, Absent):
            return False
        return self._journal is None or self._is_of_journal(self.manifest)

    def _is_of_journal(self, manifest: Manifest) -> bool:
        """Return whether *manifest* is that of the very backup which the journal speaks of."""
        same_bytes = self._pinned is not None and self._pinned.md5 == manifest.artifact.md5
        return same_bytes and self._journal is not None and self._journal.started_at == manifest.started_at

    def _stored(self, status: Status) -> Manifest | None:
        return self.vault.of_backup(self.node.name, self.kind, status, self._journal)

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
        if pinned is not None and self._only_bytes_left:
            return Found(pinned.name, pinned.md5)
        assert isinstance(status, Found), "something is to be kept"
        return status

    async def ask_again_later(self) -> None:
        """Wait `call_timeout`: a start that was sent may still be under way to the node."""
        self.session.enter("backup-status")
        wait = self.fleet.a0cli.call_timeout
        self._tell("status", f"a backup was started and is not shown yet; asks again in {wait:.0f} s")
        await asyncio.sleep(wait)
        self._asked_again = True

    # -- making ------------------------------------------------------------------------------------------------

    async def start(self, shared: LoadShared) -> Done:
        """Have the node start a backup. Its effect is judged by the status that follows, not by the reply.

        Raise PasswordError or RecoveryKeyError, and VaultFullError where what it makes would have no room, before
        anything is sent; A0cliMissingError where a0cli could not even be run.
        """
        self.session.enter("start")
        secret = await self._shared_or_new(shared)
        if self._asked_again:
            self.note("the backup that an earlier run had started is not on the node")
        await self._sweep()
        await self._claim_space()
        waited = await self._deletion.let_earlier_arrive()
        if waited:
            log.info("%s: waited %.0f s for a deletion that an earlier run had sent", self.node.name, waited)
        await self._set_aside_unreadable()
        self._journal = Journal(
            node=self.node.name,
            kind=self.kind,
            flow_run=self.session.flow_run,
            started_at=_now(),
            sealed=bool(secret.sealed),
            seen_before=self._last_seen or await self.session.on_disk(self._last_stored),
        )
        # Durable before the call: after a crash in it the next run must know that this backup may be ours, and the
        # password must not be lost with this process.
        if secret.sealed:
            await self.session.on_disk(self._sealed_files.write, self._journal.started_at, secret.sealed)
        await self._note_journal("start intended")
        self._started_with = secret
        self._starts += 1
        # What was seen and tried so far was about another backup.
        self._await, self._in_hand = _Await(before=self._journal.seen_before), _InHand()
        a0cli = self.session.a0cli
        try:
            printed = await a0cli.start(self.kind, secret.text, *self.fleet.arguments(self.kind))
        except A0cliMissingError:
            await self._forget_journal()
            raise
        except A0cliError as error:
            self._await.reply = error.reason
        else:
            self._await.reply, self._await.accepted = quoted(printed), printed.exit_code == 0
            said = refusal(printed, node=self.node.name, command=self.kind, wordings=a0cli.wordings)
            if made_nothing(printed, said):
                failed = StartFailedError(self.node.name, self.kind, self._await.reply)
                self._await.refused = said if isinstance(said, RefusedError) else failed
        self._await.sent_at = time.monotonic()  # only now: one that hung until its deadline may be under way still
        if self._await.refused is None:
            await self._note_journal(f"start sent: {self._await.reply}")
        else:
            # It made nothing, so that what is there by now, or later, is not ours.
            await self._forget_journal()
        return Done(f"the node replied {self._await.reply!r}")

    async def _shared_or_new(self, shared: LoadShared) -> _Password:
        """Return the password to start with: the shared one, or a new one, sealed to every recovery key."""
        text = await shared(self.fleet.password)
        if text is not None:
            return _Password(text)
        assert self.fleet.password.sealed_to is not None, "a password is shared or sealed"
        keys = await self.session.on_disk(recovery.load_all, self.fleet.password.sealed_to)
        text = password.random_password()
        return _Password(text, tuple(key.seal(text) for key in keys))

    def _last_stored(self) -> Pair | None:
        last = self.vault.newest(self.node.name, self.kind)
        return Pair(name=last.name_on_node, md5=last.artifact.md5) if last else None

    async def poll(self) -> Status:
        """Return the finished backup; Absent where one that we did not start is gone from the node.

        Raise BackupInProgressError while there is none yet, AwaitDeadlineError at the deadline, StartFailedError or
        RefusedError where our start had no effect, other A0cliErrors.
        """
        self.session.enter("await")
        now = time.monotonic()
        self._await.first_look = self._await.first_look or now
        waited, deadline = now - self._await.first_look, self.fleet.polling.deadline
        try:
            status = await self.status()
        except A0cliError as error:
            if error.transient and waited >= deadline:
                last = error.message().removeprefix(f"{self.node.name}: ")
                raise AwaitDeadlineError(self.node.name, self.kind, deadline, last) from error
            raise
        finally:
            self.session.enter("await")
        journal = self._journal
        ours = journal is not None and journal.pinned is None
        # Also after a start that was refused: deleting what is not there any more would meet what is.
        before = journal.seen_before if journal is not None else self._await.before
        old = (ours or journal is None) and self._is_from_before(status, before)
        if isinstance(status, Found) and not old:
            if status.md5 is None:
                raise Md5MissingError(self.node.name, self.kind, status.shown)
            if ours:
                await self._note_journal(shown(status), pinned=pair(status))
            return status
        if isinstance(status, InProgress):
            if self._await.refused is not None and self._existing == "fail":
                raise ForeignBackupError(self.node.name, self.kind, shown(status))
            self._await.seen_in_progress = True
        elif self._await.refused is not None:
            if not old or now - (self._await.sent_at or 0) >= self.fleet.a0cli.call_timeout:
                raise self._await.refused
        elif not ours:
            return status
        else:
            await self._raise_if_start_failed()
        if waited >= deadline:
            raise AwaitDeadlineError(self.node.name, self.kind, deadline, shown(status))
        raise BackupInProgressError(self.node.name, self.kind, waited)

    def _is_from_before(self, status: Status, before: Pair | None) -> bool:
        """Return whether the status still shows the backup from before our start; a node may lag behind itself."""
        if self._await.seen_in_progress or not isinstance(status, Found) or status.md5 is None:
            return False
        return pair(status) == before

    async def _raise_if_start_failed(self) -> None:
        # A start may take effect late, also one whose reply was lost; after `call_timeout` it has not.
        since = time.monotonic() - (self._await.sent_at or self._await.first_look or 0)
        if self._await.seen_in_progress or since >= self.fleet.a0cli.call_timeout:
            gone = "the backup was in progress and then gone; " if self._await.seen_in_progress else ""
            # What is found there later may be anybody's, and the next run may have no password to tell by.
            why = NotOpened(reason="its start had shown no effect by then", password_fits=False)
            await self._note_journal("no effect seen", not_opened=why)
            raise StartFailedError(self.node.name, self.kind, gone + self._await.reply)

    # -- keeping -----------------------------------------------------------------------------------------------

    async def retrieve(self, found: Found) -> Done:
        """Have the bytes of *found* here: from the vault, from what an earlier run left, or from the node.

        Raise Md5MissingError before anything is retrieved, RetrieveFailedError, A0cliError.
        """
        self.session.enter("retrieve")
        wanted = self._md5_of(found)
        hand = self._in_hand = _InHand(self._in_hand.attempts, self._in_hand.all_whole)
        stored = await self.session.on_disk(self._stored, found)
        if stored is not None:
            try:
                await self.session.on_disk(self.vault.confirm, stored)
            except ArtifactDamagedError as error:
                self.note(f"{error.message()}; it is retrieved again")
            else:
                hand.proven = stored
                return Done(f"verified in the vault as {stored.id}, read back just now", cached=True)
        hand.verified = await self.session.on_disk(self.vault.salvage, self.node.name, self.kind, wanted)
        if hand.verified is not None:
            return Done("an earlier run retrieved these bytes; their md5 still matches", cached=True)
        hand.attempts += 1
        # None of it is what is wanted now, and it would take the room that this artifact needs.
        await self.session.on_disk(self.vault.sweep_private, self.node.name, keep=self.session.directory.path)
        await self.session.on_disk(self.session.directory.clear_retrieved)
        space = await self._claim_space()
        self._tell("retrieve", watch=self.session.directory.path, size=space.last)
        whole, hand.all_whole = hand.all_whole, False
        a0cli, command = self.session.a0cli, f"{self.kind}-retrieve"
        printed = await a0cli.retrieve(self.kind)
        if printed.exit_code != 0:
            said = refusal(printed, node=self.node.name, command=command, wordings=a0cli.wordings)
            if isinstance(said, RefusedError):
                raise said
            log.warning("%s: %s ended with exit code %d", self.node.name, command, printed.exit_code)
        try:
            hand.retrieved = self.session.directory.retrieved()
        except RetrieveFailedError as error:
            reason = f"{error.reason}; a0cli said {quoted(printed)!r}"
            raise RetrieveFailedError(self.node.name, self.kind, hand.attempts, reason) from error
        hand.last_reply = quoted(printed) if printed.exit_code != 0 else ""
        hand.all_whole = whole and not hand.last_reply
        return Done(f"retrieved {human_size(hand.retrieved.stat().st_size)}")

    async def verify(self, found: Found, shared: LoadShared) -> Done:
        """See that the bytes that are here are those of *found*; with a password at hand, read what is in them too.

        Both in one pass over the file; what came of the contents, `inspect` tells. Raise Md5MismatchError, or
        RetrieveFailedError where a0cli itself said that they are not whole.
        """
        self.session.enter("verify")
        wanted, hand = self._md5_of(found), self._in_hand
        if hand.proven is not None:
            return Done(f"the artifact in the vault has md5 {wanted}", cached=True)
        if hand.verified is not None:
            return Done(f"md5 {wanted} matches", cached=True)
        assert hand.retrieved is not None, "verify comes after retrieve"
        hand.tried = await self._at_hand_now(shared)
        read = self._read_to_its_end(hand.retrieved) if hand.tried else self.session.on_disk(digests, hand.retrieved)
        actual = await read
        if actual.md5 != wanted and hand.last_reply:
            reason = f"{actual.size} bytes came that are not the node's; a0cli said {hand.last_reply!r}"
            raise RetrieveFailedError(self.node.name, self.kind, hand.attempts, reason)
        if actual.md5 != wanted:
            raise Md5MismatchError(self.node.name, wanted, actual.md5, hand.attempts)
        await self.session.on_disk(hand.retrieved.replace, self.vault.verified_file(self.node.name, self.kind))
        release(self.vault, self.node.name)
        hand.verified, hand.retrieved = actual, None
        return Done(f"md5 {wanted} matches")

    async def _read_to_its_end(self, path: Path) -> Digests:
        """Return the digests of *path*, its contents inspected in the same pass with the passwords at hand."""
        hand = self._in_hand
        self._tell("verify", "reads the artifact to its end")
        texts = [secret.text for secret in hand.tried]
        hand.inspection = await self.session.on_disk(
            inspect, path, texts, node=self.node.name, kind=self.kind, limits=self.fleet.contents
        )
        return hand.inspection.digests

    async def _at_hand_now(self, shared: LoadShared) -> tuple[_Password, ...]:
        """Return the passwords that this run knows: that of its own start, and the shared one."""
        known = [self._started_with] if self._started_with else []
        try:
            text = await shared(self.fleet.password)
        except PasswordError as error:
            # What is on the node is kept all the same; a start would not go without it.
            self.note(f"what is in the artifact was not read: {error.message()}")
            text = None
        if text is not None and text not in [secret.text for secret in known]:
            known.append(_Password(text))
        return tuple(known)

    async def inspect(self, found: Found, shared: LoadShared, *, ours: bool) -> Done:
        """See that the artifact can be opened and read to its end, where a password is at hand.

        Raise ContentsError for the backup that this run started; the node keeps it. What an earlier run started and
        nobody can open is foreign, like what somebody else started: that is kept as it is, and ForeignBackupError
        raised only where `existing` says fail.
        """
        self.session.enter("inspect")
        hand = self._in_hand
        if hand.proven is not None:
            return Done(f"stored already, {_how_read(hand.proven.verified)}", cached=True)
        assert hand.verified is not None, "inspect comes after verify"
        if hand.inspection is None:
            # Bytes that an earlier run left; without a password there is nothing to read them for.
            hand.tried = await self._at_hand_now(shared)
            if hand.tried:
                await self._read_to_its_end(self.vault.verified_file(self.node.name, self.kind))
        contents = hand.inspection.contents if hand.inspection else None
        if contents is not None:
            for oddity in contents.odd:
                self.note(f"in the artifact: {oddity}")
            unpacked = human_size(contents.unpacked_size)
            return Done(f"opened and read: {contents.members} members, {unpacked} unpacked")
        error = hand.inspection.error if hand.inspection else None
        why = _why(error) if error else None
        if ours and error is not None and self._is_of_this_run(error):
            # The next run may not have the password to find this out again.
            await self._note_journal("not opened", not_opened=why)
            raise error
        if error is None or (ours and self._is_sealed_elsewhere(error)):
            # What is at hand says nothing of this one.
            hand.inspection = None
            why = self._journal.not_opened if ours and self._journal else None
        if why is None:
            if ours:
                self.note("what is in the artifact was not read: its password is sealed, and not at hand in this run")
            return Done("its password is not at hand; what is in it was not read")
        hand.not_opened = why
        if ours and not why.password_fits and self._existing == "fail":
            await self._forget_journal()
            raise ForeignBackupError(self.node.name, self.kind, shown(found))
        if ours:
            self.note(f"what an earlier run started cannot be read to its end, and a new one is made: {why.reason}")
        return Done(f"not opened: {why.reason}")

    def _is_of_this_run(self, error: ContentsError) -> bool:
        """Return whether a start of this run made what cannot be opened, for all that can be known."""
        if self._await.sent_at is None:
            return False
        # A lost reply leaves room for somebody else's backup once; a second time in one run it is no chance.
        return self._await.accepted or error.password_fits or self._starts > 1

    def _is_sealed_elsewhere(self, error: ContentsError) -> bool:
        """Return whether an earlier run sealed what made it, so that none of the passwords at hand could open it."""
        if error.password_fits or self._started_with is not None or self._journal is None:
            return False
        return self._journal.sealed

    async def goes_on_after(self, error: A0BackupError, found: Found) -> bool:
        """Return whether another attempt to retrieve is due after *error*; raise it where it was the last one.

        False means that the operator's `--existing replace` gives up this backup: that is for bytes that came whole
        each time and never matched, not for a connection that drops. The last such bytes are kept in quarantine.
        """
        hand = self._in_hand
        again = error.transient or isinstance(error, Md5MismatchError | RetrieveFailedError)
        if again and hand.attempts < self.fleet.retrieve_attempts:
            text = f"{error.message().removeprefix(f'{self.node.name}: ')}; retrieves it again"
            log.warning("%s: %s", self.node.name, text)
            self._tell("verify", text)
            return True
        if isinstance(error, Md5MismatchError):
            await self._keep_aside(hand.retrieved, error, {"md5_of_node": error.expected, "md5_of_bytes": error.actual})
        never_matched = isinstance(error, Md5MismatchError) and hand.all_whole
        unverifiable = never_matched or isinstance(error, Md5MissingError | ContentsError)
        allowed = self.session.existing == self._existing == "replace"  # not so after an unreadable journal
        if allowed and unverifiable and self._given_up is None:
            if isinstance(error, ContentsError):
                bytes_here = self.vault.verified_file(self.node.name, self.kind)
                await self._keep_aside(bytes_here, error, {"md5": self._md5_of(found)})
            self.note(f"given up for a new one: {error.message()}")
            self._given_up, self.manifest = found, None
            self._in_hand = _InHand()
            return False
        raise error

    async def _claim_space(self) -> Space:
        """Have room for the artifact that is to come; what is kept in quarantine goes first. Raise VaultFullError."""
        arriving = self.session.directory.path
        try:
            return await self.session.on_disk(claim, self.vault, self.node.name, self.kind, arriving=arriving)
        except VaultFullError:
            await self.session.on_disk(self.vault.drop_quarantine, self.node.name, self.kind)
            return await self.session.on_disk(claim, self.vault, self.node.name, self.kind, arriving=arriving)

    async def _keep_aside(self, path: Path | None, error: A0BackupError, more: dict[str, str]) -> None:
        """Keep the bytes that failed verification in quarantine, unless they would take the next artifact's room."""
        if path is None:
            return
        if not (await self.session.on_disk(space_for, self.vault, self.node.name, self.kind)).enough:
            self.note("the bytes that failed verification were not kept in quarantine: the vault's disk is nearly full")
            return
        now = _now()
        sealed = await self.session.on_disk(self._sealed_files.all)
        reason: dict[str, object] = {
            "node": self.node.name,
            "kind": self.kind,
            "flow_run": self.session.flow_run,
            "at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "reason": error.message(),
            **more,
            # Its files are removed with the next backup; these bytes may be looked into much later.
            "sealed": [entry.model_dump() for entry in sealed],
        }
        try:
            await self.session.on_disk(self.vault.quarantine, self.node.name, self.kind, path, reason=reason, now=now)
        except VaultUnusableError as full:
            self.note(f"the bytes that failed verification could not be kept in quarantine: {full.reason}")

    async def store(self, found: Found, *, ours: bool) -> Done:
        """Have the verified bytes in the vault, read back from its disk, with their manifest. Raise VaultError."""
        self.session.enter("store")
        hand = self._in_hand
        not_opened = hand.not_opened if ours else None
        # Kept as nobody's: what cannot be opened must not be taken for the outcome of a run that waits meanwhile.
        journal = self._journal if ours and not_opened is None else None
        cached = hand.proven is not None
        if hand.proven is None:
            assert hand.verified is not None, "store comes after verify"
            hand.proven = await self.session.on_disk(
                self.vault.store,
                node=ManifestNode(name=self.node.name, host=self.node.host, port=self.node.port),
                kind=self.kind,
                name_on_node=found.name,
                expected=hand.verified,
                started_at=journal.started_at if journal else None,
                password=await self._password_of(hand, ours=journal is not None),
                verified=_verified(hand.inspection),
                flow_run=self.session.flow_run,
                now=_now(),
            )
        stored = hand.proven
        self._kept, self._in_hand = found, _InHand()
        if journal is not None:
            self.manifest = stored
            await self._note_journal(f"stored {stored.id}", pinned=pair(found))
        elif not cached:
            whose = "that cannot be opened" if not_opened else "that this vault did not start"
            self.note(f"a backup {whose} was on the node: kept as {stored.id}")
            if self._journal is not None and not_opened is None:
                self.note("it stood in the place of the one that this vault had started, which is gone from the node")
            if self._journal is not None:
                await self._forget_journal()
        await self._sweep()
        return Done(f"stored already as {stored.id}" if cached else f"stored as {stored.id} and read back", cached)

    async def _password_of(self, hand: _InHand, *, ours: bool) -> ManifestPassword:
        """Return what the manifest says of the password: what opened the artifact, or what may open it."""
        contents = hand.inspection.contents if hand.inspection else None
        if contents is not None:
            opened_by = hand.tried[contents.opened_by]
            mode: Mode = "sealed" if opened_by.sealed else "shared"
            return ManifestPassword(mode=mode, confirmed=True, sealed=opened_by.sealed)
        # Every one that may have made it, whoever it is thought to be of: whatever is left out here is lost at settle.
        candidates = await self.session.on_disk(self._sealed_files.all)
        unreadable = await self.session.on_disk(self._sealed_files.unreadable)
        for name in unreadable:
            self.note(f"the sealed password {name} cannot be read; look at it: put it right from a copy, or remove it")
        for name in await self.session.on_disk(self._sealed_files.later):
            self.note(f"the sealed password {name} is of a later version of a0backup: keep it, and use that version")
        fits = hand.not_opened is not None and hand.not_opened.password_fits
        if fits and hand.inspection is not None and len(hand.tried) == 1:
            mode = "sealed" if hand.tried[0].sealed else "shared"
        elif fits and candidates:
            mode = "sealed"
        elif not ours or self._journal is None:
            mode = "unknown"
        elif self._journal.sealed:
            mode = "sealed"
        else:
            mode = "shared"
        return ManifestPassword(mode=mode, sealed=candidates)

    # -- deleting ----------------------------------------------------------------------------------------------

    async def delete(self, found: Found) -> Done:
        """Delete *found* on the node, if the node still shows just that. Its effect is judged by confirm_deleted."""
        self.session.enter("delete")
        if self._journal is not None:
            await self._note_journal(f"deletion intended: {shown(found)}")
        return await self._deletion.send(found)

    async def confirm_deleted(self, found: Found) -> Status:
        """Return the status, which does not show *found* any more. Raise DeleteNotConfirmedError, A0cliError."""
        self.session.enter("confirm-delete")
        status = await self._deletion.confirm(found)
        self._shows_nothing = isinstance(status, Absent)
        if self.manifest is not None and _shows(found, self.manifest):
            self._off_node = True
        if found == self._given_up:
            await self._forget_journal()
        return status

    async def settle(self) -> Done:
        """End the backup: it is stored, the node holds it no more, and nothing of the work is left."""
        self.session.enter("settle")
        self._off_node = True
        if self.manifest is None:
            self.manifest = await self.session.on_disk(self._stored, Absent())
        assert self.manifest is not None, "settle comes after store"
        if self._journal is not None and self._journal.flow_run != self.session.flow_run:
            self.note(f"finished the backup that run {self._journal.flow_run} started at {self._journal.started_at:%c}")
        await self._forget_journal()
        # Last of all: until then a run that comes after a crash may still need them. What stands on the node now may
        # have been made with one of them, by a start that arrived late.
        if self._shows_nothing:
            await self.session.on_disk(self._remove_passwords)
        await self._sweep()
        return Done(f"{self.manifest.id} is stored and off the node")

    def _remove_passwords(self) -> None:
        manifests = self.vault.newest_first(self.node.name, self.kind)
        self._sealed_files.remove(but=self._sealed_files.only_here(manifests))

    # -- the end -----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Have *text* in the run's report."""
        if text not in self.notes:
            self.notes.append(text)
        log.warning("%s: %s", self.node.name, text)

    async def let_go(self) -> None:
        """End a backup that failed: where its artifact is stored, the next run starts from what the node then holds."""
        # Never the journal of another backup than the stored one: that is still to be finished.
        if self.manifest is None or not self._is_of_journal(self.manifest):
            return
        try:
            await self._forget_journal()
        except VaultUnusableError as error:
            self.note(f"the journal could not be removed: {error.reason}")

    def outcome(self, seconds: float, error: BaseException | None) -> Outcome:
        """Return how it ended: by *error* or, where there is none, with the artifact stored and off the node."""
        known = self._journal is None and not self._unreadable and (not self._meanwhile or self._kept is not None)
        stored = known or (self.manifest is not None and self._is_of_journal(self.manifest))
        return outcome_of(
            self.node.name,
            self.kind,
            seconds=seconds,
            error=error,
            step=self.session.step,
            # With an error, what another run stored is not the backup that failed.
            manifest=self.manifest if error is None or stored else None,
            off_node=self._off_node,
            notes=self.notes,
        )

    async def _note_journal(
        self, what: str, *, pinned: Pair | None = None, not_opened: NotOpened | None = None
    ) -> None:
        assert self._journal is not None, "there is a journal while a backup of our own is unfinished"
        self._journal = self._journal.noted(_now(), what, pinned=pinned, not_opened=not_opened)
        await self.session.on_disk(self._journal_file.write, self._journal)

    async def _set_aside_unreadable(self) -> None:
        if self._unreadable:
            aside = await self.session.on_disk(self._journal_file.set_aside, _now())
            self._unreadable = False
            self.note(f"the unreadable journal was set aside as {aside.name}")

    async def _forget_journal(self) -> None:
        await self._set_aside_unreadable()
        self._journal = None
        await self.session.on_disk(self._journal_file.remove)

    async def _sweep(self) -> None:
        keep = self.session.directory.path
        for folder in await self.session.on_disk(self.vault.sweep, self.node.name, kind=self.kind, keep=keep):
            self.note(f"{folder.name} in the vault holds bytes and no manifest; look at it, then remove it")

    def _md5_of(self, found: Found) -> str:
        if found.md5 is None:
            raise Md5MissingError(self.node.name, self.kind, found.shown)
        return found.md5

    def _tell(self, step: str, text: str = "", *, watch: Path | None = None, size: int | None = None) -> None:
        progress.tell(progress.Step(self.node.name, self.kind, step, text, watch, size))


def _why(error: ContentsError) -> NotOpened:
    return NotOpened(reason=f"{error.reason} ({type(error).__name__})", password_fits=error.password_fits)


def _verified(inspection: Inspection | None) -> Verified:
    contents = inspection.contents if inspection else None
    if contents is None:
        return Verified()
    largest = tuple(VerifiedMember(name=member.name, size=member.size) for member in contents.largest)
    return Verified(level="contents", members=contents.members, unpacked_size=contents.unpacked_size, largest=largest)


def _how_read(verified: Verified) -> str:
    return f"{verified.members} members read then" if verified.level == "contents" else "its contents not read"


def _shows(status: Status, manifest: Manifest) -> bool:
    """Return whether *status* may show the backup of *manifest*: an md5 that is not shown proves nothing."""
    if not isinstance(status, Found):
        return False
    return status.md5 == manifest.artifact.md5 or (status.md5 is None and status.name == manifest.name_on_node)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
