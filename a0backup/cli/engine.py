"""`a0backup engine check` and `a0backup engine register`: the Prefect server and what it must hold."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from a0backup.cli.asking import ask, ask_twice
from a0backup.cli.options import fleet_option, json_option
from a0backup.exit_codes import ExitCode
from a0backup.fleet.copies import Copy
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.passwords import shared
from a0backup.passwords.secret_file import read_secret
from a0backup.places.credentials import FORMS, credentials_in
from a0backup.report import terminal
from a0backup.report.words import plain

_MOST = 64 << 10  # bytes; a private key has a few thousand


@click.group()
def engine() -> None:
    """Check your Prefect server, and register what it must hold.

    The commands use the server that your Prefect profile or PREFECT_API_URL names, else a running `a0backup serve`.
    """


@engine.command()
@fleet_option
@json_option
def check(fleet_path: Path, as_json: bool) -> int:
    """Check that the Prefect server will run the next night.

    Checks for registered objects that are missing or differ, the next scheduled run, an online worker, stuck runs, and
    whether somebody is notified of failures. Changes nothing. Prints one line per result, the worst first, with a
    hint where there is a remedy; with --json, the same as JSON.

    \b
    Exit codes:
      0  the next night will run; there may be warnings
      1  a night would not run, or the server cannot be reached
      2  usage or fleet.yaml wrong
    """
    from deployments.doctor import Verdict, check_engine

    remarks = check_engine(load_fleet(fleet_path))
    if as_json:
        click.echo(json.dumps([remark.to_json() for remark in remarks], indent=2))
    else:
        for remark in remarks:
            click.echo(f"{remark.verdict:<8} {plain(remark.text)}")
            if remark.hint:
                click.echo(f"{'':<8} HINT: {remark.hint}")
    return ExitCode.FAILED if any(remark.verdict is Verdict.PROBLEM for remark in remarks) else ExitCode.OK


@engine.command()
@fleet_option
@click.option("--dry-run", is_flag=True, help="Only print what would be created or changed.")
@click.option(
    "--notify",
    metavar="SLUG/NAME",
    help="The notification block, created in the UI, that receives failed and late runs, e.g. slack-webhook/ops.",
)
@click.option(
    "--secret",
    "secret_files",
    metavar="NAME=FILE",
    multiple=True,
    help="Read the value of the Secret block NAME from FILE: the password (one line), or the credentials of a place "
    "(JSON). Without it, a missing value is asked for.",
)
@click.option(
    "--pool",
    "pool_type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    help="What the workers start for each run. Default: process, if the work pool does not exist yet.",
)
def register(
    fleet_path: Path, dry_run: bool, notify: str | None, secret_files: tuple[str, ...], pool_type: str | None
) -> int:
    """Register what the pipeline needs on the Prefect server.

    This is the work pool, the concurrency limits, the Secret blocks that fleet.yaml names, the deployments and
    schedules of prefect.yaml, and the automations. Uses the prefect.yaml beside the fleet file, else the one that is
    shipped with a0backup. Running it again changes only what differs. Prints one line per object and what changed.

    \b
    Exit codes:
      0  all registered
      1  the server cannot be reached or refuses, or a password cannot be read
      2  usage or fleet.yaml wrong
    """
    from deployments.register import NO_NOTIFICATION, engine_in_use, lines
    from deployments.register import register as register_all

    fleet = load_fleet(fleet_path)
    secrets = _secrets(fleet, secret_files)
    with engine_in_use() as api:
        terminal.say(f"engine: {api}")
        done = asyncio.run(
            register_all(
                fleet,
                notify=notify,
                secrets=secrets,
                pool_type=pool_type,
                dry_run=dry_run,
                asked=partial(ask_for_block, fleet),
            )
        )
    for line in lines(done.changes, dry_run=dry_run):
        click.echo(line)
    if not done.told_of_failures:
        terminal.say(NO_NOTIFICATION)
    return ExitCode.OK


def ask_for_block(fleet: Fleet, name: str) -> str:
    """Ask twice for the value of the Secret block *name*. Raise UsageError, PasswordError or PlaceError."""
    if copies := _copies_with(fleet, name):
        what = f"file with the credentials for the Secret block {name}, as JSON"
        return _credentials_in(Path(ask(what, f"--secret {name}=FILE")).expanduser(), copies)
    differ = "the two texts differ; nothing was changed"
    return shared.checked(
        ask_twice(f"value of the Secret block {name}", f"--secret {name}=FILE", differ), "what was typed"
    )


def _secrets(fleet: Fleet, given: Sequence[str]) -> dict[str, str]:
    """Return the values of the *given* NAME=FILE by block name. Raise PasswordError, PlaceError or UsageError."""
    secrets = {}
    for each in given:
        name, _, file = each.partition("=")
        if copies := _copies_with(fleet, name):
            secrets[name] = _credentials_in(Path(file).expanduser(), copies)
            continue
        if name not in fleet.secret_blocks:
            named = ", ".join(_blocks_of(fleet)) or "no Secret block"
            raise click.UsageError(f"--secret {name}: {fleet.path} names {named}")
        for_a0cli = fleet.secret_blocks[name].for_a0cli
        secrets[name] = shared.read_file(Path(file).expanduser(), f"file {file}", for_a0cli=for_a0cli)
    return secrets


def _blocks_of(fleet: Fleet) -> list[str]:
    return [*fleet.secret_blocks, *(copy.secret_block for copy in fleet.copies if copy.secret_block is not None)]


def _copies_with(fleet: Fleet, block: str) -> list[Copy]:
    return [copy for copy in fleet.copies if copy.secret_block == block]


def _credentials_in(file: Path, copies: Sequence[Copy]) -> str:
    """Return the text of a private *file* with the credentials of *copies*. Raise PasswordError or PlaceError."""
    remedy = f"write {FORMS[copies[0].scheme]} into {file}, and `chmod 600 {file}`"
    octets = read_secret(file, _MOST, where=f"file {file}", remedy=remedy)
    text = octets.decode(errors="replace")
    for copy in copies:
        credentials_in(copy, text)
    return text
