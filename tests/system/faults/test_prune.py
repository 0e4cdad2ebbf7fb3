"""SIGKILL and power cuts at every change of a prune: no listed artifact is torn, and the next prune ends its work.

No node and no engine is needed: the vault and a place are made by hand, and `a0backup prune` runs on a disk that can be
broken.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from a0backup.vault.pinned import Pin, write_pin
from tests.support.extent import WHOLE
from tests.support.pruning import Nights
from tests.support.warm import Warm
from tests.system.faults.disk import Disk, Names, Operation, Tree, preloaded, read_tree
from tests.system.faults.trial import true_in

pytestmark = pytest.mark.slow

VAULT, NAS = "vault", "nas"
SIGKILLED = -9


class Room:
    """A vault with a place, in which two nodes have nights that go and nights that stay."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder, self.warm = folder, warm
        self.stores = folder / "stores"
        self.nights = Nights(folder, vault="stores/vault", copies=[{"name": NAS, "url": "stores/nas"}])
        for node in ("a0-1", "a0-2"):
            self.nights.add_nights(5, node=node, kinds=("backup", "backup-sensitive"))
        pinned = self.nights.add(days_ago=9)
        write_pin(self.nights.vault.root / pinned, Pin(pinned_at=self.nights.now))
        self.kept = {each.id for each in self.nights.plan().decisions if each.action == "keep"}
        self.gone = set(self.nights.plan().removals)
        assert self.run("copy")[0] == 0
        self.whole = read_tree(self.stores)
        shutil.copytree(self.stores, folder / "as it was")
        self.trials = 0

    def again(self) -> Disk:
        """Restore the vault and the place as they were, on a new disk."""
        shutil.rmtree(self.stores)
        shutil.copytree(self.folder / "as it was", self.stores)
        self.trials += 1
        return Disk(self.stores, self.folder / f"disk-{self.trials}")

    def run(self, *arguments: str, disk: Disk | None = None) -> tuple[int, str]:
        run = self.warm.start(*arguments, cwd=self.folder, disk=disk.control if disk else None)
        return run.wait(60), run.out + run.err

    def operations(self) -> list[Operation]:
        """Return every change that an undisturbed prune makes."""
        disk = self.again()
        code, printed = self.run("prune", "--yes", disk=disk)
        assert (code, self.broken(), self.unfinished()) == (0, [], []), printed
        return disk.operations()

    def broken(self) -> list[str]:
        """Return what must never be, whatever has struck."""
        tree, found = read_tree(self.stores), []
        for place in (VAULT, NAS):
            there = {path: content for path, content in tree.items() if path.startswith(f"{place}/")}
            found += [f"{place}: {lie}" for lie in true_in(there)[0]]
            found += [
                f"{place}: {path} was touched" for path in self._of_kept(place) if tree.get(path) != self.whole[path]
            ]
        return found

    def _of_kept(self, place: str) -> Iterator[str]:
        names = ("manifest.json", ".tar.gz.enc", "pinned.json")
        for path in self.whole:
            inside = path.removeprefix(f"{place}/")
            if inside != path and path.endswith(names) and inside.rpartition("/")[0] in self.kept:
                yield path

    def unfinished(self) -> list[str]:
        """Return what is not as it is after an undisturbed prune."""
        tree = read_tree(self.stores)
        found = [f"{place} holds {ids}" for place in (VAULT, NAS) if (ids := self._folders(tree, place)) != self.kept]
        lines = [
            json.loads(line)["id"]
            for record in self.stores.glob("vault/*/pruned.jsonl")
            for line in record.read_text().splitlines()
            if line.endswith("}")
        ]
        if sorted(lines) != sorted(self.gone):
            found.append(f"the record names {sorted(lines)}")
        return found

    @staticmethod
    def _folders(tree: Tree, place: str) -> set[str]:
        paths = (path.removeprefix(f"{place}/") for path in tree if path.startswith(f"{place}/"))
        folders = {path for path in paths if path.count("/") == 1 and "Z-" in path}
        # The next copy removes an empty folder from a place once it is a day old.
        return (
            folders
            if place == VAULT
            else {each for each in folders if any(p.startswith(f"{place}/{each}/") for p in tree)}
        )


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="a0backup-prune-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        (Path(folder) / "warm").mkdir()
        with Warm(Path(folder) / "warm", preloaded()) as warm:
            yield Room(Path(folder), warm)


@pytest.mark.parametrize("cut", [None, "lost", "kept"])
def test_a_kill_or_power_cut_at_any_change_of_a_prune_tears_nothing_and_the_next_one_ends_it(
    room: Room, told: Any, cut: Names | None
) -> None:
    telling = told("SIGKILL at each change of a prune" if cut is None else "power cut at each change of a prune")
    points = room.operations()
    assert {"rename", "unlink", "rmdir", "write", "fsync"} <= {point.name for point in points}
    # A whole run tries each change; otherwise every twelfth, which ends in a few seconds.
    for point in points[:: 1 if WHOLE else 12]:
        disk = room.again()
        disk.kill_at(point.ordinal)
        code, printed = room.run("prune", "--yes", disk=disk)
        broken = [] if code == SIGKILLED else [f"it ended with {code} and not by the kill: {printed}"]
        if cut is not None:
            disk.cut_power(cut)
        broken += room.broken()
        code, printed = room.run("verify", "--json")
        wrong = [each for each in json.loads(printed) if each["result"] in ("DAMAGED", "MISSING", "FOREIGN", "DIFFERS")]
        broken += [f"verify ended with {code}: {wrong}"] if wrong else []
        code, printed = room.run("prune", "--yes")
        broken += [] if code == 0 else [f"the next prune ended with {code}: {printed}"]
        broken += room.broken() + room.unfinished()
        telling.point(f"at {point.name} of {point.path}", broken, killed=True)
