"""One node's backup as a run of its own, on whichever worker takes it; the vault and the engine are all that is shared.

The run that started it waits for its end, and starts another where its machine died. The engine tells that after some
minutes (Crashed), the vault sooner: nobody holds the lock of the node that a run is at work on. What is settled by then
is not made twice: all runs of a node work under the id of the run that started them.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from a0backup.errors import EngineError
from a0backup.files import in_thread
from a0backup.fleet import Fleet, Node
from a0backup.lock import is_held
from a0backup.progress import Step, tell
from a0backup.vault import Vault
from flows.backup_node import ExistingChoice, NodeOutcomes, log_failure, note_failure_of_the_rest
from tasks.hand_over import HandedOver, handed_over

OF_FLEET = "backup-node/of-fleet"
RUNS = 3  # of one node, where the machine under each of them dies
POLL = 5.0
# Longer than a run takes from its beginning to its node's lock, and from letting go of that to its end. Where it was
# slower, no harm is done: the lock keeps the second run off, and each takes what the other has stored for its outcome.
GONE_AFTER = 60.0
# From a worker's taking it up to its first sign; an image may have to be fetched meanwhile.
STARTS_WITHIN = 600.0
CALLED_OFF_WITHIN = 5.0


async def outcomes_elsewhere(node: Node, *, fleet: Fleet, existing: ExistingChoice) -> NodeOutcomes:
    """Return how the node's backups ended, also where no run of it came to an end."""
    outcomes = NodeOutcomes()
    start = time.monotonic()
    try:
        said = await run_elsewhere(node, fleet, existing)
        outcomes.all, outcomes.warnings = said.outcomes, said.warnings
    except Exception as error:  # noqa: BLE001 - whatever the engine raises must not stop the others
        log_failure(error)
        note_failure_of_the_rest(outcomes, node, fleet, error, "engine", seconds=time.monotonic() - start)
    outcomes.tell()
    return outcomes


async def run_elsewhere(node: Node, fleet: Fleet, existing: ExistingChoice) -> HandedOver:
    """Return how the backups of *node* ended in a run made from the deployment `backup-node/of-fleet`.

    Raise EngineError where no worker takes it up, or no run of it comes to an end of its own.
    """
    parameters = {"node": node.name, "fleet": str(fleet.path), "existing": existing}
    last = ""
    async with get_client() as client:
        for _ in range(RUNS):
            run = await _start(parameters)
            try:
                state = await _end_of(client, run, node, fleet)
            except asyncio.CancelledError:
                await asyncio.shield(_call_off(client, run.id))
                raise
            if (said := await handed_over(client, run.id)) is not None:
                return said
            last = f"{state.name}: {state.message or 'no reason given'}"
            if state.type is not StateType.CRASHED:
                raise EngineError(f"the run {run.name} ended without a backup: {last}", f"see its log: run {run.id}")
    raise EngineError(
        f"{RUNS} runs for the node ended without a word, the last as {last}", "see the logs of the workers' machines"
    )


async def _start(parameters: Mapping[str, str]) -> FlowRun:
    try:
        return await arun_deployment(
            OF_FLEET, parameters=dict(parameters), flow_run_name=f"backup-{parameters['node']}", timeout=0
        )
    except ObjectNotFound:
        raise EngineError(
            f"there is no deployment {OF_FLEET}", "`python -m deployments.register` makes what `workers` needs"
        ) from None


async def _end_of(client: PrefectClient, run: FlowRun, node: Node, fleet: Fleet) -> State:
    """Return the final state of *run*: its own, or the one that it is given where it can come to no end by itself."""
    lock = Vault(fleet.vault).folder(node.name) / "lock"
    shown = ""
    since = last_alive = answered = time.monotonic()
    while True:
        try:
            state = (await client.read_flow_run(run.id)).state
        except httpx.HTTPError:
            # The run goes on without the engine, and so does the wait for it: as long as for a lock.
            if time.monotonic() - answered > fleet.lock_deadline:
                raise
            await asyncio.sleep(POLL)
            continue
        answered = time.monotonic()
        assert state is not None, "a run has had a state since it was made"
        if state.is_final():
            return state
        if state.name != shown:
            shown, since = str(state.name), time.monotonic()
            tell(Step(node.name, "", "elsewhere", f"{shown.lower()}, as run {run.name}"))
        for_so_long = time.monotonic() - since
        if state.type is StateType.SCHEDULED and for_so_long > fleet.lock_deadline:
            await _call_off(client, run.id)
            raise EngineError(
                f"no worker took up the run {run.name} within {for_so_long:.0f} s", "is a worker of the pool running?"
            )
        if state.type is StateType.PENDING and for_so_long > STARTS_WITHIN:
            return await _crash(client, run.id, f"its worker has not started it within {STARTS_WITHIN:.0f} s")
        if state.type is not StateType.RUNNING or await in_thread(is_held, lock):
            last_alive = time.monotonic()
        elif time.monotonic() - last_alive > GONE_AFTER:
            return await _crash(client, run.id, "its process is gone: nobody holds the node's lock")
        await asyncio.sleep(POLL)


async def _crash(client: PrefectClient, run: UUID, why: str) -> State:
    answer: OrchestrationResult[Any] = await client.set_flow_run_state(
        run, Crashed(message=f"{why}; the night starts another for its node")
    )
    # The engine may have heard of its end meanwhile.
    return answer.state if answer.state is not None and answer.state.is_final() else Crashed(message=why)


async def _call_off(client: PrefectClient, run: UUID) -> None:
    async with asyncio.timeout(CALLED_OFF_WITHIN):
        await client.set_flow_run_state(run, Cancelling())
