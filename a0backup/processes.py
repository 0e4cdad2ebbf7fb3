"""Other processes of this machine, as Linux's /proc shows them; elsewhere there are none to see."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def others() -> Iterator[Path]:
    """Yield the folder in /proc of every process but this one; it may end at any time, or belong to another user."""
    return (process for process in Path("/proc").glob("[0-9]*") if int(process.name) != os.getpid())


def stat_fields(process: Path) -> list[str]:
    """Return the fields of proc(5)'s stat from the third on, the state. Raise OSError if the process has ended."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def opened(process: Path, file: os.stat_result) -> Iterator[str]:
    """Yield proc(5)'s fdinfo of each descriptor that the process has of *file*. Raise OSError if it may not be seen."""
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed
            if os.path.samestat(descriptor.stat(), file):
                yield (process / "fdinfo" / descriptor.name).read_text()


def hidden_from_us() -> list[int]:
    """Return the pids of this user's other processes that do not let it see what they have open.

    With `hidepid`, /proc may not list such a process at all.
    """
    return [int(process.name) for process in others() if _is_ours(process) and _is_hidden(process)]


def _is_ours(process: Path) -> bool:
    try:
        status = (process / "status").read_text(errors="replace")
    except OSError:
        return False  # it has ended
    # The owner of its folder is no help: that of a process which is not dumpable belongs to root.
    users = next((line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")), [])
    return str(os.geteuid()) in users


def _is_hidden(process: Path) -> bool:
    try:
        os.close(os.open(process / "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
