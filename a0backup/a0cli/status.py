"""The status of a node backup, as a0cli reports it."""

from dataclasses import dataclass, field

from a0backup.a0cli.text import quote
from a0backup.identity import BackupIdentity


@dataclass(frozen=True)
class Found:
    """The node holds a finished node backup.

    *name* is whatever the node wrote: untrusted, never a path. *md5* is 32 lower-case hex digits, or None if
    the reply has no well-formed md5; *shown* then quotes what the reply has in its place.
    """

    name: str
    md5: str | None
    shown: str = field(default="", compare=False)

    @property
    def identity(self) -> BackupIdentity:
        """The identity of this backup."""
        return BackupIdentity(name=self.name, md5=self.md5)


@dataclass(frozen=True)
class InProgress:
    """The node is still making its node backup."""


@dataclass(frozen=True)
class Absent:
    """The node holds no node backup."""


Status = Found | InProgress | Absent


def shown(status: Status) -> str:
    """Return the status as printable text."""
    match status:
        case Absent():
            return "nothing there"
        case InProgress():
            return "in progress"
        case Found():
            return f"found {quote(status.name, limit=80)} ({status.md5 or status.shown})"
