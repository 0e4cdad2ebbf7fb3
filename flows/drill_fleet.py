"""Prove that the newest backups open: those whose password is at hand are read to their end, one after another.

What is sealed needs the private part of the recovery key, which is not on this machine: it is named, and is no failure.
Blocks: the Secret block named by `password.secret_block` in fleet.yaml, if any.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from a0backup.errors import DrillFailedError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet
from a0backup.report.drill_report import drill_text
from a0backup.upkeep.drill import DrillResult, Secrets, newest_of, not_at_hand, prove
from a0backup.vault.known_vault import is_there
from a0backup.vault.manifest import Manifest, UnreadableManifest
from a0backup.vault.vault import Vault
from flows.ending import now
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task, result_of
from tasks.publish import publish_drills
from tasks.shared_password import shared_password


@flow(
    name="drill-fleet",
    flow_run_name=lambda: f"drill-fleet-{now():%Y-%m-%d-%H:%M}",
    description="Open the newest backup of each node and kind. Completed only if each whose password is at hand opens.",
    persist_result=False,
)
async def drill_fleet(
    fleet: Path = Path("fleet.yaml"),
    nodes: list[str] = [],  # noqa: B006 - Prefect shows the default in its form; it is never mutated
) -> list[DrillResult] | State[None]:
    """Open the newest backups of a fleet file's nodes, and record how that ended. Skipped if none can be opened here.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        nodes: Names of the nodes; an empty list means all of them.
    """
    settings = fleet_of_run(fleet)
    chosen = settings.chosen(nodes)
    if not await in_thread(is_there, settings):
        get_run_logger().info("the vault %s is not made yet: there is nothing to open", settings.vault)
        return []
    newest = await in_thread(newest_of, Vault(settings.vault), settings, chosen)
    results = [await drilled(settings, entry) for entry in newest]
    await publish_drills(results)
    bad = [drill_text(result) for result in results if result.failed]
    if bad:
        raise DrillFailedError(len(results), bad)
    if results and all(result.result == "not tried" for result in results):
        # A green run each week would look as if the backups were proven.
        message = f"no backup was opened: {drill_text(results[0])}; {results[0].hint}"
        return Completed(name="Skipped", message=message)
    return results


async def drilled(fleet: Fleet, entry: Manifest | UnreadableManifest) -> DrillResult:
    """Return how the drill of *entry* ended, after its result and warnings are in the run's log."""
    result = await result_of(drill_artifact(fleet, entry))
    get_run_logger().log(logging.ERROR if result.failed else logging.INFO, "%s", drill_text(result))
    for warning in result.warnings:
        get_run_logger().warning("%s: %s", result.id, warning)
    return result


@engine_task(name="drill-artifact", task_run_name="drill-{entry.id}")
async def drill_artifact(fleet: Fleet, entry: Manifest | UnreadableManifest) -> State[DrillResult]:
    """Read one artifact to its end, if its password is at hand, and record beside it how that ended."""
    password = await shared_password(fleet.password, opening=True)
    result = not_at_hand(entry, password)
    if result is None:
        secrets = Secrets(password=password)
        at = datetime.now(UTC)
        result = await in_thread(
            prove, Vault(fleet.vault), entry, secrets, fleet.contents, shrink=fleet.drills.shrink, now=at
        )
    return (Failed if result.failed else Completed)(message=drill_text(result), data=result)
