"""The steps of a node's run as Prefect tasks: what each does is in the core, how often it is tried is here.

await back_up_node(run, outcomes, take=take_step, shared=shared_password)
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from a0backup.backup.session import NodeSession
from a0backup.backup.steps import Done, StepName
from tasks.engine_task import engine_task

R = TypeVar("R")

JITTER = 0.2


async def transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether trying again may help: the error itself knows."""
    # The exception is read, not raised: raising it here would add this frame to the run's traceback.
    return bool(getattr(state.data, "transient", False))


AGAIN = {"retry_jitter_factor": JITTER, "retry_condition_fn": transient}

# A call that only reads is tried again after a transient fault: often enough to ride out a dropped connection, few
# enough times to tell of a dead node soon.
READS = {"retries": 3, "retry_delay_seconds": [1, 2, 4], **AGAIN}

# Never repeated by the engine.
ONCE: dict[str, Any] = {}


def step_task(name: StepName, options: dict[str, Any]) -> Task[..., Any]:
    """Return the task of the step *name*; its run is named by *run_name*."""

    @engine_task(name=name, task_run_name="{run_name}", **options)
    async def take(run_name: str, work: Callable[[], Awaitable[object]], node: str) -> object:
        done = await work()
        if not isinstance(done, Done):
            return done
        get_run_logger().info("%s: %s", node, done.text)
        return Completed(name="Cached" if done.cached else "Completed", message=done.text, data=done)

    return take


STEPS = {
    name: step_task(name, options)
    for name, options in {
        StepName.UPDATE_COMMANDS: READS,
        StepName.PING: READS,
        StepName.STATUS: READS,
        StepName.START: ONCE,  # what it did is asked of the status that follows
        StepName.AWAIT: AGAIN,  # each poll is a retry, seen as AwaitingRetry; the intervals are fleet.yaml's
        StepName.RETRIEVE: ONCE,  # how often, a mismatch of the md5 included, is `retrieve_attempts`
        StepName.VERIFY: ONCE,
        StepName.INSPECT: ONCE,
        StepName.STORE: ONCE,
        StepName.DELETE: READS,  # the status before it: how the deletion itself went is asked, never tried again
        StepName.CONFIRM_DELETE: READS,
        StepName.LOOK: READS,
        StepName.SET_AS_BACKUP: ONCE,  # the node is asked what came of it
    }.items()
}


async def take_step(name: StepName, session: NodeSession, kind: str, work: Callable[[], Awaitable[R]]) -> R:
    """Take a step of a node's run as a task run; a `TakeStep`."""
    task, node = STEPS[name], session.node.name
    if name is StepName.AWAIT:
        polling = session.fleet.polling
        task = task.with_options(retries=polling.retries(), retry_delay_seconds=polling.delays())
    return cast(R, await task("-".join(filter(None, (name, kind, node))), work, node))
