"""Detect nodes of one fleet that conflict with each other."""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from a0backup.fleet.fields import DEFAULT_PORT, FIRST_SPLIT_BUILD, quoted_value


def clashes(nodes: Sequence[Mapping[str, object]], kinds: Sequence[object]) -> Iterator[tuple[int, str, str]]:
    """Yield index, key and remedy of each node that repeats an earlier name or address, or has none of the kinds."""
    names: dict[str, int] = {}
    addresses: dict[tuple[str, object], int] = {}
    for index, node in enumerate(nodes):
        name, host, port = node.get("name"), node.get("host"), node.get("port", DEFAULT_PORT)
        if isinstance(name, str) and (first := names.setdefault(name.casefold(), index)) != index:
            yield index, "name", f"nodes[{first}] has the same name (case does not count): give each node its own"
        if isinstance(host, str) and isinstance(port, int):
            first = addresses.setdefault((_same_host(host), port), index)
            if first != index:
                yield index, "host", f"nodes[{first}] has the same host and port: name each node once"
        build = node.get("build")
        if list(kinds) == ["backup-sensitive"] and isinstance(build, int) and build < FIRST_SPLIT_BUILD:
            remedy = f"backup-sensitive is there from build {FIRST_SPLIT_BUILD} on: add backup to kinds"
            yield index, "build", f"{_named(name)} is left without a kind, as {remedy}"


def _named(name: object) -> str:
    return f"node {quoted_value(name)}" if isinstance(name, str) else "the node"


def _same_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.casefold()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address).casefold()
