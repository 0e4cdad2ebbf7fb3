"""`a0cli set-as-backup DEVICE [true]`: give a node the backup role."""

from prefect.client.schemas.objects import State

from a0backup.enrolment import Role, Seen, give_role
from a0backup.node_session import Done, NodeSession
from tasks.step import begin, ended, step


@step(name="set-as-backup", task_run_name="set-as-backup-{session.node.name}")
async def set_as_backup(session: NodeSession, role: Role, confirmed: Seen) -> State[Done]:
    """Give the node the backup role; Cached where it has it already. Never repeated: the node is asked what came of it.

    It is looked at again first, and left alone where it is not what was confirmed.
    """
    begin(session.node.name, "", "set-as-backup")
    return ended(session.node.name, "", "set-as-backup", await give_role(session, role, confirmed=confirmed))
