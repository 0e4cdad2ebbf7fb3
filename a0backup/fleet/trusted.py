"""Which fleet files a worker takes: whoever can start a run in the UI names the file, and so the program to run."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from a0backup.access import others_can_replace, others_can_write
from a0backup.errors import FleetFileError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet

FOLDERS = "A0BACKUP_FLEETS"  # folders, separated as in PATH


def folders() -> tuple[Path, ...]:
    """Return the folders below which a worker takes fleet files; empty if none is configured."""
    return tuple(Path(each) for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each)


def load_trusted(path: Path, below: Sequence[Path]) -> Fleet:
    """Return the fleet in the file at *path*, which must lie below one of these folders, if there are any.

    Raise FleetFileError. It quotes nothing of a file that is not below them: its content may be
    somebody else's secret.
    """
    if reason := _distrust(path, below):
        raise FleetFileError(str(path), [reason])
    try:
        return load_fleet(path)
    except FleetFileError:
        if below:
            raise
        raise FleetFileError(
            str(path), [f"it cannot be used; `a0backup check --fleet {path}` on the machine of the worker says why"]
        ) from None


def _distrust(path: Path, below: Sequence[Path]) -> str:
    """Return why the file at *path* is not taken; an empty text if it is."""
    # Whatever is there or not: an error of the system would tell which files of others exist.
    real = Path(os.path.realpath(path))
    if below and not any(real.is_relative_to(os.path.realpath(folder)) for folder in below):
        return f"this worker takes only fleet files below {' and '.join(map(str, below))} ({FOLDERS})"
    try:
        if not stat.S_ISREG(real.stat().st_mode):
            return "is not a regular file"
        # By the name that was given: with a link on the way, its owner decides which file is read. The sticky bit does
        # not help the folders: what is read beside the file, others could make there first.
        if any(map(others_can_write, (real, real.parent, path.parent))) or others_can_replace(path):
            return f"other users can write {real} or a folder above it, so this worker refuses it"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""
