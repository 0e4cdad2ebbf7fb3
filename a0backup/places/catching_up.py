"""Bring a place to what the vault has: copy what it lacks, the newest first; and bring back records of drills.

caught_up = await catch_up(place, manifests)
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from a0backup.errors import PlaceDeniedError, PlaceError, VaultError
from a0backup.files import in_thread
from a0backup.places.copying import artifact_path, manifest_path
from a0backup.places.drills import drill_path, fetch_drills
from a0backup.places.pins import share_pins
from a0backup.places.places import TOLD_EVERY, Place
from a0backup.places.records import is_proven
from a0backup.places.store import Store
from a0backup.places.transfer import Transfer
from a0backup.report.words import counted, human_size
from a0backup.vault.manifest import Manifest
from a0backup.vault.pinned import PINNED
from a0backup.vault.pruned import Record

log = logging.getLogger(__name__)


@dataclass
class CaughtUp:
    """What became of one place: the ids that it holds, those that were copied now, and why others were not."""

    place: str
    held: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # reasons, by id
    error: PlaceError | None = None  # what stopped the place as a whole
    drilled: list[str] = field(default_factory=list)  # whose records of a drill were brought to the vault

    @property
    def is_behind(self) -> bool:
        """Whether the place lacks an artifact."""
        return bool(self.failed) or self.error is not None

    def text(self) -> str:
        """Return the result in one line."""
        counts = f"{len(self.copied)} copied, {len(self.held)} held already"
        if self.drilled:
            counts += f", {counted(len(self.drilled), 'record')} of drills brought to the vault"
        if not self.is_behind:
            return f"{self.place}: {counts}"
        missing = f"{len(self.failed)} missing" if self.failed else "not known what is missing"
        reason = self.error.reason if self.error else next(iter(self.failed.values()))
        return f"{self.place}: {counts}, {missing}: {reason}"


async def catch_up(
    place: Place, manifests: Sequence[Manifest], told: Callable[[str, str], None] = lambda artifact_id, text: None
) -> CaughtUp:
    """Copy each artifact that the place lacks, or where it is not proven, the newest first; at most `at_most` at once.

    *told* receives the id of each artifact that is copied with its result and, about every ten
    seconds, with the bytes that have moved. The place's own listing decides what it holds, where it
    may be listed.
    """
    result = CaughtUp(place.copy.name)
    try:
        listed = await place.ask(_listed, place.new_transfer())
    except PlaceError as error:
        result.error = error
        return result
    await _bring_drills(place, [each.id for each in manifests if drill_path(each.id) in (listed or ())], result)
    lacking: list[Manifest] = []
    for manifest in sorted(manifests, key=lambda manifest: manifest.stored_at, reverse=True):
        if await in_thread(is_proven, place.vault, manifest.id, place.copy) and _is_listed(manifest, listed):
            result.held.append(manifest.id)
        else:
            lacking.append(manifest)
    queue = iter(lacking)

    under_way: dict[str, tuple[Manifest, Transfer]] = {}

    async def report() -> None:
        while True:
            await asyncio.sleep(TOLD_EVERY)
            for artifact_id, (manifest, transfer) in under_way.items():
                size = human_size(manifest.artifact.size)
                told(artifact_id, f"{human_size(transfer.moved)} moved (of {size}, sent and read back)")

    async def work() -> None:
        for manifest in queue:
            transfer = place.new_transfer()
            under_way[manifest.id] = manifest, transfer
            try:
                _, sent = await place.bring(manifest, transfer)
            except (PlaceError, VaultError) as error:
                await in_thread(_fail, place, manifest.id, error, result, told)
            else:
                (result.copied if sent else result.held).append(manifest.id)
                told(manifest.id, "copied" if sent else "was there, and is whole")
            finally:
                del under_way[manifest.id]

    reporter = asyncio.create_task(report())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(place.copy.at_most):
                group.create_task(work())
    finally:
        reporter.cancel()
    await _share_pins(place, result)
    return result


def _fail(
    place: Place, artifact_id: str, error: PlaceError | VaultError, result: CaughtUp, told: Callable[[str, str], None]
) -> None:
    """Add the failure to *result*, unless the artifact was pruned meanwhile: the next prune ends it in the place."""
    if artifact_id not in Record(place.vault):
        result.failed[artifact_id] = error.reason if isinstance(error, PlaceError) else error.text()
        told(artifact_id, f"not copied: {result.failed[artifact_id]}")


async def _bring_drills(place: Place, ids: Sequence[str], result: CaughtUp) -> None:
    """Bring the records of drills of *ids* to the vault; a failure is logged, as the place lacks nothing by it."""
    try:
        if ids:
            now = datetime.now(UTC)
            result.drilled = await place.ask(
                lambda store: fetch_drills(place.vault, store, ids, place=place.copy.name, now=now),
                place.new_transfer(),
            )
    except PlaceError as error:
        log.warning("records of drills: %s", error.text())
    except OSError as error:
        log.warning("records of drills: the vault cannot be written: %s", error.strerror)


async def _share_pins(place: Place, result: CaughtUp) -> None:
    """Give the place the pins of what it holds; a failure is logged, as the place lacks nothing by it."""
    pinned = [each for each in (*result.held, *result.copied) if (place.vault.root / each / PINNED).exists()]
    if pinned:
        try:
            await place.ask(
                lambda store: share_pins(place.vault, store, pinned, place=place.copy.name), place.new_transfer()
            )
        except PlaceError as error:
            log.warning("pins: %s", error.text())


def _listed(store: Store) -> dict[str, int] | None:
    """Return the size of each file in the place, by path; None if it may not be listed."""
    store.tidy()
    try:
        return dict(store.entries())
    except PlaceDeniedError:
        # Credentials that may only write and read cannot list. What the place holds is then what was proven.
        return None


def _is_listed(manifest: Manifest, listed: dict[str, int] | None) -> bool:
    if listed is None:
        return True
    return listed.get(artifact_path(manifest)) == manifest.artifact.size and manifest_path(manifest.id) in listed
