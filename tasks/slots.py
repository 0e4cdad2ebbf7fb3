"""The engine's concurrency limits: for display and queueing only, never the lock, which is the vault's.

`a0backup engine register` creates one limit per node and one for all; Prefect's page on concurrency
shows who holds what. Where a limit is missing, or the engine cannot give a slot, a backup proceeds
without.
"""

import contextlib
from collections.abc import AsyncIterator

from prefect.concurrency.asyncio import concurrency
from prefect.logging import get_run_logger

ALL_NODES = "a0backup"
# A slot of a killed run is free again after this many seconds, the minimum that Prefect allows.
LEASE = 60.0


def limit_of(node: str) -> str:
    """Return the name of the node's own limit."""
    return f"{ALL_NODES}-{node}"


@contextlib.asynccontextmanager
async def slots(node: str, *, deadline: float) -> AsyncIterator[None]:
    """Hold the node's slot and one of all nodes' inside the block; proceed without them after *deadline* seconds.

    No engine error at either end of the block is raised: the block's work counts.
    """
    # Not strict, and a lease that came due while the engine was unavailable does not end the run: the lock still holds.
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
        get_run_logger().warning("%s: no slot of the engine within %.0f s; continuing without", node, deadline)
    except Exception as error:  # noqa: BLE001 - an unavailable or failing engine must not stop a backup
        get_run_logger().warning("%s: no slot of the engine (%r); continuing without", node, error)
    try:
        yield
    finally:
        try:
            await entered.aclose()
        except Exception as error:  # noqa: BLE001 - nor may one that fails after the backup is stored
            get_run_logger().warning(
                "%s: its slots were not released (%r); the engine releases them within %.0f s", node, error, LEASE
            )
