"""Sealed passwords of backups that are not settled yet, each in a write-once file of its own.

    vault/NODE/passwords/20261123T020000Z-backup.json

A password is on the disk, sealed, before it is sent to the node. All calls are made under the
node's lock. The password itself is never written.
"""

import contextlib
import itertools
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a0backup.errors import VaultUnusableError
from a0backup.files import (
    UnsuitableFileError,
    fsync_directory,
    make_new_directory,
    publish,
    read_past_cache,
    read_whole,
    take_name,
)
from a0backup.vault.journal import later_schema
from a0backup.vault.manifest import Manifest, SealedPassword, Time

MAX_BYTES = 256 << 10


class _Content(BaseModel):
    """The content of one file (schema 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    node: str
    kind: str
    made_at: Time
    sealed: Annotated[tuple[SealedPassword, ...], Field(min_length=1)]


class SealedFiles:
    """The sealed passwords of one node's unsettled backups of one kind."""

    def __init__(self, node_folder: Path, kind: str) -> None:
        self.folder = node_folder / "passwords"
        self.node, self.kind = node_folder.name, kind
        self._name = re.compile(rf"\d{{8}}T\d{{6}}Z-{re.escape(kind)}\.json\Z")

    def write(self, made_at: datetime, sealed: Sequence[SealedPassword]) -> Path:
        """Write *sealed* to a new file, read it back from the disk, and return its path; it survives a power cut.

        An existing file is never replaced: the next free second is used. Raise OSError,
        VaultUnusableError.
        """
        # Do not make the node's folder along with it: a vault that has gone away must not be created again.
        with contextlib.suppress(FileExistsError):
            make_new_directory(self.folder)
        model = _Content(node=self.node, kind=self.kind, made_at=made_at, sealed=tuple(sealed))
        content = json.dumps(model.model_dump(mode="json", by_alias=True), indent=2).encode() + b"\n"

        def read_back(written: Path) -> None:
            if read_past_cache(written) != content:
                raise VaultUnusableError(
                    self.node, "the disk returned a sealed password that differs from what was written"
                )

        aside = self.folder / f".{uuid.uuid4().hex}.partial"
        try:
            publish(aside, content, check=read_back)
            path = self._link(aside, made_at.astimezone(UTC))
        finally:
            aside.unlink(missing_ok=True)
        fsync_directory(self.folder)
        return path

    def _link(self, aside: Path, second: datetime) -> Path:
        while True:
            path = self.folder / f"{second:%Y%m%dT%H%M%SZ}-{self.kind}.json"
            try:
                take_name(aside, path)
            except FileExistsError:
                second += timedelta(seconds=1)
            else:
                return path

    def all(self) -> tuple[SealedPassword, ...]:
        """Return the passwords of all readable files, oldest first, each once.

        Raise OSError if the folder is unreadable.
        """
        return tuple(dict.fromkeys(entry for each in self._contents().values() if each for entry in each.sealed))

    def unreadable(self) -> list[str]:
        """Return the names of the files that cannot be read as one of this kind. Raise OSError."""
        return [path.name for path, content in self._contents().items() if content is None and not self._later(path)]

    def later(self) -> list[str]:
        """Return the names of the files that a later version wrote and only that version reads. Raise OSError."""
        return [path.name for path, content in self._contents().items() if content is None and self._later(path)]

    def needed(self, newest_first: Iterable[Manifest]) -> tuple[SealedPassword, ...]:
        """Return the passwords that a backup may still need. *newest_first*: the manifests of this node and kind.

        A password is needed until it has been proven to open an artifact: then it opens no other.
        Until then its backup may still appear, be in another vault, or be stored without a list of
        candidates.
        """
        made = [content for content in self._contents().values() if content]
        if not made:
            return ()
        oldest = min(content.made_at for content in made)
        proven: set[SealedPassword] = set()
        for manifest in itertools.takewhile(lambda manifest: manifest.stored_at >= oldest, newest_first):
            if manifest.encryption.password.confirmed:
                proven |= set(manifest.encryption.password.sealed)
        return tuple(entry for content in made for entry in content.sealed if entry not in proven)

    def remove(self, but: Sequence[SealedPassword] = ()) -> None:
        """Remove the readable files durably, except those that hold one of *but*. Raise OSError.

        Partial files that a killed run left are removed, too.
        """
        if not self.folder.is_dir():
            return
        for path, content in self._contents().items():
            if content is not None and not set(content.sealed) & set(but):
                path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.partial"):
            path.unlink(missing_ok=True)
        fsync_directory(self.folder)

    def _contents(self) -> dict[Path, _Content | None]:
        """Return every file of this kind with its content, oldest first; None for a file that cannot be read as one."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.folder) if self._name.match(entry.name))
        except FileNotFoundError:
            return {}
        return {self.folder / name: self._read(self.folder / name) for name in names}

    def _later(self, path: Path) -> bool:
        try:
            _Content.model_validate_json(read_whole(path, MAX_BYTES))
        except ValidationError as error:
            return bool(later_schema(error))
        except (OSError, UnsuitableFileError):
            return False
        return False

    def _read(self, path: Path) -> _Content | None:
        try:
            content = _Content.model_validate_json(read_whole(path, MAX_BYTES))
        except (OSError, UnsuitableFileError, ValidationError):
            return None
        if (content.node, content.kind) != (self.node, self.kind):
            return None
        return content
