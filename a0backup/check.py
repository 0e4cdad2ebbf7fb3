"""The read-only look at a node before a run: what is there, what a run would do, what would be in its way."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from a0backup import replies
from a0backup.a0cli import A0cli, PrivateDirectory
from a0backup.errors import A0BackupError, NodeError, UnreachableError, VaultFullError, VaultUnusableError
from a0backup.files import in_thread
from a0backup.fleet import Existing, Fleet, Node
from a0backup.journal import Journal, JournalFile
from a0backup.lock import is_held, read_holder
from a0backup.reconcile import Action, reconcile
from a0backup.replies import Status
from a0backup.report import Finding, human_size
from a0backup.space import nearest, space_for
from a0backup.vault import Vault

_THEN = {
    Action.START: "start a backup, retrieve, verify and store it, delete it on the node",
    Action.ASK_AGAIN: "ask again for the backup that was started, and start one if it is not there",
    Action.AWAIT: "await the backup in progress, retrieve, verify and store it, delete it on the node",
    Action.DELETE: "delete the stored backup on the node",
    Action.REPLACE: "delete the backup on the node unkept, then start one",
    Action.REFUSE: "leave the node alone and fail",
    Action.DONE: "nothing but tidy up: the backup is stored",
}


def told(error: A0BackupError) -> tuple[str, ...]:
    """Return the error as a finding's problems: what happened and, where there is one, its hint."""
    message = error.message()
    if isinstance(error, NodeError):
        message = message.removeprefix(f"{error.node}: ")
    hint = error.hint()
    return (message, f"HINT: {hint}") if hint else (message,)


async def check_node(
    fleet: Fleet, node: Node, *, existing: Existing | None = None, known: Sequence[str] = ()
) -> Finding:
    """Return what is on the node and what a run would do. Nothing is started, deleted or written, in node or vault.

    *known* are problems of the whole fleet that would make the node's backup fail as well.
    """
    problems = list(known)
    status, would, teach, room = "not asked", "nothing", "", ""
    reachable = False
    vault = Vault(fleet.vault)
    try:
        node.require_build()
        room = await in_thread(_check_room, vault, node.name, fleet.kinds, problems)
        # No lock and nothing in the vault: a run under way is not disturbed by a look.
        with tempfile.TemporaryDirectory(prefix="a0backup-check-") as parent:
            directory = PrivateDirectory.make(Path(parent), node.name, key_dir=fleet.a0cli.key_dir, node=node.name)
            a0cli = A0cli(fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path)
            await a0cli.update_commands()
            reachable = True
            await a0cli.ping()
            offered = (await a0cli.commands()).stdout
            problems += [
                f"{kind} is not offered by the node" for kind in replies.missing_commands(offered, fleet.kinds)
            ]
            seen, plans = [], []
            for kind in fleet.kinds:
                printed = await a0cli.call(f"{kind}-status")
                teach = teach or replies.teach(printed, a0cli.wordings)
                found = replies.read_status(printed, node=node.name, command=f"{kind}-status", wordings=a0cli.wordings)
                seen.append(replies.shown(found))
                plans.append(await in_thread(_would, vault, node.name, kind, found, existing or fleet.existing))
            status, would = "; ".join(seen), "; ".join(plans)
    except A0BackupError as error:
        reachable = reachable and not isinstance(error, UnreachableError)
        problems += told(error)
    return Finding(
        node=node.name,
        well=not problems,
        reachable=reachable,
        status=status,
        would=would,
        room=room,
        problems=tuple(problems),
        teach=teach,
    )


def _check_room(vault: Vault, node: str, kinds: Sequence[str], problems: list[str]) -> str:
    """Return what is free for each kind's next artifact, in words; add to *problems* what would be in its way."""
    place = nearest(vault.folder(node))
    try:
        vault.require_mounted(node)
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise VaultUnusableError(node, f"the vault {vault.root} cannot be written: {place} is not writable")
        spaces = {kind: space_for(vault, node, kind) for kind in kinds}
    except OSError as error:
        problems += told(VaultUnusableError(node, f"the vault {vault.root} cannot be read: {error.strerror}"))
        return ""
    except VaultUnusableError as error:
        problems += told(error)
        return ""
    for kind, space in spaces.items():
        if not space.enough:
            problems += told(VaultFullError(node, kind, space.needed, space.free))
    free = min(space.free for space in spaces.values())
    lasts = [f"the last {kind} took {human_size(space.last)}" for kind, space in spaces.items() if space.last]
    return ", ".join([f"{human_size(free)} free", *lasts])


def fleet_room(fleet: Fleet, nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return what is in the way where the vault's disk has room for each node's artifacts, but not for all of them."""
    vault = Vault(fleet.vault)
    try:
        spaces = [space_for(vault, node.name, kind) for node in nodes for kind in fleet.kinds]
    except OSError:
        return ()  # said for each node
    needed, free = sum(space.needed for space in spaces), min(space.free for space in spaces)
    if needed <= free or not all(space.enough for space in spaces):
        return ()
    text = f"no room for the artifacts of all {len(nodes)} nodes: they may take {needed:,} bytes, {free:,} are free"
    return (text, "HINT: make room on the vault's disk, or give the vault a larger one")


def _would(vault: Vault, node: str, kind: str, status: Status, existing: Existing) -> str:
    lock = vault.folder(node) / "lock"
    first = ""
    if is_held(lock):
        first = f"wait for {read_holder(lock) or 'the run that holds the node'}; then "
    journal: Journal | None = None
    try:
        journal = JournalFile(vault.folder(node), kind).read()
    except ValueError:
        first += "set the unreadable journal aside; "
        existing = "preserve"
    stored = vault.of_backup(node, kind, status, journal)
    plan = reconcile(status, journal=journal, stored=stored, proven=False, existing=existing)
    if plan.action is Action.KEEP:
        how = "read back what the vault has of it" if stored else "retrieve, verify and store it"
        then = f"{how}, delete it on the node" + ("" if plan.ours else ", then start a backup")
    else:
        then = _THEN[plan.action]
        if plan.action is Action.AWAIT and not plan.ours:
            then += ", then start a backup of its own"
    return f"{first}{then} ({plan.because})"
