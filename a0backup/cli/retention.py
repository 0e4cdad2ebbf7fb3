"""`a0backup prune`, `keep` and `unkeep`: which artifacts stay."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

import click

from a0backup.cli.artifacts import get, json_lines
from a0backup.cli.options import complete_ids, fleet_option, json_option, vault_of
from a0backup.errors import PruneRefusedError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.report import terminal
from a0backup.report.retention_report import place_lines, refusal_lines, retention_lines
from a0backup.report.words import counted, plain
from a0backup.vault.manifest import MANIFEST
from a0backup.vault.pinned import LONGEST, Pin, remove_pin, write_pin
from a0backup.vault.vault import Vault

if TYPE_CHECKING:
    from a0backup.retention.planning import Decision, Plan
    from a0backup.retention.pruning import PrunedHere


@click.command()
@fleet_option
@click.option("--dry-run", is_flag=True, help="Show what would become of each artifact, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Without it, and without a terminal, nothing is removed.")
@click.option("--force", is_flag=True, help="Also if more than `prune_most` of a node would go, or a clock was wrong.")
@json_option
def prune(fleet_path: Path, dry_run: bool, yes: bool, force: bool, as_json: bool) -> int:
    """Remove the artifacts that no rule of `retention` keeps.

    Prints what becomes of each artifact, with every reason to keep it, and what would go in each of the `copies`. Then
    asks. Removes from the vault first, then from each place what was pruned from the vault, unless the place's own
    `retention` keeps it.

    Never removes: anything of a node with an unfinished backup, pinned artifacts (`a0backup keep`), the newest that was
    proven to open, what is damaged or cannot be read, and what no run of this vault made. The kinds of one night stay
    or go together.

    \b
    Exit codes:
      0  pruned, or there is nothing to prune
      1  refused, or you said no: nothing was removed
      2  usage or fleet.yaml wrong, or there is no terminal to ask at and no --yes: nothing was removed
      3  a node or a place could not be pruned or looked at; the next prune goes on there
    """
    # Imported late: the places are not needed by commands that only read the vault.
    from a0backup.retention.planning import plan_vault

    fleet = load_fleet(fleet_path)
    if fleet.retention is None:
        raise click.UsageError(f"{fleet.path} has no `retention`, so all artifacts stay; docs/retention.md explains it")
    vault, now = vault_of(fleet), datetime.now(UTC)
    plan = plan_vault(vault, fleet, fleet.retention, now=now)
    if as_json:
        terminal.echo_lines(json_lines(map(_row, plan.decisions)))
    else:
        terminal.echo_lines(retention_lines(plan))
    if plan.refusals and not force:
        error = PruneRefusedError(plan.refusals)
        terminal.say("\n".join(refusal_lines(error.reasons, error.hint())))
        return ExitCode.FAILED
    if dry_run or not yes:
        places = asyncio.run(_in_places(fleet, plan, now, force=force))
        for line in place_lines(places):
            click.echo(line, err=as_json)
        if dry_run:
            return ExitCode.SOME_FAILED if any(place.error for place in places) else ExitCode.OK
        if (code := _not_confirmed(plan, places)) is not None:
            return code
    results = asyncio.run(_pruned(vault, fleet, plan, now, force=force))
    for result in results:
        if result.removed or result.kept or result.refusal or result.error:
            terminal.say(plain(result.text()))
    return ExitCode.SOME_FAILED if any(result.error for result in results) else ExitCode.OK


def _not_confirmed(plan: "Plan", places: "Sequence[PrunedHere]") -> ExitCode | None:
    """Ask whether to go on; return None if so, and otherwise how the command ends."""
    what = [counted(len(plan.removals), "artifact")] if plan.removals or plan.begun else []
    what += [f"{len(place.removed)} in {place.where}" for place in places if place.removed]
    if not what:
        failed = any(place.error for place in places)
        return ExitCode.SOME_FAILED if failed else ExitCode.OK
    if not sys.stdin.isatty():
        terminal.say(f"there is no terminal to ask at; --yes removes {', '.join(what)} without asking")
        return ExitCode.USAGE
    if not click.confirm(f"remove {', '.join(what)}?", err=True):
        terminal.say("nothing was removed")
        return ExitCode.FAILED
    return None


def _row(decision: "Decision") -> dict[str, object]:
    return {
        "id": decision.id,
        "action": decision.action,
        "reasons": [plain(reason) for reason in decision.reasons],
    }


async def _in_places(fleet: Fleet, plan: "Plan", now: datetime, *, force: bool) -> "list[PrunedHere]":
    from a0backup.retention.pruning import look_at_places

    return await look_at_places(fleet, plan, now=now, force=force)


async def _pruned(vault: Vault, fleet: Fleet, plan: "Plan", now: datetime, *, force: bool) -> "list[PrunedHere]":
    from a0backup.retention.pruning import prune_everything

    def told(artifact_id: str, text: str) -> None:
        terminal.say(f"{artifact_id}  {text}", chatter=True)

    return await prune_everything(vault, fleet, plan, now=now, force=force, told=told)


# -- keep and unkeep ---------------------------------------------------------------------------------------------------


@click.command()
@fleet_option
@click.option("--until", "until", metavar="DATE", help="Until the end of this day, such as 2027-01-31.")
@click.option("--because", metavar="TEXT", default="", help="Why, for whoever finds the artifact later.")
@click.argument("artifact_id", metavar="ID", shell_complete=complete_ids)
def keep(fleet_path: Path, until: str | None, because: str, artifact_id: str) -> int:
    """Pin an artifact, so that `a0backup prune` keeps it.

    The other kinds of its night stay, too. A day of --until ends in the `timezone` of `retention` (default: UTC).

    \b
    Exit codes:
      0  pinned
      1  the artifact was pruned meanwhile, or the vault cannot be written
      2  usage or fleet.yaml wrong, or no such artifact
      4  its manifest is unreadable
    """
    fleet = load_fleet(fleet_path)
    vault, now = vault_of(fleet), datetime.now(UTC).replace(microsecond=0)
    if len(because) > LONGEST:
        raise click.UsageError(f"--because takes at most {LONGEST} characters")
    end = None if until is None else _end_of(until, fleet.retention.zone if fleet.retention else UTC)
    if end is not None and end <= now:
        raise click.UsageError(f"{until} is over; name a day to come, or leave --until out")
    manifest = get(vault, artifact_id)
    folder = vault.root / manifest.id
    pin = Pin(until=end, because=because, pinned_at=now)
    gone = f"{manifest.id} was pruned meanwhile"
    try:
        write_pin(folder, pin)
    except FileNotFoundError:
        raise click.ClickException(gone) from None
    # After it is written: a prune looks for the pin once more after it has renamed the manifest.
    if not (folder / MANIFEST).exists():
        raise click.ClickException(f"{gone}, or is about to be: see `a0backup list`")
    click.echo(f"{manifest.id}: {pin}")
    return ExitCode.OK


def _end_of(day: str, zone: tzinfo) -> datetime:
    try:
        after = date.fromisoformat(day) + timedelta(days=1)
        return datetime.combine(after, time(), zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.UsageError(f"{day!r} is no date; write 2027-01-31") from None


@click.command()
@fleet_option
@click.argument("artifact_id", metavar="ID", shell_complete=complete_ids)
def unkeep(fleet_path: Path, artifact_id: str) -> int:
    """Remove the pin of an artifact.

    From then on, the rules of `retention` decide.

    \b
    Exit codes:
      0  it is not pinned any more
      1  the vault cannot be written
      2  usage or fleet.yaml wrong, or no such artifact
      4  its manifest is unreadable
    """
    vault = vault_of(load_fleet(fleet_path))
    manifest = get(vault, artifact_id)
    was = remove_pin(vault.root / manifest.id)
    click.echo(f"{manifest.id}: {'not pinned any more' if was else 'was not pinned'}")
    return ExitCode.OK
