"""Remove an artifact from the vault, so that a kill at any point leaves what the next prune finishes.

    vault/NODE/ID/manifest.json.pruned    the manifest of an artifact that is being removed
    vault/NODE/pruned.jsonl               a line for each artifact that was pruned

The manifest is renamed first: from then on, nothing takes the folder for a backup. The record tells
what was pruned from what was lost: only the former is ever removed in a place, and never missed.
The caller holds the node's lock.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from a0backup.files import (
    UnsuitableFileError,
    fsync_directory,
    make_private,
    open_regular,
    read_whole,
    remove_file,
)
from a0backup.vault.drilled import DRILLED
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, HexSha256, Manifest, Time
from a0backup.vault.notes import Note
from a0backup.vault.pinned import PINNED, reason_to_keep
from a0backup.vault.vault import COPIES, Vault, kind_of, parsed

MARK = f"{MANIFEST}.pruned"
RECORD = "pruned.jsonl"
_MOST = 256 << 20  # bytes: a million lines
_LONGEST_LINE = 4096
_LONGEST_RUN = 200  # characters; a manifest that says more must not make a line that nobody reads


class Pruned(Note):
    """A line of the record: what was pruned, and what decides on its copies.

    *ours*: whether a run had started it. *sha256* and *size* (bytes) are those of the artifact, *manifest* is the
    SHA-256 of its manifest; None if the manifest was damaged before the line could be written: then nobody removes its
    copies.
    """

    id: str
    pruned_at: Time
    ours: bool = True
    level: Literal["md5", "contents"] = "md5"
    flow_run: str = ""
    sha256: HexSha256 | None = None
    size: Annotated[int, Field(ge=0)] | None = None
    manifest: HexSha256 | None = None


class Record:
    """What was pruned from *vault*, read once for each node; a line that cannot be read counts as none."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._nodes: dict[str, dict[str, Pruned]] = {}

    def of_node(self, node: str) -> dict[str, Pruned]:
        """Return what was pruned of *node*, by id."""
        if node not in self._nodes:
            self._nodes[node] = {line.id: line for line in _lines(self._vault.folder(node) / RECORD, node)}
        return self._nodes[node]

    def manifest_of(self, artifact_id: str) -> str | None:
        """Return the SHA-256 of the manifest of a pruned artifact; None if it was not pruned, or that is not known."""
        line = self.of_node(artifact_id.partition("/")[0]).get(artifact_id)
        return line.manifest if line is not None and artifact_id in self else None

    def require_writable(self, node: str) -> None:
        """Raise OSError unless a line can be added for *node*; a full disk is no obstacle, as a prune frees room."""
        path = self._vault.folder(node) / RECORD
        try:
            with open(path, "ab", buffering=0, opener=_open):
                pass
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def note(self, line: Pruned) -> None:
        """Add *line* durably, unless it is there. Raise OSError."""
        node = line.id.partition("/")[0]
        there = self.of_node(node).get(line.id)
        if there is None or there.manifest != line.manifest:
            _append(self._vault.folder(node) / RECORD, line.model_dump_json(by_alias=True).encode() + b"\n")
            self._nodes[node][line.id] = line

    def __contains__(self, artifact_id: object) -> bool:
        """Return whether the artifact was pruned and is not in the vault again, whole or without its manifest."""
        if not isinstance(artifact_id, str):
            return False
        folder = self._vault.root / artifact_id
        if os.path.lexists(folder / MANIFEST):
            return False
        if is_marked(folder):
            return True
        # No prune leaves the artifact without the mark: somebody has brought it back, and the manifest was lost since.
        is_back = os.path.lexists(folder / artifact_name(artifact_id))
        return not is_back and artifact_id in self.of_node(artifact_id.partition("/")[0])


def is_marked(folder: Path) -> bool:
    """Return whether the removal of the artifact in *folder* has begun and did not end."""
    return os.path.lexists(folder / MARK) and not os.path.lexists(folder / MANIFEST)


def begun(vault: Vault, node: str, *, but: Collection[str]) -> list[str]:
    """Return the ids of the artifacts of *node* whose removal did not end; *but* are the ids that have a manifest."""
    record = Record(vault)
    return [each for each in vault.all_ids(node) if each not in but and each in record]


def take_back(vault: Vault, artifact_id: str) -> None:
    """Undo a removal that was cut before the artifact was touched: it may be pinned by now. Raise OSError."""
    folder = vault.root / artifact_id
    if is_marked(folder) and os.path.lexists(folder / artifact_name(artifact_id)):
        _rename(folder, MARK, MANIFEST)


def remove_night(vault: Vault, ids: Sequence[str], record: Record, *, now: datetime) -> str:
    """Remove the artifacts *ids* of one night durably; return why all are kept if one of them was pinned meanwhile.

    Raise OSError.
    """
    folders = [vault.root / each for each in ids]
    if reason := _pinned(folders, now):
        return reason
    marked: list[Path] = []
    try:
        for folder in folders:
            _rename(folder, MANIFEST, MARK)
            marked.append(folder)
        # `keep` takes no lock, as a night may hold it for hours: it pins, and then looks whether the manifest is there.
        reason = _pinned(folders, now)
    except OSError:
        _unmark(marked)
        raise
    if reason:
        _unmark(marked)
        return reason
    for each in ids:
        finish(vault, each, record, now=now)
    return ""


def _pinned(folders: Sequence[Path], now: datetime) -> str:
    return next(filter(None, (reason_to_keep(folder, now) for folder in folders)), "")


def _unmark(folders: Sequence[Path]) -> None:
    for folder in folders:
        _rename(folder, MARK, MANIFEST)


def _rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)
    fsync_directory(folder)


def finish(vault: Vault, artifact_id: str, record: Record, *, now: datetime) -> None:
    """End a removal that has begun. Files that are not ours stay, in their folder. Raise OSError."""
    node = artifact_id.partition("/")[0]
    folder = vault.root / artifact_id
    # The artifact comes first: on a full disk, there is no room for the record before it is gone.
    remove_file(folder / artifact_name(artifact_id), below=vault.root)
    if os.path.lexists(folder / MARK):
        record.note(_line(folder, artifact_id, now))
    names = [entry.name for entry in os.scandir(folder)]
    for each in names:
        if each in (f"{MANIFEST}.sig", COPIES, PINNED, DRILLED) or (each.startswith(".") and each.endswith(".partial")):
            remove_file(folder / each, below=vault.root)
    # The mark comes last: what it says is needed for the line in the record.
    fsync_directory(folder)
    remove_file(folder / MARK, below=vault.root)
    if not any(folder.iterdir()):
        folder.rmdir()
    fsync_directory(vault.folder(node))


def artifact_name(artifact_id: str) -> str:
    """Return the name of the artifact's file, by its kind."""
    return f"{kind_of(artifact_id)}.tar.gz.enc"


def _line(folder: Path, artifact_id: str, now: datetime) -> Pruned:
    try:
        content = read_whole(folder / MARK, MAX_MANIFEST_BYTES)
    except (OSError, UnsuitableFileError):
        return Pruned(id=artifact_id, pruned_at=now)
    manifest = parsed(artifact_id, content)
    if not isinstance(manifest, Manifest):
        return Pruned(id=artifact_id, pruned_at=now)
    return Pruned(
        id=artifact_id,
        pruned_at=now,
        ours=manifest.started_at is not None,
        level=manifest.verified.level,
        flow_run=manifest.flow_run[:_LONGEST_RUN],
        sha256=manifest.artifact.sha256,
        size=manifest.artifact.size,
        manifest=hashlib.sha256(content).hexdigest(),
    )


def _append(path: Path, content: bytes) -> None:
    with open(path, "a+b", buffering=0, opener=_open) as file:
        make_private(file.fileno(), 0o600)
        # The end of a line that a kill has cut must not become part of this one.
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                content = b"\n" + content
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    fsync_directory(path.parent)


def _open(path: str, flags: int) -> int:
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return file


def _lines(path: Path, node: str) -> Iterator[Pruned]:
    try:
        with open(path, "rb", opener=open_regular) as file:
            if os.fstat(file.fileno()).st_size > _MOST:
                return
            while line := file.readline(_LONGEST_LINE):
                pruned = Pruned.parsed(line)
                if pruned is not None and pruned.id.partition("/")[0] == node:
                    yield pruned
    except OSError:
        return
