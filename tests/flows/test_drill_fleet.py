"""The weekly drill."""

from pathlib import Path

import pytest

from a0backup.vault.drilled import read_drilled
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.flows.conftest import PASSWORD, run_and_read
from tests.support.stored import Keys, store

pytestmark = pytest.mark.engine


def test_a_drill_opens_what_a_night_stored_and_records_it(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet
    from flows.drill_fleet import drill_fleet

    assert run_and_read(backup_fleet, fleet=fleet_yaml).flow_run.state.name == "Completed"
    calls = appliances.calls()
    run = run_and_read(drill_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert run.states("drill-a0-") == ["Completed"] * 3
    [table] = [artifact.data for artifact in run.artifacts if artifact.key == "drill-table"]
    assert table.count('"result": "ok"') == 3
    assert "documents" in table
    assert PASSWORD not in str([table, *(log.message for log in run.logs)])
    vault = Vault(fleet_yaml.parent / "vault")
    for manifest in vault.manifests():
        drilled = read_drilled(vault.root / manifest.id)
        assert drilled is not None
        assert drilled.passed
    assert appliances.calls() == calls


def test_a_drill_fails_for_what_does_not_open_tries_the_others_and_names_sealed_ones_without_failing(
    engine: str, fleet_yaml: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flows.drill_fleet import drill_fleet

    vault = fleet_yaml.parent / "vault"
    keys = Keys.make(tmp_path_factory.mktemp("keys"), PASSWORD)
    sealed = store(vault, "abc123", node="a0-1", sealed=keys.seal("abc123", "recovery"), size=4_000)
    good = store(vault, PASSWORD, node="a0-3", size=4_000)
    run = run_and_read(drill_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert f"{sealed.id}: not tried: its password is sealed: it needs the recovery key" in str(run.logs)
    bad = store(vault, PASSWORD, node="a0-2", size=4_000)
    artifact = Vault(vault).artifact(bad)
    artifact.write_bytes(artifact.read_bytes()[:-9] + bytes(9))
    run = run_and_read(drill_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert f"1 of 3 do not open: {bad.id}: damaged: " in run.flow_run.state.message
    assert sorted(run.states("drill-a0-")) == ["Completed", "Completed", "Failed"]
    records = [read_drilled(vault / each.id) for each in (sealed, bad, good)]
    assert [record.passed if record else None for record in records] == [None, False, True]
    run = run_and_read(drill_fleet, fleet=fleet_yaml, nodes=["a0-3"])
    assert run.flow_run.state.name == "Completed"


def test_a_drill_that_can_open_nothing_ends_as_skipped_and_says_what_opens_it(
    engine: str, fleet_yaml: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flows.drill_fleet import drill_fleet

    keys = Keys.make(tmp_path_factory.mktemp("keys"), PASSWORD)
    vault = fleet_yaml.parent / "vault"
    sealed = store(vault, "abc123", node="a0-1", sealed=keys.seal("abc123", "recovery"), size=4_000)
    state = run_and_read(drill_fleet, fleet=fleet_yaml).flow_run.state
    assert (state.type.value, state.name) == ("COMPLETED", "Skipped")
    assert state.message == (
        f"no backup was opened: {sealed.id}: not tried: its password is sealed: it needs the recovery key;"
        " where the private part is: `a0backup drill --vault COPY --key FILE`"
    )


def test_a_drill_fails_if_the_password_is_another_now(
    engine: str, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.drill_fleet import drill_fleet

    manifest = store(fleet_yaml.parent / "vault", PASSWORD, size=4_000)
    monkeypatch.setenv("A0_BACKUP_PASSWORD", "Canary8Another")
    run = run_and_read(drill_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert f"{manifest.id}: not opened: " in run.flow_run.state.message
    assert read_drilled(fleet_yaml.parent / "vault" / manifest.id) is None


def test_a_drill_has_nothing_to_do_before_the_first_night(engine: str, fleet_yaml: Path) -> None:
    from flows.drill_fleet import drill_fleet

    assert run_and_read(drill_fleet, fleet=fleet_yaml).flow_run.state.name == "Completed"
    assert not (fleet_yaml.parent / "vault").exists()
