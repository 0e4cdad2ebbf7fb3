"""`copies` in fleet.yaml: the further places that hold each artifact."""

import posixpath
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from a0backup.fleet.fields import BLOCK_NAME, Between, BlockName, RateBetween, Strict, matching, path_value, printable
from a0backup.fleet.retention import Retention

Scheme = Literal["file", "s3", "sftp"]

_NAME = r"^[a-z0-9][a-z0-9._-]{0,31}$"
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"  # the rules of S3 for names of buckets
_FORMS = "write a folder, s3://BUCKET/PREFIX or sftp://USER@HOST/FOLDER"


def _url(value: object, info: ValidationInfo) -> str:
    """Return the address of a place: a folder as its whole path, others as they are written."""
    if not isinstance(value, str):
        raise ValueError(_FORMS)
    text = printable(value)
    if "://" not in text:
        return str(path_value(text, info))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_FORMS) from None
    if parts.password is not None or (parts.username is not None and parts.scheme != "sftp"):
        raise PydanticCustomError(
            "literal_password",
            "never write credentials into an address: they come from the environment, ~/.aws, ~/.ssh or key files",
        )
    if parts.query or parts.fragment:
        raise ValueError(f"has '?' or '#' in it: {_FORMS}")
    folders = unquote(parts.path).split("/")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return unquote(parts.path)
    bucket = parts.scheme == "s3" and port is None and re.fullmatch(_BUCKET, parts.netloc, re.ASCII)
    server = parts.scheme == "sftp" and parts.hostname and parts.path.strip("/")
    if not (bucket or server) or ".." in folders or "." in folders:
        raise ValueError(_FORMS)
    return text.rstrip("/")


class Copy(Strict):
    """A further place that holds each artifact, with the layout of the vault."""

    name: Annotated[
        str, matching(_NAME, "write 1 to 32 lower-case letters, digits, '.', '_' or '-', starting with none of these")
    ] = Field(description="The name of the place in messages and for `--place`.", json_schema_extra={"pattern": _NAME})
    url: Annotated[str, PlainValidator(_url), WithJsonSchema({"type": "string"})] = Field(
        description="A folder, as a path or file:// address, relative to the fleet file; s3://BUCKET/PREFIX; or "
        "sftp://USER@HOST:PORT/FOLDER. Never credentials: they come from the environment, ~/.aws or ~/.ssh.",
    )
    prove: Literal["read", "checksum"] = Field(
        default="read",
        description="How a copy is proven. read: it is read back and hashed. checksum: an S3 server computes SHA-256 "
        "over what it stored; a server that accepts a wrong checksum is not believed, and its copies are read back.",
    )
    profile: Annotated[str, matching(r"^[A-Za-z0-9_. @-]{1,64}$", "write the name of a profile")] | None = Field(
        default=None,
        description="The profile of ~/.aws/config whose credentials, region and endpoint_url an s3:// place uses.",
    )
    secret_block: BlockName | None = Field(
        default=None,
        max_length=255,
        description="The name of the Prefect Secret block that holds the credentials of an s3:// or sftp:// place, as "
        "JSON. Default: the environment, ~/.aws or ~/.ssh.",
        json_schema_extra={"pattern": BLOCK_NAME},
    )
    limit: Annotated[int, RateBetween("1kB/s", "100GB/s")] | None = Field(
        default=None, description="The maximum bandwidth of the place, for sending and reading together."
    )
    at_most: int = Field(default=2, ge=1, le=32, strict=True, description="The maximum number of transfers at once.")
    deadline: Annotated[float, Between("1s", "1d")] = Field(
        default="2m",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="A transfer in which no byte moves for this long has failed.",
    )
    retention: Retention | None = Field(
        default=None,
        description="Which artifacts stay in this place after they were pruned from the vault; without it, none.",
    )

    @model_validator(mode="after")
    def _only_where_it_applies(self) -> Self:
        if self.scheme != "s3" and self.prove == "checksum":
            raise ValueError("prove: checksum is for s3:// places; write prove: read")
        if self.scheme != "s3" and self.profile is not None:
            raise ValueError("profile is for s3:// places; remove it")
        if self.scheme == "file" and self.secret_block is not None:
            raise ValueError("secret_block is for s3:// and sftp:// places; remove it")
        return self

    @property
    def scheme(self) -> Scheme:
        """The kind of place."""
        if self.url.startswith("s3://"):
            return "s3"
        return "sftp" if self.url.startswith("sftp://") else "file"

    @property
    def root(self) -> str:
        """The folder of the place: a whole path, the prefix in the bucket, or the path on the server."""
        return self.url if self.scheme == "file" else unquote(urlsplit(self.url).path).strip("/")


def require_distinct(copies: tuple[Copy, ...], vault: Path | None) -> None:
    """Raise ValueError where two places have one name or are one place, or one is the vault or lies in it."""
    if any(copy.name == "vault" for copy in copies):
        raise ValueError("`vault` names the vault itself: give the place another name")
    for key, values in {"name": [copy.name for copy in copies], "url": [_spelled_out(copy) for copy in copies]}.items():
        if len(set(values)) < len(values):
            raise ValueError(f"two places have the same {key}: each copy needs a place of its own")
    for copy in copies:
        if vault is None or copy.scheme != "file":
            continue
        folder, root = Path(copy.url).resolve(), vault.resolve()
        if folder == root or root in folder.parents or folder in root.parents:
            raise ValueError(f"{copy.name}: the folder is the vault, lies in it or contains it: choose another one")


def _spelled_out(copy: Copy) -> str:
    """Return the address of the place in one spelling, whatever links, ports and slashes it is written with."""
    if copy.scheme == "file":
        return str(Path(copy.url).resolve())
    parts = urlsplit(copy.url)
    folder = posixpath.normpath(f"/{copy.root}")
    if copy.scheme == "s3":
        return f"s3://{parts.netloc}{folder}"
    return f"sftp://{parts.hostname}:{parts.port or 22}{folder}"
