"""An arena for each module, and the table of what was tried, printed at the end."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.paths import REPOSITORY
from tests.system.faults.trial import Arena, arena

TABLE = REPOSITORY / "docs" / "reliability.md"
WRITE = "A0BACKUP_WRITE_TABLE"


@dataclass
class Tried:
    """What was tried for one fault, and the results."""

    points: int = 0
    killed: int = 0
    resumed: int = 0
    violations: int = 0


class Told:
    """What a test tried for its fault: one call of `point` for each point, with what is wrong after it."""

    def __init__(self, fault: str) -> None:
        self.fault, self.tried, self.wrong = fault, Tried(), list[str]()

    def point(self, where: str, broken: list[str], *, killed: bool = False, resumed: bool = True) -> None:
        """Record that a point was tried, whether the run was killed there, and what is wrong after it."""
        self.tried.points += 1
        self.tried.killed += killed
        self.tried.resumed += resumed and not broken
        self.tried.violations += bool(broken)
        self.wrong += [f"{where}: {each}" for each in broken]


@pytest.fixture
def told(record_property: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a function that begins the record of a fault. Everything that was wrong fails the test at its end."""
    made: list[Told] = []

    def begin(fault: str) -> Told:
        made.append(Told(fault))
        return made[-1]

    yield begin
    record_property("faults", [{"fault": each.fault, **vars(each.tried)} for each in made])
    wrong = [line for each in made for line in each.wrong]
    if wrong:
        pytest.fail(f"{len(wrong)} violations:\n" + "\n".join(wrong), pytrace=False)


@pytest.fixture(scope="module")
def arena_(engine_server: str) -> Iterator[Arena]:
    # In memory where possible: what survives a power cut is computed, not tried, and fsync takes time.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(prefix="a0backup-arena-", dir=place) as room, arena(Path(room), engine_server) as made:
        yield made


def pytest_terminal_summary(terminalreporter: Any) -> None:
    table: dict[str, Tried] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, rows in getattr(report, "user_properties", ()):
                for row in rows if name == "faults" and getattr(report, "when", "") == "teardown" else ():
                    tried = table.setdefault(row["fault"], Tried())
                    for field in fields(Tried):
                        setattr(tried, field.name, getattr(tried, field.name) + row[field.name])
    if not table:
        return
    lines = ["| fault | points tried | killed | resumed | violations |", "| --- | ---: | ---: | ---: | ---: |"]
    total = Tried()
    for fault, tried in sorted(table.items()):
        lines.append(f"| {fault} | {tried.points} | {tried.killed} | {tried.resumed} | {tried.violations} |")
        for field in fields(Tried):
            setattr(total, field.name, getattr(total, field.name) + getattr(tried, field.name))
    lines.append(f"| **all** | {total.points} | {total.killed} | {total.resumed} | {total.violations} |")
    terminalreporter.section("faults")
    for line in lines:
        terminalreporter.write_line(line)
    if os.environ.get(WRITE):
        before, _, rest = TABLE.read_text().partition("<!-- table -->\n")
        after = rest.partition("<!-- end of table -->")[2]
        TABLE.write_text(f"{before}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end of table -->{after}")
