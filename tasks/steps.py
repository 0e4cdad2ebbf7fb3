"""The steps of a node's run as Prefect tasks: the core defines what each does, this module how often it is tried.

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
    """Return whether a retry may help, according to the error itself."""
    # Read the exception without raising it: raising would add this frame to the run's traceback.
    return bool(getattr(state.data, "transient", False))


AGAIN = {"retry_jitter_factor": JITTER, "retry_condition_fn": transient}

# A call that only reads is retried after a transient fault: often enough to survive a dropped connection, few enough
# times to report a dead node soon.
READS = {"retries": 3, "retry_delay_seconds": [1, 2, 4], **AGAIN}

# Never retried by the engine.
ONCE: dict[str, Any] = {}


def completed(done: Done) -> State[Done]:
    """Return the state of a task run that did *done*: Cached if the work was already done."""
    return Completed(name="Cached" if done.cached else "Completed", message=done.text, data=done)


def step_task(name: StepName, options: dict[str, Any]) -> Task[..., Any]:
    """Return the task of the step *name*; its run is named by *run_name*."""

    @engine_task(name=name, task_run_name="{run_name}", **options)
    async def take(run_name: str, work: Callable[[], Awaitable[object]], node: str) -> object:
        done = await work()
        if not isinstance(done, Done):
            return done
        get_run_logger().info("%s: %s", node, done.text)
        return completed(done)

    return take


STEPS = {
    name: step_task(name, options)
    for name, options in {
        StepName.UPDATE_COMMANDS: READS,
        StepName.PING: READS,
        StepName.STATUS: READS,
        StepName.HEALTH: ONCE,  # paces and repeats its requests itself; what it cannot learn is a warning
        StepName.START: ONCE,  # judged by the status that follows
        StepName.AWAIT: AGAIN,  # each poll is a retry, shown as AwaitingRetry; fleet.yaml sets the intervals
        StepName.RETRIEVE: ONCE,  # `retrieve_attempts` sets the number of attempts, also after an md5 mismatch
        StepName.VERIFY: ONCE,
        StepName.INSPECT: ONCE,
        StepName.STORE: ONCE,
        StepName.READ_BACK: ONCE,
        StepName.COPY: ONCE,
        StepName.DELETE: READS,  # for the status before it; the deletion itself is judged by a status, never retried
        StepName.CONFIRM_DELETE: READS,
        StepName.LOOK: READS,
        StepName.SET_AS_BACKUP: ONCE,  # judged by asking the node afterwards
    }.items()
}


async def take_step(name: StepName, session: NodeSession, kind: str, work: Callable[[], Awaitable[R]]) -> R:
    """Take a step of a node's run as a task run; this is a `TakeStep`."""
    task, node = STEPS[name], session.node.name
    if name is StepName.AWAIT:
        polling = session.fleet.polling
        task = task.with_options(retries=polling.retries(), retry_delay_seconds=polling.delays())
    return cast(R, await task("-".join(filter(None, (name, kind, node))), work, node))
