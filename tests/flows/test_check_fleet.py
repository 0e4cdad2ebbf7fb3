"""The read-only preflight."""

from pathlib import Path

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import run_and_read

pytestmark = pytest.mark.engine


def test_a_check_says_for_every_node_what_a_run_would_do_and_does_none_of_it(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.check_fleet import check_fleet

    held = appliances.put("a0-2", password="somebody's")
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    [markdown] = [artifact.data for artifact in run.artifacts if artifact.key == "check-report"]
    assert "start a backup" in markdown
    assert held["md5"] in markdown
    assert {call["command"] for call in appliances.calls()} == {"update-commands", "ping", "backup-status"}
    assert not (fleet_yaml.parent / "vault").exists()


def test_a_check_fails_for_a_node_that_a_run_would_fail_for(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.check_fleet import check_fleet

    appliances.tell("a0-3", None, "unreachable")
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "a0-3" in run.flow_run.state.message
    assert "a0-1" not in run.flow_run.state.message
    assert sorted(run.states("check-a0-")) == ["Completed", "Completed", "Failed"]


def test_a_missing_password_is_detected_before_the_night(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.check_fleet import check_fleet

    monkeypatch.delenv("A0_BACKUP_PASSWORD")
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "A0_BACKUP_PASSWORD" in run.flow_run.state.message


def test_an_unreadable_recovery_key_is_detected_before_the_night(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from a0backup.passwords.recovery_keys import make_pair
    from flows.check_fleet import check_fleet

    monkeypatch.delenv("A0_BACKUP_PASSWORD")
    sealed = fleet_yaml.read_text().replace('env: "A0_BACKUP_PASSWORD"', "sealed_to: recovery.pub.pem")
    fleet_yaml.write_text(sealed)
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert f"recovery key {fleet_yaml.parent}/recovery.pub.pem: there is no such file" in run.flow_run.state.message
    away = fleet_yaml.parent / "a stick"
    away.mkdir()
    key = make_pair(away / "recovery.key.pem", fleet_yaml.parent / "recovery.pub.pem", "a long passphrase")
    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    [markdown] = [artifact.data for artifact in run.artifacts if artifact.key == "check-report"]
    assert key.fingerprint in markdown


def test_a_check_completes_with_a_warning_about_what_is_not_a_problem_yet(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from a0backup.fleet.models import KEYSTREAM_REUSE
    from flows.check_fleet import check_fleet

    run = run_and_read(check_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert [log.message for log in run.logs].count(KEYSTREAM_REUSE) == 1
    [markdown] = [artifact.data for artifact in run.artifacts if artifact.key == "check-report"]
    assert "XOR of two artifacts" in markdown
    # Once, as it applies to all nodes alike.
    assert markdown.count("an installation cannot be fully recovered from it") == 1
    assert "every node" in markdown


def test_a_password_may_come_from_a_secret_block(engine: str, appliances: SimulatedFleet, fleet_yaml: Path) -> None:
    import asyncio

    from prefect.blocks.system import Secret

    from flows.backup_node import backup_node
    from flows.check_fleet import check_fleet

    name = f"canary-{fleet_yaml.parent.name.replace('_', '-').lower()}"[:40]
    appliances.fleet_yaml(fleet_yaml, password={"secret_block": name}, nodes=appliances.nodes[:1])
    assert "Secret block" in run_and_read(check_fleet, fleet=fleet_yaml).flow_run.state.message

    async def save() -> None:
        await Secret(value="4711e2026").save(name)

    asyncio.run(save())
    assert run_and_read(check_fleet, fleet=fleet_yaml).flow_run.state.name == "Completed"
    assert run_and_read(backup_node, node="a0-1", fleet=fleet_yaml).flow_run.state.name == "Completed"
    [start] = appliances.calls("a0-1", "backup")
    import hashlib

    assert start["password"] == "sha256:" + hashlib.sha256(b"4711e2026").hexdigest()[:12]
