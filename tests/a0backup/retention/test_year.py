"""A simulated year: each night is stored, copied and pruned, and what stays is what the policy promises, and opens.

The artifacts are real and small, the clock is passed in. Some nights a node is down, or one of its kinds fails.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import ContentsLimits
from a0backup.places.catching_up import catch_up
from a0backup.places.places import Places
from a0backup.retention.planning import plan_vault
from a0backup.retention.pruning import prune_everything
from a0backup.upkeep.drill import drill
from a0backup.vault.vault import Vault, time_of
from tests.support.retention import kept_by_model
from tests.support.stored import START, store

PASSWORD = "Passw0rd"
KINDS = ("backup", "backup-sensitive")
IN_VAULT = {"keep_daily": 7, "keep_weekly": 4, "keep_monthly": 6, "timezone": "Europe/Berlin"}
IN_NAS = {"keep_daily": 10, "keep_monthly": 12, "keep_yearly": 3, "timezone": "Europe/Berlin"}
KEEP_MIN = 2
MOST_IN_VAULT = 7 + 4 + 6 + KEEP_MIN  # of a node and kind, and as many again that only the other kind keeps

Key = tuple[str, str]  # node and kind


def model(stored: Mapping[Key, Mapping[str, datetime]], rules: Mapping[str, Any], now: datetime) -> set[str]:
    """Return the ids that stay of all that was ever *stored*: by the rules, by keep_min, and with their night."""
    kept: set[str] = set()
    nights: defaultdict[tuple[str, datetime], set[str]] = defaultdict(set)
    for (node, _), times in stored.items():
        kept |= kept_by_model(times, rules, now)
        kept |= set(sorted(times, key=lambda each: times[each])[-KEEP_MIN:])
        for each, time in times.items():
            nights[node, time].add(each)
    return {each for night in nights.values() if night & kept for each in night}


@pytest.mark.parametrize("nights", [25, pytest.param(366, marks=pytest.mark.slow)])
def test_a_year_of_nights_leaves_exactly_what_the_policy_promises_and_all_of_it_opens(
    tmp_path: Path, nights: int
) -> None:
    nodes = ["a0-1", "a0-2", "a0-3"] if nights > 100 else ["a0-1"]
    fleet_yaml = tmp_path / "fleet.yaml"
    fleet_yaml.write_text(
        yaml.safe_dump(
            {
                "vault": "vault",
                "password": {"env": "A0_BACKUP_PASSWORD"},
                "copies": [{"name": "nas", "url": "nas", "retention": IN_NAS}],
                "retention": IN_VAULT,
                "nodes": [{"name": node, "host": node} for node in nodes],
            }
        )
    )
    fleet, vault, nas = load_fleet(fleet_yaml), Vault(tmp_path / "vault"), Vault(tmp_path / "nas")
    chance = random.Random(7)
    stored: defaultdict[Key, dict[str, datetime]] = defaultdict(dict)
    for night in range(nights):
        for node in nodes:
            down = night and chance.random() < 0.05
            for kind in KINDS:
                if not down and (night == 0 or chance.random() < 0.95):
                    manifest = store(vault.root, PASSWORD, node=node, kind=kind, nights=night, size=300)
                    stored[node, kind][manifest.id] = time_of(manifest.id)
        now = START + timedelta(days=night, hours=5)
        asyncio.run(copy_and_prune(fleet_yaml, now))
        assert ids(vault) == model(stored, IN_VAULT, now), f"in the vault after night {night}"
        assert ids(nas) == model(stored, IN_NAS, now) | ids(vault), f"in the place after night {night}"
        assert len(ids(vault)) <= len(nodes) * len(KINDS) * MOST_IN_VAULT * 2
    limits = ContentsLimits()
    for place in (vault, nas):
        for manifest in place.manifests():
            assert drill(place, manifest, [PASSWORD], limits).members > 0
    assert fleet.retention is not None


async def copy_and_prune(fleet_yaml: Path, now: datetime) -> None:
    """What the deployments daily-copy and prune do."""
    fleet = load_fleet(fleet_yaml)
    vault = Vault(fleet.vault)
    assert fleet.retention is not None
    for place in Places.of(fleet):
        assert not (await catch_up(place, vault.manifests())).is_behind
    plan = plan_vault(vault, fleet, fleet.retention, now=now)
    assert plan.refusals == []
    results = await prune_everything(vault, fleet, plan, now=now)
    assert [result.text() for result in results if result.error or result.refusal] == []


def ids(vault: Vault) -> set[str]:
    return {manifest.id for manifest in vault.manifests()}
