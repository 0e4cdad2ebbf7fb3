"""Where a run is, told to whoever watches in this process: the terminal, above all.

It needs no engine: what is said here is right also when the engine's server went away in the middle of a run.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from a0backup.report import Finding, Outcome


@dataclass(frozen=True)
class Step:
    """A step of one node's backup has begun (*text* empty) or says how it is."""

    node: str
    kind: str
    name: str
    text: str = ""
    watch: Path | None = None  # a directory in which a file grows meanwhile
    size: int | None = None  # how large that file was the last time, in bytes


@dataclass(frozen=True)
class Ended:
    """A node's backup of one kind has ended."""

    outcome: Outcome


@dataclass(frozen=True)
class Checked:
    """The read-only look at a node has ended."""

    finding: Finding


@dataclass(frozen=True)
class Warned:
    """Something is well enough for this run, and should not stay so; of the fleet or of one node."""

    text: str


News = Step | Ended | Checked | Warned
Listener = Callable[[News], None]
log = logging.getLogger(__name__)

_listeners: list[Listener] = []


@contextmanager
def watched_by(listener: Listener) -> Iterator[None]:
    """Tell *listener* everything until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        if listener in _listeners:
            _listeners.remove(listener)


def tell(news: News) -> None:
    """Tell all who watch. One that fails at it is not told any more: a backup does not depend on who watches."""
    for listener in tuple(_listeners):
        try:
            listener(news)
        except Exception:
            log.exception("a watcher of the run failed and is not told any more")
            _listeners.remove(listener)
