"""Remove from the vault what no rule of `retention` keeps, then from the places what was pruned from the vault."""

import asyncio
from datetime import datetime
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from a0backup.errors import PruneFailedError, PruneRefusedError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet
from a0backup.places.places import Place, Places
from a0backup.report.retention_report import retention_rows
from a0backup.retention.planning import plan_vault
from a0backup.retention.pruning import PrunedHere, prune_node, prune_place
from a0backup.vault.known_vault import is_there
from a0backup.vault.vault import Vault
from flows.ending import now
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task, result_of
from tasks.publish import publish_retention
from tasks.secret_block import secret_block


@flow(
    name="prune-vault",
    flow_run_name=lambda: f"prune-vault-{now():%Y-%m-%d-%H:%M}",
    description="Remove the artifacts that no rule of `retention` keeps. Completed only if all of them are gone.",
    persist_result=False,
)
async def prune_vault(fleet: Path = Path("fleet.yaml"), force: bool = False) -> list[PrunedHere]:
    """Prune the vault of a fleet file, and then its places.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        force: Whether to prune although more than `prune_most` of a node would go, or a clock was wrong.
    """
    settings, time = fleet_of_run(fleet), now()
    if settings.retention is None:
        get_run_logger().info("%s has no `retention`: all artifacts stay", settings.path)
        return []
    if not await in_thread(is_there, settings):
        get_run_logger().info("the vault %s is not made yet: there is nothing to prune", settings.vault)
        return []
    plan = await in_thread(plan_vault, Vault(settings.vault), settings, settings.retention, now=time)
    await publish_retention(retention_rows(plan.decisions))
    if plan.refusals and not force:
        raise PruneRefusedError(plan.refusals)
    results = [
        await result_of(prune_one_node(settings, node, plan.approved_of(node), time, force)) for node in plan.nodes()
    ]
    # The places follow the vault: only what is gone there is removed in them.
    places = (
        result_of(prune_one_place(place, settings, time, force)) for place in Places.of(settings, blocks=secret_block)
    )
    results += await asyncio.gather(*places)
    failed = [result.text() for result in results if result.error]
    if failed:
        raise PruneFailedError(failed)
    return results


@engine_task(name="prune-node", task_run_name="prune-{node}")
async def prune_one_node(
    settings: Fleet, node: str, approved: list[str], time: datetime, force: bool
) -> State[PrunedHere]:
    """Remove of one node what the plan says, which is *approved*."""
    assert settings.retention is not None
    vault = Vault(settings.vault)
    return ended(await prune_node(vault, settings.retention, node, approved=approved, now=time, force=force, told=log))


@engine_task(name="prune-place", task_run_name="prune-{place.copy.name}")
async def prune_one_place(place: Place, settings: Fleet, time: datetime, force: bool) -> State[PrunedHere]:
    """Remove in one place what was pruned from the vault."""
    return ended(await prune_place(place, settings, now=time, force=force, told=log))


def log(artifact_id: str, text: str) -> None:
    """Write to the run's log what became of an artifact."""
    get_run_logger().info("%s: %s", artifact_id, text)


def ended(result: PrunedHere) -> State[PrunedHere]:
    """Return the state of a task that ended with *result*."""
    return (Failed if result.error else Completed)(message=result.text(), data=result)
