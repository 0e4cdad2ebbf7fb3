"""What all steps have in common.

A step has side effects or asks what changes: Prefect never caches it and keeps no result of it. The checkpoint is the
vault's: a step that finds its work done says so itself, in the state Cached.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from a0backup.node_session import Done
from a0backup.progress import Step, tell
from tasks import log_lines

JITTER = 0.2

# The core's log lines belong on the run's page; Prefect takes them (PREFECT_LOGGING_EXTRA_LOGGERS) only from a logger
# that has a level of its own.
logging.getLogger("a0backup").setLevel(logging.INFO)
log_lines.install()

# By flow run, the task runs that this process began: the engine records them late, and an engine of our own must not
# end before it has. Whoever waits for that takes them out.
task_runs: defaultdict[str, set[UUID]] = defaultdict(set)

P = ParamSpec("P")
R = TypeVar("R")


async def transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether trying again may help: the error itself knows."""
    # The exception is read, not raised: raising it here would add this frame to the run's traceback.
    return bool(getattr(state.data, "transient", False))


def step(**options: Any) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a coroutine function a Prefect task with these options, counted among the `task_runs` of its flow."""

    def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def body(*args: P.args, **kwargs: P.kwargs) -> R:
            task_runs[str(runtime.flow_run.id)].add(UUID(str(runtime.task_run.id)))
            return await function(*args, **kwargs)

        return task(cache_policy=NO_CACHE, persist_result=False, **options)(body)

    return decorate


def reading_step(
    **options: Any,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a coroutine function that only reads a Prefect task: a transient fault is tried again a few times."""
    # Enough retries to ride out a dropped connection, few enough to tell of a dead node soon.
    return step(
        retries=3,
        retry_delay_seconds=[1, 2, 4],
        retry_jitter_factor=JITTER,
        retry_condition_fn=transient,
        **options,
    )


def begin(node: str, kind: str, name: str) -> None:
    """Tell whoever watches that the step *name* has begun."""
    tell(Step(node, kind, name))


def ended(node: str, kind: str, name: str, done: Done) -> State[Done]:
    """Return the state in which a step ends that did its work, or found it done."""
    get_run_logger().info("%s: %s", node, done.text)
    tell(Step(node, kind, name, done.text))
    return Completed(name="Cached" if done.cached else "Completed", message=done.text, data=done)
