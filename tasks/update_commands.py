"""`a0cli update-commands`: ask the node which commands it takes."""

from prefect.client.schemas.objects import State

from a0backup.node_session import Done, NodeSession
from tasks.shared_password import shared_password
from tasks.step import begin, ended, reading_step


@reading_step(name="update-commands", task_run_name="update-commands-{session.node.name}")
async def update_commands(session: NodeSession) -> State[Done]:
    """Make the node's commands known in the private directory; without it a0cli has none but its local ones."""
    begin(session.node.name, "", "update-commands")
    return ended(session.node.name, "", "update-commands", await session.update_commands(shared_password))
