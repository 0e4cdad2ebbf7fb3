"""When a run was due, and whether a later run of its schedule takes its place."""

from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound

# When the command began that runs the flow in its own process: its engine may have taken a while to start.
COMMAND_BEGAN: ContextVar[datetime | None] = ContextVar("command_began", default=None)
# A run starts some seconds after its time: workers poll, and the process has to start.
LATE = timedelta(minutes=1)
TO_COME = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)


async def due(fleet_run: str = "") -> datetime:
    """Return when this run was due: the start of its command, the time of its schedule, or when it was created.

    A node's run of a night was due when the night, the run *fleet_run*, was.
    """
    if (began := COMMAND_BEGAN.get()) is not None:
        return began
    run = _this_run()
    if fleet_run:
        async with get_client() as client:
            # One that does not exist was given by a person: this run stands for itself.
            with suppress(ObjectNotFound):
                run = await client.read_flow_run(UUID(fleet_run))
    return run.expected_start_time or datetime.now(UTC)


async def later_run() -> FlowRun | None:
    """Return the newest run of the same schedule that is due as well and has not ended, if this run is late.

    After a stop of the worker, each missed time of a schedule has a run: one of them is enough.
    """
    run, now = _this_run(), datetime.now(UTC)
    if not run.auto_scheduled or run.deployment_id is None or run.expected_start_time is None:
        return None
    if now - run.expected_start_time < LATE:
        return None
    async with get_client() as client:
        others = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[run.deployment_id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TO_COME))),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                    {"after_": run.expected_start_time, "before_": now}
                ),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    return next((each for each in others if _does_the_same(each, run)), None)


def _does_the_same(other: FlowRun, run: FlowRun) -> bool:
    assert run.expected_start_time is not None, "checked by the caller"
    return (
        other.auto_scheduled
        and other.parameters == run.parameters
        and other.expected_start_time is not None
        and other.expected_start_time > run.expected_start_time
    )


def _this_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None, "called by a flow"
    return context.flow_run
