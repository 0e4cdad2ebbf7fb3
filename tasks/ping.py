"""`a0cli ping`: see that the node answers."""

from prefect.client.schemas.objects import State

from a0backup.node_session import Done, NodeSession
from tasks.step import begin, ended, reading_step


@reading_step(name="ping", task_run_name="ping-{session.node.name}")
async def ping(session: NodeSession) -> State[Done]:
    """See that the node answers PONG, and which commands it offers."""
    begin(session.node.name, "", "ping")
    return ended(session.node.name, "", "ping", await session.ping())
