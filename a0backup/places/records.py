"""What the vault remembers of its places.

    vault/.places/nas.json          that the place was used, and when each artifact was last read there
    vault/NODE/ID/copies.json       in which places the artifact was proven, when and how

They spare work and show what is behind. What a place really holds, only the place can say.
"""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a0backup.files import UnsuitableFileError, make_private_directory, publish, read_whole
from a0backup.fleet.copies import Copy
from a0backup.vault.manifest import HexSha256, Time
from a0backup.vault.vault import Vault

COPIES = "copies.json"
_PLACES = ".places"  # no node can have this name
_MOST = 16 << 20  # bytes
_writing = threading.Lock()  # several places prove one artifact at once


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

    *read* has the time at which each artifact was last read there and found whole, *begun* that of
    a verification of all that has not ended.
    """

    version: Literal[1] = Field(default=1, alias="schema")
    url: str
    used_since: Time
    read: dict[str, Time] = {}
    begun: Time | None = None


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


def note_proven(vault: Vault, artifact_id: str, place: str, proven: Proven, *, manifest: str) -> None:
    """Record that the place holds the artifact, with the manifest of this SHA-256. Raise OSError."""
    with _writing:
        copies = _read_copies(vault, artifact_id)
        _write_copies(vault, artifact_id, _Copies(manifest=manifest, places=copies.places | {place: proven}))


def forget_proven(vault: Vault, artifact_id: str, place: str) -> None:
    """Remove the place from the record of the artifact: it does not hold it. Raise OSError."""
    with _writing:
        copies = _read_copies(vault, artifact_id)
        if copies.places.pop(place, None) is not None:
            _write_copies(vault, artifact_id, copies)


def _read_copies(vault: Vault, artifact_id: str) -> _Copies:
    try:
        return _Copies.model_validate_json(read_whole(vault.root / artifact_id / COPIES, _MOST))
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


def write_place_record(vault: Vault, name: str, record: PlaceRecord) -> None:
    """Replace the record of the place. Raise OSError."""
    file = _place_file(vault, name)
    make_private_directory(file.parent)
    publish(file, record.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def tidy_place_records(vault: Vault, name: str) -> None:
    """Remove what killed writes of the place's record left. Raise OSError."""
    for left in (vault.root / _PLACES).glob(f".{name}.json.*.partial"):
        left.unlink(missing_ok=True)


def _place_file(vault: Vault, name: str) -> Path:
    return vault.root / _PLACES / f"{name}.json"


def now() -> datetime:
    """Return the current time to the second, as records store it."""
    return datetime.now(UTC).replace(microsecond=0)
