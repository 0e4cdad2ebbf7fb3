"""`a0cli backup-status`: what the node holds."""

from a0backup.backup_run import BackupRun
from a0backup.replies import Status
from tasks.step import begin, reading_step


@reading_step(name="backup-status", task_run_name="{run.kind}-status-{run.node.name}")
async def backup_status(run: BackupRun) -> Status:
    """Return what the node holds: nothing, a backup in progress, or a finished one with name and md5."""
    begin(run.node.name, run.kind, "status")
    return await run.status()
