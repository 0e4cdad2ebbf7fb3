"""`a0backup status`: the state of each node, from the vault alone."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from a0backup.cli.options import fleet_option, json_option, say_ahead, vault_of
from a0backup.errors import VaultUnusableError
from a0backup.exit_codes import ExitCode
from a0backup.files import UnsuitableFileError, read_whole
from a0backup.fleet.copies import Copy
from a0backup.fleet.load import load_fleet
from a0backup.report.words import plain
from a0backup.vault.journal import JournalFile
from a0backup.vault.lock import is_held, read_holder
from a0backup.vault.manifest import Manifest
from a0backup.vault.quarantine import kept_damaged, quarantined
from a0backup.vault.vault import Vault, is_ahead

_MAX_REASON = 4 << 20  # with the sealed passwords of many starts


@click.command()
@fleet_option
@json_option
def status(fleet_path: Path, as_json: bool) -> int:
    """Show each node's last artifact, open backup, lock and copies.

    Prints these, what is in quarantine, and which places lack artifacts, for every node and kind. In quarantine are the
    last retrieval that could not be verified, and the damaged files that `a0backup verify --repair` replaced in the
    vault. Reads only the vault and contacts no node and no place.

    \b
    Exit codes:
      0  shown
      1  the vault, or the folder of a node in it, cannot be read
      2  usage or fleet.yaml wrong
    """
    fleet = load_fleet(fleet_path)
    vault = vault_of(fleet)
    rows = [_readable_row(vault, node.name, kind, fleet.copies) for node in fleet.nodes for kind in fleet.kinds]
    code = ExitCode.FAILED if any(row["error"] for row in rows) else ExitCode.OK
    now = datetime.now(UTC)
    say_ahead(entry.id for node in fleet.nodes for entry in vault.entries(node.name) if is_ahead(entry.id, now))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return code
    for row in rows:
        click.echo(f"{row['node']} {row['kind']}")
        if row["error"]:
            click.echo(f"  not readable   {row['error']}")
            continue
        click.echo(f"  last artifact  {row['last'] or 'none yet'}")
        click.echo(f"  unfinished     {row['journal'] or 'nothing'}")
        click.echo(f"  lock           {row['holder'] or 'free'}")
        behind = row["behind"] or {}
        if complete := [place for place, count in behind.items() if row["last"] and not count]:
            click.echo(f"  copies         {', '.join(complete)}: complete")
        for place, count in behind.items():
            if count:
                click.echo(f"  copies         {place} is {count} behind; `a0backup copy` copies what it lacks")
        if row["quarantine"]:
            click.echo(f"  quarantine     {row['quarantine']}")
        for folder in row["damaged"] or ():
            click.echo(f"  quarantine     {folder}: damaged files of a mended artifact")
    return code


def _readable_row(vault: Vault, node: str, kind: str, copies: Sequence[Copy]) -> dict[str, Any]:
    """Return what is known of one kind of a node; only an `error` where its folder cannot be read."""
    empty = dict.fromkeys(("last", "journal", "holder", "quarantine", "damaged", "behind"))
    try:
        vault.require_no_links(node)
        return _row(vault, node, kind, copies) | {"error": None}
    except VaultUnusableError as error:
        return {"node": node, "kind": kind, **empty, "error": error.text()}
    except OSError as error:
        return {"node": node, "kind": kind, **empty, "error": f"{error.filename}: {error.strerror}"}


def _row(vault: Vault, node: str, kind: str, copies: Sequence[Copy]) -> dict[str, Any]:
    # Imported late: it loads everything that drives a node, and commands that only read the vault start faster without.
    from a0backup.backup.deletion import DeletionMark

    last = vault.newest(node, kind)
    ours = next((each for each in vault.newest_first(node, kind) if each.started_at is not None), None)
    lock = vault.folder(node) / "lock"
    holder = str(read_holder(lock) or "a process that has not written its name yet") if is_held(lock) else None
    unfinished = _unfinished(vault, node, kind)
    if DeletionMark(vault.folder(node), kind).is_there():
        sent = "a deletion was sent and is not confirmed; the next start waits for it first"
        unfinished = f"{unfinished}; {sent}" if unfinished else sent
    return {
        "node": node,
        "kind": kind,
        "last": _last(last, ours),
        "journal": unfinished,
        "holder": holder,
        "quarantine": _quarantine(vault, node, kind),
        "damaged": [str(folder) for folder in kept_damaged(vault, node, kind)],
        "behind": _behind(vault, node, kind, copies),
    }


def _last(last: Manifest | None, ours: Manifest | None) -> str | None:
    """Return the last artifact; one that this vault is not known to have started is marked, with the last that is."""
    if last is None or last.started_at is not None:
        return last.id if last else None
    return f"{last.id} (not known to be started by this vault; the last that is: {ours.id if ours else 'none'})"


def _behind(vault: Vault, node: str, kind: str, copies: Sequence[Copy]) -> dict[str, int]:
    """Return how many artifacts are not proven in each place, as far as the vault knows."""
    from a0backup.places.records import is_proven

    ids = [manifest.id for manifest in vault.manifests(node, kind)] if copies else []
    return {copy.name: sum(not is_proven(vault, each, copy) for each in ids) for copy in copies}


def _quarantine(vault: Vault, node: str, kind: str) -> str | None:
    """Return where the last retrieval is that could not be verified, and why."""
    folders = quarantined(vault, node, kind)
    if not folders:
        return None
    try:
        reason = json.loads(read_whole(folders[-1] / "reason.json", _MAX_REASON))["reason"]
    except (OSError, UnsuitableFileError, ValueError, KeyError, TypeError):
        reason = "reason.json cannot be read"
    return f"{folders[-1]}: {plain(str(reason))}"


def _unfinished(vault: Vault, node: str, kind: str) -> str | None:
    try:
        journal = JournalFile(vault.folder(node), kind).read()
    except ValueError as error:
        return f"the journal cannot be read, the next run sets it aside ({error})"
    if journal is None:
        return None
    last = f"; last: {plain(journal.history[-1].what)}" if journal.history else ""
    return f"started {journal.started_at:%Y-%m-%dT%H:%M:%SZ} by run {plain(journal.flow_run)}{last}"
