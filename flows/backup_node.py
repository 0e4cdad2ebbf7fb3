"""Back up one node: check, reconcile, start, await, retrieve, verify, inspect, store, delete, settle.

That sequence is `a0backup.backup.loop`; here each of its steps becomes a task run. The engine caches
nothing: a step learns from the journal and the vault whether its work is done, and then ends as
Cached. Blocks: the Secret block named by `password.secret_block` in fleet.yaml, if any.
"""

from functools import partial
from pathlib import Path
from uuid import UUID

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.transactions import CommitMode, atransaction

from a0backup.backup.loop import NodeOutcomes, back_up_node, error_kept
from a0backup.backup.session import Run
from a0backup.backup.steps import StepName
from a0backup.files import in_thread
from a0backup.fleet.models import Node
from a0backup.report.outcomes import Outcome
from a0backup.report.run_report import summary
from flows.due import due
from flows.ending import ExistingChoice, chosen_policy, conclude, log_failure, tell_ended, warned_of
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task
from tasks.hand_over import hand_over
from tasks.progress import progress_published
from tasks.secret_block import secret_block
from tasks.shared_password import shared_password
from tasks.slots import slots
from tasks.steps import take_step


@flow(
    name="backup-node",
    flow_run_name="backup-{node}",
    description="Back up one node of the fleet: make a backup on it, retrieve, verify and store it, delete it there.",
    persist_result=False,
)
async def backup_node(
    node: str,
    fleet: Path = Path("fleet.yaml"),
    existing: ExistingChoice = "as in fleet.yaml",
    fleet_run: str = "",
) -> list[Outcome]:
    """Back up one node of a fleet file.

    Args:
        node: The node's name in the fleet file, such as a0-1.
        fleet: The fleet file, as an absolute path on the machine that runs this.
        existing: What to do with a backup on the node that this vault did not start. preserve: store a copy first.
            replace: delete it without a copy. fail: leave the node alone.
        fleet_run: The id of the backup-fleet run that this run is a part of. Only backup-fleet sets it.
    """
    settings = fleet_of_run(fleet)
    [chosen] = settings.chosen([node])
    # All runs of a node work under the id of the fleet's run: what one has settled stays settled for the next.
    run_id = str(UUID(fleet_run or runtime.flow_run.id))
    begin = partial(
        Run.begin, id=run_id, existing=chosen_policy(existing), due=await due(fleet_run), blocks=secret_block
    )
    run = await in_thread(begin, settings, [chosen])
    # The run of the fleet has already given the warnings about the fleet file.
    warnings = [] if fleet_run else await warned_of(settings)
    # The run of the fleet has already waited for its turn, and takes a run that does not begin for dead.
    deadline = 10.0 if fleet_run else settings.lock_deadline
    async with progress_published([chosen]), slots(node, deadline=deadline):
        outcomes = await backed_up(chosen, run)
    if fleet_run:
        await hand_over(outcomes.all, outcomes.warnings)
    return await conclude([outcomes], settings, warnings)


async def backed_up(node: Node, run: Run) -> NodeOutcomes:
    """Return how the backups of *node* ended, even if the engine itself failed."""
    outcomes = NodeOutcomes(node, run.fleet, log_failure)
    with error_kept() as ended:
        await backup_one_node(node, run, outcomes)
    outcomes.note_rest(ended, StepName.ENGINE)
    tell_ended(outcomes)
    return outcomes


@engine_task(name="backup-node", task_run_name="backup-{node.name}")
async def backup_one_node(node: Node, run: Run, outcomes: NodeOutcomes) -> State[None]:
    """Back up all kinds of *node*, one after another under its lock; fail if any is not stored."""
    # Eager: otherwise the first retry of one step marks its finished siblings as rolled back.
    async with atransaction(commit_mode=CommitMode.EAGER):
        await back_up_node(run, outcomes, take=take_step, shared=shared_password)
    failures = summary(outcomes.all)
    if failures:
        return Failed(message="; ".join(failures))
    return Completed(message="; ".join(f"stored as {outcome.id}" for outcome in outcomes.all))
