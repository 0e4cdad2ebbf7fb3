"""`a0cli backup PASSWORD`: have the node start a backup."""

from prefect.blocks.system import Secret
from prefect.client.schemas.objects import State

from a0backup import password
from a0backup.backup_run import BackupRun
from a0backup.node_session import Done
from tasks.step import begin, ended, step


async def secret_block(name: str) -> str:
    """Return the value of the Prefect Secret block *name*."""
    block: Secret[str] = await Secret.aload(name)
    return str(block.get())


@step(name="start-backup", task_run_name="start-{run.kind}-{run.node.name}")
async def start_backup(run: BackupRun) -> State[Done]:
    """Have the node start a backup. Never repeated: what it did is asked of the status that follows."""
    begin(run.node.name, run.kind, "start")
    # Loaded here and passed on at once: a password is never a parameter, a result or a log line of the engine.
    return ended(
        run.node.name,
        run.kind,
        "start",
        await run.start(await password.load(run.fleet.password, block=secret_block)),
    )
