"""What the contents of a retrieved artifact prove of it and of its password. Pure; a table test has a row a rule."""

from dataclasses import dataclass
from enum import Enum

from a0backup.backup.start import KnownPassword
from a0backup.errors import ContentsError
from a0backup.fleet.models import Existing
from a0backup.vault.journal import Journal, NotOpened
from a0backup.vault.manifest import ManifestPassword, Mode, SealedPassword


class Verdict(Enum):
    """What becomes of an artifact that was not read to its end."""

    FAILED = "this run made it, and it cannot be read: the node keeps it"
    NOT_READ = "no password for it is at hand"
    NOT_OPENED = "it cannot be read, and is kept as it is"
    FOREIGN = "nothing shows that it is ours, and what is not ours is to be left alone"


@dataclass(frozen=True)
class Evidence:
    """What is known of an artifact that was not read to its end, and of who made it.

    *error*: why it cannot be read; None where no password was at hand. *ours*: reconcile takes it for ours.
    *started_here*: this run sent a start, *accepted*: and its reply said that it went well, *starts*: how many it sent.
    """

    error: ContentsError | None
    ours: bool
    started_here: bool
    accepted: bool
    starts: int
    journal: Journal | None
    existing: Existing

    @property
    def made_here(self) -> bool:
        """Whether a start of this run made what cannot be read, for all that can be known."""
        if not self.ours or self.error is None or not self.started_here:
            return False
        # A lost reply leaves room for somebody else's backup once; a second time in one run it is no chance.
        return self.accepted or self.error.password_fits or self.starts > 1

    @property
    def sealed_elsewhere(self) -> bool:
        """Whether an earlier run sealed what made it: that no password at hand opens it says nothing then."""
        if not self.ours or self.error is None or self.error.password_fits or self.started_here:
            return False
        return self.journal is not None and self.journal.sealed


def judge(evidence: Evidence) -> tuple[Verdict, NotOpened | None]:
    """Return what becomes of the artifact, and why it was not opened where that is known."""
    error, journal = evidence.error, evidence.journal
    why = _reason(error) if error is not None else None
    if evidence.made_here:
        return Verdict.FAILED, why
    if error is None or evidence.sealed_elsewhere:
        # An earlier run, which knew its password, may have tried.
        why = journal.not_opened if evidence.ours and journal is not None else None
    if why is None:
        return Verdict.NOT_READ, None
    if evidence.ours and not why.password_fits and evidence.existing == "fail":
        return Verdict.FOREIGN, why
    return Verdict.NOT_OPENED, why


def _reason(error: ContentsError) -> NotOpened:
    """Return *error* as journals hold it."""
    return NotOpened(reason=f"{error.reason} ({type(error).__name__})", password_fits=error.password_fits)


def password_of(
    *,
    opened_by: KnownPassword | None,
    only_tried: KnownPassword | None,
    fits: bool,
    candidates: tuple[SealedPassword, ...],
    journal: Journal | None,
) -> ManifestPassword:
    """Return what the manifest says of the password: what opened the artifact, or what may open it.

    *fits*: whether a password opened it so far that no other can be meant, and *only_tried* is that one where no other
    was tried. *candidates*: every sealed password that may have made it, whoever it is thought to be of: whatever is
    left out here is lost at settle. *journal*: that of this very backup, where it is ours.
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
    return ManifestPassword(mode=mode, sealed=candidates)
