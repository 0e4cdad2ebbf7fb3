"""What the vault remembers of its places.

    vault/.places/nas.json          that the place was used, and when each artifact was last read there
    vault/NODE/ID/copies.json       in which places the artifact was proven, when and how

They spare work and show what is behind. What a place really holds, only the place can say.
"""

import fcntl
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a0backup.files import UnsuitableFileError, make_private_directory, publish, read_whole
from a0backup.fleet.copies import Copy
from a0backup.vault.manifest import MANIFEST, HexSha256, Time
from a0backup.vault.vault import COPIES, Vault

_PLACES = ".places"  # no node can have this name
_MOST = 16 << 20  # bytes of the record of a place, with two times for each artifact
_MOST_FOLDERS = 100  # of a quarantine that are shown
_MOST_COPIES = 256 << 10  # bytes; a thousand places
_threads = threading.Lock()  # several places prove one artifact at once


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Proven(_Part):
    """That a place held an artifact: the address that the place had then, when, and how it was proven."""

    url: str
    at: Time
    by: Literal["read", "checksum"]


class _Copies(_Part):
    """The content of copies.json (schema 1), *places* by their names.

    *manifest* is the SHA-256 of the manifest's bytes when it was first copied: damage to a manifest
    that can still be read shows in nothing else.
    """

    version: Literal[1] = Field(default=1, alias="schema")
    manifest: HexSha256 | None = None
    places: dict[str, Proven] = {}


class PlaceRecord(_Part):
    """The content of a place's record (schema 1).

    *formerly*: the addresses that it had before *url*. *read* has the time at which each artifact
    was last read there and found whole, *tried* that at which it was last looked at, *begun* that
    of a verification of all that has not ended. *quarantine*: the folders with damaged files there,
    as they were last listed.
    """

    version: Literal[1] = Field(default=1, alias="schema")
    url: str
    used_since: Time
    formerly: list[str] = []
    read: dict[str, Time] = {}
    tried: dict[str, Time] = {}
    begun: Time | None = None
    quarantine: list[str] = []


def proven_in(vault: Vault, artifact_id: str) -> dict[str, Proven]:
    """Return in which places the artifact was proven; an unreadable record counts as none."""
    return _read_copies(vault, artifact_id).places


def known_manifest(vault: Vault, artifact_id: str) -> str | None:
    """Return the SHA-256 of the manifest that the places were given; None if it was never copied."""
    return _read_copies(vault, artifact_id).manifest


def is_proven(vault: Vault, artifact_id: str, copy: Copy) -> bool:
    """Return whether the artifact was proven in the place that *copy* names now."""
    proven = proven_in(vault, artifact_id).get(copy.name)
    return proven is not None and proven.url == copy.url


def lacking(vault: Vault, ids: Iterable[str], copies: Sequence[Copy]) -> dict[str, list[str]]:
    """Return which of the artifacts *ids* are not proven in each place, in their order; each record is read once."""
    lacked: dict[str, list[str]] = {copy.name: [] for copy in copies}
    for artifact_id in ids if copies else ():
        places = proven_in(vault, artifact_id)
        without = [c.name for c in copies if c.name not in places or places[c.name].url != c.url]
        # What a killed run left without a manifest is no backup, and no place needs it.
        if without and os.path.lexists(vault.root / artifact_id / MANIFEST):
            for name in without:
                lacked[name].append(artifact_id)
    return lacked


def note_proven(vault: Vault, artifact_id: str, place: str, proven: Proven, *, manifest: str) -> None:
    """Record that the place holds the artifact, with the manifest of this SHA-256. Raise OSError.

    The manifest's SHA-256 is set once: nothing ever changes what the places were given first.
    """
    with _writing(vault, artifact_id):
        copies = _read_copies(vault, artifact_id)
        first = copies.manifest or manifest
        _write_copies(vault, artifact_id, _Copies(manifest=first, places=copies.places | {place: proven}))


def forget_proven(vault: Vault, artifact_id: str, place: str) -> None:
    """Remove the place from the record of the artifact: it does not hold it. Raise OSError."""
    with _writing(vault, artifact_id):
        copies = _read_copies(vault, artifact_id)
        if copies.places.pop(place, None) is not None:
            _write_copies(vault, artifact_id, copies)


@contextmanager
def _writing(vault: Vault, artifact_id: str) -> Iterator[None]:
    """Let one thread and one process at a time change the record of the artifact. Raise OSError."""
    with _threads:
        folder = os.open(vault.root / artifact_id, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # NFS locks no folders: what two processes overwrite there is proven again
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _read_copies(vault: Vault, artifact_id: str) -> _Copies:
    try:
        # As text: paths of 100,000 artifacts take longer to build than the files take to read.
        return _Copies.model_validate_json(read_whole(f"{vault.root}/{artifact_id}/{COPIES}", _MOST_COPIES))
    except (OSError, UnsuitableFileError, ValidationError):
        return _Copies()


def _write_copies(vault: Vault, artifact_id: str, copies: _Copies) -> None:
    publish(vault.root / artifact_id / COPIES, copies.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def place_record(vault: Vault, name: str) -> PlaceRecord | None:
    """Return what is known of the place; None if it was not used yet, or its record cannot be read."""
    try:
        return PlaceRecord.model_validate_json(read_whole(_place_file(vault, name), _MOST))
    except (OSError, UnsuitableFileError, ValidationError):
        return None


def was_used(vault: Vault, copy: Copy) -> bool:
    """Return whether the place was used under this address. A record that cannot be read counts as one that says so."""
    record = place_record(vault, copy.name)
    if record is None:
        return os.path.lexists(_place_file(vault, copy.name))
    return copy.url in (record.url, *record.formerly)


def note_used(vault: Vault, copy: Copy) -> None:
    """Record that the place is used under this address. Raise OSError."""
    record = place_record(vault, copy.name)
    if record is None:
        write_place_record(vault, copy.name, PlaceRecord(url=copy.url, used_since=now()))
    elif record.url != copy.url:
        formerly = [url for url in (*record.formerly, record.url) if url != copy.url]
        write_place_record(vault, copy.name, PlaceRecord(url=copy.url, used_since=now(), formerly=formerly))


def note_quarantines(vault: Vault, copy: Copy, folders: Sequence[str]) -> None:
    """Record which folders the place has in quarantine, the first hundred. Raise OSError."""
    record = place_record(vault, copy.name)
    if record is not None and record.url == copy.url and record.quarantine != (first := [*folders[:_MOST_FOLDERS]]):
        write_place_record(vault, copy.name, record.model_copy(update={"quarantine": first}))


def kept_in_places(vault: Vault, copies: Sequence[Copy], node: str, kind: str) -> list[str]:
    """Return the folders with damaged files of *kind* in the places, as a verification last listed them."""
    kept = []
    for copy in copies:
        record = place_record(vault, copy.name)
        folders = record.quarantine if record is not None and record.url == copy.url else []
        kept += [f"{copy.name}: {each}" for each in folders if fnmatchcase(each, f"{node}/quarantine/*Z-{kind}.*")]
    return kept


def write_place_record(vault: Vault, name: str, record: PlaceRecord) -> None:
    """Replace the record of the place. Raise OSError."""
    file = _place_file(vault, name)
    make_private_directory(file.parent)
    publish(file, record.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def not_found_whole(vault: Vault, name: str) -> set[str]:
    """Return the ids of the artifacts that were not found whole when they were last looked at in the place."""
    record = place_record(vault, name)
    if record is None:
        return set()
    return {each for each, tried in record.tried.items() if each not in record.read or record.read[each] < tried}


def forget_read(vault: Vault, name: str, ids: Collection[str]) -> None:
    """Remove the artifacts *ids* from the record of the place, which no longer has them. Raise OSError."""
    record = place_record(vault, name)
    if record is not None and any(each in record.read or each in record.tried for each in ids):
        for times in (record.read, record.tried):
            for each in ids:
                times.pop(each, None)
        write_place_record(vault, name, record)


def tidy_place_records(vault: Vault, name: str) -> None:
    """Remove what killed writes of the place's record left. Raise OSError."""
    for left in (vault.root / _PLACES).glob(f".{name}.json.*.partial"):
        left.unlink(missing_ok=True)


def _place_file(vault: Vault, name: str) -> Path:
    return vault.root / _PLACES / f"{name}.json"


def now() -> datetime:
    """Return the current time to the second, as records store it."""
    return datetime.now(UTC).replace(microsecond=0)
