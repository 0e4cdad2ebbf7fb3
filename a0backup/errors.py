"""Every error of this project, as a tree.

A0BackupError
├── FleetFileError            fleet.yaml cannot be used
│   ├── UnknownNodeError      a node that fleet.yaml does not name
│   └── UnknownPlaceError     a place that fleet.yaml does not name
├── PasswordError             the password cannot be had
├── RecoveryKeyError          a recovery key cannot be read, is too weak, or does not fit
├── EngineError               the engine's server cannot be started or reached
├── RunFailedError            a fleet run ended with nodes that are not stored
├── CheckFailedError          the preflight found what would make a run fail
├── NotFreshError             the newest backup of a node is too old or missing
├── NoHomeError               the user has no folder for state
├── UnknownVaultError         the vault is not there, or is another one
├── PlacesBehindError         places lack artifacts that the vault has
├── VerificationFailedError   stored artifacts are damaged, missing or could not be read
├── PruneRefusedError         what a prune would remove looks like a mistake
├── PruneFailedError          nodes or places could not be pruned
├── DrillFailedError          stored backups do not open, or are damaged
├── PlaceError                a place of copies fails or refuses
│   ├── PlaceArtifactError    what it holds under an id is not the artifact; the place itself is well
│   └── PlaceDeniedError      the credentials do not allow this, or the object is locked
└── NodeError                 one node's backup cannot go on
    ├── A0cliError            a call of a0cli went wrong
    │   ├── A0cliMissingError     the program or its keys are not there
    │   ├── A0cliTimeoutError     no end within the deadline            (transient)
    │   ├── UnreachableError      the node does not answer              (transient)
    │   ├── RefusedError          the node will never take this command
    │   └── UnknownReplyError     a reply that is not understood         (transient)
    ├── EnrolmentError        the node could not be put into service
    ├── BuildTooOldError      builds before 6868 must not be backed up this way
    ├── LockDeadlineError     another run kept the node for too long
    ├── BackupInProgressError the node is still at it                   (transient)
    ├── NodeUnwellError       its health endpoints say that it must not be asked for a backup
    ├── AwaitDeadlineError    the node was still at it at the deadline
    ├── StartFailedError      the start had no effect
    ├── ForeignBackupError    a backup that is not ours is in the way
    ├── NodeBusyError         the node is still making a backup of another kind
    ├── UnsettledError        the node's backup changes faster than it can be kept
    ├── NodeDeadlineError     the node held the run for too long
    ├── Md5MissingError       the status names no usable md5
    ├── RetrieveFailedError   no file came
    ├── ArtifactTooLargeError more came than an artifact may take
    ├── Md5MismatchError      the retrieved bytes are not the node's
    ├── ContentsError         the artifact cannot be opened and read to its end
    │   ├── WrongPasswordError    what the password makes of it is noise
    │   ├── UnexpectedFormatError it is something else than an encrypted tar.gz
    │   ├── GzipDamagedError      the compressed stream is broken or cut
    │   ├── TarTruncatedError     the tar in it is broken or cut
    │   ├── DumpDamagedError      a file of the database dump in it is broken or cut
    │   ├── TooLargeUnpackedError it unpacks to more than fleet.yaml allows
    │   └── TooManyPartsError     it consists of too many tiny parts
    ├── DeleteNotConfirmedError  still shown after its deletion         (transient)
    ├── NotCopiedError        too few places hold the artifact, so the node keeps its backup
    └── VaultError            the vault cannot keep or give back an artifact
        ├── VaultUnusableError    it cannot be written
        ├── VaultFullError        it has no room for the next artifact
        ├── LaterVersionError     a later version wrote it, and only that one reads it
        ├── NotReadableError      it belongs to another user
        └── ArtifactDamagedError  what is stored is not what its manifest says

Each error carries its fields as ``args`` and so pickles; ``transient`` says whether asking again may help; ``hint``,
where there is one, says what to do next and ends the text.
"""

from collections.abc import Sequence
from typing import ClassVar


class A0BackupError(Exception):
    """The base of all errors that this project raises on purpose."""

    transient: ClassVar[bool] = False

    def text(self) -> str:
        """Return what happened, in one sentence without a full stop and without the node, if it is about one."""
        return "; ".join(str(field) for field in self.args)

    def message(self) -> str:
        """Return what happened and, before it, to which node."""
        return self.text()

    def hint(self) -> str:
        """Return what to do next, or nothing where there is nothing to say."""
        return ""

    def __str__(self) -> str:
        hint = self.hint()
        return f"{self.message()}\nHINT: {hint}" if hint else self.message()


class FleetFileError(A0BackupError, ValueError):
    """fleet.yaml cannot be used; each problem names its line, its key and what would be right."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        super().__init__(path, tuple(problems))
        self.path, self.problems = path, tuple(problems)

    def text(self) -> str:
        if len(self.problems) == 1:
            return f"{self.path}: {self.problems[0]}"
        return "\n".join([f"{self.path}: {len(self.problems)} problems", *(f"  {p}" for p in self.problems)])

    def hint(self) -> str:
        return "`a0backup init` writes a commented example; `a0backup schema` prints the JSON Schema for your editor"


class UnknownNodeError(FleetFileError):
    """A node was asked for that fleet.yaml does not name."""

    def hint(self) -> str:
        return ""


class UnknownPlaceError(FleetFileError):
    """A place was asked for that fleet.yaml does not name."""

    def hint(self) -> str:
        return ""


class PasswordError(A0BackupError):
    """The password cannot be had from the place that fleet.yaml names."""

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        super().__init__(source, reason, remedy)
        self.source, self.reason, self.remedy = source, reason, remedy

    def text(self) -> str:
        return f"no password from {self.source}: {self.reason}"

    def hint(self) -> str:
        return self.remedy


class RecoveryKeyError(A0BackupError):
    """A recovery key, or what was sealed to one, cannot be used. *where* names its file."""

    def __init__(self, where: str, reason: str, remedy: str) -> None:
        super().__init__(where, reason, remedy)
        self.where, self.reason, self.remedy = where, reason, remedy

    def text(self) -> str:
        return f"recovery key {self.where}: {self.reason}"

    def hint(self) -> str:
        return self.remedy


class EngineError(A0BackupError):
    """The engine's server cannot be started or reached."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.reason, self.remedy = reason, remedy

    def text(self) -> str:
        return self.reason

    def hint(self) -> str:
        return self.remedy


class RunFailedError(A0BackupError):
    """A fleet run ended and not every node's backup is stored; *reasons* name each such node."""

    def __init__(self, total: int, reasons: Sequence[str]) -> None:
        super().__init__(total, tuple(reasons))
        self.total, self.reasons = total, tuple(reasons)

    def text(self) -> str:
        return f"{len(self.reasons)} of {self.total} node backups failed: " + "; ".join(self.reasons)


class CheckFailedError(A0BackupError):
    """The preflight found what would make a run fail."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def text(self) -> str:
        return "a run would fail: " + "; ".join(problem.partition("\n")[0] for problem in self.problems)


class NotFreshError(A0BackupError):
    """The newest backup of a node is too old or missing, or a place is too far behind; *reasons* name each such."""

    def __init__(self, total: int, reasons: Sequence[str]) -> None:
        super().__init__(total, tuple(reasons))
        self.total, self.reasons = total, tuple(reasons)

    def text(self) -> str:
        return f"{len(self.reasons)} of {self.total} not fresh: " + "; ".join(self.reasons)

    def hint(self) -> str:
        return "find out why the last night failed, or why none began: `a0backup engine check`, `a0backup status`"


class NoHomeError(A0BackupError):
    """The user has no home directory."""

    def __init__(self) -> None:
        super().__init__()

    def text(self) -> str:
        return "this user has no home directory, and HOME is not set"

    def hint(self) -> str:
        return "set HOME to a folder that is kept"


class UnknownVaultError(A0BackupError):
    """The vault is not there, is another one than the one used last, or is on a disk that cannot keep it.

    *root* is its folder.
    """

    def __init__(self, root: str, reason: str, remedy: str = "") -> None:
        super().__init__(root, reason, remedy)
        self.root, self.reason, self.remedy = root, reason, remedy

    def text(self) -> str:
        return f"the vault {self.root} {self.reason}"

    def hint(self) -> str:
        return self.remedy or (
            "mount its disk, or correct fleet.yaml; a first run makes the vault, and `a0backup vault use` says that"
            " this is the vault from now on"
        )


class PlacesBehindError(A0BackupError):
    """Places lack artifacts that the vault has; *reasons* name each such place."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(tuple(reasons))
        self.reasons = tuple(reasons)

    def text(self) -> str:
        return "; ".join(self.reasons)

    def hint(self) -> str:
        return "`a0backup copy` continues where this ended, once the places are well again"


class VerificationFailedError(A0BackupError):
    """Stored artifacts are damaged, missing or could not be read; *reasons* name each with its place."""

    def __init__(self, total: int, reasons: Sequence[str]) -> None:
        super().__init__(total, tuple(reasons))
        self.total, self.reasons = total, tuple(reasons)

    def text(self) -> str:
        return f"{len(self.reasons)} of {self.total} were not found whole: " + "; ".join(self.reasons)

    def hint(self) -> str:
        return "`a0backup verify --repair` brings back what another place has whole"


class PruneRefusedError(A0BackupError):
    """What a prune would remove looks like a mistake, so nothing was removed; *reasons* say why."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(tuple(reasons))
        self.reasons = tuple(reasons)

    def text(self) -> str:
        return "nothing was pruned: " + "; ".join(self.reasons)

    def hint(self) -> str:
        return "look at `a0backup prune --dry-run`; if that is what you want, `a0backup prune --force` does it"


class PruneFailedError(A0BackupError):
    """Nodes or places could not be pruned; *reasons* name each."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(tuple(reasons))
        self.reasons = tuple(reasons)

    def text(self) -> str:
        return "not pruned: " + "; ".join(self.reasons)

    def hint(self) -> str:
        return "the next prune goes on where this one ended"


class DrillFailedError(A0BackupError):
    """Stored backups do not open with the password that they should open with, or are damaged; *reasons* name each."""

    def __init__(self, total: int, reasons: Sequence[str]) -> None:
        super().__init__(total, tuple(reasons))
        self.total, self.reasons = total, tuple(reasons)

    def text(self) -> str:
        return f"{len(self.reasons)} of {self.total} do not open: " + "; ".join(self.reasons)

    def hint(self) -> str:
        return "make a new backup of these nodes now, then find out why: `a0backup drill ID`, `a0backup verify ID`"


class PlaceError(A0BackupError):
    """A place of copies fails or refuses. *place* is its name in fleet.yaml."""

    def __init__(self, place: str, reason: str, remedy: str = "") -> None:
        super().__init__(place, reason, remedy)
        self.place, self.reason, self.remedy = place, reason, remedy

    def text(self) -> str:
        return f"{self.place}: {self.reason}"

    def hint(self) -> str:
        return self.remedy


class PlaceArtifactError(PlaceError):
    """What the place holds under an id is not the artifact, or is damaged; the place itself is well."""


class PlaceDeniedError(PlaceError):
    """The place does not allow what was asked: the credentials may not do it, or the object is locked."""


class NodeError(A0BackupError):
    """One node's backup cannot go on. *node* is its name in fleet.yaml."""

    def __init__(self, node: str, *fields: object) -> None:
        super().__init__(node, *fields)
        self.node = node

    def text(self) -> str:
        return "; ".join(str(field) for field in self.args[1:])

    def message(self) -> str:
        return f"{self.node}: {self.text()}"


class A0cliError(NodeError):
    """A call of a0cli went wrong. *tail* is the end of what it printed, password removed."""

    def __init__(self, node: str, command: str, reason: str, exit_code: int | None = None, tail: str = "") -> None:
        super().__init__(node, command, reason, exit_code, tail)
        self.command, self.reason, self.exit_code, self.tail = command, reason, exit_code, tail

    def what(self) -> str:
        """Return what happened, without the command."""
        said = f", it printed {self.tail!r}" if self.tail else ""
        code = f" (exit code {self.exit_code}{said})" if self.exit_code is not None else said
        return f"{self.reason}{code}"

    def text(self) -> str:
        return f"{self.command}: {self.what()}"


class A0cliMissingError(A0cliError):
    """a0cli or its key pair is not where fleet.yaml says."""

    def hint(self) -> str:
        return "check a0cli.path and a0cli.key_dir in fleet.yaml; `a0cli create-key` makes a key pair"


class A0cliTimeoutError(A0cliError):
    """a0cli did not end within its deadline; its whole process group is gone."""

    transient = True

    def hint(self) -> str:
        return "check whether the node is overloaded; a0cli.call_timeout and a0cli.retrieve_timeout set the deadlines"


class UnreachableError(A0cliError):
    """The node does not answer on its port."""

    transient = True

    def hint(self) -> str:
        return "check host, port (10121 by default) and the firewall between this machine and the node"


class RefusedError(A0cliError):
    """The node or a0cli will not take this command, however often it is asked."""

    def hint(self) -> str:
        return (
            "check that the node has this key pair's public key and the backup role "
            "(`a0cli set-as-backup <device>`), and that its build offers the command"
        )


class UnknownReplyError(A0cliError):
    """A reply that is not understood; never taken for success."""

    transient = True

    def hint(self) -> str:
        return "`a0backup check` prints the line for a0cli.replies in fleet.yaml that teaches this wording"


class EnrolmentError(NodeError):
    """The node could not be put into service: not confirmed, not given the backup role, or its backup not proven."""

    def __init__(self, node: str, reason: str, remedy: str) -> None:
        super().__init__(node, reason, remedy)
        self.reason, self.remedy = reason, remedy

    def text(self) -> str:
        return f"not in service: {self.reason}"

    def hint(self) -> str:
        return self.remedy


class BuildTooOldError(NodeError):
    """The node's build must not be backed up with a0cli."""

    def __init__(self, node: str, build: int) -> None:
        super().__init__(node, build)
        self.build = build

    def text(self) -> str:
        return f"build {self.build} is older than 6868, the first that a0cli may back up"

    def hint(self) -> str:
        return "update the appliance, or correct `build` in fleet.yaml"


class LockDeadlineError(NodeError):
    """Another run kept the node's lock for longer than `lock_deadline`."""

    def __init__(self, node: str, holder: str, waited: float) -> None:
        super().__init__(node, holder, waited)
        self.holder, self.waited = holder, waited

    def text(self) -> str:
        return f"waited {self.waited:.0f} s for the node's lock, held by {self.holder}"

    def hint(self) -> str:
        return "`a0backup status` shows the holder; the lock is released when that run ends"


class BackupInProgressError(NodeError):
    """The node is still making its backup."""

    transient = True

    def __init__(self, node: str, kind: str, seconds: float) -> None:
        super().__init__(node, kind, seconds)
        self.kind, self.seconds = kind, seconds

    def text(self) -> str:
        return f"{self.kind} still in progress after {self.seconds:.0f} s"


class AwaitDeadlineError(NodeError):
    """The node's backup was not there at the deadline."""

    def __init__(self, node: str, kind: str, deadline: float, last: str) -> None:
        super().__init__(node, kind, deadline, last)
        self.kind, self.deadline, self.last = kind, deadline, last

    def text(self) -> str:
        return f"no finished {self.kind} within {self.deadline:.0f} s; the last status was: {self.last}"

    def hint(self) -> str:
        return "the next run resumes from here; polling.deadline in fleet.yaml sets how long to wait"


class NodeUnwellError(NodeError):
    """The node's health endpoints say that a backup would harm it or fail; *reasons* say what is not well."""

    def __init__(self, node: str, reasons: Sequence[str]) -> None:
        super().__init__(node, tuple(reasons))
        self.reasons = tuple(reasons)

    def text(self) -> str:
        return f"the node is not asked for a backup: {'; '.join(self.reasons)}"

    def hint(self) -> str:
        return "mend the node; `health: {on_failure: warn}` in fleet.yaml makes the backup all the same"


class StartFailedError(NodeError):
    """A start was sent and the status shows that it had no effect."""

    def __init__(self, node: str, kind: str, reply: str) -> None:
        super().__init__(node, kind, reply)
        self.kind, self.reply = kind, reply

    def text(self) -> str:
        return f"the node answered the start of {self.kind} with {self.reply!r}, and shows no {self.kind}"

    def hint(self) -> str:
        return "check that the node has the backup role and free disk of at least twice its data"


class ForeignBackupError(NodeError):
    """A backup that this vault did not start is on the node and the policy forbids touching it."""

    def __init__(self, node: str, kind: str, found: str) -> None:
        super().__init__(node, kind, found)
        self.kind, self.found = kind, found

    def text(self) -> str:
        return f"already holds a {self.kind} that this vault did not start ({self.found})"

    def hint(self) -> str:
        return "`--existing preserve` keeps a copy of it first; or wait for whoever started it"


class NodeBusyError(NodeError):
    """The node is still making a backup of another kind, and makes one at a time."""

    def __init__(self, node: str, kind: str, other: str) -> None:
        super().__init__(node, kind, other)
        self.kind, self.other = kind, other

    def text(self) -> str:
        return f"no {self.kind} was started: the node is still making its {self.other}"

    def hint(self) -> str:
        return "the next run finishes that backup first; if it takes this long each night, raise polling.deadline"


class UnsettledError(NodeError):
    """What is on the node has changed again and again; somebody else is at work on it."""

    def __init__(self, node: str, kind: str, last: str) -> None:
        super().__init__(node, kind, last)
        self.kind, self.last = kind, last

    def text(self) -> str:
        return f"the {self.kind} on the node keeps changing; the last status was: {self.last}"

    def hint(self) -> str:
        return "check who else runs a0cli on this node; the next run resumes from here"


class NodeDeadlineError(NodeError):
    """The run has been at this kind of the node for longer than its deadlines and attempts together allow."""

    def __init__(self, node: str, kind: str, seconds: float, last: str) -> None:
        super().__init__(node, kind, seconds, last)
        self.kind, self.seconds, self.last = kind, seconds, last

    def text(self) -> str:
        return f"the {self.kind} was not stored within {self.seconds:.0f} s; the last status was: {self.last}"

    def hint(self) -> str:
        return (
            "check the node: it shows another backup again and again, or its retrievals fail shortly before"
            " a0cli.retrieve_timeout; the next run resumes from here"
        )


class Md5MissingError(NodeError):
    """The status names a backup without a well-formed md5, so nothing retrieved could be verified."""

    def __init__(self, node: str, kind: str, shown: str) -> None:
        super().__init__(node, kind, shown)
        self.kind, self.shown = kind, shown

    def text(self) -> str:
        return f"{self.kind}-status shows no well-formed md5 ({self.shown}); nothing was retrieved"

    def hint(self) -> str:
        return "run `a0cli -t HOST backup-status` by hand and report it to the vendor's support"


class RetrieveFailedError(NodeError):
    """No file came from the node in any attempt."""

    def __init__(self, node: str, kind: str, attempts: int, reason: str) -> None:
        super().__init__(node, kind, attempts, reason)
        self.kind, self.attempts, self.reason = kind, attempts, reason

    def text(self) -> str:
        return f"{self.kind} could not be retrieved in {self.attempts} attempts: {self.reason}"

    def hint(self) -> str:
        return "the node keeps its backup and the next run retrieves it"


class ArtifactTooLargeError(NodeError):
    """More arrived from the node than an artifact may take, so the retrieval was stopped."""

    def __init__(self, node: str, kind: str, reason: str) -> None:
        super().__init__(node, kind, reason)
        self.kind, self.reason = kind, reason

    def text(self) -> str:
        return f"the retrieval of the {self.kind} was stopped: {self.reason}"

    def hint(self) -> str:
        return (
            "the node keeps its backup; if it may be that large, set contents.max_size in fleet.yaml, and see that the"
            " vault's disk has room for it"
        )


class Md5MismatchError(NodeError):
    """The retrieved bytes are not those whose md5 the node named."""

    def __init__(self, node: str, expected: str, actual: str, attempts: int = 1) -> None:
        super().__init__(node, expected, actual, attempts)
        self.expected, self.actual, self.attempts = expected, actual, attempts

    def text(self) -> str:
        tries = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        return f"md5 mismatch{tries}: the node says {self.expected}, the retrieved bytes have {self.actual}"

    def hint(self) -> str:
        return "the node keeps its backup; the last retrieval and the reason are in the node's quarantine folder"


class ContentsError(NodeError):
    """The artifact is what the node sent, and still cannot be opened and read to its end.

    *password_fits*: whether the password opened it so far that no other can be meant.
    """

    password_fits: ClassVar[bool] = True

    def __init__(self, node: str, kind: str, reason: str) -> None:
        super().__init__(node, kind, reason)
        self.kind, self.reason = kind, reason

    def text(self) -> str:
        return f"the contents of the {self.kind} cannot be read: {self.reason}"


class WrongPasswordError(ContentsError):
    """What the password makes of the artifact is noise."""

    password_fits = False

    def hint(self) -> str:
        return (
            "check that a0cli.password_style fits this a0cli, that the password holds letters and digits only, "
            "and that nobody else started this backup"
        )


class UnexpectedFormatError(ContentsError):
    """It is something else than an encrypted tar.gz."""

    password_fits = False

    def hint(self) -> str:
        return "check whether the appliance was updated; `a0backup show ID` prints how to look at it by hand"


class GzipDamagedError(ContentsError):
    """The password fits and the compressed stream is broken or cut; the node itself made it so."""

    def hint(self) -> str:
        return "check whether the node had free disk of at least twice its data while it made the backup"


class TarTruncatedError(ContentsError):
    """The compressed stream is whole and the tar in it is broken or cut; the node itself made it so."""

    def hint(self) -> str:
        return "check whether the node's database was healthy while it made the backup"


class DumpDamagedError(ContentsError):
    """The tar is whole and a file of the MongoDB dump in it is broken or cut; the node itself made it so."""

    def hint(self) -> str:
        return "check whether the node's database was healthy while it made the backup; what it could not read is lost"


class TooLargeUnpackedError(ContentsError):
    """It unpacks to more than fleet.yaml allows; the reading ended there."""

    def hint(self) -> str:
        return "if the backup may be that large, raise contents.max_unpacked or contents.max_ratio in fleet.yaml"


class TooManyPartsError(ContentsError):
    """It consists of so many tiny parts that the reading would hardly end."""

    def hint(self) -> str:
        return "no backup is made like this: look at the node, and report it to the vendor's support"


class DeleteNotConfirmedError(NodeError):
    """The status does not say that the backup is gone after its deletion; it may take a moment."""

    transient = True

    def __init__(self, node: str, kind: str, reason: str) -> None:
        super().__init__(node, kind, reason)
        self.kind, self.reason = kind, reason

    def text(self) -> str:
        return f"the deletion of the {self.kind} is not confirmed: {self.reason}"

    def hint(self) -> str:
        return "the next run handles it; until then the node accepts no new backup"


class NotCopiedError(NodeError):
    """Too few places hold the artifact, so its backup stays on the node.

    *reasons* say why, one for each place; *remedy* is the hint of the first place that gives one.
    """

    def __init__(
        self, node: str, artifact_id: str, copied: int, required: int, reasons: Sequence[str], remedy: str = ""
    ) -> None:
        super().__init__(node, artifact_id, copied, required, tuple(reasons), remedy)
        self.id, self.copied, self.required = artifact_id, copied, required
        self.reasons, self.remedy = tuple(reasons), remedy

    def text(self) -> str:
        return f"{self.copied} of {self.required} required copies; " + "; ".join(self.reasons)

    def hint(self) -> str:
        then = "the next run copies it and then deletes it on the node"
        return f"{self.remedy}; {then}" if self.remedy else then


class VaultError(NodeError):
    """The vault cannot keep or give back an artifact."""


class VaultUnusableError(VaultError):
    """The vault cannot be written."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)
        self.reason = reason

    def hint(self) -> str:
        return "check that the vault's disk is mounted, writable by this user and not full"


class VaultFullError(VaultError):
    """The vault's disk has no room for the artifact that is to come. *needed* and *free* in bytes."""

    def __init__(self, node: str, kind: str, needed: int, free: int) -> None:
        super().__init__(node, kind, needed, free)
        self.kind, self.needed, self.free = kind, needed, free

    def text(self) -> str:
        return (
            f"no room for the {self.kind}: it may take {self.needed:,} bytes, the vault's disk has {self.free:,} free"
        )

    def hint(self) -> str:
        return (
            "free space on the vault's disk (`retention` in fleet.yaml says what `a0backup prune` may remove), or give"
            " the vault a larger one; what other nodes are about to write, and their smaller backups of tonight, do not"
            " count as free; what is on the node stays there"
        )


class LaterVersionError(VaultError):
    """What is stored was written by a later version of this software, and only that one reads it."""

    def hint(self) -> str:
        return "it is not damaged: keep it, and use that version"


class NotReadableError(VaultError):
    """A file in the vault may not be read by this user; nothing is known about its bytes. *owner* is its owner."""

    def __init__(self, node: str, path: str, owner: str) -> None:
        super().__init__(node, path, owner)
        self.path, self.owner = path, owner

    def text(self) -> str:
        return f"{self.path} belongs to {self.owner}, and this user may not read it"

    def hint(self) -> str:
        return "give the vault to the user who runs a0backup: as root, chown -R USER on the vault's folder"


class ArtifactDamagedError(VaultError):
    """What is stored is not what its manifest says."""

    @property
    def reason(self) -> str:
        """What is wrong, without the id: for a line that begins with it."""
        return str(self.args[-1])

    def hint(self) -> str:
        return (
            "`a0backup verify --repair` brings it back from a place of `copies`; a run stores it again if the node"
            " still holds it"
        )
