"""How drills ended, for the engine's pages and logs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from a0backup.report.words import cell, counted, documents_in_words, human_size, plain

if TYPE_CHECKING:
    from a0backup.upkeep.drill import DrillResult


def drill_text(result: "DrillResult") -> str:
    """Return how the drill of one artifact ended, in one line."""
    return f"{plain(result.id)}: {_result(result)}"


def drill_rows(results: "Iterable[DrillResult]") -> list[dict[str, object]]:
    """Return a row for each artifact, for a table on a page."""
    return [
        {
            "id": cell(result.id),
            "result": result.result,
            "note": cell("; ".join((_read(result) or result.reason, *result.warnings))),
        }
        for result in results
    ]


def _result(result: "DrillResult") -> str:
    note = _read(result) or plain(result.reason)
    return f"{result.result}: {note}" if note else result.result


def _read(result: "DrillResult") -> str:
    """Return what was read; nothing if the artifact was not opened."""
    if result.contents is None:
        return ""
    read = f"{counted(result.contents.members, 'member')}, {human_size(result.contents.unpacked_size)} unpacked"
    if result.contents.collections is None:
        return read
    documents = sum(each.documents for each in result.contents.collections)
    return f"{read}, {documents_in_words(documents)}"
