"""All places of a run: each artifact goes to all of them at once, and one that fails delays no other.

places = Places.of(fleet)
copied = await places.copy(manifest)
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from a0backup.errors import PlaceArtifactError, PlaceDeniedError, PlaceError, VaultError, VaultUnusableError
from a0backup.files import in_thread, read_whole
from a0backup.fleet.copies import Copy
from a0backup.fleet.models import Fleet
from a0backup.places.copying import CopiedNow, copy_artifact, read_small, write_small
from a0backup.places.credentials import ReadBlock, load
from a0backup.places.opening import open_store
from a0backup.places.records import Proven, note_proven, note_used, now, tidy_place_records, was_used
from a0backup.places.store import Store
from a0backup.places.transfer import Throttle, Transfer, watched
from a0backup.report.words import human_size
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import VAULT, Vault

PAUSE = 600.0  # seconds after a failure in which a place is not asked again
TOLD_EVERY = 10.0  # seconds between two reports of how far a copy is

MAX_IDENTITY = 4096  # bytes
R = TypeVar("R")


@dataclass
class Copied:
    """What became of the copies of one artifact, by the names of the places."""

    proven: dict[str, Proven] = field(default_factory=dict)
    failed: dict[str, PlaceError] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)  # the places that did not hold it before

    def reasons(self) -> list[str]:
        """Return why each place that failed does not hold it."""
        return [error.text() for error in self.failed.values()]


class Place:
    """One place in one run. After a failure it is left alone for a while: not every node waits for its deadline."""

    def __init__(self, vault: Vault, copy: Copy, blocks: ReadBlock | None = None) -> None:
        self.vault, self.copy, self._blocks = vault, copy, blocks
        self._throttle = Throttle(copy.limit)
        self._slots = asyncio.Semaphore(copy.at_most)
        self._tidied = False
        self._failed: tuple[float, PlaceError] | None = None

    async def bring(
        self, manifest: Manifest, transfer: Transfer, waiting: Callable[[], None] = lambda: None
    ) -> tuple[Proven, bool]:
        """Return the proof that the place holds the artifact, and whether it was copied now.

        *waiting* is called when another transfer must end first. The proof is recorded in the vault.
        Raise PlaceError, VaultError.
        """
        if self._slots.locked():
            waiting()
        async with self._slots:
            proven, sent = await self.ask(partial(self._bring, manifest, transfer), transfer)
        return proven, sent

    async def ask(self, work: Callable[[Store], R], transfer: Transfer) -> R:
        """Return what *work* returns with the place opened, after the place was recognised as ours.

        Raise PlaceError, also if nothing moves for the place's deadline, or if it has just failed.
        """
        if (failure := self.failure) is not None:
            raise failure

        if not self._tidied:
            self._tidied = True
            with suppress(OSError):  # what is left there harms nothing
                await in_thread(tidy_place_records, self.vault, self.copy.name)

        def recognised(store: Store) -> R:
            # Each time: another disk may be in its place by now.
            recognise(self.vault, self.copy, store)
            return work(store)

        try:
            return await self.call(recognised, transfer)
        except (PlaceArtifactError, PlaceDeniedError):
            raise  # about this one artifact, or at once
        except PlaceError as error:
            self._failed = time.monotonic(), error
            raise

    @property
    def failure(self) -> PlaceError | None:
        """Why the place is left alone for a while; None if it is not."""
        recent = self._failed is not None and time.monotonic() < self._failed[0] + PAUSE
        return self._failed[1] if self._failed is not None and recent else None

    def new_transfer(self) -> Transfer:
        """Return a new transfer within the bandwidth of the place."""
        return Transfer(self._throttle)

    async def call(self, work: Callable[[Store], R], transfer: Transfer) -> R:
        """Return what *work* returns with the place opened, whoever's it is. Raise PlaceError."""
        credentials = await load(self.copy, self._blocks)

        def opened() -> R:
            try:
                with open_store(self.copy, credentials) as store:
                    return work(store)
            except FileNotFoundError as error:
                raise PlaceError(self.copy.name, f"{self.copy.url} is gone: {error}") from error

        # A hanging directory lets no call return; the others keep the deadline themselves, byte by byte.
        deadline = self.copy.deadline if self.copy.scheme == "file" else None
        return await watched(opened, transfer, place=self.copy.name, deadline=deadline)

    def _bring(self, manifest: Manifest, transfer: Transfer, store: Store) -> tuple[Proven, bool]:
        copied = copy_artifact(self.vault, manifest, store, place=self.copy.name, transfer=transfer)
        # What was written must be in the place that was recognised, not in another that came there meanwhile.
        require_ours(self.vault, self.copy, store)
        return self.note(manifest, copied), copied.sent

    def note(self, manifest: Manifest, copied: CopiedNow) -> Proven:
        """Record in the vault what this place was just proven to hold. Raise VaultUnusableError."""
        proven = Proven(url=self.copy.url, at=now(), by=copied.by)
        try:
            note_proven(self.vault, manifest.id, self.copy.name, proven, manifest=copied.manifest)
        except OSError as error:
            reason = f"the copies of {manifest.id} cannot be recorded: {error.strerror}"
            raise VaultUnusableError(manifest.node.name, reason) from error
        return proven


class Places:
    """All places of one run."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._all = places

    @classmethod
    def of(cls, fleet: Fleet, copies: Sequence[Copy] | None = None, *, blocks: ReadBlock | None = None) -> "Places":
        """Return the places of *fleet*: all, or only *copies*. *blocks* reads the Secret blocks of the engine."""
        chosen = fleet.copies if copies is None else copies
        return cls([Place(Vault(fleet.vault), copy, blocks) for copy in chosen])

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._all)

    async def copy(self, manifest: Manifest, told: Callable[[str], None] = lambda text: None) -> Copied:
        """Bring the artifact to every place at once, and record where it is proven.

        *told* receives how far each place is, about every ten seconds. A place that fails is in the
        result. Raise VaultError if the vault's own bytes cannot be sent, or if it cannot record what is
        proven.
        """
        copied = Copied()
        transfers = {place.copy.name: place.new_transfer() for place in self._all}
        states = dict.fromkeys(transfers, "")
        unsent: list[VaultError] = []

        async def bring(place: Place) -> None:
            name = place.copy.name

            def waiting() -> None:
                states[name] = "waiting for its turn"

            try:
                proven, sent = await place.bring(manifest, transfers[name], waiting)
            except PlaceError as error:
                copied.failed[name] = error
                states[name] = "failed"
            except VaultError as error:
                unsent.append(error)
            else:
                copied.proven[name] = proven
                states[name] = "done"
                if sent:
                    copied.sent.add(name)

        async with asyncio.TaskGroup() as group:
            work = [group.create_task(bring(place)) for place in self._all]
            reporter = group.create_task(_report(manifest, transfers, states, told))
            await asyncio.wait(work)
            reporter.cancel()
        if unsent:
            raise unsent[0]
        return copied


async def _report(
    manifest: Manifest, transfers: Mapping[str, Transfer], states: Mapping[str, str], told: Callable[[str], None]
) -> None:
    while True:
        await asyncio.sleep(TOLD_EVERY)
        each = (f"{name} {states[name] or f'{human_size(sent.moved)} moved'}" for name, sent in transfers.items())
        told(f"{', '.join(each)} (of {human_size(manifest.artifact.size)}, each sent and read back)")


def recognise(vault: Vault, copy: Copy, store: Store) -> None:
    """Make sure that the place belongs to this vault; mark one that is used for the first time. Raise PlaceError.

    The mark is the vault's own identity: a vault that is restored from the place is then the same vault.
    """
    require_ours(vault, copy, store)
    if not was_used(vault, copy):
        write_small(store, VAULT, read_whole(vault.root / VAULT, MAX_IDENTITY), copy.name)
        try:
            note_used(vault, copy)
        except OSError as error:
            reason = f"the vault cannot record that this place is used: {error.strerror}"
            raise PlaceError(copy.name, reason, "make the vault writable") from error
        require_apart(vault, copy)


def require_apart(vault: Vault, copy: Copy) -> None:
    """Raise PlaceError if the place is the folder of the vault itself, by whatever name."""
    with suppress(FileNotFoundError):
        if copy.scheme == "file" and Path(copy.root).samefile(vault.root):
            raise PlaceError(copy.name, f"{copy.url} is the vault itself", "give the place a folder of its own")


def require_ours(vault: Vault, copy: Copy, store: Store) -> None:
    """Raise PlaceError if the place was used before and is empty now, or is not one of this vault's."""
    require_apart(vault, copy)
    found, identity = identity_in(store), _identity(vault)
    if found is None:
        if was_used(vault, copy):
            raise PlaceError(
                copy.name,
                f"{copy.url} was used before, and now holds no {VAULT}: it is empty, or another disk is in its place",
                f"mount the right one; if it is to start anew, remove {vault.root}/.places/{copy.name}.json",
            )
    elif identity is None:
        raise PlaceError(
            copy.name,
            f"{copy.url} holds the copies of a vault, and there is no vault at {vault.root}",
            "`a0backup verify --repair` brings that vault back",
        )
    elif found != identity and is_identity(found):
        raise PlaceError(
            copy.name, f"{copy.url} holds the copies of another vault", "give each vault a place of its own"
        )
    elif found != identity:
        raise PlaceError(
            copy.name,
            f"its {VAULT} cannot be read",
            f"if this is the right place, put {vault.root / VAULT} there again",
        )


def identity_in(store: Store) -> bytes | None:
    """Return the identity of the vault whose copies the place holds; None if there is none. Raise PlaceError."""
    try:
        return read_small(store, VAULT, MAX_IDENTITY)
    except PlaceArtifactError as error:
        # It concerns the place as a whole, and no artifact.
        raise PlaceError(error.place, error.reason, error.remedy) from None


def is_identity(content: bytes) -> bool:
    """Return whether *content* can be that of a vault.json."""
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def _identity(vault: Vault) -> bytes | None:
    try:
        return read_whole(vault.root / VAULT, MAX_IDENTITY)
    except FileNotFoundError:
        return None
