"""Prune: remove from the vault what no reason keeps, then from the places what was pruned from the vault.

ended = await prune_node(vault, retention, "a0-1", approved=plan.approved_of("a0-1"), now=now)
ended = await prune_place(place, fleet, now=now)
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from a0backup.errors import A0BackupError, PlaceArtifactError, PlaceDeniedError, PlaceError, PruneRefusedError
from a0backup.files import in_thread, raise_if_stopped
from a0backup.fleet.models import Fleet
from a0backup.fleet.retention import Retention
from a0backup.places.copying import manifest_path, read_small
from a0backup.places.places import Place, Places
from a0backup.places.records import forget_read, not_found_whole, was_used
from a0backup.places.store import Store
from a0backup.places.transfer import Transfer
from a0backup.places.verifying import IN_VAULT, Listing
from a0backup.retention.planning import Plan, Stored, add_node, kept, read_stored, too_many, unfinished_of
from a0backup.vault.drilled import DRILLED, MAX_DRILLED_BYTES, Drilled
from a0backup.vault.lock import node_lock
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES
from a0backup.vault.pinned import PINNED
from a0backup.vault.pruned import Pruned, Record, artifact_name, begun, finish, remove_night, take_back
from a0backup.vault.vault import Vault, kind_of, time_of

_MOST_DENIED = 5  # removals that a place refuses, before it is asked no more
WAITS = 60.0  # seconds for the lock of a node; a run that takes longer is followed by the next prune
Told = Callable[[str, str], None]


@dataclass
class PrunedHere:
    """What was pruned of one node, or in one place: ids removed, ids kept after all and why, and what failed.

    *refusal*: why a place does not let anything be removed; that is no failure.
    """

    where: str
    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    refusal: str = ""
    error: str = ""

    def text(self) -> str:
        """Return the result in one line."""
        parts = [f"{len(self.removed)} removed"]
        if self.kept:
            parts.append(f"{len(self.kept)} kept after all: {next(iter(self.kept.values()))}")
        if self.refusal:
            parts.append(f"does not let its artifacts be removed: {self.refusal}")
        return f"{self.where}: {', '.join(parts)}" + (f"; {self.error}" if self.error else "")


def _silent(artifact_id: str, text: str) -> None:
    pass


# -- the vault ---------------------------------------------------------------------------------------------------------


async def prune_node(
    vault: Vault,
    retention: Retention,
    node: str,
    *,
    approved: Collection[str],
    now: datetime,
    force: bool = False,
    told: Told = _silent,
) -> PrunedHere:
    """Remove of *node* what still nothing keeps, and only what is *approved*; end the removals that a kill has cut.

    The plan is made again under the node's lock: a run, or a pin, may have come meanwhile. An artifact whose removal
    was cut before it was touched is planned anew, too. What fails is in the result.
    """
    ended = PrunedHere(node)
    try:
        vault.require_no_links(node)
        async with node_lock(vault.folder(node), node=node, run="prune", deadline=WAITS):
            await in_thread(_prune_locked, vault, retention, node, set(approved), now, force, ended, told)
    except A0BackupError as error:
        ended.error = error.text()
    except OSError as error:
        ended.error = f"{error.filename or vault.folder(node)}: {error.strerror}"
    return ended


def _prune_locked(
    vault: Vault,
    retention: Retention,
    node: str,
    approved: set[str],
    now: datetime,
    force: bool,
    ended: PrunedHere,
    told: Told,
) -> None:
    plan, record = Plan(), Record(vault)
    if not unfinished_of(vault, node):
        for artifact_id in begun(vault, node, but={entry.id for entry in vault.entries(node)}):
            take_back(vault, artifact_id)
    add_node(plan, vault, node, retention, now=now, doubted=not_found_whole(vault, IN_VAULT))
    if plan.refusals and not force:
        raise PruneRefusedError(plan.refusals)
    record.require_writable(node)  # before anything goes
    for artifact_id in plan.begun:
        with _noting_failure(ended):
            finish(vault, artifact_id, record, now=now)
            told(artifact_id, "the removal that was interrupted is done")
            ended.removed.append(artifact_id)
    for night in filter(approved.issuperset, plan.nights):
        raise_if_stopped()
        with _noting_failure(ended):
            if reason := remove_night(vault, night, record, now=now):
                ended.kept |= dict.fromkeys(night, reason)
                continue
            ended.removed += night
            for artifact_id in night:
                told(artifact_id, "removed")
    if ended.removed:
        forget_read(vault, IN_VAULT, ended.removed)


@contextmanager
def _noting_failure(ended: PrunedHere) -> Iterator[None]:
    """Note that what the block removes cannot be removed: one artifact, such as a protected one, keeps no other."""
    try:
        yield
    except OSError as error:
        ended.error = ended.error or f"{error.filename or ended.where}: {error.strerror}"


# -- a place -----------------------------------------------------------------------------------------------------------


async def look_at_place(
    place: Place, fleet: Fleet, removals: Collection[str], *, now: datetime, force: bool = False
) -> PrunedHere:
    """Return what `prune_place` would remove in *place* once *removals* are pruned from the vault; change nothing."""
    return await _in_place(place, fleet, now, force, _silent, would_go=set(removals))


async def prune_place(
    place: Place, fleet: Fleet, *, now: datetime, force: bool = False, told: Told = _silent
) -> PrunedHere:
    """Remove in *place* what was pruned from the vault, unless the place's own retention keeps it.

    What the vault has merely lost is never removed. Without *force*, nothing is if more than `prune_most` of a node's
    artifacts here would go. What fails is in the result.
    """
    ended = await _in_place(place, fleet, now, force, told)
    if ended.removed:
        try:
            await in_thread(forget_read, place.vault, place.copy.name, ended.removed)
        except OSError as error:
            ended.error = f"what was removed cannot be recorded: {error.strerror}"
    return ended


async def _in_place(
    place: Place, fleet: Fleet, now: datetime, force: bool, told: Told, would_go: Collection[str] | None = None
) -> PrunedHere:
    ended = PrunedHere(place.copy.name)
    rules = place.copy.retention or fleet.retention
    if rules is None or not await in_thread(was_used, place.vault, place.copy):
        return ended  # the first copy makes it this vault's
    transfer = place.new_transfer()
    pruner = _PlacePruner(place, fleet, rules, now, transfer, ended, told, would_go)
    try:
        await place.ask(partial(pruner.run, force=force), transfer)
    except PruneRefusedError as error:
        ended.error = f"{error.text()}; {error.hint()}"
    except PlaceDeniedError as error:
        ended.refusal = error.reason
    except PlaceError as error:
        ended.error = error.reason
    return ended


class _PlacePruner:
    """One prune of one place; with *would_go*, the ids that the vault is about to lose, it only looks."""

    def __init__(
        self,
        place: Place,
        fleet: Fleet,
        rules: Retention,
        now: datetime,
        transfer: Transfer,
        ended: PrunedHere,
        told: Told,
        would_go: Collection[str] | None,
    ) -> None:
        self._looks, self._would_go = would_go is not None, would_go or ()
        self._vault, self._copy, self._rules = place.vault, place.copy, rules
        self._nodes = {node.name for node in fleet.nodes}
        self._now, self._transfer, self._ended, self._told = now, transfer, ended, told
        self._record = Record(place.vault)
        self._denied = 0
        self._doubted = not_found_whole(place.vault, place.copy.name)

    def run(self, store: Store, *, force: bool) -> None:
        """Remove what was pruned. Raise PlaceError, PruneRefusedError."""
        listing = Listing(store.entries())
        of_node: defaultdict[str, list[str]] = defaultdict(list)
        for artifact_id in listing.artifacts:
            of_node[artifact_id.partition("/")[0]].append(artifact_id)
        gone: list[str] = []
        refusals: list[str] = []
        for node, ids in sorted(of_node.items()):
            pruned = [each for each in sorted(ids) if each in self._record or each in self._would_go]
            if pruned and node in self._nodes:
                kept_here = self._kept(store, listing, node, pruned)
                gone += [each for each in pruned if each not in kept_here]
                there = [each for each in ids if MANIFEST in listing.artifacts[each]]
                refusals += too_many(node, len({*there} & {*gone}), len(there), self._rules)
        if refusals and not force:
            raise PruneRefusedError(refusals)
        for artifact_id in gone:
            self._remove(store, artifact_id, listing.artifacts[artifact_id])

    def _kept(self, store: Store, listing: Listing, node: str, pruned: Sequence[str]) -> Collection[str]:
        """Return the ids of those of *pruned* that stay in this place."""
        lines = self._record.of_node(node)
        stored = {each.id: each for each in read_stored(self._vault, node, now=self._now) if not each.flaw}
        going = {each: stored.pop(each) for each in pruned if each in self._would_go and each in stored}
        pruned_here = [
            going[each]._replace(drilled_at=drilled) if each in going else _as_stored(lines.get(each), each, drilled)
            for each in pruned
            for drilled in [self._drilled(store, each, listing)]
        ]
        in_vault = [each for each in stored.values() if self._is_whole(each, listing.artifacts.get(each.id, {}))]
        whole = [each for each in pruned_here if self._is_whole(each, listing.artifacts[each.id])]
        stay = set(self._stay([*whole, *in_vault]))
        if self._copy.retention is None:
            return stay
        # What is damaged takes no other's place. It goes where it would go if it were whole, as the rest of a removal
        # that was cut does; otherwise it may be all that is left of it anywhere.
        for each in set(self._stay([*pruned_here, *in_vault])) - stay:
            if each in pruned and artifact_name(each) in listing.artifacts[each]:
                self._ended.kept[each] = f"{each}: it is damaged here, and would stay if it were whole"
                stay.add(each)
        return stay

    def _stay(self, there: Sequence[Stored]) -> Collection[str]:
        if self._copy.retention is not None:
            return kept(there, self._copy.retention, now=self._now)
        return _last_ones(there, self._rules.keep_min)

    def _is_whole(self, stored: Stored, files: Mapping[str, int]) -> bool:
        """Return whether the artifact is whole here, as far as a listing and the last verification tell."""
        size = files.get(artifact_name(stored.id))
        return MANIFEST in files and size is not None and stored.size in (None, size) and stored.id not in self._doubted

    def _drilled(self, store: Store, artifact_id: str, listing: Listing) -> datetime | None:
        if DRILLED not in listing.artifacts[artifact_id]:
            return None
        try:
            content = read_small(store, f"{artifact_id}/{DRILLED}", MAX_DRILLED_BYTES)
        except PlaceArtifactError:
            return None  # a link or a bad sector in its place
        drilled = Drilled.parsed(content or b"")
        return drilled.drilled_at if drilled is not None and drilled.passed else None

    def _remove(self, store: Store, artifact_id: str, files: Collection[str]) -> None:
        raise_if_stopped()
        self._transfer.alive()
        if reason := self._doubt(store, artifact_id, files):
            self._ended.kept[artifact_id] = f"{artifact_id}: {reason}"
            return
        if self._looks:
            self._ended.removed.append(artifact_id)
            return
        # As in the vault: the manifest first, so that nothing takes the rest for a backup.
        try:
            for name in (MANIFEST, artifact_name(artifact_id), f"{MANIFEST}.sig", DRILLED, PINNED):
                if name in files:
                    store.remove(f"{artifact_id}/{name}")
                    self._transfer.alive()
        except PlaceDeniedError as error:
            # One may be locked, and the others not; but a place that removes nothing is not asked for everything.
            self._denied += 1
            if self._denied == _MOST_DENIED:
                raise
            self._ended.refusal = error.reason
            return
        except PlaceArtifactError as error:
            self._ended.kept[artifact_id] = error.reason  # about this one: the others can go
            return
        self._ended.removed.append(artifact_id)
        self._told(artifact_id, f"removed in {self._copy.name}")

    def _doubt(self, store: Store, artifact_id: str, files: Collection[str]) -> str:
        """Return why the artifact in the place may not be what was pruned; empty if it is."""
        line = self._record.of_node(artifact_id.partition("/")[0]).get(artifact_id)
        if MANIFEST not in files:
            return ""  # an earlier prune has begun to remove it
        if artifact_id in self._would_go:
            return ""  # its line in the record is written when it goes
        if line is None or line.manifest is None:
            return "the record does not tell which artifact was pruned"
        try:
            content = read_small(store, manifest_path(artifact_id), MAX_MANIFEST_BYTES)
        except PlaceArtifactError as error:
            return error.reason
        if content is not None and hashlib.sha256(content).hexdigest() != line.manifest:
            return "its manifest here is not that of what was pruned"
        return ""


def _as_stored(line: Pruned | None, artifact_id: str, drilled_at: datetime | None) -> Stored:
    kind, at = kind_of(artifact_id), time_of(artifact_id)
    if line is None:
        return Stored(artifact_id, kind, at, drilled_at=drilled_at)
    opened = line.level == "contents"
    return Stored(artifact_id, kind, at, line.flow_run, line.ours, opened, drilled_at=drilled_at, size=line.size)


def _last_ones(stored: Sequence[Stored], number: int) -> set[str]:
    """Return the newest *number* ids of each kind, and the newest whose drill passed."""

    def ids() -> Iterator[str]:
        for kind in {each.kind for each in stored}:
            newest_first = sorted((each for each in stored if each.kind == kind), key=lambda e: e.at, reverse=True)
            yield from (each.id for each in newest_first[:number])
            yield from [each.id for each in newest_first if each.drilled_at is not None][:1]

    return set(ids())


# -- all of it ---------------------------------------------------------------------------------------------------------


async def prune_everything(
    vault: Vault, fleet: Fleet, plan: Plan, *, now: datetime, force: bool = False, told: Told = _silent
) -> list[PrunedHere]:
    """Do what *plan* says, node by node, then in all places at once; return what became of each."""
    retention = fleet.retention
    if retention is None:
        return []
    results = [
        await prune_node(vault, retention, node, approved=plan.approved_of(node), now=now, force=force, told=told)
        for node in plan.nodes()
    ]
    return results + await asyncio.gather(
        *(prune_place(place, fleet, now=now, force=force, told=told) for place in Places.of(fleet))
    )


async def look_at_places(fleet: Fleet, plan: Plan, *, now: datetime, force: bool = False) -> list[PrunedHere]:
    """Return what `prune_everything` would remove in each place; change nothing."""
    places = Places.of(fleet)
    return await asyncio.gather(*(look_at_place(place, fleet, plan.removals, now=now, force=force) for place in places))
