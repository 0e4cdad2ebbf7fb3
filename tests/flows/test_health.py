"""The look at a node's health as a step of its run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import run_and_read

pytestmark = pytest.mark.engine


@pytest.fixture
def appliances(tmp_path: Path) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path / "sim", nodes=2, health=True) as fleet:
        yield fleet


def test_the_look_is_a_task_and_fails_the_node_that_is_not_well_while_the_key_is_recorded_nowhere(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-2", "status/disk", "unwell")
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    assert run.states("health-a0-1") == ["Completed"]
    assert run.states("health-a0-2") == ["Failed"]
    assert run.states("start-backup-a0-1") == ["Completed"]
    assert run.states("start-backup-a0-2") == []
    assert "a0-2 (health): the node is not asked for a backup: disk is not well" in run.flow_run.state.message
    assert appliances.calls("a0-2", "backup") == []
    key = Path(appliances.health["key_file"]).read_text().strip()
    recorded = [each.model_dump(mode="json") for each in (run.flow_run, *run.task_runs, *run.artifacts, *run.logs)]
    assert key not in json.dumps(recorded)


def test_a_secret_block_may_hold_the_key(engine: str, appliances: SimulatedFleet, fleet_yaml: Path) -> None:
    from prefect.blocks.system import Secret

    from flows.check_fleet import check_fleet

    key_file = appliances.health["key_file"]
    Secret(value=Path(key_file).read_text().strip()).save("a0-health-key", overwrite=True)
    content = fleet_yaml.read_text()
    assert f'{{"file": "{key_file}"}}' in content
    fleet_yaml.write_text(content.replace(f'{{"file": "{key_file}"}}', '{"secret_block": "a0-health-key"}'))
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed", run.flow_run.state.message
    assert {request["status"] for request in appliances.health_requests()} <= {200, 204, 429}
    assert len(appliances.health_requests()) >= 20
