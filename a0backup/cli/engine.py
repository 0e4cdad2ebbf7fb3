"""`a0backup engine check` and `a0backup engine register`: the Prefect server, and what it must hold."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import click

from a0backup.cli.asking import ask_twice
from a0backup.cli.options import fleet_option, json_option
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.passwords import shared
from a0backup.report import terminal
from a0backup.report.words import plain


@click.group()
def engine() -> None:
    """Look at your Prefect server, and register what it must hold.

    That is the one that your Prefect profile or PREFECT_API_URL names, else a running `a0backup serve`.
    """


@engine.command()
@fleet_option
@json_option
def check(fleet_path: Path, as_json: bool) -> int:
    """Check the Prefect server: will the next night run, and is somebody told of failures?

    It looks for registered objects that are missing or differ, for the next scheduled run, for a worker that is online,
    and for runs that are stuck. Ends with 1 where a night would not run.
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
@click.option("--dry-run", is_flag=True, help="Only say what would be made or changed.")
@click.option(
    "--notify",
    metavar="SLUG/NAME",
    help="The notification block, made in the UI, that is told of failed and late runs: slack-webhook/ops, say.",
)
@click.option(
    "--secret",
    "secret_files",
    metavar="NAME=FILE",
    multiple=True,
    help="Take the value of the Secret block NAME from the first line of FILE; else a missing one is asked for.",
)
@click.option(
    "--pool",
    "pool_type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    help="What the workers start for each run; process where the work pool is not there yet.",
)
def register(
    fleet_path: Path, dry_run: bool, notify: str | None, secret_files: tuple[str, ...], pool_type: str | None
) -> int:
    """Register what the pipeline needs on the Prefect server, and say what changed.

    That is the work pool, the concurrency limits, the Secret block that fleet.yaml names, the deployments and schedules
    of prefect.yaml, and the automations. A second time nothing changes that is as it should be. The prefect.yaml beside
    the fleet file counts, else the one that came with this.
    """
    from deployments.register import NO_NOTIFICATION, engine_in_use, lines
    from deployments.register import register as register_all

    fleet = load_fleet(fleet_path)
    secrets = _secrets(fleet, secret_files)
    with engine_in_use() as api:
        terminal.say(f"engine: {api}")
        done = asyncio.run(
            register_all(
                fleet, notify=notify, secrets=secrets, pool_type=pool_type, dry_run=dry_run, asked=ask_for_block
            )
        )
    for line in lines(done.changes, dry_run=dry_run):
        click.echo(line)
    if not done.told_of_failures:
        terminal.say(NO_NOTIFICATION)
    return ExitCode.OK


def ask_for_block(name: str) -> str:
    """Ask for the value of the Secret block *name*, twice. Raise UsageError, PasswordError."""
    differ = "the two passwords differ; nothing was changed"
    return shared.checked(
        ask_twice(f"password for the Secret block {name}", f"--secret {name}=FILE", differ), "what was typed"
    )


def _secrets(fleet: Fleet, given: Sequence[str]) -> dict[str, str]:
    """Return the values by block name of the NAME=FILE that were *given*. Raise PasswordError, UsageError."""
    secrets = {}
    for each in given:
        name, _, file = each.partition("=")
        if name != fleet.password.secret_block:
            named = fleet.password.secret_block or "no Secret block"
            raise click.UsageError(f"--secret {name}: {fleet.path} names {named} for the password")
        secrets[name] = shared.read_file(Path(file).expanduser(), f"file {file}")
    return secrets
