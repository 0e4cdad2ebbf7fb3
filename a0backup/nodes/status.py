"""What the vault tells of each node and kind: how old the newest backup is, and what is unfinished, held or lacking.

Nothing is asked of a node, a place or the engine, so it is right after any restart, and when nothing ever ran.
"""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from a0backup.backup.deletion import DeletionMark
from a0backup.errors import VaultUnusableError
from a0backup.files import UnsuitableFileError, read_whole
from a0backup.fleet.models import Fleet, Node
from a0backup.places.records import kept_in_places, lacking, not_found_whole
from a0backup.places.verifying import IN_VAULT
from a0backup.report.words import plain
from a0backup.upkeep.comparison import losses_of
from a0backup.upkeep.drill_age import LastDrill, drill_warnings, last_drill
from a0backup.upkeep.freshness import Newest, find_newest, judge
from a0backup.vault.journal import JournalFile
from a0backup.vault.known_vault import is_there
from a0backup.vault.lock import is_held, read_holder
from a0backup.vault.quarantine import kept_damaged, quarantined
from a0backup.vault.vault import Vault

_MAX_REASON = 4 << 20  # bytes, with the sealed passwords of many starts


@dataclass(frozen=True)
class KindStatus:
    """One kind of a node, as the vault shows it; *age* and *max_age* in seconds.

    *drilled*: the last drill, by `id`, `at`, `passed` and `problem`. *problems* say why it is not fresh, *warnings*
    what a person should look at, *notes* what is good to know. *error*
    says why nothing is known: then nothing else is set.
    """

    node: str
    kind: str
    last: str | None = None
    age: int | None = None
    taken_at: str | None = None
    max_age: float | None = None
    fresh: bool | None = None
    journal: str | None = None
    holder: str | None = None
    quarantine: str | None = None
    damaged: list[str] | None = None
    behind: Mapping[str, int] | None = None
    drilled: Mapping[str, object] | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.node} {self.kind}"


def fleet_status(fleet: Fleet, now: datetime) -> list[KindStatus]:
    """Return the status of each node and kind that *fleet* makes.

    Before the first run there is no vault, and each kind has no backup. Raise UnknownVaultError if a vault that was
    used is not there.
    """
    notes = [] if is_there(fleet) else [_no_vault(fleet)]
    doubted = not_found_whole(Vault(fleet.vault), IN_VAULT)
    rows = [_readable(fleet, node, kind, now, doubted) for node in fleet.nodes for kind in fleet.kinds_of(node)]
    return [replace(row, notes=notes) for row in rows]


def _no_vault(fleet: Fleet) -> str:
    lost = "; if it is lost, `a0backup verify --repair` brings it back from its copies" if fleet.copies else ""
    return f"there is no vault at {fleet.vault} yet: the first run makes it{lost}"


def _readable(fleet: Fleet, node: Node, kind: str, now: datetime, doubted: Container[str]) -> KindStatus:
    try:
        Vault(fleet.vault).require_no_links(node.name)
        return _status(fleet, node, kind, now, doubted)
    except VaultUnusableError as error:
        return KindStatus(node.name, kind, error=error.text())
    except OSError as error:
        return KindStatus(node.name, kind, error=f"{error.filename}: {error.strerror}")


def _status(fleet: Fleet, node: Node, kind: str, now: datetime, doubted: Container[str]) -> KindStatus:
    vault = Vault(fleet.vault)
    ids = vault.ids(node.name, kind)
    newest = find_newest(vault, ids, now=now, doubted=doubted)
    lacked = lacking(vault, ids, fleet.copies)
    judged = judge(newest, lacking=lacked, max_age=fleet.max_age_of(node), now=now)
    last = last_drill(vault, ids, now=now)
    of_newest = last_drill(vault, [newest.last.id] if newest.last is not None else [], now=now)
    warnings = [*judged.warnings, *drill_warnings(last, of_newest, ids, max_age=fleet.drills.max_age, now=now)]
    if newest.last is not None:
        warnings += losses_of(vault, newest.last, fleet.drills.shrink)
    return KindStatus(
        node=node.name,
        kind=kind,
        last=_last(newest),
        age=judged.age,
        taken_at=f"{judged.taken_at:%Y-%m-%dT%H:%M:%SZ}" if judged.taken_at else None,
        max_age=judged.max_age,
        fresh=judged.fresh,
        journal=_unfinished(vault, node.name, kind),
        holder=_holder(vault, node.name),
        quarantine=_quarantine(vault, node.name, kind),
        damaged=[
            *map(str, kept_damaged(vault, node.name, kind)),
            *kept_in_places(vault, fleet.copies, node.name, kind),
        ],
        behind={place: len(each) for place, each in lacked.items()},
        drilled=_drilled(last),
        problems=list(judged.problems),
        warnings=warnings,
    )


def _drilled(last: LastDrill | None) -> dict[str, object] | None:
    if last is None:
        return None
    drilled = last.drilled
    at = f"{drilled.drilled_at:%Y-%m-%dT%H:%M:%SZ}"
    return {"id": last.id, "at": at, "passed": drilled.passed, "problem": drilled.problem}


def _last(newest: Newest) -> str | None:
    """Return the last artifact; one that this vault is not known to have started is marked, with the last that is."""
    last, known = newest.last, newest.known
    if last is None or last.started_at is not None:
        return last.id if last else None
    return f"{last.id} (not known to be started by this vault; the last that is: {known.id if known else 'none'})"


def _unfinished(vault: Vault, node: str, kind: str) -> str | None:
    """Return what a run has begun and not ended: a backup, a deletion, or both."""
    parts = [_started(vault, node, kind)]
    if DeletionMark(vault.folder(node), kind).is_there():
        parts.append("a deletion was sent and is not confirmed; the next start waits for it first")
    return "; ".join(filter(None, parts)) or None


def _started(vault: Vault, node: str, kind: str) -> str | None:
    try:
        journal = JournalFile(vault.folder(node), kind).read()
    except ValueError as error:
        return f"the journal cannot be read, the next run sets it aside ({error})"
    if journal is None:
        return None
    last = f"; last: {plain(journal.history[-1].what)}" if journal.history else ""
    return f"started {journal.started_at:%Y-%m-%dT%H:%M:%SZ} by run {plain(journal.flow_run)}{last}"


def _holder(vault: Vault, node: str) -> str | None:
    """Return who holds the node's lock."""
    lock = vault.folder(node) / "lock"
    return str(read_holder(lock) or "a process that has not written its name yet") if is_held(lock) else None


def _quarantine(vault: Vault, node: str, kind: str) -> str | None:
    """Return where the last retrieval is that could not be verified, and why."""
    folders = quarantined(vault, node, kind)
    if not folders:
        return None
    try:
        reason = json.loads(read_whole(folders[-1] / "reason.json", _MAX_REASON))["reason"]
    except (OSError, UnsuitableFileError, ValueError, KeyError, TypeError, RecursionError):
        reason = "reason.json cannot be read"
    return f"{folders[-1]}: {plain(str(reason))}"
