"""What a run or a check found, as Markdown, table rows, JSON and plain lines.

Text that came from a node is hostile: control, bidirectional and invisible characters are taken out of it, and in
Markdown and table rows it is escaped as well. The plain lines may hold `[`: print them with Rich markup off.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from a0backup.errors import A0BackupError, UnreachableError

if TYPE_CHECKING:
    from a0backup.vault import Manifest

_LONGEST = 500
# From build 11638 on a full recovery needs both (vendor's page on backups): `backup` has no encryption keys in it.
_HALVES = ("backup", "backup-sensitive")
_NOT_FULLY = "an installation cannot be fully recovered from it"


class Ending(StrEnum):
    """How the work on one node backup ended."""

    STORED = "stored"
    NOT_DELETED = "stored, not deleted on the node"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Outcome:
    """How one node backup ended, and at which step and why where it did not end well."""

    node: str
    kind: str
    ending: Ending
    seconds: float
    step: str = ""
    reason: str = ""
    hint: str = ""
    id: str = ""
    size: int | None = None
    md5: str = ""
    notes: tuple[str, ...] = ()
    verified: str = ""  # of the stored artifact: md5, or contents where it was opened and read to its end
    members: int | None = None
    unpacked_size: int | None = None
    password: str = ""  # shared, sealed or unknown
    confirmed: bool = False  # whether that password opened it

    @property
    def well(self) -> bool:
        """Whether the artifact is stored and the node is free for its next backup."""
        return self.ending is Ending.STORED

    @property
    def why(self) -> str:
        """The reason without the node and the step that it begins with: they stand beside it wherever it is shown."""
        return self.reason.removeprefix(f"{self.node}: ").removeprefix(f"{self.step}: ")


@dataclass(frozen=True)
class Finding:
    """What the read-only check found out about one node, and what the next run would do there."""

    node: str
    well: bool
    reachable: bool
    status: str
    would: str
    problems: tuple[str, ...] = ()
    teach: str = ""
    room: str = ""
    warnings: tuple[str, ...] = ()  # what is well enough for a run and should not stay so


def outcome_of(
    node: str,
    kind: str,
    *,
    seconds: float,
    error: BaseException | None = None,
    step: str = "",
    manifest: "Manifest | None" = None,
    off_node: bool = False,
    notes: Sequence[str] = (),
) -> Outcome:
    """Return how a node's backup ended: by what stopped it (*error*, in *step*) or, where nothing did, stored.

    *manifest* is this run's artifact, where it is stored; *off_node* that the node has let go of the backup.
    """
    ending, reason, hint = Ending.STORED, "", ""
    if error is not None:
        ending = Ending.FAILED
        if manifest is not None and not off_node:
            ending = Ending.NOT_DELETED
        elif isinstance(error, UnreachableError) and manifest is None:
            ending = Ending.UNREACHABLE
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, A0BackupError):
            reason, hint = error.message(), error.hint()
    return Outcome(
        node=node,
        kind=kind,
        ending=ending,
        seconds=seconds,
        step=step if error is not None else "",
        reason=reason,
        hint=hint,
        id=manifest.id if manifest else "",
        size=manifest.artifact.size if manifest else None,
        md5=manifest.artifact.md5 if manifest else "",
        notes=tuple(notes),
        verified=manifest.verified.level if manifest else "",
        members=manifest.verified.members if manifest else None,
        unpacked_size=manifest.verified.unpacked_size if manifest else None,
        password=manifest.encryption.password.mode if manifest else "",
        confirmed=manifest.encryption.password.confirmed if manifest else False,
    )


def halves(node: str, kinds: Sequence[str], *, splits: bool, outcomes: Iterable[Outcome] | None = None) -> str:
    """Return the warning that of *node* only one half is kept, empty where both are or no half is wanted.

    *kinds*: those that are made of it. *splits*: its build keeps the encryption keys out of `backup`, as declared or
    because it offers backup-sensitive. *outcomes*: those of a run, of any nodes; without them only what is wanted is
    looked at.
    """
    wanted = [half for half in _HALVES if half in kinds]
    if not splits or not wanted:
        return ""
    if len(wanted) == 1:
        [missing] = set(_HALVES) - set(wanted)
        why = "the node's build keeps the encryption keys out of backup"
        remedy = f"have {missing} made too (kinds in fleet.yaml, and the node's build where it is declared)"
        return f"{node}: {wanted[0]} is made without {missing}, and {why}: {_NOT_FULLY}; {remedy}"
    stored = {outcome.kind for outcome in outcomes or () if outcome.node == node and outcome.id}
    kept = [half for half in _HALVES if half in stored]
    if len(kept) != 1:
        return ""
    [missing] = set(_HALVES) - stored
    return f"{node}: this run stored its {kept[0]} without its {missing}: {_NOT_FULLY}"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 where every node backup ended well, 1 where none did or there is none, 3 where some did."""
    return _exit_code([outcome.well for outcome in outcomes])


def summary(outcomes: Iterable[Outcome]) -> list[str]:
    """Return one line for each node backup that did not end well: who, at which step, why."""
    return [f"{_who(outcome)}{_step(outcome)}: {_reason(outcome)}" for outcome in outcomes if not outcome.well]


def rows(outcomes: Iterable[Outcome]) -> list[dict[str, object]]:
    """Return one row for each outcome, for Prefect's table artifact."""
    return [
        {
            "node": cell(outcome.node),
            "kind": cell(outcome.kind),
            "outcome": cell(f"{outcome.ending}{_step(outcome)}"),
            "size": _size(outcome.size),
            "duration": human_seconds(outcome.seconds),
            "verified": cell(_verified(outcome)),
            "id": cell(outcome.id),
            "md5": cell(outcome.md5),
        }
        for outcome in outcomes
    ]


def to_json(outcomes: Iterable[Outcome], warnings: Sequence[str] = ()) -> list[dict[str, object]]:
    """Return the outcomes as JSON values, always with the same keys; sizes in bytes, durations in seconds.

    Each has the *warnings* of the run, which are about the fleet as a whole.
    """
    return [
        {
            "node": plain(outcome.node),
            "kind": plain(outcome.kind),
            "outcome": str(outcome.ending),
            "well": outcome.well,
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
            "warnings": [plain(warning) for warning in warnings],
        }
        for outcome in outcomes
    ]


def lines(outcomes: Sequence[Outcome], warnings: Sequence[str] = ()) -> list[str]:
    """Return the outcomes as lines for a terminal: the headline, one for each node backup, reasons and notes below.

    The *warnings* of the run come last; one that is about several nodes comes once.
    """
    width = max((len(_who(outcome)) for outcome in outcomes), default=0)
    found = [headline(outcomes)]
    for outcome in outcomes:
        parts = [_size(outcome.size), plain(outcome.md5), _verified(outcome)]
        parts += [human_seconds(outcome.seconds), plain(outcome.id)]
        found.append(f"{_who(outcome):<{width}}  {outcome.ending}{_step(outcome)}  " + "  ".join(filter(None, parts)))
        if not outcome.well:
            found.append(f"  {_reason(outcome)}")
        if not outcome.well and outcome.hint:
            found.append(f"  HINT: {plain(outcome.hint)}")
        found += [f"  {plain(note)}" for note in outcome.notes]
    return found + _warning_lines(warnings, [outcome.node for outcome in outcomes])


def headline(outcomes: Sequence[Outcome]) -> str:
    """Return the counts in one sentence; what is stored but not deleted on its node counts as failed."""
    endings = [outcome.ending for outcome in outcomes]
    failed = len(endings) - endings.count(Ending.STORED)
    among = [
        f"{endings.count(ending)} {words}"
        for ending, words in (
            (Ending.UNREACHABLE, "unreachable"),
            (Ending.NOT_DELETED, "stored but not deleted on the node"),
        )
        if ending in endings
    ]
    text = f"{_count(len(endings), 'node backup')}: {endings.count(Ending.STORED)} stored"
    if failed:
        text += f", {failed} failed"
    return text + (f" ({', '.join(among)})" if among else "")


def markdown(outcomes: Sequence[Outcome], *, fleet: str, warnings: Sequence[str] = ()) -> str:
    """Return the outcomes as a page: headline, table, each failure in words, the run's *warnings*, notes, artifacts.

    The column on the engine's page is narrow: what is long does not stand in the table.
    """
    table = _table(
        ("node", "outcome", "size", "duration", "verified"),
        (
            (
                escaped(_who(outcome)),
                _emphasised(f"{outcome.ending}{_step(outcome)}", outcome.well),
                _size(outcome.size),
                human_seconds(outcome.seconds),
                escaped(_verified(outcome)),
            )
            for outcome in outcomes
        ),
    )
    failures = [
        f"**{escaped(_who(outcome) + _step(outcome))}**: {escaped(_reason(outcome))}"
        + (f"\n\nHINT: {escaped(outcome.hint)}" if outcome.hint else "")
        for outcome in outcomes
        if not outcome.well
    ]
    notes = [f"- **{escaped(_who(outcome))}**: {escaped(note)}" for outcome in outcomes for note in outcome.notes]
    kept = [f"- {_code(outcome.id)}, md5 {_code(outcome.md5)}" for outcome in outcomes if outcome.id]
    if kept:
        kept = ["Artifacts in the vault:", "\n".join(kept)]
    said = _warning_paragraphs(warnings, [outcome.node for outcome in outcomes])
    return _page(headline(outcomes), fleet, table, [*failures, *said], notes, kept)


def check_exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 where every node is well, 1 where none is or there is none, 3 where some are."""
    return _exit_code([finding.well for finding in findings])


def check_rows(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Return one row for each node checked, for Prefect's table artifact."""
    return [
        {
            "node": cell(finding.node),
            "check": _verdict(finding),
            "status": cell(finding.status),
            "would": cell(finding.would),
            "room": cell(finding.room),
            "problems": cell("; ".join(map(plain, finding.problems))),
            "warnings": cell("; ".join(map(plain, finding.warnings))),
        }
        for finding in findings
    ]


def check_json(findings: Iterable[Finding], warnings: Sequence[str] = ()) -> list[dict[str, object]]:
    """Return the findings as JSON values, always with the same keys; the *warnings* of the fleet are in each."""
    return [
        {
            "node": plain(finding.node),
            "well": finding.well,
            "reachable": finding.reachable,
            "status": plain(finding.status),
            "would": plain(finding.would),
            "room": plain(finding.room),
            "problems": [plain(problem) for problem in finding.problems],
            "warnings": [plain(warning) for warning in (*finding.warnings, *warnings)],
            "teach": plain(finding.teach),
        }
        for finding in findings
    ]


def check_lines(findings: Sequence[Finding], warnings: Sequence[str] = (), notes: Sequence[str] = ()) -> list[str]:
    """Return the findings as lines for a terminal, problems and the line that teaches a wording below each node.

    The *notes* and *warnings* on the fleet as a whole come last.
    """
    width = max((len(plain(finding.node)) for finding in findings), default=0)
    found = [check_headline(findings)]
    for finding in findings:
        parts = [_verdict(finding), plain(finding.status), plain(finding.would)]
        found.append(f"{plain(finding.node):<{width}}  " + "  ".join(filter(None, parts)))
        if finding.room:
            found.append(f"  vault: {plain(finding.room)}")
        found += [f"  {plain(problem)}" for problem in finding.problems]
        if finding.teach:
            found.append(f"  if that reply is harmless, teach it in fleet.yaml: {plain(finding.teach)}")
        found += [f"  {line}" for line in _warning_lines(finding.warnings)]
    return [*found, *map(plain, notes), *_warning_lines(warnings)]


def check_headline(findings: Sequence[Finding]) -> str:
    """Return the counts of the check in one sentence."""
    bad = sum(not finding.well for finding in findings)
    away = sum(not finding.reachable for finding in findings)
    text = f"{_count(len(findings), 'node')} checked: {len(findings) - bad} well"
    if bad:
        text += f", {bad} not"
    return text + (f" ({away} unreachable)" if away else "")


def check_markdown(
    findings: Sequence[Finding], *, fleet: str, warnings: Sequence[str] = (), notes: Sequence[str] = ()
) -> str:
    """Return the findings as a page: headline, table, each node's problems, the *warnings*, then notes."""
    table = _table(
        ("node", "check", "on the node", "the next run would", "in the vault"),
        (
            (
                escaped(finding.node),
                _emphasised(_verdict(finding), finding.well),
                escaped(finding.status),
                escaped(finding.would),
                escaped(finding.room),
            )
            for finding in findings
        ),
    )
    problems = [
        # A hint belongs to the problem above it.
        escaped(problem) if problem.startswith("HINT: ") else f"**{escaped(finding.node)}**: {escaped(problem)}"
        for finding in findings
        for problem in finding.problems
    ]
    nodes = [finding.node for finding in findings]
    of_nodes = [f"{finding.node}: {warning}" for finding in findings for warning in finding.warnings]
    lessons = [
        f"- **{escaped(finding.node)}**: if that reply is harmless, teach it in fleet.yaml: {escaped(finding.teach)}"
        for finding in findings
        if finding.teach
    ]
    lessons += [f"- {escaped(note)}" for note in notes]
    said = _warning_paragraphs([*warnings, *of_nodes], nodes)
    return _page(check_headline(findings), fleet, table, [*problems, *said], lessons)


def human_size(size: int) -> str:
    """Return a number of bytes in words that a person compares, in powers of 1000."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if round(amount, 1) < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """Return a duration as `0.4 s`, `12 s`, `2 min 05 s` or `1 h 02 min`."""
    if round(seconds, 1) < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def plain(text: str) -> str:
    """Return the text on one line, cut short, without control, bidirectional, invisible or unpaired characters."""
    # Cut before and after: the work stays bounded, and taking characters out never makes it longer.
    shown = "".join(
        " " if character.isspace() else character
        for character in text[: 4 * _LONGEST]
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def escaped(text: str) -> str:
    """Return the text, made plain, so that Markdown shows it as it is: no link, tag or table cell of its own."""
    # Prefect's page turns these three entities back and no others; all else takes a backslash.
    shown = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_{}\[\]|~!#$@])", r"\\\1", shown)
    # What some renderers make a link of without any markup.
    shown = re.sub(r"(?i)(www)\.", r"\1\\.", shown.replace("://", "\\://"))
    # What would be a list or a heading at the start of a paragraph.
    return re.sub(r"^(\d{0,9})([-+=.)])", r"\1\\\2", shown)


def cell(text: str) -> str:
    """Return the text, made plain, for a cell of Prefect's table artifact.

    One of Prefect's two pages shows a cell as Markdown, the other as it is: only what Markdown would change is escaped.
    """
    shown = plain(text)
    harmless = re.fullmatch(r"(?!\d+[.)]( |$))([A-Za-z0-9][A-Za-z0-9 ,;:()/%'+=?._-]*)?", shown)
    mark = re.search(r"(?i)://|www\.|(?<![a-z0-9])_|_(?![a-z0-9])", shown)
    return shown if harmless and not mark else escaped(shown)


def _code(text: str) -> str:
    # Ids and sums are of these characters; anything else is not put into a code span, where escapes do not work.
    shown = plain(text)
    return f"`{shown}`" if re.fullmatch(r"[A-Za-z0-9._/-]+", shown) else escaped(shown)


def _emphasised(text: str, well: bool) -> str:
    return escaped(text) if well else f"**{escaped(text)}**"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _page(
    head: str, fleet: str, table: list[str], paragraphs: list[str], notes: list[str], kept: Sequence[str] = ()
) -> str:
    parts = [f"**{head}**, fleet {escaped(fleet)}", "\n".join(table)]
    parts += paragraphs
    parts += ["\n".join(notes)] if notes else []
    parts += kept
    return "\n\n".join(parts) + "\n"


def _warning_lines(warnings: Iterable[str], nodes: Sequence[str] = ()) -> list[str]:
    return [": ".join(("warning", *map(plain, parts))) for parts in _merged(warnings, nodes)]


def _warning_paragraphs(warnings: Iterable[str], nodes: Sequence[str]) -> list[str]:
    return [": ".join(("**warning**", *map(escaped, parts))) for parts in _merged(warnings, nodes)]


def _merged(warnings: Iterable[str], nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each warning once: of which *nodes* it is where it is of any, and what it says.

    Two texts, each cut by itself: many names must not cut off what is said of them.
    """
    known = dict.fromkeys(nodes)
    about: dict[str, dict[str, None]] = {}
    for warning in warnings:
        node, _, text = warning.partition(": ")
        if node in known:
            about.setdefault(text, {})[node] = None
        else:
            about.setdefault(warning, {})
    return [(_names(named, len(known)), text) if named else (text,) for text, named in about.items()]


def _names(nodes: Collection[str], of: int) -> str:
    return "every node" if len(nodes) == of > 1 else ", ".join(nodes)


def _exit_code(well: Sequence[bool]) -> int:
    if not any(well):
        return 1
    return 0 if all(well) else 3


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _who(outcome: Outcome) -> str:
    node = plain(outcome.node)
    return node if outcome.kind == "backup" else f"{node} {plain(outcome.kind)}"


def _step(outcome: Outcome) -> str:
    return f" ({plain(outcome.step)})" if outcome.step and not outcome.well else ""


def _plain_reason(outcome: Outcome) -> str:
    return plain(outcome.why)


def _reason(outcome: Outcome) -> str:
    return _plain_reason(outcome) or str(outcome.ending)


def _size(size: int | None) -> str:
    return "" if size is None else human_size(size)


def _verified(outcome: Outcome) -> str:
    """Return how far the stored artifact was verified, in words; empty where none is stored."""
    if outcome.verified == "contents":
        parts = [] if outcome.members is None else [_count(outcome.members, "member")]
        parts += [] if outcome.unpacked_size is None else [f"{human_size(outcome.unpacked_size)} unpacked"]
        return ": ".join(filter(None, ("contents", ", ".join(parts))))
    level = f"{plain(outcome.verified)} only" if outcome.verified else ""
    return f"{level}, password not proven" if level and not outcome.confirmed else level


def _verdict(finding: Finding) -> str:
    if finding.well:
        return "well"
    return "not well" if finding.reachable else "unreachable"
