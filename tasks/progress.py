"""The progress of a run on its page: how many nodes have ended, and where each of them is.

There are two artifacts, whatever the number of nodes, updated in place. A backup does not depend on
them: each update has a short timeout, a failed one is skipped, and nothing of this outlives the run.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.logging import get_run_logger

from a0backup.fleet.models import Node
from a0backup.report.progress import Board, Row, percent_ended, table, watched_by
from a0backup.report.words import plain

PACE = 5.0  # seconds between two updates
PATIENCE = 5.0  # seconds that one update may take
STALE = 60.0  # seconds after which the durations alone are worth an update

PROGRESS, STEPS = "backup-progress", "backup-steps"


@asynccontextmanager
async def progress_published(nodes: Sequence[Node]) -> AsyncIterator[None]:
    """Show on the run's page where each of *nodes* is while the block runs, and how it ended.

    If the block is cancelled, the page keeps showing where the nodes were then.
    """
    board = Board([node.name for node in nodes])
    caller = asyncio.current_task()
    assert caller is not None

    def pass_on(publisher: asyncio.Task[None]) -> None:
        # Prefect raises a signal in whatever code is running; the one to cancel is the caller.
        if not publisher.cancelled() and publisher.exception() is not None:
            caller.cancel()

    # Keep no connection: the server closes an idle one after the same time as lies between two updates.
    fresh = httpx.Limits(max_keepalive_connections=0)
    async with get_client(httpx_settings={"limits": fresh}) as client:
        page = _Page(board, client)
        with watched_by(board.hear):
            publisher = asyncio.create_task(page.keep_current())
            publisher.add_done_callback(pass_on)
            try:
                yield
            finally:
                publisher.cancel()
                await asyncio.wait([publisher])
        await page.update()


class _Page:
    """The two artifacts of the current flow run."""

    def __init__(self, board: Board, client: PrefectClient) -> None:
        self._board, self._client = board, client
        self._flow_run = UUID(str(runtime.flow_run.id))
        self._log = get_run_logger()
        self._ids: dict[str | None, UUID] = {}
        self._shown: list[Row] = []
        self._shown_at = 0.0
        self._failing = False

    async def keep_current(self) -> None:
        """Update the artifacts repeatedly until cancelled."""
        while True:
            await self.update()
            await asyncio.sleep(PACE)

    async def update(self) -> None:
        """Show where the nodes are, if anything has changed; log a failure once, and never raise it."""
        try:
            async with asyncio.timeout(PATIENCE):
                rows = await self._look()
                anew = [replace(row, seconds=None) for row in rows]
                if anew == self._shown and time.monotonic() - self._shown_at < STALE:
                    return
                await self._show(rows)
        except Exception as error:  # noqa: BLE001 - the backup does not depend on the engine's answer
            if not self._failing:
                late = f"no answer within {PATIENCE:g} s"
                why = late if isinstance(error, TimeoutError) else plain(f"{type(error).__name__}: {error}")
                self._log.warning("the engine does not accept the progress of this run; retrying (%s)", why)
            self._failing = True
            self._ids.clear()  # they may have been deleted
        else:
            self._shown, self._shown_at, self._failing = anew, time.monotonic(), False

    async def _look(self) -> list[Row]:
        # A separate thread that nobody waits for: the loop's threads are busy with whole artifacts, and a hanging disk
        # must not delay a cancel.
        disk = ThreadPoolExecutor(1, thread_name_prefix="progress")
        try:
            return await asyncio.get_running_loop().run_in_executor(disk, self._board.rows)
        finally:
            disk.shutdown(wait=False)

    async def _show(self, rows: list[Row]) -> None:
        if not self._ids:
            await self._find()
        at = f"{datetime.now(UTC):%H:%M:%S} UTC"
        ended = sum(row.ended for row in rows)
        steps = Counter("ended" if row.ended else row.step for row in rows)
        # The run's page shows only the beginning of each artifact's description.
        await self._put(PROGRESS, "progress", percent_ended(rows), f"{ended} of {len(rows)} nodes ended, at {at}")
        nodes_at = ", ".join(f"{count} {step}" for step, count in steps.most_common())
        await self._put(STEPS, "table", json.dumps(table(rows)), f"{at}: {nodes_at}")

    async def _find(self) -> None:
        """Find the artifacts made by an earlier try of this run, or by an update whose answer got lost."""
        of_this_run = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run]), key=ArtifactFilterKey(any_=[PROGRESS, STEPS])
        )
        found = await self._client.read_artifacts(
            artifact_filter=of_this_run, sort=ArtifactSort.CREATED_DESC, limit=10, offset=0
        )
        self._ids = {artifact.key: artifact.id for artifact in found}

    async def _put(self, key: str, kind: str, content: object, description: str) -> None:
        if key in self._ids:
            # Not the client's update_artifact: it also stores each update as an event, with the whole content.
            await self._client.request(
                "PATCH",
                "/artifacts/{id}",
                path_params={"id": self._ids[key]},
                json={"data": content, "description": description},
            )
        else:
            made = await self._client.create_artifact(
                ArtifactCreate(key=key, type=kind, data=content, description=description, flow_run_id=self._flow_run)
            )
            self._ids[key] = made.id
