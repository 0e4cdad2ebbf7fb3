"""Every error survives pickling between processes, and the outline in errors.py is correct."""

import inspect
import pickle
import re
import textwrap

import pytest

from a0backup import errors
from a0backup.errors import A0BackupError, NodeError

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, A0BackupError)]
# A value for each field name, of the type that the constructors take.
VALUES = {
    **{"path": "fleet.yaml", "problems": ("line 1: odd", "line 2: odder"), "reasons": ("a0-1: lock",), "total": 3},
    **{"exit_code": 7, "build": 6000, "waited": 2.5, "seconds": 3.0, "deadline": 4.0, "attempts": 3},
    **{"needed": 9_000_000, "free": 4096},
}


def made(error: type[A0BackupError]) -> A0BackupError:
    if error is A0BackupError:
        return error("a0-1", "one field", "another")
    parameters = inspect.signature(error).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return error("a0-1", "one field", "another")
    return error(*(VALUES.get(each.name, f"some {each.name}") for each in parameters))


def outline() -> dict[str, tuple[int, bool]]:
    """Return the classes named in the module's docstring, each with its depth and its mark."""
    tree = textwrap.dedent(inspect.getdoc(errors) or "").split("\n\n")[1]
    rows = [re.fullmatch(r"([│├└─ ]*)(\w+)(.*)", line) for line in tree.splitlines()]
    return {row[2]: (len(row[1]) // 4, row[3].rstrip().endswith("(transient)")) for row in rows if row}


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_pickles_with_its_fields_and_its_text(error: type[A0BackupError]) -> None:
    before = made(error)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert (after.args, vars(after), str(after)) == (before.args, vars(before), str(before))


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_an_error_shows_its_message_and_ends_with_its_hint(error: type[A0BackupError]) -> None:
    before = made(error)
    text = str(before)
    assert text.startswith(before.message())
    assert text.endswith(f"\nHINT: {before.hint()}" if before.hint() else before.message())
    assert not before.message().endswith(".")
    if isinstance(before, NodeError):
        assert before.message() == f"{before.node}: {before.text()}"


def test_the_outline_lists_every_class_at_its_depth_with_its_mark() -> None:
    actual = {
        each.__name__: (len([base for base in each.__mro__ if base in CLASSES]) - 1, each.transient) for each in CLASSES
    }
    assert outline() == actual
    assert next(iter(outline())) == "A0BackupError"


def test_the_outline_places_each_class_below_its_own_base() -> None:
    above: list[str] = []
    for name, (depth, _) in outline().items():
        del above[depth:]
        base = getattr(errors, name).__mro__[1].__name__
        assert not above or base == above[-1], f"{name} hangs below {above[-1]}"
        above.append(name)


def test_a_fleet_file_error_is_also_a_value_error() -> None:
    assert issubclass(errors.FleetFileError, ValueError)
