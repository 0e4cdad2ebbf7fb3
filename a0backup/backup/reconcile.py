"""Decide what to do next with a node's backup, from what node, journal and vault say.

Pure; design.md has the decision table.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from a0backup.a0cli.status import Absent, Found, InProgress, Status
from a0backup.fleet.models import Existing
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import Journal
from a0backup.vault.manifest import Manifest


@dataclass(frozen=True)
class Facts:
    """What is known about one node's backup of one kind.

    *journal*: the journal of a backup that we started and have not settled. *unreadable*: there is
    a journal that cannot be read. *stored*: the vault's manifest of the backup that the status
    shows, or of the pinned backup if the status shows none. *lost_by_node*: the node no longer
    shows the pinned backup, and its verified bytes are here, not stored. *outcome*: the artifact
    that this run counts as its result, once there is one. *read_back*: the ids of the artifacts
    that this run has read back. *asked_again*: the status was asked again after `call_timeout`.
    *given_up*: the backup that could not be verified and that this run replaces.
    """

    status: Status
    existing: Existing
    journal: Journal | None = None
    unreadable: bool = False
    stored: Manifest | None = None
    lost_by_node: bool = False
    outcome: Manifest | None = None
    read_back: frozenset[str] = frozenset()
    asked_again: bool = False
    given_up: BackupIdentity | None = None

    @property
    def pinned(self) -> BackupIdentity | None:
        """The backup that the node was seen to hold after our start."""
        return self.journal.pinned if self.journal else None


@dataclass(frozen=True)
class Action:
    """The next action; *because* gives the reason and *then* describes it."""

    because: str = field(kw_only=True)

    @property
    def then(self) -> str:
        """What a run does from here to its end."""
        return self._then

    _then: ClassVar[str] = ""


@dataclass(frozen=True)
class Start(Action):
    """Start a backup."""

    _then = "start a backup, retrieve, verify and store it, delete it on the node"


@dataclass(frozen=True)
class AskAgain(Action):
    """Ask again later for the backup that was started."""

    _then = "check again for the backup that was started, and start one if it is missing"


@dataclass(frozen=True)
class Await(Action):
    """Wait for the backup in progress."""

    ours: bool

    @property
    def then(self) -> str:
        more = "" if self.ours else ", then start a backup of its own"
        return f"await the backup in progress, retrieve, verify and store it, delete it on the node{more}"


@dataclass(frozen=True)
class Keep(Action):
    """Retrieve, verify and store *found*, or read it back if the vault has it as *stored*."""

    found: Found
    ours: bool
    stored: Manifest | None = None

    @property
    def then(self) -> str:
        how = "read back what the vault has of it" if self.stored else "retrieve, verify and store it"
        return f"{how}, delete it on the node" + ("" if self.ours else ", then start a backup")


@dataclass(frozen=True)
class Delete(Action):
    """Delete *found* on the node; it is stored and was read back."""

    found: Found

    _then = "delete the stored backup on the node"


@dataclass(frozen=True)
class Replace(Action):
    """Delete *found* on the node without storing it."""

    found: Found

    _then = "delete the backup on the node without keeping it, then start one"


@dataclass(frozen=True)
class Refuse(Action):
    """Leave the node alone and fail."""

    _then = "leave the node alone and fail"


@dataclass(frozen=True)
class Settle(Action):
    """Clean up: the run's *outcome* is stored and off the node."""

    outcome: Manifest

    _then = "only clean up: the backup is stored"


def reconcile(facts: Facts) -> Action:
    """Return the next action for *facts*."""
    if facts.outcome is not None and _is_all_done(facts, facts.outcome):
        return Settle(facts.outcome, because=f"{facts.outcome.id} is stored")
    if facts.lost_by_node and facts.pinned is not None:
        # Regardless of what the node holds now: no other copy of these bytes exists.
        lost = Found(facts.pinned.name, facts.pinned.md5)
        return Keep(
            lost,
            ours=True,
            because="the node no longer holds the backup that we started, but its verified bytes are here",
        )
    match facts.status:
        case Absent():
            return _nothing_there(facts)
        case InProgress():
            if facts.journal is not None and facts.pinned is None:
                return Await(ours=True, because="the backup that we started is in progress")
            if facts.existing == "fail":
                return Refuse(because="a backup that we did not start is in progress")
            return Await(ours=False, because="a backup that we did not start is in progress")
        case Found() as found:
            return _found(found, facts)


def _is_all_done(facts: Facts, outcome: Manifest) -> bool:
    """Return whether the outcome is off the node and no older backup is unfinished."""
    if isinstance(facts.status, Found) and facts.status.identity.may_hold_bytes_of(outcome.identity):
        return False
    if facts.unreadable and not isinstance(facts.status, Absent):
        return False
    return facts.journal is None or facts.journal.is_of(outcome)


def _nothing_there(facts: Facts) -> Action:
    if facts.journal is None:
        return Start(because="nothing is on the node")
    if facts.stored is not None:
        return Settle(facts.stored, because=f"{facts.stored.id} is stored and the node holds nothing")
    if not facts.asked_again:
        return AskAgain(because="a backup was started, but the node shows nothing")
    return Start(because="the backup that was started is no longer on the node")


def _found(found: Found, facts: Facts) -> Action:
    journal, stored = facts.journal, facts.stored
    from_before = journal is not None and facts.pinned is None and found.identity == journal.seen_before
    if from_before and not facts.asked_again:
        return AskAgain(because="the node still shows the backup from before the start")
    ours = journal is not None and not from_before and (facts.pinned is None or found.identity.may_be(facts.pinned))
    if stored is not None and stored.id in facts.read_back:
        return Delete(found, because=f"it is stored as {stored.id} and was read back")
    if found.identity == facts.given_up and (ours or facts.existing == "replace"):
        return Replace(found, because="the backup on the node cannot be verified and will be replaced")
    if stored is not None:
        return Keep(found, ours, stored, because=f"it is in the vault as {stored.id} and must be read back first")
    if ours:
        return Keep(found, ours, because="the backup that we started is on the node")
    if facts.existing == "fail":
        return Refuse(because="a backup that we did not start is on the node")
    # With a journal it may still be ours, under another name or md5 than first seen.
    if facts.existing == "replace" and journal is None:
        return Replace(found, because="a backup that we did not start is on the node and will be replaced")
    return Keep(found, ours, because="a backup that we did not start is on the node; it is kept first")
