"""Bring the records of drills from a place to the vault: the recovery key may be where only a copy is.

    taken = fetch_drills(vault, store, ids, place="nas", now=now)

The private part of a recovery key is kept away from the backup machine, so a drill that needs it runs on a copy, and
its result is recorded there, in drilled.json beside the artifact. The newest record of an artifact counts. But that its
stored bytes are damaged concerns one place alone: no record of that is taken over, or is replaced by that of a place.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

from a0backup.errors import PlaceArtifactError
from a0backup.places.copying import read_small
from a0backup.places.store import Store
from a0backup.vault.drilled import DRILLED, MAX_DRILLED_BYTES, Drilled, read_drilled, write_drilled
from a0backup.vault.vault import CLOCKS_DIFFER, Vault

log = logging.getLogger(__name__)


def drill_path(artifact_id: str) -> str:
    """Return the path of the record of the artifact's last drill in every place."""
    return f"{artifact_id}/{DRILLED}"


def fetch_drills(vault: Vault, store: Store, ids: Iterable[str], *, place: str, now: datetime) -> list[str]:
    """Take over from *place*, for each of the artifacts *ids*, a record that is newer than the vault's.

    Return the ids of those taken over. A record in the future, or that is none, is left alone. Raise
    PlaceError, OSError if the vault cannot be written.
    """
    taken = []
    for artifact_id in ids:
        try:
            theirs = Drilled.parsed(read_small(store, drill_path(artifact_id), MAX_DRILLED_BYTES) or b"")
        except PlaceArtifactError as error:
            log.warning("%s", error.text())  # a link or a bad sector in its place: the others may be well
            continue
        ours = read_drilled(vault.root / artifact_id)
        if theirs is None or theirs.drilled_at > now + CLOCKS_DIFFER:
            log.warning("%s is no record of a drill, or of one in the future", drill_path(artifact_id))
        elif theirs.tells_of_stored_bytes:
            log.warning("a drill found that %s is damaged in the place %s: %s", artifact_id, place, theirs.problem)
        elif ours is None or (not ours.tells_of_stored_bytes and ours.drilled_at < theirs.drilled_at):
            with suppress(FileNotFoundError):  # pruned meanwhile
                write_drilled(vault.root / artifact_id, theirs)
                taken.append(artifact_id)
    return taken
