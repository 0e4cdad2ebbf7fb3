"""A verification of the vault and its places: what to read this time, several files at once, and the repair.

verification = Verification(vault, list(Places.of(fleet)), told=print)
findings = await verification.run()
findings = await verification.repaired(findings)
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from a0backup.errors import A0BackupError, PlaceArtifactError, PlaceError, VaultUnusableError
from a0backup.files import in_thread
from a0backup.places.copying import CopiedNow, copy_artifact, manifest_bytes, manifest_path, read_small
from a0backup.places.places import Place
from a0backup.places.records import (
    PlaceRecord,
    forget_proven,
    forget_read,
    is_proven,
    known_manifest,
    note_quarantines,
    now,
    place_record,
    write_place_record,
)
from a0backup.places.repairing import mend_vault
from a0backup.places.store import Entry, Store
from a0backup.places.verifying import (
    DECIDE,
    IN_VAULT,
    NOT_COPIED,
    Expected,
    Finding,
    Listing,
    record_doubted,
    strays_in_vault,
    verify_in_place,
    verify_in_vault,
    without_manifest,
)
from a0backup.vault.lock import node_lock
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, UnreadableManifest
from a0backup.vault.pruned import Record
from a0backup.vault.vault import Vault

log = logging.getLogger(__name__)

AT_ONCE = 2  # files of the vault that are read at once: more only make a disk seek
_RESUMED_WITHIN = timedelta(days=7)  # an older verification that did not end begins anew
_WAITS = 60.0  # seconds for the lock of a node that is to be mended


class Verification:
    """One verification of *vault* and *places*; *told* receives each finding as soon as it is there.

    *ids* limits it to these artifacts, *share* to that part of them, those that were not read for
    the longest time. *of_vault* says whether the vault itself is read.
    """

    def __init__(
        self,
        vault: Vault,
        places: Sequence[Place],
        *,
        of_vault: bool = True,
        ids: Sequence[str] | None = None,
        share: float | None = None,
        told: Callable[[Finding], None] = lambda finding: None,
    ) -> None:
        self._vault, self._places, self._of_vault = vault, places, of_vault
        self._ids, self._share, self._told = ids, share, told
        self._entries: dict[str, Manifest | UnreadableManifest] = {}
        self._pruned = Record(vault)
        self.resumed: dict[str, int] = {}  # how many artifacts an interrupted verification had read, by place

    async def run(self) -> list[Finding]:
        """Return what was found, all of it; the time at which each artifact was read is kept in the vault.

        Raise OSError if the vault cannot be read.
        """
        self._entries = {entry.id: entry for entry in await in_thread(lambda: list(self._vault.entries()))}
        lost = await in_thread(without_manifest, self._vault)
        listings = await asyncio.gather(*map(self._listing, self._places))
        # An id without "/" is a node whose folder cannot be read.
        known = {*filter(lambda each: "/" in each, self._entries), *lost}
        known.update(each for listing in listings if listing for each in listing.whole_ids)
        work = [self._in_vault()] if self._of_vault else []
        places = zip(self._places, listings, strict=True)
        found = await asyncio.gather(*work, *(self._in_place(place, listing, known) for place, listing in places))
        findings = [finding for each in found for finding in each]
        if self._of_vault:
            findings += self._missing(findings, lost)
        if self._of_vault and self._is_of_all:
            strays = await in_thread(strays_in_vault, self._vault, but={finding.id for finding in findings})
            findings += [self._tell(stray) for stray in strays]
        return findings

    # -- the vault ---------------------------------------------------------------------------------------------

    async def _in_vault(self) -> list[Finding]:
        chosen = self._chosen(self._entries)
        reads = await in_thread(_Reads, self._vault, IN_VAULT, str(self._vault.root), whole=self._is_of_all)
        todo = reads.pick(chosen, self._share)
        self.resumed[IN_VAULT] = reads.resumed

        async def read(artifact_id: str) -> Finding | None:
            finding = await in_thread(verify_in_vault, self._vault, self._entries[artifact_id])
            return await self._found(finding, reads)

        findings = await _each(read, todo, at_once=AT_ONCE)
        await in_thread(reads.end)
        return findings

    def _missing(self, findings: Iterable[Finding], lost: Iterable[str]) -> list[Finding]:
        """Return a finding for each artifact that only a place has, and for those that *lost* their manifest.

        What was pruned is not missing, though a place may keep it for longer.
        """
        pruned = Record(self._vault)
        lacking: dict[str, list[str]] = {each: [] for each in self._chosen(lost)}
        for finding in findings:
            is_elsewhere = finding.ok and finding.place != IN_VAULT
            if is_elsewhere and finding.id not in self._entries and finding.id not in pruned:
                lacking.setdefault(finding.id, []).append(finding.place)
        hint = "`a0backup verify --repair` brings it back"
        missing = [
            Finding(IN_VAULT, each, "missing", f"only the copies are left: {', '.join(places)}", hint)
            if places
            else Finding(IN_VAULT, each, "missing", f"{MANIFEST} is missing", f"{hint} from a place that has it")
            for each, places in lacking.items()
        ]
        for finding in missing:
            self._told(finding)
        return missing

    # -- a place -----------------------------------------------------------------------------------------------

    async def _listing(self, place: Place) -> Listing | None:
        """Return what the place lists; None if it fails, or if its credentials do not allow that."""
        try:
            return Listing(await place.ask(_entries, place.new_transfer()))
        except PlaceError:
            return None

    async def _in_place(self, place: Place, listing: Listing | None, known: Iterable[str]) -> list[Finding]:
        name = place.copy.name
        if place.failure is not None:
            failure = place.failure
            return [self._tell(Finding(name, place.copy.url, "not read", failure.reason, failure.hint()))]
        there = self._chosen(known)
        reads = await in_thread(_Reads, self._vault, name, place.copy.url, whole=self._is_of_all)
        todo = reads.pick(there, self._share)
        self.resumed[name] = reads.resumed

        async def read(artifact_id: str) -> Finding | None:
            finding = await self._look(place, artifact_id)
            await in_thread(self._record, place, finding)
            return await self._found(finding, reads)

        findings = await _each(read, todo, at_once=place.copy.at_most)
        await in_thread(reads.end)
        if listing is not None:
            await in_thread(_keep_quarantines, self._vault, place, listing)
        if listing is not None and self._is_of_all:
            strays = await in_thread(lambda: list(listing.strays(name, but=set(there), pruned=Record(self._vault))))
            findings += [self._tell(stray) for stray in strays]
        return findings

    def _record(self, place: Place, finding: Finding) -> None:
        """Record in the vault what was found of an artifact that it has; a vault that cannot be written is verified."""
        entry = self._entries.get(finding.id)
        if not isinstance(entry, Manifest):
            return
        try:
            if finding.is_damage:
                forget_proven(self._vault, finding.id, place.copy.name)
            elif finding.ok and not is_proven(self._vault, finding.id, place.copy):
                place.note(entry, CopiedNow("read", False, finding.manifest))
        except (OSError, VaultUnusableError) as error:
            if finding.id in Record(self._vault):
                return  # pruned meanwhile
            log.warning("%s in %s: what was found cannot be recorded: %s", finding.id, finding.place, error)

    async def _look(self, place: Place, artifact_id: str) -> Finding:
        name, transfer = place.copy.name, place.new_transfer()
        try:
            expected = await in_thread(self._expected, artifact_id)
            return await place.ask(
                lambda store: verify_in_place(store, name, artifact_id, expected, transfer), transfer
            )
        except PlaceArtifactError as error:
            return Finding(name, artifact_id, "damaged", error.reason, error.hint())
        except PlaceError as error:
            return Finding(name, artifact_id, "not read", error.reason, error.hint())

    def _expected(self, artifact_id: str) -> Expected:
        known = known_manifest(self._vault, artifact_id)
        entry = self._entries.get(artifact_id)
        if not isinstance(entry, Manifest):
            return Expected(known=known or self._pruned.manifest_of(artifact_id))
        try:
            content = manifest_bytes(self._vault, entry)
        except VaultUnusableError:  # the vault's own finding says so
            return Expected(known=known)
        expected = Expected(content, entry, known)
        return Expected(known=known, doubtful=content) if expected.differs_from(content) else expected

    # -- repair ------------------------------------------------------------------------------------------------

    async def repaired(self, findings: Sequence[Finding]) -> list[Finding]:
        """Mend what is damaged or missing: first the vault, then the places from it. Return the findings after that."""
        after = [await self._mended_vault(each) if each.place == IN_VAULT else each for each in findings]
        self._entries = {entry.id: entry for entry in await in_thread(lambda: list(self._vault.entries()))}
        damaged = {each.id for each in after if each.place == IN_VAULT and not each.ok}
        after = [
            await self._mended_place(each)
            if each.place != IN_VAULT and each.is_damage and each.id not in damaged
            else each
            for each in after
        ]
        for place in self._places:
            if listing := await self._listing(place):
                await in_thread(_keep_quarantines, self._vault, place, listing)
        return after

    async def _mended_vault(self, finding: Finding) -> Finding:
        node, is_artifact, _ = finding.id.partition("/")
        if not finding.is_damage or not is_artifact:
            return finding
        if doubt := await _doubt(self._vault, self._places, self._entries.get(finding.id), finding.id):
            return self._tell(Finding(IN_VAULT, finding.id, "differs", doubt, DECIDE))
        reasons = []
        try:
            await in_thread(self._vault.require_no_links, node)
            async with node_lock(self._vault.folder(node), node=node, run="verify --repair", deadline=_WAITS):
                if finding.id in Record(self._vault):
                    return Finding(IN_VAULT, finding.id, "stray", "it was pruned meanwhile")
                for place in self._places:
                    if (reason := await self._fetched(finding.id, place)) is None:
                        await in_thread(_forget_damage, self._vault, finding.id)
                        return self._tell(Finding(IN_VAULT, finding.id, "ok", f"mended from {place.copy.name}"))
                    reasons.append(reason)
        except A0BackupError as error:
            reasons.append(error.text())
        except OSError as error:
            reasons.append(f"the vault cannot be written: {error.strerror}")
        why = "; ".join(reasons) or "no place has it"
        hint = record_doubted(finding.id) if finding.reason == NOT_COPIED else ""
        return self._tell(Finding(IN_VAULT, finding.id, finding.result, f"{finding.reason}; not mended: {why}", hint))

    async def _fetched(self, artifact_id: str, place: Place) -> str | None:
        """Bring the artifact back from *place* into the vault; return why that failed, or None if it did not."""
        name, transfer = place.copy.name, place.new_transfer()
        try:
            await place.ask(
                lambda store: mend_vault(self._vault, artifact_id, store, place=name, transfer=transfer), transfer
            )
        except A0BackupError as error:
            return error.text()
        except OSError as error:
            return f"the vault cannot be written: {error.strerror}"
        return None

    async def _mended_place(self, finding: Finding) -> Finding:
        """Bring the artifact back from the vault, which has it whole now."""
        [place] = [place for place in self._places if place.copy.name == finding.place]
        finding = await self._look(place, finding.id)  # the vault may have been what was damaged
        entry = self._entries.get(finding.id)
        if not finding.is_damage or finding.result == "differs" or not isinstance(entry, Manifest):
            return finding
        ours = await in_thread(verify_in_vault, self._vault, entry)
        if not ours.ok:
            reason = f"{finding.reason}; not mended: the vault's own is damaged ({ours.reason})"
            return self._tell(Finding(finding.place, finding.id, finding.result, reason))
        transfer = place.new_transfer()
        try:
            copied = await place.ask(
                lambda store: copy_artifact(self._vault, entry, store, place=finding.place, transfer=transfer), transfer
            )
            await in_thread(place.note, entry, copied)
        except A0BackupError as error:
            why = error.reason if isinstance(error, PlaceError) else error.text()
            reason = f"{finding.reason}; not mended: {why}"
            return self._tell(Finding(finding.place, finding.id, finding.result, reason, error.hint()))
        return self._tell(Finding(finding.place, finding.id, "ok", "mended from the vault"))

    # -- small things ------------------------------------------------------------------------------------------

    @property
    def _is_of_all(self) -> bool:
        return self._ids is None and self._share is None

    def _chosen(self, ids: Iterable[str]) -> list[str]:
        return sorted(each for each in ids if self._ids is None or each in self._ids)

    async def _found(self, finding: Finding, reads: "_Reads") -> Finding | None:
        """Return the finding after it was told; None for what was pruned, perhaps while this reads."""
        if finding.is_damage and await in_thread(self._was_pruned, finding):
            return None
        await in_thread(reads.note, finding)
        return self._tell(finding)

    def _was_pruned(self, finding: Finding) -> bool:
        # A place may keep for longer what was pruned from the vault: damage to that counts.
        is_gone = finding.place == IN_VAULT or finding.result == "missing"
        return is_gone and finding.id in Record(self._vault)

    def _tell(self, finding: Finding) -> Finding:
        self._told(finding)
        return finding


async def _doubt(
    vault: Vault, places: Sequence[Place], entry: Manifest | UnreadableManifest | None, artifact_id: str
) -> str:
    """Return why nobody can say which artifact of the places is the vault's; empty if its *entry* or its record can."""
    if isinstance(entry, Manifest) or await in_thread(known_manifest, vault, artifact_id) is not None:
        return ""
    path, whole = manifest_path(artifact_id), {}
    manifests = set()
    for place in places:
        with suppress(PlaceError):
            manifests.add(await place.ask(lambda s: read_small(s, path, MAX_MANIFEST_BYTES), place.new_transfer()))
    if len(manifests - {None}) < 2:
        return ""
    for place in places:
        name, transfer = place.copy.name, place.new_transfer()
        look = partial(verify_in_place, place=name, artifact_id=artifact_id, expected=Expected(), transfer=transfer)
        with suppress(PlaceError):
            if (finding := await place.ask(look, transfer)).ok:
                whole[name] = finding.manifest
    if len(set(whole.values())) < 2:
        return ""
    return f"{' and '.join(whole)} hold different ones, each of them whole, and nothing says which one is right"


class _Reads:
    """When each artifact of one place was last read and found whole, kept in the vault as far as it can be written."""

    _EVERY = timedelta(seconds=10)  # a kill loses what was read since

    def __init__(self, vault: Vault, place: str, url: str, *, whole: bool) -> None:
        self._vault, self._place, self._whole = vault, place, whole
        known = place_record(vault, place)
        self._record = known if known and known.url == url else PlaceRecord(url=url, used_since=now())
        self._written = datetime.now(UTC)
        begun = self._record.begun
        self.resumed = 0
        if whole and (begun is None or not timedelta(0) <= datetime.now(UTC) - begun <= _RESUMED_WITHIN):
            self._record.begun = datetime.now(UTC)

    def pick(self, ids: Sequence[str], share: float | None) -> list[str]:
        """Return which of *ids* to read now, the one that was not read for the longest time first."""
        never, begun = datetime.min.replace(tzinfo=UTC), self._record.begun
        if share is not None:
            tried = self._past(self._record.tried)
            return sorted(ids, key=lambda each: tried.get(each, never))[: math.ceil(len(ids) * share)]
        if not self._whole or begun is None:
            return list(ids)
        read = self._past(self._record.read)
        left = [each for each in ids if read.get(each, never) < begun]
        self.resumed = len(ids) - len(left)
        return left

    @staticmethod
    def _past(times: dict[str, datetime]) -> dict[str, datetime]:
        """Return *times* without those in the future, from a clock that was ahead."""
        now = datetime.now(UTC)
        return {each: time for each, time in times.items() if time <= now}

    def note(self, finding: Finding) -> None:
        self._record.tried[finding.id] = datetime.now(UTC)
        if finding.ok:
            self._record.read[finding.id] = datetime.now(UTC)
        if datetime.now(UTC) - self._written > self._EVERY:
            self._write()

    def end(self) -> None:
        """Record that all that was to be read was read."""
        if self._whole:
            self._record.begun = None
        self._write()

    def _write(self) -> None:
        self._written = datetime.now(UTC)
        try:
            write_place_record(self._vault, self._place, self._record)
        except OSError:
            return  # a copy on a disk that cannot be written is verified all the same


async def _each(read: Callable[[str], Awaitable[Finding | None]], ids: Iterable[str], *, at_once: int) -> list[Finding]:
    """Return what *read* finds of each of *ids*, *at_once* at a time."""
    findings: list[Finding] = []
    queue = iter(ids)

    async def work() -> None:
        for each in queue:
            if (finding := await read(each)) is not None:
                findings.append(finding)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return findings


def _forget_damage(vault: Vault, artifact_id: str) -> None:
    """Have the mended artifact count again at once, and be the first that the next share reads."""
    try:
        forget_read(vault, IN_VAULT, [artifact_id])
    except OSError as error:
        log.warning("%s: that it was mended cannot be recorded: %s", artifact_id, error)


def _keep_quarantines(vault: Vault, place: Place, listing: Listing) -> None:
    """Record in the vault, as far as it can be written, what the place keeps in quarantine."""
    with suppress(OSError):
        note_quarantines(vault, place.copy, listing.quarantines)


def _entries(store: Store) -> list[Entry]:
    return list(store.entries())
