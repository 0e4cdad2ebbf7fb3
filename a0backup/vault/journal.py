"""The journal of a node's unfinished backup: one small file per node and kind, removed at settle.

The file is replaced atomically. It records what only this machine can know: that we started a
backup on the node, and which one it is. The vault, never the journal, tells whether the backup's
artifact is stored.
"""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from a0backup.files import UnsuitableFileError, publish, read_whole, remove_durably
from a0backup.identity import BackupIdentity
from a0backup.vault.manifest import Manifest, Time

MAX_BYTES = 256 * 1024


def later_schema(error: ValidationError) -> str:
    """Return text that says a later version of this software wrote the file, or an empty string if not.

    A file with an unknown schema is not damaged and must never be removed.
    """
    for each in error.errors():
        if each["loc"] == ("schema",) and isinstance(each["input"], int) and each["input"] > 1:
            return f"has schema {each['input']}, and this a0backup knows 1: a later version wrote it"
    return ""


class Entry(BaseModel):
    """Something that was intended or done, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Time
    what: str


class Effect(StrEnum):
    """What the run that sent a start knows about its effect on the node."""

    UNKNOWN = "unknown"  # it was stopped before it could tell
    REFUSED = "refused"  # the reply said that nothing was started
    NONE = "none"  # the node showed nothing of it within `call_timeout`
    SEEN = "seen"  # the run saw the pinned backup come; nothing proves that its start made it
    OPENED = "opened"  # the run opened the pinned backup with the password of its start


class NotOpened(BaseModel):
    """Why the run that knew the password could not read a backup to its end, and whether the password fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    password_fits: bool


class Journal(BaseModel):
    """The record of one node backup that we started and that is not settled yet (schema 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    node: str
    kind: str
    host: str
    port: int
    flow_run: str
    started_at: Time
    sealed: bool  # whether it was started with a sealed password
    effect: Effect = Effect.UNKNOWN
    seen_before: BackupIdentity | None = None
    pinned: BackupIdentity | None = None  # the backup that the start is believed to have made
    not_opened: NotOpened | None = None
    history: tuple[Entry, ...] = ()

    @field_validator("seen_before", "pinned")
    @classmethod
    def _has_md5(cls, value: BackupIdentity | None) -> BackupIdentity | None:
        if value is not None and value.md5 is None:
            raise ValueError("an md5 is missing")
        return value

    def is_of(self, manifest: Manifest) -> bool:
        """Return whether *manifest* belongs to the very backup of this journal."""
        # Another night's backup may have the same bytes.
        same_bytes = self.pinned is not None and self.pinned.md5 == manifest.artifact.md5
        return same_bytes and self.started_at == manifest.started_at

    def may_claim_unpinned(self) -> bool:
        """Return whether a backup that is not pinned, at the address of the start, may be the one that was started."""
        if self.pinned is not None or self.effect is Effect.REFUSED:
            return False
        # After a start without effect, anybody who knows the shared password may have made it.
        return self.sealed or self.effect is not Effect.NONE

    def is_for(self, host: str, port: int) -> bool:
        """Return whether the start was sent to that address: another one may be another appliance."""
        return (self.host, self.port) == (host, port)

    def noted(
        self,
        at: datetime,
        what: str,
        *,
        effect: Effect | None = None,
        pinned: BackupIdentity | None = None,
        not_opened: NotOpened | None = None,
    ) -> "Journal":
        """Return this journal with one more entry, and with *effect*, *pinned* and *not_opened* if given."""
        given = {"effect": effect, "pinned": pinned, "not_opened": not_opened}
        update: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        return self.model_copy(update={**update, "history": (*self.history, Entry(at=at, what=what))})


class JournalFile:
    """The file of one node's journal of one kind.

    A caller that changes it holds the node's lock.
    """

    def __init__(self, node_folder: Path, kind: str) -> None:
        self.path = node_folder / f"journal-{kind}.json"

    def read(self) -> Journal | None:
        """Return the journal, or None if there is none. Raise ValueError if the file cannot be read as a journal."""
        try:
            journal = Journal.model_validate_json(read_whole(self.path, MAX_BYTES))
            if (self.path.parent.name, self.path.name) != (journal.node, f"journal-{journal.kind}.json"):
                raise ValueError(f"{self.path.name} is that of another node or kind")
            return journal
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnsuitableFileError as error:
            raise ValueError(f"{self.path.name} {error.reason}") from None
        except ValidationError as error:
            reason = later_schema(error) or f"is not a journal: {error.errors()[0]['msg']}"
            raise ValueError(f"{self.path.name} {reason}") from None

    def write(self, journal: Journal) -> None:
        """Replace the journal by *journal*; it is durable when this returns. Raise OSError."""
        publish(self.path, journal.model_dump_json(by_alias=True, indent=1).encode() + b"\n")

    def remove(self) -> None:
        """Remove the journal: its backup is settled."""
        remove_durably(self.path)

    def set_aside(self, now: datetime) -> Path:
        """Rename an unreadable journal, keep it for a person to read, and return its new path."""
        aside = self.path.with_name(f"{self.path.name}.unreadable-{now:%Y%m%dT%H%M%SZ}")
        self.path.replace(aside)
        return aside
