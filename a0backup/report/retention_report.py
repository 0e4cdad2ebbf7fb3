"""What becomes of each artifact when the vault is pruned, for Prefect's pages and for a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from a0backup.report.words import cell, counted, plain

if TYPE_CHECKING:
    from a0backup.retention.planning import Decision, Plan
    from a0backup.retention.pruning import PrunedHere

_MOST = 500  # rows of a table that a page still shows at once


def retention_rows(decisions: "Sequence[Decision]") -> list[dict[str, object]]:
    """Return a row for each artifact, those that go first."""
    sorted_ = sorted(decisions, key=lambda each: each.action == "keep")
    rows: list[dict[str, object]] = [
        {"id": cell(each.id), "action": each.action, "reasons": cell("; ".join(each.reasons))} for each in sorted_
    ]
    if len(rows) > _MOST:
        rows = [*rows[:_MOST], {"id": f"and {len(rows) - _MOST} more", "action": "", "reasons": ""}]
    return rows


def retention_lines(plan: "Plan") -> Iterator[str]:
    """Yield the table of all artifacts for a terminal, line by line, and the counts."""
    if not plan.decisions:
        yield "the vault holds no artifact yet"
        return
    width = max(len(each.id) for each in plan.decisions)
    yield f"{'ID':<{width}}  {'ACTION':<6}  REASONS"
    for each in plan.decisions:
        yield f"{each.id:<{width}}  {each.action:<6}  {plain('; '.join(each.reasons))}"
    removed = len(plan.removals)
    yield f"{counted(removed, 'artifact')} to remove, {len(plan.decisions) - removed} to keep"


def place_lines(places: "Iterable[PrunedHere]") -> Iterator[str]:
    """Yield what would go in each place, or why that is not known."""
    for place in places:
        if place.error:
            yield f"{place.where}: not looked at: {plain(place.error)}"
            continue
        yield from (f"{each}  remove in {place.where}" for each in place.removed)
        yield f"{place.where}: {counted(len(place.removed), 'artifact')} to remove"
        yield from (f"{place.where}: left as it is: {plain(why)}" for why in place.kept.values())


def refusal_lines(reasons: Iterable[str], hint: str) -> Iterator[str]:
    """Yield why nothing is pruned, a line for each reason, and the hint."""
    yield "error: nothing is pruned:"
    yield from (f"  {plain(each)}" for each in reasons)
    yield f"HINT: {hint}"
