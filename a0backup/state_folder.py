"""The folder where this user's programs keep their state (XDG Base Directory Specification)."""

import os
from pathlib import Path

from a0backup.errors import NoHomeError


def state_folder() -> Path:
    """Return the folder of a0backup below XDG_STATE_HOME, else below the user's home. Raise NoHomeError."""
    # A relative path in the variable must be ignored.
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if base.is_absolute():
        return base / "a0backup"
    try:
        return Path.home() / ".local" / "state" / "a0backup"
    except RuntimeError:
        raise NoHomeError from None
