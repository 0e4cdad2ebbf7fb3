"""Retrieve the bytes of a node backup, compare them with its md5, and read them to their end with a password.

The vault and the leftovers of an earlier run are searched first: bytes that are safe are not
fetched again. Without an available password, the contents are not read.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from a0backup.a0cli.characters import one_line
from a0backup.a0cli.ownership import take_over
from a0backup.a0cli.replies import quoted, refusal
from a0backup.a0cli.status import shown
from a0backup.artifact.inspection import Inspection, inspect
from a0backup.backup import evidence
from a0backup.backup.bounded import bounded
from a0backup.backup.context import Context, now
from a0backup.backup.evidence import Evidence, Judgement, Verdict
from a0backup.backup.reconcile import Claim, Keep
from a0backup.backup.start import KnownPassword, Start
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import (
    A0BackupError,
    ArtifactDamagedError,
    ContentsError,
    ForeignBackupError,
    Md5MismatchError,
    Md5MissingError,
    RefusedError,
    RetrieveFailedError,
    VaultFullError,
    VaultUnusableError,
)
from a0backup.files import Digests, digests, in_thread
from a0backup.report.words import human_size
from a0backup.vault.journal import Effect, NotOpened
from a0backup.vault.leftovers import salvage, sweep_private, verified_file
from a0backup.vault.manifest import Manifest, Verified
from a0backup.vault.quarantine import make_room, quarantine
from a0backup.vault.space import claim, leaves_room, release, spare
from a0backup.vault.storing import confirm

log = logging.getLogger(__name__)

FULL = 1 << 20  # bytes: with less, a retrieval that failed has filled the disk


class Next(Enum):
    """What follows a failed attempt to get the bytes."""

    RETRY = "retrieve them again"
    GIVE_UP = "the operator said so: replace a backup that cannot be verified"
    FAIL = "the node keeps its backup"


def after_failure(error: A0BackupError, *, attempts: int, allowed: int, always_whole: bool, may_give_up: bool) -> Next:
    """Return what follows *error* after this number of *attempts*, of those *allowed*.

    A backup is given up only if it arrived whole each time (*always_whole*: a0cli said so) and
    never matched, if it shows no md5, or if it cannot be read to its end. A dropped connection is
    no reason to give up.
    """
    again = error.transient or isinstance(error, Md5MismatchError | RetrieveFailedError)
    if again and attempts < allowed:
        return Next.RETRY
    never_matched = isinstance(error, Md5MismatchError) and always_whole
    unverifiable = never_matched or isinstance(error, Md5MissingError | ContentsError)
    return Next.GIVE_UP if may_give_up and unverifiable else Next.FAIL


@dataclass
class Retrieved:
    """What one attempt has got of the bytes."""

    stored: Manifest | None = None  # they are in the vault, and were read back just now
    arrived: Path | None = None  # from the node, not verified
    reply: str = ""  # what a0cli said about them, if it reported a failure
    digests: Digests | None = None  # they match the node's md5 and are not stored yet
    tried: tuple[KnownPassword, ...] = ()  # the passwords given to the inspection
    inspection: Inspection | None = None  # set if a password was available
    not_opened: NotOpened | None = None  # why they were not opened, despite the journal
    ours: bool = False  # what the journal, the vault and the contents together prove


class Retrieval:
    """The attempts to get the bytes of one node backup."""

    def __init__(self, context: Context, start: Start, action: Keep) -> None:
        self.context, self._start = context, start
        self.session, self.kind = context.session, context.kind
        self.found, self.claim, self._stored = action.found, action.claim, action.stored
        self.attempts = 0
        self.always_whole = True
        self._mismatches: set[str] = set()  # the md5s of what arrived and did not match
        self.bytes = Retrieved()

    @property
    def _verified_file(self) -> Path:
        return verified_file(self.context.vault, self.context.node.name, self.kind)

    def _md5(self) -> str:
        if self.found.md5 is None:
            raise Md5MissingError(self.context.node.name, self.kind, self.found.shown)
        return self.found.md5

    @step(StepName.RETRIEVE)
    async def retrieve(self) -> Done:
        """Get the bytes: from the vault, from what an earlier run left, or from the node.

        Raise Md5MissingError before anything is retrieved, RetrieveFailedError, A0cliError.
        """
        context, vault, node = self.context, self.context.vault, self.context.node.name
        wanted = self._md5()
        self.bytes = Retrieved()
        if self._stored is not None:
            try:
                await context.on_disk(confirm, vault, self._stored)
            except ArtifactDamagedError as error:
                context.note(f"{error.message()}; it is retrieved again")
            else:
                self.bytes.stored = self._stored
                return Done(f"verified in the vault as {self._stored.id}, read back just now", cached=True)
        self.bytes.digests = await context.on_disk(salvage, vault, node, self.kind, wanted)
        if self.bytes.digests is not None:
            return Done("an earlier run retrieved these bytes; their md5 still matches", cached=True)
        self.attempts += 1
        return await self._from_node()

    async def _from_node(self) -> Done:
        context, vault, node = self.context, self.context.vault, self.context.node.name
        directory, a0cli = self.session.directory, self.session.a0cli
        # The leftovers are not the wanted bytes, and this artifact needs their space.
        await context.on_disk(sweep_private, vault, node, kind=self.kind, keep=directory.path)
        await context.on_disk(directory.clear_retrieved)
        others = context.others()
        space = await context.on_disk(claim, vault, node, self.kind, arriving=directory.path, others=others)
        context.tell(StepName.RETRIEVE, watch=directory.path, size=space.last)
        whole, self.always_whole = self.always_whole, False
        printed = await bounded(context, space, lambda: a0cli.retrieve(self.kind))
        if printed.exit_code != 0:
            # a0cli says it in its own words, or not at all.
            free = (await context.on_disk(shutil.disk_usage, directory.path)).free
            if free < FULL:
                raise VaultFullError(node, self.kind, max(space.needed, FULL), free)
            said = await in_thread(refusal, printed, node=node, command=printed.command, wordings=a0cli.wordings)
            if isinstance(said, RefusedError):
                raise said
            log.warning("%s: %s ended with exit code %d", node, printed.command, printed.exit_code)
            self.bytes.reply = await in_thread(quoted, printed)
        try:
            self.bytes.arrived = directory.retrieved()
        except RetrieveFailedError as error:
            reason = f"{error.reason}; a0cli said {await in_thread(quoted, printed)!r}"
            raise RetrieveFailedError(node, self.kind, self.attempts, reason) from error
        may_take = await context.on_disk(spare, vault, node)
        await context.on_disk(take_over, self.bytes.arrived, spare=may_take)
        self.always_whole = whole and not self.bytes.reply
        return Done(f"retrieved {human_size(self.bytes.arrived.stat().st_size)}")

    @step(StepName.VERIFY)
    async def verify(self) -> Done:
        """Check that the bytes are the node's; with a password, also read their contents in the same pass.

        `inspect` reports the result for the contents. Raise Md5MismatchError, or
        RetrieveFailedError if a0cli itself reported that the bytes are incomplete.
        """
        wanted, node, arrived = self._md5(), self.context.node.name, self.bytes.arrived
        if self.bytes.stored is not None:
            return Done(f"the artifact in the vault has md5 {wanted}", cached=True)
        if self.bytes.digests is not None:
            return Done(f"md5 {wanted} matches", cached=True)
        assert arrived is not None, "verify comes after retrieve"
        self.bytes.tried = await self._start.known_passwords()
        actual = await (self._read(arrived) if self.bytes.tried else self.context.on_disk(digests, arrived))
        if actual.md5 != wanted and self.bytes.reply:
            reason = f"{actual.size} bytes arrived that do not match the node's backup; a0cli said {self.bytes.reply!r}"
            raise RetrieveFailedError(node, self.kind, self.attempts, reason)
        if actual.md5 != wanted:
            self._mismatches.add(actual.md5)
            raise Md5MismatchError(node, wanted, actual.md5, self.attempts)
        await self.context.on_disk(arrived.replace, self._verified_file)
        release(self.context.vault, node)
        self.bytes.digests, self.bytes.arrived = actual, None
        return Done(f"md5 {wanted} matches")

    async def _read(self, path: Path) -> Digests:
        """Return the digests of *path*, and inspect its contents in the same pass with the available passwords."""
        self.context.tell(StepName.VERIFY, "reading the artifact to its end")
        texts = [secret.text for secret in self.bytes.tried]
        self.bytes.inspection = await self.context.on_disk(
            inspect,
            path,
            texts,
            node=self.context.node.name,
            kind=self.kind,
            limits=self.context.fleet.contents,
            secrets=self.session.a0cli.known,
        )
        return self.bytes.inspection.digests

    @step(StepName.INSPECT)
    async def inspect(self) -> Done:
        """Check that the artifact can be opened and read to its end, if a password is available.

        Raise ContentsError for the backup that this run started; the node keeps it. A backup that
        an earlier run started and that nobody can open is foreign, like one that somebody else
        started. A foreign backup is stored as it is; ForeignBackupError is raised only if
        `existing` is `fail`.
        """
        if (stored := self.bytes.stored) is not None:
            self.bytes.ours = self.claim is not Claim.NONE and stored.started_at is not None
            return Done(f"stored already, {_how_read(stored.verified)}", cached=True)
        assert self.bytes.digests is not None, "inspect comes after verify"
        if self.bytes.inspection is None:
            # An earlier run left these bytes. Without a password there is nothing to read them for.
            self.bytes.tried = await self._start.known_passwords()
            if self.bytes.tried:
                await self._read(self._verified_file)
        inspection = self.bytes.inspection
        known = self._evidence(inspection)
        judged = evidence.judge(known)
        self.bytes.ours = judged.ours
        if inspection is None or inspection.contents is None:
            return await self._not_opened(known, judged)
        if judged.ours and self.context.journal is not None:
            # The next run may not have the password to find this out again.
            await self.context.note_journal("opened", effect=Effect.OPENED, pinned=self.found.identity)
        for oddity in inspection.contents.odd:
            self.context.note(f"in the artifact: {oddity}")
        unpacked = human_size(inspection.contents.unpacked_size)
        return Done(f"opened and read: {inspection.contents.members} members, {unpacked} unpacked")

    def _evidence(self, inspection: Inspection | None) -> Evidence:
        contents = inspection.contents if inspection else None
        return Evidence(
            opened=self.bytes.tried[contents.opened_by].mode if contents else None,
            error=inspection.error if inspection else None,
            claim=self.claim,
            started_here=self._start.sent is not None,
            accepted=self._start.sent is not None and self._start.sent.accepted,
            starts=self._start.count,
            journal=self.context.journal,
            # What the node no longer shows cannot be left alone there.
            existing=self.context.existing if self.context.last_status == self.found else "preserve",
        )

    async def _not_opened(self, known: Evidence, judged: Judgement) -> Done:
        context, error, why = self.context, known.error, judged.why
        match judged.verdict:
            case Verdict.FAILED:
                assert error is not None, "only what was tried can fail"
                # The next run may not have the password to find this out again.
                await context.note_journal("not opened", not_opened=why)
                raise error
            case Verdict.FOREIGN:
                if context.journal is not None and why is not None:
                    await context.note_journal("not opened", not_opened=why)
                raise ForeignBackupError(context.node.name, self.kind, shown(self.found))
        if known.sealed_elsewhere:
            self.bytes.inspection = None
        if why is None:
            if judged.ours:
                context.note("the contents were not inspected: the password is sealed and not available in this run")
            return Done("its password is not available; the contents were not inspected")
        self.bytes.not_opened = why
        if self.claim is not Claim.NONE:
            context.note(f"the backup that an earlier run started cannot be opened, so a new one is made: {why.reason}")
        return Done(f"not opened: {why.reason}")

    # -- after a failure ---------------------------------------------------------------------------------------

    def after(self, error: A0BackupError, *, may_give_up: bool) -> Next:
        """Return what follows *error*, and report the progress if the bytes are retrieved again."""
        following = after_failure(
            error,
            attempts=self.attempts,
            allowed=self.context.fleet.retrieve_attempts,
            always_whole=self.always_whole,
            may_give_up=may_give_up,
        )
        if following is Next.RETRY:
            text = one_line(f"{error.text()}; retrieving it again")
            log.warning("%s: %s", self.context.node.name, text)
            self.context.tell(StepName.VERIFY, text)
        return following

    async def count_night(self, error: A0BackupError) -> int:
        """Return in how many nights the backup arrived whole and did not match its md5, this one included."""
        # Bytes that differ from one attempt to the next are spoilt on their way, not on the node. So are those that our
        # password opens and that end early.
        failure = self.bytes.inspection.error if self.bytes.inspection else None
        cut = failure is not None and failure.password_fits
        spoilt = not self.always_whole or len(self._mismatches) != 1 or cut
        if not isinstance(error, Md5MismatchError) or spoilt:
            return 0
        run, unverified = self.session.run, self.context.unverified
        within = run.fleet.reuse_within
        return await self.context.on_disk(unverified.count, self.found.identity, error.actual, run.began, within=within)

    async def keep_aside(self, error: A0BackupError) -> Path | None:
        """Quarantine bytes that never matched or could not be read; return where they are, if they could be kept.

        Raise VaultUnusableError.
        """
        if isinstance(error, Md5MismatchError):
            md5s = {"md5_of_node": error.expected, "md5_of_bytes": error.actual}
            return await self._quarantine(self.bytes.arrived, error, md5s)
        if isinstance(error, ContentsError):
            return await self._quarantine(self._verified_file, error, {"md5": self._md5()})
        return None

    async def _quarantine(self, path: Path | None, error: A0BackupError, more: Mapping[str, str]) -> Path | None:
        """Quarantine the bytes at *path*, unless they would take the next artifact's space, or too much of the disk."""
        context, node = self.context, self.context.node.name
        if path is None:
            return None
        why = ""
        if not await context.on_disk(leaves_room, context.vault, node, self.kind, context.others()):
            why = "the vault's disk is nearly full, and the next backups need what is free"
        elif not await context.on_disk(lambda: make_room(context.vault, node, self.kind, path.stat().st_size)):
            why = "the quarantines would take more than a tenth of the vault's disk"
        if why:
            context.note(f"the bytes that failed verification were not kept in quarantine: {why}")
            return None
        at = now()
        sealed = await context.on_disk(context.sealed_files.all)
        reason: dict[str, object] = {
            "node": node,
            "kind": self.kind,
            "flow_run": self.session.run.id,
            "at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            "reason": error.message(),
            **more,
            # The password files are removed with the next backup; these bytes may be examined much later.
            "sealed": [entry.model_dump() for entry in sealed],
        }
        try:
            kept = await context.on_disk(quarantine, context.vault, node, self.kind, path, reason=reason, now=at)
        except VaultUnusableError as full:
            context.note(f"the bytes that failed verification could not be kept in quarantine: {full.reason}")
            return None
        return kept


def _how_read(verified: Verified) -> str:
    return f"{verified.members} members read then" if verified.level == "contents" else "its contents not read"
