"""`a0backup serve` and `a0backup demo`: the whole pipeline on one machine."""

import sys
from functools import partial
from pathlib import Path

import click

from a0backup.cli.engine import ask_for_block
from a0backup.cli.options import fleet_option
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet


@click.command()
@fleet_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4200,
    show_default=True,
    help="Port on 127.0.0.1; 0 picks a free one.",
)
def serve(fleet_path: Path, port: int) -> int:
    """Run a server, the schedules and a worker on this machine.

    Runs until interrupted. First registers what the engine must hold, as `a0backup engine register` does. Uses the
    prefect.yaml beside the fleet file, else the one that is shipped with a0backup. `a0backup run` and `check` use this
    server while it runs. Prints the address of the pages and the file with the login.

    \b
    Exit codes:
      1    the server or the worker failed
      2    usage or fleet.yaml wrong
      130  interrupted; the next start resumes the runs that a schedule started
    """
    from deployments.serve import serve as serve_all

    fleet = load_fleet(fleet_path)
    serve_all(fleet, port, asked=partial(ask_for_block, fleet) if sys.stdin.isatty() else None)
    return ExitCode.OK


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the demo's vault and fleet.yaml; a new temporary folder if not given.",
)
def demo(directory: Path | None) -> int:
    """Back up a simulated three-node fleet, without an appliance.

    Starts the simulated nodes, backs them up for real, and prints the outcomes and what to inspect.

    The exit codes are those of `a0backup run`.
    """
    from deployments.demo import run_demo

    return run_demo(directory)
