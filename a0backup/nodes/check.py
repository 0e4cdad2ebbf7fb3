"""The read-only check of fleet and nodes before a run: what exists, what a run would do, what would stop it."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from a0backup import limits
from a0backup.a0cli.commands import A0cli
from a0backup.a0cli.directory import PrivateDirectory
from a0backup.a0cli.listing import missing_commands, offers_sensitive
from a0backup.a0cli.replies import read_status, teach
from a0backup.a0cli.status import Status, shown
from a0backup.backup.facts import is_recent, stored_manifest
from a0backup.backup.reconcile import Facts, reconcile
from a0backup.errors import (
    A0BackupError,
    A0cliTimeoutError,
    NodeUnwellError,
    PasswordError,
    RecoveryKeyError,
    RefusedError,
    UnreachableError,
    VaultFullError,
    VaultUnusableError,
)
from a0backup.files import in_thread
from a0backup.fleet.health import Health
from a0backup.fleet.models import KEYSTREAM_REUSE, Existing, Fleet, Node
from a0backup.nodes import exposure
from a0backup.passwords import recovery_keys
from a0backup.passwords.shared import LoadShared
from a0backup.places.looking import same_disk_warnings
from a0backup.report.outcomes import Finding, Problem, halves
from a0backup.report.words import human_size
from a0backup.upkeep.health import look_at
from a0backup.vault.journal import Journal, JournalFile
from a0backup.vault.known_vault import memory_warning, refusal
from a0backup.vault.lock import is_held, read_holder
from a0backup.vault.space import nearest, space_for
from a0backup.vault.vault import Vault

_RESOLVERS = 16


async def check_node(
    fleet: Fleet,
    node: Node,
    *,
    existing: Existing | None = None,
    known: Sequence[Problem] = (),
    shared: LoadShared | None = None,
) -> Finding:
    """Return what is on the node and what a run would do, without a change to node or vault.

    Nothing is started, deleted or written. *known* are problems of the whole fleet that would also
    make the node's backup fail. *shared* loads the password, which a node may repeat in a reply.
    """
    problems, warnings = list(known), list[str]()
    status, would, lesson, room = "not asked", "nothing", "", ""
    reachable, splits = True, bool(node.splits)
    vault, kinds = Vault(fleet.vault), fleet.kinds_of(node)
    try:
        node.require_build()
        room = await in_thread(_check_room, vault, node.name, kinds, problems)
        warnings += await in_thread(exposure.of_node, fleet, node.name)
        if fleet.health is not None:
            warnings += await _check_health(fleet.health, node, shared, problems)
        # No lock and no file in the vault: a check must not disturb a run.
        with tempfile.TemporaryDirectory(prefix="a0backup-check-") as parent, contextlib.ExitStack() as stack:
            directory = PrivateDirectory(Path(parent), node.name, node=node.name)
            stack.callback(directory.remove)
            directory.make(fleet.a0cli.key_dir)
            a0cli = A0cli(fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path)
            with contextlib.suppress(PasswordError):  # reported for the whole fleet
                if shared is not None and (text := await shared(fleet.password)) is not None:
                    a0cli.know(text)
            await a0cli.update_commands()
            await a0cli.ping()
            offered = (await a0cli.commands()).stdout
            splits = splits or await in_thread(offers_sensitive, offered)
            hint, missing = RefusedError(node.name, "", "").hint(), await in_thread(missing_commands, offered, kinds)
            problems += [Problem(f"{kind} is not offered by the node", hint) for kind in missing]
            seen, plans = [], []
            for kind in kinds:
                printed = await a0cli.call(f"{kind}-status")
                lesson = lesson or await in_thread(teach, printed, a0cli.wordings)
                found = await in_thread(
                    read_status, printed, node=node.name, command=printed.command, wordings=a0cli.wordings
                )
                of_kind = f"{kind}: " if len(kinds) > 1 else ""
                plan = await in_thread(_would, fleet, node, kind, found, existing or fleet.existing)
                seen.append(f"{of_kind}{shown(found)}")
                plans.append(f"{of_kind}{plan}")
            status, would = "; ".join(seen), "; ".join(plans)
    except A0BackupError as error:
        reachable = not isinstance(error, UnreachableError | A0cliTimeoutError)
        problems.append(Problem.of(error))
    if half := halves(node.name, kinds, splits=splits):
        warnings.append(half)
    return Finding(
        node=node.name,
        ok=not problems,
        reachable=reachable,
        status=status,
        would=would,
        room=room,
        problems=tuple(problems),
        teach=lesson,
        warnings=tuple(warnings),
    )


async def _check_health(
    health: Health, node: Node, shared: LoadShared | None, problems: list[Problem]
) -> tuple[str, ...]:
    """Return what the node's health endpoints make worth a warning; add what would stop a run to *problems*."""
    look = await look_at(health, node, load=shared, everything=True)
    try:
        look.require_well(node.name)
    except NodeUnwellError as error:
        problems.append(Problem.of(error))
    return look.warnings


def _check_room(vault: Vault, node: str, kinds: Sequence[str], problems: list[Problem]) -> str:
    """Return text on the free space for each kind's next artifact; add what would stop a run to *problems*."""
    place = nearest(vault.folder(node))
    try:
        vault.require_mounted(node)
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise VaultUnusableError(node, f"the vault {vault.root} cannot be written: {place} is not writable")
        spaces = {kind: space_for(vault, node, kind) for kind in kinds}
    except OSError as error:
        problems.append(
            Problem.of(VaultUnusableError(node, f"the vault {vault.root} cannot be read: {error.strerror}"))
        )
        return ""
    except VaultUnusableError as error:
        problems.append(Problem.of(error))
        return ""
    for kind, space in spaces.items():
        if not space.enough:
            problems.append(Problem.of(VaultFullError(node, kind, space.needed, space.free)))
    free = min(space.free for space in spaces.values())
    known = f"{human_size(free)} free" if all(space.known for space in spaces.values()) else "free space unknown"
    lasts = [f"the last {kind} took {human_size(space.last)}" for kind, space in spaces.items() if space.last]
    return ", ".join([known, *lasts])


def fleet_room(fleet: Fleet, nodes: Sequence[Node]) -> tuple[Problem, ...]:
    """Return a problem if the vault is not the known one, or has space for each artifact but not for all of them."""
    vault = Vault(fleet.vault)
    if error := refusal(fleet):
        return (Problem.of(error),)
    try:
        spaces = [space_for(vault, node.name, kind) for node in nodes for kind in fleet.kinds_of(node)]
    except OSError:
        return ()  # reported for each node
    needed, free = sum(space.needed for space in spaces), min(space.free for space in spaces)
    if needed <= free or not all(space.enough for space in spaces):
        return ()
    text = f"no room for the artifacts of all {len(nodes)} nodes: they may take {needed:,} bytes, {free:,} are free"
    return (Problem(text, "free space on the vault's disk, or give the vault a larger one"),)


def alias_warnings(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return a warning for nodes that are one appliance under several names; each host name is resolved."""
    named: dict[tuple[str, int], list[str]] = {}
    with ThreadPoolExecutor(_RESOLVERS) as threads:
        for node, addresses in zip(nodes, threads.map(_addresses, nodes), strict=True):
            for address in addresses:
                named.setdefault((address, node.port), []).append(node.name)
    same = {tuple(names): place for place, names in named.items() if len(names) > 1}
    return tuple(
        f"{', '.join(names)} are one appliance ({address} port {port}): it is backed up for each name; keep one of them"
        for names, (address, port) in same.items()
    )


def _addresses(node: Node) -> set[str]:
    """Return the addresses of the node's host; none if it cannot be resolved, which its own check reports."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def recovery_key_problems(fleet: Fleet) -> tuple[Problem, ...]:
    """Return what prevents a run from sealing its passwords; nothing if the password is shared."""
    try:
        recovery_keys.load_all(fleet.password.sealed_to or ())
    except RecoveryKeyError as error:
        return (Problem.of(error),)
    return ()


def fleet_notes(fleet: Fleet) -> tuple[str, ...]:
    """Return the recovery keys that the passwords are sealed to, by file and fingerprint."""
    return tuple(
        f"the password of each backup is sealed to {path}, recovery key {key.fingerprint}"
        for path, key in exposure.recovery_keys_of(fleet)
    )


def fleet_warnings(fleet: Fleet) -> tuple[str, ...]:
    """Return what does not stop a run but should be fixed: the password, limits, and who can read or write what.

    The warnings about a node's folder in the vault are in the node's Finding.
    """
    shared = "" if fleet.password.sealed_to else KEYSTREAM_REUSE
    too_many = limits.warning(min(fleet.max_parallel, len(fleet.nodes)))
    own = filter(None, [shared, too_many, memory_warning(fleet)])
    return (*own, *same_disk_warnings(fleet), *exposure.of_fleet(fleet))


def _would(fleet: Fleet, node: Node, kind: str, status: Status, existing: Existing) -> str:
    vault = Vault(fleet.vault)
    lock = vault.folder(node.name) / "lock"
    first = ""
    if is_held(lock):
        first = f"wait for {read_holder(lock) or 'the run that holds the node'}; then "
    journal: Journal | None = None
    try:
        journal = JournalFile(vault.folder(node.name), kind).read()
    except ValueError:
        first += "set the unreadable journal aside; "
        existing = "preserve"
    stored = stored_manifest(vault, node.name, kind, status, journal)
    facts = Facts(
        status=status,
        existing=existing,
        journal=journal,
        moved=journal is not None and not journal.is_for(node.host, node.port),
        recent=journal is None or is_recent(journal.started_at, datetime.now(UTC), fleet.reuse_within),
        stored=stored,
        hidden=vault.hides_manifest(node.name, kind),
    )
    action = reconcile(facts)
    return f"{first}{action.then} ({action.because})"
