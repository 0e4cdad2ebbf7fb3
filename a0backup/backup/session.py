"""A node with its lock held: what the backups of all its kinds share in one run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

from a0backup.a0cli.characters import one_line
from a0backup.a0cli.commands import A0cli
from a0backup.a0cli.directory import PrivateDirectory
from a0backup.a0cli.listing import missing_commands, offered_commands, offers_backup, offers_sensitive
from a0backup.a0cli.ownership import end_descendants
from a0backup.backup.steps import Done, StepName, TakeStep, step
from a0backup.errors import PasswordError, VaultUnusableError
from a0backup.files import in_thread
from a0backup.fleet.models import Existing, Fleet, Node
from a0backup.limits import keep_memory_private
from a0backup.passwords.shared import LoadShared
from a0backup.places.credentials import ReadBlock
from a0backup.places.looking import require_no_lost_vault
from a0backup.places.places import Places
from a0backup.report.progress import Step, tell
from a0backup.upkeep.health import Look, look_at
from a0backup.vault.known_vault import recognise, require_same
from a0backup.vault.leftovers import private_name
from a0backup.vault.lock import node_lock
from a0backup.vault.space import release
from a0backup.vault.vault import Vault, VaultSnapshot

P = ParamSpec("P")
R = TypeVar("R")

SLOW = 30.0  # seconds; only the steps that read whole artifacts may take longer
READING = (StepName.RETRIEVE, StepName.VERIFY, StepName.INSPECT, StepName.STORE, StepName.READ_BACK)


@dataclass(frozen=True)
class Run:
    """What all nodes of one run share.

    *id* is the id of the flow run that this work belongs to; what that flow run has stored is not
    made again. *existing* is the operator's choice for this run only. *stored_before* maps each
    node to the artifacts that existed when the run *began*; what another run stores later counts as
    this run's outcome. So does what it stored since this run was *due*: at the start of the command,
    or at the time of the schedule. *vault_id*: the identity of the vault then. *places*: where each
    artifact is copied to.
    """

    id: str
    fleet: Fleet
    existing: Existing | None = None
    stored_before: Mapping[str, VaultSnapshot] = field(default_factory=dict)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    vault_id: str = ""
    places: Places = field(default_factory=lambda: Places(()))
    due: datetime | None = None  # if that was before it began

    def require_same_vault(self) -> None:
        """Raise UnknownVaultError if the vault is not the one of the beginning: its disk may have gone since."""
        if self.vault_id:
            require_same(Vault(self.fleet.vault), self.vault_id)

    @classmethod
    def begin(
        cls,
        fleet: Fleet,
        nodes: Sequence[Node],
        *,
        id: str,
        existing: Existing | None = None,
        due: datetime | None = None,
        blocks: ReadBlock | None = None,
    ) -> "Run":
        """Return a run that begins now; *stored_before* omits a node whose folder cannot be used.

        *blocks* reads the Secret blocks that hold the credentials of places. Raise UnknownVaultError
        if the vault is not the one that was used last, or is lost and has copies.
        """
        keep_memory_private()
        require_no_lost_vault(fleet, blocks=blocks)
        identity = recognise(fleet)
        vault, began = Vault(fleet.vault), datetime.now(UTC)
        stored = {}
        for node in nodes:
            with contextlib.suppress(OSError, VaultUnusableError):
                vault.make(node.name)  # a new vault can then be recognised later
                stored[node.name] = vault.snapshot(node.name)
        return cls(id, fleet, existing, stored, began, identity, Places.of(fleet, blocks=blocks), due)


class NodeSession:
    """One run's session with one node.

    *take* runs each of its steps; *shared* loads the password of fleet.yaml.
    """

    kind = ""  # empty for its own steps: they concern the node as a whole

    def __init__(
        self, run: Run, node: Node, *, directory: PrivateDirectory, lock: int, take: TakeStep, shared: LoadShared
    ) -> None:
        self.run, self.node, self.directory = run, node, directory
        self.take, self.shared = take, shared
        self.vault = Vault(run.fleet.vault)
        self.a0cli = A0cli(
            self.fleet.a0cli, node=node.name, host=node.host, port=node.port, directory=directory.path, inherit=[lock]
        )
        self.offered: frozenset[str] | None = None  # the commands that the node lists; None if that is not understood
        self.not_offered: list[str] = []  # kinds whose command the node does not list
        self.has_role: bool | None = None  # whether the node lists `backup`; None if that is not understood
        self.splits = bool(node.splits)  # whether its build keeps the encryption keys out of `backup`
        self.step = StepName.LOCK
        self.health: Look | None = None  # what its health endpoints said, once they were asked
        self.in_progress = ""  # the kind that the node was still making when this run stopped waiting for it

    @property
    def session(self) -> "NodeSession":
        return self

    @property
    def fleet(self) -> Fleet:
        return self.run.fleet

    async def on_disk(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run *function* on the vault, in a thread. Raise VaultUnusableError if the vault's disk fails.

        The report says so while the disk does not answer.
        """
        work, since = asyncio.create_task(in_thread(function, *args, **kwargs)), datetime.now(UTC)
        try:
            await asyncio.wait({work}, timeout=SLOW)
            if not work.done() and self.step not in READING:
                text = f"waiting for the vault's disk since {since:%H:%M:%S UTC}"
                tell(Step(self.node.name, "", self.step, text))
            return await work
        except asyncio.CancelledError:
            work.cancel()
            # Wait to the end, however often this is cancelled: the thread may still write.
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            raise
        except OSError as error:
            where = f" ({one_line(str(error.filename))})" if error.filename else ""
            raise VaultUnusableError(
                self.node.name, f"the vault {self.vault.root} cannot be used: {error.strerror}{where}"
            ) from error

    def enter(self, name: StepName) -> None:
        """Record the current step; the report of a failure names it."""
        self.step = name

    @step(StepName.UPDATE_COMMANDS)
    async def update_commands(self) -> Done:
        """Ask the node for its commands; without them a0cli has only its local ones. Raise A0cliError."""
        # A node may repeat a password that an earlier run sent. If the password is missing, the start says why.
        with contextlib.suppress(PasswordError):
            if (text := await self.shared(self.fleet.password)) is not None:
                self.a0cli.know(text)
        await self.a0cli.update_commands()
        return Done("the node listed its commands")

    @step(StepName.PING)
    async def ping(self) -> Done:
        """Check that the node answers, and which of the kinds it does not offer. Raise A0cliError."""
        await self.a0cli.ping()
        await self.note_offered()
        return Done("PONG")

    async def require_well(self) -> None:
        """Ask the node's health endpoints, once in a run, if fleet.yaml has `health`.

        Raise NodeUnwellError if the node must not be asked for a backup.
        """
        if self.fleet.health is None:
            return
        if self.health is None:
            await self.look_at_health()
        else:
            self.enter(StepName.HEALTH)
            self.health.require_well(self.node.name)

    @step(StepName.HEALTH)
    async def look_at_health(self) -> Done:
        """Ask the node's health endpoints what a backup needs. Raise NodeUnwellError."""
        assert self.fleet.health is not None, "only asked for where fleet.yaml has `health`"
        self.health = await look_at(self.fleet.health, self.node, load=self.shared, known=self.a0cli.know)
        self.health.require_well(self.node.name)
        return Done(self.health.text())

    async def note_offered(self) -> None:
        """Record the commands that the last update_commands brought. Raise A0cliError."""
        await in_thread(self._note_offered, (await self.a0cli.commands()).stdout)

    def _note_offered(self, listing: str) -> None:
        self.offered, self.has_role = offered_commands(listing), offers_backup(listing)
        self.not_offered = missing_commands(listing, self.fleet.kinds_of(self.node))
        self.splits = self.splits or offers_sensitive(listing)


@contextlib.asynccontextmanager
async def open_node(run: Run, node: Node, *, take: TakeStep, shared: LoadShared) -> AsyncIterator[NodeSession]:
    """Hold the node's lock and a private directory while the block runs.

    Raise BuildTooOldError, VaultUnusableError, LockDeadlineError or A0cliMissingError before
    anything is done.
    """
    node.require_build()
    fleet, vault = run.fleet, Vault(run.fleet.vault)
    await in_thread(vault.ensure_writable, node.name)

    def waiting(holder: str) -> None:
        tell(Step(node.name, "", StepName.LOCK, f"waiting for the lock of the node, held by {holder}"))

    async with node_lock(
        vault.folder(node.name),
        node=node.name,
        run=run.id,
        deadline=fleet.lock_deadline,
        patience=fleet.a0cli.call_timeout,
        waiting=waiting,
    ) as lock:
        await in_thread(run.require_same_vault)
        await in_thread(vault.require_no_links, node.name)
        directory = PrivateDirectory(vault.work(node.name), private_name(run.id), node=node.name)
        try:
            await in_thread(directory.make, fleet.a0cli.key_dir)
            yield NodeSession(run, node, directory=directory, lock=lock, take=take, shared=shared)
        finally:
            # One call in one thread: a cancellation lets it end, and would keep a second call from being made.
            await in_thread(_leave, vault, directory)


def _leave(vault: Vault, directory: PrivateDirectory) -> None:
    release(vault, directory.node)
    end_descendants(directory.path)
    directory.remove()
