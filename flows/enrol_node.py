"""Put a new node into service: look at it, have a person confirm, give it the backup role, prove its first backup.

While it waits for the confirmation, the run holds no lock and changes nothing on the node. The engine
caches nothing (see backup_node). Blocks: the Secret block named by `password.secret_block` in
fleet.yaml, if any.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed
from pydantic import Field

from a0backup.backup.session import NodeSession, Run, open_node
from a0backup.errors import EnrolmentError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet, Node
from a0backup.nodes.enrolment import Device, Plan, Role, give_role, look
from a0backup.report.outcomes import Outcome
from flows.backup_node import backed_up
from flows.ending import conclude, warned_of
from flows.fleet_file import fleet_of_run
from tasks.enrolment import prove_artifact, publish_plan
from tasks.progress import progress_published
from tasks.secret_block import secret_block
from tasks.shared_password import shared_password
from tasks.slots import slots
from tasks.steps import take_step

CONFIRMED_WITHIN = 3600  # seconds; the person who started the run is still present
LOOKS_EVERY = 5  # seconds between two checks for the confirmation


class Confirmation(RunInput):
    """The confirmation that a person must give before anything is changed on the node."""

    decision: Literal["go ahead", "change nothing"] = Field(
        title="Decision",
        description="go ahead: do what stands above. change nothing: end this run and leave the node as it is.",
    )


@flow(
    name="enrol-node",
    flow_run_name="enrol-{node}",
    description=(
        "Put a new node into service: look at it, ask for a confirmation here, give it the backup role, make its first"
        " backup and prove that it opens."
    ),
    persist_result=False,
)
async def enrol_node(node: str, device: Device, fleet: Path = Path("fleet.yaml"), force: bool = False) -> State[None]:
    """Put one node of a fleet file into service.

    Args:
        node: The node's name in the fleet file, such as a0-1.
        device: The device on the node that will hold its backups and nothing else, such as /dev/sdb.
        fleet: The fleet file, as an absolute path on the machine that runs this.
        force: Give the role even if a backup folder exists on the node; the contents of that folder are lost.
    """
    settings = fleet_of_run(fleet)
    [chosen] = settings.chosen([node])
    role = Role(device, force)

    async with connected(chosen, settings) as session:
        seen = await look(session)
        get_run_logger().info("%s: %s", node, seen)
    plan = Plan(chosen, role, seen)
    await publish_plan(plan)

    if not await confirmed(plan):
        return Cancelled(message=f"{node}: cancelled at the confirmation; nothing was changed on it")

    async with connected(chosen, settings) as session:
        await give_role(session, role, confirmed=seen)
    for outcome in await first_backup(chosen, settings):
        await prove_artifact(node, outcome.id, settings)
    return Completed(message=f"{node} is in service: its first backup is stored and proven to open")


@asynccontextmanager
async def connected(node: Node, fleet: Fleet) -> AsyncIterator[NodeSession]:
    """Hold the node's lock inside the block; by then the node has answered and listed its commands."""
    run = await in_thread(Run.begin, fleet, [node], id=str(runtime.flow_run.id), blocks=secret_block)
    async with open_node(run, node, take=take_step, shared=shared_password) as session:
        await session.update_commands()
        await session.ping()
        yield session


async def confirmed(plan: Plan) -> bool:
    """Return whether a person confirms in the UI. Raise EnrolmentError where nobody answers within an hour."""
    minutes = f"{CONFIRMED_WITHIN / 60:.0f} minutes"
    get_run_logger().info("%s: to be confirmed within %s: press Resume on this page", plan.node.name, minutes)
    asked = Confirmation.with_initial_data(description=plan.question())
    # A unique key: Prefect's own counts from one, so a retry would find the answer to the run's first try.
    key = f"confirmation-{uuid.uuid4()}"
    try:
        async with asyncio.timeout(CONFIRMED_WITHIN):
            # The engine's deadline must come later: when it passes, the engine's message replaces ours.
            answer = await apause_flow_run(
                wait_for_input=asked, timeout=CONFIRMED_WITHIN + 60, poll_interval=LOOKS_EVERY, key=key
            )
    except TimeoutError:
        reason = f"nobody confirmed it within {minutes}; nothing was changed on the node"
        raise EnrolmentError(plan.node.name, reason, "start it again, and confirm it on the run's page") from None
    return answer.decision == "go ahead"


async def first_backup(node: Node, fleet: Fleet) -> list[Outcome]:
    """Return the stored artifacts of the node's first backup, one per kind. Raise RunFailedError where one failed."""
    run = await in_thread(Run.begin, fleet, [node], id=str(runtime.flow_run.id), blocks=secret_block)
    warnings = await warned_of(fleet)
    async with progress_published([node]), slots(node.name, deadline=fleet.lock_deadline):
        outcomes = await backed_up(node, run)
    return await conclude([outcomes], fleet, warnings)
