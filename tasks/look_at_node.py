"""See whether a node has the backup role and what is on it, before it is put into service."""

from prefect.logging import get_run_logger

from a0backup.enrolment import Seen, look
from a0backup.node_session import NodeSession
from tasks.step import begin, reading_step


@reading_step(name="look-at-node", task_run_name="look-at-{session.node.name}")
async def look_at_node(session: NodeSession) -> Seen:
    """Return what is seen of the node, whose commands are known and which answered."""
    begin(session.node.name, "", "look")
    seen = await look(session)
    get_run_logger().info("%s: %s", session.node.name, seen)
    return seen
