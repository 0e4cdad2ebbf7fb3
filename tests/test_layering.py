"""The rooms: imports only go down, and no two modules import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

# The rooms, from the top. Each may import itself and those below it.
ROOMS = (
    "a0backup.__main__",
    "a0backup.cli",
    "deployments",
    "flows",
    "tasks",
    "a0backup.nodes",
    "a0backup.backup",
    "a0backup.retention",
    "a0backup.places",
    "a0backup.upkeep",
    "a0backup.report",
    "a0backup.artifact",
    "a0backup.passwords",
    "a0backup.vault",
    "a0backup.a0cli",
    "a0backup.fleet",
    "a0backup.state_folder",
    "a0backup.limits",
    "a0backup.processes",
    "a0backup.files",
    "a0backup.access",
    "a0backup.identity",
    "a0backup.exit_codes",
    "a0backup.errors",
    "a0backup",
)
FOLDERS = ("a0backup", "deployments", "flows", "tasks")


def modules() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(path: Path) -> set[str]:
    """Return the modules that *path* imports, including inside functions, but not those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def room_of(module: str) -> str:
    return next(room for room in ROOMS if module == room or module.startswith(f"{room}."))


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in (*FOLDERS, "simulator")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_below_its_room(module: str) -> None:
    rank = ROOMS.index(room_of(module))
    ours = {name for name in imported(MODULES[module]) if is_ours(name)}
    assert not [name for name in ours if name.startswith("simulator")], "the product never imports the simulator"
    assert sorted(name for name in ours if ROOMS.index(room_of(name)) < rank) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("a0backup")])
def test_the_core_imports_no_engine(module: str) -> None:
    assert not [name for name in imported(MODULES[module]) if name.partition(".")[0] == "prefect"]


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    below = {module: imported(path) & MODULES.keys() for module, path in MODULES.items()}
    settled: set[str] = set()
    while free := {module for module, names in below.items() if module not in settled and names - {module} <= settled}:
        settled |= free
    assert sorted(MODULES.keys() - settled) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != "a0backup.errors"])
def test_a_module_can_be_read_in_one_sitting(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= 450
