"""Which node backup it is: the one place that compares them."""

from pydantic import BaseModel, ConfigDict


class BackupIdentity(BaseModel):
    """The name and the md5 that a node shows of a backup. *md5* is None where it shows none that is well-formed.

    Two that are equal are the same backup.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    md5: str | None

    def may_be(self, other: "BackupIdentity") -> bool:
        """Return whether both may be the same backup: an md5 that is not shown proves nothing."""
        return self.name == other.name and (self.md5 == other.md5 or None in (self.md5, other.md5))
