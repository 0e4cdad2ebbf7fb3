"""What a person sees in the terminal while a run is under way: a live table on a tty, plain lines everywhere else."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from a0backup.progress import Checked, Ended, News, Step, Warned, watched_by
from a0backup.report import Finding, Outcome, human_seconds, human_size, plain

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str) -> None:
    """Print a line for the person at the terminal; standard output is left to results."""
    # Nobody may be there any more to read it, or the disk of the log be full: the backup goes on.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def restore() -> None:
    """Show the cursor again, which a live table hides; for a process that ends without leaving `shown`."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Show what the run in this process does until the block ends: live on a tty, as lines otherwise."""
    if quiet:
        yield
    elif sys.stderr.isatty():
        with _LiveTable() as table, watched_by(table.hear):
            yield
    else:
        with watched_by(_Lines().hear):
            yield


_LONG = {"await": "waits for the node to make it", "retrieve": "retrieves it"}


class _Lines:
    """One line for each thing that was done, and for the beginning of what may take hours."""

    def __init__(self) -> None:
        self._at: dict[str, str] = {}

    def hear(self, news: News) -> None:
        match news:
            case Step():
                who = _who(news.node, news.kind)
                text = news.text
                if not text and self._at.get(who) != news.name:
                    text = _LONG.get(news.name, "")
                self._at[who] = news.name
                if text:
                    say(f"{who}  {news.name}: {plain(text)}")
            case Ended():
                say(_ending(news.outcome))
            case Checked():
                say(_checked(news.finding))


def _checked(finding: Finding) -> str:
    return f"{finding.node}  " + (finding.status if finding.well else f"not well: {plain(finding.problems[0])}")


def _ending(outcome: Outcome) -> str:
    return f"{_who(outcome.node, outcome.kind)}  {outcome.ending} after {human_seconds(outcome.seconds)}"


def _who(node: str, kind: str) -> str:
    return f"{node} {kind}" if kind and kind != "backup" else node


class _LiveTable:
    """One row a node: the step it is at, for how long, and how many bytes have come."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._lock = threading.Lock()
        self._rows: dict[str, tuple[Step | Ended, float]] = {}
        self._console = Console(stderr=True)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "_LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def hear(self, news: News) -> None:
        if isinstance(news, Warned):
            return  # whoever prints the report says it there
        if isinstance(news, Checked):
            self._console.print(_checked(news.finding), highlight=False, markup=False)
            return
        if isinstance(news, Ended):
            with self._lock:
                self._rows.pop(news.outcome.node, None)
            self._console.print(_ending(news.outcome), highlight=False, markup=False)
            return
        with self._lock:
            former = self._rows.get(news.node)
            same = former is not None and isinstance(former[0], Step) and former[0].name == news.name
            # An await is one wait, however often it is asked.
            self._rows[news.node] = (news, former[1] if former and same else time.monotonic())

    def _render(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        with self._lock:
            rows = list(self._rows.items())
        # Those that have been at their step for longest are the ones to look at.
        rows.sort(key=lambda row: row[1][1])
        room = max(self._console.height - 2, 3)
        for node, (step, since) in rows[:room]:
            if isinstance(step, Step):
                elapsed = human_seconds(time.monotonic() - since)
                table.add_row(Text(node), Text(step.name), Text(elapsed), Text(_bytes(step) or plain(step.text)))
        if len(rows) > room:
            table.add_row(Text(f"and {len(rows) - room} more"))
        return table


def _bytes(step: Step) -> str:
    if step.watch is None:
        return ""
    size = _largest(step.watch)
    return f"{human_size(size)} of about {human_size(step.size)}" if step.size else human_size(size)


def _largest(directory: Path) -> int:
    try:
        return max((path.lstat().st_size for path in directory.glob("*.tar.gz.enc")), default=0)
    except OSError:
        return 0
