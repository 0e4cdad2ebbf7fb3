"""The engine's concurrency limits: for display and for queueing, never the lock, which is the vault's.

`a0backup engine register` makes one limit for each node and one for all; Prefect's page on concurrency shows who
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
    """Hold the node's slot and one of all nodes' while the block runs; without them after *deadline* seconds.

    Whatever the engine says to either end of it raises nothing: the block's work counts.
    """
    # Not strict, and no end of the run where the engine was away when a lease was due: the lock holds anyway.
    held = concurrency(
        [ALL_NODES, limit_of(node)],
        timeout_seconds=deadline,
        lease_duration=LEASE,
        raise_on_lease_renewal_failure=False,
    )
    entered = contextlib.AsyncExitStack()
    try:
        await entered.enter_async_context(held)
    except TimeoutError:
        get_run_logger().warning("%s: no slot of the engine within %.0f s; goes on without", node, deadline)
    except Exception as error:  # noqa: BLE001 - an engine that is away or at fault must not stop a backup
        get_run_logger().warning("%s: no slot of the engine (%r); goes on without", node, error)
    try:
        yield
    finally:
        try:
            await entered.aclose()
        except Exception as error:  # noqa: BLE001 - nor one that is at fault when the backup is stored
            get_run_logger().warning(
                "%s: its slots were not given back (%r); the engine takes them within %.0f s", node, error, LEASE
            )
