"""Delete a node's backup: only the one that the node shows right before, and never the next backup.

Like a start, a deletion may take effect late, if its reply was lost or its run was killed. A mark
in the vault tells the next run about it. The mark is written before the deletion is sent, and
removed when the deletion has taken effect, or when none was sent.
"""

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path

from a0backup.a0cli.replies import quoted
from a0backup.a0cli.status import Found, InProgress, Status, shown
from a0backup.backup.context import Context
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import A0cliError, A0cliMissingError, DeleteNotConfirmedError
from a0backup.files import in_thread, publish, remove_durably

INTERVAL = 1.0  # seconds between two checks whether the deletion has taken effect


class DeletionMark:
    """The mark of a deletion that was sent and not seen to take effect, also for a backup that is not ours."""

    def __init__(self, node_folder: Path, kind: str) -> None:
        self.path = node_folder / f"deleting-{kind}.json"

    def put(self, found: Found, *, flow_run: str, at: datetime) -> None:
        """Write the mark durably, before the deletion is sent. Raise OSError."""
        content = {
            "schema": 1,
            "at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            "name": found.name,
            "md5": found.md5,
            "flow_run": flow_run,
        }
        publish(self.path, json.dumps(content, indent=1).encode() + b"\n")

    def is_there(self) -> bool:
        """Return whether a deletion was sent and not seen to take effect. Raise OSError."""
        return self.path.exists()

    def remove(self) -> None:
        """Remove the mark: the deletion has taken effect, or can no longer do so."""
        remove_durably(self.path)


class Deletion:
    """The deletions that one run sends for one kind of a node."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.session, self.kind = context.session, context.kind
        self.mark = DeletionMark(context.vault.folder(context.node.name), context.kind)
        self._earlier = False  # whether a killed run sent a deletion that may still arrive after ours
        self._sent: float | None = None  # seconds of the monotonic clock; None if nothing was sent

    @property
    def is_sent(self) -> bool:
        """Whether a deletion was sent and is not confirmed yet."""
        return self._sent is not None

    async def look(self) -> None:
        """Check whether an earlier run left its mark. Raise VaultUnusableError."""
        self._earlier = await self.context.on_disk(self.mark.is_there)

    @step(StepName.DELETE)
    async def send(self, found: Found) -> Done:
        """Delete *found* on the node if the node still shows exactly that. Raise A0cliError, VaultUnusableError.

        Only `confirm` shows whether the deletion took effect.
        """
        if self.context.journal is not None:
            await self.context.note_journal(f"deletion intended: {shown(found)}")
        at = datetime.now(UTC)
        await self.context.on_disk(self.session.run.require_same_vault)
        await self.context.on_disk(self.mark.put, found, flow_run=self.session.run.id, at=at)
        status = await self.context.ask()
        if status != found:
            return Done(f"the node shows something else now ({shown(status)}); nothing was deleted", cached=True)
        # Nothing may come between that status and this call: the node has no conditional delete.
        try:
            reply = await in_thread(quoted, await self.session.a0cli.delete(self.kind))
        except A0cliMissingError:
            raise
        except A0cliError as error:
            reply = error.reason
        self._sent = time.monotonic()
        return Done(f"the node replied {reply!r}")

    @step(StepName.CONFIRM_DELETE)
    async def confirm(self, found: Found) -> Status:
        """Wait until the node no longer shows *found*, if a deletion was sent, and return that status.

        Until `call_timeout` after it was sent, the deletion may still take effect, and nothing else
        begins. Raise DeleteNotConfirmedError after that time, A0cliError, VaultUnusableError.
        """
        node = self.session.node.name
        while True:
            try:
                status = await self.context.ask()
            except A0cliError as error:
                if not error.transient:
                    raise
                raise DeleteNotConfirmedError(node, self.kind, f"the status failed: {error.reason}") from error
            still_there = isinstance(status, Found) and status.identity.may_be(found.identity)
            if self._sent is None or (not still_there and not isinstance(status, InProgress)):
                break
            rest = self._sent + self.context.fleet.a0cli.call_timeout - time.monotonic()
            if rest <= 0:
                raise DeleteNotConfirmedError(node, self.kind, f"the status is: {shown(status)}")
            await asyncio.sleep(min(rest, INTERVAL))
        if not self._earlier:
            await self.context.clean_up("the mark of the deletion", self.mark.remove)
        self._sent = None
        return status

    async def let_earlier_arrive(self) -> float:
        """Wait until a deletion that a killed run sent can no longer take effect; return the seconds waited.

        Raise VaultUnusableError.
        """
        if not await self.context.on_disk(self.mark.is_there):
            return 0
        # The full time from now: no clock tells when it was sent. Twice: a status call came before the deletion.
        wait = 2 * self.context.fleet.a0cli.call_timeout
        self.context.tell(StepName.START, f"waiting {wait:.0f} s for an earlier deletion to take effect")
        await asyncio.sleep(wait)
        await self.context.clean_up("the mark of an earlier deletion", self.mark.remove)
        self._earlier = False
        return wait
