"""What a copy and a verification found, for Prefect's pages and for a terminal."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from a0backup.report.words import cell, counted, plain

if TYPE_CHECKING:
    from a0backup.places.catching_up import CaughtUp
    from a0backup.places.verifying import Finding

_DAMAGE = ("damaged", "missing", "foreign", "differs")
_APART = ("not read", "stray")  # not read to be compared
_REPAIRED = ("`a0backup verify --repair`", "`a0backup copy`")  # what a repair does at once
_MOST = 500  # rows of a table that a page still shows at once


def copy_rows(results: "Iterable[CaughtUp]") -> list[dict[str, object]]:
    """Return a row for each place."""
    return [
        {
            "place": result.place,
            "copied": len(result.copied),
            "held already": len(result.held),
            "missing": "not known" if result.error else len(result.failed),
            "note": cell(result.error.reason if result.error else next(iter(result.failed.values()), "")),
        }
        for result in results
    ]


def verify_rows(findings: "Sequence[Finding]") -> list[dict[str, object]]:
    """Return a row for each place with the number of artifacts that are whole, and one for each other finding."""
    whole = Counter(finding.place for finding in findings if finding.ok)
    rows: list[dict[str, object]] = [
        {"place": place, "id": f"{count} artifacts", "result": "ok", "note": ""} for place, count in whole.items()
    ]
    bad = [finding for finding in findings if not finding.ok]
    rows += [
        {"place": each.place, "id": cell(each.id), "result": each.result, "note": cell(each.reason)} for each in bad
    ]
    if len(rows) > _MOST:
        rows = [*rows[:_MOST], {"place": "", "id": f"and {len(rows) - _MOST} more", "result": "", "note": ""}]
    return rows


def finding_lines(finding: "Finding", *, repair: bool = False) -> list[str]:
    """Return a finding as a line for a terminal, and its hint; a *repair* needs no hint to use it."""
    where = "" if finding.place == "vault" else f"{plain(finding.place)}: "
    result = "ok" if finding.ok else finding.result.upper()
    lines = [f"{plain(finding.id)}  {where}{result}" + (f": {plain(finding.reason)}" if finding.reason else "")]
    is_done = repair and any(command in finding.hint for command in _REPAIRED)
    return [*lines, f"  HINT: {plain(finding.hint)}"] if finding.hint and not is_done else lines


def mended_of(findings: "Iterable[Finding]") -> "list[Finding]":
    """Return those that a repair mended; what is found whole has no reason to tell."""
    return [finding for finding in findings if finding.ok and finding.reason]


def verify_summary(findings: "Sequence[Finding]") -> list[str]:
    """Return a line for each place, the vault first, and one for all of them."""
    found: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda each: each.place != "vault"):
        found.setdefault(finding.place, []).append(finding)
    return [*(f"{plain(place)}: {_of_place(each)}" for place, each in found.items()), _counts(findings, "read")]


def _of_place(findings: "Sequence[Finding]") -> str:
    number = sum(finding.result not in _APART for finding in findings)
    if all(finding.ok and not finding.reason for finding in findings):
        return f"{counted(number, 'artifact')} read, all whole"
    return _counts(findings, "artifact read" if number == 1 else "artifacts read") if number else _apart(findings)


def _counts(findings: "Sequence[Finding]", read: str) -> str:
    number: Counter[str] = Counter(finding.result for finding in findings)
    whole, damage = number["ok"], [f"{number[result]} {result}" for result in _DAMAGE if number[result]]
    mended = len(mended_of(findings))
    parts = [f"{whole} whole" + (f" ({mended} mended)" if mended else ""), *damage]
    text = f"{whole + sum(number[result] for result in _DAMAGE)} {read}: {', '.join(parts)}"
    return "; ".join(filter(None, (text, _apart(findings))))


def _apart(findings: "Sequence[Finding]") -> str:
    number: Counter[str] = Counter(finding.result for finding in findings)
    return ", ".join(f"{number[result]} {result}" for result in _APART if number[result])
