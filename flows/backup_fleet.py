"""Back up a fleet: every node in parallel, all of them tried, each verified artifact in the vault.

One task per node calls the step tasks. Nothing is cached by the engine (see backup_node). Blocks: the Secret block that
`password.secret_block` in fleet.yaml names, where it names one.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from prefect import flow
from pydantic import Field

from a0backup.fleet import Fleet, Node
from a0backup.report import Outcome
from flows.backup_node import ExistingChoice, FleetFile, now, outcomes_of, raise_if_any_failed
from tasks.publish_report import publish_report


@flow(
    name="backup-fleet",
    flow_run_name="backup-fleet",
    description="Back up every node of the fleet, in parallel. Completed only if every node's artifact is stored.",
    persist_result=False,
)
async def backup_fleet(
    fleet: FleetFile = Path("fleet.yaml"),
    nodes: Annotated[
        list[str], Field(title="Nodes", description="Names of the nodes to back up; none named means all of them.")
    ] = [],  # noqa: B006 - Prefect shows the default in its form; it is never changed
    existing: ExistingChoice = "as in fleet.yaml",
) -> list[Outcome]:
    """Back up the nodes of a fleet file."""
    settings = Fleet.load(fleet)
    chosen = settings.chosen(nodes)
    slots = asyncio.Semaphore(settings.max_parallel)
    began = now()

    async def back_up_in_turn(node: Node) -> list[Outcome]:
        async with slots:
            return await outcomes_of(node, fleet=settings, began=began, existing=existing)

    per_node = await asyncio.gather(*(back_up_in_turn(node) for node in chosen))
    outcomes = [outcome for outcomes in per_node for outcome in outcomes]
    await publish_report(outcomes, fleet=str(fleet))
    raise_if_any_failed(outcomes)
    return outcomes
