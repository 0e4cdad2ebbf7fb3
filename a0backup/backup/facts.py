"""Gathering the facts that `reconcile` decides on, from the vault. For runs, and for looks that change nothing."""

from a0backup.a0cli.status import Absent, Found, Status
from a0backup.vault.journal import Journal
from a0backup.vault.leftovers import salvage
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault


def stored_manifest(vault: Vault, node: str, kind: str, status: Status, journal: Journal | None) -> Manifest | None:
    """Return the manifest of the backup that *status* shows or, where it shows nothing, of the journal's.

    Of a backup of our own it is that of this very backup: the bytes of another night may be the same.
    """
    pinned = journal.pinned if journal else None
    if isinstance(status, Found) and status.md5 is not None:
        shown = status.identity
        ours = journal is not None and (pinned == shown or (pinned is None and journal.seen_before != shown))
        return vault.with_md5(node, kind, status.md5, started_at=journal.started_at if journal and ours else None)
    if isinstance(status, Absent):
        return journals_manifest(vault, node, kind, journal)
    return None


def journals_manifest(vault: Vault, node: str, kind: str, journal: Journal | None) -> Manifest | None:
    """Return the manifest of the very backup that *journal* is about, where it was pinned and is stored."""
    if journal is None or journal.pinned is None or journal.pinned.md5 is None:
        return None
    return vault.with_md5(node, kind, journal.pinned.md5, started_at=journal.started_at)


def is_lost_by_node(vault: Vault, node: str, kind: str, status: Status, journal: Journal | None) -> bool:
    """Return whether the node shows our pinned backup no more, and its verified bytes are here, not stored yet."""
    if journal is None or journal.pinned is None or journal.pinned.md5 is None:
        return False
    if isinstance(status, Found) and status.identity.may_be(journal.pinned):
        return False
    if journals_manifest(vault, node, kind, journal) is not None:
        return False
    return salvage(vault, node, kind, journal.pinned.md5) is not None
