"""`a0cli backup PASSWORD`: have the node start a backup."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from tasks.shared_password import shared_password
from tasks.step import begin, ended, step


@step(name="start-backup", task_run_name="start-{run.kind}-{run.node.name}")
async def start_backup(run: BackupRun) -> State[Done]:
    """Have the node start a backup. Never repeated: what it did is asked of the status that follows."""
    begin(run.node.name, run.kind, "start")
    return ended(run.node.name, run.kind, "start", await run.start(shared_password))
