"""`a0backup serve` and `a0backup demo`: the whole pipeline on one machine."""

import sys
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
    """Serve on this machine until interrupted: a server with pages, the schedules of prefect.yaml, and a worker.

    Registers first what the engine must hold, as `a0backup engine register` does. The prefect.yaml beside the fleet
    file counts, else the one that came with this. `a0backup run` and `check` use this server while it runs.
    """
    from deployments.serve import serve as serve_all

    serve_all(load_fleet(fleet_path), port, asked=ask_for_block if sys.stdin.isatty() else None)
    return ExitCode.OK


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the demo's vault and fleet.yaml; a new temporary directory if not given.",
)
def demo(directory: Path | None) -> int:
    """Start a simulated three-node fleet, back it up for real, and show what came of it. Needs no appliance."""
    from deployments.demo import run_demo

    return run_demo(directory)
