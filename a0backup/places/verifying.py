"""Read stored artifacts again, in the vault and in every place, and name what is not as it should be.

The vault's manifests are the measure; an artifact that only a place still has is measured by that
place's own manifest.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from a0backup.errors import ArtifactDamagedError, LaterVersionError, NotReadableError, VaultUnusableError
from a0backup.places.copying import artifact_path, manifest_bytes, manifest_path, read_small, sha256_of
from a0backup.places.records import known_manifest
from a0backup.places.store import Entry, Store
from a0backup.places.transfer import Transfer
from a0backup.vault.drilled import DRILLED
from a0backup.vault.lock import is_held
from a0backup.vault.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, UnreadableManifest
from a0backup.vault.pinned import PINNED
from a0backup.vault.pruned import MARK, Record
from a0backup.vault.vault import COPIES, OF_ANOTHER, VAULT, Vault, kind_of, parsed

Result = Literal["ok", "damaged", "missing", "stray", "foreign", "differs", "not read"]

IN_VAULT = "vault"  # the name of the vault among the places
_ID = re.compile(r"(?P<id>[A-Za-z0-9][A-Za-z0-9._-]*/\d{8}T\d{6}Z-[a-z][a-z-]*)/(?P<file>[^/]+)\Z")
_QUARANTINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/quarantine/\d{8}T\d{6}Z-[a-z-]+\.damaged-[0-9a-f]+)/")
_OTHER = re.compile(rf"(?:{re.escape(VAULT)}|[A-Za-z0-9][A-Za-z0-9._-]*/quarantine/.+|(?:.*/)?\.[^/]+\.partial)\Z")
_MENDS = "`a0backup verify --repair` mends it"
DECIDE = "no run decides which one is right: open both with `a0backup drill`, and move one away"
NOT_COPIED = f"{MANIFEST} is not what was copied to the places"
_LOOK = "nothing of a0backup needs it: look at it, and remove it"
_BESIDE = (COPIES, PINNED, DRILLED, MARK)  # files that may lie beside an artifact and its manifest


@dataclass(frozen=True)
class Finding:
    """What was found of one artifact, or of one file that belongs to none, in one place."""

    place: str
    id: str  # or the path of the file
    result: Result
    reason: str = ""
    hint: str = ""
    manifest: str = ""  # the SHA-256 of the manifest, if the artifact is whole

    @property
    def ok(self) -> bool:
        return self.result == "ok"

    @property
    def counts(self) -> bool:
        """Whether a verification with this finding has failed; a stray file harms nothing."""
        return self.result not in ("ok", "stray")

    @property
    def is_damage(self) -> bool:
        """Whether an artifact is not there as it should be; what was not read may be whole."""
        return self.result not in ("ok", "not read", "stray")


@dataclass(frozen=True)
class Expected:
    """What a place should hold under an id.

    *content*, *manifest*: the vault's manifest and its bytes; None where the vault itself is
    damaged. *known*: the SHA-256 of the manifest that the places were given, if it is recorded.
    *doubtful*: the bytes of the vault's manifest where they are not those.
    """

    content: bytes | None = None
    manifest: Manifest | None = None
    known: str | None = None
    doubtful: bytes | None = None

    def differs_from(self, content: bytes) -> bool:
        """Return whether *content* is not the manifest that should be there."""
        if self.known is not None and hashlib.sha256(content).hexdigest() != self.known:
            return True
        return self.content is not None and content != self.content


def record_doubted(artifact_id: str) -> str:
    """Return what to do where the vault's record alone says that a manifest is wrong."""
    return (
        f"if every place has the same {MANIFEST} as the vault, the vault's {COPIES} is what is damaged: remove "
        f"{artifact_id}/{COPIES} there, and verify again"
    )


def verify_in_vault(vault: Vault, entry: Manifest | UnreadableManifest) -> Finding:
    """Read one artifact in the vault again, past the page cache."""
    try:
        if isinstance(entry, UnreadableManifest):
            raise entry.error()
        vault.reread(entry)
        if Expected(known=known_manifest(vault, entry.id)).differs_from(manifest_bytes(vault, entry)):
            return Finding(IN_VAULT, entry.id, "damaged", NOT_COPIED, f"{_MENDS}; {record_doubted(entry.id)}")
    except ArtifactDamagedError as error:
        return Finding(IN_VAULT, entry.id, "damaged", error.reason, error.hint())
    except (LaterVersionError, NotReadableError, VaultUnusableError) as error:
        return Finding(IN_VAULT, entry.id, "not read", error.message(), error.hint())
    return Finding(IN_VAULT, entry.id, "ok")


def verify_in_place(store: Store, place: str, artifact_id: str, expected: Expected, transfer: Transfer) -> Finding:
    """Read one artifact in a place to its end, and compare it with *expected*, or with its own manifest.

    Raise PlaceError if the place fails.
    """

    def found(result: Result, reason: str, hint: str = "") -> Finding:
        return Finding(place, artifact_id, result, reason, hint)

    content = read_small(store, manifest_path(artifact_id), MAX_MANIFEST_BYTES)
    if content is None:
        return found("missing", f"{MANIFEST} is missing", "`a0backup copy` copies it again")
    manifest = parsed(artifact_id, content)
    if isinstance(manifest, UnreadableManifest):
        if manifest.reason == OF_ANOTHER:
            return found("foreign", manifest.reason, _MENDS)
        error = manifest.error()
        return found("damaged" if manifest.damaged else "not read", manifest.reason, error.hint())
    is_other = expected.manifest is not None and manifest.artifact.sha256 != expected.manifest.artifact.sha256
    if expected.differs_from(content) and not is_other:
        if expected.known is None:
            return found("differs", f"{MANIFEST} is not the vault's, for the same bytes", DECIDE)
        if content == expected.doubtful:
            reason = f"{MANIFEST} is that of the vault, but not the one that was copied here, by the vault's {COPIES}"
            return found("damaged", reason, record_doubted(artifact_id))
        return found("damaged", f"{MANIFEST} is not the one that was copied here", _MENDS)
    wrong = _wrong_bytes(store, manifest, transfer)
    if is_other and expected.manifest is not None:
        if not wrong:
            return found("differs", *_differs(manifest, expected.manifest))
        wrong = f"{MANIFEST} and the artifact are not the vault's"
    if wrong:
        return found("damaged", wrong, _MENDS)
    return Finding(place, artifact_id, "ok", manifest=hashlib.sha256(content).hexdigest())


def _differs(there: Manifest, here: Manifest) -> tuple[str, str]:
    return (
        f"it is whole, but another one than the vault's: its sha256 is {there.artifact.sha256}, the vault's is"
        f" {here.artifact.sha256}",
        DECIDE,
    )


def _wrong_bytes(store: Store, manifest: Manifest, transfer: Transfer) -> str:
    """Return what is wrong with the artifact's bytes in the place; empty if nothing is."""
    artifact = manifest.artifact
    size = store.size(artifact_path(manifest))
    if size is None:
        return f"{artifact.file} is missing"
    if size != artifact.size:
        return f"{artifact.file} has {size} bytes, its manifest says {artifact.size}"
    try:
        sha256, read = sha256_of(transfer.passing(store.read(artifact_path(manifest))))
    except FileNotFoundError:
        return f"{artifact.file} is missing"
    if (sha256, read) != (artifact.sha256, artifact.size):
        return f"{artifact.file} has sha256 {sha256}, its manifest says {artifact.sha256}"
    return ""


class Listing:
    """The files of a place: those of each artifact, and those that belong to none."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.artifacts: dict[str, dict[str, int]] = defaultdict(dict)
        self.others: list[str] = []
        self.quarantines: list[str] = []  # folders
        for entry in entries:
            match = _ID.match(entry.path)
            if match:
                self.artifacts[match["id"]][match["file"]] = entry.size
            elif not _OTHER.match(entry.path):
                self.others.append(entry.path)
            elif (kept := _QUARANTINE.match(entry.path)) and kept[1] not in self.quarantines[-1:]:
                self.quarantines.append(kept[1])

    def strays(self, place: str, *, but: Collection[str], pruned: Container[str] = ()) -> Iterator[Finding]:
        """Yield the files that no artifact explains, and the folders without a manifest, except the ids *but*.

        What is left of those *pruned* is removed by the next prune.
        """
        for path in self.others:
            yield Finding(place, path, "stray", "it belongs to no artifact", _LOOK)
        for artifact_id, files in self.artifacts.items():
            yield from _beside(place, artifact_id, files)
            if MANIFEST not in files and artifact_id not in but and artifact_id not in pruned:
                yield Finding(place, artifact_id, "stray", f"it has no {MANIFEST}", _LOOK)

    @property
    def whole_ids(self) -> list[str]:
        """The ids of the artifacts that have a manifest here."""
        return sorted(artifact_id for artifact_id, files in self.artifacts.items() if MANIFEST in files)


def without_manifest(vault: Vault) -> list[str]:
    """Return the ids of the artifacts that were copied once, and whose manifest is gone and was not pruned."""
    pruned = Record(vault)
    ids = (
        f"{node}/{folder.name}"
        for node in vault.nodes()
        for folder in vault.folders(node)
        if (folder / COPIES).exists() and not os.path.lexists(folder / MANIFEST)
    )
    return [each for each in ids if each not in pruned]


def strays_in_vault(vault: Vault, *, but: Collection[str]) -> list[Finding]:
    """Return the files that no artifact explains, and the folders without a manifest that no run fills.

    The ids *but* are known to lack theirs.
    """
    findings: list[Finding] = []
    pruned = Record(vault)
    for node in vault.nodes():
        held = is_held(vault.folder(node) / "lock")
        for folder in vault.folders(node):
            artifact_id, names = f"{node}/{folder.name}", [path.name for path in folder.iterdir()]
            findings += _beside(IN_VAULT, artifact_id, names)
            if MANIFEST not in names and not held and artifact_id not in but and artifact_id not in pruned:
                findings.append(Finding(IN_VAULT, artifact_id, "stray", f"it has no {MANIFEST}", _LOOK))
    return findings


def _beside(place: str, artifact_id: str, names: Iterable[str]) -> Iterator[Finding]:
    kind = kind_of(artifact_id)
    for name in sorted(set(names) - {MANIFEST, f"{kind}.tar.gz.enc", *_BESIDE}):
        if not _OTHER.match(name):
            yield Finding(place, f"{artifact_id}/{name}", "stray", "it belongs to no artifact", _LOOK)
