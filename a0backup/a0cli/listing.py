"""The commands that a node offers, as `a0cli` without arguments lists them."""

from collections.abc import Sequence

# Commands that a node accepts whatever its role (vendor's page on the CLI).
_ALWAYS_OFFERED = {"ping", "nslookup", "re-ip", "test-port", "set-as-backup"}


def offered_commands(listing: str) -> frozenset[str] | None:
    """Return the commands in *listing*, the output of `a0cli` without arguments; None if it is unreadable.

    It is readable if it names one command per line, as the first word; later words of the line may name
    other commands. The result may also contain words that are not commands.
    """
    offered = frozenset(line.split()[0] for line in listing.splitlines() if line.strip())
    return offered if len(offered & _ALWAYS_OFFERED) > 1 else None


def missing_commands(listing: str, kinds: Sequence[str]) -> list[str]:
    """Return the *kinds* whose command is missing from *listing*, the output of `a0cli` without arguments.

    An unreadable listing proves nothing: the result is then empty, and the start decides.
    """
    offered = offered_commands(listing)
    return [] if offered is None else [kind for kind in kinds if kind not in offered]


def offers_backup(listing: str) -> bool | None:
    """Return whether *listing* shows that the node accepts a backup: from build 6868 on, that it has the role.

    *listing* is the output of `a0cli` without arguments. Return None if it is unreadable.
    """
    offered = offered_commands(listing)
    return None if offered is None else "backup" in offered


def offers_sensitive(listing: str) -> bool:
    """Return whether *listing*, the output of `a0cli` without arguments, offers backup-sensitive."""
    return "backup-sensitive" in (offered_commands(listing) or ())
