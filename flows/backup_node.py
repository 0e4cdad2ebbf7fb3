"""Back up one node: check, reconcile, start, await, retrieve, verify, inspect, store, delete, settle.

Nothing is cached by the engine: a step finds out from the journal and the vault whether its work is done, and then ends
as Cached. Blocks: the Secret block that `password.secret_block` in fleet.yaml names, where it names one.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.transactions import CommitMode, atransaction

from a0backup.backup_run import BackupRun
from a0backup.check import fleet_warnings
from a0backup.errors import A0BackupError, RunFailedError
from a0backup.files import in_thread
from a0backup.fleet import Existing, Fleet, Node
from a0backup.node_session import NodeSession, open_node, stored_now
from a0backup.progress import Ended, Warned, tell
from a0backup.reconcile import Action
from a0backup.replies import Found
from a0backup.report import Outcome, halves, outcome_of, summary
from a0backup.vault import Stock
from tasks.await_backup import awaiting
from tasks.backup_delete import backup_delete, confirm_delete
from tasks.backup_retrieve import backup_retrieve
from tasks.backup_status import backup_status
from tasks.hand_over import hand_over
from tasks.inspect_contents import inspect_contents
from tasks.ping import ping
from tasks.publish_progress import progress_published
from tasks.publish_report import publish_report
from tasks.slots import slots
from tasks.start_backup import start_backup
from tasks.step import step
from tasks.store_artifact import store_artifact
from tasks.update_commands import update_commands
from tasks.verify_md5 import verify_md5

# Flat, without None, so that the form in the UI offers the choices as they are.
ExistingChoice = Literal["as in fleet.yaml", "preserve", "replace", "fail"]


@flow(
    name="backup-node",
    flow_run_name="backup-{node}",
    description="Back up one node of the fleet: make a backup on it, retrieve, verify and store it, delete it there.",
    persist_result=False,
)
async def backup_node(
    node: str, fleet: Path = Path("fleet.yaml"), existing: ExistingChoice = "as in fleet.yaml"
) -> list[Outcome]:
    """Back up the node of that name.

    Args:
        node: The node's name in the fleet file, such as a0-1.
        fleet: The fleet file, as a path on the machine that runs this.
        existing: What to do with a backup on the node that this vault did not start. preserve: keep a copy first.
            replace: delete it unkept. fail: leave the node alone.
    """
    settings = Fleet.load(fleet)
    [chosen] = settings.chosen([node])
    stored_before = await in_thread(stored_now, settings, [chosen])
    night = runtime.flow_run.parent_flow_run_id
    of_fleet = night is not None
    # What is warned of in the fleet file is said once, by the run of the fleet.
    warnings = [] if of_fleet else await in_thread(fleet_warnings, settings)
    warn(warnings)
    # The run of the fleet has waited for its turn already, and takes one that does not begin for dead.
    deadline = 10.0 if of_fleet else settings.lock_deadline
    async with progress_published([chosen]), slots(node, deadline=deadline):
        # By the id of the fleet's run: what one run of a node has settled is so for each that comes after it, too.
        outcomes = await outcomes_of(
            chosen,
            fleet=settings,
            flow_run=night or str(runtime.flow_run.id),
            stored_before=stored_before,
            existing=existing,
        )
    if of_fleet:
        await hand_over(outcomes.all, outcomes.warnings)
    return await conclude([outcomes], settings, warnings)


class NodeOutcomes:
    """How each kind of a node ended so far, kept outside the task: they hold also where the engine fails at its end."""

    def __init__(self) -> None:
        self.all: list[Outcome] = []
        self.warnings: list[str] = []

    def tell(self) -> None:
        """Tell whoever watches how they ended."""
        for outcome in self.all:
            tell(Ended(outcome))
        warn(self.warnings)


@step(name="backup-node", task_run_name="backup-{node.name}")
async def backup_one_node(
    node: Node,
    fleet: Fleet,
    flow_run: str,
    stored_before: Stock | None,
    existing: Existing | None,
    outcomes: NodeOutcomes,
) -> State[None]:
    """Back up all kinds of one node, one after another under its lock; fail if any is not stored."""
    # Eager: otherwise the first retry of one step marks its finished siblings as rolled back.
    async with atransaction(commit_mode=CommitMode.EAGER):
        await back_up_all_kinds(
            node, fleet, outcomes, flow_run=flow_run, stored_before=stored_before, existing=existing
        )
    failures = summary(outcomes.all)
    if failures:
        return Failed(message="; ".join(failures))
    return Completed(message="; ".join(f"stored as {outcome.id}" for outcome in outcomes.all))


async def back_up_all_kinds(
    node: Node,
    fleet: Fleet,
    outcomes: NodeOutcomes,
    *,
    flow_run: str,
    stored_before: Stock | None,
    existing: Existing | None,
) -> None:
    """Note how the backup of each kind of *node* ended; an error of one is kept and the next is tried."""
    start = time.monotonic()
    step = "lock"
    try:
        async with open_node(fleet, node, flow_run=flow_run, stored_before=stored_before, existing=existing) as session:
            try:
                await update_commands(session)
                await ping(session)
            finally:
                step = session.step
            for kind in fleet.kinds_of(node):
                outcomes.all.append(await back_up(session, kind))
            if half := halves(node.name, fleet.kinds_of(node), splits=session.splits, outcomes=outcomes.all):
                outcomes.warnings.append(half)
    except Exception as error:  # noqa: BLE001 - whatever stops one node must not stop the others
        log_failure(error)
        note_failure_of_the_rest(outcomes, node, fleet, error, step, seconds=time.monotonic() - start)


def note_failure_of_the_rest(
    outcomes: NodeOutcomes, node: Node, fleet: Fleet, error: Exception, step: str, *, seconds: float
) -> None:
    """Note *error* for the kinds that had not been tried when it came."""
    for kind in fleet.kinds_of(node)[len(outcomes.all) :]:
        outcomes.all.append(outcome_of(node.name, kind, seconds=seconds, error=error, step=step))


async def back_up(session: NodeSession, kind: str) -> Outcome:
    """Return how the backup of *kind* ended on the node whose lock is held."""
    start = time.monotonic()
    run = BackupRun(session, kind)
    try:
        await run.open()
        await make_and_keep(run)
    except Exception as error:  # noqa: BLE001 - the next kind is tried, and the report names this one
        log_failure(error)
        outcome = run.outcome(time.monotonic() - start, error)
        await run.let_go()
        return outcome
    return run.outcome(time.monotonic() - start, None)


async def make_and_keep(run: BackupRun) -> None:
    """Go on with the node's backup from wherever it is until its artifact is stored and the node holds it no more.

    Each round does what reconcile says of node, journal and vault: a backup that an earlier run began is finished, one
    that somebody else made is dealt with first, and then one is made.
    """
    status = await backup_status(run)
    while True:
        plan = await run.plan(status)
        match plan.action:
            case Action.START:
                await start_backup(run)
                status = await awaiting(run.fleet.polling)(run)
            case Action.AWAIT:
                status = await awaiting(run.fleet.polling)(run)
            case Action.ASK_AGAIN:
                await run.ask_again_later()
                status = await backup_status(run)
            case Action.KEEP:
                found = run.to_keep(status)
                if await retrieve_verified(run, found, ours=plan.ours):
                    await store_artifact(run, found, ours=plan.ours)
            case Action.DELETE | Action.REPLACE:
                assert isinstance(status, Found), "only what is shown is deleted"
                await backup_delete(run, status)
                status = await confirm_delete(run, status)
            case Action.DONE:
                await run.settle()
                return


async def retrieve_verified(run: BackupRun, found: Found, *, ours: bool) -> bool:
    """Retrieve *found* until its md5 matches, at most `retrieve_attempts` times; return whether that went well."""
    while True:
        try:
            await backup_retrieve(run, found)
            await verify_md5(run, found)
            await inspect_contents(run, found, ours=ours)
        except A0BackupError as error:
            if not await run.goes_on_after(error, found):
                return False
        else:
            return True


async def outcomes_of(
    node: Node, *, fleet: Fleet, flow_run: str, stored_before: Mapping[str, Stock], existing: ExistingChoice
) -> NodeOutcomes:
    """Return how the node's backups ended, also where the engine itself failed at it.

    *flow_run*: whose work it is; what that run has stored before is not made again. *stored_before*: by node, the
    artifacts that were there when it began; what another run stores later is its outcome.
    """
    said: Existing | None = None if existing == "as in fleet.yaml" else existing
    outcomes = NodeOutcomes()
    try:
        await backup_one_node(node, fleet, flow_run, stored_before.get(node.name), said, outcomes)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises must not stop the others
        log_failure(error)
        note_failure_of_the_rest(outcomes, node, fleet, error, "engine", seconds=0)
    outcomes.tell()
    return outcomes


def warn(warnings: Sequence[str]) -> None:
    """Have *warnings* in the run's log and on the terminal."""
    for warning in warnings:
        get_run_logger().warning("%s", warning)
        tell(Warned(warning))


async def conclude(nodes: Sequence[NodeOutcomes], fleet: Fleet, warnings: Sequence[str]) -> list[Outcome]:
    """Publish how all *nodes* ended, and the *warnings* of the fleet and of each of them.

    Raise RunFailedError, which names each node that is not stored and why.
    """
    outcomes = [outcome for node in nodes for outcome in node.all]
    all_warnings = [*warnings, *(warning for node in nodes for warning in node.warnings)]
    await publish_report(outcomes, fleet=str(fleet.path), warnings=all_warnings)
    failures = summary(outcomes)
    if failures:
        raise RunFailedError(len(outcomes), failures)
    return outcomes


def log_failure(error: Exception) -> None:
    """Log what stopped a node's backup; the traceback only where nobody foresaw it."""
    foreseen = isinstance(error, A0BackupError)
    get_run_logger().error("%s", error, exc_info=None if foreseen else error)


def now() -> datetime:
    """Return the time to the second, as manifests hold it."""
    return datetime.now(UTC).replace(microsecond=0)
