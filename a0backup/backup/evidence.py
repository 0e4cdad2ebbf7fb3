"""Judge what the contents of a retrieved artifact prove about it and its password.

Pure; a table test has one row per rule.
"""

from dataclasses import dataclass
from enum import Enum

from a0backup.backup.reconcile import Claim
from a0backup.backup.start import KnownPassword
from a0backup.errors import ContentsError
from a0backup.fleet.models import Existing
from a0backup.vault.journal import Journal, NotOpened
from a0backup.vault.manifest import ManifestPassword, Mode, SealedPassword, newest_that_fit


class Verdict(Enum):
    """The verdict on a verified artifact."""

    OPENED = "a password opened it, and it was read to its end"
    FAILED = "this run made it, and it cannot be read: the node keeps it"
    NOT_READ = "no password for it is available"
    NOT_OPENED = "it cannot be read, and is kept as it is"
    FOREIGN = "nothing shows that it is ours, and what is not ours is to be left alone"


@dataclass(frozen=True)
class Judgement:
    """The verdict on an artifact, whether it is ours, and why it was not opened if that is known."""

    verdict: Verdict
    ours: bool
    why: NotOpened | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known about a verified artifact, and about who made it.

    *opened*: the mode of the password that opened it. *error*: why it cannot be read; None if no
    password was available. *claim*: how well reconcile knows that it is ours. *started_here*: this
    run sent a start. *accepted*: the reply to that start reported success. *starts*: the number of
    starts that this run sent.
    """

    opened: Mode | None
    error: ContentsError | None
    claim: Claim
    started_here: bool
    accepted: bool
    starts: int
    journal: Journal | None
    existing: Existing

    @property
    def made_here(self) -> bool:
        """Whether a start of this run made the unreadable artifact, as far as that can be known."""
        if self.claim is Claim.NONE or self.error is None or not self.started_here:
            return False
        # After one lost reply it may be somebody else's backup. Twice in one run is no coincidence.
        return self.accepted or self.error.password_fits or self.starts > 1

    @property
    def sealed_elsewhere(self) -> bool:
        """Whether an earlier run sealed the password; then it proves nothing that no available password fits."""
        if self.claim is Claim.NONE or self.error is None or self.error.password_fits or self.started_here:
            return False
        return self.journal is not None and self.journal.sealed

    @property
    def may_be_kept(self) -> bool:
        """Whether it may be kept although `existing` is `fail` and no password opens it."""
        # A sealed password of ours may open it later.
        sealed = self.journal is not None and self.journal.sealed
        return self.claim in (Claim.SEEN, Claim.OPENED) or (self.claim is Claim.GUESS and sealed)


def judge(evidence: Evidence) -> Judgement:
    """Return the judgement on the artifact."""
    error, journal, claim = evidence.error, evidence.journal, evidence.claim
    if evidence.opened is not None:
        # Only this run knows its sealed password. Anybody may know the shared one.
        return Judgement(Verdict.OPENED, ours=evidence.opened == "sealed" or claim is not Claim.NONE)
    why = _reason(error) if error is not None else None
    if evidence.made_here:
        return Judgement(Verdict.FAILED, ours=True, why=why)
    if error is None or evidence.sealed_elsewhere:
        # An earlier run knew the password and may have tried it.
        why = journal.not_opened if claim is not Claim.NONE and journal is not None else None
    fits = why is not None and why.password_fits
    if evidence.existing == "fail" and not fits and not evidence.may_be_kept:
        return Judgement(Verdict.FOREIGN, ours=False, why=why)
    if why is None:
        return Judgement(Verdict.NOT_READ, ours=claim is Claim.OPENED)
    return Judgement(Verdict.NOT_OPENED, ours=False, why=why)


def _reason(error: ContentsError) -> NotOpened:
    """Return *error* in the form that journals store."""
    return NotOpened(reason=f"{error.reason} ({type(error).__name__})", password_fits=error.password_fits)


def password_of(
    *,
    opened_by: KnownPassword | None,
    only_tried: KnownPassword | None,
    fits: bool,
    candidates: tuple[SealedPassword, ...],
    journal: Journal | None,
) -> ManifestPassword:
    """Return the manifest's entry for the password: the one that opened the artifact, or those that may open it.

    *fits*: a password opened the artifact far enough to rule out every other one. *only_tried*:
    that password, if no other was tried. *candidates*: every sealed password that may have made the
    artifact, no matter whose backup it is thought to be; a password that is missing here is lost at
    settle. A manifest holds thousands; older ones stay in their files. *journal*: the journal of this
    very backup, if it is ours.
    """
    if opened_by is not None:
        return ManifestPassword(mode=opened_by.mode, confirmed=True, sealed=opened_by.sealed)
    mode: Mode
    if fits and only_tried is not None:
        mode = only_tried.mode
    elif fits and candidates:
        mode = "sealed"
    elif journal is None:
        mode = "unknown"
    else:
        mode = "sealed" if journal.sealed else "shared"
    return ManifestPassword(mode=mode, sealed=newest_that_fit(candidates))
