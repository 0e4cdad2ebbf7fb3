"""Terminal output during a run: a live table on a tty, plain lines everywhere else."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import click

from a0backup.report.outcomes import Finding, Outcome
from a0backup.report.progress import Board, Checked, Ended, News, Step, watched_by, who
from a0backup.report.words import human_seconds, plain

if TYPE_CHECKING:
    from rich.table import Table


_quiet = False


def say(text: str, *, chatter: bool = False) -> None:
    """Print a line for the user to standard error; standard output is reserved for results.

    *chatter* is left out of a quiet run.
    """
    if chatter and _quiet:
        return
    # The reader may be gone, or the disk of the log full: the backup continues.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def report(text: str) -> None:
    """Print the result of a run to standard output; if that fails, to standard error with the reason."""
    try:
        click.echo(text)
    except OSError as error:
        discard_output()
        say(f"error: standard output cannot be written ({error.strerror}); the report follows here:")
        say(text)


def echo_lines(lines: Iterable[str]) -> None:
    """Print *lines* to standard output, many at a time."""
    rest = iter(lines)
    while some := list(islice(rest, 1000)):
        click.echo("\n".join(some))


def discard_output() -> None:
    """Discard what is still to be written to standard output: Python would fail again at exit, with another code."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def restore() -> None:
    """Show the cursor, which a live table hides; for a process that ends without leaving `shown`."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Show the progress of the run in this process until the block ends: live on a tty, as lines otherwise."""
    global _quiet
    _quiet = quiet
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _LiveTable() as table, watched_by(table.hear):
            yield
    else:
        with watched_by(_Lines().hear):
            yield


_LONG = {"await": "waiting for the node to make the backup", "retrieve": "retrieving it"}


class _Lines:
    """One line for each action, and for the start of each step that may take hours, with its time for log files."""

    def __init__(self) -> None:
        self._at: dict[str, str] = {}

    def hear(self, news: News) -> None:
        match news:
            case Step():
                name = who(news.node, news.kind)
                text = news.text
                if not text and self._at.get(name) != news.name:
                    text = _LONG.get(news.name, "")
                self._at[name] = news.name
                if text:
                    self._say(f"{name}  {news.name}: {plain(text)}")
            case Ended():
                self._say(_ending(news.outcome))
            case Checked():
                self._say(_checked(news.finding))

    def _say(self, text: str) -> None:
        say(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}  {text}")


def _checked(finding: Finding) -> str:
    return f"{finding.node}  " + (finding.status if finding.ok else f"not ok: {plain(finding.problems[0].text)}")


def _ending(outcome: Outcome) -> str:
    return f"{who(outcome.node, outcome.kind)}  {outcome.ending} after {human_seconds(outcome.seconds)}"


class _LiveTable:
    """One row per node: its step, for how long, the bytes retrieved, and the state of the step."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._board = Board()
        self._console = Console(stderr=True)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "_LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()

    def hear(self, news: News) -> None:
        self._board.hear(news)
        # Warnings are printed with the report.
        # The terminal may be closed: the run continues, or is being interrupted.
        with contextlib.suppress(OSError):
            if isinstance(news, Checked):
                self._console.print(_checked(news.finding), highlight=False, markup=False)
            elif isinstance(news, Ended):
                self._console.print(_ending(news.outcome), highlight=False, markup=False)

    def _render(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        # The longest step comes first: it is the one to check.
        rows = sorted((row for row in self._board.rows() if not row.ended), key=lambda row: -(row.seconds or 0))
        room = max(self._console.height - 2, 3)
        for row in rows[:room]:
            table.add_row(*map(Text, (row.who, row.step, row.duration, row.bytes, plain(row.says))))
        if len(rows) > room:
            table.add_row(Text(f"and {len(rows) - room} more"))
        return table
