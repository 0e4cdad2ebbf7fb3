"""Put a node into service: look at it, give it the backup role, and prove its first backup.

seen = await look(session)
print(Plan(node, role, seen).markdown())
await give_role(session, role, confirmed=seen)
await prove(fleet, "a0-1/20261123T020000Z-backup", shared)
"""

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from a0backup.a0cli.printed import Printed
from a0backup.a0cli.replies import gave_no_role, quoted, refusal
from a0backup.a0cli.status import Found, Status, shown
from a0backup.a0cli.text import quote
from a0backup.a0cli.wordings import Wordings
from a0backup.backup.facts import stored_manifest
from a0backup.backup.session import NodeSession
from a0backup.backup.steps import Done, StepName, step
from a0backup.errors import A0cliError, A0cliMissingError, EnrolmentError, RefusedError, UnknownReplyError
from a0backup.files import in_thread
from a0backup.fleet.models import Fleet, Node
from a0backup.passwords.shared import LoadShared
from a0backup.report.words import escaped
from a0backup.upkeep.drill import drill
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault

# The kinds that a backup folder may hold, whether or not this fleet backs them up.
FOLDER = ("backup", "backup-sensitive")

# An absolute path below /dev that needs no quoting in a shell or in Markdown; never '.', '..' or an option.
DEVICE = r"^/dev/[A-Za-z0-9][A-Za-z0-9._:+@=-]*(/[A-Za-z0-9][A-Za-z0-9._:+@=-]*)*$"
Device = Annotated[str, Field(pattern=DEVICE, max_length=255, examples=["/dev/sdb"])]

LOOK_INTERVAL = 2.0  # seconds between two checks for the role


@dataclass(frozen=True)
class Role:
    """The backup role to give: on *device*, and over an existing backup folder only with *force*."""

    device: str
    force: bool = False

    @property
    def call(self) -> tuple[str, ...]:
        """The command and its arguments (vendor's page on the backup role)."""
        return ("set-as-backup", self.device, *(["true"] if self.force else []))


@dataclass(frozen=True)
class ReportedBackup:
    """What a node says about its backup of one kind, and where the vault has that backup.

    *status* is None if the node does not say.
    """

    kind: str
    status: Status | None
    reason: str = ""  # why the node does not say
    kept_as: str = ""

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.kind}: not told ({self.reason})"
        kept = f", in the vault as {self.kept_as}" if self.kept_as else ", not in the vault"
        return f"{self.kind}: {shown(self.status)}{kept if isinstance(self.status, Found) else ''}"


@dataclass(frozen=True)
class NodeSnapshot:
    """What was seen of a node: whether it has the backup role, and what it says about the backups in its folder."""

    has_role: bool
    told: tuple[ReportedBackup, ...] = ()

    @property
    def nowhere_else(self) -> frozenset[ReportedBackup]:
        """The finished backups that are on the node and not in the vault."""
        return frozenset(each for each in self.told if isinstance(each.status, Found) and not each.kept_as)

    def __str__(self) -> str:
        role = "it has the backup role" if self.has_role else "it has no backup role: it does not offer `backup`"
        return "; ".join([role, *map(str, self.told)])


@step(StepName.LOOK)
async def look(session: NodeSession) -> NodeSnapshot:
    """Return what is on the node, after its commands were updated and it answered a ping.

    Raise UnknownReplyError if its replies do not show whether it has the role, A0cliError.
    """
    return await _seen(session)


async def _seen(session: NodeSession) -> NodeSnapshot:
    if session.has_role is None:
        reason = "the commands that it lists are not understood, nor whether it has the backup role"
        raise UnknownReplyError(session.node.name, "a0cli", reason)
    kinds = [kind for kind in FOLDER if f"{kind}-status" in (session.offered or ())]
    return NodeSnapshot(session.has_role, tuple([await _told(session, kind) for kind in kinds]))


async def _told(session: NodeSession, kind: str) -> ReportedBackup:
    try:
        status = await session.a0cli.status(kind)
    except (RefusedError, UnknownReplyError) as error:
        # A node without the role may refuse even the status command.
        return ReportedBackup(kind, None, reason=error.tail or error.reason)
    stored = await session.on_disk(stored_manifest, session.vault, session.node.name, kind, status, None)
    return ReportedBackup(kind, status, kept_as=stored.id if stored else "")


@dataclass(frozen=True)
class Plan:
    """What will be done with a node, for the person who confirms it."""

    node: Node
    role: Role
    seen: NodeSnapshot

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done after the confirmation, one sentence per step."""
        return (
            "leave its role as it is: it offers `backup`, so it has the backup role already"
            if self.seen.has_role
            else f"`a0cli -t {self.node.host} {' '.join(self.role.call)}`: give it the backup role",
            "make its first backup, retrieve, verify and store it, delete it on the node",
            "prove that the stored artifact opens",
        )

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the person who confirms should know."""
        if self.seen.has_role:
            return ()
        free = (
            f"{self.role.device} must be a device of the node that nothing else uses; in a cluster not of the primary"
        )
        if not self.role.force:
            return (
                free,
                "without force, a backup folder that exists on the node makes it fail, and nothing is changed",
            )
        lost = [f"lost, and nowhere else: {each}" for each in sorted(self.seen.nowhere_else, key=str)]
        unknown = [f"what is in it is not known: {each}" for each in self.seen.told if each.status is None]
        return (free, "with force, what is in a backup folder that exists on the node is lost", *lost, *unknown)

    def markdown(self) -> str:
        """Return the plan as a Markdown page."""
        node, seen = self.node, self.seen
        rows = [
            ("node", escaped(f"{node.name}, {node.host} port {node.port}")),
            ("---", "---"),
            ("build", str(node.build) if node.build else "not declared in fleet.yaml"),
            ("answers", "yes: update-commands, ping"),
            ("backup role", "yes" if seen.has_role else "**no**"),
            ("on the node", "<br>".join(escaped(str(each)) for each in seen.told) or "it offers no status"),
            ("device", "not used" if seen.has_role else f"`{self.role.device}`"),
            ("force", "not used" if seen.has_role else "**yes**" if self.role.force else "no"),
        ]
        return "\n".join([*(f"| {name} | {value} |" for name, value in rows), "", self.question()])

    def question(self) -> str:
        """Return what is done after the confirmation, and what to know before it, as Markdown."""
        steps = [f"{number}. {step}" for number, step in enumerate(self.steps, 1)]
        cautions = [f"- **{escaped(text)}**" for text in self.cautions]
        return "\n".join([f"Put {escaped(self.node.name)} into service:", "", *steps, "", *cautions]).rstrip() + "\n"


@step(StepName.SET_AS_BACKUP)
async def give_role(session: NodeSession, role: Role, *, confirmed: NodeSnapshot) -> Done:
    """Give the node the backup role if it has none; it succeeded if the node then offers `backup`.

    The node is looked at again right before: what was *confirmed* may be an hour old. Nothing is
    sent twice. Raise EnrolmentError if the node differs from what was confirmed, or has no role
    `call_timeout` after the call; A0cliError.
    """
    node, a0cli = session.node.name, session.a0cli
    if not re.fullmatch(DEVICE[1:-1], role.device):
        raise EnrolmentError(node, f"{quote(role.device)!r} is no device", "give its path below /dev, such as /dev/sdb")
    seen = await _seen(session)
    if seen.has_role:
        return Done("it offers `backup`, so it has the backup role already; nothing was sent", cached=True)
    again = "start it again: it shows first what is there now"
    if confirmed.has_role:
        raise EnrolmentError(node, "it has lost the backup role since that was confirmed", again)
    if role.force and (more := seen.nowhere_else - confirmed.nowhere_else):
        found = "; ".join(sorted(map(str, more)))
        raise EnrolmentError(node, f"force would destroy more than was confirmed: {found}", again)
    refused = False
    try:
        printed = await a0cli.call(*role.call)
    except A0cliMissingError:
        raise
    except A0cliError as error:
        reply = error.reason
    else:
        reply, refused = await in_thread(_read, printed, node, a0cli.wordings)
    lack = await _role_comes(session, within=0 if refused else session.fleet.a0cli.call_timeout)
    if not lack:
        return Done(f"it offers `backup` now; the reply to set-as-backup was {reply!r}")
    free = "free" if role.force else "free, and that no backup folder is on the node"
    raise EnrolmentError(
        node,
        f"{lack} after set-as-backup {role.device}; its reply was {reply!r}",
        f"check that the device is there and {free}; where the node may still be at it, wait; a new run looks first",
    )


def _read(printed: Printed, node: str, wordings: Wordings) -> tuple[str, bool]:
    """Return the reply to set-as-backup as a short text, and whether it reports a failure."""
    said = refusal(printed, node=node, command="set-as-backup", wordings=wordings)
    return quoted(printed), gave_no_role(printed, said)


async def _role_comes(session: NodeSession, *, within: float) -> str:
    """Return an empty string once the node offers `backup`, or what is still missing after *within* seconds.

    The node may be unreachable for a moment.
    """
    ends = time.monotonic() + within
    while True:
        try:
            await session.a0cli.update_commands()
            await session.note_offered()
        except A0cliError as error:
            if not error.transient:
                raise
            lack = f"it cannot be asked ({error.reason})"
        else:
            if session.has_role:
                return ""
            lack = "it offers no `backup`"
        rest = ends - time.monotonic()
        if rest <= 0:
            return lack
        await asyncio.sleep(min(rest, LOOK_INTERVAL))


async def prove(fleet: Fleet, artifact_id: str, shared: LoadShared) -> Done:
    """Prove that the stored artifact opens: with a shared password by reading it to its end once more.

    A sealed password is not available here; then the run that made the artifact must have proved
    it. Raise EnrolmentError if nobody has, what `drill` raises, PasswordError.
    """
    vault = Vault(fleet.vault)
    manifest = await in_thread(vault.get, artifact_id)
    node = artifact_id.partition("/")[0]
    if not isinstance(manifest, Manifest):
        reason = f"{artifact_id} is not in the vault any more" if manifest is None else manifest.reason
        raise EnrolmentError(node, reason, "look at the vault's disk, then make a new backup")
    text = await shared(fleet.password)
    if text is not None:
        contents = await in_thread(drill, vault, manifest, [text], fleet.contents)
        return Done(f"opened {manifest.id} and read it to its end: {contents.members} members")
    if manifest.verified.level == "contents" and manifest.encryption.password.confirmed:
        read = f"opened {manifest.id} while its password was at hand: {manifest.verified.members} members"
        return Done(f"the run {read}; it is sealed now, the private part opens it", cached=True)
    raise EnrolmentError(
        node,
        f"{manifest.id} is stored, and nobody has opened it: its password is sealed",
        f"`a0backup drill {manifest.id}` where the private part of the recovery key is",
    )
