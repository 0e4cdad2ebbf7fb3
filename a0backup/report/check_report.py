"""The findings of a check as Markdown, table rows, JSON and plain lines."""

from collections.abc import Iterable, Sequence

from a0backup.report.outcomes import Finding
from a0backup.report.warnings import RunWarning, warning_lines, warning_paragraphs, warnings_json
from a0backup.report.words import cell, counted, emphasised, escaped, markdown_page, markdown_table, plain


def check_rows(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Return one row per checked node, for Prefect's table artifact."""
    return [
        {
            "node": cell(finding.node),
            "check": _verdict(finding),
            "status": cell(finding.status),
            "would": cell(finding.would),
            "room": cell(finding.room),
            "problems": cell("; ".join(plain(line) for problem in finding.problems for line in problem.lines())),
            "warnings": cell("; ".join(map(plain, finding.warnings))),
        }
        for finding in findings
    ]


def check_json(findings: Iterable[Finding], warnings: Sequence[RunWarning] = ()) -> dict[str, object]:
    """Return the check as JSON values: its `nodes`, each with the same keys, and the `warnings` about the fleet."""
    return {"nodes": _nodes(findings), "warnings": warnings_json(warnings)}


def _nodes(findings: Iterable[Finding]) -> list[dict[str, object]]:
    return [
        {
            "node": plain(finding.node),
            "ok": finding.ok,
            "reachable": finding.reachable,
            "status": plain(finding.status),
            "would": plain(finding.would),
            "room": plain(finding.room),
            "problems": [plain(line) for problem in finding.problems for line in problem.lines()],
            "warnings": [plain(warning) for warning in finding.warnings],
            "teach": plain(finding.teach),
        }
        for finding in findings
    ]


def check_lines(
    findings: Sequence[Finding], warnings: Sequence[RunWarning] = (), notes: Sequence[str] = ()
) -> list[str]:
    """Return the findings as lines for a terminal; below each node its problems and the line that teaches a wording.

    The *notes* and *warnings* about the whole fleet come last.
    """
    width = max((len(plain(finding.node)) for finding in findings), default=0)
    found = [check_headline(findings)]
    for finding in findings:
        parts = [_verdict(finding), plain(finding.status), plain(finding.would)]
        found.append(f"{plain(finding.node):<{width}}  " + "  ".join(filter(None, parts)))
        if finding.room:
            found.append(f"  vault: {plain(finding.room)}")
        found += [f"  {plain(line)}" for problem in finding.problems for line in problem.lines()]
        if finding.teach:
            found.append(f"  if that reply is harmless, add it to fleet.yaml: {plain(finding.teach)}")
        found += [f"  {line}" for line in warning_lines([RunWarning(text) for text in finding.warnings])]
    return [*found, *map(plain, notes), *warning_lines(warnings)]


def check_headline(findings: Sequence[Finding]) -> str:
    """Return the counts of the check in one sentence."""
    bad = sum(not finding.ok for finding in findings)
    away = sum(not finding.reachable for finding in findings)
    text = f"{counted(len(findings), 'node')} checked: {len(findings) - bad} ok"
    if bad:
        text += f", {bad} not ok"
    return text + (f" ({away} unreachable)" if away else "")


def check_markdown(
    findings: Sequence[Finding], *, fleet: str, warnings: Sequence[RunWarning] = (), notes: Sequence[str] = ()
) -> str:
    """Return the findings as a page: headline, table, the problems of each node, the *warnings*, the notes."""
    table = markdown_table(
        ("node", "check", "on the node", "the next run would", "in the vault"),
        (
            (
                escaped(finding.node),
                emphasised(_verdict(finding), finding.ok),
                escaped(finding.status),
                escaped(finding.would),
                escaped(finding.room),
            )
            for finding in findings
        ),
    )
    problems = [
        f"**{escaped(finding.node)}**: {escaped(problem.text)}"
        + (f"\n\n{escaped(f'HINT: {problem.hint}')}" if problem.hint else "")
        for finding in findings
        for problem in finding.problems
    ]
    nodes = [finding.node for finding in findings]
    of_nodes = [RunWarning(text, finding.node) for finding in findings for text in finding.warnings]
    lessons = [
        f"- **{escaped(finding.node)}**: if that reply is harmless, add it to fleet.yaml: {escaped(finding.teach)}"
        for finding in findings
        if finding.teach
    ]
    lessons += [f"- {escaped(note)}" for note in notes]
    said = warning_paragraphs([*warnings, *of_nodes], nodes)
    return markdown_page(check_headline(findings), fleet, table, [*problems, *said], lessons)


def _verdict(finding: Finding) -> str:
    if finding.ok:
        return "ok"
    return "not ok" if finding.reachable else "unreachable"
