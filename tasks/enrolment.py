"""What is asked, and what is proven, when a node is put into service."""

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from a0backup.backup.steps import Done, StepName
from a0backup.fleet.models import Fleet
from a0backup.nodes.enrolment import Plan, prove
from a0backup.report.progress import Step, tell
from tasks.engine_task import engine_task
from tasks.shared_password import shared_password


@engine_task(name="publish-plan", task_run_name="publish-plan")
async def publish_plan(plan: Plan) -> None:
    """Put on the run's page what was seen of the node and what is to be done with it, before it is confirmed."""
    await acreate_markdown_artifact(
        key="enrolment-plan",
        markdown=plan.markdown(),
        description="What was seen of the node, and what is done with it once that is confirmed.",
    )


@engine_task(name=StepName.DRILL, task_run_name="drill-{node}")
async def prove_artifact(node: str, artifact_id: str, fleet: Fleet) -> State[Done]:
    """Open the artifact with the shared password and read it to its end; Cached where its own run did, sealed since."""
    tell(Step(node, "", StepName.DRILL))
    done = await prove(fleet, artifact_id, shared_password)
    tell(Step(node, "", StepName.DRILL, done.text))
    return Completed(name="Cached" if done.cached else "Completed", message=done.text, data=done)
