"""Stop a retrieval that writes more than it should: a node must not fill the vault's disk for all others."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from a0backup.a0cli.printed import Printed
from a0backup.backup.context import Context
from a0backup.errors import ArtifactTooLargeError
from a0backup.vault.space import Space, excess

LOOK = 0.5  # seconds between two looks at what has arrived


async def bounded(context: Context, space: Space, retrieve: Callable[[], Coroutine[Any, Any, Printed]]) -> Printed:
    """Return the result of *retrieve*, the call of a0cli that retrieves a backup into the claimed *space*.

    Raise ArtifactTooLargeError as soon as more has arrived than may; the call has ended then, and
    what it wrote is removed. Raise what the call raises, VaultUnusableError.
    """
    node, most, directory = context.node.name, context.fleet.contents.max_size, context.session.directory
    others = context.others()
    here = await context.on_disk(directory.contents)
    call = asyncio.ensure_future(retrieve())
    try:
        ended = False
        while not ended:
            ended = bool((await asyncio.wait({call}, timeout=LOOK))[0])
            # Also after its end: a quick call may have written everything between two looks.
            if why := await context.on_disk(excess, context.vault, node, space, most, others):
                raise ArtifactTooLargeError(node, context.kind, why)
    except BaseException:
        call.cancel()
        await asyncio.wait({call})
        await context.on_disk(directory.clear_retrieved, but=here)
        raise
    return call.result()
