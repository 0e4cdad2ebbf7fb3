"""What a copy and a verification found, for Prefect's pages."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from a0backup.report.words import cell

if TYPE_CHECKING:
    from a0backup.places.catching_up import CaughtUp
    from a0backup.places.verifying import Finding

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
