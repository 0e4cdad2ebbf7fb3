"""Pins go along with the artifacts: a vault that is made again from a place still keeps what was pinned.

share_pins(vault, store, ids, place="nas")
take_pin(vault, artifact_id, store)

The vault's pin counts. A place is never asked for one while the vault has the artifact, and `unkeep` does not reach the
places: what a lost vault brings back may be pinned again, which removes nothing.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress

from a0backup.errors import PlaceArtifactError
from a0backup.files import UnsuitableFileError, read_whole
from a0backup.places.copying import read_small, write_small
from a0backup.places.store import Store
from a0backup.vault.pinned import MAX_PINNED_BYTES, PINNED, Pin, write_pin
from a0backup.vault.vault import Vault

log = logging.getLogger(__name__)


def share_pins(vault: Vault, store: Store, ids: Iterable[str], *, place: str) -> None:
    """Give the place the vault's pins of the artifacts *ids*, which it holds. Raise PlaceError."""
    for artifact_id in ids:
        with suppress(OSError, UnsuitableFileError):  # it has none, or it was pruned meanwhile
            content = read_whole(vault.root / artifact_id / PINNED, MAX_PINNED_BYTES)
            try:
                write_small(store, f"{artifact_id}/{PINNED}", content, place)
            except PlaceArtifactError as error:
                log.warning("%s", error.text())  # a link or a bad sector in its place: the others may be well


def take_pin(vault: Vault, artifact_id: str, store: Store) -> None:
    """Pin the artifact in the vault as it is pinned in the place, if it is. Raise PlaceError, OSError."""
    try:
        pin = Pin.parsed(read_small(store, f"{artifact_id}/{PINNED}", MAX_PINNED_BYTES) or b"")
    except PlaceArtifactError as error:
        log.warning("%s", error.text())
        return
    if pin is not None:
        write_pin(vault.root / artifact_id, pin)
