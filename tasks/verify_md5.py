"""Compare the retrieved bytes with the md5 that the node named, and read what is in them in the same pass."""

from prefect.client.schemas.objects import State

from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from a0backup.replies import Found
from tasks.shared_password import shared_password
from tasks.step import begin, ended, step


@step(name="verify-md5", task_run_name="verify-{run.kind}-{run.node.name}")
async def verify_md5(run: BackupRun, found: Found) -> State[Done]:
    """Fail with Md5MismatchError unless the retrieved bytes are exactly the node's.

    With a password at hand the contents are read in the same pass; inspect_contents says what came of that.
    """
    begin(run.node.name, run.kind, "verify")
    return ended(run.node.name, run.kind, "verify", await run.verify(found, shared_password))
