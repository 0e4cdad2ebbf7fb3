"""The read-only preflight: what is on every node, what the next run would do, and what would be in its way.

Nothing is started, deleted or stored. Nothing is cached. Blocks: the Secret block that `password.secret_block` in
fleet.yaml names, where it names one; it is looked up, to see that it is there.
"""

import asyncio
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from a0backup import password
from a0backup.check import check_node
from a0backup.errors import CheckFailedError, PasswordError
from a0backup.fleet import Existing, Fleet, Node
from a0backup.progress import Checked, tell
from a0backup.report import Finding
from flows.backup_node import ExistingChoice, FleetFile
from tasks.publish_report import publish_findings
from tasks.start_backup import secret_block
from tasks.step import step


@flow(
    name="check-fleet",
    flow_run_name="check-fleet",
    description="Look at every node without touching it: does it answer, what is on it, what would a run do.",
    persist_result=False,
)
async def check_fleet(
    fleet: FleetFile = Path("fleet.yaml"),
    nodes: Annotated[
        list[str], Field(title="Nodes", description="Names of the nodes to look at; none named means all of them.")
    ] = [],  # noqa: B006 - Prefect shows the default in its form; it is never changed
    existing: ExistingChoice = "as in fleet.yaml",
) -> list[Finding]:
    """Check the nodes of a fleet file."""
    settings = Fleet.load(fleet)
    chosen = settings.chosen(nodes)
    slots = asyncio.Semaphore(settings.max_parallel)
    said: Existing | None = None if existing == "as in fleet.yaml" else existing

    async def check_in_turn(node: Node) -> Finding:
        async with slots:
            state = await check_one_node(node, settings, said)
            finding: Finding = await state.aresult(raise_on_failure=False)  # type: ignore[assignment]  # never an error
            return finding

    problems = await password_problems(settings)
    findings = list(await asyncio.gather(*(check_in_turn(node) for node in chosen)))
    await publish_findings(findings, fleet=str(fleet))
    problems += [f"{finding.node}: {finding.problems[0]}" for finding in findings if not finding.well]
    if problems:
        raise CheckFailedError(problems)
    return findings


@step(name="check-node", task_run_name="check-{node.name}")
async def check_one_node(node: Node, fleet: Fleet, existing: Existing | None) -> State[Finding]:
    """Look at one node; fail if a backup of it could not be made now."""
    finding = await check_node(fleet, node, existing=existing)
    tell(Checked(finding))
    if finding.well:
        return Completed(message=finding.status, data=finding)
    return Failed(message="; ".join(finding.problems), data=finding)


async def password_problems(fleet: Fleet) -> list[str]:
    """Return what keeps a run from having its password; the password itself is looked at and forgotten."""
    try:
        await password.load(fleet.password, block=secret_block)
    except PasswordError as error:
        return [str(error)]
    return []
