"""The report on the run's page: a Markdown artifact to read, a table artifact to sort."""

from collections.abc import Sequence

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact

from a0backup.nodes.status import KindStatus
from a0backup.places.catching_up import CaughtUp
from a0backup.places.verifying import Finding as PlaceFinding
from a0backup.report.check_report import check_markdown, check_rows
from a0backup.report.drill_report import drill_rows
from a0backup.report.outcomes import Finding, Outcome
from a0backup.report.places_report import copy_rows, verify_rows
from a0backup.report.run_report import markdown, rows
from a0backup.report.status_report import status_rows
from a0backup.report.warnings import RunWarning
from a0backup.upkeep.drill import DrillResult
from tasks.engine_task import engine_task


@engine_task(name="publish-report", task_run_name="publish-report")
async def publish_report(outcomes: list[Outcome], fleet: str, warnings: Sequence[RunWarning]) -> None:
    """Publish on the run's page how every node's backup ended, and the run's *warnings*."""
    await acreate_markdown_artifact(
        key="backup-report",
        markdown=markdown(outcomes, fleet=fleet, warnings=warnings),
        description="How every node's backup ended, and why where it did not end well.",
    )
    await acreate_table_artifact(
        key="backup-table",
        table=rows(outcomes),
        description="Node, outcome, size, md5, duration and artifact id.",
    )


@engine_task(name="publish-findings", task_run_name="publish-findings")
async def publish_findings(
    findings: list[Finding], fleet: str, warnings: Sequence[RunWarning], notes: Sequence[str]
) -> None:
    """Publish on the run's page what the check found on every node, and the fleet's *warnings* and *notes*."""
    await acreate_markdown_artifact(
        key="check-report",
        markdown=check_markdown(findings, fleet=fleet, warnings=warnings, notes=notes),
        description="What is on every node, what the next run would do, and what is in its way.",
    )
    await acreate_table_artifact(
        key="check-table",
        table=check_rows(findings),
        description="Node, status, and what the next run would do.",
    )


@engine_task(name="publish-copies", task_run_name="publish-copies")
async def publish_copies(results: Sequence[CaughtUp]) -> None:
    """Publish on the run's page what each place holds."""
    await acreate_table_artifact(
        key="copies-table", table=copy_rows(results), description="Place, and how many artifacts it holds or lacks."
    )


@engine_task(name="publish-verification", task_run_name="publish-verification")
async def publish_verification(findings: Sequence[PlaceFinding]) -> None:
    """Publish on the run's page what was read in each place, and what is not as it should be."""
    await acreate_table_artifact(
        key="verification-table", table=verify_rows(findings), description="Place, artifact, and what was found."
    )


@engine_task(name="publish-drills", task_run_name="publish-drills")
async def publish_drills(results: Sequence[DrillResult]) -> None:
    """Publish on the run's page how the drill of each artifact ended."""
    await acreate_table_artifact(
        key="drill-table", table=drill_rows(results), description="Artifact, result, and what was read or why not."
    )


@engine_task(name="publish-status", task_run_name="publish-status")
async def publish_status(statuses: Sequence[KindStatus]) -> None:
    """Publish on the run's page how old the newest backup of each node and kind is."""
    await acreate_table_artifact(
        key="freshness-table", table=status_rows(statuses), description="Node, kind, age, and why it is not fresh."
    )


@engine_task(name="publish-retention", task_run_name="publish-retention")
async def publish_retention(rows: list[dict[str, object]]) -> None:
    """Publish on the run's page what becomes of each artifact, and why."""
    await acreate_table_artifact(
        key="retention-table",
        table=rows,
        description="Each artifact, whether it is kept or removed, and every reason.",
    )
