"""What runs where: `make test`, `make test-all` and `make test-faults`.

    pytestmark = [pytest.mark.slow]  # only `make test-all` runs it
    @matrix                          # only `make test-faults` runs it: every point, or every n-th
    @deep                            # only `make test-faults` runs it, if it tries every point

`--extent quick` skips the slow tests, `--extent rest` runs only those, plain `pytest` runs both.
"""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

from tests.support.paths import REPOSITORY

EVERY = int(os.environ.get("A0BACKUP_FAULTS", "0"))  # 1: every point of the matrices, 10: every tenth, 0: none
WHOLE = EVERY == 1
PARTS = 8  # of each matrix, shared by the workers of pytest-xdist

matrix = pytest.mark.faults(EVERY > 0)
deep = pytest.mark.faults(WHOLE)
in_parts = pytest.mark.parametrize("part", range(PARTS))

_REPORT = "a0backup-left-out"  # the key of what the workers of pytest-xdist send to the reporting process

P = TypeVar("P")


def share(points: Iterable[P], part: int = 0, parts: int = 1) -> list[P]:
    """Return the *points* to try, or one part of them."""
    return list(points)[EVERY // 2 :: EVERY][part::parts]


def add_option(parser: pytest.Parser) -> None:
    """Add `--extent` to the options of pytest."""
    parser.addoption(
        "--extent",
        choices=("quick", "rest", "all"),
        default="all",
        help="quick: what `make test` runs; rest: what `make test-all` runs on top of it; all: both",
    )


class Extent:
    """A plugin that skips tests outside the extent, and lists them at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._wanted = config.getoption("extent")
        self._left_out: dict[str, Counter[str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out: dict[str, list[pytest.Item]] = {}
        for item in items:
            if runs_it := self._runs_only_by(item):
                left_out.setdefault(runs_it, []).append(item)
        for runs_it, those in left_out.items():
            self._left_out[runs_it] = Counter(_room(item) for item in those)
            config.hook.pytest_deselected(items=those)
        gone = {id(item) for those in left_out.values() for item in those}
        # Slow tests come first, starting with those that mostly wait: at the end no worker is left alone with one.
        items[:] = sorted((item for item in items if id(item) not in gone), key=lambda i: (_is_quick(i), not _waits(i)))
        if hasattr(config, "workeroutput"):
            config.workeroutput[_REPORT] = {runs_it: dict(rooms) for runs_it, rooms in self._left_out.items()}

    def _runs_only_by(self, item: pytest.Item) -> str:
        """Return the only command that runs *item*, or "" if this extent runs it."""
        if not all(mark.args[0] for mark in item.iter_markers("faults")):
            return "make test-faults"
        if not _is_quick(item) and self._wanted == "quick":
            return "make test-all"
        return "make test" if _is_quick(item) and self._wanted == "rest" else ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over what a worker of pytest-xdist skipped. All workers collect the same tests."""
        said = getattr(node, "workeroutput", {}).get(_REPORT, {})
        self._left_out |= {runs_it: Counter(rooms) for runs_it, rooms in said.items()}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for runs_it, rooms in sorted(self._left_out.items()):
            named = ", ".join(f"{room} {number}" for room, number in sorted(rooms.items()))
            terminalreporter.write_line(f"not run by this command but by `{runs_it}`: {named}")


def _is_quick(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is None


def _waits(item: pytest.Item) -> bool:
    return item.path.name in ("test_engine_faults.py", "test_many_machines.py")


def _room(item: pytest.Item) -> str:
    room, *inner = item.path.relative_to(REPOSITORY / "tests").parts[:-1] or ["tests"]
    return inner[0] if room == "system" else room
