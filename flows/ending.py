"""What all flows that back up share: the choice they offer, and how they end."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from prefect.logging import get_run_logger

from a0backup.backup.loop import NodeOutcomes
from a0backup.errors import A0BackupError, RunFailedError
from a0backup.files import in_thread
from a0backup.fleet.models import Existing, Fleet
from a0backup.nodes.check import fleet_warnings
from a0backup.report.outcomes import Outcome
from a0backup.report.progress import Ended, Warned, tell
from a0backup.report.run_report import summary
from a0backup.report.warnings import RunWarning
from tasks.publish import publish_report

# Flat and without None: the form in the UI then offers the choices as they are.
ExistingChoice = Literal["as in fleet.yaml", "preserve", "replace", "fail"]


def chosen_policy(choice: ExistingChoice) -> Existing | None:
    """Return the policy chosen for this run alone, or None where fleet.yaml decides."""
    return None if choice == "as in fleet.yaml" else choice


async def warned_of(fleet: Fleet) -> list[RunWarning]:
    """Write the warnings about *fleet* to the run's log and the terminal, and return them."""
    warnings = [RunWarning(text) for text in await in_thread(fleet_warnings, fleet)]
    warn(warnings)
    return warnings


def warn(warnings: Iterable[RunWarning]) -> None:
    """Write *warnings* to the run's log and the terminal."""
    for warning in warnings:
        get_run_logger().warning("%s", warning)
        tell(Warned(warning))


def log_failure(error: Exception) -> None:
    """Log what stopped a backup, with a traceback only if the error is unforeseen."""
    get_run_logger().error("%s", error, exc_info=None if isinstance(error, A0BackupError) else error)


def tell_ended(outcomes: NodeOutcomes) -> None:
    """Tell all watchers how the backups of a node ended, and log its warnings."""
    for outcome in outcomes.all:
        tell(Ended(outcome))
    warn(outcomes.warnings)


async def conclude(nodes: Sequence[NodeOutcomes], fleet: Fleet, warnings: Sequence[RunWarning]) -> list[Outcome]:
    """Publish how all *nodes* ended, with the *warnings* of the fleet and of each node; return all outcomes.

    Raise RunFailedError, which names each node that is not stored and why.
    """
    outcomes = [outcome for node in nodes for outcome in node.all]
    all_warnings = [*warnings, *(warning for node in nodes for warning in node.warnings)]
    await publish_report(outcomes, fleet=str(fleet.path), warnings=all_warnings)
    failures = summary(outcomes)
    if failures:
        raise RunFailedError(len(outcomes), failures)
    return outcomes


def now() -> datetime:
    """Return the current time in UTC, for the name of a run."""
    return datetime.now(UTC)
