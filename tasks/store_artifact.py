"""Store the verified artifact in the vault."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from a0backup.replies import Found
from tasks.step import begin, ended, step


@step(name="store-artifact", task_run_name="store-{run.kind}-{run.node.name}")
async def store_artifact(run: BackupRun, found: Found, *, ours: bool) -> State[Done]:
    """Store the artifact durably, read it back, write its manifest last; Cached where the vault has it already."""
    begin(run.node.name, run.kind, "store")
    return ended(run.node.name, run.kind, "store", await run.store(found, ours=ours))
