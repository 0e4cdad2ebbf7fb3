"""The wait for a node backup: `judge` evaluates each poll until the backup is finished or cannot come."""

import time
from dataclasses import dataclass
from enum import Enum

from a0backup.a0cli.status import Absent, Found, InProgress, Status, shown
from a0backup.backup.context import Context
from a0backup.backup.start import Sent
from a0backup.backup.steps import StepName, step
from a0backup.errors import (
    A0BackupError,
    A0cliError,
    AwaitDeadlineError,
    BackupInProgressError,
    ForeignBackupError,
    Md5MissingError,
    StartFailedError,
)
from a0backup.fleet.models import Existing
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import Effect, NotOpened


class Verdict(Enum):
    """What one poll shows about the awaited backup."""

    FOUND = "it is finished"
    NO_MD5 = "it is finished, and its md5 is not shown"
    GONE = "this run did not start it, and the node shows nothing any more"
    WAIT = "it may still come"
    NOT_OURS = "another is in progress, and is to be left alone"
    REFUSED = "our start was refused, and nothing came of it"
    NO_EFFECT = "our start had no effect, or what it began is gone"


@dataclass(frozen=True)
class Look:
    """One look at the node during the wait for a backup; *since_start* is in seconds.

    *ours*: the journal says that we started it. *started_here*: in this run. *before*: what the
    node last showed before our start. *accepted*, *refused*: the reply to our start said so.
    *sealed*: only we know the password of that start. *seen_in_progress*: an earlier look saw a
    backup in progress.
    """

    status: Status
    ours: bool
    started_here: bool
    before: BackupIdentity | None
    accepted: bool
    refused: bool
    sealed: bool
    seen_in_progress: bool
    since_start: float
    call_timeout: float
    existing: Existing

    @property
    def from_before(self) -> bool:
        """Whether the node still shows the backup from before our start; its status may lag."""
        return isinstance(self.status, Found) and not self.seen_in_progress and self.status.identity == self.before


def judge(look: Look) -> Verdict:
    """Return the verdict on *look*.

    A start may take effect until `call_timeout` after it was sent, even if its reply was lost.
    """
    too_late = look.since_start >= look.call_timeout
    match look.status:
        case Found(md5=md5) if not look.from_before:
            return Verdict.FOUND if md5 is not None else Verdict.NO_MD5
        case InProgress():
            # The refusal may have been wrong. If our sealed password opens the backup, it is ours.
            theirs = look.refused and not look.sealed
            return Verdict.NOT_OURS if theirs and look.existing == "fail" else Verdict.WAIT
        case Absent() if look.refused:
            return Verdict.REFUSED
        case Absent() if not look.ours:
            return Verdict.GONE
        case _ if look.refused:
            return Verdict.REFUSED if too_late else Verdict.WAIT
        case Found() if not look.ours or (too_late and look.accepted):
            # Two backups in a row may have the same name and bytes, such as exports with nothing in them.
            return Verdict.FOUND
        case Absent() if not look.started_here and (look.seen_in_progress or too_late):
            return Verdict.GONE
        case _:
            return Verdict.NO_EFFECT if look.seen_in_progress or too_late else Verdict.WAIT


class Await:
    """The wait for the backup that a start of this run began, or that was already in progress."""

    def __init__(self, context: Context, sent: Sent | None = None) -> None:
        self.context = context
        self.session, self.kind = context.session, context.kind
        self._sent = sent
        self._began: float | None = None  # seconds of the monotonic clock
        self._seen_in_progress = False

    @step(StepName.AWAIT)
    async def poll(self) -> Status:
        """Return the finished backup, or Absent if a backup that we did not start is gone from the node.

        Raise BackupInProgressError while it is unfinished, AwaitDeadlineError at the deadline,
        StartFailedError or RefusedError if our start had no effect, ForeignBackupError,
        Md5MissingError, VaultUnusableError, other A0cliErrors.
        """
        node, deadline = self.session.node.name, self.context.fleet.polling.deadline
        now = time.monotonic()
        self._began = self._began or now
        waited = now - self._began
        try:
            status = await self.context.ask()
        except A0cliError as error:
            if error.transient and waited >= deadline:
                raise AwaitDeadlineError(node, self.kind, deadline, error.text()) from error
            raise
        look = self._look(status, now)
        verdict = judge(look)
        if isinstance(status, InProgress):
            self._seen_in_progress = True
        if verdict is not Verdict.WAIT:
            return await self._settled(verdict, look)
        if waited >= deadline:
            raise AwaitDeadlineError(node, self.kind, deadline, shown(status))
        raise BackupInProgressError(node, self.kind, waited)

    def _look(self, status: Status, now: float) -> Look:
        journal, sent = self.context.journal, self._sent
        unpinned = journal is not None and journal.pinned is None
        node = self.context.node
        ours = journal is not None and journal.is_for(node.host, node.port) and journal.may_claim_unpinned()
        # Also after a refused start: deleting the former backup, if it is gone by then, would hit the current one.
        before = sent.before if sent else None
        if journal is not None:
            before = journal.seen_before if unpinned else None
        return Look(
            status,
            ours=ours,
            started_here=sent is not None,
            before=before,
            accepted=sent is not None and sent.accepted,
            refused=sent is not None and sent.refused is not None,
            sealed=sent is not None and sent.sealed,
            seen_in_progress=self._seen_in_progress,
            since_start=now - (sent.at if sent else self._began or now),
            call_timeout=self.context.fleet.a0cli.call_timeout,
            existing=self.context.existing,
        )

    async def _settled(self, verdict: Verdict, look: Look) -> Status:
        """Return the status that ends the wait, or raise the error that ends it."""
        node, status, sent = self.session.node.name, look.status, self._sent
        match verdict:
            case Verdict.NO_MD5:
                assert isinstance(status, Found)
                raise Md5MissingError(node, self.kind, status.shown)
            case Verdict.NOT_OURS:
                raise ForeignBackupError(node, self.kind, shown(status))
            case Verdict.REFUSED:
                raise _refusal(sent)
            case Verdict.NO_EFFECT:
                # A backup that appears later may be anybody's, and the next run may have no password to tell.
                why = NotOpened(reason="its start had shown no effect by then", password_fits=False)
                await self.context.note_journal("no effect seen", effect=Effect.NONE, not_opened=why)
                gone = "the backup was in progress and then gone; " if look.seen_in_progress else ""
                raise StartFailedError(node, self.kind, gone + (sent.reply if sent else "none in this run"))
            case Verdict.FOUND if look.ours and isinstance(status, Found):
                if look.from_before:
                    self.context.note("it has the name and the md5 of the backup before it: nothing in it has changed")
                # Pin it: a later backup in its place is then known to be another one.
                effect = Effect.SEEN if sent is not None and sent.accepted else None
                await self.context.note_journal(shown(status), effect=effect, pinned=status.identity)
        return status


def _refusal(sent: Sent | None) -> A0BackupError:
    assert sent is not None and sent.refused is not None, "only a start can be refused"  # noqa: PT018 - one fact
    return sent.refused
