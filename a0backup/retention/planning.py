"""What becomes of each artifact when the vault is pruned, and every reason to keep it.

plan = plan_vault(Vault(fleet.vault), fleet, now=now)
for decision in plan.decisions: ...

Nothing here changes anything. An artifact that no reason keeps is removed; what cannot be read or is
damaged stays, is named, and counts for nothing: it never makes another one go.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from a0backup.fleet.models import Fleet
from a0backup.fleet.retention import Retention
from a0backup.places.records import not_found_whole
from a0backup.places.verifying import IN_VAULT
from a0backup.retention.policy import reasons_to_keep
from a0backup.vault.drilled import DRILLED, read_drilled
from a0backup.vault.manifest import Manifest, UnreadableManifest
from a0backup.vault.pinned import PINNED, reason_to_keep
from a0backup.vault.pruned import begun
from a0backup.vault.vault import CLOCKS_DIFFER, NO_TIME, Vault, time_of, visible_flaw

_ONE_RUN = timedelta(hours=12)  # from the first to the last kind that one run makes
_ONE_NIGHT = timedelta(hours=6)  # between the kinds of a night that one run began and another one ended
_UNFINISHED = re.compile(r"(?:journal|deleting)-.+\.json")
_NO_RULE = "no rule keeps it"
_DOUBTED = "the last verification did not find it whole"


class Stored(NamedTuple):
    """What decides about one artifact. *flaw*: why it is damaged or cannot be read; then nothing else is known."""

    id: str
    kind: str = ""
    at: datetime = NO_TIME  # by its id: the start, or when a foreign one was stored
    flow_run: str = ""
    ours: bool = True
    opened: bool = False  # its contents were verified, and no later drill failed
    pin: str = ""
    drilled_at: datetime | None = None  # the last drill, if it passed
    flaw: str = ""
    size: int | None = None  # bytes


@dataclass(frozen=True)
class Decision:
    """What becomes of one artifact, and why."""

    id: str
    action: Literal["keep", "remove"]
    reasons: tuple[str, ...]


@dataclass
class Plan:
    """What becomes of each artifact of a vault, why nothing at all may go, and the removals to be ended."""

    decisions: list[Decision] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)  # ids of artifacts whose removal a kill has cut
    nights: list[list[str]] = field(default_factory=list)  # the removals of each night: they go together

    @property
    def removals(self) -> list[str]:
        """The ids of the artifacts that go."""
        return [decision.id for decision in self.decisions if decision.action == "remove"]

    def approved_of(self, node: str) -> list[str]:
        """Return the ids of *node* that may go: also those whose removal was cut, as they may still be whole."""
        return [each for each in self._approved if each.startswith(f"{node}/")]

    def nodes(self) -> list[str]:
        """Return the nodes of which something goes, sorted."""
        return sorted({each.partition("/")[0] for each in self._approved})

    @property
    def _approved(self) -> list[str]:
        return [*self.removals, *self.begun]


def plan_vault(vault: Vault, fleet: Fleet, retention: Retention, *, now: datetime) -> Plan:
    """Return what becomes of every artifact in the vault of *fleet*. Raise OSError."""
    plan = Plan()
    named = {node.name for node in fleet.nodes}
    doubted = not_found_whole(vault, IN_VAULT)
    for node in vault.nodes():
        add_node(plan, vault, node, retention, now=now, doubted=doubted, is_named=node in named)
    return plan


def add_node(
    plan: Plan,
    vault: Vault,
    node: str,
    retention: Retention,
    *,
    now: datetime,
    doubted: Container[str],
    is_named: bool = True,
) -> None:
    """Add to *plan* what becomes of the artifacts of *node*; one that fleet.yaml does not name is left alone.

    *doubted* are the ids that the last verification did not find whole.
    """
    stored = list(read_stored(vault, node, now=now, doubted=doubted))
    unfinished = unfinished_of(vault, node)
    whole = [each for each in stored if not each.flaw]
    reasons = kept(whole, retention, now=now)
    removed: set[str] = set()
    for each in stored:
        why = [*reasons.get(each.id, ())]
        if each.flaw:
            why = [f"left as it is: {each.flaw}"]
        if unfinished:
            why.append(f"the node has an unfinished backup ({unfinished})")
        if not is_named:
            why.append("fleet.yaml does not name this node")
        if not why:
            removed.add(each.id)
        plan.decisions.append(Decision(each.id, "keep" if why else "remove", tuple(why or [_NO_RULE])))
    # A kept artifact keeps its night, so that all of a night or nothing of it is in *removed*.
    plan.nights += [[each.id for each in night] for night in nights(whole) if night[0].id in removed]
    if is_named and not unfinished:
        plan.begun += begun(vault, node, but={each.id for each in stored})
        if removed:
            plan.refusals += _refusals(node, [each.id for each in stored], len(removed), retention, now=now)


def _refusals(node: str, ids: Sequence[str], removed: int, retention: Retention, *, now: datetime) -> Iterator[str]:
    newest = max(ids, key=time_of)  # a text that is no time, such as 99999999T…, would hide one in the future
    if time_of(newest) > now + CLOCKS_DIFFER:
        yield f"{node}: the newest artifact, {newest}, lies in the future: a clock is or was wrong"
    yield from too_many(node, removed, len(ids), retention)


def too_many(node: str, removed: int, number: int, retention: Retention) -> Iterator[str]:
    """Yield why so many of the *number* artifacts of *node* do not go at once, if they do not."""
    if removed > retention.prune_most * number:
        most = f"prune_most ({retention.prune_most:.0%})"
        yield f"{node}: {removed} of {number} artifacts would go at once, more than {most}"


def unfinished_of(vault: Vault, node: str) -> str:
    """Return what says that a backup of *node* is unfinished, or may be; empty if nothing does."""
    try:
        names = sorted(entry.name for entry in os.scandir(vault.folder(node)) if _UNFINISHED.match(entry.name))
    except OSError as error:
        return f"perhaps: its folder cannot be read: {error.strerror}"
    return names[0] if names else ""


def read_stored(vault: Vault, node: str, *, now: datetime, doubted: Container[str] = ()) -> Iterator[Stored]:
    """Yield what decides about each artifact of *node*, oldest first."""
    for entry in vault.entries(node):
        if isinstance(entry, UnreadableManifest):
            yield Stored(entry.id, flaw=entry.reason)
        elif time_of(entry.id) == NO_TIME:
            yield Stored(entry.id, flaw="its id names no time")
        elif flaw := visible_flaw(vault, entry) or (_DOUBTED if entry.id in doubted else ""):
            yield Stored(entry.id, flaw=flaw)
        else:
            yield _stored(vault, entry, now)


def _stored(vault: Vault, manifest: Manifest, now: datetime) -> Stored:
    folder = f"{vault.root}/{manifest.id}"  # no Path: a vault may have 100,000 of them
    drilled = read_drilled(Path(folder)) if os.path.lexists(f"{folder}/{DRILLED}") else None
    return Stored(
        manifest.id,
        manifest.kind,
        time_of(manifest.id),
        manifest.flow_run,
        manifest.started_at is not None,
        manifest.verified.level == "contents" and (drilled is None or drilled.passed),
        reason_to_keep(Path(folder), now) if os.path.lexists(f"{folder}/{PINNED}") else "",
        drilled.drilled_at if drilled and drilled.passed else None,
        size=manifest.artifact.size,
    )


# -- the reasons -------------------------------------------------------------------------------------------------------


def kept(stored: Sequence[Stored], retention: Retention, *, now: datetime) -> dict[str, list[str]]:
    """Return every reason to keep each of *stored*, the whole artifacts of one node; what is not in it goes."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for of_kind in _by_kind(stored).values():
        times = {each.id: each.at for each in of_kind if each.ours}
        for artifact_id, why in reasons_to_keep(times, retention, now=now).items():
            reasons[artifact_id] += why
        for artifact_id, reason in _of_safety(of_kind, retention):
            reasons[artifact_id].append(reason)
    _keep_nights_whole(reasons, stored)
    return reasons


def _by_kind(stored: Iterable[Stored]) -> Mapping[str, list[Stored]]:
    """Return the artifacts of each kind, newest first."""
    kinds: defaultdict[str, list[Stored]] = defaultdict(list)
    for each in sorted(stored, key=lambda each: (each.at, each.id), reverse=True):
        kinds[each.kind].append(each)
    return kinds


def _of_safety(newest_first: Sequence[Stored], retention: Retention) -> Iterator[tuple[str, str]]:
    """Yield what keeps artifacts of one kind whatever the rules say."""
    for each in [each for each in newest_first if each.opened][:1]:
        yield each.id, "newest with verified contents"
    # Where too few were opened, others are better than none.
    best_first = sorted((each for each in newest_first if each.ours), key=lambda each: not each.opened)
    for each in best_first[: retention.keep_min]:
        yield each.id, f"keep_min: one of the newest {retention.keep_min}"
    drilled = [each for each in newest_first if each.drilled_at is not None]
    for each in drilled[:1]:
        yield each.id, "newest whose drill passed"
    for each in newest_first:
        if not each.ours:
            yield each.id, "not made by this vault's runs"
        if each.pin:
            yield each.id, each.pin


def _keep_nights_whole(reasons: dict[str, list[str]], stored: Iterable[Stored]) -> None:
    for night in nights(stored):
        because = next((each.id for each in night if reasons.get(each.id)), None)
        if because is None:
            continue
        for each in night:
            if not reasons.get(each.id):
                reasons[each.id] = [f"of one night with {because.partition('/')[2]}"]


def nights(stored: Iterable[Stored]) -> list[list[Stored]]:
    """Return the artifacts of one node, by night.

    One night is what one run stored of backups that began within twelve hours. Where a run was
    stopped and another one ended its work, two such groups are one night if they have no kind in
    common and began within six hours. A foreign artifact is a night of its own.
    """
    groups: list[list[Stored]] = []
    by_run: dict[str, list[Stored]] = {}
    for each in sorted(stored, key=lambda each: (each.at, each.id)):
        group = by_run.get(each.flow_run) if each.ours else None
        if group is not None and each.at - group[0].at < _ONE_RUN:
            group.append(each)
            continue
        groups.append([each])
        if each.ours:
            by_run[each.flow_run] = groups[-1]
    return _joined(groups)


def _joined(groups: Iterable[list[Stored]]) -> list[list[Stored]]:
    """Return *groups*, oldest first, with the parts of a night that two runs made put together."""
    joined: list[list[Stored]] = []
    for group in groups:
        last = joined[-1] if joined else []
        both = Counter(each.kind for each in (*last, *group))
        is_one = last and max(both.values()) == 1 and all(each.ours for each in (*last, *group))
        if is_one and group[0].at - last[0].at <= _ONE_NIGHT:
            last += group
        else:
            joined.append(group)
    return joined
