"""Collect the facts from the vault that `reconcile` decides on."""

from collections.abc import Collection
from datetime import UTC, datetime

from a0backup.a0cli.status import Absent, Found, Status
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import Effect, Journal
from a0backup.vault.leftovers import salvage
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import CLOCKS_DIFFER, Vault


def stored_manifest(vault: Vault, node: str, kind: str, status: Status, journal: Journal | None) -> Manifest | None:
    """Return the manifest of the backup that *status* shows, or of the journal's backup if it shows none.

    For our own backup, only the manifest of this very backup counts: another night's backup may be
    equal.
    """
    pinned = journal.pinned if journal else None
    if isinstance(status, Found) and status.md5 is not None:
        shown = status.identity
        if journal is not None and (pinned == shown or (pinned is None and journal.seen_before != shown)):
            return _of_journal(vault, node, kind, shown, journal)
        return vault.holding(node, kind, shown)
    if isinstance(status, Absent):
        return journals_manifest(vault, node, kind, journal)
    return None


def journals_manifest(vault: Vault, node: str, kind: str, journal: Journal | None) -> Manifest | None:
    """Return the manifest of the very backup of *journal*, if it was pinned and is stored."""
    if journal is None or journal.pinned is None or journal.pinned.md5 is None:
        return None
    return vault.holding(node, kind, journal.pinned, started_at=journal.started_at)


def _of_journal(vault: Vault, node: str, kind: str, shown: BackupIdentity, journal: Journal) -> Manifest | None:
    ours = vault.holding(node, kind, shown, started_at=journal.started_at)
    if ours is not None or journal.effect is Effect.OPENED:
        return ours
    # A run may have kept it as foreign, and have been killed before it removed the journal.
    return vault.holding(node, kind, shown, foreign_since=journal.started_at)


def is_lost_by_node(
    vault: Vault, node: str, kind: str, status: Status, journal: Journal | None, *, damaged: Collection[str] = ()
) -> bool:
    """Return whether the node no longer shows our pinned backup and its verified bytes are here, not yet stored.

    Only for a run that holds the node's lock: bytes found in the folder of a killed run are moved.
    *damaged*: the ids of artifacts whose stored bytes do not count.
    """
    if journal is None or journal.pinned is None or journal.pinned.md5 is None:
        return False
    if isinstance(status, Found) and status.identity.may_be(journal.pinned):
        return False
    stored = journals_manifest(vault, node, kind, journal)
    if stored is not None and stored.id not in damaged:
        return False
    return salvage(vault, node, kind, journal.pinned.md5) is not None


def is_recent(started_at: datetime, began: datetime, within: float) -> bool:
    """Return whether a backup was started less than *within* seconds before a run *began*, or since.

    One that was started later than now was started by a clock that ran ahead: nobody knows when.
    """
    if started_at > datetime.now(UTC) + CLOCKS_DIFFER:
        return False
    return (began - started_at).total_seconds() < within
