"""Check whether the vault's disk is mounted."""

import re
from pathlib import Path
from typing import NamedTuple

FSTAB = Path("/etc/fstab")


def unmounted(path: Path, *, fstab: Path = FSTAB) -> Path | None:
    """Return the mount point above *path* that fstab(5) names and where nothing is mounted; None if there is none."""
    try:
        lines = fstab.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines if not line.lstrip().startswith("#"))
    places = (_unescaped(field[1]) for field in fields if len(field) > 1)
    above = [Path(place) for place in places if place.startswith("/") and path.resolve().is_relative_to(place)]
    return next((place for place in above if not _is_mounted(place)), None)


def _unescaped(name: str) -> str:
    """Return *name* unescaped: fstab and mountinfo write a blank in a name as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name)


class _Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5): which *root* of which file system (*device*) is mounted at *place*."""

    device: str
    root: Path
    place: Path


def _is_mounted(place: Path) -> bool:
    """Return whether something is mounted at *place*, also a directory of the same file system (mount --bind).

    A directory that is bound onto itself does not count: systemd does this with each of a unit's
    ReadWritePaths.
    """
    if place.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    place = place.resolve()
    fields = [line.split() for line in lines]
    mounts = [_Mount(field[2], Path(_unescaped(field[3])), Path(_unescaped(field[4]))) for field in fields]
    mounts.reverse()  # the last mount at a place is the visible one
    here = next((mount for mount in mounts if mount.place == place), None)
    above = max((m for m in mounts if m.place in place.parents), key=lambda m: len(m.place.parts), default=None)
    if here is None or above is None:
        return here is not None
    return (here.device, here.root) != (above.device, above.root / place.relative_to(above.place))
