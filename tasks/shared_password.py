"""The shared password of fleet.yaml, loaded inside the step that uses it.

A password is never a parameter, a result or a log line of the engine.
"""

from a0backup.passwords import shared as password
from tasks.secret_block import secret_block


async def shared_password(source: password.Source, *, opening: bool = False) -> str | None:
    """Return the shared password, or None where each backup has its own sealed one. Raise PasswordError.

    With *opening*, accept every password that may have made an artifact.
    """
    return await password.load(source, block=secret_block, opening=opening)
