"""Back up a fleet: all nodes in parallel, each of them tried, each verified artifact stored in the vault.

One task per node calls the step tasks; with `fan_out: workers`, one run per node does. The engine
caches nothing (see backup_node). Blocks: the Secret block named by `password.secret_block` in
fleet.yaml, if any.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from a0backup.backup.session import Run
from a0backup.files import in_thread
from a0backup.report.outcomes import Outcome
from flows.backup_node import backed_up
from flows.due import due, later_run
from flows.ending import ExistingChoice, chosen_policy, conclude, now, warned_of
from flows.fan_out import for_each
from flows.fleet_file import fleet_of_run
from flows.node_runs import NodeRuns
from tasks.progress import progress_published
from tasks.secret_block import secret_block


@flow(
    name="backup-fleet",
    flow_run_name=lambda: f"backup-fleet-{now():%Y-%m-%d-%H:%M}",
    description="Back up every node of the fleet, in parallel. Completed only if every node's artifact is stored.",
    persist_result=False,
)
async def backup_fleet(
    fleet: Path = Path("fleet.yaml"),
    nodes: list[str] = [],  # noqa: B006 - Prefect shows the default in its form; it is never mutated
    existing: ExistingChoice = "as in fleet.yaml",
    fan_out: Literal["in this run", "workers"] = "in this run",
) -> list[Outcome] | State[None]:
    """Back up the nodes of a fleet file, unless the run is late and a later one of its schedule is due as well.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        nodes: Names of the nodes to back up; an empty list means all of them.
        existing: What to do with a backup on a node that this vault did not start. preserve: store a copy first.
            replace: delete it without a copy. fail: leave the node alone.
        fan_out: Where each node's backup runs. in this run: in the process of this run. workers: as a separate run,
            on whichever worker of the pool takes it.
    """
    if (later := await later_run()) is not None:
        return Completed(name="Skipped", message=f"late; the later run {later.name} is due too and does the work")
    settings = fleet_of_run(fleet)
    chosen = settings.chosen(nodes)
    run_id = str(runtime.flow_run.id)
    begin = partial(Run.begin, id=run_id, existing=chosen_policy(existing), due=await due(), blocks=secret_block)
    run = await in_thread(begin, settings, chosen)
    warnings = await warned_of(settings)
    back_up = NodeRuns(settings, existing, run_id).outcomes if fan_out == "workers" else partial(backed_up, run=run)
    async with progress_published(chosen):
        outcomes = await for_each(chosen, back_up, at_most=settings.max_parallel)
    return await conclude(outcomes, settings, warnings)
