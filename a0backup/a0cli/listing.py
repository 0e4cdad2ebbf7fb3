"""The commands that a node offers, as `a0cli` alone lists them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# Commands that a node takes whatever its role (vendor's page on the CLI).
_ALWAYS_OFFERED = {"ping", "nslookup", "re-ip", "test-port", "set-as-backup"}


def offered_commands(listing: str) -> frozenset[str] | None:
    """Return the commands in what `a0cli` alone lists, None where it is not read.

    It is read where it names one command a line, first on the line; the words after it may name others. Other words
    may be among the commands.
    """
    offered = frozenset(line.split()[0] for line in listing.splitlines() if line.strip())
    return offered if len(offered & _ALWAYS_OFFERED) > 1 else None


def missing_commands(listing: str, kinds: Sequence[str]) -> list[str]:
    """Return which kinds' commands are not in what `a0cli` alone lists.

    A listing that is not read proves nothing, the start will tell: then none is missing.
    """
    offered = offered_commands(listing)
    return [] if offered is None else [kind for kind in kinds if kind not in offered]


def offers_backup(listing: str) -> bool | None:
    """Return whether what `a0cli` alone lists shows that the node takes a backup: from build 6868 on, its role.

    None where the listing is not read.
    """
    offered = offered_commands(listing)
    return None if offered is None else "backup" in offered


def offers_sensitive(listing: str) -> bool:
    """Return whether what `a0cli` alone lists shows that the node takes backup-sensitive."""
    return "backup-sensitive" in (offered_commands(listing) or ())
