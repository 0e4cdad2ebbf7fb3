"""The fleet: the nodes and the settings in one fleet.yaml.

    fleet = load_fleet("fleet.yaml")
    for node in fleet.chosen(["a0-1"]):
        print(node.name, node.host, fleet.polling.deadline)

No message ever repeats the value of `password`.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from a0backup.errors import BuildTooOldError, FleetFileError, UnknownNodeError, UnknownPlaceError
from a0backup.fleet.clashes import clashes
from a0backup.fleet.copies import Copy, require_distinct
from a0backup.fleet.drills import Drills
from a0backup.fleet.fields import (
    DEFAULT_PORT,
    FIRST_BUILD,
    FIRST_SPLIT_BUILD,
    Between,
    FilePath,
    FilePaths,
    SizeBetween,
    Strict,
    host_name,
    matching,
    printable,
    program,
    quoted_value,
    suggestion,
)
from a0backup.fleet.freshness import Freshness
from a0backup.fleet.health import Health
from a0backup.fleet.kinds import Kind, KindEntry
from a0backup.fleet.retention import Retention
from a0backup.fleet.secrets import ENVIRONMENT_NAME, SecretSource

Existing = Literal["preserve", "replace", "fail"]


MEANINGS: Final = ("absent", "in_progress", "found", "refused", "unreachable", "pong", "ignore")
KEYSTREAM_REUSE: Final = (
    "one password for all backups gives one keystream for all of them, as a0cli encrypts without a salt: the XOR of "
    "two artifacts is the XOR of what is in them; `password: {sealed_to: recovery.pub.pem}` in fleet.yaml gives each "
    "backup a password of its own (`a0backup key create` makes the key pair)"
)


_MAX_DELAYS = 50  # Prefect's maximum length of a list of retry delays
_GROWTH = 1.5
_JITTER = 0.2
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def reply_meaning(value: str) -> str:
    if value not in MEANINGS:
        raise PydanticCustomError("unknown_key", "unknown key{aid}", {"aid": suggestion(value, MEANINGS)})
    return value


def _duration(default: str, description: str) -> Any:
    """Return the field of a duration; its default is text, which the JSON Schema shows as it is written."""
    return Field(default, description=description)


class Node(Strict):
    """One appliance instance."""

    name: Annotated[
        str,
        matching(_NAME, "write 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"),
    ] = Field(
        description="The node's name, unique ignoring case; also its folder in the vault.",
        json_schema_extra={"pattern": _NAME},
    )
    host: Annotated[str, AfterValidator(host_name)] = Field(
        description="The host name, IPv4 address or IPv6 address at which a0cli reaches the node.",
        json_schema_extra={"minLength": 1, "maxLength": 253},
    )
    port: int = Field(
        default=DEFAULT_PORT, ge=1, le=65535, strict=True, description="The port of a0cli's server on the node."
    )
    build: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        strict=True,
        description=f"The appliance's build number, if known; a node below {FIRST_BUILD} is refused and not touched.",
    )
    freshness: Freshness | None = Field(
        default=None, description="How old the newest backup of this node may be, in place of the fleet's `freshness`."
    )

    @property
    def too_old(self) -> bool:
        """Whether a0cli must not back up the declared build."""
        return self.build is not None and self.build < FIRST_BUILD

    @property
    def splits(self) -> bool | None:
        """Whether the declared build keeps the encryption keys out of `backup`; None if no build is declared."""
        return None if self.build is None else self.build >= FIRST_SPLIT_BUILD

    def require_build(self) -> None:
        """Return if a0cli may back up this node. Raise BuildTooOldError if its declared build is too old."""
        if self.build is not None and self.too_old:
            raise BuildTooOldError(self.name, self.build)


class A0cliSettings(Strict):
    """How a0cli is called."""

    path: Annotated[str, AfterValidator(program)] = Field(
        default="a0cli", description="The a0cli program: a name on PATH, or a path relative to the fleet file."
    )
    key_dir: FilePath = Field(
        default=Path("~/.a0cli"), description="The folder of the key pair that `a0cli create-key` made."
    )
    call_timeout: Annotated[float, Between("0.1s", "1d")] = _duration(
        "60s", "The timeout of every a0cli call except a retrieval."
    )
    retrieve_timeout: Annotated[float, Between("0.1s", "30d")] = _duration("6h", "The timeout of a retrieval.")
    env: tuple[Annotated[str, matching(ENVIRONMENT_NAME, "write an environment variable's name")], ...] = Field(
        default=(),
        max_length=50,
        description="Additional environment variables that a0cli is given, such as HTTPS_PROXY; the variable of the "
        "password cannot be one of them.",
        json_schema_extra={"uniqueItems": True},
    )
    password_style: Literal["positional", "option"] = Field(
        default="positional", description="How a0cli takes the password: `backup P` or `backup --password P`."
    )
    replies: dict[Annotated[str, AfterValidator(reply_meaning)], list[Annotated[str, AfterValidator(printable)]]] = (
        Field(
            default_factory=dict,
            description="Additional wordings of a0cli's replies, by meaning.",
            json_schema_extra={"propertyNames": {"enum": list(MEANINGS)}},
        )
    )

    @field_validator("replies")
    @classmethod
    def _bounded(cls, replies: dict[str, list[str]]) -> dict[str, list[str]]:
        if any(len(wordings) > 100 or any(len(w) > 1000 for w in wordings) for wordings in replies.values()):
            raise ValueError("write at most 100 wordings for a meaning, each of at most 1000 characters")
        return replies


class PasswordSource(SecretSource):
    """Where the password that encrypts the backups comes from: exactly one source."""

    what: ClassVar[str] = "password"
    section: ClassVar[str] = "password"
    for_a0cli: ClassVar[bool] = True

    sealed_to: FilePaths | None = Field(
        default=None,
        description="The recovery public key, or a list of up to 10 of them, relative to the fleet file; each backup "
        "gets a new random password, sealed to each key.",
    )


class Polling(Strict):
    """How a run waits for a node's backup: how often it polls, and for how long."""

    interval: Annotated[float, Between("0.01s", "1d")] = _duration(
        "15s", "The pause after the first poll of a backup in progress."
    )
    max_interval: Annotated[float, Between("0.01s", "1d")] = _duration(
        "2m", "The maximum pause between two polls; pauses grow up to it."
    )
    deadline: Annotated[float, Between("1s", "30d")] = _duration(
        "4h", "The maximum wait for a backup, from the first poll of a run."
    )

    @field_validator("max_interval")
    @classmethod
    def _not_below_interval(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("interval", 0.0):
            raise ValueError("write a max_interval that is not below interval (2m where none is written)")
        return value

    def delays(self) -> list[float]:
        """Return the first pauses, growing from interval to max_interval; the caller repeats the last one.

        There are at most 50. Their sum never exceeds the deadline. Only a single pause may be below interval.
        """
        delays: list[float] = []
        left, delay = self.deadline, self.interval
        # A last pause clipped to almost nothing would be repeated as a busy loop, so it is omitted.
        while len(delays) < _MAX_DELAYS and (not delays or left >= self.interval):
            delays.append(min(delay, self.max_interval, left))
            if delay >= self.max_interval:
                break
            left, delay = left - delays[-1], delay * _GROWTH
        return delays

    def retries(self) -> int:
        """Return how many retries outlast the deadline even if 20 % jitter shortens each pause, plus two."""
        delays = self.delays()
        left = self.deadline / (1 - _JITTER) - sum(delays)
        return len(delays) + math.ceil(left / delays[-1]) + 2


class ContentsLimits(Strict):
    """The limits for reading an artifact's contents; one that exceeds them is refused as a decompression bomb."""

    max_size: Annotated[int, SizeBetween("1MB", "1PB")] | None = Field(
        default=None,
        description="The maximum size of an artifact: a retrieval that writes more is stopped. Without it, the maximum "
        "is ten times the last artifact plus 1 GB.",
    )
    max_unpacked: Annotated[int, SizeBetween("1MB", "1PB")] = Field(
        default="10TB",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="The maximum unpacked size of an artifact; the default stops only a read that would hardly end.",
    )
    max_ratio: float = Field(
        default=200,
        # zlib's page on its technical details: deflate compresses at most 1032:1.
        ge=2,
        le=1032,
        allow_inf_nan=False,
        description="The maximum ratio of an artifact's unpacked size to its size, checked from 64 MiB unpacked on; a "
        "database dump seldom exceeds 20, and deflate cannot exceed 1032.",
    )


Named = TypeVar("Named", Node, Copy)


class Fleet(Strict):
    """The nodes and the settings in one fleet.yaml."""

    model_config = ConfigDict(title="a0backup fleet file")

    vault: FilePath = Field(description="The folder that keeps the verified artifacts, relative to the fleet file.")
    a0cli: A0cliSettings = Field(default_factory=A0cliSettings, description="How a0cli is called.")
    password: PasswordSource = Field(description="Where the password that encrypts the backups comes from.")
    polling: Polling = Field(default_factory=Polling, description="How a run waits for a node's backup.")
    lock_deadline: Annotated[float, Between("0s", "30d")] = _duration(
        "2h", "How long a run waits for a node that another run has locked."
    )
    max_parallel: int = Field(
        default=16, ge=1, le=256, strict=True, description="The maximum number of nodes backed up at once."
    )
    retrieve_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        strict=True,
        description="The maximum attempts to retrieve an artifact; a failed retrieval or an md5 mismatch is retried.",
    )
    existing: Existing = Field(
        default="preserve", description="What to do with a backup on the node that this vault did not start."
    )
    reuse_within: Annotated[float, Between("0s", "30d")] = _duration(
        "6h",
        "A backup that an earlier run started less than this before a run is that run's backup; an older one is "
        "finished and kept, and a new one is made.",
    )
    give_up_after: int = Field(
        default=2,
        ge=1,
        le=1000,
        strict=True,
        description="After how many nights a backup that arrives whole and never matches its md5 is given up: its "
        "bytes go to quarantine, and a new one is made.",
    )
    contents: ContentsLimits = Field(
        default_factory=ContentsLimits, description="The limits for reading an artifact's contents."
    )
    copies: tuple[Copy, ...] = Field(
        default=(), max_length=16, description="The further places that hold each artifact, besides the vault."
    )
    require_copies: int | None = Field(
        default=None,
        ge=0,
        le=16,
        strict=True,
        description="In how many of these places an artifact must be proven before the node's backup is deleted; 1 "
        "where there are any.",
    )
    health: Health | None = Field(
        default=None, description="The health endpoints of the nodes, if they are to be asked."
    )
    freshness: Freshness = Field(
        default_factory=Freshness, description="How old the newest backup of each node may be."
    )
    retention: Retention | None = Field(
        default=None, description="Which artifacts stay when the vault is pruned; without it, all of them."
    )
    drills: Drills = Field(default_factory=Drills, description="When to warn of drills and of what backups lack.")
    kinds: tuple[KindEntry, ...] = Field(
        default=("backup",),  # type: ignore[arg-type]  # the defaults are validated
        min_length=1,
        description="The kinds of backup to make of each node, one after another.",
        json_schema_extra={"uniqueItems": True, "contains": {"type": "object"}, "minContains": 0, "maxContains": 1},
    )
    nodes: tuple[Node, ...] = Field(min_length=1, max_length=1000, description="The nodes to back up.")

    _path: Path = PrivateAttr(default=Path("fleet.yaml"))

    @model_validator(mode="after")
    def _keeps_secrets_from_a0cli(self) -> Self:
        for source in self.secrets:
            if source.env in self.a0cli.env:
                raise ValueError(f"a0cli.env: remove {source.env}, which holds the {source.what}")
        return self

    @field_validator("kinds")
    @classmethod
    def _each_kind_once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(kinds)) != len(kinds):
            raise ValueError("write each kind once")
        return kinds

    @field_validator("nodes")
    @classmethod
    def _each_node_once(cls, nodes: tuple[Node, ...], info: ValidationInfo) -> tuple[Node, ...]:
        for index, key, remedy in clashes([node.model_dump() for node in nodes], info.data.get("kinds", ())):
            raise PydanticCustomError(
                "clash", "nodes[{index}].{key}: {remedy}", {"index": index, "key": key, "remedy": remedy}
            )
        return nodes

    @field_validator("copies")
    @classmethod
    def _each_place_once(cls, copies: tuple[Copy, ...], info: ValidationInfo) -> tuple[Copy, ...]:
        require_distinct(copies, info.data.get("vault"))
        return copies

    @field_validator("require_copies")
    @classmethod
    def _no_more_than_there_are(cls, required: int | None, info: ValidationInfo) -> int | None:
        there = len(info.data.get("copies", ()))
        if "copies" in info.data and required is not None and required > there:
            raise ValueError(f"write at most the number of copies, which is {there}")
        return required

    @property
    def copies_required(self) -> int:
        """In how many places an artifact must be proven before the node's backup is deleted."""
        return min(1, len(self.copies)) if self.require_copies is None else self.require_copies

    @property
    def secrets(self) -> tuple[SecretSource, ...]:
        """Where all secrets of this fleet come from."""
        return (self.password, *([self.health.key] if self.health is not None else []))

    @property
    def secret_variables(self) -> tuple[str, ...]:
        """The environment variables that hold a secret: whoever needs none must not get them."""
        return tuple(source.env for source in self.secrets if source.env is not None)

    @property
    def secret_blocks(self) -> dict[str, SecretSource]:
        """The Prefect Secret blocks that hold a secret, by their names."""
        return {source.secret_block: source for source in self.secrets if source.secret_block is not None}

    @property
    def path(self) -> Path:
        """The absolute path of the file that this fleet was loaded from."""
        return self._path

    def loaded_from(self, path: Path) -> Self:
        """Return this fleet after recording that it was loaded from the file *path*."""
        self._path = path
        return self

    def kinds_of(self, node: Node) -> tuple[str, ...]:
        """Return the kinds to make of *node*: all, except backup-sensitive if its declared build lacks it.

        On such a build the main backup still contains the encryption keys.
        """
        return tuple(kind for kind in self.kinds if node.splits is not False or kind != "backup-sensitive")

    def max_age_of(self, node: Node) -> float | None:
        """Return how old the newest backup of *node* may be, in seconds; None if no age is too old."""
        return (node.freshness or self.freshness).max_age

    def arguments(self, kind: str) -> tuple[str, ...]:
        """Return what the start of *kind* takes after the password: the comma-separated fields of an export."""
        fields = next((each.fields for each in self.kinds if each == kind), ())
        return (",".join(fields),) if fields else ()

    def node(self, name: str) -> Node:
        """Return the node named *name*. Raise FleetFileError, with the closest name, if there is none."""
        return self.chosen([name])[0]

    def chosen(self, names: Iterable[str]) -> tuple[Node, ...]:
        """Return the nodes with these *names*, without duplicates, in the given order; without names, all nodes.

        Raise UnknownNodeError, which lists every unknown name.
        """
        return self._named("node", self.nodes, names, UnknownNodeError)

    def chosen_copies(self, names: Iterable[str]) -> tuple[Copy, ...]:
        """Return the places with these *names*; without names, all. Raise UnknownPlaceError."""
        return self._named("place", self.copies, names, UnknownPlaceError)

    def _named(
        self, what: str, entries: tuple[Named, ...], names: Iterable[str], error: type[FleetFileError]
    ) -> tuple[Named, ...]:
        wanted = list(dict.fromkeys(names))
        by_name = {entry.name: entry for entry in entries}
        unknown = [f"no {what} is named {quoted_value(n)}{suggestion(n, by_name)}" for n in wanted if n not in by_name]
        if unknown:
            raise error(str(self.path), unknown)
        return tuple(by_name[name] for name in wanted) if wanted else entries


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a fleet file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Fleet.model_json_schema()}
