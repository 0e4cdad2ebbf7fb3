"""Read the YAML of a fleet file as plain values, with the line of each."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from a0backup.errors import FleetFileError
from a0backup.files import UnsuitableFileError, read_whole
from a0backup.fleet.fields import Place, quoted_value
from a0backup.fleet.health import HealthKey
from a0backup.fleet.models import PasswordSource
from a0backup.fleet.secrets import SecretSource

_LARGEST_FILE = 1024 * 1024
_DEEPEST = 16
_MAX_VALUES = 30_000
_MAX_PROBLEMS = 50
_SECRETS: dict[Place, type[SecretSource]] = {("password",): PasswordSource, ("health", "key"): HealthKey}


@dataclass(frozen=True)
class Problem:
    line: int
    text: str


class _UnusableError(Exception):
    """The file is not a tree of keys and values, so nothing in it can be checked."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text, line)
        self.problem = Problem(line, text)


@dataclass
class Tree:
    root: object
    lines: dict[Place, int]
    problems: list[Problem]
    spoilt: set[Place]

    def line(self, place: Place) -> int:
        """Return the line of *place*, or of the nearest enclosing place that is written in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def spoils(self, place: Place) -> bool:
        return any(place[:depth] in self.spoilt for depth in range(len(place) + 1))


def read_text(path: Path) -> str:
    try:
        content = read_whole(path, _LARGEST_FILE, follow=True)
    except FileNotFoundError:
        raise FleetFileError(str(path), ["there is no such file"]) from None
    except UnsuitableFileError as error:
        raise FleetFileError(str(path), [error.reason]) from None
    except OSError as error:
        raise FleetFileError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise FleetFileError(str(path), ["is not a usable path"]) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FleetFileError(str(path), [f"line {line}: is not UTF-8: save the file as UTF-8"]) from None
    odd = re.search(r"[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff", text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise FleetFileError(
            str(path), [f"line {line}: holds the control character U+{ord(odd.group()):04X}: remove it"]
        )
    return text


def read_tree(path: Path, text: str) -> Tree:
    # libyaml if available: it is ten times faster, and `a0backup list` reads this file each time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _TreeReader(yaml.parse(text, Loader=loader)).read()
    except _UnusableError as error:
        problem = error.problem
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What the parser found is omitted: it could be part of a password.
        said = re.sub(r"""'[^']*'|"[^"]*\"""", _without_content, error.problem or "no reason given")
        remedy = "check the indentation and quotes here and on the line before"
        problem = Problem(mark.line + 1 if mark else 1, f"is not YAML ({said}): {remedy}")
    except yaml.YAMLError:
        problem = Problem(1, "is not YAML")
    raise FleetFileError(str(path), sorted_texts([problem])) from None


def _without_content(quoted: re.Match[str]) -> str:
    return quoted[0] if re.fullmatch(r"'(?:[],:}]|\\t|<[a-z ]+>)'", quoted[0]) else "'…'"


class _TreeReader:
    """Builds plain values from YAML events and records the line of each."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._tree = Tree(None, {}, [], set())
        self._seen = 0

    def read(self) -> Tree:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise _UnusableError("the file is empty")
        first = next(self._events)
        if not isinstance(first, yaml.MappingStartEvent):
            empty = isinstance(first, yaml.ScalarEvent) and not first.value
            raise _UnusableError(
                "the file is empty" if empty else "is not a mapping: write `key: value` lines",
                _line(first),
            )
        self._tree.lines[()] = _line(first)
        self._tree.root = self._value(first, ())
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _UnusableError("a second document starts here: keep one to a file", _line(after))
        return self._tree

    def _value(self, event: yaml.Event, place: Place) -> object:
        self._seen += 1
        if self._seen > _MAX_VALUES:
            raise _UnusableError("holds too many values", _line(event))
        if len(place) > _DEEPEST:
            raise _UnusableError("is nested too deeply", _line(event))
        if isinstance(event, yaml.AliasEvent):
            self._complain(event, place, "aliases (*name) are not used here: write the value out")
            return None
        if getattr(event, "anchor", None) is not None:
            self._complain(event, place, "anchors (&name) are not used here: write the value out")
        if getattr(event, "tag", None) is not None:
            self._complain(event, place, "tags (!name) are not used here: put text that starts with '!' in quotes")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        return _scalar(event) if isinstance(event, yaml.ScalarEvent) else None

    def _mapping(self, place: Place) -> dict[str, object]:
        found: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._complain(event, place, "a key that is not plain text")
                self._value(event, (*place, "?"))
                self._value(next(self._events), (*place, "?"))
                continue
            key = str(event.value)
            inside = (*place, key)
            if key in found:
                first = self._tree.lines[inside]
                self._complain(event, inside, f"written twice, first on line {first}: keep one", spoils=False)
                # The second value is discarded: its lines would hide those of the first.
                self._value(next(self._events), (*inside, "?"))
                continue
            self._tree.lines[inside] = _line(event)
            found[key] = self._value(next(self._events), inside)
        return found

    def _sequence(self, place: Place) -> list[object]:
        found: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            inside = (*place, len(found))
            self._tree.lines[inside] = _line(event)
            found.append(self._value(event, inside))
        return found

    def _complain(self, event: yaml.Event, place: Place, text: str, *, spoils: bool = True) -> None:
        self._tree.problems.append(Problem(_line(event), at_place(place, text)))
        if spoils:
            self._tree.spoilt.add(place)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _scalar(event: yaml.ScalarEvent) -> object:
    """Return a whole number, None or text; YAML's other guesses (yes, 1:30, 010) are never intended here."""
    text = str(event.value)
    if event.style:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    return int(text) if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,17})", text, re.ASCII) else text


def at_place(place: Place, text: str, given: object = None) -> str:
    """Return *text* after its key and, unless that could reveal a secret, the value *given* there."""
    dotted = ""
    source = next((each for each in _SECRETS if place[: len(each)] == each), None)
    for part in source if source is not None and not _is_known(place, source) else place:
        if isinstance(part, int):
            dotted += f"[{part}]"
        else:
            # A key that is not a plain word may be a misplaced value, e.g. `password=…`.
            plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,39}", part, re.ASCII)
            dotted += "." * bool(dotted) + (part if plain else _odd_key(part))
    secret = source is not None or any("passw" in str(part).casefold() for part in place)
    if secret or not isinstance(given, str | int) or given == "":
        return f"{dotted}: {text}" if dotted else text
    return f"{dotted} is {quoted_value(given)}: {text}"


def _odd_key(part: str) -> str:
    """Return what stands for a key that is not repeated, with the invisible character that makes it odd, if any."""
    for char in part:
        if char != " " and unicodedata.category(char) in ("Zs", "Cf"):
            return f"(a key with the invisible character U+{ord(char):04X} {unicodedata.name(char, '')})".replace(
                " )", ")"
            )
    return "(odd key)"


def _is_known(place: Place, source: Place) -> bool:
    # A nested key may be a misplaced value.
    nested = place[len(source) :]
    known = _SECRETS[source].model_fields
    return not nested or (nested[0] in known and all(isinstance(part, int) for part in nested[1:]))


def sorted_texts(problems: Iterable[Problem]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: problem.line)
    texts = [f"line {problem.line}: {problem.text}" if problem.line else problem.text for problem in ordered]
    if len(texts) > _MAX_PROBLEMS:
        texts[_MAX_PROBLEMS:] = [f"and {len(texts) - _MAX_PROBLEMS} more problems"]
    return texts
