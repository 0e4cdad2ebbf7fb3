"""The vault: verified artifacts, each in a folder with the manifest that says what it is.

    vault/NODE/20261123T020000Z-backup/backup.tar.gz.enc    exactly the bytes that the node sent
    vault/NODE/20261123T020000Z-backup/manifest.json        written last; without it the folder is not a backup

Paths are only ever built from a node's validated name, a kind and a time, never from what a node or a file says.
"""

import contextlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from a0backup.errors import ArtifactDamagedError, LaterVersionError, VaultUnusableError
from a0backup.files import (
    Digests,
    digests,
    fsync_directory,
    make_durable,
    make_new_directory,
    make_private_directory,
    publish,
    read_past_cache,
)
from a0backup.identity import BackupIdentity
from a0backup.journal import later_schema
from a0backup.replies import quote

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20  # ten recovery keys and thousands of starts that nobody knows the end of
FSTAB = Path("/etc/fstab")

_FOLDER = re.compile(r"(?P<stamp>\d{8}T\d{6}Z)-(?P<kind>[a-z][a-z-]*)\Z")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_ID = re.compile(r"(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*)/(?P<folder>\d{8}T\d{6}Z-[a-z][a-z-]*)\Z")


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs its zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time needs a year that is one in UTC too") from None


Time = Annotated[datetime, AfterValidator(_utc)]
HexMd5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
HexSha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ManifestNode(_Part):
    """Which node it came from."""

    name: str
    host: str
    port: int


class ManifestArtifact(_Part):
    """The file beside the manifest."""

    file: Annotated[str, Field(pattern=r"^[a-z][a-z-]*\.tar\.gz\.enc$")]
    size: Annotated[int, Field(ge=0)]
    md5: HexMd5
    sha256: HexSha256


class SealedPassword(_Part):
    """A password that only the holder of a recovery key can read."""

    recovery_key: str
    box: str


Mode = Literal["shared", "sealed", "unknown"]


class ManifestPassword(_Part):
    """What is known of the password that opens the artifact; never the password itself."""

    mode: Mode
    confirmed: bool = False
    sealed: tuple[SealedPassword, ...] = ()


class Encryption(_Part):
    """How the node encrypted it (vendor's page on exports: `openssl enc -aes-256-ctr -md md5 -nosalt`)."""

    cipher: Literal["aes-256-ctr"] = "aes-256-ctr"
    key_derivation: Literal["EVP_BytesToKey-md5-nosalt"] = "EVP_BytesToKey-md5-nosalt"
    password: ManifestPassword


class VerifiedMember(_Part):
    """A member of the tar, and its size in bytes."""

    name: str
    size: Annotated[int, Field(ge=0)]


class Verified(_Part):
    """What was verified before the manifest was written; what was not looked at is None. Sizes in bytes."""

    level: Literal["md5", "contents"] = "md5"
    members: int | None = None
    unpacked_size: int | None = None  # of the tar
    largest: tuple[VerifiedMember, ...] | None = None  # a few of the members, largest first


_MD5_ONLY = Verified()


class Manifest(_Part):
    """What an artifact is and how it was verified (schema 1)."""

    version: Literal[1] = Field(default=1, alias="schema")
    id: Annotated[str, Field(pattern=_ID.pattern.replace(r"\Z", "$").replace("?P<node>", "").replace("?P<folder>", ""))]
    node: ManifestNode
    kind: str
    name_on_node: str
    started_at: Time | None
    stored_at: Time
    artifact: ManifestArtifact
    encryption: Encryption
    verified: Verified = _MD5_ONLY
    flow_run: str

    @property
    def identity(self) -> BackupIdentity:
        """What the node showed of it."""
        return BackupIdentity(name=self.name_on_node, md5=self.artifact.md5)

    def to_json(self) -> dict[str, object]:
        """Return the manifest as design.md shows it; what was not looked at is left out."""
        content: dict[str, object] = json.loads(self.model_dump_json(by_alias=True))
        content["verified"] = json.loads(self.verified.model_dump_json(exclude_none=True))
        return content


def _open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def unmounted(path: Path, *, fstab: Path = FSTAB) -> Path | None:
    """Return the mount point above *path* that fstab(5) names and where nothing is mounted; None where all is well."""
    try:
        lines = fstab.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    fields = (line.split() for line in lines if not line.lstrip().startswith("#"))
    places = (_unescaped(field[1]) for field in fields if len(field) > 1)
    above = [Path(place) for place in places if place.startswith("/") and path.resolve().is_relative_to(place)]
    return next((place for place in above if not _is_mounted(place)), None)


def _unescaped(name: str) -> str:
    """Return *name* as it is: fstab and mountinfo write a blank in it as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name)


class _Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5): what of which file system is seen where."""

    device: str
    root: Path
    place: Path


def _is_mounted(place: Path) -> bool:
    """Return whether something is mounted at *place*, also a directory of the same file system (mount --bind).

    A directory that is bound onto itself does not count: systemd does so with each of a unit's ReadWritePaths.
    """
    if place.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    place = place.resolve()
    fields = [line.split() for line in lines]
    mounts = [_Mount(field[2], Path(_unescaped(field[3])), Path(_unescaped(field[4]))) for field in fields]
    mounts.reverse()  # the last of those at one place is what is seen there
    here = next((mount for mount in mounts if mount.place == place), None)
    above = max((m for m in mounts if m.place in place.parents), key=lambda m: len(m.place.parts), default=None)
    if here is None or above is None:
        return here is not None
    return (here.device, here.root) != (above.device, above.root / place.relative_to(above.place))


class UnreadableManifest(_Part):
    """A manifest that is there and cannot be read as one; *later*: because a later version wrote it."""

    id: str
    reason: str
    later: bool = False

    def error(self) -> LaterVersionError | ArtifactDamagedError:
        """Return the error that says so; what a later version wrote is not damaged."""
        kind = LaterVersionError if self.later else ArtifactDamagedError
        return kind(self.id, self.reason)


class VaultSnapshot(NamedTuple):
    """The artifacts of a node that were there at one time, and in which vault: another disk may be mounted later."""

    vault: tuple[int, int]  # device and inode of its root
    ids: frozenset[str]


class Vault:
    """The vault at *root*. Whoever changes a node's folder holds that node's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- places ------------------------------------------------------------------------------------------------

    def folder(self, node: str) -> Path:
        """Return the folder of the node of that (validated) name."""
        return self.root / node

    def work(self, node: str) -> Path:
        """Return where private directories and verified, not yet stored artifacts of that node are."""
        return self.folder(node) / "work"

    def artifact(self, manifest: Manifest) -> Path:
        """Return the path of the artifact that *manifest* speaks of."""
        return self.root / manifest.id / manifest.artifact.file

    def require_mounted(self, node: str) -> None:
        """Raise VaultUnusableError where the vault's disk is to be mounted and is not."""
        if (place := unmounted(self.root)) is not None:
            reason = f"{place} is to be mounted, says {FSTAB}, and is not: the vault would be made anew below it"
            raise VaultUnusableError(node, reason)

    def make(self, node: str) -> None:
        """Have the node's folder there, and the vault. Raise VaultUnusableError where its disk is missing, OSError."""
        self.require_mounted(node)
        make_private_directory(self.folder(node))

    def ensure_writable(self, node: str) -> None:
        """Raise VaultUnusableError unless a file can be written and made durable in the node's folder."""
        # Asked before the lock is had: a file of each run's own, and no rename that another run's sweep could spoil.
        probe = self.folder(node) / f".writable.{uuid.uuid4().hex}.partial"
        try:
            self.make(node)
            # Also where they are there already: whoever made them may have been killed before they were durable.
            fsync_directory(self.root)
            fsync_directory(self.root.parent)
            with open(probe, "xb", buffering=0, opener=_private) as file:
                file.write(b"\n")
                os.fsync(file.fileno())
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise VaultUnusableError(node, f"the vault {self.root} cannot be written: {error.strerror}") from error

    # -- reading -----------------------------------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """Return the names of the nodes that have a folder here, sorted."""
        try:
            # By names that a node can have: a disk of its own has a folder lost+found, which nobody may read.
            entries = [entry for entry in os.scandir(self.root) if _NODE.match(entry.name)]
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def folders(self, node: str) -> list[Path]:
        """Return the artifact folders of *node*, with a manifest or without, oldest first."""
        try:
            entries = list(os.scandir(self.folder(node)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(Path(e.path) for e in entries if _FOLDER.match(e.name) and e.is_dir(follow_symlinks=False))

    def entries(self, node: str | None = None) -> Iterator[Manifest | UnreadableManifest]:
        """Yield every manifest, of one node or of all, by node and oldest first; unreadable ones as such."""
        for name in [node] if node is not None else self.nodes():
            for folder in self.folders(name):
                manifest = self._read(folder)
                if manifest is not None:
                    yield manifest

    def manifests(self, node: str | None = None, kind: str | None = None) -> list[Manifest]:
        """Return the readable manifests, of one node and kind or of all, by node and oldest first."""
        return [
            entry
            for entry in self.entries(node)
            if isinstance(entry, Manifest) and (kind is None or entry.kind == kind)
        ]

    def newest_first(self, node: str, kind: str | None = None) -> Iterator[Manifest]:
        """Yield the readable manifests of that node, and kind if named, each read only when it is wanted."""
        for folder in reversed(self.folders(node)):
            manifest = self._read(folder)
            if isinstance(manifest, Manifest) and kind in (None, manifest.kind):
                yield manifest

    def newest(self, node: str, kind: str | None = None) -> Manifest | None:
        """Return the newest readable manifest of that node, and kind if named, without reading the older ones."""
        return next(self.newest_first(node, kind), None)

    def snapshot(self, node: str) -> VaultSnapshot:
        """Return the artifacts of *node* that are there now. Raise OSError where its folder cannot be read."""
        here = self.root.stat()
        names = [entry.name for entry in os.scandir(self.folder(node)) if _FOLDER.match(entry.name)]
        ids = frozenset(f"{node}/{name}" for name in names if (self.folder(node) / name / MANIFEST).exists())
        return VaultSnapshot((here.st_dev, here.st_ino), ids)

    def stored_since(self, node: str, kind: str, before: VaultSnapshot) -> Manifest | None:
        """Return the manifest of the last backup of that kind that a run has stored since *before*; not a foreign one.

        By what was there, not by the clock, which may have been set meanwhile. None where this is another vault now.
        """
        now = self.snapshot(node)
        if now.vault != before.vault:
            return None
        places = (self.root / each for each in now.ids - before.ids if each.endswith(f"Z-{kind}"))
        found = [m for place in places if isinstance(m := self._read(place), Manifest) and m.started_at is not None]
        return max(found, key=lambda manifest: manifest.stored_at, default=None)

    def get(self, artifact_id: str) -> Manifest | UnreadableManifest | None:
        """Return the manifest with that id, None where there is none. An id is never followed out of the vault."""
        folder = self.root / artifact_id
        if not _ID.match(artifact_id) or folder.is_symlink():
            return None
        return self._read(folder)

    def _read(self, folder: Path) -> Manifest | UnreadableManifest | None:
        place = f"{folder.parent.name}/{folder.name}"
        try:
            # Neither a link is followed nor a named pipe waited for.
            with open(folder / MANIFEST, "rb", opener=_open_file) as file:
                content = file.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            return UnreadableManifest(id=place, reason=f"{MANIFEST} cannot be read: {error.strerror}")
        if len(content) > MAX_MANIFEST_BYTES:
            return UnreadableManifest(id=place, reason=f"{MANIFEST} is larger than a manifest can be")
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            if later := later_schema(error):
                return UnreadableManifest(id=place, reason=f"{MANIFEST} {later}", later=True)
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return UnreadableManifest(id=place, reason=quote(f"{MANIFEST}: {where}: {first['msg']}"))
        parts = (manifest.node.name, manifest.kind, manifest.artifact.file)
        kind = folder.name.partition("-")[2]
        if manifest.id != place or parts != (folder.parent.name, kind, f"{kind}.tar.gz.enc"):
            return UnreadableManifest(id=place, reason=f"{MANIFEST} is that of another artifact")
        return manifest

    def with_md5(self, node: str, kind: str, md5: str, *, started_at: datetime | None = None) -> Manifest | None:
        """Return the newest manifest of that node and kind whose artifact has this md5.

        With *started_at* only that of the very backup that was started then: another night's may have the same bytes.
        """
        same = [
            manifest
            for manifest in self.manifests(node, kind)
            if manifest.artifact.md5 == md5 and started_at in (None, manifest.started_at)
        ]
        return same[-1] if same else None

    def reread(self, manifest: Manifest) -> None:
        """Read the artifact past the page cache. Raise ArtifactDamagedError unless it is what its manifest says."""
        node, expected = manifest.node.name, manifest.artifact
        path = self.artifact(manifest)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ArtifactDamagedError(node, manifest.id, "the artifact is not a regular file")
            actual = digests(path, past_cache=True)
        except FileNotFoundError:
            raise ArtifactDamagedError(node, manifest.id, "the artifact is missing") from None
        except OSError as error:
            raise ArtifactDamagedError(node, manifest.id, f"the artifact cannot be read: {error.strerror}") from error
        if actual.size != expected.size:
            reason = f"the artifact has {actual.size} bytes, its manifest says {expected.size}"
            raise ArtifactDamagedError(node, manifest.id, reason)
        if (actual.md5, actual.sha256) != (expected.md5, expected.sha256):
            reason = f"the artifact's sha256 is {actual.sha256}, its manifest says {expected.sha256}"
            raise ArtifactDamagedError(node, manifest.id, reason)

    def confirm(self, manifest: Manifest) -> None:
        """Have an artifact that another run stored read back and durable, so that the node's own copy can go.

        That run may have been killed before its last fsync. Raise ArtifactDamagedError, VaultUnusableError.
        """
        self.reread(manifest)
        folder = self.root / manifest.id
        try:
            self._publish(manifest)
            fsync_directory(folder.parent)
        except OSError as error:
            reason = f"{manifest.id} cannot be made durable: {error.strerror}"
            raise VaultUnusableError(manifest.node.name, reason) from error

    # -- bytes that are verified and not stored yet ------------------------------------------------------------

    def verified_file(self, node: str, kind: str) -> Path:
        """Return where the bytes that matched the node's md5 wait to be stored."""
        return self.work(node) / f"{kind}.tar.gz.enc"

    def salvage(self, node: str, kind: str, md5: str) -> Digests | None:
        """Look through what a run that died left of *node* for the bytes with this *md5*.

        They are put where verified bytes wait to be stored and their digests returned; None where there are none.
        """
        place = self.verified_file(node, kind)
        without_manifest = [folder for folder in self.folders(node) if not (folder / MANIFEST).exists()]
        candidates = [place, *sorted(self.work(node).glob("*/*.tar.gz.enc"))]
        candidates += [path for folder in without_manifest for path in sorted(folder.glob("*.tar.gz.enc"))]
        for candidate in candidates:
            if candidate.is_symlink() or not candidate.is_file():
                continue
            try:
                found = digests(candidate, past_cache=True)
            except OSError:
                continue  # what the disk does not give back is not here
            if found.md5 == md5:
                if candidate != place:
                    candidate.rename(place)
                return found
        return None

    def sweep(self, node: str, *, kind: str, keep: Path) -> list[Path]:
        """Remove what dead runs left of *node*: their private directories (all but *keep*) and partial files.

        Called when nothing of it can be of use any more: the backup of *kind* is stored, or none is on the node. Return
        the folders whose bytes miss their manifest: whether they are worth anything only a person can tell.
        """
        self.verified_file(node, kind).unlink(missing_ok=True)
        self.sweep_private(node, keep=keep)
        self.drop_quarantine(node, kind, but_newest=True)
        for path in self.folder(node).glob(".*.partial"):
            path.unlink(missing_ok=True)
        without_manifest: list[Path] = []
        for folder in self.folders(node):
            for path in folder.glob(".*.partial"):
                path.unlink(missing_ok=True)
            if folder.name.endswith(f"Z-{kind}") and not (folder / MANIFEST).exists():
                left = list(folder.iterdir())
                if any(not path.is_file() or path.stat().st_size for path in left):
                    without_manifest.append(folder)
                else:
                    # Made, and by a crash never filled.
                    shutil.rmtree(folder)
        return without_manifest

    def sweep_private(self, node: str, *, keep: Path) -> None:
        """Remove the private directories of dead runs, all but *keep*."""
        for path in self.work(node).iterdir():
            if path != keep and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

    # -- storing -----------------------------------------------------------------------------------------------

    def store(
        self,
        *,
        node: ManifestNode,
        kind: str,
        name_on_node: str,
        expected: Digests,
        started_at: datetime | None,
        password: ManifestPassword,
        verified: Verified = _MD5_ONLY,
        flow_run: str,
        now: datetime,
    ) -> Manifest:
        """Store the verified bytes that wait in `verified_file` as an artifact and return its manifest.

        When this returns, the artifact has been read back from the disk and matches *expected*, and both it and the
        manifest survive a power cut. Raise ArtifactDamagedError where what is read back differs, VaultUnusableError
        where the vault cannot be written; there is no manifest then.
        """
        source = self.verified_file(node.name, kind)
        try:
            damaged = self.with_md5(node.name, kind, expected.md5, started_at=started_at)
            if damaged is not None and damaged.artifact.sha256 == expected.sha256:
                # Its manifest is true of these very bytes: put them back where they belong.
                self._settle_bytes(source, self.artifact(damaged))
                self.reread(damaged)
                return damaged
            folder = self._make_folder(node.name, kind, started_at or now)
            manifest = Manifest(
                id=f"{node.name}/{folder.name}",
                node=node,
                kind=kind,
                name_on_node=name_on_node,
                started_at=started_at,
                stored_at=now,
                artifact=ManifestArtifact(file=f"{kind}.tar.gz.enc", **asdict(expected)),
                encryption=Encryption(password=password),
                verified=verified,
                flow_run=flow_run,
            )
            self._settle_bytes(source, self.artifact(manifest))
            try:
                self.reread(manifest)
            except ArtifactDamagedError as error:
                # Out of the way: a folder without a manifest would be looked through again by every run.
                reason: dict[str, object] = {"node": node.name, "kind": kind, "reason": error.message()}
                self.quarantine(node.name, kind, self.artifact(manifest), reason=reason, now=now)
                folder.rmdir()
                raise
            # The manifest comes last: a crash before this line leaves no folder that looks like a backup.
            self._publish(manifest)
        except OSError as error:
            raise VaultUnusableError(node.name, f"the artifact cannot be stored: {error.strerror}") from error
        return manifest

    def _settle_bytes(self, source: Path, target: Path) -> None:
        source.chmod(0o600)
        source.replace(target)
        make_durable(target)

    def _publish(self, manifest: Manifest) -> None:
        """Write the manifest, and have it read back before it takes its place. Raise OSError, ArtifactDamagedError."""
        content = json.dumps(manifest.to_json(), indent=2).encode() + b"\n"

        def read_back(written: Path) -> None:
            if read_past_cache(written) != content:
                reason = "the disk gave its manifest back otherwise than it was written"
                raise ArtifactDamagedError(manifest.node.name, manifest.id, reason)

        publish(self.root / manifest.id / MANIFEST, content, check=read_back)

    def _make_folder(self, node: str, kind: str, start: datetime) -> Path:
        second = start.astimezone(UTC)
        while True:
            folder = self.folder(node) / f"{second:%Y%m%dT%H%M%SZ}-{kind}"
            try:
                make_new_directory(folder)
            except FileExistsError:
                second += timedelta(seconds=1)
            else:
                return folder

    # -- quarantine --------------------------------------------------------------------------------------------

    def quarantine(self, node: str, kind: str, retrieved: Path, *, reason: dict[str, object], now: datetime) -> Path:
        """Keep the retrieval *retrieved* that failed verification aside with *reason*, the newest of its kind only."""
        place = self._quarantine(node)
        # Never the node's folder with it: a vault that went away meanwhile must not be made anew.
        with contextlib.suppress(FileExistsError):
            make_new_directory(place)
        former = self._quarantined(node, kind)
        folder = place / f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{kind}"
        make_private_directory(folder)
        # The bytes come last: a folder without them is what a killed run left.
        publish(folder / "reason.json", json.dumps(reason, indent=2).encode() + b"\n")
        retrieved.chmod(0o600)
        retrieved.replace(folder / f"{kind}.tar.gz.enc")
        for path in former:
            if path != folder:
                shutil.rmtree(path)
        return folder

    def drop_quarantine(self, node: str, kind: str, *, but_newest: bool = False) -> None:
        """Remove the retrievals of *kind* that failed verification: all, or those that a killed run did not get to."""
        whole = [path for path in self._quarantined(node, kind) if (path / f"{kind}.tar.gz.enc").exists()]
        for path in self._quarantined(node, kind):
            if not but_newest or path not in whole[-1:]:
                shutil.rmtree(path)

    def _quarantine(self, node: str) -> Path:
        return self.folder(node) / "quarantine"

    def _quarantined(self, node: str, kind: str) -> list[Path]:
        try:
            return sorted(path for path in self._quarantine(node).iterdir() if path.name.endswith(f"Z-{kind}"))
        except FileNotFoundError:
            return []
