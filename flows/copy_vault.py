"""Bring the further places to what the vault has: all places at once, each at its own pace.

A run of backup-fleet copies what it stores; this one catches up what a place has missed.
"""

import asyncio
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from a0backup.errors import PlacesBehindError
from a0backup.files import in_thread
from a0backup.places.catching_up import CaughtUp, catch_up
from a0backup.places.places import Place, Places
from a0backup.vault.known_vault import is_there
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from flows.ending import now
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task, result_of
from tasks.publish import publish_copies
from tasks.secret_block import secret_block


@flow(
    name="copy-vault",
    flow_run_name=lambda: f"copy-vault-{now():%Y-%m-%d-%H:%M}",
    description="Copy to the further places what they lack. Completed only if every place holds every artifact.",
    persist_result=False,
)
async def copy_vault(
    fleet: Path = Path("fleet.yaml"),
    places: list[str] = [],  # noqa: B006 - Prefect shows the default in its form; it is never mutated
) -> list[CaughtUp]:
    """Copy to the places of a fleet file what they lack.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        places: Names of the places to copy to; an empty list means all of them.
    """
    settings = fleet_of_run(fleet)
    chosen = settings.chosen_copies(places)
    if not chosen:
        get_run_logger().info("%s names no `copies`: there is nothing to do", settings.path)
        return []
    if not await in_thread(is_there, settings):
        get_run_logger().info("the vault %s is not made yet: there is nothing to copy", settings.vault)
        return []
    manifests = await in_thread(Vault(settings.vault).manifests)
    chosen_places = Places.of(settings, chosen, blocks=secret_block)
    results = await asyncio.gather(*(result_of(copy_to_place(place, manifests)) for place in chosen_places))
    await publish_copies(results)
    behind = [result.text() for result in results if result.is_behind]
    if behind:
        raise PlacesBehindError(behind)
    return results


@engine_task(name="copy-to-place", task_run_name="copy-to-{place.copy.name}")
async def copy_to_place(place: Place, manifests: list[Manifest]) -> State[CaughtUp]:
    """Copy to one place what it lacks; fail if it still lacks something after that."""

    def told(artifact_id: str, text: str) -> None:
        get_run_logger().info("%s: %s: %s", place.copy.name, artifact_id, text)

    result = await catch_up(place, manifests, told)
    return (Failed if result.is_behind else Completed)(message=result.text(), data=result)
