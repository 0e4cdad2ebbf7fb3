"""The same work for many nodes at once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from prefect.exceptions import TerminationSignal

from a0backup.fleet.models import Node

R = TypeVar("R")


async def for_each(nodes: Sequence[Node], work: Callable[[Node], Awaitable[R]], *, at_most: int) -> list[R]:
    """Return what *work* returns for each of the nodes, in their order, doing *at_most* at a time.

    *work* keeps its errors to itself: an exception of one would call off the others. When this is cancelled, all work
    has ended before it returns: no a0cli process is left behind, and no lock.
    """
    slots = asyncio.Semaphore(at_most)

    async def in_turn(node: Node) -> R:
        async with slots:
            return await work(node)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(node)) for node in nodes]
    except BaseExceptionGroup as raised:
        # Prefect raises a signal in whatever runs just then. In a group it would take it for a crash, not for a cancel.
        if signals := raised.subgroup(TerminationSignal):
            raise signals.exceptions[0] from None
        raise
    return [task.result() for task in tasks]
