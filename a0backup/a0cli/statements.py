"""The statements of a whole reply: its JSON objects and the lines beside them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from a0backup.a0cli.characters import clean
from a0backup.a0cli.lenient_json import JSON_BEGINS, MalformedError, Reader, Value
from a0backup.a0cli.status import Found
from a0backup.a0cli.text import normalised, quote, without
from a0backup.a0cli.wordings import (
    ERROR_LINE,
    FAILURE_WORD,
    NEGATION,
    PROGRESS_WORD,
    WARNING_LINE,
    Meaning,
    Wordings,
    meaning,
    whole_meaning,
)

if TYPE_CHECKING:
    from a0backup.a0cli.printed import Printed


_FAILED_KEY = re.compile(r"err(?:ors?)?|fail(?:ed|ures?)?|exception|cancell?ed|aborted|corrupt(?:ed)?|expired|deleted")
_AT_IT_KEY = re.compile(r"(?:in_?)?progress|running|pending|partial|incomplete")
_WELL_KEY = re.compile(r"success(?:ful)?|ok|valid|complete|completed|finished|ready|done")
_CODE_KEY = re.compile(r"(?:exit|status|error)?_?code|status")
_STATE_KEY = re.compile(r"(?:\w+_)?(?:stat(?:e|us)|phase|stage|result|outcome|reason|arguments)")
_ALL_DONE = (100, "100", "100%", "100 %")
_LOG_PREFIX = re.compile(
    r"(?:\[?\d{4}-\d\d-\d\d[t ][\d:.,]+(?:z|[+-]\d\d:?\d\d)?\]?:? )?(?:\[?(?:info|debug|notice)\]?:? )?(?:a0cli: )?"
)


_MAX_LINES = 200
_MAX_TEXT = 64 * 1024


@dataclass(frozen=True)
class _Statement:
    """One JSON object, or one line beside it. *noise* does not change the meaning of the reply."""

    text: str
    meaning: Meaning
    found: Found | None = None
    noise: bool = False
    of_json: bool = False

    @property
    def is_reply(self) -> bool:
        """Whether this is a complete JSON reply."""
        known = self.meaning in (Meaning.ABSENT, Meaning.IN_PROGRESS, Meaning.PONG)
        return self.of_json and (known or self.found is not None)


def _statements(text: str, wordings: Wordings, secrets: Sequence[str]) -> Iterator[_Statement]:
    text = clean(text)
    beside, position = [], 0
    while begins := JSON_BEGINS.search(text, position):
        beside.append(text[position : begins.start()])
        reader = Reader(text, begins.start())
        try:
            yield _without(secrets, replace(_spoken(reader.object(), wordings), of_json=True))
        except MalformedError:
            yield _Statement(text[begins.start() : reader.position], Meaning.UNKNOWN, of_json=True)
        position = reader.position
    beside.append(text[position:])
    lines = [line for part in beside for line in part.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        yield _Statement("", Meaning.UNKNOWN)
    for line in lines[:_MAX_LINES]:
        normal = normalised(line)
        bare = _LOG_PREFIX.sub("", normal, count=1)
        said = whole_meaning(line, wordings)
        said = whole_meaning(bare, wordings) if said is Meaning.UNKNOWN else said
        if said is Meaning.UNKNOWN and WARNING_LINE.match(bare):
            # Words in a warning are no verdict.
            yield _Statement(line.strip(), Meaning.UNKNOWN, noise=True)
            continue
        if said is Meaning.UNKNOWN:
            said = meaning(bare, wordings)
        noise = said is Meaning.IGNORE or (said is Meaning.UNKNOWN and not FAILURE_WORD.search(normal))
        yield _Statement(line.strip(), said, noise=noise)


def _without(secrets: Sequence[str], said: _Statement) -> _Statement:
    """Return what was *said* without *secrets*: what is decoded may show one that was hidden in the output."""
    found = said.found
    if found is not None:
        found = replace(found, name=without(secrets, found.name), shown=quote(without(secrets, found.shown)))
    return replace(said, text=without(secrets, said.text), found=found)


def _spoken(members: Mapping[str, Value], wordings: Wordings) -> _Statement:
    """Return the statement of one JSON object."""
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
        silent = "message" not in members and not held and not _spoils(extras, FAILURE_WORD)
        return _Statement(text, said, noise=silent and said is Meaning.UNKNOWN)
    said = meaning(message, wordings)
    found = None
    if said is Meaning.FOUND:
        found = _found(held)
        # With a second md5 it is unclear which one belongs to the node backup.
        if found is None or "md5" in extras or _spoils(extras, FAILURE_WORD, PROGRESS_WORD, NEGATION):
            return _Statement(message, Meaning.UNKNOWN)
    elif said is Meaning.ABSENT:
        if any(held.values()) or _spoils(extras, FAILURE_WORD, PROGRESS_WORD):
            return _Statement(message, Meaning.UNKNOWN)
    elif said in (Meaning.IN_PROGRESS, Meaning.PONG) and _spoils(extras, FAILURE_WORD):
        return _Statement(message, Meaning.UNKNOWN)
    return _Statement(message, said, found)


def _found(held: Mapping[str, Value]) -> Found | None:
    name, md5 = held.get("name"), held.get("md5")
    if not isinstance(name, str):
        return None
    if isinstance(md5, str) and re.fullmatch(r"[0-9a-fA-F]{32}", md5.strip(), re.ASCII):
        return Found(name, md5.strip().lower(), md5.strip())
    return Found(name, None, f"md5 {quote(str(md5), limit=60)!r}" if "md5" in held else "no md5")


def _texts(value: Value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _spoils(extras: Mapping[str, Value], *words: re.Pattern[str]) -> bool:
    """Return whether one of the *extras* beside the message makes it untrustworthy."""
    for key, value in extras.items():
        hurts = value not in (None, False, 0, "", [], {}) and not (key == "progress" and value in _ALL_DONE)
        if hurts and (_FAILED_KEY.fullmatch(key) or (PROGRESS_WORD in words and _AT_IT_KEY.fullmatch(key))):
            return True
        if PROGRESS_WORD in words and _WELL_KEY.fullmatch(key) and value in (False, 0, "false"):
            return True
        if _CODE_KEY.fullmatch(key) and isinstance(value, float) and value != 0 and not 200 <= value < 300:
            return True
        if isinstance(value, dict) and _spoils(value, *words):
            return True
        # Only what says how it is with the backup: a newer build may add members with any text.
        text = normalised(" ".join(_texts(value))) if _STATE_KEY.fullmatch(key) else ""
        if any(pattern.search(text) for pattern in words):
            return True
    return False


def _json_reply(on_stdout: list[_Statement], statements: list[_Statement], wordings: Wordings) -> _Statement | None:
    """Return the one complete JSON reply on standard output, if nothing beside it contradicts it as a whole."""
    reply = next((said for said in on_stdout if said.is_reply), None)
    if reply is None:
        return None
    for said in statements:
        same = (said.meaning, said.found) == (reply.meaning, reply.found)
        if said.of_json:
            contradicts = not said.noise and not same
        else:
            whole = whole_meaning(_LOG_PREFIX.sub("", normalised(said.text), count=1), wordings)
            known = whole not in (Meaning.UNKNOWN, Meaning.IGNORE, reply.meaning)
            is_error = whole is not Meaning.IGNORE and ERROR_LINE.match(normalised(said.text)) is not None
            # An empty text stands for more lines than are read.
            contradicts = known or is_error or not said.text
        if contradicts:
            return None
    return reply


def judge(printed: "Printed", wordings: Wordings) -> tuple[Meaning, Found | None, list[_Statement]]:
    """Return the meaning of a whole reply by its text alone; the caller checks the exit code."""
    if max(len(printed.stdout), len(printed.stderr)) > _MAX_TEXT:
        # The middle was cut out and may have held a word that changes the meaning.
        return Meaning.UNKNOWN, None, []
    on_stdout, on_stderr = (
        list(_statements(text, wordings, printed.secrets)) for text in (printed.stdout, printed.stderr)
    )
    statements = [*on_stdout, *on_stderr]
    if printed.exit_code == 0 and (reply := _json_reply(on_stdout, statements, wordings)) is not None:
        return reply.meaning, reply.found, [reply]
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
