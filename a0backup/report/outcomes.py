"""The outcomes of node backups, and the findings of a check."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from a0backup.errors import A0BackupError, A0cliError, UnreachableError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.fields import FIRST_SPLIT_BUILD

if TYPE_CHECKING:
    from a0backup.vault.manifest import Manifest


# From build 11638 on, a full recovery needs both (vendor's page on backups): `backup` omits the encryption keys.
_HALVES = ("backup", "backup-sensitive")
NOT_COPIED = "not copied to"  # how the note about a place that failed begins
_NOT_FULLY = "an installation cannot be fully recovered from it"


class Ending(StrEnum):
    """How a node backup ended."""

    STORED = "stored"
    NOT_DELETED = "stored, not deleted on the node"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """How one node backup ended; if it failed, at which step and why."""

    node: str
    kind: str
    ending: Ending
    seconds: float
    step: str = ""
    reason: str = ""
    hint: str = ""
    id: str = ""
    size: int | None = None
    md5: str = ""
    notes: tuple[str, ...] = ()
    verified: str = ""  # how the artifact was verified: md5, or contents if it was opened and read to its end
    members: int | None = None
    unpacked_size: int | None = None
    password: str = ""  # shared, sealed or unknown
    confirmed: bool = False  # whether that password opened it

    @property
    def ok(self) -> bool:
        """Whether the artifact is stored and the node is free for its next backup."""
        return self.ending is Ending.STORED

    @property
    def is_in_every_place(self) -> bool:
        """Whether no place of copies failed to hold the artifact."""
        return not any(note.startswith(NOT_COPIED) for note in self.notes)


@dataclass(frozen=True)
class Problem:
    """What would make a run fail, and the remedy if it is known."""

    text: str
    hint: str = ""

    @classmethod
    def of(cls, error: A0BackupError) -> "Problem":
        """Return *error* as a problem of its node or fleet."""
        return cls(error.text(), error.hint())

    def lines(self) -> tuple[str, ...]:
        return (self.text, f"HINT: {self.hint}") if self.hint else (self.text,)


@dataclass(frozen=True)
class Finding:
    """What the read-only check found on one node, and what the next run would do there."""

    node: str
    ok: bool
    reachable: bool
    status: str
    would: str
    problems: tuple[Problem, ...] = ()
    teach: str = ""
    room: str = ""
    warnings: tuple[str, ...] = ()  # the run can proceed, but fix this


def outcome_of(
    node: str,
    kind: str,
    *,
    seconds: float,
    error: BaseException | None = None,
    step: str = "",
    manifest: "Manifest | None" = None,
    off_node: bool = False,
    notes: Sequence[str] = (),
) -> Outcome:
    """Return the outcome of a node backup: failed with *error* in *step* or, without an error, stored.

    *manifest* is that of this run's artifact, if it is stored. *off_node* says that the node no longer holds
    the backup.
    """
    ending, reason, hint = Ending.STORED, "", ""
    if error is not None:
        ending = Ending.FAILED
        if manifest is not None and not off_node:
            ending = Ending.NOT_DELETED
        elif isinstance(error, UnreachableError) and manifest is None:
            ending = Ending.UNREACHABLE
        reason, hint = _reason(error, step), error.hint() if isinstance(error, A0BackupError) else ""
    return Outcome(
        node=node,
        kind=kind,
        ending=ending,
        seconds=seconds,
        step=step if error is not None else "",
        reason=reason,
        hint=hint,
        id=manifest.id if manifest else "",
        size=manifest.artifact.size if manifest else None,
        md5=manifest.artifact.md5 if manifest else "",
        notes=tuple(notes),
        verified=manifest.verified.level if manifest else "",
        members=manifest.verified.members if manifest else None,
        unpacked_size=manifest.verified.unpacked_size if manifest else None,
        password=manifest.encryption.password.mode if manifest else "",
        confirmed=manifest.encryption.password.confirmed if manifest else False,
    )


def interrupted(node: str, kind: str, step: str = "") -> Outcome:
    """Return the outcome of a node backup whose run was interrupted in *step*, or before its first one."""
    reason = "interrupted" if step else "interrupted before it began"
    hint = "run again: it continues from what the node and the vault show" if step else "run again"
    return Outcome(node, kind, Ending.INTERRUPTED, 0.0, step=step, reason=reason, hint=hint)


def _reason(error: BaseException, step: str) -> str:
    """Return why it failed, without node and step: these are always shown beside it."""
    if isinstance(error, A0cliError) and (error.command == step or error.command.endswith(f"-{step}")):
        return error.what()
    return error.text() if isinstance(error, A0BackupError) else f"{type(error).__name__}: {error}"


def halves(node: str, kinds: Sequence[str], *, splits: bool, outcomes: Iterable[Outcome] | None = None) -> str:
    """Return the warning that only one half of *node* is kept; empty if both are, or if no half is wanted.

    *kinds* are those made of the node. *splits* says that its build keeps the encryption keys out of `backup`,
    as declared or because it offers backup-sensitive. *outcomes* are those of a run, of any nodes; without them,
    only *kinds* is checked.
    """
    wanted = [half for half in _HALVES if half in kinds]
    if not splits or not wanted:
        return ""
    if len(wanted) == 1:
        [missing] = set(_HALVES) - set(wanted)
        why = "the node's build keeps the encryption keys out of backup"
        remedy = f"add {missing} to `kinds` in fleet.yaml; a `build` there must be {FIRST_SPLIT_BUILD} or later"
        return f"{wanted[0]} is made without {missing}, and {why}: {_NOT_FULLY}; {remedy}"
    stored = {outcome.kind for outcome in outcomes or () if outcome.node == node and outcome.id}
    kept = [half for half in _HALVES if half in stored]
    if len(kept) != 1:
        return ""
    [missing] = set(_HALVES) - stored
    return f"this run stored its {kept[0]} without its {missing}: {_NOT_FULLY}"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 if every node backup succeeded, 1 if none did or there is none, 3 if some did."""
    return code_of([outcome.ok for outcome in outcomes])


def check_exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 if every node is ok, 1 if none is or there is none, 3 if some are."""
    return code_of([finding.ok for finding in findings])


def code_of(ok: Sequence[bool]) -> int:
    if not any(ok):
        return ExitCode.FAILED
    return ExitCode.OK if all(ok) else ExitCode.SOME_FAILED
