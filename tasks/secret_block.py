"""The Secret blocks that fleet.yaml names, read inside the step that uses them.

Their values are never a parameter, a result or a log line of the engine.
"""

from typing import Any

from prefect.blocks.system import Secret


async def secret_block(name: str) -> object:
    """Return the value of the Prefect Secret block *name*, unconverted."""
    block: Secret[Any] = await Secret.aload(name)
    # Not get(), which parses a text as JSON where it can: 4711e2026 would become another password.
    return block.value.get_secret_value()
