"""The runs that an engine has on record: those that a crash left unfinished, and those that just ended."""

import logging
from collections.abc import Collection, Coroutine, Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from a0backup.errors import EngineError

if TYPE_CHECKING:
    import httpx


log = logging.getLogger("a0backup.engine")

DRAIN_DEADLINE = 30.0


CRASHED = "The process that ran it ended without reporting a result; the next start of the engine found it unfinished."


_PAGE = 200  # the API's maximum per request


def crash_unfinished(api: str, user_password: str) -> int:
    """Mark every run that our own server at *api* shows as unfinished as Crashed, tasks first; return their number.

    Call this only where nothing runs on that server. Scheduled flow runs stay. Raise EngineError where
    a run cannot be marked.
    """
    import httpx

    crashed = 0
    try:
        user, _, password = user_password.partition(":")
        with httpx.Client(base_url=api, auth=(user, password), trust_env=False, timeout=60) as client:
            crashed += _crash_all(client, "task_runs", ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"])
            crashed += _crash_all(client, "flow_runs", ["PENDING", "RUNNING", "PAUSED", "CANCELLING"])
    except httpx.HTTPError as error:
        raise EngineError(f"runs that a crash left unfinished cannot be marked Crashed: {error}") from error
    if crashed:
        log.warning("%d runs that an earlier crash left unfinished are now marked Crashed", crashed)
    return crashed


def _crash_all(client: "httpx.Client", runs: str, states: list[str]) -> int:
    wanted = {runs: {"state": {"type": {"any_": states}}}, "limit": _PAGE}
    crash = {"state": {"type": "CRASHED", "name": "Crashed", "message": CRASHED}, "force": True}
    crashed: set[str] = set()
    while page := {run["id"] for run in client.post(f"{runs}/filter", json=wanted).raise_for_status().json()}:
        if page <= crashed:
            raise EngineError(f"{len(page)} runs that a crash left unfinished stay so after they were marked Crashed")
        for run_id in page:
            client.post(f"{runs}/{run_id}/set_state", json=crash).raise_for_status()
        crashed |= page
    return len(crashed)


async def drained(flow_run_id: UUID, task_run_ids: Collection[UUID], *, deadline: float = DRAIN_DEADLINE) -> bool:
    """Wait until the API shows the flow run and each task run in a terminal state; return False at *deadline*.

    Call this after the flow has ended in this process. It first sends the states that are still unsent.
    """
    import asyncio

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    missing = set(task_run_ids)
    flow_ended = False
    pause = 0.05
    try:
        async with asyncio.timeout(deadline):
            # Task states are sent as events, log lines in batches, each through a queue and a thread of this process.
            for worker in (EventsWorker, APILogWorker):
                # Otherwise it logs to the terminal how much it still has to send.
                logging.getLogger(worker.__name__).setLevel(logging.ERROR)
                if isinstance(flushed := worker.drain_all(timeout=deadline), Coroutine):
                    await flushed
            async with get_client() as client:
                while True:
                    for chunk in _chunks(sorted(missing), _PAGE):
                        wanted = TaskRunFilter(id=TaskRunFilterId(any_=chunk))
                        for run in await client.read_task_runs(
                            task_run_filter=wanted, sort=TaskRunSort.NAME_ASC, limit=_PAGE
                        ):
                            if run.state is not None and run.state.is_final():
                                missing.discard(run.id)
                    if not flow_ended:
                        state = (await client.read_flow_run(flow_run_id)).state
                        flow_ended = state is not None and state.is_final()
                    if flow_ended and not missing:
                        return True
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, 1.0)
    except TimeoutError:
        return False


def _chunks(ids: list[UUID], size: int) -> Iterator[list[UUID]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
