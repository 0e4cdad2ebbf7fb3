"""SIGKILL or a power cut at every point of a fleet backup that matters; then a plain run finishes every node.

An undisturbed run gives the points: every change that it makes below the vault, and every call of a0cli.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.extent import PARTS, in_parts, matrix, share
from tests.system.faults.disk import Operation
from tests.system.faults.scenarios import (
    SIGKILLED,
    UNFINISHED,
    Scenario,
    calls_of,
    foreign,
    interrupted,
    mismatching,
    plain,
    reference,
    sealed,
    unreadable,
)
from tests.system.faults.trial import Arena, Trial

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def expected_starts(trial: Trial, before: int, unfinished: bool) -> int:
    """Return how many backups must have been started once the run after the strike has ended.

    A backup of ours that can still be finished is finished; another is made only if the first was settled. *before*:
    backups started before the struck run. *unfinished*: the last of them was left for the struck run to finish.
    """
    base = before if unfinished else before + 1
    settled = not trial.journals() and (unfinished or len(trial.events("started")) > before)
    return base + settled


def strike(
    trial: Trial,
    where: str,
    told: Any,
    code: int,
    printed: str,
    *,
    before: int = 0,
    unfinished: bool = False,
    names: Literal["", "lost", "kept"] = "",
) -> None:
    """Check what the struck run left, cut the power if wanted, and let a plain run finish it."""
    if code != SIGKILLED:
        told.point(where, [f"it ended with {code} and not by the kill: {printed}"])
        return
    broken = trial.broken()
    expected = expected_starts(trial, before, unfinished)
    if names:
        trial.disk.cut_power(names)
        trial.cut = True
        broken += [f"after the cut: {each}" for each in trial.broken()]
    opened = trial.sealed and trial.has_opened_it()
    broken += trial.finish()
    starts = len(trial.events("started"))
    # With a sealed password, a backup that its run has not opened is a guess: it is kept, and another one is made.
    if trial.sealed and not opened:
        expected += sum(manifest["started_at"] is None for manifest in trial.manifests())
    # A power cut may take the journal with it. In a fleet, the nodes are at different points.
    if starts != expected and not names and len(trial.nodes) == 1:
        broken.append(f"{starts} backups were started, {expected} was to be expected")
    told.point(where, broken, killed=True)


# Changes to a file that has no name yet are tried in the plain scenario only.
PLAIN_ONLY = ("create", "truncate", "write", "chmod")


@matrix
@in_parts
@pytest.mark.parametrize(
    "scenario", [plain, foreign, interrupted, unreadable, mismatching, sealed], ids=lambda s: s.__name__
)
def test_a_kill_at_any_change_of_the_vault_loses_nothing(
    arena_: Arena, told: Any, scenario: Scenario, part: int
) -> None:
    telling = told("SIGKILL at each change of the vault")
    points = [point for point in reference(arena_, scenario) if scenario is plain or point.name not in PLAIN_ONLY]
    for point in share(points, part, PARTS):
        trial = Trial(arena_)
        scenario(trial)
        before = len(trial.events("started"))
        trial.disk.kill_at(point.ordinal)
        where = f"{scenario.__name__}, at {point.name} of {point.to or point.path}"
        code, printed = trial.run()
        if code == 0 and trial.disk.operations()[-1].ordinal < point.ordinal:
            continue  # this run made one change fewer than the recorded one, so it has no such point
        strike(trial, where, telling, code, printed, before=before, unfinished=scenario in UNFINISHED)


@matrix
@in_parts
def test_a_kill_during_a_fleet_backup_loses_nothing(arena_: Arena, told: Any, part: int) -> None:
    points = reference(arena_, plain, 3)
    telling = told("SIGKILL of a fleet of three")
    # The order differs from run to run: the same change is another node's each time.
    for ordinal in share(range(1, len(points) + 1, 5), part, PARTS):
        trial = Trial(arena_, 3)
        trial.disk.kill_at(ordinal)
        code, printed = trial.run()
        if code == 0 and trial.disk.operations()[-1].ordinal < ordinal:
            continue  # as above
        strike(trial, f"a fleet, at its change {ordinal}", telling, code, printed)


def cuts(points: list[Operation]) -> Iterator[tuple[Literal["lost", "kept"], int]]:
    """Yield the changes after which a power cut finds something new: names, or bytes made durable."""
    for ordinal, point in enumerate(points, 1):
        if point.name == "fsync":
            yield "lost", ordinal
        if (
            point.name in ("rename", "mkdir", "unlink", "rmdir", "create", "fsync")
            and "work" not in Path(point.path).parent.parts
        ):
            yield "kept", ordinal


@matrix
@in_parts
@pytest.mark.parametrize("scenario", [plain, foreign, sealed], ids=lambda s: s.__name__)
def test_a_power_cut_at_any_change_of_the_vault_loses_nothing(
    arena_: Arena, told: Any, scenario: Scenario, part: int
) -> None:
    telling = told("power cut at each change of the vault")
    points = reference(arena_, scenario)
    for names, ordinal in share(cuts(points), part, PARTS):
        trial = Trial(arena_)
        scenario(trial)
        trial.disk.start_anew()
        trial.disk.kill_at(ordinal, after=True)
        point = points[ordinal - 1]
        where = f"{scenario.__name__}, cut ({names}) after {point.name} of {point.to or point.path}"
        strike(trial, where, telling, *trial.run(), names=names)


KILLS: list[dict[str, Any]] = [
    {"when": "before"},
    {"when": "after"},
    {"when": "during"},
    {"when": "before", "orphan": 0.5},  # a0cli survives and does its work while the next run wants the node
]


@matrix
@in_parts
@pytest.mark.parametrize("scenario", [plain, foreign, sealed], ids=lambda s: s.__name__)
def test_a_kill_before_during_or_after_any_call_of_a0cli_loses_nothing(
    arena_: Arena, told: Any, scenario: Scenario, part: int
) -> None:
    telling = {orphan: told(f"SIGKILL at each call of a0cli{orphan}") for orphan in ("", ", which lives on")}
    points = [
        (kill, skip, command)
        for skip, command in enumerate(calls_of(arena_, scenario))
        for kill in KILLS
        if kill["when"] != "during" or command.endswith("-retrieve")
    ]
    for kill, skip, command in share(points, part, PARTS):
        trial = Trial(arena_)
        scenario(trial)
        before = len(trial.events("started"))
        # A kill during a transfer counts only transfers.
        skipped = 0 if kill["when"] == "during" else skip
        trial.appliances.tell(trial.node, None, "kill_parent", skip=skipped, times=1, **kill)
        where = f"{scenario.__name__}, {json.dumps(kill)} of call {skip + 1}, {command}"
        code, printed = trial.run()
        if code != SIGKILLED and not trial.met("kill_parent"):
            continue  # this run asked for the status once less than the recorded one, so it has no such call
        strike(trial, where, telling[", which lives on" if "orphan" in kill else ""], code, printed, before=before)


def test_a_kill_at_the_changes_that_matter_most_loses_nothing(arena_: Arena, told: Any) -> None:
    """The short selection for `make test-all`: the journal, the bytes, the manifest, and the call that deletes."""
    telling = told("SIGKILL at each change of the vault")
    points = reference(arena_, plain)
    patterns = (
        "journal-backup.json",
        "work/backup.tar.gz.enc",
        "*Z-backup/backup.tar.gz.enc",
        "*Z-backup/manifest.json",
    )
    chosen = [next(o for o in points if o.name == "rename" and Path(o.to).match(pattern)) for pattern in patterns]
    for point in chosen:
        trial = Trial(arena_)
        trial.disk.kill_at(point.ordinal)
        strike(trial, f"plain, at {point.name} of {point.to}", telling, *trial.run())
    trial = Trial(arena_)
    trial.disk.kill_at(chosen[-1].ordinal + 1)
    strike(trial, "plain, cut (lost) before the manifest's name is durable", telling, *trial.run(), names="lost")
    trial = Trial(arena_)
    trial.appliances.tell(trial.node, "backup-delete", "kill_parent", when="before", orphan=0.5, times=1)
    strike(trial, "plain, before backup-delete, whose a0cli lives on", telling, *trial.run())
    trial = Trial(arena_)
    sealed(trial)
    trial.appliances.tell(trial.node, "backup", "kill_parent", when="after", times=1)
    strike(trial, "sealed, after the start that the password was made for", telling, *trial.run())
