"""What a0cli prints, read as typed replies; the one table of known messages.

The vendor documents five replies only (its page on the CLI); the rest are worded by the builds as they please. So a
message counts only as a whole, after its case, white space, colours and final full stop are taken away; nothing that
means success is ever looked for *inside* a text ("No backup found" contains "backup found"). What is not known, what
contradicts itself and what comes with an exit code other than 0 is never a status.
"""

import base64
import html
import json
import re
import shlex
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from a0backup.errors import A0cliError, FleetFileError, RefusedError, UnknownReplyError, UnreachableError
from a0backup.identity import BackupIdentity

if TYPE_CHECKING:
    from a0backup.a0cli import Printed


class Meaning(StrEnum):
    """What a message says; the values are the keys of `a0cli.replies` in fleet.yaml."""

    PONG = "pong"
    FOUND = "found"
    IN_PROGRESS = "in_progress"
    ABSENT = "absent"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Found:
    """The node holds a finished node backup.

    *name* is whatever the node wrote: untrusted, never a path. *md5* is 32 lower-case hex digits, or None where the
    reply has none that is well-formed; *shown* then quotes what stood there.
    """

    name: str
    md5: str | None
    shown: str = field(default="", compare=False)

    @property
    def identity(self) -> BackupIdentity:
        """Which backup it is."""
        return BackupIdentity(name=self.name, md5=self.md5)


@dataclass(frozen=True)
class InProgress:
    """The node is making its node backup."""


@dataclass(frozen=True)
class Absent:
    """The node holds no node backup."""


Status = Found | InProgress | Absent

# ---------------------------------------------------------------------------------------------------------------------
# The table. Grammars are matched against the whole normalised message, never against a part of it.

_KNOWN = {
    "pong": Meaning.PONG,
    "backup found": Meaning.FOUND,
    "user export found": Meaning.FOUND,
    "backup in progress": Meaning.IN_PROGRESS,
    "no backup found": Meaning.ABSENT,
}

_THING = (
    r"(?:(?:user|sensitive|previous|existing|current|stored|available|encrypted|such) )*"
    r"(?:backup|export)s?(?: (?:file|archive)s?)?"
)
_MACHINE = r"(?:(?:this|the|that|your|target|remote) )*(?:node|appliance|instance|server|host|device|system|target)"
_WHERE = (
    rf"(?: (?:on|for|at|in|from) {_MACHINE}| here| there| now| currently| at the moment| at this time| so far| at all"
    r"| to (?:retrieve|download|delete|fetch|show|list|report))*"
)
_BEING = r"(?: (?:is|are|was|were|has|have|does|do|been))*"

_ABSENT = re.compile(
    rf"(?:(?:sorry|currently|there (?:is|are|was|were)) )*(?:no|0|zero) {_THING}"
    rf"(?:{_BEING}(?: (?:found|available|present|stored|exists?|existing|made|taken|created|kept))?"
    rf"| (?:can|could) be (?:found|located)){_WHERE}(?: yet)?"
    rf"|(?:(?:a|the|any) )?{_THING}{_BEING} not(?: been| currently)*"
    rf" (?:found|available|present|exist|existing|there|here|located){_WHERE}"
    rf"|(?:nothing|none)(?: (?:is|was))?"
    rf"(?: (?:found|available|present|stored|kept|here|there)| to (?:retrieve|download|fetch)){_WHERE}(?: yet)?"
    rf"|(?:{_MACHINE}|you)(?: currently)? (?:has|have|holds?|contains?|keeps?|stores?) no {_THING}{_WHERE}(?: yet)?"
    rf"|(?:{_MACHINE}|you) (?:does|do) not(?: currently)? (?:have|hold|contain|keep|store)(?: an?| any)? {_THING}"
    rf"{_WHERE}(?: yet)?"
)

_AT_IT = (
    r"(?:in progress|in process|under ?way|running|ongoing|pending|queued|processing|started|incomplete|unfinished"
    r"|being (?:made|created|taken|prepared|generated|built|written|encrypted|compressed|processed)"
    r"|not(?: yet)? (?:ready|finished|complete|completed|done)(?: yet)?)"
)
_IN_PROGRESS = re.compile(
    rf"(?:(?:there is |an? |the |another |your )*{_THING}(?: process| job| task)?{_BEING}"
    rf"(?: (?:currently|still|already|now|just))*|still|already|currently)? ?{_AT_IT}{_WHERE}"
    r"(?:[.,;:]? (?:please )?(?:wait|be patient|(?:try|check) again(?: later)?))?"
    r"|(?:still |currently )?(?:creating|making|generating|preparing|taking|building|performing|compressing)"
    rf" (?:a |the |your )?{_THING}{_WHERE}"
    r"|please wait"
)
_SHARE_DONE = re.compile(r"[ :,(\[-]*\d{1,3}(?:\.\d{1,4})? ?%(?: (?:complete|completed|done))?[)\]]?$")

_FOUND = re.compile(
    rf"(?:(?:an?|the|1|one|your|latest|last) )*(?:finished |completed )?{_THING}{_BEING}"
    r" (?:found|ready|available|complete|completed|finished|done|present|exists?|created|made|stored|successful)"
    rf"(?: successfully)?{_WHERE}(?: for (?:retrieval|download)| to be (?:retrieved|downloaded))?"
    rf"|(?:found|there is)(?: (?:an?|the|1|one))?(?: (?:finished|completed))? {_THING}{_WHERE}"
    r"|found|ready|available|done|complete|completed|finished|ok|success"
)

_UNREACHABLE = re.compile(
    r"\b(?:econnrefused|econnreset|econnaborted|etimedout|ehostunreach|ehostdown|enetunreach|enetdown|enotfound"
    r"|eai_again|eai_noname|epipe|esockettimedout)\b"
    r"|connection (?:was |has been |is )?(?:refused|reset|closed|lost|aborted|timed out|terminated)"
    r"|(?:could not|cannot|can not|unable to|failed to) (?:connect|reach|resolve)|no route to host|unreachable"
    r"|network is down|host is down|timed out|socket hang up|name or service not known|getaddrinfo"
    r"|name resolution|connect(?:ion)? timeout|broken pipe"
)
_REFUSED = re.compile(
    r"(?:unknown|invalid|unrecogni[sz]ed|unsupported|no such|illegal|unexpected) (?:command|option|argument|subcommand)"
    r"|command (?:[\w'\"`-]+ )?(?:is )?(?:unknown|not (?:found|known|available|supported|recogni[sz]ed|allowed))"
    r"|not an? (?:known |valid |supported |a0cli )*command|not supported|missing (?:required )?argument"
    r"|\b(?:unauthori[sz]ed|forbidden|eacces|eperm)\b|not (?:authori[sz]ed|permitted|allowed)"
    r"|(?:permission|access) (?:is |was )?denied|authentication (?:failed|failure|error|required)"
    r"|http(?:/[\d.]+)? 40[13]\b|status(?: ?code)?[ :=]*40[13]\b"
    r"|\bno (?:(?:public|private|ssh|valid|such) )*keys?\b|\bkeys? (?:pair )?(?:is |are |was |were )?"
    r"(?:not (?:found|known|registered|accepted|valid)|missing|unknown|invalid|rejected)"
    r"|(?:unknown|invalid|missing|rejected|wrong) (?:(?:public|private|ssh) )?(?:key|signature|credentials)\b"
    r"|wrong role|(?:not|no|without)(?: in| have| has| an?| the| any)* backup (?:node|role|device|instance|server)"
    r"|not (?:configured|set|set up|enabled|designated) (?:as|for)(?: a| the)? backup"
)

# What a start is told where there is a backup: what it says is not documented, and counts only with an exit code.
_THERE = r"(?:in progress|under ?way|exists?|running|started|present|stored|there)"
_ALREADY_THERE = re.compile(rf"\balready\b[^.;]*\b{_THERE}\b|\b{_THERE}\b[^.;]*\balready\b")

# What set-as-backup is told of a device or a folder in its way: not documented either, counts only with an exit code.
_IN_THE_WAY = re.compile(
    r"\b(?:no|invalid|unknown|bad|wrong) (?:such )?(?:block )?device\b|\bno such file\b"
    r"|\bdevice\b[^.;]* (?:not (?:found|exist|there|available|valid|usable)|does not exist|busy|in use|mounted)\b"
    r"|\bfolder exists\b|\buse (?:the )?force\b"
)

# Words that keep a reply from being believed, wherever they stand beside the message.
_FAILURE_WORD = re.compile(
    r"(?<!\bno )(?<!\b0 )(?:\b[a-z]*error|\bfail(?:ed|ure|s)?|\bfatal|\b[a-z]*exception|\bdenied|\brefused|\brejected"
    r"|\babort(?:ed)?|\bcannot|\bunable|\bcorrupt(?:ed)?|\binvalid|\bpanic|\btraceback|\bcrashed|\bunavailable"
    r"|\bcould not|\bcancell?ed|\bmissing)\b"
)
_PROGRESS_WORD = re.compile(
    r"\b(?:progress|pending|running|queued|ongoing|partial|incomplete|unfinished|being)\b|\d ?%"
)
_NEGATION = re.compile(r"\b(?:no|not|none|nothing|never|without|deleted|removed|expired|stale|gone|empty)\b")

_FAILED_KEY = re.compile(r"err(?:ors?)?|fail(?:ed|ures?)?|exception|cancell?ed|aborted|corrupt(?:ed)?|expired|deleted")
_AT_IT_KEY = re.compile(r"(?:in_?)?progress|running|pending|partial|incomplete")
_WELL_KEY = re.compile(r"success(?:ful)?|ok|valid|complete|completed|finished|ready|done")
_CODE_KEY = re.compile(r"(?:exit|status|error)?_?code|status")

# ---------------------------------------------------------------------------------------------------------------------
# Text

# Every alternative takes what it began with, closed or not, so that the work stays linear.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_LOG_PREFIX = re.compile(
    r"(?:\[?\d{4}-\d\d-\d\d[t ][\d:.,]+(?:z|[+-]\d\d:?\d\d)?\]?:? )?(?:\[?(?:info|debug|notice)\]?:? )?(?:a0cli: )?"
)
_LONGEST_MESSAGE = 200
_MOST_LINES = 200
_MOST_TEXT = 64 * 1024


def clean(text: str) -> str:
    """Return *text* with colours, control and bidi characters removed; lines are kept, other white space is blanks."""
    text = _ANSI.sub("", text).replace("\r", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)


def _normal(text: str) -> str:
    text = " ".join(clean(text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    text = re.sub(r"\bcan't\b", "cannot", text)
    text = re.sub(r"n't\b", " not", text)
    return text.rstrip(" .!\N{HORIZONTAL ELLIPSIS}")


def _secret_forms(secret: str) -> list[str]:
    """Return how *secret* may appear in what a program prints, longest first."""
    octets = secret.encode("utf-8", "surrogatepass")
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], shlex.quote(secret)}
    forms |= {repr(secret)[1:-1], html.escape(secret), secret.replace("'", "'\\''"), octets.hex()}
    forms.add(secret.replace("/", "\\/"))
    forms |= {urllib.parse.quote(octets, safe=""), urllib.parse.quote(octets), urllib.parse.quote_plus(octets)}
    # Base64 of a text that holds the secret at any of the three alignments: the digits that depend on it alone.
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + octets).decode()
        first, last = (0, 2, 3)[offset], (offset + len(octets)) * 8 // 6
        if last - first >= 6:
            forms |= {whole[first:last], whole[first:last].translate(str.maketrans("+/", "-_"))}
    return sorted(forms - {""}, key=len, reverse=True)


def longest_form(secret: str | None) -> int:
    """Return the length in bytes of the longest form in which *secret* is recognised, 0 without a secret."""
    return max(len(form.encode("utf-8", "surrogatepass")) for form in _secret_forms(secret)) if secret else 0


def redact(text: str, secret: str | None) -> str:
    """Return *text* with *secret*, also JSON-escaped, URL-encoded, in hex or base64, replaced by ``***``."""
    if not secret:
        return text
    return re.sub("|".join(map(re.escape, _secret_forms(secret))), "***", text, flags=re.IGNORECASE)


def quote(text: str, *, secret: str | None = None, limit: int = 200) -> str:
    """Return *text* fit for a message: one line, no control, colour or bidi characters, no *secret*, cut in the middle.

    The result is at most *limit* characters long.
    """
    # A stray colour may split the secret, and a decoded one may be whole only after cleaning: so on both sides.
    line = redact(" ".join(clean(redact(text, secret)).split()), secret)
    if len(line) <= limit:
        return line
    end = max(0, limit - 3) // 2
    return f"{line[: limit - 3 - end]} … {line[len(line) - end :]}"[:limit]


# ---------------------------------------------------------------------------------------------------------------------
# Wordings


@dataclass(frozen=True)
class Wordings:
    """The built-in table of messages, and above it the operator's."""

    taught: Mapping[str, Meaning] = field(default_factory=dict)

    @classmethod
    def extended(cls, replies: Mapping[str, Sequence[str]]) -> "Wordings":
        """Return the built-in table with the operator's `a0cli.replies` above it.

        Raise FleetFileError for an unknown meaning, an empty wording, or one wording with two meanings.
        """
        taught: dict[str, Meaning] = {}
        problems = []
        for key, texts in replies.items():
            if key not in set(Meaning) - {Meaning.UNKNOWN}:
                problems.append(f"a0cli.replies.{quote(key, limit=40)}: not a meaning; use one of {_TEACHABLE}")
                continue
            for text in texts:
                normal = _normal(text)
                if not normal:
                    problems.append(f"a0cli.replies.{key}: an empty wording; write the whole message")
                elif taught.setdefault(normal, Meaning(key)) != key:
                    problems.append(f"a0cli.replies.{key}: {quote(text)!r} is also under {taught[normal]}; keep one")
        if problems:
            raise FleetFileError("fleet.yaml", problems)
        return cls(taught)


_TEACHABLE = ", ".join(meaning for meaning in Meaning if meaning is not Meaning.UNKNOWN)


def meaning(text: str, wordings: Wordings) -> Meaning:
    """Return what one message says, taken as a whole; FOUND says nothing yet without a name and an md5 beside it."""
    normal = _normal(text)
    if known := wordings.taught.get(normal) or _KNOWN.get(normal):
        return known
    if len(normal) <= _LONGEST_MESSAGE:
        if _ABSENT.fullmatch(normal):
            return Meaning.ABSENT
        if _IN_PROGRESS.fullmatch(_SHARE_DONE.sub("", normal)):
            return Meaning.IN_PROGRESS
        if _FOUND.fullmatch(normal):
            return Meaning.FOUND
    # A part is enough from here on: these only end the asking sooner.
    if _UNREACHABLE.search(normal):
        return Meaning.UNREACHABLE
    if _REFUSED.search(normal):
        return Meaning.REFUSED
    return Meaning.UNKNOWN


# ---------------------------------------------------------------------------------------------------------------------
# JSON as tools print it: commas may lack (the vendor's page), keys may be bare and quotes single (a JavaScript console)

_Value = str | float | bool | None | list["_Value"] | dict[str, "_Value"]

# A string ends at its quote or with its line: an unclosed one is taken whole, so that the work stays linear.
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\]:,])|(?P<string>"(?:[^"\\\n]|\\[^\n])*\\?"?|'(?:[^'\\\n]|\\[^\n])*\\?'?)"""
    r"""|(?P<bare>[^\s{}\[\]:,"']+)|(?P<end>$))"""
)
_JSON_BEGINS = re.compile(r"""\{\s*(?:["'}]|[A-Za-z_]\w*\s*:)""")
_CONSTANTS: dict[str, _Value] = {"true": True, "false": False, "null": None, "undefined": None}
_DEEPEST = 16


class _MalformedError(ValueError):
    """What began like a JSON object does not go on like one."""


class _Reader:
    """Reads one object from *position* on; afterwards *position* is behind what was read, well-formed or not."""

    def __init__(self, text: str, position: int) -> None:
        self.text, self.position = text, position

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self.text, self.position)
        if found is None or found.lastgroup == "end":
            raise _MalformedError
        self.position = found.end()
        return str(found.lastgroup), found[str(found.lastgroup)]

    def object(self, depth: int = 0) -> dict[str, _Value]:
        if depth > _DEEPEST or self._next() != ("mark", "{"):
            raise _MalformedError
        members: dict[str, _Value] = {}
        while (token := self._next()) != ("mark", "}"):
            if token == ("mark", ","):
                continue
            if token[0] == "mark" or self._next() != ("mark", ":"):
                raise _MalformedError
            key = (_string(token[1]) if token[0] == "string" else token[1]).casefold()
            value = self._value(depth + 1)
            if members.setdefault(key, value) != value:
                raise _MalformedError
        return members

    def _list(self, depth: int) -> list[_Value]:
        items: list[_Value] = []
        while True:
            before = self.position
            token = self._next()
            if token == ("mark", "]"):
                return items
            if token != ("mark", ","):
                self.position = before
                items.append(self._value(depth + 1))

    def _value(self, depth: int) -> _Value:
        before = self.position
        group, part = self._next()
        if group == "string":
            return _string(part)
        if group == "bare":
            if part in _CONSTANTS:
                return _CONSTANTS[part]
            try:
                return float(part)
            except ValueError:
                raise _MalformedError from None
        if depth <= _DEEPEST and part == "[":
            return self._list(depth)
        if depth <= _DEEPEST and part == "{":
            self.position = before
            return self.object(depth)
        raise _MalformedError


def _string(token: str) -> str:
    quotation, inner = token[0], token[1:-1]
    if len(token) < 2 or token[-1] != quotation:
        raise _MalformedError
    if quotation == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        text = json.loads(f'"{inner}"', strict=False)
    except ValueError:
        raise _MalformedError from None
    # A lone surrogate could be neither printed nor written to the journal.
    return str(text).encode("utf-8", "replace").decode()


# ---------------------------------------------------------------------------------------------------------------------
# Statements


@dataclass(frozen=True)
class _Statement:
    """One JSON object or one line beside it. *noise* may stand beside a reply without changing it."""

    text: str
    meaning: Meaning
    found: Found | None = None
    noise: bool = False


def _statements(text: str, wordings: Wordings) -> Iterator[_Statement]:
    text = clean(text)
    beside, position = [], 0
    while begins := _JSON_BEGINS.search(text, position):
        beside.append(text[position : begins.start()])
        reader = _Reader(text, begins.start())
        try:
            yield _spoken(reader.object(), wordings)
        except _MalformedError:
            yield _Statement(text[begins.start() : reader.position], Meaning.UNKNOWN)
        position = reader.position
    beside.append(text[position:])
    lines = [line for part in beside for line in part.splitlines() if line.strip()]
    if len(lines) > _MOST_LINES:
        yield _Statement("", Meaning.UNKNOWN)
    for line in lines[:_MOST_LINES]:
        said = meaning(line, wordings)
        if said is Meaning.UNKNOWN:
            said = meaning(_LOG_PREFIX.sub("", _normal(line), count=1), wordings)
        noise = said is Meaning.UNKNOWN and not _FAILURE_WORD.search(_normal(line))
        yield _Statement(line.strip(), said, noise=noise)


def _spoken(members: Mapping[str, _Value], wordings: Wordings) -> _Statement:
    """Return what one JSON object says."""
    inner = members.get("arguments")
    place = inner if isinstance(inner, dict) and inner.keys() & {"name", "md5"} else members
    held = {key: place[key] for key in ("name", "md5") if key in place}
    kept_out = {"message", "arguments", *(held if place is members else ())}
    extras = {key: value for key, value in members.items() if key not in kept_out}
    if isinstance(inner, dict):
        extras |= {key: value for key, value in inner.items() if key not in held}
    elif inner is not None:
        extras["arguments"] = inner
    message = members.get("message")
    if not isinstance(message, str):
        text = " ".join(_texts(dict(members)))
        said = meaning(text, wordings)
        if said not in (Meaning.REFUSED, Meaning.UNREACHABLE):
            said = Meaning.UNKNOWN
        silent = "message" not in members and not held and not _spoils(extras, _FAILURE_WORD)
        return _Statement(text, said, noise=silent and said is Meaning.UNKNOWN)
    said = meaning(message, wordings)
    found = None
    if said is Meaning.FOUND:
        found = _found(held)
        # A second md5 beside the first: which of them is the node backup's, nobody can tell.
        if found is None or "md5" in extras or _spoils(extras, _FAILURE_WORD, _PROGRESS_WORD, _NEGATION):
            return _Statement(message, Meaning.UNKNOWN)
    elif said is Meaning.ABSENT:
        if any(held.values()) or _spoils(extras, _FAILURE_WORD, _PROGRESS_WORD):
            return _Statement(message, Meaning.UNKNOWN)
    elif said in (Meaning.IN_PROGRESS, Meaning.PONG) and _spoils(extras, _FAILURE_WORD):
        return _Statement(message, Meaning.UNKNOWN)
    return _Statement(message, said, found)


def _found(held: Mapping[str, _Value]) -> Found | None:
    name, md5 = held.get("name"), held.get("md5")
    if not isinstance(name, str):
        return None
    if isinstance(md5, str) and re.fullmatch(r"[0-9a-fA-F]{32}", md5.strip(), re.ASCII):
        return Found(name, md5.strip().lower(), md5.strip())
    return Found(name, None, f"md5 {quote(str(md5), limit=60)!r}" if "md5" in held else "no md5")


def _texts(value: _Value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _spoils(extras: Mapping[str, _Value], *words: re.Pattern[str]) -> bool:
    """Return whether something beside the message says that it is not to be believed as it stands."""
    for key, value in extras.items():
        hurts = value not in (None, False, 0, "", [], {})
        if hurts and (_FAILED_KEY.fullmatch(key) or (_PROGRESS_WORD in words and _AT_IT_KEY.fullmatch(key))):
            return True
        if _PROGRESS_WORD in words and _WELL_KEY.fullmatch(key) and value in (False, 0, "false"):
            return True
        if _CODE_KEY.fullmatch(key) and isinstance(value, float) and value != 0 and not 200 <= value < 300:
            return True
        if isinstance(value, dict) and _spoils(value, *words):
            return True
        text = _normal(" ".join(_texts(value)))
        if any(pattern.search(text) for pattern in words):
            return True
    return False


def _judge(printed: "Printed", wordings: Wordings) -> tuple[Meaning, Found | None, list[_Statement]]:
    """Return what a whole reply says, as far as its text goes; the exit code is the caller's to look at."""
    if max(len(printed.stdout), len(printed.stderr)) > _MOST_TEXT:
        # Its middle was cut away: a word that changes everything may have stood there.
        return Meaning.UNKNOWN, None, []
    statements = [said for text in (printed.stdout, printed.stderr) for said in _statements(text, wordings)]
    telling = [statement for statement in statements if not statement.noise]
    meanings = {statement.meaning for statement in telling}
    founds = {statement.found for statement in telling if statement.found}
    if meanings == {Meaning.FOUND} and len(founds) == 1:
        return Meaning.FOUND, founds.pop(), telling
    if len(meanings) == 1 and Meaning.FOUND not in meanings:
        return meanings.pop(), None, telling
    if meanings <= {Meaning.REFUSED, Meaning.UNREACHABLE, Meaning.UNKNOWN}:
        for bad in (Meaning.UNREACHABLE, Meaning.REFUSED):
            if bad in meanings:
                return bad, None, telling
    return Meaning.UNKNOWN, None, telling or statements


# ---------------------------------------------------------------------------------------------------------------------
# Replies


def read_status(
    printed: "Printed", *, node: str, command: str, wordings: Wordings, secret: str | None = None
) -> Status:
    """Return what a status command said.

    Raise RefusedError, UnreachableError or UnknownReplyError for everything that is not plainly a status with exit
    code 0.
    """
    if printed.exit_code == 0:
        said, found, _ = _judge(printed, wordings)
        if found is not None:
            return found
        if said is Meaning.IN_PROGRESS:
            return InProgress()
        if said is Meaning.ABSENT:
            return Absent()
    raise refusal(printed, node=node, command=command, wordings=wordings, secret=secret)


def read_ping(printed: "Printed", *, node: str, wordings: Wordings) -> None:
    """Return if the node said PONG with exit code 0.

    Raise RefusedError, UnreachableError or UnknownReplyError for everything else.
    """
    if printed.exit_code != 0 or _judge(printed, wordings)[0] is not Meaning.PONG:
        raise refusal(printed, node=node, command="ping", wordings=wordings)


def refusal(
    printed: "Printed", *, node: str, command: str, wordings: Wordings, secret: str | None = None
) -> RefusedError | UnreachableError | UnknownReplyError:
    """Return the error that says why a call did not do its work; unknown where its words say nothing known."""
    said = _judge(printed, wordings)[0]
    both = f"{printed.stdout}\n{printed.stderr}"
    if said not in (Meaning.REFUSED, Meaning.UNREACHABLE):
        said = Meaning.UNKNOWN
        if printed.exit_code != 0:
            normal = _normal(both)
            said = Meaning.REFUSED if _REFUSED.search(normal) else said
            said = Meaning.UNREACHABLE if _UNREACHABLE.search(normal) else said
    tail = quote(both, secret=secret)
    if said is Meaning.UNREACHABLE:
        return UnreachableError(node, command, "the node does not answer", printed.exit_code, tail)
    if said is Meaning.REFUSED:
        return RefusedError(node, command, "the command is refused", printed.exit_code, tail)
    reason = "the reply is not understood" if tail else "it printed nothing"
    return UnknownReplyError(node, command, reason, printed.exit_code, tail)


def made_nothing(printed: "Printed", said: A0cliError) -> bool:
    """Return whether a start, whose `refusal` is *said*, failed and says so: refused, or a backup was there already."""
    # One that did not reach the node may have arrived all the same.
    if printed.exit_code == 0 or isinstance(said, UnreachableError):
        return False
    return isinstance(said, RefusedError) or bool(_ALREADY_THERE.search(_normal(f"{printed.stdout}\n{printed.stderr}")))


def gave_no_role(printed: "Printed", said: A0cliError) -> bool:
    """Return whether a set-as-backup, whose `refusal` is *said*, failed and says so: refused, a folder, no device."""
    if printed.exit_code == 0 or isinstance(said, UnreachableError):
        return False
    return made_nothing(printed, said) or bool(_IN_THE_WAY.search(_normal(f"{printed.stdout}\n{printed.stderr}")))


def teach(printed: "Printed", wordings: Wordings | None = None) -> str:
    """Return the line for fleet.yaml that would teach the wording of an unknown reply.

    The meaning in it is a guess for the operator to check. The result is empty where the reply is known already or no
    single message stands out in it.
    """
    said, _, telling = _judge(printed, wordings or Wordings())
    messages = {statement.text for statement in telling}
    if said is not Meaning.UNKNOWN or len(messages) != 1:
        return ""
    (message,) = messages
    text = quote(message, limit=_LONGEST_MESSAGE + 1)
    normal = _normal(text)
    if not normal or len(text) > _LONGEST_MESSAGE or text.startswith("{"):
        return ""
    if meaning(text, wordings or Wordings()) is not Meaning.UNKNOWN:
        return ""  # the words are known; what stands beside them keeps them from being believed
    guess = Meaning.ABSENT
    if printed.exit_code != 0 or _FAILURE_WORD.search(normal):
        guess = Meaning.REFUSED
    elif _PROGRESS_WORD.search(normal) and not _NEGATION.search(normal):
        guess = Meaning.IN_PROGRESS
    for candidate in (guess, Meaning.FOUND):
        if _judge(printed, Wordings({**(wordings.taught if wordings else {}), normal: candidate}))[0] is candidate:
            return f"a0cli: {{replies: {{{candidate}: [{json.dumps(text, ensure_ascii=False)}]}}}}"
    return ""


def shown(status: Status) -> str:
    """Return the status in words, fit to be printed."""
    match status:
        case Absent():
            return "nothing there"
        case InProgress():
            return "in progress"
        case Found():
            return f"found {quote(status.name, limit=80)} ({status.md5 or status.shown})"


def quoted(printed: "Printed") -> str:
    """Return what a call printed and how it ended, in a few words fit to be printed."""
    text = quote(f"{printed.stdout}\n{printed.stderr}".strip())
    return text if printed.exit_code == 0 else f"{text} (exit code {printed.exit_code})"


# Commands that a node takes whatever its role (vendor's page on the CLI).
_ALWAYS_OFFERED = {"ping", "nslookup", "re-ip", "test-port", "set-as-backup"}


def offered_commands(listing: str) -> frozenset[str] | None:
    """Return the commands in what `a0cli` alone lists, None where it is not read.

    It is read where it names one command a line, first on the line; the words after it may name others. Other words
    may be among the commands.
    """
    offered = frozenset(line.split()[0] for line in listing.splitlines() if line.strip())
    return offered if len(offered & _ALWAYS_OFFERED) > 1 else None


def missing_commands(listing: str, kinds: Sequence[str]) -> list[str]:
    """Return which kinds' commands are not in what `a0cli` alone lists.

    A listing that is not read proves nothing, the start will tell: then none is missing.
    """
    offered = offered_commands(listing)
    return [] if offered is None else [kind for kind in kinds if kind not in offered]


def offers_backup(listing: str) -> bool | None:
    """Return whether what `a0cli` alone lists shows that the node takes a backup: from build 6868 on, its role.

    None where the listing is not read.
    """
    offered = offered_commands(listing)
    return None if offered is None else "backup" in offered


def offers_sensitive(listing: str) -> bool:
    """Return whether what `a0cli` alone lists shows that the node takes backup-sensitive."""
    return "backup-sensitive" in (offered_commands(listing) or ())
