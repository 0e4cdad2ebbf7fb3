"""See that the artifact can be opened and read to its end."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from a0backup.replies import Found
from tasks.shared_password import shared_password
from tasks.step import begin, ended, step


@step(name="inspect-contents", task_run_name="inspect-{run.kind}-{run.node.name}")
async def inspect_contents(run: BackupRun, found: Found, *, ours: bool) -> State[Done]:
    """Fail with ContentsError where the backup that this run started cannot be opened and read to its end."""
    begin(run.node.name, run.kind, "inspect")
    return ended(run.node.name, run.kind, "inspect", await run.inspect(found, shared_password, ours=ours))
