"""The outcomes of a run as Markdown, table rows, JSON and plain lines.

Text from a node is hostile: control, bidirectional and invisible characters are removed, and in Markdown and
table rows the text is also escaped. The plain lines may contain `[`: print them with Rich markup off.
"""

from collections.abc import Iterable, Sequence

from a0backup.report.outcomes import Ending, Outcome
from a0backup.report.warnings import RunWarning, warning_lines, warning_paragraphs, warnings_json
from a0backup.report.words import (
    cell,
    code,
    counted,
    emphasised,
    escaped,
    human_seconds,
    human_size,
    markdown_page,
    markdown_table,
    plain,
    size_in_words,
)


def summary(outcomes: Iterable[Outcome]) -> list[str]:
    """Return one line for each failed node backup: node, step, reason."""
    return [f"{name_of(outcome)}{in_step(outcome)}: {reason_of(outcome)}" for outcome in outcomes if not outcome.ok]


def rows(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    """Return one row per outcome, for Prefect's table artifact."""
    return [
        {
            "node": cell(outcome.node),
            "kind": cell(outcome.kind),
            "outcome": cell(f"{outcome.ending}{in_step(outcome)}"),
            "size": size_in_words(outcome.size),
            "duration": human_seconds(outcome.seconds),
            "verified": cell(_verified(outcome)),
            "id": cell(outcome.id),
            "md5": cell(outcome.md5),
        }
        for outcome in outcomes
    ]


def to_json(outcomes: Iterable[Outcome], warnings: Sequence[RunWarning] = ()) -> dict[str, object]:
    """Return the run as JSON values: its `backups` and its `warnings`; sizes in bytes, durations in seconds.

    Each backup has always the same keys.
    """
    return {"backups": _backups(outcomes), "warnings": warnings_json(warnings)}


def _backups(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    return [
        {
            "node": plain(outcome.node),
            "kind": plain(outcome.kind),
            "outcome": str(outcome.ending),
            "ok": outcome.ok,
            "seconds": round(outcome.seconds, 3),
            "step": plain(outcome.step),
            "reason": _plain_reason(outcome),
            "hint": plain(outcome.hint),
            "id": plain(outcome.id),
            "size": outcome.size,
            "md5": plain(outcome.md5),
            "notes": [plain(note) for note in outcome.notes],
            "verified": plain(outcome.verified),
            "members": outcome.members,
            "unpacked_size": outcome.unpacked_size,
            "password": plain(outcome.password),
            "confirmed": outcome.confirmed,
        }
        for outcome in outcomes
    ]


def lines(outcomes: Sequence[Outcome], warnings: Sequence[RunWarning] = ()) -> list[str]:
    """Return the outcomes as lines for a terminal: the headline, then each node backup with reasons and notes.

    The *warnings* of the run come last; one that concerns several nodes appears once.
    """
    width = max((len(name_of(outcome)) for outcome in outcomes), default=0)
    found = [headline(outcomes)]
    for outcome in outcomes:
        parts = [size_in_words(outcome.size), plain(outcome.md5), _verified(outcome)]
        parts += [human_seconds(outcome.seconds), plain(outcome.id)]
        found.append(
            f"{name_of(outcome):<{width}}  {outcome.ending}{in_step(outcome)}  " + "  ".join(filter(None, parts))
        )
        if not outcome.ok:
            found.append(f"  {reason_of(outcome)}")
        if not outcome.ok and outcome.hint:
            found.append(f"  HINT: {plain(outcome.hint)}")
        found += [f"  {plain(note)}" for note in outcome.notes]
    return found + warning_lines(warnings, [outcome.node for outcome in outcomes])


def headline(outcomes: Sequence[Outcome]) -> str:
    """Return the counts in one sentence; a backup stored but not deleted on its node counts as failed."""
    endings = [outcome.ending for outcome in outcomes]
    nodes = len({outcome.node for outcome in outcomes})
    what = counted(len(endings), "node backup")
    if nodes != len(endings):
        what = f"{counted(len(endings), 'backup')} of {counted(nodes, 'node')}"
    failed = len(endings) - endings.count(Ending.STORED)
    among = [
        f"{endings.count(ending)} {words}"
        for ending, words in (
            (Ending.UNREACHABLE, "unreachable"),
            (Ending.NOT_DELETED, "stored but not deleted on the node"),
            (Ending.INTERRUPTED, "interrupted"),
        )
        if ending in endings
    ]
    text = f"{what}: {endings.count(Ending.STORED)} stored"
    if failed:
        text += f", {failed} failed"
    return text + (f" ({', '.join(among)})" if among else "")


def markdown(outcomes: Sequence[Outcome], *, fleet: str, warnings: Sequence[RunWarning] = ()) -> str:
    """Return the outcomes as a page: headline, table, failures, the run's *warnings*, notes, artifacts.

    The column on the engine's page is narrow, so the table contains no long texts.
    """
    table = markdown_table(
        ("node", "outcome", "size", "duration", "verified"),
        (
            (
                escaped(name_of(outcome)),
                emphasised(f"{outcome.ending}{in_step(outcome)}", outcome.ok),
                size_in_words(outcome.size),
                human_seconds(outcome.seconds),
                escaped(_verified(outcome)),
            )
            for outcome in outcomes
        ),
    )
    failures = [
        f"**{escaped(name_of(outcome) + in_step(outcome))}**: {escaped(reason_of(outcome))}"
        + (f"\n\nHINT: {escaped(outcome.hint)}" if outcome.hint else "")
        for outcome in outcomes
        if not outcome.ok
    ]
    notes = [f"- **{escaped(name_of(outcome))}**: {escaped(note)}" for outcome in outcomes for note in outcome.notes]
    kept = [f"- {code(outcome.id)}, md5 {code(outcome.md5)}" for outcome in outcomes if outcome.id]
    if kept:
        kept = ["Artifacts in the vault:", "\n".join(kept)]
    said = warning_paragraphs(warnings, [outcome.node for outcome in outcomes])
    return markdown_page(headline(outcomes), fleet, table, [*failures, *said], notes, kept)


def name_of(outcome: Outcome) -> str:
    node = plain(outcome.node)
    return node if outcome.kind == "backup" else f"{node} {plain(outcome.kind)}"


def in_step(outcome: Outcome) -> str:
    # An unreachable node is unreachable in whatever step.
    told = not outcome.ok and outcome.ending is not Ending.UNREACHABLE
    return f" ({plain(outcome.step)})" if outcome.step and told else ""


def _plain_reason(outcome: Outcome) -> str:
    return plain(outcome.reason)


def reason_of(outcome: Outcome) -> str:
    return _plain_reason(outcome) or str(outcome.ending)


def _verified(outcome: Outcome) -> str:
    """Return how far the stored artifact was verified, as text; empty if none is stored."""
    if outcome.verified == "contents":
        parts = [] if outcome.members is None else [counted(outcome.members, "member")]
        parts += [] if outcome.unpacked_size is None else [f"{human_size(outcome.unpacked_size)} unpacked"]
        return ": ".join(filter(None, ("contents", ", ".join(parts))))
    level = f"{plain(outcome.verified)} only" if outcome.verified else ""
    return f"{level}, password not proven" if level and not outcome.confirmed else level
