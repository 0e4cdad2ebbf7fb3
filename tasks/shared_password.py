"""The shared password of fleet.yaml, loaded inside the step that uses it.

A password is never a parameter, a result or a log line of the engine.
"""

from typing import Any

from prefect.blocks.system import Secret

from a0backup.passwords import shared as password


async def shared_password(source: password.Source, *, opening: bool = False) -> str | None:
    """Return the shared password, or None where each backup has its own sealed one. Raise PasswordError.

    With *opening*, accept every password that may have made an artifact.
    """
    return await password.load(source, block=secret_block, opening=opening)


async def secret_block(name: str) -> object:
    """Return the value of the Prefect Secret block *name*, unconverted."""
    block: Secret[Any] = await Secret.aload(name)
    # Not get(), which parses a text as JSON where it can: 4711e2026 would become another password.
    return block.value.get_secret_value()
