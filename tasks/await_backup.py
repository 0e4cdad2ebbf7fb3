"""Poll `a0cli backup-status` until the backup is there: each poll is a Prefect retry, seen as AwaitingRetry."""

from collections.abc import Coroutine
from typing import Any

from prefect.tasks import Task

from a0backup.backup_run import BackupRun
from a0backup.fleet import Polling
from a0backup.replies import Status
from tasks.step import JITTER, begin, step, transient


@step(
    name="await-backup",
    task_run_name="await-{run.kind}-{run.node.name}",
    retry_jitter_factor=JITTER,
    retry_condition_fn=transient,
)
async def await_backup(run: BackupRun) -> Status:
    """Return the finished backup, or that there is none any more; what may pass is asked again, until the deadline."""
    begin(run.node.name, run.kind, "await")
    return await run.poll()


def awaiting(polling: Polling) -> Task[[BackupRun], Coroutine[Any, Any, Status]]:
    """Return await_backup with the intervals of fleet.yaml; the deadline itself is kept by the step."""
    return await_backup.with_options(retries=polling.retries(), retry_delay_seconds=polling.delays())
