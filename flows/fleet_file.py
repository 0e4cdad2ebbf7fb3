"""The fleet file of a run."""

from pathlib import Path

from prefect import runtime

from a0backup.errors import FleetFileError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.fleet.trusted import folders, load_trusted
from a0backup.limits import keep_memory_private


def fleet_of_run(path: Path) -> Fleet:
    """Return the fleet in the file that a run names.

    A run of a deployment was perhaps started by somebody who has no other access to this machine.
    Raise FleetFileError.
    """
    # Its environment holds the password from the start.
    keep_memory_private()
    if not runtime.deployment.id:
        return load_fleet(path)
    try:
        return load_trusted(path, folders())
    except FleetFileError as error:
        # `prefect deploy` makes runs start in the folder of the fleet file, where a relative path is right.
        if path.is_absolute() or Path.cwd() != Path("/"):
            raise
        where = "the path is relative to /, where runs start: name the fleet file by its absolute path"
        raise FleetFileError(str(path), [*error.problems, where]) from None
