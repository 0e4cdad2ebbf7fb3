"""Fail if the newest backup of a node is too old or missing, whatever the reason.

A night that fails says so itself; nights that no longer begin say nothing. Only the vault is read: no node, no place.
"""

from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from a0backup.errors import NotFreshError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet
from a0backup.nodes.status import KindStatus, fleet_status
from a0backup.report.status_report import not_fresh
from flows.ending import now
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task
from tasks.publish import publish_status


@flow(
    name="watch-freshness",
    flow_run_name=lambda: f"watch-freshness-{now():%Y-%m-%d-%H:%M}",
    description="Look at the age of each node's newest backup in the vault. Completed only if none is too old.",
    persist_result=False,
)
async def watch_freshness(fleet: Path = Path("fleet.yaml")) -> list[KindStatus]:
    """Look how old the newest backups of a fleet file's nodes are.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
    """
    settings = fleet_of_run(fleet)
    rows = await read_ages(settings)
    await publish_status(rows)
    for row in rows:
        for warning in row.warnings:
            get_run_logger().warning("%s: %s", row.name, warning)
    if reasons := not_fresh(rows):
        for reason in reasons:
            get_run_logger().error("%s", reason)
        raise NotFreshError(len(rows), reasons)
    return rows


@engine_task(name="read-ages", task_run_name="read-ages")
async def read_ages(fleet: Fleet) -> list[KindStatus]:
    """Read from the vault how old the newest backup of each node and kind is."""
    return await in_thread(fleet_status, fleet, datetime.now(UTC))
