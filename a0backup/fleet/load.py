"""Load a fleet file: validate it as a whole and report each problem with its line, its key and a remedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from a0backup.errors import FleetFileError
from a0backup.fleet.clashes import clashes
from a0backup.fleet.copies import Copy
from a0backup.fleet.fields import Place, suggestion
from a0backup.fleet.freshness import Freshness
from a0backup.fleet.health import Health, HealthKey
from a0backup.fleet.models import MEANINGS, A0cliSettings, ContentsLimits, Fleet, Node, PasswordSource, Polling
from a0backup.fleet.retention import Retention
from a0backup.fleet.yaml_tree import Problem, Tree, at_place, read_text, read_tree, sorted_texts


def load_fleet(path: str | Path) -> Fleet:
    """Return the fleet in the file at *path*, with absolute paths.

    Raise FleetFileError, which lists all problems with their lines, if the file is unreadable or invalid.
    """
    path = Path(path).absolute()
    tree = read_tree(path, read_text(path))
    problems = [*tree.problems, *_clash_problems(tree)]
    try:
        fleet = Fleet.model_validate(tree.root, context={"folder": path.parent})
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [
            _problem(tree, detail)
            for detail in details
            if not tree.spoils(tuple(detail["loc"])) and not _is_echo(detail)
        ]
    else:
        if not problems:
            return fleet.loaded_from(path)
    raise FleetFileError(str(path), sorted_texts(problems))


def _clash_problems(tree: Tree) -> Iterator[Problem]:
    root = tree.root if isinstance(tree.root, dict) else {}
    nodes, kinds = root.get("nodes"), root.get("kinds")
    rows = [node if isinstance(node, dict) else {} for node in nodes] if isinstance(nodes, list) else []
    for index, key, remedy in clashes(rows, kinds if isinstance(kinds, list) else []):
        place = ("nodes", index, key)
        yield Problem(tree.line(place), at_place(place, remedy, rows[index][key]))


_MODELS: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): Fleet,
    ("a0cli",): A0cliSettings,
    ("password",): PasswordSource,
    ("polling",): Polling,
    ("contents",): ContentsLimits,
    ("nodes",): Node,
    ("copies",): Copy,
    ("health",): Health,
    ("health", "key"): HealthKey,
    ("freshness",): Freshness,
    ("nodes", "freshness"): Freshness,
    ("retention",): Retention,
    ("copies", "retention"): Retention,
}


def _model_of(place: Place) -> type[BaseModel]:
    """Return the model that the key at *place* belongs to."""
    keys = tuple(part for part in place[:-1] if isinstance(part, str))
    while keys not in _MODELS:
        keys = keys[:-1]
    return _MODELS[keys]


def _problem(tree: Tree, detail: ErrorDetails) -> Problem:
    """Return an error of the models as a problem with its line, key and remedy."""
    place: Place = tuple(part for part in detail["loc"] if part != "[key]")
    if place and isinstance(place[-1], int) and place not in tree.lines:
        place = place[:-1]  # a single value in place of a list
    kind, given, limits = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("extra_forbidden", "unknown_key"):
        known = MEANINGS if kind == "unknown_key" else _model_of(place).model_fields
        return Problem(tree.line(place), at_place(place, f"unknown key{suggestion(str(place[-1]), known)}"))
    if kind == "missing":
        return Problem(tree.line(place), at_place(place, f"is missing: {_description(place)}"))
    if kind == "value_error":
        remedy = str(limits["error"])
    elif kind == "literal_password":
        return Problem(tree.line(place), at_place(place, detail["msg"]))  # and not what was given
    elif kind == "within":
        place = (*place, *limits["place"])
        return Problem(tree.line(place), at_place(place, limits["remedy"]))
    elif kind == "literal_error":
        remedy = f"write {limits['expected']}".replace("'", "")
    elif kind in ("greater_than_equal", "less_than_equal"):
        field = _model_of(place).model_fields[str(place[-1])]
        bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "le") if hasattr(m, name)}
        number = "number" if field.annotation is float else "whole number"
        remedy = f"write a {number} from {bounds['ge']} to {bounds['le']}"
    elif kind in ("too_short", "too_long") and not isinstance(given, str):
        most = limits.get("max_length")
        bound = "is empty: name at least one" if kind == "too_short" else f"holds more than {most} entries"
        return Problem(tree.line(place), at_place(place, bound))
    else:
        remedy = _WANTED.get(kind, detail["msg"])
    return Problem(tree.line(place), at_place(place, remedy, given))


def _is_echo(detail: ErrorDetails) -> bool:
    """Return whether this only repeats other problems: clashes, and lists too short because of invalid entries."""
    return detail["type"] == "clash" or (detail["type"] == "too_short" and bool(detail["input"]))


_WANTED: Final = {
    "string_type": "write text, in quotes where it is a number",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "finite_number": "write a number",
    "model_type": "write `key: value` lines below it, or leave the key out",
    "dict_type": "write `key: value` lines below it",
    "list_type": "write a list: `[…]` or `- …` lines below it",
    "tuple_type": "write a list: `[…]` or `- …` lines below it",
    "string_unicode": "write plain text",
}


def _description(place: Place) -> str:
    text = _model_of(place).model_fields[str(place[-1])].description or ""
    return text[:1].lower() + text[1:].rstrip(".")
