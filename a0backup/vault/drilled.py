"""The record of the last drill beside an artifact: drilled.json (schema 1).

write_drilled(vault.root / manifest.id, Drilled(drilled_at=now, passed=True, level="contents"))
drilled = read_drilled(vault.root / manifest.id)

It is a note about the artifact, and no part of it: it may be missing, and copies are whole without it.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from a0backup.a0cli.text import quote
from a0backup.files import UnsuitableFileError, publish, read_whole
from a0backup.vault.manifest import Time
from a0backup.vault.notes import Note

DRILLED = "drilled.json"
MAX_DRILLED_BYTES = 64 << 10
_LONGEST_PROBLEM = 1000  # characters


class Drilled(Note):
    """When an artifact was last drilled, and how that ended.

    *level* is how far the drill read: *contents* to the end of what is in the artifact, *md5* its stored bytes
    alone. *problem* is why it did not pass, in one printable line.
    """

    drilled_at: Time
    passed: Annotated[bool, Field(strict=True)]
    level: Literal["contents", "md5"]
    problem: Annotated[str, Field(max_length=_LONGEST_PROBLEM)] | None = None

    @property
    def tells_of_stored_bytes(self) -> bool:
        """Whether it says that the stored bytes were damaged, which other places and mended bytes need not be."""
        return not self.passed and self.level == "md5"

    @field_validator("problem", mode="before")
    @classmethod
    def _in_one_line(cls, problem: object) -> object:
        # What is read from a copy is as untrusted as what a node says.
        return quote(problem, limit=_LONGEST_PROBLEM) if isinstance(problem, str) else problem


def read_drilled(folder: Path | str) -> Drilled | None:
    """Return the record of the last drill in the artifact's *folder*; None if there is none that can be read."""
    try:
        # As text: a path for each of 100,000 artifacts takes longer than to find that most have no record.
        return Drilled.parsed(read_whole(f"{folder}/{DRILLED}", MAX_DRILLED_BYTES))
    except (OSError, UnsuitableFileError):
        return None


def write_drilled(folder: Path, drilled: Drilled) -> None:
    """Make *drilled* the record in the artifact's *folder*, atomically and durably, mode 0600. Raise OSError."""
    publish(folder / DRILLED, drilled.to_file())


def forget_damage(folder: Path) -> None:
    """Remove the record in the artifact's *folder* if it says that the stored bytes are damaged. Raise OSError."""
    drilled = read_drilled(folder)
    if drilled is not None and drilled.tells_of_stored_bytes:
        (folder / DRILLED).unlink(missing_ok=True)
