"""What a node holds, as a0cli's status says it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from a0backup.a0cli.text import quote
from a0backup.identity import BackupIdentity

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Found:
    """The node holds a finished node backup.

    *name* is whatever the node wrote: untrusted, never a path. *md5* is 32 lower-case hex digits, or None where the
    reply has none that is well-formed; *shown* then quotes what stood there.
    """

    name: str
    md5: str | None
    shown: str = field(default="", compare=False)

    @property
    def identity(self) -> BackupIdentity:
        """Which backup it is."""
        return BackupIdentity(name=self.name, md5=self.md5)


@dataclass(frozen=True)
class InProgress:
    """The node is making its node backup."""


@dataclass(frozen=True)
class Absent:
    """The node holds no node backup."""


Status = Found | InProgress | Absent


def shown(status: Status) -> str:
    """Return the status in words, fit to be printed."""
    match status:
        case Absent():
            return "nothing there"
        case InProgress():
            return "in progress"
        case Found():
            return f"found {quote(status.name, limit=80)} ({status.md5 or status.shown})"
