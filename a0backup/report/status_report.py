"""The status of each node and kind, for people and for programs that monitor.

The first line has the form that monitoring programs expect of a plugin: one word for the state, and what it means. In
no line is there a `|`: they read what follows one as numbers, and show it to nobody.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from a0backup.report.words import cell, counted, human_seconds, plain

if TYPE_CHECKING:
    from a0backup.nodes.status import KindStatus

_STATES = {True: "ok", False: "NOT FRESH", None: "not watched"}
_NAMED = 5  # in the first line, of which some programs show 80 characters and none more than some thousand


def status_lines(rows: "Sequence[KindStatus]") -> list[str]:
    """Return all lines: the summary, and those of each row."""
    width = max((len(row.name) for row in rows), default=0)
    lines = [_summary(rows), *(line for row in rows for line in _lines(row, width))]
    return [line.replace("|", "/") for line in lines]


def not_fresh(rows: "Sequence[KindStatus]") -> list[str]:
    """Return each node and kind whose newest backup is not fresh, or of which nothing is known, and why."""
    return [f"{row.name}: {'; '.join(_reasons(row))}" for row in rows if _reasons(row)]


def status_rows(rows: "Sequence[KindStatus]") -> list[dict[str, object]]:
    """Return a row for each, for a table on a page."""
    return [
        {
            "node": row.node,
            "kind": row.kind,
            "state": _STATES[row.fresh] if row.error is None else "not readable",
            "age": _age(row),
            "last": cell(row.last or ""),
            "note": cell("; ".join((*_reasons(row), *row.warnings))),
        }
        for row in rows
    ]


def _summary(rows: "Sequence[KindStatus]") -> str:
    if bad := not_fresh(rows):
        return f"CRITICAL - {len(bad)} of {counted(len(rows), 'backup')} not fresh: {_some(bad)}"
    watched = [row for row in rows if row.fresh is not None]
    said = f"{len(watched)} of {counted(len(rows), 'backup')} fresh" if watched else counted(len(rows), "backup")
    if unwatched := len(rows) - len(watched):
        said += f", {unwatched} not watched"
    if ages := [(row.age, row.name) for row in watched or rows if row.age is not None]:
        age, name = max(ages)
        said += f", the oldest is {human_seconds(age)} old ({name})"
    if odd := [f"{row.name}: {row.warnings[0]}" for row in rows if row.warnings]:
        return f"WARNING - {said}; {_some(odd)}"
    return f"OK - {said}"


def _some(texts: Sequence[str]) -> str:
    shown = "; ".join(map(plain, texts[:_NAMED]))
    return f"{shown}; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else shown


def _age(row: "KindStatus") -> str:
    return "" if row.age is None else human_seconds(row.age)


def _reasons(row: "KindStatus") -> list[str]:
    return [row.error] if row.error else row.problems


def _lines(row: "KindStatus", width: int) -> Iterator[str]:
    if row.error:
        yield f"{row.name:{width}}  not readable"
        yield f"  error          {plain(row.error)}"
        return
    yield f"{row.name:{width}}  {_STATES[row.fresh]:11}  {_age(row):>11}  {row.last or 'none yet'}"
    for problem in row.problems:
        yield f"  not fresh      {plain(problem)}"
    for warning in row.warnings:
        yield f"  warning        {plain(warning)}"
    if row.journal:
        yield f"  unfinished     {row.journal}"
    if row.holder:
        yield f"  lock           {row.holder}"
    yield from _copies(row)
    if row.drilled:
        ended = "opened" if row.drilled["passed"] else "did not pass"
        yield f"  drill          {row.drilled['at']}: {row.drilled['id']} {ended}"
    if row.quarantine:
        yield f"  quarantine     {row.quarantine}"
    for folder in row.damaged or ():
        yield f"  quarantine     {folder}: damaged files of a mended artifact"
    for note in row.notes:
        yield f"  note           {plain(note)}"


def _copies(row: "KindStatus") -> Iterator[str]:
    behind = row.behind or {}
    if complete := [place for place, count in behind.items() if row.last and not count]:
        yield f"  copies         {', '.join(complete)}: complete"
    for place, count in behind.items():
        if count:
            yield f"  copies         {place} is {count} behind; `a0backup copy` copies what it lacks"
