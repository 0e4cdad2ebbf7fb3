"""The nights in which a backup on a node arrived whole and did not match its md5: a file per node and kind.

vault/NODE/unverified-KIND.json
"""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a0backup.files import UnsuitableFileError, publish, read_whole, remove_durably
from a0backup.identity import BackupIdentity
from a0backup.vault.manifest import HexMd5, Time

MAX_BYTES = 64 << 10


class _Content(BaseModel):
    """The content of the file (schema 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    backup: BackupIdentity
    arrived: HexMd5
    nights: tuple[Time, ...]


class UnverifiedFile:
    """The count for one node and kind; a caller holds the node's lock."""

    def __init__(self, node_folder: Path, kind: str) -> None:
        self.path = node_folder / f"unverified-{kind}.json"

    def count(self, backup: BackupIdentity, arrived: str, at: datetime, *, within: float) -> int:
        """Count a night that began *at* for *backup*, and return how many there were. Raise OSError.

        Runs within *within* seconds are one night. Another backup than the last one, or bytes with
        another md5 than those that *arrived* then, begin anew.
        """
        # Times that a wrong clock has put into the future would count a night twice.
        nights = tuple(night for night in self._nights(backup, arrived) if night <= at + timedelta(seconds=within))
        if not nights or abs((at - nights[-1]).total_seconds()) >= within:
            nights = (*nights, at)
        content = _Content(backup=backup, arrived=arrived, nights=nights)
        publish(self.path, content.model_dump_json(by_alias=True, indent=1).encode() + b"\n")
        return len(nights)

    def remove(self) -> None:
        """Forget the backup: it is off the node. Raise OSError."""
        if self.path.exists():
            remove_durably(self.path)

    def _nights(self, backup: BackupIdentity, arrived: str) -> tuple[datetime, ...]:
        try:
            content = _Content.model_validate_json(read_whole(self.path, MAX_BYTES))
        except (FileNotFoundError, UnsuitableFileError, ValidationError):
            return ()
        return content.nights if (content.backup, content.arrived) == (backup, arrived) else ()
