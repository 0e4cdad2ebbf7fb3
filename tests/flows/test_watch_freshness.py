"""The hourly look at the ages of the newest backups."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import run_and_read
from tests.support.command import a0backup
from tests.support.stored import START, store

pytestmark = pytest.mark.engine


def test_the_hourly_run_and_status_fail_once_the_nights_have_stopped_and_succeed_after_the_next_night(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet
    from flows.watch_freshness import watch_freshness

    last_night = datetime.now(UTC) - timedelta(days=2.1) - START
    for node in ("a0-1", "a0-2", "a0-3"):
        store(fleet_yaml.parent / "vault", "Passw0rd", node=node, nights=last_night / timedelta(days=1), size=4_000)
    run = run_and_read(watch_freshness, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "3 of 3 not fresh: a0-1 backup: 2 d 02 h old, and 26 h 00 min is the maximum" in run.flow_run.state.message
    errors = [log.message for log in run.logs if log.level == 40]
    assert any(message.startswith("a0-3 backup: 2 d 02 h old") for message in errors)
    [table] = [artifact.data for artifact in run.artifacts if artifact.key == "freshness-table"]
    assert table.count("NOT FRESH") == 3
    assert a0backup("status", "--fleet", fleet_yaml).returncode == 4
    assert appliances.calls() == []

    assert run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-1", "a0-2"]).flow_run.state.name == "Completed"
    message = run_and_read(watch_freshness, fleet=fleet_yaml).flow_run.state.message
    assert "1 of 3 not fresh: a0-3 backup: 2 d 02 h old" in message
    assert "a0-1" not in message

    assert run_and_read(backup_fleet, fleet=fleet_yaml, nodes=["a0-3"]).flow_run.state.name == "Completed"
    assert run_and_read(watch_freshness, fleet=fleet_yaml).flow_run.state.name == "Completed"
    ended = a0backup("status", "--fleet", fleet_yaml)
    assert (ended.returncode, ended.stdout.startswith("OK - 3 of 3 backups fresh")) == (0, True), ended.stdout


def test_the_hourly_run_fails_before_the_first_night_and_names_every_node(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.watch_freshness import watch_freshness

    run = run_and_read(watch_freshness, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    for node in ("a0-1", "a0-2", "a0-3"):
        assert f"{node} backup: no backup yet" in run.flow_run.state.message
    assert not (fleet_yaml.parent / "vault").exists()
