"""What to do next with a node's backup, from what node, journal and vault say. Pure; the table stands in design.md."""

from dataclasses import dataclass
from enum import StrEnum

from a0backup.fleet import Existing
from a0backup.journal import Journal, Pair, pair
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
    stored artifact back; *at_hand* that the node shows the pinned backup no more and its verified bytes are here, not
    stored yet; *asked_again* that the status was asked again after `call_timeout`; *give_up* that the very backup that
    is shown could not be verified and the operator asked, for this run, to replace such a one.
    """
    if at_hand:
        # First of all, whatever is on the node by now: nothing else has these bytes any more.
        return Plan(Action.KEEP, True, "the node lost the backup that we started, its verified bytes are here")
    match status:
        case Absent():
            return _nothing_there(journal, stored, asked_again)
        case InProgress():
            if journal is not None and journal.pinned is None:
                return Plan(Action.AWAIT, True, "the backup that we started is in progress")
            if existing == "fail":
                return Plan(Action.REFUSE, False, "a backup that we did not start is in progress")
            return Plan(Action.AWAIT, False, "a backup that we did not start is in progress")
        case Found():
            return _found(
                status, journal, stored, proven=proven, existing=existing, asked_again=asked_again, give_up=give_up
            )


def _nothing_there(journal: Journal | None, stored: Manifest | None, asked_again: bool) -> Plan:
    if journal is None:
        return Plan(Action.START, False, "nothing is on the node")
    if stored is not None:
        return Plan(Action.DONE, True, f"{stored.id} is stored and the node holds nothing any more")
    if not asked_again:
        return Plan(Action.ASK_AGAIN, True, "a backup was started and the node shows nothing")
    return Plan(Action.START, False, "the backup that was started is gone from the node")


def _found(
    found: Found,
    journal: Journal | None,
    stored: Manifest | None,
    *,
    proven: bool,
    existing: Existing,
    asked_again: bool,
    give_up: bool,
) -> Plan:
    shown = pair(found)
    old = journal is not None and journal.pinned is None and shown is not None and shown == journal.seen_before
    if old and not asked_again:
        return Plan(Action.ASK_AGAIN, True, "the node still shows the backup from before the start")
    ours = journal is not None and not old and may_be(found, journal.pinned)
    if stored is not None and proven:
        return Plan(Action.DELETE, ours, f"it is stored as {stored.id} and was read back")
    if give_up and (ours or existing == "replace"):
        return Plan(Action.REPLACE, ours, "the backup that is there cannot be verified, and is to be replaced")
    if stored is not None:
        return Plan(Action.KEEP, ours, f"it is in the vault as {stored.id}, to be read back first")
    if ours:
        return Plan(Action.KEEP, True, "the backup that we started is there")
    if journal is not None and existing == "replace":
        # It may be our own after all, under another name or md5 than was seen first.
        existing = "preserve"
    match existing:
        case "preserve":
            return Plan(Action.KEEP, False, "a backup that we did not start is there; it is kept first")
        case "replace":
            return Plan(Action.REPLACE, False, "a backup that we did not start is there, and is to be replaced")
        case "fail":
            return Plan(Action.REFUSE, False, "a backup that we did not start is there")


def may_be(found: Found, pinned: Pair | None) -> bool:
    """Return whether *found* may be the backup that the journal pinned: an md5 that is not shown proves nothing."""
    return pinned is None or (found.name == pinned.name and found.md5 in (None, pinned.md5))
