"""The health endpoints of a node, asked before it is given the load of a backup.

    look = await look_at(fleet.health, node, load=shared)
    look.require_well(node.name)

What cannot be learnt is a warning, never a reason to make no backup: a backup does not need the endpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass

from a0backup.errors import NodeUnwellError, PasswordError
from a0backup.fleet.health import Health
from a0backup.fleet.models import Node
from a0backup.passwords.shared import LoadShared


@dataclass(frozen=True)
class Look:
    """What the endpoints said: what is not well and must be for a backup, and what else is worth a warning.

    *refuse*: whether what is not well keeps the node from being asked.
    """

    unwell: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    refuse: bool = True

    def require_well(self, node: str) -> None:
        """Raise NodeUnwellError if *node* must not be asked for a backup."""
        if self.unwell and self.refuse:
            raise NodeUnwellError(node, self.unwell)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell of a node that is asked all the same."""
        return (*([] if self.refuse else self.unwell), *self.doubts)

    def text(self) -> str:
        """Return all of it in one sentence."""
        return "; ".join((*self.unwell, *self.doubts)) or "the node is well"


async def look_at(
    health: Health,
    node: Node,
    *,
    load: LoadShared | None,
    known: Callable[[str], None] = lambda key: None,
    everything: bool = False,
) -> Look:
    """Ask what a backup needs, or *everything*. *load* loads the key, and *known* is told it.

    Raises nothing: what went wrong is among the doubts.
    """
    refuse = health.on_failure == "refuse"
    try:
        key = await load(health.key) if load is not None else None
    except PasswordError as error:
        # Said of a password: the key is one, of another user.
        hint = error.hint().replace("password", "key")
        doubt = f"its health is not known: no key from {error.source}: {error.reason}; HINT: {hint}"
        return Look(doubts=(doubt,), refuse=refuse)
    if key is None:
        return Look(doubts=("its health is not known: there is no key here",), refuse=refuse)
    known(key)
    # Imported late: the command starts faster without httpx, and only a node with `health` needs it.
    from a0backup.upkeep.health_endpoints import Endpoints

    endpoints = Endpoints(health.url_of(node.host, node.name), key)
    await endpoints.ask(ca_file=health.ca_file, everything=everything)
    return Look(tuple(endpoints.unwell), tuple(endpoints.doubts), refuse)
