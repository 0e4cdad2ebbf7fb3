"""Decide what to do next with a node's backup, from what node, journal and vault say.

Pure; docs/reconcile.md has the decision table.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from a0backup.a0cli.status import Absent, Found, InProgress, Status
from a0backup.fleet.models import Existing
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import Effect, Journal
from a0backup.vault.manifest import Manifest


class Claim(Enum):
    """How well it is known, before its contents are read, that a backup on the node is ours."""

    NONE = "nothing shows that it is ours"
    GUESS = "a start of ours may have made it"
    SEEN = "the run that sent the start saw it come"
    OPENED = "the run that sent the start opened it with its password"


@dataclass
class SoFar:
    """What this run has done about the backup so far.

    *outcome*: the artifact that it counts as its result, once there is one. *read_back*, *copied*,
    *damaged*: the ids of the artifacts that it has read back, that it has copied to the further
    places, and whose bytes were not what their manifest says. *asked_again*: it asked for the
    status again after `call_timeout`. *refusals*: the number of its starts that were refused.
    *own_password*: it knows the sealed password of its last start. *given_up*: the backup that
    could not be verified, and that it replaces.
    """

    outcome: Manifest | None = None
    read_back: frozenset[str] = frozenset()
    copied: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()
    asked_again: bool = False
    refusals: int = 0
    own_password: bool = False
    given_up: BackupIdentity | None = None


@dataclass(frozen=True)
class Facts:
    """What is known about one node's backup of one kind.

    *journal*: the journal of a backup that we started and have not settled. *unreadable*: there is
    a journal that cannot be read. *moved*: the journal was written for another host or port of the
    node. *recent*: its start belongs to this run, or was sent less than `reuse_within` before it.
    *stored*: the vault's manifest of the backup that the status shows, or of the pinned backup if
    the status shows none. *hidden*: a manifest of this node and kind cannot be read. *lost_by_node*:
    the node no longer shows the pinned backup, and its verified bytes are here, not stored.
    *copies*: the fleet has further places for each artifact.
    """

    status: Status
    existing: Existing
    journal: Journal | None = None
    unreadable: bool = False
    moved: bool = False
    recent: bool = True
    stored: Manifest | None = None
    hidden: bool = False
    lost_by_node: bool = False
    copies: bool = False
    run: SoFar = field(default_factory=SoFar)

    @property
    def pinned(self) -> BackupIdentity | None:
        """The backup that our start is believed to have made."""
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
    claim: Claim
    stored: Manifest | None = None

    @property
    def then(self) -> str:
        how = "read back what the vault has of it" if self.stored else "retrieve, verify and store it"
        more = {
            Claim.NONE: ", then start a backup",
            Claim.GUESS: ", then start a backup unless the contents prove that it is ours",
            Claim.SEEN: ", then start a backup unless the contents prove that it is ours",
            Claim.OPENED: "",
        }
        return f"{how}, delete it on the node{more[self.claim]}"


@dataclass(frozen=True)
class ReadBack(Action):
    """Read back *stored*, which the node no longer holds."""

    stored: Manifest

    _then = "read back the stored artifact, and start a backup if it is damaged"


@dataclass(frozen=True)
class CopyOut(Action):
    """Copy *stored* to the further places."""

    stored: Manifest

    _then = "copy the stored artifact to the further places, then delete it on the node if it is there"


@dataclass(frozen=True)
class Delete(Action):
    """Delete *found* on the node; it is stored, was read back, and was copied."""

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
    """Clean up: the run's *outcome* is stored, was read back by this run, and is off the node."""

    outcome: Manifest

    _then = "only clean up: the backup is stored"


def reconcile(facts: Facts) -> Action:
    """Return the next action for *facts*."""
    if facts.run.outcome is not None and _is_all_done(facts, facts.run.outcome):
        return _settle(facts, facts.run.outcome)
    if facts.lost_by_node and facts.pinned is not None:
        # Regardless of what the node holds now: no other copy of these bytes exists.
        lost = Found(facts.pinned.name, facts.pinned.md5)
        return Keep(
            lost,
            _claim(lost, facts),
            because="the node no longer holds the backup that we started, but its verified bytes are here",
        )
    match facts.status:
        case Absent():
            return _nothing_there(facts)
        case InProgress():
            if _may_be_in_progress(facts):
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


def _settle(facts: Facts, outcome: Manifest) -> Action:
    if outcome.id in facts.run.read_back and _wants_copies(outcome, facts):
        return _copy_out(outcome)
    if outcome.id in facts.run.read_back:
        return Settle(outcome, because=f"{outcome.id} is stored and was read back")
    return ReadBack(outcome, because=f"{outcome.id} is stored, and no other copy of it exists")


def _wants_copies(stored: Manifest, facts: Facts) -> bool:
    return facts.copies and stored.id not in facts.run.copied


def _copy_out(stored: Manifest) -> Action:
    return CopyOut(stored, because=f"{stored.id} is stored, and is not yet known to be in the further places")


def _nothing_there(facts: Facts) -> Action:
    if facts.journal is None:
        return Start(because="nothing is on the node")
    if facts.stored is not None and facts.stored.id in facts.run.damaged:
        return Start(because=f"{facts.stored.id} is damaged and the node holds nothing")
    if facts.stored is not None and (facts.recent or facts.stored.id not in facts.run.read_back):
        return _settle(facts, facts.stored)
    if facts.stored is not None:
        return Start(because=f"{facts.stored.id} is stored, and was started too long ago to be this run's backup")
    if facts.journal.effect is Effect.REFUSED:
        return Start(because="the last start was refused, and nothing is on the node")
    if not facts.run.asked_again:
        return AskAgain(because="a backup was started, but the node shows nothing")
    return Start(because="the backup that was started is no longer on the node")


def _may_be_in_progress(facts: Facts) -> bool:
    """Return whether the backup in progress may be the one of the journal."""
    journal = facts.journal
    if journal is None:
        return False
    # Its md5 may have been shown before it was finished.
    premature = journal.effect is Effect.SEEN and facts.stored is None and not facts.moved
    return premature or _claims_unpinned(facts)


def _claims_unpinned(facts: Facts) -> bool:
    journal = facts.journal
    return journal is not None and not facts.moved and journal.may_claim_unpinned()


def _claim(found: Found, facts: Facts) -> Claim:
    """Return how well it is known that *found* is the backup of the journal."""
    journal, pinned = facts.journal, facts.pinned
    if journal is None or journal.effect is Effect.REFUSED:
        return Claim.NONE
    if pinned is None:
        return Claim.GUESS if _claims_unpinned(facts) and found.identity != journal.seen_before else Claim.NONE
    if found.identity.may_be(pinned):
        return {Effect.OPENED: Claim.OPENED, Effect.SEEN: Claim.SEEN}.get(journal.effect, Claim.GUESS)
    # The md5 may have been shown too early, but the name alone proves little: it may always be the same.
    return Claim.GUESS if found.name == pinned.name and not facts.moved else Claim.NONE


def _found(found: Found, facts: Facts) -> Action:
    journal, stored, claim = facts.journal, facts.stored, _claim(found, facts)
    unclear = journal is not None and journal.pinned is None and journal.effect is Effect.UNKNOWN
    if unclear and journal is not None and found.identity == journal.seen_before and not facts.run.asked_again:
        return AskAgain(because="the node still shows the backup from before the start")
    if stored is not None and stored.id in facts.run.read_back and _wants_copies(stored, facts):
        return _copy_out(stored)
    if stored is not None and stored.id in facts.run.read_back:
        return Delete(found, because=f"it is stored as {stored.id} and was read back")
    if found.identity == facts.run.given_up and (claim is not Claim.NONE or facts.existing != "fail"):
        return Replace(found, because="the backup on the node cannot be verified and will be replaced")
    if stored is not None:
        return Keep(found, claim, stored, because=f"it is in the vault as {stored.id} and must be read back first")
    if claim is not Claim.NONE:
        ours = "we started is" if claim in (Claim.SEEN, Claim.OPENED) else "we may have started is"
        return Keep(found, claim, because=f"the backup that {ours} on the node")
    return _foreign(found, facts)


def _foreign(found: Found, facts: Facts) -> Action:
    what = "a backup that we did not start is on the node"
    if facts.run.refusals and facts.run.own_password:
        # The refusal may have been wrong. If the password of that start opens it, it is ours.
        return Keep(found, Claim.NONE, because=f"{what}, unless the refused start made it")
    journal = facts.journal
    late = journal is not None and journal.effect is Effect.NONE and journal.pinned is None and not facts.moved
    if facts.existing == "fail" and not late and not facts.hidden:
        return Refuse(because=what)
    # It may be ours after all: of a start that took effect late, under another name or md5 than first seen, in spite
    # of a refusal, or stored under a manifest that cannot be read.
    if facts.existing == "replace" and facts.journal is None and not facts.run.refusals and not facts.hidden:
        return Replace(found, because=f"{what} and will be replaced")
    return Keep(found, Claim.NONE, because=f"{what}; it is kept first")
