"""`a0backup copy`: bring the further places to what the vault has."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from a0backup.cli.artifacts import find_all
from a0backup.cli.options import complete_ids, complete_places, fleet_option, json_option, vault_of
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.report import terminal
from a0backup.report.words import plain
from a0backup.vault.manifest import Manifest

if TYPE_CHECKING:
    from a0backup.places.catching_up import CaughtUp
    from a0backup.places.places import Place, Places


@click.command("copy")
@fleet_option
@click.option("--to", "to", metavar="NAME", multiple=True, shell_complete=complete_places, help="Only to this place.")
@json_option
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)
def copy_artifacts(fleet_path: Path, to: tuple[str, ...], as_json: bool, artifact_ids: tuple[str, ...]) -> int:
    """Copy to the further places what they lack.

    The places are `copies` in fleet.yaml. Each artifact is read back there, or proven by the server's own checksum,
    before it counts. An interrupted copy continues where it ended. Without IDs, copies everything that the vault has,
    the newest first; NODE, NODE/KIND or latest in place of an ID names the newest. The records of drills that were made
    on a place (drilled.json) are brought to the vault.

    \b
    Exit codes:
      0  every place holds every artifact
      1  the vault cannot be used
      2  usage or fleet.yaml wrong, or no such artifact or place
      4  a place lacks an artifact, or an artifact in the vault is damaged
    """
    from a0backup.places.places import Places

    fleet = load_fleet(fleet_path)
    if not fleet.copies:
        raise click.UsageError(f"{fleet.path} names no places: add `copies:` to it")
    chosen = fleet.chosen_copies(to)
    vault = vault_of(fleet)
    entries = find_all(vault, artifact_ids) if artifact_ids else list(vault.entries())
    unreadable = [entry.error() for entry in entries if not isinstance(entry, Manifest)]
    for error in unreadable:
        terminal.say(f"not copied: {plain(error.message())}")
    manifests = [entry for entry in entries if isinstance(entry, Manifest)]
    results = asyncio.run(_caught_up(Places.of(fleet, chosen), manifests))
    if as_json:
        click.echo(json.dumps([_row(result) for result in results], indent=2))
    else:
        click.echo("\n".join(plain(result.text()) for result in results))
        for hint in dict.fromkeys(result.error.hint() for result in results if result.error and result.error.hint()):
            click.echo(f"HINT: {plain(hint)}")
    behind = any(result.is_behind for result in results)
    return ExitCode.DAMAGED if behind or unreadable else ExitCode.OK


async def _caught_up(places: "Places", manifests: Sequence[Manifest]) -> "list[CaughtUp]":
    from a0backup.places.catching_up import catch_up

    def bring(place: "Place") -> "asyncio.Task[CaughtUp]":
        def told(artifact_id: str, text: str) -> None:
            terminal.say(f"{place.copy.name}  {artifact_id}  {plain(text)}", chatter=True)

        return asyncio.create_task(catch_up(place, manifests, told))

    return list(await asyncio.gather(*map(bring, places)))


def _row(result: "CaughtUp") -> dict[str, object]:
    return {
        "place": result.place,
        "copied": result.copied,
        "held": len(result.held),
        "failed": result.failed,
        "drilled": result.drilled,
        "error": result.error.reason if result.error else None,
        "behind": result.is_behind,
    }
