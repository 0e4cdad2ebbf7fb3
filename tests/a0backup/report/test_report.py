"""A report states the outcome of every node, and shows hostile text as plain text."""

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from a0backup.report.check_report import check_json, check_lines, check_markdown, check_rows
from a0backup.report.outcomes import (
    Ending,
    Finding,
    Outcome,
    Problem,
    check_exit_code,
    exit_code,
    halves,
    outcome_of,
)
from a0backup.report.run_report import lines, markdown, rows, summary, to_json
from a0backup.report.warnings import RunWarning
from a0backup.report.words import cell, escaped, human_seconds, human_size, plain
from a0backup.vault.manifest import Manifest

MD5 = "77d68bb4ab2c66200e6bfb4ec08d257d"
GOOD = Outcome(
    "a0-1",
    "backup",
    Ending.STORED,
    125.4,
    id="a0-1/20261123T020000Z-backup",
    size=734003200,
    md5=MD5,
    verified="contents",
    members=12,
    unpacked_size=2936012800,
    password="sealed",
    confirmed=True,
)
MISMATCH = Outcome(
    "a0-2",
    "backup",
    Ending.FAILED,
    61,
    step="verify",
    reason="md5 mismatch: the node says aa, the retrieved bytes have bb",
    hint="the node keeps its backup",
)
AWAY = Outcome("a0-3", "backup", Ending.UNREACHABLE, 5, step="check", reason="ping: connection refused")
KEPT = Outcome(
    "a0-4",
    "backup-sensitive",
    Ending.NOT_DELETED,
    30,
    step="delete",
    reason="still there",
    id="a0-4/20261123T020000Z-backup-sensitive",
    size=10,
    md5=MD5,
    notes=("a backup of our own was gone",),
    verified="md5",
    password="shared",
)
MIXED = [GOOD, MISMATCH, AWAY, KEPT]
HALF = RunWarning("one | half")

HOSTILE = [
    "| a | b |",
    "`code` and `` `more` ``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "https://evil.example and www.evil.example and a@evil.example",
    "<https://evil.example>",
    "line\n\n# heading\n\n---\n\n| a |\n| - |\n| b |",
    "\r\n> quote\n- item\n1. one",
    "- item",
    "1. one",
    "+ plus",
    "# heading",
    "> quote",
    "===",
    "    code",
    "**bold** __bold__ *i* _i_ ~~s~~",
    "&lt;b&gt; &amp; &#60; &copy;",
    "\\| \\\\| \\`",
    "\x1b[31mred\x1b]0;title\x07 \x00\x08\x7f\x9b",
    "\u202egnp.exe\u2066\u200b\ufeff\u00ad",
    "[ref]: https://evil.example",
    "[^1]: note",
    "```\nfence\n```",
    "$x$ $$y$$",
    "\ud800 lone",
    "x" * 100_000,
    "\u2028\u2029\x85",
    "",
]


def hostile(text: str) -> list[Outcome]:
    return [
        Outcome(
            text,
            text,
            ending,
            1.0,
            step=text,
            reason=text,
            hint=text,
            id=text,
            size=1,
            md5=text,
            notes=(text,),
            verified=text,
            password=text,
        )
        for ending in Ending
    ]


def findings(text: str) -> list[Finding]:
    return [
        Finding(text, ok, reachable, text, text, (Problem(text), Problem(text, text)), text, text, (text,))
        for ok, reachable in ((True, True), (False, True), (False, False))
    ]


def flat(tokens: list[Token]) -> list[Token]:
    return [t for token in tokens for t in (token, *flat(token.children or []))]


def rendered(page: str) -> list[Token]:
    return flat(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page))


def backups(outcomes: Any) -> Any:
    return to_json(outcomes)["backups"]


def test_the_headline_counts_the_stored_and_the_failed_node_backups() -> None:
    many = [GOOD] * 17 + [MISMATCH] * 2 + [AWAY]
    many = [replace(outcome, node=f"node-{number}") for number, outcome in enumerate(many)]
    assert lines(many)[0] == "20 node backups: 17 stored, 3 failed (1 unreachable)"
    both = [replace(outcome, kind=kind) for outcome in many for kind in ("backup", "backup-sensitive")]
    assert lines(both)[0] == "40 backups of 20 nodes: 34 stored, 6 failed (2 unreachable)"
    assert lines([GOOD])[0] == "1 node backup: 1 stored"
    assert lines(MIXED)[0] == (
        "4 node backups: 1 stored, 3 failed (1 unreachable, 1 stored but not deleted on the node)"
    )
    assert lines([]) == ["0 node backups: 0 stored"]


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [([GOOD], 0), ([GOOD, GOOD], 0), ([], 1), ([MISMATCH], 1), ([KEPT], 1), ([GOOD, KEPT], 3), ([GOOD, AWAY], 3)],
)
def test_the_exit_code_shows_whether_all_some_or_none_succeeded(outcomes: list[Outcome], code: int) -> None:
    assert exit_code(outcomes) == code


def test_the_summary_has_one_line_for_each_failure() -> None:
    assert summary(MIXED) == [
        "a0-2 (verify): md5 mismatch: the node says aa, the retrieved bytes have bb",
        "a0-3: ping: connection refused",
        "a0-4 backup-sensitive (delete): still there",
    ]
    assert summary([Outcome("a", "backup", Ending.FAILED, 0)]) == ["a: failed"]


def test_the_page_is_readable() -> None:
    assert markdown(MIXED, fleet="/etc/fleet.yaml") == (
        f"""\
**4 node backups: 1 stored, 3 failed (1 unreachable, 1 stored but not deleted on the node)**, fleet /etc/fleet.yaml

| node | outcome | size | duration | verified |
| --- | --- | --- | --- | --- |
| a0-1 | stored | 734.0 MB | 2 min 05 s | contents: 12 members, 2.9 GB unpacked |
| a0-2 | **failed (verify)** |  | 1 min 01 s |  |
| a0-3 | **unreachable** |  | 5.0 s |  |
| a0-4 backup-sensitive | **stored, not deleted on the node (delete)** | 10 B | 30 s | md5 only, password not proven |

**a0-2 (verify)**: md5 mismatch: the node says aa, the retrieved bytes have bb

HINT: the node keeps its backup

**a0-3**: ping: connection refused

**a0-4 backup-sensitive (delete)**: still there

- **a0-4 backup-sensitive**: a backup of our own was gone

Artifacts in the vault:

- `a0-1/20261123T020000Z-backup`, md5 `{MD5}`
- `a0-4/20261123T020000Z-backup-sensitive`, md5 `{MD5}`
"""
    )


def test_the_terminal_lines_are_readable_and_keep_ids_whole() -> None:
    assert lines(MIXED)[1:] == [
        f"a0-1                   stored  734.0 MB  {MD5}  contents: 12 members, 2.9 GB unpacked  2 min 05 s  "
        "a0-1/20261123T020000Z-backup",
        "a0-2                   failed (verify)  1 min 01 s",
        "  md5 mismatch: the node says aa, the retrieved bytes have bb",
        "  HINT: the node keeps its backup",
        "a0-3                   unreachable  5.0 s",
        "  ping: connection refused",
        f"a0-4 backup-sensitive  stored, not deleted on the node (delete)  10 B  {MD5}  md5 only, password not proven"
        "  30 s  a0-4/20261123T020000Z-backup-sensitive",
        "  still there",
        "  a backup of our own was gone",
    ]


def test_rows_and_json_have_the_same_keys_for_every_outcome() -> None:
    assert {tuple(row) for row in rows(MIXED)} == {
        ("node", "kind", "outcome", "size", "duration", "verified", "id", "md5")
    }
    assert len({tuple(row) for row in backups(MIXED)}) == 1
    assert rows(MIXED)[0]["verified"] == "contents: 12 members, 2.9 GB unpacked"
    read = {key: backups([GOOD])[0][key] for key in ("verified", "members", "unpacked_size", "password", "confirmed")}
    assert list(read.values()) == ["contents", 12, 2936012800, "sealed", True]
    assert json.loads(json.dumps(backups([MISMATCH]))) == [
        {
            "node": "a0-2",
            "kind": "backup",
            "outcome": "failed",
            "ok": False,
            "seconds": 61,
            "step": "verify",
            "reason": "md5 mismatch: the node says aa, the retrieved bytes have bb",
            "hint": "the node keeps its backup",
            "id": "",
            "size": None,
            "md5": "",
            "notes": [],
            "verified": "",
            "members": None,
            "unpacked_size": None,
            "password": "",
            "confirmed": False,
        }
    ]


def test_the_warnings_of_a_run_are_in_every_format_of_its_report() -> None:
    assert lines([GOOD], [HALF])[-1] == "warning: one | half"
    assert "still there\n\n**warning**: one \\| half\n\n- **a0-4" in markdown(MIXED, fleet="f", warnings=[HALF])
    twice = [HALF, RunWarning("one half", "a0-1"), RunWarning("one half", "a0-2")]
    assert to_json(MIXED, twice)["warnings"] == [
        {"nodes": [], "text": "one | half"},
        {"nodes": ["a0-1", "a0-2"], "text": "one half"},
    ]
    assert "warning" not in markdown(MIXED, fleet="f") + "".join(lines(MIXED))


def test_a_warning_about_several_nodes_is_shown_once() -> None:
    said = [
        RunWarning("the fleet: it is odd"),
        *(RunWarning(text, node) for text, node in (("one half", "a0-1"), ("one half", "a0-3"), ("odd", "a0-1"))),
    ]
    expected = ["the fleet: it is odd", "a0-1, a0-3: one half", "a0-1: odd"]
    assert lines(MIXED, said)[-3:] == [f"warning: {warning}" for warning in expected]
    assert lines([GOOD, AWAY], said[1:3])[-1] == "warning: every node: one half"
    assert lines([GOOD], said[1:2])[-1] == "warning: a0-1: one half"
    of_others = [RunWarning("one half", GOOD.node), RunWarning("one half", "a0-9")]
    assert lines([GOOD, AWAY], of_others)[-1] == f"warning: {GOOD.node}, a0-9: one half"
    many = [replace(GOOD, node=f"node-{number}") for number in range(1000)]
    page = markdown([*many, AWAY], fleet="f", warnings=[RunWarning("one half", outcome.node) for outcome in many])
    assert "…: one half\n" in page
    assert page.count("one half") == 1


@pytest.mark.parametrize(
    "text",
    [
        "a0-1/20261123T020000Z-backup",
        "my_node.2",
        MD5,
        "52.0 GB free, the last backup took 1.0 GB",
        "failed (verify)",
        "",
    ],
)
def test_ordinary_text_needs_no_escapes_in_a_table_artifact(text: str) -> None:
    assert cell(text) == text


def test_the_outcome_includes_what_the_manifest_states_about_the_contents() -> None:
    place = "a0-1/20261123T020000Z-backup"
    written = {
        "schema": 1,
        "id": place,
        "node": {"name": "a0-1", "host": "h", "port": 1},
        "kind": "backup",
        "name_on_node": "x.tar.gz",
        "started_at": "2026-11-23T02:00:00Z",
        "stored_at": "2026-11-23T02:14:09Z",
        "artifact": {"file": "backup.tar.gz.enc", "size": 7, "md5": MD5, "sha256": "0" * 64},
        "encryption": {"password": {"mode": "sealed", "confirmed": True}},
        "verified": {"level": "contents", "members": 1, "unpacked_size": 10240},
        "flow_run": "run-1",
    }
    read = outcome_of("a0-1", "backup", seconds=1, manifest=Manifest.model_validate(written))
    assert (read.verified, read.members, read.unpacked_size) == ("contents", 1, 10240)
    assert (read.password, read.confirmed) == ("sealed", True)
    assert "contents: 1 member, 10.2 kB unpacked" in lines([read])[1]
    unread = {**written, "verified": {"level": "md5"}, "encryption": {"password": {"mode": "unknown"}}}
    assert (
        "md5 only, password not proven"
        in lines([outcome_of("a0-1", "backup", seconds=1, manifest=Manifest.model_validate(unread))])[1]
    )
    gone = outcome_of("a0-1", "backup", seconds=1, error=ValueError("x"))
    assert (gone.verified, gone.members, gone.password, gone.confirmed) == ("", None, "", False)


BOTH = ("backup", "backup-sensitive")


def ended(kind: str, ending: Ending, node: str = "a0-1") -> Outcome:
    kept = ending in (Ending.STORED, Ending.NOT_DELETED)
    return Outcome(node, kind, ending, 1.0, id=f"{node}/20261123T020000Z-{kind}" if kept else "")


@pytest.mark.parametrize(
    ("main", "sensitive", "warning"),
    [
        (Ending.STORED, Ending.STORED, ""),
        (Ending.STORED, Ending.NOT_DELETED, ""),
        (Ending.FAILED, Ending.UNREACHABLE, ""),
        (Ending.STORED, Ending.FAILED, "stored its backup without its backup-sensitive"),
        (Ending.NOT_DELETED, Ending.FAILED, "stored its backup without its backup-sensitive"),
        (Ending.FAILED, Ending.STORED, "stored its backup-sensitive without its backup"),
    ],
)
def test_a_run_that_stored_only_one_half_gets_a_warning(main: Ending, sensitive: Ending, warning: str) -> None:
    outcomes = [
        ended("backup", main),
        ended("backup-sensitive", sensitive),
        ended("backup", Ending.STORED, "a0-2"),
        ended("backup-sensitive", Ending.STORED, "a0-3"),
    ]
    said = halves("a0-1", BOTH, splits=True, outcomes=outcomes)
    assert said == (f"this run {warning}: an installation cannot be fully recovered from it" if warning else "")
    assert halves("a0-1", BOTH, splits=False, outcomes=outcomes) == ""


@pytest.mark.parametrize(
    ("kinds", "made"),
    [
        (["backup"], "backup is made without backup-sensitive, "),
        (["user-export", "backup-sensitive"], "backup-sensitive is made without backup, "),
    ],
)
def test_a_half_missing_from_the_kinds_gets_a_warning_before_and_after_a_run(kinds: list[str], made: str) -> None:
    for outcomes in (None, [ended(kinds[-1], Ending.STORED)], [ended(kinds[-1], Ending.FAILED)]):
        said = halves("a0-1", kinds, splits=True, outcomes=outcomes)
        assert said.startswith(made)
        assert "an installation cannot be fully recovered from it" in said
    assert halves("a0-1", kinds, splits=False) == ""


@pytest.mark.parametrize("kinds", [BOTH, ["user-export"], [*BOTH, "user-export"]])
def test_there_is_no_warning_if_the_kinds_include_both_halves_or_neither(kinds: list[str]) -> None:
    assert halves("a0-1", kinds, splits=True) == ""


def test_the_given_order_is_kept() -> None:
    assert [row["node"] for row in rows([AWAY, GOOD, KEPT])] == ["a0-3", "a0-1", "a0-4"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_plain_text(text: str) -> None:
    only_text(text)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80) | st.text(alphabet="|`<>[]()!*_~#-+=.:/\\&;@$ \n\t1wh", max_size=80))
@example("a" * 30 + "\\")
@example("*" * 50)
def test_any_text_stays_plain_text(text: str) -> None:
    only_text(text)


def only_text(text: str) -> None:
    allowed = {"text", "inline", "strong_open", "strong_close", "softbreak", "code_inline", "text_special"}
    blocks = {"paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list", "list_item", "blockquote"}
    allowed |= {f"{block}_{end}" for block in blocks for end in ("open", "close")}
    for page, columns, body in (
        (markdown(hostile(text), fleet=text, warnings=[RunWarning(text, text)]), 5, len(Ending)),
        (check_markdown(findings(text), fleet=text, warnings=[RunWarning(text)], notes=[text]), 5, 3),
    ):
        tokens = rendered(page)
        assert {token.type for token in tokens} <= allowed
        assert sum(token.type == "tr_open" for token in tokens) == body + 1
        assert sum(token.type == "td_open" for token in tokens) == body * columns
        assert sum(token.type == "table_open" for token in tokens) == 1
        assert "<" not in page
        assert not any(unicodedata.category(c)[0] == "C" for c in page if c != "\n")
        page.encode()
    for row in (*rows(hostile(text)), *check_rows(findings(text))):
        for value in row.values():
            assert {token.type for token in rendered(str(value))} <= allowed - {"blockquote_open", "bullet_list_open"}
    shown = [
        *lines(hostile(text), [RunWarning(text, text)]),
        *check_lines(findings(text), [RunWarning(text)], [text]),
        *summary(hostile(text)),
    ]
    shown += [str(value) for row in (*rows(hostile(text)), *check_rows(findings(text))) for value in row.values()]
    shown += [
        json.dumps(
            [to_json(hostile(text), [RunWarning(text)]), check_json(findings(text), [RunWarning(text)])],
            ensure_ascii=False,
        )
    ]
    for line in shown:
        assert not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in line)
        assert len(line) < 10_000 * len(Ending)


@settings(deadline=None)
@given(st.text(max_size=60))
@example("&lt;b&gt; &amp;amp; &copy; &#64;")
@example("\\| \\` a\\")
def test_escaped_text_is_shown_unchanged(text: str) -> None:
    shown = "".join(token.content for token in rendered(f"x {escaped(text)} y") if token.type.startswith("text"))
    assert shown.split() == ["x", *plain(text).split(), "y"]


def test_bare_addresses_do_not_become_links() -> None:
    text = escaped("https://evil.example www.evil.example WWW.evil.example a@evil.example")
    assert text.count("://") == text.count("\\://") == 1
    assert text.lower().count("www\\.") == 2
    assert text.count("@") == text.count("\\@") == 1


def test_plain_text_is_one_short_line() -> None:
    assert plain(" a\n\tb \r\n c\x1b[0m ") == "a b c[0m"
    assert plain("x" * 10_000) == "x" * 499 + "…"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (734_003_200, "734.0 MB"),
        (5 * 10**9, "5.0 GB"),
        (3 * 10**12, "3.0 TB"),
        (10**19, "10000.0 PB"),
    ],
)
def test_sizes_are_formatted_for_people(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.1, "0.0 s"),
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (7199, "2 h 00 min"),
        (172_740, "47 h 59 min"),
        (200_000, "2 d 08 h"),
    ],
)
def test_durations_are_formatted_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


WELL = Finding("a0-1", True, True, "nothing there", "start a backup", room="52.0 GB free, the last backup took 1.0 GB")
UNKNOWN = Finding(
    "a0-2",
    False,
    True,
    "unknown",
    "fail",
    (Problem('backup-status: a reply that is not understood: "Nix da"'),),
    'a0cli: {replies: {absent: ["Nix da"]}}',
)
GONE = Finding("a0-3", False, False, "", "fail", (Problem("ping: connection refused"),))


def test_a_check_report_includes_the_line_that_teaches_a_wording() -> None:
    assert check_lines([WELL, UNKNOWN, GONE]) == [
        "3 nodes checked: 1 ok, 2 not ok (1 unreachable)",
        "a0-1  ok  nothing there  start a backup",
        "  vault: 52.0 GB free, the last backup took 1.0 GB",
        "a0-2  not ok  unknown  fail",
        '  backup-status: a reply that is not understood: "Nix da"',
        '  if that reply is harmless, add it to fleet.yaml: a0cli: {replies: {absent: ["Nix da"]}}',
        "a0-3  unreachable  fail",
        "  ping: connection refused",
    ]
    page = check_markdown([WELL, UNKNOWN, GONE], fleet="fleet.yaml")
    assert page.startswith("**3 nodes checked: 1 ok, 2 not ok (1 unreachable)**, fleet fleet.yaml\n\n| node | check |")
    assert r"| a0-1 | ok | nothing there | start a backup | 52\.0 GB free, the last backup took 1.0 GB |" in page
    assert "| a0-3 | **unreachable** |  | fail |  |" in page
    assert {tuple(row) for row in check_json([WELL, UNKNOWN])["nodes"]} == {
        ("node", "ok", "reachable", "status", "would", "room", "problems", "warnings", "teach")
    }
    assert check_json([UNKNOWN])["nodes"][0]["teach"] == 'a0cli: {replies: {absent: ["Nix da"]}}'


def test_the_hint_follows_its_problem() -> None:
    page = check_markdown([replace(GONE, problems=(Problem("ping: connection refused", "check the port"),))], fleet="f")
    assert page.endswith("\n\n**a0-3**: ping: connection refused\n\nHINT: check the port\n")


def test_a_node_with_a_warning_is_still_well_and_the_warning_is_shown() -> None:
    warned = replace(WELL, warnings=("one | half",))
    assert check_lines([warned], [RunWarning("the same password")], ["sealed to k.pem"]) == [
        "1 node checked: 1 ok",
        "a0-1  ok  nothing there  start a backup",
        "  vault: 52.0 GB free, the last backup took 1.0 GB",
        "  warning: one | half",
        "sealed to k.pem",
        "warning: the same password",
    ]
    page = check_markdown([warned], fleet="f", warnings=[RunWarning("the same password")], notes=["sealed to k.pem"])
    assert page.endswith("\n\n**warning**: the same password\n\n**warning**: a0-1: one \\| half\n\n- sealed to k.pem\n")
    assert check_rows([warned])[0]["warnings"] == "one \\| half"
    told = check_json([warned], [RunWarning("the same password")])
    assert told["nodes"][0]["warnings"] == ["one | half"]
    assert told["warnings"] == [{"nodes": [], "text": "the same password"}]
    assert check_exit_code([warned]) == 0


@pytest.mark.parametrize(("found", "code"), [([WELL], 0), ([], 1), ([GONE], 1), ([WELL, GONE], 3)])
def test_a_check_has_the_exit_codes_of_a_run(found: list[Finding], code: int) -> None:
    assert check_exit_code(found) == code
