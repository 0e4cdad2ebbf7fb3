"""What was pruned from the vault goes in a place of every kind."""

import asyncio
from pathlib import Path

from a0backup.places.catching_up import catch_up
from a0backup.places.places import Place
from a0backup.retention.pruning import prune_everything, prune_place
from tests.a0backup.places.conftest import Spot
from tests.support.pruning import Nights


def test_a_place_follows_the_vault_and_keeps_the_rest_whole(spot: Spot, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    nights = Nights(tmp_path / "here")
    ids = nights.add_nights(6)
    place = Place(nights.vault, spot.copy)

    async def copied_and_pruned() -> list[str]:
        assert not (await catch_up(place, nights.vault.manifests())).is_behind
        await prune_everything(nights.vault, nights.fleet, nights.plan(), now=nights.now)
        ended = await prune_place(place, nights.fleet, now=nights.now)
        assert (ended.error, ended.refusal) == ("", "")
        again = await catch_up(place, nights.vault.manifests())
        assert (sorted(again.held), again.copied) == (sorted(ids[:3]), [])
        return ended.removed

    assert asyncio.run(copied_and_pruned()) == sorted(ids[3:])
    manifests = {path.parent.name for path in spot.folder.rglob("manifest.json")}
    assert manifests == {each.partition("/")[2] for each in ids[:3]}
    assert len(list(spot.folder.rglob("*.enc"))) == 3
