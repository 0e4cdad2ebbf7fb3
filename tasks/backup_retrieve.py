"""`a0cli backup-retrieve`: have the backup's bytes here."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from a0backup.replies import Found
from tasks.step import begin, ended, step


@step(name="backup-retrieve", task_run_name="retrieve-{run.kind}-{run.node.name}")
async def backup_retrieve(run: BackupRun, found: Found) -> State[Done]:
    """Retrieve the backup into the private directory; Cached where its verified bytes are here already.

    Not retried by the engine: how often to retrieve again, a mismatch of the md5 included, is `retrieve_attempts`.
    """
    begin(run.node.name, run.kind, "retrieve")
    return ended(run.node.name, run.kind, "retrieve", await run.retrieve(found))
