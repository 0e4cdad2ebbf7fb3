"""The progress of a run, for listeners in this process: the terminal and the run's page.

It needs no engine: it stays correct even if the engine's server disappears in the middle of a run.

    board = Board()
    with watched_by(board.hear):
        ...
        print(board.rows())
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from a0backup.report.outcomes import Finding, Outcome
from a0backup.report.warnings import RunWarning
from a0backup.report.words import cell, human_seconds, human_size


@dataclass(frozen=True)
class Step:
    """A step of a node backup has begun (*text* is empty) or reports its state."""

    node: str
    kind: str
    name: str
    text: str = ""
    watch: Path | None = None  # a directory in which a file is growing
    size: int | None = None  # bytes that this file had the last time


@dataclass(frozen=True)
class Ended:
    """A node backup of one kind has ended."""

    outcome: Outcome


@dataclass(frozen=True)
class Checked:
    """The read-only check of a node has ended."""

    finding: Finding


@dataclass(frozen=True)
class Warned:
    """The run has issued a warning."""

    warning: RunWarning


News = Step | Ended | Checked | Warned
Listener = Callable[[News], None]
log = logging.getLogger(__name__)

_listeners: list[Listener] = []


@contextmanager
def watched_by(listener: Listener) -> Iterator[None]:
    """Pass all news to *listener* until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        if listener in _listeners:
            _listeners.remove(listener)


def tell(news: News) -> None:
    """Pass *news* to all listeners. One that fails is removed: a backup does not depend on its listeners."""
    for listener in tuple(_listeners):
        try:
            listener(news)
        except Exception:
            log.exception("a listener of the run failed and was removed")
            _listeners.remove(listener)


@dataclass(frozen=True)
class Row:
    """The progress of one node: its step and for how long; once it has ended, the outcome and the duration."""

    node: str
    kind: str = ""
    step: str = "not begun"
    seconds: float | None = None
    retrieved: int | None = None  # bytes
    expected: int | None = None  # bytes, as far as known
    says: str = ""  # the state of the step, or why it failed
    ended: bool = False

    @property
    def who(self) -> str:
        """The node, and the kind unless it is `backup`."""
        return who(self.node, self.kind)

    @property
    def duration(self) -> str:
        """The duration as text."""
        return "" if self.seconds is None else human_seconds(self.seconds)

    @property
    def bytes(self) -> str:
        """The retrieved and the expected size as text."""
        if self.retrieved is None:
            return ""
        size = human_size(self.retrieved)
        return f"{size} of about {human_size(self.expected)}" if self.expected and not self.ended else size


@dataclass
class _Place:
    """The news of a node, and the size of its file at the last check."""

    step: Step | None = None
    since: float = 0.0
    watch: Path | None = None
    expected: int | None = None
    retrieved: int | None = None
    outcomes: list[Outcome] = field(default_factory=list)


class Board:
    """The current step of each node, since when, and how many bytes have arrived.

    *nodes* are shown in this order, even before there is any news of them. Without *nodes*, every node with
    news is shown. Several threads may use a board.
    """

    def __init__(self, nodes: Sequence[str] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._open = nodes is None
        self._clock = clock
        self._lock = threading.Lock()
        self._places = {node: _Place() for node in nodes or ()}

    def hear(self, news: News) -> None:
        """Record the news of a node; a listener for `watched_by`."""
        match news:
            case Step(node=node):
                pass
            case Ended():
                node = news.outcome.node
            case _:
                return
        with self._lock:
            if node not in self._places and not self._open:
                return
            place = self._places.setdefault(node, _Place())
            if isinstance(news, Ended):
                place.outcomes.append(news.outcome)
            else:
                self._note(place, news)

    def _note(self, place: _Place, step: Step) -> None:
        former, place.step = place.step, step
        # An await is one wait, however often it polls.
        if former is None or (former.kind, former.name) != (step.kind, step.name):
            place.since = self._clock()
        if step.watch is not None:
            place.watch, place.expected, place.retrieved = step.watch, step.size, None
        elif former is not None and former.kind != step.kind:
            place.watch = place.expected = place.retrieved = None

    def rows(self) -> list[Row]:
        """Return a row for each node. Reads the sizes of the growing files, which takes as long as their disk does."""
        with self._lock:
            watched = [(node, place.watch) for node, place in self._places.items() if not place.outcomes]
        sizes = [(node, watch, _largest(watch)) for node, watch in watched if watch is not None]
        with self._lock:
            for node, watch, size in sizes:
                place = self._places[node]
                # A verified file is moved elsewhere; the number of retrieved bytes must not drop then.
                if place.watch == watch and size is not None:
                    place.retrieved = max(size, place.retrieved or 0)
            now = self._clock()
            return [_row(node, place, now) for node, place in self._places.items()]


def _row(node: str, place: _Place, now: float) -> Row:
    if place.outcomes:
        bad = [outcome for outcome in place.outcomes if not outcome.ok]
        sizes = [outcome.size for outcome in place.outcomes if outcome.size is not None]
        return Row(
            node,
            step=", ".join(dict.fromkeys(_ending(outcome) for outcome in bad or place.outcomes)),
            seconds=sum(outcome.seconds for outcome in place.outcomes),
            retrieved=sum(sizes) if sizes else place.retrieved,
            says="; ".join(dict.fromkeys(outcome.reason for outcome in bad)),
            ended=True,
        )
    if place.step is None:
        return Row(node)
    step = place.step
    return Row(node, step.kind, step.name, now - place.since, place.retrieved, place.expected, step.text)


def _ending(outcome: Outcome) -> str:
    step = f" ({outcome.step})" if outcome.step and not outcome.ok else ""
    return f"{outcome.ending}{step}"


def _largest(directory: Path) -> int | None:
    try:
        return max((path.lstat().st_size for path in directory.glob("*.tar.gz.enc")), default=None)
    except OSError:
        return None


def who(node: str, kind: str) -> str:
    """Return the node, and the kind unless it is `backup`."""
    return f"{node} {kind}" if kind and kind != "backup" else node


def percent_ended(rows: Sequence[Row]) -> float:
    """Return the percentage of nodes that have ended."""
    return round(100 * sum(row.ended for row in rows) / len(rows), 1) if rows else 100.0


def table(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Return the rows for Prefect's table artifact."""
    return [
        {
            "node": cell(row.who),
            "step": cell(row.step),
            "for": row.duration,
            "retrieved": row.bytes,
            "note": cell(row.says),
        }
        for row in rows
    ]
