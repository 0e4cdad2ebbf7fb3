"""`a0backup status`: the state of each node, from the vault alone; the probe for any monitoring."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from a0backup.cli.options import fleet_option, json_option
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.report.status_report import status_lines


@click.command()
@fleet_option
@json_option
def status(fleet_path: Path, as_json: bool) -> int:
    """Show the age of each newest backup; fail if one is too old.

    The first line is for monitoring: OK, WARNING or CRITICAL, and why. Then there is a line for each node and kind with
    the age of its newest backup, and below it what there is to say: an unfinished backup, who holds the lock, what
    each place lacks, what is in quarantine. An age counts from the start of the backup. `freshness` in fleet.yaml
    says how old is too old. Reads only the vault and contacts no node and no place.

    \b
    Exit codes:
      0  OK or WARNING: each is fresh
      1  the vault, or the folder of a node in it, cannot be read
      2  usage or fleet.yaml wrong
      4  the newest backup of a node is too old or missing, or a place is too far behind
    """
    # Imported late: it loads everything that drives a node, and commands that only read the vault start faster without.
    from a0backup.nodes.status import fleet_status

    rows = fleet_status(load_fleet(fleet_path), datetime.now(UTC))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        for line in status_lines(rows):
            click.echo(line)
    if any(row.error for row in rows):
        return ExitCode.FAILED
    return ExitCode.DAMAGED if any(row.fresh is False for row in rows) else ExitCode.OK
