"""The pin beside an artifact: pinned.json (schema 1), a mark that keeps the artifact from being pruned.

write_pin(vault.root / manifest.id, Pin(pinned_at=now, because="before the upgrade"))
pin = read_pin(vault.root / manifest.id)
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator

from a0backup.a0cli.text import quote
from a0backup.files import UnsuitableFileError, publish, read_whole, remove_durably
from a0backup.vault.manifest import Time
from a0backup.vault.notes import Note

PINNED = "pinned.json"
LONGEST = 500  # characters of a reason
MAX_PINNED_BYTES = 16 << 10


class Pin(Note):
    """Since when an artifact is kept, why, and until when; *until* None: until the pin is removed."""

    until: Time | None = None
    because: Annotated[str, Field(max_length=LONGEST)] = ""
    pinned_at: Time

    @field_validator("because", mode="before")
    @classmethod
    def _in_one_line(cls, because: object) -> object:
        return quote(because, limit=LONGEST) if isinstance(because, str) else because

    def holds(self, now: datetime) -> bool:
        """Return whether the pin still keeps the artifact."""
        return self.until is None or now < self.until

    def __str__(self) -> str:
        until = f" until {self.until:%Y-%m-%dT%H:%M:%SZ}" if self.until else ""
        return f"pinned{until}" + (f": {self.because}" if self.because else "")


def read_pin(folder: Path) -> Pin | None:
    """Return the pin in the artifact's *folder*; None if there is none. Raise ValueError if it cannot be read."""
    try:
        return Pin.model_validate_json(read_whole(folder / PINNED, MAX_PINNED_BYTES))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{PINNED} is not a pin: {error.errors()[0]['msg']}") from None
    except UnsuitableFileError as error:
        raise ValueError(f"{PINNED} {error.reason}") from None
    except OSError as error:
        raise ValueError(f"{PINNED} cannot be read: {error.strerror}") from None


def reason_to_keep(folder: Path, now: datetime) -> str:
    """Return why the pin in *folder* keeps the artifact; empty if none does. One that cannot be read keeps it."""
    try:
        pin = read_pin(folder)
    except ValueError as error:
        return f"pinned: {error}"
    return str(pin) if pin is not None and pin.holds(now) else ""


def write_pin(folder: Path, pin: Pin) -> None:
    """Make *pin* the one in the artifact's *folder*, atomically and durably, mode 0600. Raise OSError."""
    publish(folder / PINNED, pin.to_file())


def remove_pin(folder: Path) -> bool:
    """Remove the pin in *folder* durably; return whether there was one. Raise OSError."""
    there = (folder / PINNED).exists()
    remove_durably(folder / PINNED)
    return there
