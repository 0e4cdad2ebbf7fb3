"""The engine's concurrency limits: for display and for queueing, never the lock, which is the vault's.

`python -m deployments.register` makes one limit for each node and one for all; Prefect's page on concurrency shows who
holds what. Where there is none, or the engine cannot give a slot, a backup goes on without.
"""

import contextlib
from collections.abc import AsyncIterator

from prefect.concurrency.asyncio import concurrency
from prefect.logging import get_run_logger

ALL_NODES = "a0backup"
# A slot of a killed run is free again after this many seconds: the least that Prefect allows.
LEASE = 60.0


def limit_of(node: str) -> str:
    """Return the name of the node's own limit."""
    return f"{ALL_NODES}-{node}"


@contextlib.asynccontextmanager
async def slots(node: str, *, deadline: float) -> AsyncIterator[None]:
    """Hold the node's slot and one of all nodes' while the block runs; without them after *deadline* seconds."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            # Not strict, and no end of the run where the engine was away when a lease was due: the lock holds anyway.
            held = concurrency(
                [ALL_NODES, limit_of(node)],
                timeout_seconds=deadline,
                lease_duration=LEASE,
                raise_on_lease_renewal_failure=False,
            )
            await stack.enter_async_context(held)
        except TimeoutError:
            get_run_logger().warning("%s: no slot of the engine within %.0f s; goes on without", node, deadline)
        yield
