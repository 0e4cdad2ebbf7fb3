"""Prove that a stored artifact opens."""

from prefect.client.schemas.objects import State

from a0backup.enrolment import prove
from a0backup.fleet import Fleet
from a0backup.node_session import Done
from tasks.shared_password import shared_password
from tasks.step import begin, ended, step


@step(name="prove-artifact", task_run_name="drill-{node}")
async def prove_artifact(node: str, artifact_id: str, fleet: Fleet) -> State[Done]:
    """Open the artifact with the shared password and read it to its end; Cached where its own run did, sealed since."""
    begin(node, "", "drill")
    return ended(node, "", "drill", await prove(fleet, artifact_id, shared_password))
