"""`a0cli backup-delete`, and the status that confirms it."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from a0backup.replies import Found, Status
from tasks.step import begin, ended, reading_step


@reading_step(name="backup-delete", task_run_name="delete-{run.kind}-{run.node.name}")
async def backup_delete(run: BackupRun, found: Found) -> State[Done]:
    """Delete the backup on the node, if the node still shows just that.

    What is retried is that status alone: how the deletion itself went is asked by confirm_delete, never tried again.
    """
    begin(run.node.name, run.kind, "delete")
    return ended(run.node.name, run.kind, "delete", await run.delete(found))


@reading_step(name="confirm-delete", task_run_name="confirm-delete-{run.kind}-{run.node.name}")
async def confirm_delete(run: BackupRun, found: Found) -> Status:
    """Return the status, which shows the deleted backup no more; fail with DeleteNotConfirmedError if it still does."""
    begin(run.node.name, run.kind, "confirm-delete")
    return await run.confirm_deleted(found)
