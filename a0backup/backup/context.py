"""What the phases of one node backup share: the journal, the report's notes and the node's last status."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

from a0backup.a0cli.characters import one_line
from a0backup.a0cli.status import Found, Status
from a0backup.backup.session import NodeSession
from a0backup.backup.steps import StepName
from a0backup.errors import VaultUnusableError
from a0backup.fleet.models import Existing, Fleet, Node
from a0backup.identity import BackupIdentity
from a0backup.report import progress
from a0backup.vault.journal import Effect, Journal, JournalFile, NotOpened
from a0backup.vault.leftovers import sweep
from a0backup.vault.sealed_files import SealedFiles
from a0backup.vault.space import Others
from a0backup.vault.unverified import UnverifiedFile
from a0backup.vault.vault import Vault

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Context:
    """The state that the phases of one run's backup of one *kind* of a node share."""

    def __init__(self, session: NodeSession, kind: str) -> None:
        self.session, self.kind = session, kind
        self.notes: list[str] = []
        self.journal: Journal | None = None
        self.journal_file = JournalFile(session.vault.folder(session.node.name), kind)
        self.unreadable = False  # whether there is a journal that cannot be read
        self.unverified = UnverifiedFile(session.vault.folder(session.node.name), kind)
        self.sealed_files = SealedFiles(session.vault.folder(session.node.name), kind)
        self.last_status: Status | None = None
        self.last_seen: BackupIdentity | None = None  # the last finished backup that the node showed with its md5
        self._preserve = False

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
    def existing(self) -> Existing:
        """What to do with a foreign backup: the operator's choice, or `preserve` after an unreadable journal."""
        return "preserve" if self._preserve else self.session.run.existing or self.fleet.existing

    def others(self) -> Others:
        """Return the other nodes of the fleet, whose space this one must leave."""
        kinds = {node.name: self.fleet.kinds_of(node) for node in self.fleet.nodes if node.name != self.node.name}
        since = self.session.run.began - timedelta(seconds=self.fleet.reuse_within)
        return Others(self.vault, kinds, since=since)

    @property
    def may_give_up(self) -> bool:
        """Whether the operator asked this run to give up a backup that cannot be verified."""
        return self.session.run.existing == self.existing == "replace"

    async def on_disk(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run *function* on the vault, in a thread. Raise VaultUnusableError if the vault's disk fails."""
        return await self.session.on_disk(function, *args, **kwargs)

    async def ask(self) -> Status:
        """Ask the node for its status and return it. Raise A0cliError."""
        status = await self.session.a0cli.status(self.kind)
        self.last_status = status
        if isinstance(status, Found) and status.md5 is not None:
            self.last_seen = status.identity
        return status

    # -- reporting ---------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Add *text*, on one line, to the run's report and to the log."""
        text = one_line(text)  # what a0cli left may have any name
        if text not in self.notes:
            self.notes.append(text)
        log.warning("%s: %s", self.node.name, text)

    def tell(self, step: StepName, text: str = "", *, watch: Path | None = None, size: int | None = None) -> None:
        """Report the progress of *step*; *watch* is the directory in which a file grows meanwhile."""
        progress.tell(progress.Step(self.node.name, self.kind, step, text, watch, size))

    # -- the journal -------------------------------------------------------------------------------------------

    def read_journal(self) -> None:
        """Read the journal.

        An unreadable journal forces `preserve` in this run, and in later runs as long as it exists.
        """
        try:
            self.journal = self.journal_file.read()
        except ValueError as error:
            self.unreadable = self._preserve = True
            self.note(f"the journal cannot be read, so the backup on the node is preserved ({error})")

    async def begin_journal(self, journal: Journal) -> None:
        """Replace the journal by *journal*. Raise VaultUnusableError."""
        await self._set_aside_unreadable()
        self.journal = journal

    async def note_journal(
        self,
        what: str,
        *,
        effect: Effect | None = None,
        pinned: BackupIdentity | None = None,
        not_opened: NotOpened | None = None,
    ) -> None:
        """Add an entry to the journal; it is durable when this returns. Raise VaultUnusableError."""
        assert self.journal is not None, "there is a journal while a backup of our own is unfinished"
        self.journal = self.journal.noted(now(), what, effect=effect, pinned=pinned, not_opened=not_opened)
        await self.on_disk(self.journal_file.write, self.journal)

    async def forget_journal(self) -> None:
        """Remove the journal. Raise VaultUnusableError if an unreadable one cannot be set aside."""
        await self._set_aside_unreadable()
        self.journal = None
        await self.clean_up("the journal", self.journal_file.remove)

    async def _set_aside_unreadable(self) -> None:
        if self.unreadable:
            aside = await self.on_disk(self.journal_file.set_aside, now())
            self.unreadable = False
            self.note(f"the unreadable journal was set aside as {aside.name}")

    # -- the vault ---------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what dead runs left of this backup; what remains is noted, and stops no run."""
        keep = self.session.directory.path
        try:
            swept = await self.on_disk(sweep, self.vault, self.node.name, kind=self.kind, keep=keep)
        except VaultUnusableError as error:
            self.note(f"what earlier runs left could not be removed: {error.reason}")
            return
        for folder in swept.without_manifest:
            self.note(f"{folder.name} in the vault holds an artifact without a manifest; inspect it, then remove it")
        if swept.others:
            more = f" and {len(swept.others) - 1} more" if len(swept.others) > 1 else ""
            self.note(f"left alone, as a0backup did not make it or cannot remove it: {swept.others[0]}{more}")

    async def clean_up(self, what: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run *function*, which removes *what* is no longer needed; a failure is noted, and undoes no success."""
        try:
            await self.on_disk(function, *args, **kwargs)
        except VaultUnusableError as error:
            self.note(f"{what} could not be removed, and the next run tries again: {error.reason}")


def now() -> datetime:
    """Return the current time to the second, as manifests and journals store it."""
    return datetime.now(UTC).replace(microsecond=0)
