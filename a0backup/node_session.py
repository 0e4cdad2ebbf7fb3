"""A node with its lock held: what the backups of all its kinds share in one run."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from a0backup.a0cli import A0cli, PrivateDirectory
from a0backup.errors import PasswordError, VaultUnusableError
from a0backup.files import in_thread
from a0backup.fleet import Existing, Fleet, Node
from a0backup.lock import node_lock
from a0backup.password import LoadShared
from a0backup.progress import Step, tell
from a0backup.replies import missing_commands, offered_commands, offers_backup, offers_sensitive
from a0backup.space import release
from a0backup.vault import Stock, Vault

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Done:
    """How a step ended: what it did in one sentence, and whether the work was found done already."""

    text: str
    cached: bool = False


def stored_now(fleet: Fleet, nodes: Sequence[Node]) -> dict[str, Stock]:
    """Return each node's artifacts; a node whose folder cannot be used is left out."""
    vault = Vault(fleet.vault)
    stored = {}
    for node in nodes:
        with contextlib.suppress(OSError, VaultUnusableError):
            vault.make(node.name)  # so that a new vault is known again
            stored[node.name] = vault.stock(node.name)
    return stored


class NodeSession:
    """One run's time with one node."""

    def __init__(
        self,
        fleet: Fleet,
        node: Node,
        *,
        directory: PrivateDirectory,
        lock: int,
        flow_run: str,
        stored_before: Stock | None,
        existing: Existing | None,
    ) -> None:
        self.fleet, self.node, self.directory, self.flow_run = fleet, node, directory, flow_run
        self.stored_before = stored_before
        self.existing = existing  # said for this run, by the operator
        self.vault = Vault(fleet.vault)
        self.a0cli = A0cli(
            fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path, inherit=[lock]
        )
        self.offered: frozenset[str] | None = None  # the commands that the node lists; None where that is not read
        self.not_offered: list[str] = []  # kinds whose command the node does not list
        self.has_role: bool | None = None  # whether it lists `backup`; None where that is not read
        self.splits = bool(node.splits)  # whether its build keeps the encryption keys out of `backup`
        self.step = "check"

    async def on_disk(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something in the vault, in a thread. Raise VaultUnusableError where its disk fails."""
        try:
            return await in_thread(function, *args, **kwargs)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise VaultUnusableError(
                self.node.name, f"the vault {self.vault.root} cannot be used: {error.strerror}{where}"
            ) from error

    def enter(self, step: str) -> None:
        """Note the step that is at work, for the report of a failure in it."""
        self.step = step

    async def update_commands(self, shared: LoadShared) -> Done:
        """Ask the node which commands it takes. Raise A0cliError."""
        self.enter("update-commands")
        # A node may say again what another day's run told it. Where there is none, the start says why.
        with contextlib.suppress(PasswordError):
            if (text := await shared(self.fleet.password)) is not None:
                self.a0cli.know(text)
        await self.a0cli.update_commands()
        return Done("the node said which commands it takes")

    async def ping(self) -> Done:
        """See that the node answers, and which of the kinds it does not offer. Raise A0cliError."""
        self.enter("ping")
        await self.a0cli.ping()
        await self.note_offered()
        return Done("PONG")

    async def note_offered(self) -> None:
        """Note which commands the last update_commands brought. Raise A0cliError."""
        listing = (await self.a0cli.commands()).stdout
        self.offered, self.has_role = offered_commands(listing), offers_backup(listing)
        self.not_offered = missing_commands(listing, self.fleet.kinds_of(self.node))
        self.splits = self.splits or offers_sensitive(listing)


@contextlib.asynccontextmanager
async def open_node(
    fleet: Fleet,
    node: Node,
    *,
    flow_run: str,
    stored_before: Stock | None,
    existing: Existing | None = None,
) -> AsyncIterator[NodeSession]:
    """Hold the node's lock and a private directory for as long as the block runs.

    *stored_before* are the node's artifacts when the run began; None where that is not known.

    Raise BuildTooOldError, VaultUnusableError, LockDeadlineError, A0cliMissingError; nothing was done then.
    """
    node.require_build()
    vault = Vault(fleet.vault)
    await in_thread(vault.ensure_writable, node.name)

    def waiting(holder: str) -> None:
        tell(Step(node.name, "", "lock", f"waits for its turn: the node is held by {holder}"))

    async with node_lock(
        vault.folder(node.name),
        node=node.name,
        run=flow_run,
        deadline=fleet.lock_deadline,
        patience=fleet.a0cli.call_timeout,
        waiting=waiting,
    ) as lock:
        name = f"{flow_run}-{uuid.uuid4().hex[:8]}"  # a retry of the same run must not wipe what its first try left
        directory = PrivateDirectory.make(vault.work(node.name), name, key_dir=fleet.a0cli.key_dir, node=node.name)
        try:
            yield NodeSession(
                fleet,
                node,
                directory=directory,
                lock=lock,
                flow_run=flow_run,
                stored_before=stored_before,
                existing=existing,
            )
        finally:
            release(vault, node.name)
            directory.remove()
