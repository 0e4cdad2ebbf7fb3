"""The start of a node backup: its password, its journal, and the one call that is never repeated."""

import logging
import time
from dataclasses import dataclass, field

from a0backup.a0cli.printed import Printed
from a0backup.a0cli.replies import made_nothing, quoted, refusal
from a0backup.backup.context import Context, now
from a0backup.backup.deletion import Deletion
from a0backup.backup.reconcile import SoFar
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import A0BackupError, A0cliError, A0cliMissingError, PasswordError, RefusedError, StartFailedError
from a0backup.files import in_thread
from a0backup.identity import BackupIdentity
from a0backup.passwords import recovery_keys
from a0backup.passwords.sealed import random_password
from a0backup.vault.journal import Effect, Journal
from a0backup.vault.manifest import Mode, SealedPassword
from a0backup.vault.space import require_space

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownPassword:
    """A password that this run knows, with its sealed form if it was made for one backup."""

    text: str = field(repr=False)
    sealed: tuple[SealedPassword, ...] = ()

    @property
    def mode(self) -> Mode:
        return "sealed" if self.sealed else "shared"


@dataclass(frozen=True)
class Sent:
    """A start of this run: the time when it had been sent (seconds of the monotonic clock), and the reply."""

    at: float
    reply: str
    accepted: bool  # a0cli reported success
    refused: A0BackupError | None  # after a start that made nothing: what to raise if the node shows nothing
    before: BackupIdentity | None  # what the node last showed before the start
    sealed: bool  # its password is sealed, and only this run knows it


class Start:
    """The starts that one run sends for one kind of a node."""

    def __init__(self, context: Context, deletion: Deletion, so_far: SoFar) -> None:
        self.context, self._deletion, self.so_far = context, deletion, so_far
        self.session, self.kind = context.session, context.kind
        self.count = 0
        self.password: KnownPassword | None = None  # the password of the last start
        self.sent: Sent | None = None  # the last start

    @step(StepName.START)
    async def start(self) -> Done:
        """Start a backup on the node; the status that follows shows its effect, not the reply.

        Before anything is sent, raise PasswordError, RecoveryKeyError, or VaultFullError if the new
        artifact would not fit. Raise A0cliMissingError if a0cli could not be run, and at the second
        refusal RefusedError or StartFailedError.
        """
        context, name = self.context, self.context.node.name
        secret = await self._shared_or_new()
        await context.sweep()
        await context.on_disk(require_space, context.vault, name, self.kind, others=context.others())
        waited = await self._deletion.let_earlier_arrive()
        if waited:
            log.info("%s: waited %.0f s for a deletion that an earlier run had sent", name, waited)
        journal = Journal(
            node=name,
            kind=self.kind,
            host=context.node.host,
            port=context.node.port,
            flow_run=self.session.run.id,
            started_at=now(),
            sealed=bool(secret.sealed),
            seen_before=context.last_seen or await context.on_disk(self._last_stored),
        )
        # Durable before the call: after a crash during the call, the next run must know that this backup may be ours.
        # The password must not be lost with this process.
        if secret.sealed:
            await context.on_disk(context.sealed_files.write, journal.started_at, secret.sealed)
        await context.begin_journal(journal)
        await context.note_journal("start intended")
        self.password, self.count = secret, self.count + 1
        self.so_far.own_password = bool(secret.sealed)
        try:
            self.sent = await self._send(secret, journal)
        except A0cliMissingError:
            await context.forget_journal()
            raise
        if self.sent.refused is None:
            await context.note_journal(f"start sent: {self.sent.reply}")
        else:
            self.so_far.refusals += 1
            await context.note_journal(f"start refused: {self.sent.reply}", effect=Effect.REFUSED)
            if self.so_far.refusals > 1:
                # A node that refuses each start and makes a backup all the same would be backed up without end.
                raise self.sent.refused
        return Done(f"the node replied {self.sent.reply!r}")

    async def _send(self, secret: KnownPassword, journal: Journal) -> Sent:
        refused = None
        try:
            printed = await self.session.a0cli.start(self.kind, secret.text, *self.context.fleet.arguments(self.kind))
        except A0cliMissingError:
            raise
        except A0cliError as error:
            reply, accepted = error.reason, False
        else:
            accepted = printed.exit_code == 0
            reply, refused = await in_thread(self._read, printed)
        # Timed after the call: a call that hung until its deadline may still be under way.
        return Sent(time.monotonic(), reply, accepted, refused, journal.seen_before, bool(secret.sealed))

    def _read(self, printed: Printed) -> tuple[str, A0BackupError | None]:
        """Return the reply to a start as a short text, and what to raise if it made nothing."""
        reply, node = quoted(printed), self.session.node.name
        said = refusal(printed, node=node, command=self.kind, wordings=self.session.a0cli.wordings)
        if not made_nothing(printed, said):
            return reply, None
        return reply, said if isinstance(said, RefusedError) else StartFailedError(node, self.kind, reply)

    async def _shared_or_new(self) -> KnownPassword:
        """Return the password to start with: the shared one, or a new one sealed to every recovery key."""
        source = self.context.fleet.password
        text = await self.session.shared(source)
        if text is not None:
            return KnownPassword(text)
        assert source.sealed_to is not None, "a password is shared or sealed"
        keys = await self.context.on_disk(recovery_keys.load_all, source.sealed_to)
        text = random_password()
        return KnownPassword(text, tuple(key.seal(text) for key in keys))

    def _last_stored(self) -> BackupIdentity | None:
        last = self.context.vault.newest(self.context.node.name, self.kind)
        return last.identity if last else None

    async def known_passwords(self) -> tuple[KnownPassword, ...]:
        """Return the passwords that this run knows: the one of its own last start, and the shared one."""
        known = [self.password] if self.password else []
        try:
            text = await self.session.shared(self.context.fleet.password)
        except PasswordError as error:
            # The backup on the node is kept anyway. Only a start needs the password.
            self.context.note(f"the contents were not inspected: {error.message()}")
            text = None
        if text is not None and text not in [secret.text for secret in known]:
            known.append(KnownPassword(text))
        return tuple(known)
