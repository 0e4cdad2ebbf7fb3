"""One node's backup as a separate run, on whichever worker takes it; only the vault and the engine are shared.

The run that started it waits for its end, and starts another if its machine died. The engine detects
a dead machine after some minutes (Crashed), the vault sooner: nobody holds the lock of the node that
the run works on. Work that is settled by then is not repeated: all runs of a node work under the id
of the run that started them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Cancelling, Crashed

from a0backup.backup.loop import NodeOutcomes, error_kept
from a0backup.backup.steps import StepName
from a0backup.errors import EngineError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet, Node
from a0backup.report.progress import Step, tell
from a0backup.vault.lock import is_held
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from flows.ending import ExistingChoice, log_failure, tell_ended
from tasks.hand_over import HandedOver, handed_over

OF_FLEET = "backup-node/of-fleet"
RUNS = 3  # for one node, if the machine of each run dies
POLL = 5.0
# Longer than a run takes from its start to the node's lock, and from releasing the lock to its end. A slower run does
# no harm: the lock makes the second run wait, and each takes what the other has stored as its own outcome.
GONE_AFTER = 60.0
# From the moment a worker takes the run up to its first sign of life; the worker may have to pull an image first.
STARTS_WITHIN = 600.0
# The states in which the process of a run exists, and holds the lock of its node.
AT_WORK = (StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
CALLED_OFF_WITHIN = 5.0
# A slower answer means that the engine was unavailable meanwhile.
AWAY = 10.0
# NFS shows a new directory within this many seconds at the latest, unless configured otherwise (acdirmax in nfs(5)).
SHOWN_WITHIN = 60.0

T = TypeVar("T")


class NodeRuns:
    """The runs of one night, one per node, that work under the id of the fleet's run."""

    def __init__(self, fleet: Fleet, existing: ExistingChoice, fleet_run: str) -> None:
        self._fleet, self._existing, self._fleet_run = fleet, existing, fleet_run
        self._vault = Vault(fleet.vault)
        self._at_work = time.monotonic()  # when a run was last seen at work; until then the others may have to wait

    async def outcomes(self, node: Node) -> NodeOutcomes:
        """Return how the backups of *node* ended, even if none of its runs came to an end."""
        outcomes = NodeOutcomes(node, self._fleet, log_failure)
        with error_kept() as ended:
            said = await self.run(node)
            outcomes.all, outcomes.warnings = said.outcomes, said.warnings
        outcomes.note_rest(ended, StepName.ENGINE)
        tell_ended(outcomes)
        return outcomes

    async def run(self, node: Node) -> HandedOver:
        """Return how the backups of *node* ended in a run of the deployment `backup-node/of-fleet`.

        Raise EngineError where no worker takes the run up, no run for the node ends by itself, or what
        one reports does not match fleet.yaml or the vault.
        """
        last = ""
        async with get_client() as client:
            for _ in range(RUNS):
                run = await self._start(node)
                try:
                    state = await self._end_of(client, run, node)
                    said = await self._patiently(partial(handed_over, client, run.id))
                except asyncio.CancelledError:
                    await asyncio.shield(_cancel(client, run))
                    raise
                if said is not None:
                    await self._verify(said, run, node)
                    return said
                last = f"{state.name}: {state.message or 'no reason given'}"
                if state.type is StateType.CANCELLED:
                    raise EngineError(
                        f"the run {run.name} was cancelled", f"`a0backup list {node.name}` shows what is stored"
                    )
        raise EngineError(
            f"{RUNS} runs for the node ended without a result, the last one as {last}",
            "check their logs, and their machines'",
        )

    async def _start(self, node: Node) -> FlowRun:
        make = partial(
            arun_deployment,
            OF_FLEET,
            parameters={
                "node": node.name,
                "fleet": str(self._fleet.path),
                "existing": self._existing,
                "fleet_run": self._fleet_run,
            },
            flow_run_name=f"backup-{node.name}",
            timeout=0,
            # A repeated request does not create a second run.
            idempotency_key=str(uuid4()),
        )
        try:
            return await self._patiently(make)
        except ObjectNotFound:
            raise EngineError(
                f"there is no deployment {OF_FLEET}", "`a0backup engine register` makes what `workers` needs"
            ) from None

    async def _end_of(self, client: PrefectClient, run: FlowRun, node: Node) -> State:
        """Return the final state of *run*: its own, or the one set here where it cannot reach one by itself."""
        lock = self._vault.folder(node.name) / "lock"
        shown = ""
        since = last_alive = time.monotonic()
        while True:
            asked = time.monotonic()
            state = (await self._patiently(partial(client.read_flow_run, run.id))).state
            now = time.monotonic()
            assert state is not None, "a run has had a state since it was made"
            if state.is_final():
                return state
            if now - asked > AWAY:
                # The engine does not know yet what the run did meanwhile.
                since = last_alive = now
            if state.name != shown:
                shown, since = str(state.name), now
                tell(Step(node.name, "", StepName.ELSEWHERE, f"{shown.lower()}, as run {run.name}"))
            if state.type is not StateType.SCHEDULED:
                self._at_work = now
            elif (idle := now - max(since, self._at_work)) > self._fleet.lock_deadline:
                await _cancel(client, run)
                raise EngineError(
                    f"no worker took up the run {run.name} within {idle:.0f} s", "is a worker of the pool running?"
                )
            if state.type is StateType.PENDING and now - since > STARTS_WITHIN:
                late = f"its worker has not started it within {STARTS_WITHIN:.0f} s"
                return await _end(client, run.id, Crashed(message=late))
            if state.type not in AT_WORK or await in_thread(is_held, lock):
                last_alive = now
            elif now - last_alive > GONE_AFTER:
                gone = "its process is gone: nobody holds the node's lock"
                # From Cancelling, the engine accepts Cancelled only.
                ended = Cancelled if state.type is StateType.CANCELLING else Crashed
                return await _end(client, run.id, ended(message=gone))
            await asyncio.sleep(POLL)

    async def _verify(self, said: HandedOver, run: FlowRun, node: Node) -> None:
        """Raise EngineError where *said* is not about *node*, or names an artifact that this machine's vault lacks."""
        # A kind whose backup was unfinished comes first.
        told = sorted((outcome.node, outcome.kind) for outcome in said.outcomes)
        if told != sorted((node.name, kind) for kind in self._fleet.kinds_of(node)):
            raise EngineError(
                f"the run {run.name} reports {', '.join(map('/'.join, told)) or 'nothing'}, not what fleet.yaml"
                " asks for here",
                "use the same fleet.yaml on every machine",
            )
        for outcome in said.outcomes:
            if outcome.id and not await self._is_here(outcome.id):
                raise EngineError(
                    f"{outcome.id}, which the run {run.name} has stored, is not in the vault {self._fleet.vault}",
                    "mount the same vault on every machine",
                )

    async def _is_here(self, artifact_id: str) -> bool:
        """Return whether the vault has the artifact; wait for it, as a network file system may show it late."""
        deadline = time.monotonic() + SHOWN_WITHIN
        while not isinstance(await in_thread(self._vault.get, artifact_id), Manifest):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL)
        return True

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what *ask* returns, retrying while the engine is unavailable: its runs continue and are awaited."""
        deadline = time.monotonic() + self._fleet.lock_deadline
        while True:
            try:
                return await ask()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
                if refused or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL)


async def _end(client: PrefectClient, run: UUID, ended: State) -> State:
    answer: OrchestrationResult[Any] = await client.set_flow_run_state(run, ended)
    # The run's own end may have reached the engine meanwhile.
    return answer.state if answer.state is not None and answer.state.is_final() else ended


async def _cancel(client: PrefectClient, run: FlowRun) -> None:
    try:
        async with asyncio.timeout(CALLED_OFF_WITHIN):
            await client.set_flow_run_state(run.id, Cancelling())
    except Exception as error:  # noqa: BLE001 - no error here may hide why the run is cancelled
        get_run_logger().warning("the run %s could not be cancelled and may continue: %r", run.name, error)
