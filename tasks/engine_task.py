"""What all tasks have in common.

A task has side effects or reads what changes, so Prefect never caches it and keeps no result of it.
The checkpoint is in the vault: a step that finds its work done reports that itself, by the state Cached.
"""

import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.tasks import Task

from tasks import log_lines

# The core's log lines belong on the run's page. Prefect takes them (PREFECT_LOGGING_EXTRA_LOGGERS) only from a logger
# with its own level.
logging.getLogger("a0backup").setLevel(logging.INFO)
log_lines.install()

# The task runs that this process began, by flow run. The engine records them late, and our own engine must not end
# before it has. The code that waits for that removes them.
task_runs: defaultdict[str, set[UUID]] = defaultdict(set)

P = ParamSpec("P")
R = TypeVar("R")


def engine_task(**options: Any) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Turn a coroutine function into a Prefect task with these options; its runs are added to `task_runs`."""

    def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def body(*args: P.args, **kwargs: P.kwargs) -> R:
            task_runs[str(runtime.flow_run.id)].add(UUID(str(runtime.task_run.id)))
            return await function(*args, **kwargs)

        return task(cache_policy=NO_CACHE, persist_result=False, **options)(body)

    return decorate


async def result_of(task: Coroutine[Any, Any, State[R]]) -> R:
    """Return what *task* found, for a task that returns its own state with that as the data, also a failed one."""
    state = await task
    return await state.aresult(raise_on_failure=False)  # type: ignore[return-value]  # never an error
