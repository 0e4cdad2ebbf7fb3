"""What all tasks have in common.

A task has side effects or asks what changes: Prefect never caches it and keeps no result of it. The checkpoint is the
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
from prefect.tasks import Task

from tasks import log_lines

# The core's log lines belong on the run's page; Prefect takes them (PREFECT_LOGGING_EXTRA_LOGGERS) only from a logger
# that has a level of its own.
logging.getLogger("a0backup").setLevel(logging.INFO)
log_lines.install()

# By flow run, the task runs that this process began: the engine records them late, and an engine of our own must not
# end before it has. Whoever waits for that takes them out.
task_runs: defaultdict[str, set[UUID]] = defaultdict(set)

P = ParamSpec("P")
R = TypeVar("R")


def engine_task(**options: Any) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Task[P, Coroutine[Any, Any, R]]]:
    """Make a coroutine function a Prefect task with these options, counted among the `task_runs` of its flow."""

    def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Task[P, Coroutine[Any, Any, R]]:
        @functools.wraps(function)
        async def body(*args: P.args, **kwargs: P.kwargs) -> R:
            task_runs[str(runtime.flow_run.id)].add(UUID(str(runtime.task_run.id)))
            return await function(*args, **kwargs)

        return task(cache_policy=NO_CACHE, persist_result=False, **options)(body)

    return decorate
