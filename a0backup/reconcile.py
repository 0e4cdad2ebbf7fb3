"""What to do next with a node's backup, from what node, journal and vault say. Pure; the table stands in design.md."""

from dataclasses import dataclass
from enum import StrEnum

from a0backup.fleet import Existing
from a0backup.journal import Journal, pair
from a0backup.replies import Absent, Found, InProgress, Status
from a0backup.vault import Manifest


class Action(StrEnum):
    """The next step with a node's backup."""

    START = "start a backup"
    ASK_AGAIN = "ask again whether the started backup is there"
    AWAIT = "await the backup in progress"
    KEEP = "retrieve, verify and store what is on the node"
    DELETE = "delete the stored backup on the node"
    REPLACE = "delete the backup on the node, unkept"
    REFUSE = "leave the node alone"
    DONE = "nothing: the backup is stored and off the node"


@dataclass(frozen=True)
class Plan:
    """What to do, whether the backup on the node is our own, and why, in words for the report."""

    action: Action
    ours: bool
    because: str


def reconcile(
    status: Status,
    *,
    journal: Journal | None,
    stored: Manifest | None,
    proven: bool,
    existing: Existing,
    at_hand: bool = False,
    asked_again: bool = False,
    give_up: bool = False,
) -> Plan:
    """Return what to do next.

    *journal* is that of a backup which we started and have not settled; *stored* the vault's manifest for the md5 that
    the status shows or, where it shows none, for the md5 that the journal pinned; *proven* that this run has read the
    stored artifact back; *at_hand* that verified bytes of the pinned backup are here, not stored yet; *asked_again*
    that the status was asked again after `call_timeout`; *give_up* that our own backup could not be verified and the
    operator asked, for this run, to replace such a one.
    """
    match status:
        case Absent():
            return _nothing_there(journal, stored, at_hand, asked_again)
        case InProgress():
            if journal is not None and journal.pinned is None:
                return Plan(Action.AWAIT, True, "the backup that we started is in progress")
            if existing == "fail":
                return Plan(Action.REFUSE, False, "a backup that we did not start is in progress")
            return Plan(Action.AWAIT, False, "a backup that we did not start is in progress")
        case Found():
            return _found(status, journal, stored, proven, existing, give_up)


def _nothing_there(journal: Journal | None, stored: Manifest | None, at_hand: bool, asked_again: bool) -> Plan:
    if journal is None:
        return Plan(Action.START, False, "nothing is on the node")
    if stored is not None:
        return Plan(Action.DONE, True, f"{stored.id} is stored and the node holds nothing any more")
    if at_hand:
        return Plan(Action.KEEP, True, "the node lost the backup that we started, its verified bytes are here")
    if not asked_again:
        return Plan(Action.ASK_AGAIN, True, "a backup was started and the node shows nothing")
    return Plan(Action.START, False, "the backup that was started is gone from the node")


def _found(
    found: Found, journal: Journal | None, stored: Manifest | None, proven: bool, existing: Existing, give_up: bool
) -> Plan:
    shown = pair(found)
    if journal is not None and journal.pinned is None and shown is not None and shown == journal.seen_before:
        return Plan(Action.AWAIT, True, "the node still shows the backup from before the start")
    ours = journal is not None and journal.pinned in (None, shown)
    if stored is not None:
        if proven:
            return Plan(Action.DELETE, ours, f"it is stored as {stored.id} and was read back")
        return Plan(Action.KEEP, ours, f"it is in the vault as {stored.id}, to be read back first")
    if ours and give_up:
        return Plan(Action.REPLACE, True, "the backup that we started cannot be verified, and is to be replaced")
    if ours:
        return Plan(Action.KEEP, True, "the backup that we started is there")
    match existing:
        case "preserve":
            return Plan(Action.KEEP, False, "a backup that we did not start is there; it is kept first")
        case "replace":
            return Plan(Action.REPLACE, False, "a backup that we did not start is there, and is to be replaced")
        case "fail":
            return Plan(Action.REFUSE, False, "a backup that we did not start is there")
