"""The identity of a node backup: the one place that compares backups."""

from pydantic import BaseModel, ConfigDict


class BackupIdentity(BaseModel):
    """The name and the md5 that a node shows for a backup; two equal identities are the same backup.

    *md5* is None if the node shows none that is well-formed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    md5: str | None

    def may_be(self, other: "BackupIdentity") -> bool:
        """Return whether both may be the same backup; an md5 that is not shown proves nothing."""
        return self.name == other.name and (self.md5 == other.md5 or None in (self.md5, other.md5))

    def may_hold_bytes_of(self, other: "BackupIdentity") -> bool:
        """Return whether this may be the bytes of *other*, even if the node shows them under another name."""
        return self.may_be(other) or (self.md5 is not None and self.md5 == other.md5)
