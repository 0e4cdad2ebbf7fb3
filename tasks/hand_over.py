"""What a node's run reports to the run that started it, perhaps on another machine: an artifact in the engine."""

from collections.abc import Sequence
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from a0backup.report.outcomes import Outcome
from a0backup.report.warnings import RunWarning
from tasks.engine_task import engine_task

KEY = "outcomes-for-the-fleet"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class HandedOver:
    """How a node's backups ended, and the warnings about them."""

    outcomes: list[Outcome]
    warnings: list[RunWarning]


_HANDED_OVER = TypeAdapter(HandedOver)


@engine_task(name="hand-over", task_run_name="hand-over")
async def hand_over(outcomes: Sequence[Outcome], warnings: Sequence[RunWarning]) -> None:
    """Publish the outcomes for the run that started this one."""
    said = HandedOver(list(outcomes), list(warnings))
    # The UI does not know this type and shows it verbatim. As Markdown, text from a node could abuse it.
    await Artifact(
        type="a0backup-outcomes",
        key=KEY,
        description="How it ended, for the run of the whole fleet.",
        data=_HANDED_OVER.dump_python(said, mode="json"),
    ).acreate()


async def handed_over(client: PrefectClient, flow_run: UUID) -> HandedOver | None:
    """Return what the run with that id reported, or None where it reported nothing."""
    found = await client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]), key=ArtifactFilterKey(any_=[KEY])
        ),
        limit=1,
    )
    return _HANDED_OVER.validate_json(str(found[0].data)) if found else None
