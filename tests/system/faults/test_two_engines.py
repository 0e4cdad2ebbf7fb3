"""Simultaneous runs on one fleet and one vault, each with its own engine that knows nothing of the others."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from simulator.fleet import SimulatedFleet
from tests.support.extent import deep
from tests.support.patience import until
from tests.support.place import Place
from tests.system.faults.engines import (
    Running,
    assert_clean,
    assert_next_run_is_healthy,
    assert_one_at_a_time,
    end_all_in,
    made,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as fleet:
        yield fleet


@pytest.fixture
def place(tmp_path: Path, migrated_home: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    for name in ("state", "state-1", "state-2", "state-3"):
        shutil.copytree(migrated_home, tmp_path / name / "a0backup" / "engine")
    yield place
    end_all_in(tmp_path)


def started_together(place: Place, *orders: tuple[str, ...]) -> list[Running]:
    """Start a run for each order of nodes, each on its own engine."""
    return [
        Running(place, f"run-{number}", "run", *order, XDG_STATE_HOME=str(place.root / f"state-{number}"))
        for number, order in enumerate(orders, 1)
    ]


def is_started(appliances: SimulatedFleet, node: str) -> bool:
    return bool(appliances.calls(node, "backup"))


def hold_until(appliances: SimulatedFleet, nodes: tuple[str, ...], condition: Callable[[], bool], what: str) -> None:
    """Keep the nodes busy with their first backup until *condition* is true."""
    for node in nodes:
        appliances.tell(node, "backup", "duration", seconds=5)
    for node in nodes:
        until(partial(is_started, appliances, node), f"a backup of {node} is started")
        appliances.tell(node, "backup-status", "in_progress")
    until(condition, what)
    appliances.forget()


def assert_each_ended_well(runs: list[Running], place: Place, stored: str) -> None:
    for run in runs:
        assert run.exit_code() == 0, run.err
        assert run.out.startswith(f"{stored} stored\n")
    for number, run in enumerate(runs, 1):
        assert f"our own; ends with this run, history kept in {place.root}/state-{number}/" in run.err


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=deep)])
def test_simultaneous_runs_on_separate_engines_make_one_backup_of_each_node_and_all_end_well(
    place: Place, appliances: SimulatedFleet, number: int, record_property: Callable[[str, object], None]
) -> None:
    appliances.fleet_yaml(place.root / "fleet.yaml", polling={"deadline": "5m"}, lock_deadline="5m")
    runs = started_together(place, *[()] * number)
    others = (number - 1) * len(appliances.names)
    hold_until(
        appliances,
        tuple(appliances.names),
        lambda: sum(len(run.waits()) for run in runs) == others,
        "each node is held by one run and waited for by all others",
    )
    assert_each_ended_well(runs, place, "2 node backups: 2")
    assert made(appliances) == {"a0-1": 1, "a0-2": 1}
    assert place.stored() == ["a0-1", "a0-2"]
    pids = {str(run.process.pid) for run in runs}
    for line in itertools.chain.from_iterable(run.waits() for run in runs):
        assert f"on {os.uname().nodename} (pid " in line
        assert line.partition("(pid ")[2].partition(",")[0] in pids
    assert_one_at_a_time(appliances)
    assert_clean(place, appliances)
    assert_next_run_is_healthy(place, appliances)
    record_property(
        "faults",
        [{"fault": "two runs, two engines", "points": number, "killed": 0, "resumed": 0, "violations": 0}],
    )


@deep
def test_runs_that_name_the_nodes_in_opposite_order_do_not_deadlock(
    place: Place, appliances: SimulatedFleet, record_property: Callable[[str, object], None]
) -> None:
    kinds = ["backup", "backup-sensitive"]
    appliances.fleet_yaml(
        place.root / "fleet.yaml", polling={"deadline": "5m"}, lock_deadline="5m", max_parallel=1, kinds=kinds
    )
    runs = started_together(place, ("a0-1", "a0-2"), ("a0-2", "a0-1"), ("a0-1", "a0-2"))
    # Two runs hold a node each and will want the other's. The third waits for its first node.
    hold_until(
        appliances,
        ("a0-1", "a0-2"),
        lambda: sum(len(run.waits()) for run in runs) == 1,
        "each node is held, and the third run waits",
    )
    assert_each_ended_well(runs, place, "4 backups of 2 nodes: 4")
    for kind in kinds:
        assert [len(appliances.calls(node, kind)) for node in appliances.names] == [1, 1]
    stored = [json.loads(path.read_text()) for path in place.manifests()]
    assert sorted((manifest["node"]["name"], manifest["kind"]) for manifest in stored) == [
        (node, kind) for node in appliances.names for kind in kinds
    ]
    assert place.left() == []
    assert place.work_left() == []
    ended = place.run("run")
    assert ended.returncode == 0, ended.stderr
    assert len(place.manifests()) == 8
    assert place.work_left() == []
    record_property(
        "faults",
        [{"fault": "two runs, two engines, opposite order", "points": 3, "killed": 0, "resumed": 0, "violations": 0}],
    )
