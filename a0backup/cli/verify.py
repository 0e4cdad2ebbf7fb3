"""`a0backup verify`: whether what is stored is still intact, in the vault and in its places; and its repair."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from a0backup.cli.artifacts import find_all
from a0backup.cli.options import complete_ids, complete_places, json_option, vault_at, vault_of, vault_options
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.report import terminal
from a0backup.report.places_report import finding_lines, mended_of, verify_summary
from a0backup.report.words import counted, plain
from a0backup.vault.vault import Vault

if TYPE_CHECKING:
    from a0backup.places.verification import Verification
    from a0backup.places.verifying import Finding


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    if not re.fullmatch(r"1/[1-9][0-9]{0,3}", value):
        raise click.BadParameter("write a share such as 1/7", ctx, param)
    return float(Fraction(value))


@click.command()
@vault_options
@click.option(
    "--place",
    "names",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_places,
    help="Only this place; `vault` is the vault itself. Default: the vault and all its places.",
)
@click.option(
    "--share",
    callback=_share,
    metavar="1/N",
    help="Read only the part that was not read for the longest time: with 1/7, seven runs read everything.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Bring back what is damaged or missing from where it is whole. The damaged bytes go to quarantine first.",
)
@click.option("--all", "all_of_them", is_flag=True, help="Print a line for each whole artifact, too.")
@json_option
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)
def verify(
    fleet_path: Path,
    vault_path: Path | None,
    names: tuple[str, ...],
    share: float | None,
    repair: bool,
    all_of_them: bool,
    as_json: bool,
    artifact_ids: tuple[str, ...],
) -> int:
    """Read artifacts again and compare them with their manifests.

    Reads every artifact in the vault, and in each of the `copies` of fleet.yaml, from the disk; give IDs to read only
    these, or NODE, NODE/KIND or latest for the newest. Needs no password. Prints at once what is not ok: DAMAGED,
    MISSING, FOREIGN (the manifest of another artifact), DIFFERS (whole, but not the vault's), STRAY (a file that no
    artifact explains), or NOT READ; at the end a line for each place, and the counts. A verification of everything that
    was interrupted continues.

    \b
    Exit codes:
      0  everything is whole, or --repair mended it; a STRAY alone is no failure
      1  there is no artifact, or something was not read: a place failed, a later version wrote it, or it belongs to
         another user
      2  usage or fleet.yaml wrong, or no such artifact or place
      4  an artifact is damaged or missing
    """
    fleet = None if vault_path is not None else load_fleet(fleet_path)
    if fleet is None and (repair or names):
        raise click.UsageError("--repair and --place need the places of fleet.yaml: leave out --vault")
    if fleet is not None:
        fleet.chosen_copies(name for name in names if name != "vault")
        if repair:
            asyncio.run(_bring_back(fleet))
    vault = vault_at(fleet_path, vault_path) if fleet is None else vault_of(fleet)
    ids = [entry.id for entry in find_all(vault, artifact_ids)] if artifact_ids else None

    output = None if as_json else _Output(repair=repair, all_of_them=all_of_them)
    verification = _verification(vault, fleet, names, ids, share, output.tell if output else _nothing)
    findings = asyncio.run(_findings(verification, repair=repair))
    if output is None:
        click.echo(json.dumps([_row(finding) for finding in findings], indent=2))
    elif findings:
        output.end(findings)
    if not findings and not any(verification.resumed.values()):
        terminal.say(f"nothing is proven: the vault {vault.root} holds no artifact yet")
        return ExitCode.FAILED
    _say_mended(findings)
    return _code(findings)


class _Output:
    """What is not ok as soon as it is found, each finding once; at the end the counts."""

    def __init__(self, *, repair: bool, all_of_them: bool) -> None:
        self._repair, self._all = repair, all_of_them
        self._printed: set[Finding] = set()

    def tell(self, finding: "Finding") -> None:
        if self._all or not finding.ok or finding.reason:
            self._print(finding)

    def end(self, findings: "Sequence[Finding]") -> None:
        # A repair of the vault also changes what is found in places, and that was not told yet.
        doubted = {(finding.place, finding.id) for finding in self._printed}
        for finding in findings:
            if (finding.place, finding.id) in doubted:
                self._print(finding)
        click.echo("\n".join(verify_summary(findings)))

    def _print(self, finding: "Finding") -> None:
        if finding not in self._printed:
            self._printed.add(finding)
            click.echo("\n".join(finding_lines(finding, repair=self._repair)))


def _nothing(finding: "Finding") -> None:
    pass


def _say_mended(findings: "Sequence[Finding]") -> None:
    if mended := mended_of(findings):
        disks = ", ".join(dict.fromkeys(finding.place for finding in mended))
        terminal.say(f"mended: {counted(len(mended), 'artifact')} ({disks}); do not trust that disk")


def _verification(
    vault: Vault,
    fleet: Fleet | None,
    names: Sequence[str],
    ids: Sequence[str] | None,
    share: float | None,
    told: "Callable[[Finding], None]",
) -> "Verification":
    from a0backup.places.places import Places
    from a0backup.places.verification import Verification

    copies = [copy for copy in fleet.copies if not names or copy.name in names] if fleet else []
    return Verification(
        vault,
        list(Places.of(fleet, copies)) if fleet else [],
        of_vault=not names or "vault" in names,
        ids=ids,
        share=share,
        told=told,
    )


async def _findings(verification: "Verification", *, repair: bool) -> "list[Finding]":
    findings = await verification.run()
    for place, count in verification.resumed.items():
        if count:
            terminal.say(f"{place}: an interrupted verification was continued; it had read {count} artifacts")
    return await verification.repaired(findings) if repair else findings


async def _bring_back(fleet: Fleet) -> None:
    """If the whole vault is gone, make it again with the identity that its places have."""
    from a0backup.places.restoring import bring_back

    if (place := await bring_back(fleet)) is not None:
        terminal.say(f"the vault {fleet.vault} was gone; it is made again from what {place} has")


def _row(finding: "Finding") -> dict[str, str]:
    return {
        "id": finding.id,
        "place": finding.place,
        "result": "ok" if finding.ok else finding.result.upper(),
        "reason": plain(finding.reason),
        "hint": plain(finding.hint),
    }


def _code(findings: "Sequence[Finding]") -> ExitCode:
    if any(finding.is_damage for finding in findings):
        return ExitCode.DAMAGED
    return ExitCode.FAILED if any(finding.result == "not read" for finding in findings) else ExitCode.OK
