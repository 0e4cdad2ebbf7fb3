"""The vault: verified artifacts, each in a folder with its manifest.

    vault/NODE/20261123T020000Z-backup/backup.tar.gz.enc    exactly the bytes that the node sent
    vault/NODE/20261123T020000Z-backup/manifest.json        written last; without it the folder is not a backup

Paths are built only from a node's validated name, a kind and a time, never from what a node or a
file says.
"""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from a0backup.a0cli.text import quote
from a0backup.errors import ArtifactDamagedError, NotReadableError, VaultUnusableError
from a0backup.files import (
    Digests,
    UnsuitableFileError,
    digests,
    fsync_directory,
    make_new_directory,
    make_private_directory,
    open_private,
    owner_of,
    read_whole,
)
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import later_schema
from a0backup.vault.manifest import (
    _ID,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_COMMAS,
    Manifest,
    UnreadableManifest,
)
from a0backup.vault.mounts import FSTAB, unmounted

CLOCKS_DIFFER = timedelta(minutes=5)  # those of two machines that share a vault
AHEAD = timedelta(hours=12)  # less does no harm: the next night's backup is newer
VAULT = "vault.json"  # at the root of each vault: its identity
COPIES = "copies.json"  # beside an artifact: in which places it is proven
_FOLDER = re.compile(r"(?P<stamp>\d{8}T\d{6}Z)-(?P<kind>[a-z][a-z-]*)\Z")
_FOLDERS = ("work", "passwords", "quarantine")  # of a node, besides those of its artifacts
_LINK = "a link is in the place of the folder, and no link is followed in a vault"
NO_TIME = datetime.min.replace(tzinfo=UTC)  # of an id that holds none: before all others
OF_ANOTHER = f"{MANIFEST} is that of another artifact"
_TEXT = re.compile(rb'"[^"]*"?')  # of JSON without escaped quotes
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class VaultSnapshot(NamedTuple):
    """The artifacts of a node at one time, and the vault that held them: another disk may be mounted later."""

    vault: tuple[int, int]  # device and inode of its root
    ids: frozenset[str]


class Vault:
    """The vault at *root*; a caller that changes a node's folder holds that node's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- places ------------------------------------------------------------------------------------------------

    def folder(self, node: str) -> Path:
        """Return the folder of *node*, which is a validated name."""
        return self.root / node

    def work(self, node: str) -> Path:
        """Return the folder for private directories and verified, not yet stored artifacts of *node*."""
        return self.folder(node) / "work"

    def artifact(self, manifest: Manifest) -> Path:
        """Return the path of the artifact that *manifest* describes."""
        return self.root / manifest.id / manifest.artifact.file

    def require_mounted(self, node: str) -> None:
        """Raise VaultUnusableError if the vault's disk should be mounted and is not."""
        if (place := unmounted(self.root)) is not None:
            reason = (
                f"{FSTAB} says that {place} is a mount point, but nothing is mounted there;"
                " a new vault would be made below it"
            )
            raise VaultUnusableError(node, reason)

    def make(self, node: str) -> None:
        """Make the node's folder if missing. Raise VaultUnusableError if the vault is gone, OSError."""
        self.require_mounted(node)
        if not self.root.is_dir():
            raise VaultUnusableError(node, f"the vault {self.root} is gone")
        self.require_no_links(node)
        make_private_directory(self.folder(node))

    def require_no_links(self, node: str) -> None:
        """Raise VaultUnusableError if the node's folder or one in it is a link, which would be followed; OSError."""
        folder = self.folder(node)
        links = [folder] if folder.is_symlink() else []
        if not links and folder.exists():
            names = (entry for entry in os.scandir(folder) if entry.name in _FOLDERS or _FOLDER.match(entry.name))
            links = [Path(entry.path) for entry in names if entry.is_symlink()]
        if links:
            raise VaultUnusableError(
                node, f"{links[0]} is a link, and no link is followed in a vault; put a folder there"
            )

    def ensure_writable(self, node: str) -> None:
        """Raise VaultUnusableError unless a file can be written and made durable in the node's folder."""
        # Checked before the lock is held: each run has its own file, and a sweep by another run cannot spoil a rename.
        probe = self.folder(node) / f".writable.{uuid.uuid4().hex}.partial"
        try:
            self.make(node)
            # Also if they exist already: the run that made them may have been killed before they were durable.
            fsync_directory(self.root)
            fsync_directory(self.root.parent)
            with open(probe, "xb", buffering=0, opener=open_private) as file:
                file.write(b"\n")
                os.fsync(file.fileno())
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise VaultUnusableError(node, f"the vault {self.root} cannot be written: {error.strerror}") from error

    # -- reading -----------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """Return the names of the nodes that have a folder here, sorted."""
        return [name for name in self._names() if not self.folder(name).is_symlink()]

    def _names(self) -> list[str]:
        """Return the names of the nodes that have a folder here, or a link in its place, sorted."""
        try:
            # Only names that a node can have: a disk of its own has a folder lost+found, which nobody may read.
            entries = [entry for entry in os.scandir(self.root) if _NODE.match(entry.name)]
            return sorted(e.name for e in entries if e.is_symlink() or e.is_dir())
        except FileNotFoundError:
            return []

    def folders(self, node: str) -> list[Path]:
        """Return the artifact folders of *node*, with or without a manifest, oldest first."""
        try:
            entries = [] if self.folder(node).is_symlink() else list(os.scandir(self.folder(node)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(Path(e.path) for e in entries if _FOLDER.match(e.name) and e.is_dir(follow_symlinks=False))

    def all_ids(self, node: str) -> list[str]:
        """Return the ids of the artifact folders of *node*, with or without a manifest, oldest first. Raise OSError."""
        try:
            entries = [] if self.folder(node).is_symlink() else list(os.scandir(self.folder(node)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        folders = (entry for entry in entries if _FOLDER.match(entry.name))
        return sorted(f"{node}/{entry.name}" for entry in folders if entry.is_dir(follow_symlinks=False))

    def ids(self, node: str, kind: str) -> list[str]:
        """Return the ids of the artifact folders of *node* and *kind*, with or without a manifest, oldest first.

        Raise OSError if the node's folder cannot be read.
        """
        return [each for each in self.all_ids(node) if each.endswith(f"Z-{kind}")]

    def entries(self, node: str | None = None) -> Iterator[Manifest | UnreadableManifest]:
        """Yield the manifests of one node or of all, by node and oldest first; unreadable ones are marked as such."""
        for name in [node] if node is not None else self._names():
            if self.folder(name).is_symlink():
                yield UnreadableManifest(id=name, reason=_LINK)
                continue
            try:
                found = sorted(os.scandir(self.folder(name)), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                reason = f"its folder cannot be read: {error.strerror}"
                yield UnreadableManifest(id=name, reason=reason, denied_by=owner_of(self.folder(name)))
                continue
            for entry in filter(lambda entry: _FOLDER.match(entry.name), found):
                if entry.is_symlink():
                    yield UnreadableManifest(id=f"{name}/{entry.name}", reason=_LINK)
                elif entry.is_dir() and (manifest := self._read(f"{name}/{entry.name}")) is not None:
                    yield manifest

    def manifests(self, node: str | None = None, kind: str | None = None) -> list[Manifest]:
        """Return the readable manifests of one node and kind or of all, by node and oldest first."""
        return [
            entry
            for entry in self.entries(node)
            if isinstance(entry, Manifest) and (kind is None or entry.kind == kind)
        ]

    def newest_first(self, node: str, kind: str | None = None) -> Iterator[Manifest]:
        """Yield the readable manifests of *node*, and of *kind* if given, newest first; each is read when needed."""
        for folder in reversed(self.folders(node)):
            manifest = self._read(f"{node}/{folder.name}")
            if isinstance(manifest, Manifest) and kind in (None, manifest.kind):
                yield manifest

    def newest(self, node: str, kind: str | None = None) -> Manifest | None:
        """Return the newest readable manifest of *node*, and of *kind* if given, without reading the older ones.

        One that `is_ahead` counts only if there is no other.
        """
        now, last = datetime.now(UTC), None
        for manifest in self.newest_first(node, kind):
            if not is_ahead(manifest.id, now):
                return manifest
            last = last or manifest
        return last

    def snapshot(self, node: str) -> VaultSnapshot:
        """Return the artifacts that *node* has now. Raise OSError if its folder cannot be read."""
        here = self.root.stat()
        names = [entry.name for entry in os.scandir(self.folder(node)) if _FOLDER.match(entry.name)]
        ids = frozenset(f"{node}/{name}" for name in names if (self.folder(node) / name / MANIFEST).exists())
        return VaultSnapshot((here.st_dev, here.st_ino), ids)

    def stored_since(self, node: str, kind: str, before: VaultSnapshot) -> Manifest | None:
        """Return the manifest of the last backup of *kind* that a run has stored since *before*; not a foreign one.

        The stored artifacts decide, not the clock, which may have been changed. Return None if this
        is another vault now.
        """
        now = self.snapshot(node)
        if now.vault != before.vault:
            return None
        ids = (each for each in now.ids - before.ids if each.endswith(f"Z-{kind}"))
        found = [m for each in ids if isinstance(m := self._read(each), Manifest) and m.started_at is not None]
        return max(found, key=lambda manifest: manifest.stored_at, default=None)

    def get(self, artifact_id: str) -> Manifest | UnreadableManifest | None:
        """Return the manifest with that id, or None if there is none; no link is followed."""
        folder = self.root / artifact_id
        if not _ID.match(artifact_id):
            return None
        if folder.is_symlink() or folder.parent.is_symlink():
            return UnreadableManifest(id=artifact_id, reason=_LINK)
        return self._read(artifact_id) if folder.is_dir() else None

    def _read(self, artifact_id: str) -> Manifest | UnreadableManifest | None:
        try:
            # Texts and no Paths: a vault may have 100,000 of them.
            content = read_whole(f"{self.root}/{artifact_id}/{MANIFEST}", MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except UnsuitableFileError as error:
            return UnreadableManifest(id=artifact_id, reason=f"{MANIFEST} {error.reason}")
        except OSError as error:
            denied = owner_of(self.root / artifact_id) if isinstance(error, PermissionError) else ""
            reason = f"{MANIFEST} cannot be read: {error.strerror}"
            return UnreadableManifest(id=artifact_id, reason=reason, denied_by=denied)
        return parsed(artifact_id, content)

    def holding(
        self,
        node: str,
        kind: str,
        identity: BackupIdentity,
        *,
        started_at: datetime | None = None,
        foreign_since: datetime | None = None,
    ) -> Manifest | None:
        """Return the newest manifest of *node* and *kind* of a backup with this name and md5.

        With *started_at*, only the backup that was started then counts: another night's may be
        equal. With *foreign_since*, only one that was stored as foreign after that time.
        """

        def counts(manifest: Manifest) -> bool:
            if foreign_since is not None:
                return manifest.started_at is None and manifest.stored_at >= foreign_since
            return started_at in (None, manifest.started_at)

        same = [entry for entry in self.manifests(node, kind) if entry.identity == identity and counts(entry)]
        return same[-1] if same else None

    def hides_manifest(self, node: str, kind: str) -> bool:
        """Return whether a manifest of *node* and *kind* cannot be read."""
        hidden = [entry for entry in self.entries(node) if isinstance(entry, UnreadableManifest)]
        return any(entry.id.endswith(f"Z-{kind}") for entry in hidden)

    def reread(self, manifest: Manifest) -> None:
        """Read the artifact past the page cache. Raise ArtifactDamagedError unless it matches its manifest."""
        with reading(self, manifest) as path:
            actual = digests(path, past_cache=True)
        require_same(manifest, actual)


def parsed(artifact_id: str, content: bytes) -> Manifest | UnreadableManifest:
    """Return the manifest of the artifact in *content*, or why it cannot be read as that."""
    if content.count(b",") > MAX_MANIFEST_COMMAS < _separators(content):
        return UnreadableManifest(id=artifact_id, reason=f"{MANIFEST} holds too many values")
    node, _, name = artifact_id.partition("/")
    kind = name.partition("-")[2]
    try:
        manifest = Manifest.model_validate_json(content)
        parts = (manifest.id, manifest.node.name, manifest.kind, manifest.artifact.file)
        if parts != (artifact_id, node, kind, f"{kind}.tar.gz.enc"):
            return UnreadableManifest(id=artifact_id, reason=OF_ANOTHER)
        return manifest
    except ValidationError as error:
        if later := later_schema(error):
            return UnreadableManifest(id=artifact_id, reason=f"{MANIFEST} {later}", later=True)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return UnreadableManifest(id=artifact_id, reason=quote(f"{MANIFEST}: {where}: {first['msg']}"))


def _separators(content: bytes) -> int:
    """Return how many commas the JSON *content* has outside of its texts: the names in an artifact may be full of them.

    The work and the memory do not depend on what the content is.
    """
    bare = content.replace(rb"\\", b"").replace(rb"\"", b"")
    return bare.count(b",") - sum(text[0].count(b",") for text in _TEXT.finditer(bare))


def make_dated_folder(place: Path, kind: str, start: datetime) -> Path:
    """Make and return a new folder of *kind* in *place*, named by *start* or the next free second after it."""
    second = start.astimezone(UTC)
    while True:
        folder = place / f"{second:%Y%m%dT%H%M%SZ}-{kind}"
        try:
            make_new_directory(folder)
        except FileExistsError:
            second += timedelta(seconds=1)
        else:
            return folder


def kind_of(artifact_id: str) -> str:
    """Return the kind in the id. A node's name may hold whatever separates the parts of a folder's name."""
    return artifact_id.rpartition("/")[2].partition("-")[2]


def is_ahead(artifact_id: str, now: datetime) -> bool:
    """Return whether the time in the id lies in the future: the clock was ahead when the backup was started.

    Until that time has come, each later backup looks older.
    """
    return time_of(artifact_id) > now + AHEAD


def time_of(artifact_id: str) -> datetime:
    """Return the time in the id of an artifact; for an id that holds none, a time before all others."""
    try:
        # Three times as fast as strptime, which is most of the time in a vault of 100,000 artifacts.
        return datetime.fromisoformat(artifact_id.rpartition("/")[2][:15]).replace(tzinfo=UTC)
    except ValueError:
        return NO_TIME


@contextmanager
def reading(vault: Vault, manifest: Manifest) -> Iterator[Path]:
    """Yield the path of the artifact to the block.

    Raise ArtifactDamagedError if it has another size than its manifest says or the block cannot read
    it, NotReadableError if it may not.
    """
    node, path = manifest.node.name, vault.artifact(manifest)
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactDamagedError(node, manifest.id, "the artifact is not a regular file")
        # Before it is read: a file without bytes can have any size.
        require_size(manifest, status.st_size)
        yield path
    except FileNotFoundError:
        raise ArtifactDamagedError(node, manifest.id, "the artifact is missing") from None
    except PermissionError:
        raise NotReadableError(node, str(path), owner_of(path)) from None
    except OSError as error:
        raise ArtifactDamagedError(node, manifest.id, f"the artifact cannot be read: {error.strerror}") from error


def visible_flaw(vault: Vault, manifest: Manifest) -> str:
    """Return the damage to an artifact that is visible without reading it; empty if there is none."""
    try:
        status = os.lstat(f"{vault.root}/{manifest.id}/{manifest.artifact.file}")
    except OSError as error:
        return f"the artifact cannot be found: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "the artifact is not a regular file"
    expected = manifest.artifact.size
    return (
        "" if status.st_size == expected else f"the artifact has {status.st_size} bytes, its manifest says {expected}"
    )


def require_size(manifest: Manifest, size: int) -> None:
    """Raise ArtifactDamagedError unless *size*, in bytes, is what *manifest* says about its artifact."""
    if size != manifest.artifact.size:
        reason = f"the artifact has {size} bytes, its manifest says {manifest.artifact.size}"
        raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)


def require_same(manifest: Manifest, actual: Digests) -> None:
    """Raise ArtifactDamagedError unless *actual* matches what *manifest* says about its artifact."""
    expected = manifest.artifact
    require_size(manifest, actual.size)
    if (actual.md5, actual.sha256) != (expected.md5, expected.sha256):
        reason = f"the artifact's sha256 is {actual.sha256}, its manifest says {expected.sha256}"
        raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)
