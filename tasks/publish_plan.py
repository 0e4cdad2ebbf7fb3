"""What is to be done with a node, on the run's page, before it is confirmed."""

from prefect.artifacts import acreate_markdown_artifact

from a0backup.enrolment import Plan
from tasks.step import step


@step(name="publish-plan", task_run_name="publish-plan")
async def publish_plan(plan: Plan) -> None:
    """Put on the run's page what was seen of the node and what is to be done with it."""
    await acreate_markdown_artifact(
        key="enrolment-plan",
        markdown=plan.markdown(),
        description="What was seen of the node, and what is done with it once that is confirmed.",
    )
