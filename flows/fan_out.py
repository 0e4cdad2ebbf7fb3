"""Do the same work for many nodes at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from prefect.exceptions import TerminationSignal

from a0backup import limits
from a0backup.fleet.models import Node

R = TypeVar("R")


async def for_each(nodes: Sequence[Node], work: Callable[[Node], Awaitable[R]], *, at_most: int) -> list[R]:
    """Return the result of *work* for each node, in the order of *nodes*, running *at_most* at a time.

    Fewer run at a time if the system's limits for this process allow no more.

    *work* must handle its own errors: an exception would cancel the work of the other nodes. When
    cancelled, this returns only after all work has ended and leaves no a0cli process and no lock behind.
    """
    slots = asyncio.Semaphore(limits.at_most(min(at_most, max(1, len(nodes)))))

    async def in_turn(node: Node) -> R:
        async with slots:
            return await work(node)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(node)) for node in nodes]
    except BaseExceptionGroup as raised:
        # Prefect raises a signal in whatever code is running. In a group it would take it for a crash, not a cancel.
        if signals := raised.subgroup(TerminationSignal):
            raise signals.exceptions[0] from None
        raise
    return [task.result() for task in tasks]
