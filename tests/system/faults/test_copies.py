"""SIGKILL at every change of the vault and of a place, with a second place in S3: nothing is lost.

At every instant, a backup that is deleted on its node is whole in the vault and in both places, so that nothing is
lost with the vault's disk, either.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.extent import PARTS, in_parts, matrix, share
from tests.support.places import BUCKET, S3Server, s3_server
from tests.support.warm import Run
from tests.system.faults.disk import Tree, read_tree
from tests.system.faults.scenarios import SIGKILLED, plain, reference
from tests.system.faults.trial import Arena, Trial, true_in

pytestmark = [pytest.mark.engine, pytest.mark.slow]

NAS = "stores/nas"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as server:
        server.introduce(patch, tmp_path_factory.mktemp("aws"))
        yield server


class Copied(Trial):
    """A trial with two places: a folder on the disk that can be broken, and an S3 bucket."""

    VAULT, DISK = "stores/vault", "stores"
    server: S3Server

    def __init__(self, arena: Arena, nodes: int = 1) -> None:
        copies = [{"name": "nas", "url": NAS}, {"name": "offsite", "url": self._url(next(arena.numbers))}]
        super().__init__(arena, nodes, vault=self.VAULT, copies=copies, require_copies=2)

    def _url(self, number: int) -> str:
        self.prefix = f"trial-{number}"
        return f"s3://{BUCKET}/{self.prefix}"

    def start(self, *arguments: str, **environment: str) -> Run:
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return super().start(*arguments, **aws, **environment)

    def kept_in(self, tree: Tree) -> list[set[tuple[str, str, str]]]:
        return [true_in({p: c for p, c in tree.items() if p.startswith(f"{place}/")})[1] for place in ("vault", "nas")]

    def broken(self) -> list[str]:
        found = super().broken()
        for place in (self.room / NAS, self.server.folder / self.prefix):
            lies, kept = true_in(read_tree(place))
            found += [f"{place}: {lie}" for lie in lies]
            for event in self.events("deleted"):
                if (event["node"], event["kind"], event["md5"]) not in kept:
                    found.append(f"{event['node']}: {event['md5']} was deleted, and is not in {place}")
        return found


@pytest.fixture
def kind(server: S3Server) -> type[Copied]:
    return type("CopiedHere", (Copied,), {"server": server})


def finish(trial: Trial, where: str, told: Any, code: int, printed: str) -> None:
    """Check what the struck run left, and let a plain run finish it."""
    broken = [] if code == SIGKILLED else [f"it ended with {code} and not by the kill: {printed}"]
    told.point(where, broken + trial.broken() + trial.finish(), killed=code == SIGKILLED)


@matrix
@in_parts
def test_a_kill_at_any_change_of_the_vault_or_a_place_loses_nothing(
    arena_: Arena, told: Any, kind: type[Copied], part: int
) -> None:
    telling = told("SIGKILL at each change of the vault and a place")
    points = reference(arena_, plain, kind=kind)
    for point in share(points, part, PARTS):
        trial = kind(arena_)
        trial.disk.kill_at(point.ordinal)
        code, printed = trial.run()
        if code == 0 and trial.disk.operations()[-1].ordinal < point.ordinal:
            continue  # this run made one change fewer than the recorded one
        finish(trial, f"at {point.name} of {point.to or point.path}", telling, code, printed)


def test_a_kill_at_the_changes_of_a_place_that_matter_most_loses_nothing(
    arena_: Arena, told: Any, kind: type[Copied]
) -> None:
    telling = told("SIGKILL at each change of the vault and a place")
    points = reference(arena_, plain, kind=kind)
    for name in ("backup.tar.gz.enc", "manifest.json"):
        [point] = [o for o in points if o.name == "rename" and Path(o.to).match(f"nas/*/*Z-backup/{name}")]
        folder = str(Path(point.to).parent)
        sync = next(o for o in points if o.ordinal > point.ordinal and (o.name, o.path) == ("fsync", folder))
        for struck in (point, sync):
            trial = kind(arena_)
            trial.disk.kill_at(struck.ordinal)
            finish(trial, f"at {struck.name} of {struck.to or struck.path}", telling, *trial.run())
