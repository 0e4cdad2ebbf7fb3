"""The limits that the system sets for this process, and how many nodes fit into them at once."""

import contextlib
import ctypes
import resource
from dataclasses import dataclass

# A node takes 5 (measured with up to 25 at once): the lock, the pipes of its a0cli, its share of the connections.
DESCRIPTORS = 8
# An a0cli of Node.js has about a dozen threads, and each counts.
PROCESSES = 16
RESERVED = 200  # for the process itself, and the engine's server below it


_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2)


@dataclass(frozen=True)
class _Limit:
    name: str
    number: int
    per_node: int


_LIMITS = (
    _Limit("open files (ulimit -n)", resource.RLIMIT_NOFILE, DESCRIPTORS),
    _Limit("processes and threads (ulimit -u)", resource.RLIMIT_NPROC, PROCESSES),
)


def raise_limits() -> None:
    """Raise each soft limit of this process to its hard one, as any process may."""
    for limit in _LIMITS:
        soft, hard = resource.getrlimit(limit.number)
        if soft != hard:
            resource.setrlimit(limit.number, (hard, hard))


def nodes_that_fit() -> tuple[int | None, str]:
    """Return how many nodes fit at once and the limit that says so; None if no limit matters."""
    found: list[tuple[int, str]] = []
    for limit in _LIMITS:
        hard = resource.getrlimit(limit.number)[1]
        if hard != resource.RLIM_INFINITY:
            found.append((max(1, (hard - RESERVED) // limit.per_node), f"{hard} {limit.name}"))
    return min(found, default=(None, ""))


def warning(wanted: int) -> str:
    """Return what to say if fewer than *wanted* nodes fit at once; empty otherwise."""
    most, why = nodes_that_fit()
    if most is None or most >= wanted:
        return ""
    return f"only {most} nodes are backed up at once, not {wanted}: the system allows this process {why}"


def at_most(wanted: int) -> int:
    """Return *wanted*, or how many nodes fit if that is less; the limits of this process are raised first."""
    raise_limits()
    most, _ = nodes_that_fit()
    return wanted if most is None else min(wanted, most)


def keep_memory_private() -> None:
    """Make sure that no core dump of this process is written, and that no other process can read its memory.

    It may hold passwords. Processes that it starts may be dumped again, but not into a core file.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
