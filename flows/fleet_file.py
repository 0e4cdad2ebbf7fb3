"""The fleet file of a run."""

from pathlib import Path

from prefect import runtime

from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.fleet.trusted import folders, load_trusted


def fleet_of_run(path: Path) -> Fleet:
    """Return the fleet in the file that a run names.

    A run of a deployment was perhaps started by somebody who has no other access to this machine.
    Raise FleetFileError.
    """
    return load_trusted(path, folders()) if runtime.deployment.id else load_fleet(path)
