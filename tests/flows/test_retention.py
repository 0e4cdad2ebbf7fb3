"""The flow that prunes the vault and its places."""

import json
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import run_and_read
from tests.support.pruning import Nights

pytestmark = pytest.mark.engine


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    nights = Nights(tmp_path, copies=[{"name": "nas", "url": "nas"}])
    for node in ("a0-1", "a0-2"):
        nights.add_nights(6, node=node)
    return nights


def test_a_prune_removes_what_no_rule_keeps_node_by_node_then_in_the_places(engine: str, nights: Nights) -> None:
    from flows.copy_vault import copy_vault
    from flows.prune_vault import prune_vault

    run_and_read(copy_vault, fleet=nights.fleet_yaml)
    run = run_and_read(prune_vault, fleet=nights.fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert run.states("prune-") == ["Completed"] * 3
    assert len(nights.held()) == len(nights.held("nas")) == 6
    [table] = [artifact.data for artifact in run.artifacts if artifact.key == "retention-table"]
    assert [row["action"] for row in json.loads(table)] == ["remove"] * 6 + ["keep"] * 6


def test_a_refused_prune_fails_with_its_reason_and_shows_the_table(engine: str, nights: Nights) -> None:
    from flows.prune_vault import prune_vault

    nights.change(retention={"keep_last": 1, "keep_min": 1})
    run = run_and_read(prune_vault, fleet=nights.fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "5 of 6 artifacts would go at once" in run.flow_run.state.message
    assert "retention-table" in [artifact.key for artifact in run.artifacts]
    assert len(nights.held()) == 12
    assert run_and_read(prune_vault, fleet=nights.fleet_yaml, force=True).flow_run.state.name == "Completed"
    assert len(nights.held()) == 2


def test_a_place_that_fails_fails_the_prune_after_the_vault_was_pruned(engine: str, nights: Nights) -> None:
    from flows.copy_vault import copy_vault
    from flows.prune_vault import prune_vault

    run_and_read(copy_vault, fleet=nights.fleet_yaml)
    (nights.folder / "nas").rename(nights.folder / "unmounted")
    run = run_and_read(prune_vault, fleet=nights.fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    assert "not pruned: nas: 0 removed; " in run.flow_run.state.message
    assert len(nights.held()) == 6


def test_a_prune_does_nothing_without_a_retention_or_before_the_first_night(engine: str, nights: Nights) -> None:
    from flows.prune_vault import prune_vault

    del nights.settings["retention"]
    nights.change()
    assert run_and_read(prune_vault, fleet=nights.fleet_yaml).flow_run.state.name == "Completed"
    assert len(nights.held()) == 12
    settings = nights.settings | {"vault": "none yet", "retention": {"keep_last": 1}}
    nights.fleet_yaml.write_text(yaml.safe_dump(settings))
    assert run_and_read(prune_vault, fleet=nights.fleet_yaml).flow_run.state.name == "Completed"
    assert not (nights.folder / "none yet").exists()
