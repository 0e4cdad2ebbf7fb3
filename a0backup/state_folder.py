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
    return require_home() / ".local" / "state" / "a0backup"


def require_home() -> Path:
    """Return the user's home. Raise NoHomeError if there is none."""
    try:
        return Path.home()
    except RuntimeError:
        raise NoHomeError from None
