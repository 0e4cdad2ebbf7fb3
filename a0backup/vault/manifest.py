"""The manifest beside an artifact: what the artifact is, and how it was verified (schema 1)."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from a0backup.errors import ArtifactDamagedError, LaterVersionError, NotReadableError
from a0backup.identity import BackupIdentity

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 10 << 20  # room for ten recovery keys and hundreds of starts with an unknown result
# Without a limit, ten megabytes of small values take gigabytes of memory to refuse.
MAX_MANIFEST_COMMAS = 40_000
_MAX_SEALED = 8000
_AROUND_SEALED = 256  # bytes of JSON around a sealed password
MAX_COLLECTIONS = 500
_REST = 2 << 20  # bytes of a manifest without its sealed passwords
_ID = re.compile(r"(?P<node>[A-Za-z0-9][A-Za-z0-9._-]*)/(?P<folder>\d{8}T\d{6}Z-[a-z][a-z-]*)\Z")


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs its zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time needs a year that is one in UTC too") from None


Time = Annotated[datetime, AfterValidator(_utc)]
_MOST = 2**63 - 1  # bytes of a file
HexMd5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
HexSha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ManifestNode(_Part):
    """The node that the artifact came from."""

    name: str
    host: str
    port: Annotated[int, Field(ge=0, le=65535)]


class ManifestArtifact(_Part):
    """The artifact file beside the manifest."""

    file: Annotated[str, Field(pattern=r"^[a-z][a-z-]*\.tar\.gz\.enc$")]
    size: Annotated[int, Field(ge=0, le=_MOST)]
    md5: HexMd5
    sha256: HexSha256


class SealedPassword(_Part):
    """A password that only the holder of a recovery key can read."""

    recovery_key: HexSha256
    box: Annotated[str, Field(min_length=4, max_length=8194, pattern="^[A-Za-z0-9+/]+={0,2}$")]


def newest_that_fit(sealed: tuple[SealedPassword, ...]) -> tuple[SealedPassword, ...]:
    """Return as many of *sealed*, oldest first, as one manifest may hold; the newest if those are not all."""
    room, first = MAX_MANIFEST_BYTES - _REST, len(sealed)
    while first > max(0, len(sealed) - _MAX_SEALED) and room >= len(sealed[first - 1].box) + _AROUND_SEALED:
        first -= 1
        room -= len(sealed[first].box) + _AROUND_SEALED
    return sealed[first:]


Mode = Literal["shared", "sealed", "unknown"]


class ManifestPassword(_Part):
    """What is known about the password that opens the artifact; never the password itself."""

    mode: Mode
    confirmed: bool = False
    sealed: Annotated[tuple[SealedPassword, ...], Field(max_length=_MAX_SEALED)] = ()


class Encryption(_Part):
    """How the node encrypted the artifact (vendor's page on exports: `openssl enc -aes-256-ctr -md md5 -nosalt`)."""

    cipher: Literal["aes-256-ctr"] = "aes-256-ctr"
    key_derivation: Literal["EVP_BytesToKey-md5-nosalt"] = "EVP_BytesToKey-md5-nosalt"
    password: ManifestPassword


class VerifiedMember(_Part):
    """A member of the tar, with its size in bytes."""

    name: str
    size: Annotated[int, Field(ge=0, le=_MOST)]


class VerifiedCollection(_Part):
    """A collection of the MongoDB dump: database.collection, and its documents by number and bytes, unpacked."""

    name: str
    documents: Annotated[int, Field(ge=0, le=_MOST)]
    size: Annotated[int, Field(ge=0, le=_MOST)]


class Verified(_Part):
    """What was verified before the manifest was written, with sizes in bytes; what was not checked is None."""

    level: Literal["md5", "contents"] = "md5"
    members: Annotated[int, Field(ge=0, le=_MOST)] | None = None
    unpacked_size: Annotated[int, Field(ge=0, le=_MOST)] | None = None  # of the tar
    largest: Annotated[tuple[VerifiedMember, ...], Field(max_length=100)] | None = (
        None  # a few of the members, largest first
    )
    collections: Annotated[tuple[VerifiedCollection, ...], Field(max_length=MAX_COLLECTIONS)] | None = (
        None  # of a MongoDB dump, the largest first; None also if there is no dump
    )


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
        """The identity that the node showed for the backup."""
        return BackupIdentity(name=self.name_on_node, md5=self.artifact.md5)

    def to_json(self) -> dict[str, object]:
        """Return the content of manifest.json; what was not checked is left out."""
        content: dict[str, object] = self.model_dump(mode="json", by_alias=True)
        content["verified"] = self.verified.model_dump(mode="json", exclude_none=True)
        return content


class UnreadableManifest(_Part):
    """A manifest that exists and cannot be read as one.

    *later* means that a later version wrote it, *denied_by* names the owner who does not let this
    user read it. In both cases nothing is damaged.
    """

    id: str
    reason: str
    later: bool = False
    denied_by: str = ""

    @property
    def damaged(self) -> bool:
        return not self.later and not self.denied_by

    def error(self) -> LaterVersionError | NotReadableError | ArtifactDamagedError:
        """Return the matching error."""
        if self.denied_by:
            return NotReadableError(self.id, f"the manifest of {self.id}", self.denied_by)
        kind = LaterVersionError if self.later else ArtifactDamagedError
        return kind(self.id, self.reason)
