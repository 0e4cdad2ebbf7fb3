"""The tasks of an enrolment: publish the plan to confirm, and prove the first artifacts."""

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State

from a0backup.backup.steps import Done, StepName
from a0backup.fleet.models import Fleet
from a0backup.nodes.enrolment import Plan, prove
from a0backup.report.progress import Step, tell
from tasks.engine_task import engine_task
from tasks.shared_password import shared_password
from tasks.steps import completed


@engine_task(name="publish-plan", task_run_name="publish-plan")
async def publish_plan(plan: Plan) -> None:
    """Publish on the run's page what was seen of the node and what will be done with it, before the confirmation."""
    await acreate_markdown_artifact(
        key="enrolment-plan",
        markdown=plan.markdown(),
        description="What was seen of the node, and what is done with it once that is confirmed.",
    )


@engine_task(name=StepName.DRILL, task_run_name="drill-{node}")
async def prove_artifact(node: str, artifact_id: str, fleet: Fleet) -> State[Done]:
    """Open the artifact with the shared password and read it to its end.

    Cached where the run that made the artifact did so, as its password has been sealed since.
    """
    tell(Step(node, "", StepName.DRILL))
    done = await prove(fleet, artifact_id, shared_password)
    tell(Step(node, "", StepName.DRILL, done.text))
    return completed(done)
