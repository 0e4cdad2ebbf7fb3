"""`drills` in fleet.yaml: how often stored backups are to be proven, and what of them may be missing."""

from typing import Annotated

from pydantic import Field

from a0backup.fleet.fields import PercentBetween, Strict
from a0backup.fleet.freshness import BetweenOrOff


class Drills(Strict):
    """How often stored backups are to be proven, and by how much a backup may be smaller than the one before."""

    max_age: Annotated[float | None, BetweenOrOff("1d", "3650d")] = Field(
        default="90d",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="The maximum age of the last drill of each node and kind; `a0backup status` warns of an older one. "
        "`off`: it never does.",
    )
    shrink: Annotated[float, PercentBetween(1, 100)] = Field(
        default="30%",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="By how much a backup, one of its largest files or a collection may be smaller than in the backup "
        "before; beyond that a run, a drill and `a0backup status` warn.",
    )
