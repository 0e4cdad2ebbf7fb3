"""The fleet: the nodes and the settings that one fleet.yaml names.

    fleet = Fleet.load("fleet.yaml")
    for node in fleet.chosen(["a0-1"]):
        print(node.name, node.host, fleet.polling.deadline)

A fleet file is validated as a whole; every problem in it is reported at once, with its line, its key and a remedy. What
stands under `password` is never repeated in a message.
"""

import difflib
import ipaddress
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from a0backup.errors import BuildTooOldError, FleetFileError, UnknownNodeError

Existing = Literal["preserve", "replace", "fail"]

# The vendor's page on backups: builds before this one must not be backed up with a0cli.
FIRST_BUILD: Final = 6868
# From this one on `backup` leaves out the encryption keys, and `backup-sensitive` exists to fetch them (same page).
FIRST_SPLIT_BUILD: Final = 11638
DEFAULT_PORT: Final = 10121
MEANINGS: Final = ("absent", "in_progress", "found", "refused", "unreachable", "pong")
KEYSTREAM_REUSE: Final = (
    "one password for all backups gives one keystream for all of them, as a0cli encrypts without a salt: the XOR of "
    "two artifacts is the XOR of what is in them; `password: {sealed_to: recovery.pub.pem}` in fleet.yaml gives each "
    "backup a password of its own (`a0backup init --recovery-key` makes the key pair)"
)
# The vendor's page on the CLI: what `user-export PASSWORD FIELDS` takes.
EXPORT_FIELDS: Final = (
    *("_id", "email", "email_verified", "phone_number", "phone_verified"),
    *("name", "user_id", "lastLogin", "updated_at", "__tenant"),
)

_LARGEST_FILE = 1024 * 1024
_DEEPEST = 16
_MOST_VALUES = 30_000
_MOST_PROBLEMS = 50
_LONGEST_QUOTE = 60
_MOST_RECOVERY_KEYS = 10
_MOST_DELAYS = 50  # Prefect takes no longer list of retry delays
_GROWTH = 1.5
_JITTER = 0.2

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DURATION = r"^(?:[0-9]+(?:\.[0-9]+)?[dhms])+$"
_ENVIRONMENT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_BLOCK_NAME = r"^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$"
_SIZE = r"^[0-9]{1,12}(?:\.[0-9]{1,12})?[MGTP]i?B$"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}

Place = tuple[str | int, ...]


def seconds(text: str) -> float:
    """Return a duration such as `15s`, `2m`, `6h`, `1d` or `1h30m` in seconds. Raise ValueError if it is not one."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", text) if re.fullmatch(_DURATION[1:-1], text, re.ASCII) else []
    units = [unit for _, unit in parts]
    if not parts or units != sorted(set(units), key="dhms".index):
        raise ValueError("write 15s, 2m or 6h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True)
class _Between:
    """Marks a float as a duration with bounds: text in a fleet file, seconds in Python."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _DURATION, "examples": ["15s", "2m", "6h"]}

    def _read(self, value: object, info: ValidationInfo) -> float:
        # A bare number in a file does not say its unit; from Python, without a file's context, it is seconds.
        if isinstance(value, int | float) and not isinstance(value, bool) and info.context is None:
            length = float(value)
        elif isinstance(value, str):
            length = seconds(value)
        else:
            raise ValueError("write 15s, 2m or 6h")
        if not seconds(self.least) <= length <= seconds(self.most):
            raise ValueError(f"write a duration from {self.least} to {self.most}")
        return length


def size(text: str) -> int:
    """Return a size such as `500GB`, `1.5TB` or `500GiB` in bytes. Raise ValueError if it is not one."""
    if not re.fullmatch(_SIZE[1:-1], text, re.ASCII):
        raise ValueError("write 500GB, 2TB or 500GiB")
    base = 1024 if text[-2] == "i" else 1000
    number = text.rstrip("MGTPiB")
    return int(Decimal(number) * base ** (" kMGTP".index(text[len(number)])))


@dataclass(frozen=True)
class _SizeBetween:
    """Marks an int as a number of bytes with bounds: text in a fleet file, bytes in Python."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _SIZE, "examples": ["500GB", "2TB", "500GiB"]}

    def _read(self, value: object, info: ValidationInfo) -> int:
        # As with durations: a bare number in a file does not say its unit.
        if isinstance(value, int) and not isinstance(value, bool) and info.context is None:
            octets = value
        elif isinstance(value, str):
            octets = size(value)
        else:
            raise ValueError("write 500GB, 2TB or 500GiB")
        if not size(self.least) <= octets <= size(self.most):
            raise ValueError(f"write a size from {self.least} to {self.most}")
        return octets


def _folder(info: ValidationInfo) -> Path | None:
    folder = info.context.get("folder") if isinstance(info.context, Mapping) else None
    return folder if isinstance(folder, Path) else None


def _clean(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write a value or leave the key out")
    if not text.isprintable():
        raise ValueError("holds a control or invisible character: write plain text")
    return text


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("write a path, in quotes where it is a number")
    try:
        path = Path(_clean(value)).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user's home: write the path in full") from None
    folder = _folder(info)
    return folder / path if folder else path


_PATH_SCHEMA: Final = {"type": "string", "format": "path"}
_FilePath = Annotated[Path, PlainValidator(_path), WithJsonSchema(_PATH_SCHEMA)]


def _listed(value: object) -> object:
    if isinstance(value, Mapping):
        raise ValueError("write a path, or a list of paths")
    return value if isinstance(value, list | tuple) else [value]


_FilePaths = Annotated[
    tuple[_FilePath, ...],
    Field(min_length=1, max_length=_MOST_RECOVERY_KEYS),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                _PATH_SCHEMA,
                {"type": "array", "items": _PATH_SCHEMA, "minItems": 1, "maxItems": _MOST_RECOVERY_KEYS},
            ]
        }
    ),
]


def _program(value: str, info: ValidationInfo) -> str:
    if _clean(value).startswith("-"):
        raise ValueError("starts with '-': write a program's name or path")
    # A name without a slash stays as it is: PATH is searched when it is called.
    return str(_path(value, info)) if "/" in value else value


def _ip_version(address: str) -> int:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return 0


def _host(value: str) -> str:
    address, _, zone = value.partition("%")
    version = _ip_version(address)
    if version and (not zone or (version == 6 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", zone, re.ASCII))):
        return value
    if "://" in value or "/" in value or re.fullmatch(r"\[.*\](:\d+)?|[^:]*:\d*", value):
        raise ValueError("write the host name or address alone, without scheme, brackets, path or port")
    last = value.rpartition(".")[2]
    if (
        len(value) > 253
        or not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", value, re.ASCII)
        or re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last, re.ASCII)
    ):
        raise ValueError("write a host name (letters, digits, '.', and '-' only inside) or an IPv4 or IPv6 address")
    return value


def _matching(pattern: str, remedy: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value, re.ASCII):
            raise ValueError(remedy)
        return value

    return AfterValidator(check)


def _meaning(value: str) -> str:
    if value not in MEANINGS:
        raise PydanticCustomError("unknown_key", "unknown key{aid}", {"aid": _aid(value, MEANINGS)})
    return value


def _aid(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or the words that are known where none is close."""
    known = list(known)
    closest = difflib.get_close_matches(word.casefold()[:64], [k.casefold() for k in known], n=1)
    if closest:
        return f"; did you mean {next(k for k in known if k.casefold() == closest[0])}?"
    return f"; write one of {', '.join(known[:20])}" + (", …" if len(known) > 20 else "")


class Kind(str):
    """The name of a kind of node backup, and what its start takes after the password."""

    fields: tuple[str, ...] = ()

    @classmethod
    def read(cls, entry: object) -> "Kind":
        """Return the kind that an entry of `kinds` names. Raise ValueError, with what would be right."""
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, Mapping) and list(entry) == ["user-export"]:
            kind = cls("user-export")
            kind.fields = _export_fields(entry["user-export"])
            return kind
        if entry == "user-export":
            raise ValueError("name the fields to export: `user-export: [_id, email]`")
        if isinstance(entry, Mapping) and set(entry) <= {"backup", "backup-sensitive", "user-export"}:
            raise ValueError("only user-export takes fields: write one kind for each entry")
        if isinstance(entry, str) and entry in ("backup", "backup-sensitive"):
            return cls(entry)
        raise ValueError("write backup, backup-sensitive or `user-export: [_id, email]`")

    def entry(self) -> str | dict[str, list[str]]:
        """Return the entry of `kinds` that names it."""
        return {str(self): list(self.fields)} if self.fields else str(self)


def _export_fields(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise _within(("user-export",), "write a list of at least one field: [_id, email]")
    for index, field in enumerate(given):
        if not isinstance(field, str) or field not in EXPORT_FIELDS:
            shown = f" {_quoted(field)}" if isinstance(field, str | int) else ""
            raise _within(("user-export", index), f"unknown field{shown}{_aid(str(field), EXPORT_FIELDS)}")
        if field in given[:index]:
            raise _within(("user-export", index), f"{_quoted(field)} is written twice: write each field once")
    return tuple(given)


def _within(place: Place, remedy: str) -> PydanticCustomError:
    """Return the error of a value that lies at *place* within the one that is validated."""
    return PydanticCustomError("within", "{remedy}", {"remedy": remedy, "place": place})


_KIND_SCHEMA: Final = {
    "anyOf": [
        {"type": "string", "enum": ["backup", "backup-sensitive"]},
        {
            "type": "object",
            "properties": {
                "user-export": {
                    "type": "array",
                    "items": {"type": "string", "enum": list(EXPORT_FIELDS)},
                    "minItems": 1,
                    "uniqueItems": True,
                }
            },
            "required": ["user-export"],
            "additionalProperties": False,
        },
    ]
}
_KindEntry = Annotated[
    Kind,
    PlainValidator(Kind.read),
    PlainSerializer(Kind.entry),
    WithJsonSchema(_KIND_SCHEMA),
]


def _duration(default: str, description: str) -> Any:
    """Return the field of a duration; its default is text so that the JSON Schema shows it as one would write it."""
    return Field(default, description=description)


class _Strict(BaseModel):
    # Inputs are hidden because a literal password could be one.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class Node(_Strict):
    """One appliance instance."""

    name: Annotated[
        str,
        _matching(_NAME, "write 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"),
    ] = Field(
        description="The node's name, unique whatever the case; also its folder in the vault.",
        json_schema_extra={"pattern": _NAME},
    )
    host: Annotated[str, AfterValidator(_host)] = Field(
        description="The host name, IPv4 or IPv6 address at which a0cli reaches the node.",
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
        description=f"The appliance's build number, where known; below {FIRST_BUILD} the node is refused untouched.",
    )

    @property
    def too_old(self) -> bool:
        """Whether the declared build is one that a0cli must not back up."""
        return self.build is not None and self.build < FIRST_BUILD

    @property
    def splits(self) -> bool | None:
        """Whether its declared build keeps the encryption keys out of `backup`; None where none is declared."""
        return None if self.build is None else self.build >= FIRST_SPLIT_BUILD

    def require_build(self) -> None:
        """Return if a0cli may back this node up. Raise BuildTooOldError if its declared build is too old."""
        if self.build is not None and self.too_old:
            raise BuildTooOldError(self.name, self.build)


class A0cliSettings(_Strict):
    """How a0cli is called."""

    path: Annotated[str, AfterValidator(_program)] = Field(
        default="a0cli", description="The a0cli program: a name found on PATH, or a path relative to the fleet file."
    )
    key_dir: _FilePath = Field(
        default=Path("~/.a0cli"), description="The folder of the key pair that `a0cli create-key` made."
    )
    call_timeout: Annotated[float, _Between("0.1s", "1d")] = _duration(
        "60s", "How long any call of a0cli but a retrieve may take."
    )
    retrieve_timeout: Annotated[float, _Between("0.1s", "30d")] = _duration("6h", "How long one retrieve may take.")
    password_style: Literal["positional", "option"] = Field(
        default="positional", description="How a0cli takes the password: `backup P` or `backup --password P`."
    )
    replies: dict[Annotated[str, AfterValidator(_meaning)], list[Annotated[str, AfterValidator(_clean)]]] = Field(
        default_factory=dict,
        description="More wordings of a0cli's replies, by what they mean.",
        json_schema_extra={"propertyNames": {"enum": list(MEANINGS)}},
    )

    @field_validator("replies")
    @classmethod
    def _bounded(cls, replies: dict[str, list[str]]) -> dict[str, list[str]]:
        if any(len(wordings) > 100 or any(len(w) > 1000 for w in wordings) for wordings in replies.values()):
            raise ValueError("write at most 100 wordings for a meaning, each of at most 1000 characters")
        return replies


class PasswordSource(_Strict):
    """Where the password that encrypts the backups comes from: exactly one place."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    sealed_to: _FilePaths | None = Field(
        default=None,
        description="The recovery public key, or a list of up to 10 of them, relative to the fleet file: each backup "
        "gets a new random password, sealed to each of them.",
    )
    secret_block: (
        Annotated[str, _matching(_BLOCK_NAME, "write a block's name: lower-case letters, digits and '-'")] | None
    ) = Field(
        default=None,
        max_length=255,
        description="The name of the Prefect Secret block that holds it.",
        json_schema_extra={"pattern": _BLOCK_NAME},
    )
    env: Annotated[str, _matching(_ENVIRONMENT_NAME, "write an environment variable's name")] | None = Field(
        default=None,
        max_length=255,
        description="The name of the environment variable that holds it.",
        json_schema_extra={"pattern": _ENVIRONMENT_NAME},
    )
    file: _FilePath | None = Field(default=None, description="The file that holds it, relative to the fleet file.")

    @model_validator(mode="before")
    @classmethod
    def _no_password_itself(cls, given: object) -> object:
        if isinstance(given, str | int):
            raise PydanticCustomError(
                "literal_password",
                "never write the password itself into this file: write sealed_to, secret_block, env or file below "
                "`password:`, and change this password if the file was shared",
            )
        return given

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(place is not None for place in (self.secret_block, self.env, self.file, self.sealed_to)) != 1:
            raise ValueError("name exactly one of sealed_to, secret_block, env or file")
        return self


class Polling(_Strict):
    """How often and for how long a node's backup is awaited."""

    interval: Annotated[float, _Between("0.01s", "1d")] = _duration(
        "15s", "The pause after the first look at a backup in progress."
    )
    max_interval: Annotated[float, _Between("0.01s", "1d")] = _duration(
        "2m", "The longest pause between two looks; pauses grow up to it."
    )
    deadline: Annotated[float, _Between("1s", "30d")] = _duration(
        "4h", "How long a backup is awaited in all, from the first look of a run on."
    )

    @field_validator("max_interval")
    @classmethod
    def _not_below_interval(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("interval", 0.0):
            raise ValueError("write a max_interval that is not below interval (2m where none is written)")
        return value

    def delays(self) -> list[float]:
        """Return the first pauses, growing from interval to max_interval; the last one is meant to be repeated.

        Never more than 50; their sum never passes the deadline, and none but a lone one is below interval.
        """
        delays: list[float] = []
        left, delay = self.deadline, self.interval
        # A last pause clipped to almost nothing would be repeated as a busy loop, so it is left out.
        while len(delays) < _MOST_DELAYS and (not delays or left >= self.interval):
            delays.append(min(delay, self.max_interval, left))
            if delay >= self.max_interval:
                break
            left, delay = left - delays[-1], delay * _GROWTH
        return delays

    def retries(self) -> int:
        """Return how many retries outlast the deadline even if each pause is shortened by 20 % jitter, plus two."""
        delays = self.delays()
        left = self.deadline / (1 - _JITTER) - sum(delays)
        return len(delays) + math.ceil(left / delays[-1]) + 2


class ContentsLimits(_Strict):
    """Up to where an artifact's contents are read; one that goes beyond is refused as a decompression bomb."""

    max_unpacked: Annotated[int, _SizeBetween("1MB", "1PB")] = Field(
        default="10TB",  # type: ignore[assignment]  # text, so that the JSON Schema shows it as one would write it
        description="How large an artifact may be unpacked; by default so large that only a read that would hardly "
        "end meets it.",
    )
    max_ratio: float = Field(
        default=200,
        # zlib's page on its technical details: deflate packs at most 1032 to 1.
        ge=2,
        le=1032,
        allow_inf_nan=False,
        description="How many times its size an artifact may unpack to; a database dump seldom comes to more than 20, "
        "and deflate cannot do more than 1032.",
    )


class Fleet(_Strict):
    """The nodes and the settings that one fleet.yaml names."""

    model_config = ConfigDict(title="a0backup fleet file")

    vault: _FilePath = Field(description="The folder that keeps the verified artifacts, relative to the fleet file.")
    a0cli: A0cliSettings = Field(default_factory=A0cliSettings, description="How a0cli is called.")
    password: PasswordSource = Field(description="Where the password that encrypts the backups comes from.")
    polling: Polling = Field(default_factory=Polling, description="How a node's backup is awaited.")
    lock_deadline: Annotated[float, _Between("0s", "30d")] = _duration(
        "2h", "How long a run waits for a node that another run holds."
    )
    max_parallel: int = Field(
        default=16, ge=1, le=256, strict=True, description="How many nodes are backed up at once."
    )
    retrieve_attempts: int = Field(
        default=3, ge=1, le=20, strict=True, description="How often an artifact whose md5 does not match is retrieved."
    )
    existing: Existing = Field(
        default="preserve", description="What to do with a backup on the node that this vault did not start."
    )
    contents: ContentsLimits = Field(
        default_factory=ContentsLimits, description="Up to where an artifact's contents are read."
    )
    kinds: tuple[_KindEntry, ...] = Field(
        default=("backup",),  # type: ignore[arg-type]  # the defaults are validated
        min_length=1,
        description="The kinds of backup to make of each node, one after another.",
        json_schema_extra={"uniqueItems": True, "contains": {"type": "object"}, "minContains": 0, "maxContains": 1},
    )
    nodes: tuple[Node, ...] = Field(min_length=1, max_length=1000, description="The nodes to back up.")

    _path: Path = PrivateAttr(default=Path("fleet.yaml"))

    @field_validator("kinds")
    @classmethod
    def _each_kind_once(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(kinds)) != len(kinds):
            raise ValueError("write each kind once")
        return kinds

    @field_validator("nodes")
    @classmethod
    def _each_node_once(cls, nodes: tuple[Node, ...], info: ValidationInfo) -> tuple[Node, ...]:
        for index, key, remedy in _clashes([node.model_dump() for node in nodes], info.data.get("kinds", ())):
            raise PydanticCustomError(
                "clash", "nodes[{index}].{key}: {remedy}", {"index": index, "key": key, "remedy": remedy}
            )
        return nodes

    @property
    def path(self) -> Path:
        """The absolute path of the file that this fleet was loaded from."""
        return self._path

    @classmethod
    def load(cls, path: str | Path) -> "Fleet":
        """Return the fleet that the file at *path* names, its paths made absolute.

        Raise FleetFileError, naming all problems with their lines, if the file cannot be read or is not valid.
        """
        path = Path(path).absolute()
        tree = _read_tree(path, _read_text(path))
        problems = [*tree.problems, *_clash_problems(tree)]
        try:
            fleet = cls.model_validate(tree.root, context={"folder": path.parent})
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += [
                _problem(tree, detail)
                for detail in details
                if not tree.spoils(tuple(detail["loc"])) and not _is_echo(detail)
            ]
        else:
            if not problems:
                fleet._path = path
                return fleet
        raise FleetFileError(str(path), _sorted_texts(problems))

    def kinds_of(self, node: Node) -> tuple[str, ...]:
        """Return the kinds to make of *node*: all, without backup-sensitive where its declared build has none yet.

        There the main backup holds the encryption keys still.
        """
        return tuple(kind for kind in self.kinds if node.splits is not False or kind != "backup-sensitive")

    def arguments(self, kind: str) -> tuple[str, ...]:
        """Return what the start of *kind* takes after the password: the fields of an export, comma-separated."""
        fields = next((each.fields for each in self.kinds if each == kind), ())
        return (",".join(fields),) if fields else ()

    def node(self, name: str) -> Node:
        """Return the node of that name. Raise FleetFileError, with the closest name, if there is none."""
        return self.chosen([name])[0]

    def chosen(self, names: Iterable[str]) -> tuple[Node, ...]:
        """Return the nodes of these names, each once, in the order given; all nodes where no name is given.

        Raise UnknownNodeError naming every unknown name.
        """
        wanted = list(dict.fromkeys(names))
        by_name = {node.name: node for node in self.nodes}
        unknown = [f"no node is named {_quoted(n)}{_aid(n, by_name)}" for n in wanted if n not in by_name]
        if unknown:
            raise UnknownNodeError(str(self.path), unknown)
        return tuple(by_name[name] for name in wanted) if wanted else self.nodes


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a fleet file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Fleet.model_json_schema()}


EXAMPLE: Final = """\
# The fleet: which nodes are backed up, and how. `a0backup check` tries it without changing anything.

vault: ./vault                  # where verified backups are kept, relative to this file

a0cli:
  path: a0cli                   # found on PATH, or a path
  key_dir: ~/.a0cli             # the key pair that `a0cli create-key` made
  # call_timeout: 60s           # any call but retrieve
  # retrieve_timeout: 6h
  # password_style: positional  # or option: `backup --password P`
  # replies: {}                 # more wordings, e.g. {absent: ["Nothing stored"]}

password:                       # exactly one of these; never the password itself
  sealed_to: recovery.pub.pem   # a new random password for each; `a0backup init --recovery-key` makes the key pair
  # A password of your own for all backups is weaker: a0cli encrypts without a salt, so they share one keystream, and
  # who has two of them can take one from the other.
  # file: ./a0-backup-password            # only for this user to read: chmod 600
  # env: A0_BACKUP_PASSWORD
  # secret_block: a0-backup-password      # a Prefect Secret block, on a Prefect server of your own

# polling: {interval: 15s, max_interval: 2m, deadline: 4h}   # deadline: of the await alone; from 1s up
# lock_deadline: 2h             # how long to wait for a node that another run holds
# max_parallel: 16              # nodes at once
# retrieve_attempts: 3          # when the md5 does not match
# existing: preserve            # a backup found on the node that is not ours: preserve | replace | fail
# contents: {max_unpacked: 10TB, max_ratio: 200}   # one that unpacks to more is refused
# kinds: [backup]               # from build 11638 on also backup-sensitive; also {user-export: [_id, email]}

nodes:
  - name: a0-1                  # also its folder in the vault
    host: 192.168.1.186
    # port: 10121
    # build: 13451              # below 6868 is refused without touching the node
"""


@dataclass(frozen=True)
class _Problem:
    line: int
    text: str


class _UnusableError(Exception):
    """The file is no tree of keys and values, so that nothing in it can be checked."""

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(text, line)
        self.problem = _Problem(line, text)


@dataclass
class _Tree:
    root: object
    lines: dict[Place, int]
    problems: list[_Problem]
    spoilt: set[Place]

    def line(self, place: Place) -> int:
        """Return the line of the place, or of the nearest one around it that is written in the file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def spoils(self, place: Place) -> bool:
        return any(place[: len(spoilt)] == spoilt for spoilt in self.spoilt)


def _read_text(path: Path) -> str:
    try:
        # Opening a pipe would wait for its writer.
        regular = stat.S_ISREG(path.stat().st_mode)
        content = b""
        if regular:
            with path.open("rb") as file:
                content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise FleetFileError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise FleetFileError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise FleetFileError(str(path), ["is not a usable path"]) from None
    if not regular:
        raise FleetFileError(str(path), ["is not a regular file"])
    if len(content) > _LARGEST_FILE:
        raise FleetFileError(str(path), ["is larger than 1 MiB: a fleet file is a few lines for each node"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FleetFileError(str(path), [f"line {line}: is not UTF-8: save the file as UTF-8"]) from None
    odd = re.search(r"[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff", text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise FleetFileError(
            str(path), [f"line {line}: holds the control character U+{ord(odd.group()):04X}: remove it"]
        )
    return text


def _read_tree(path: Path, text: str) -> _Tree:
    # libyaml where it is built in: ten times faster, and `a0backup list` reads this file each time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _TreeReader(yaml.parse(text, Loader=loader)).read()
    except _UnusableError as error:
        problem = error.problem
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What the parser found is left out: it could be a piece of a password.
        said = re.sub(r"""'[^']*'|"[^"]*\"""", _without_content, error.problem or "no reason given")
        remedy = "check the indentation and quotes here and on the line before"
        problem = _Problem(mark.line + 1 if mark else 1, f"is not YAML ({said}): {remedy}")
    except yaml.YAMLError:
        problem = _Problem(1, "is not YAML")
    raise FleetFileError(str(path), _sorted_texts([problem])) from None


def _without_content(quoted: re.Match[str]) -> str:
    return quoted[0] if re.fullmatch(r"'(?:[],:}]|\\t|<[a-z ]+>)'", quoted[0]) else "'…'"


class _TreeReader:
    """Builds plain values from YAML events and remembers the line of each."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._tree = _Tree(None, {}, [], set())
        self._seen = 0

    def read(self) -> _Tree:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise _UnusableError("the file is empty")
        first = next(self._events)
        if not isinstance(first, yaml.MappingStartEvent):
            empty = isinstance(first, yaml.ScalarEvent) and not first.value
            raise _UnusableError(
                "the file is empty" if empty else "is not a mapping: write `key: value` lines",
                _line(first),
            )
        self._tree.lines[()] = _line(first)
        self._tree.root = self._value(first, ())
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _UnusableError("a second document starts here: keep one to a file", _line(after))
        return self._tree

    def _value(self, event: yaml.Event, place: Place) -> object:
        self._seen += 1
        if self._seen > _MOST_VALUES:
            raise _UnusableError("holds too many values", _line(event))
        if len(place) > _DEEPEST:
            raise _UnusableError("is nested too deeply", _line(event))
        if isinstance(event, yaml.AliasEvent):
            self._complain(event, place, "aliases (*name) are not used here: write the value out")
            return None
        if getattr(event, "anchor", None) is not None:
            self._complain(event, place, "anchors (&name) are not used here: write the value out")
        if getattr(event, "tag", None) is not None:
            self._complain(event, place, "tags (!name) are not used here: put text that starts with '!' in quotes")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place)
        return _scalar(event) if isinstance(event, yaml.ScalarEvent) else None

    def _mapping(self, place: Place) -> dict[str, object]:
        found: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._complain(event, place, "a key that is not plain text")
                self._value(event, (*place, "?"))
                self._value(next(self._events), (*place, "?"))
                continue
            key = str(event.value)
            inside = (*place, key)
            if key in found:
                first = self._tree.lines[inside]
                self._complain(event, inside, f"written twice, first on line {first}: keep one", spoils=False)
                # The second value is read into nowhere; its lines would hide those of the first.
                self._value(next(self._events), (*inside, "?"))
                continue
            self._tree.lines[inside] = _line(event)
            found[key] = self._value(next(self._events), inside)
        return found

    def _sequence(self, place: Place) -> list[object]:
        found: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            inside = (*place, len(found))
            self._tree.lines[inside] = _line(event)
            found.append(self._value(event, inside))
        return found

    def _complain(self, event: yaml.Event, place: Place, text: str, *, spoils: bool = True) -> None:
        self._tree.problems.append(_Problem(_line(event), _at(place, text)))
        if spoils:
            self._tree.spoilt.add(place)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _scalar(event: yaml.ScalarEvent) -> object:
    """Return a whole number, None or text: YAML's other guesses (yes, 1:30, 010) are never what is meant here."""
    text = str(event.value)
    if event.style:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    return int(text) if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,17})", text, re.ASCII) else text


def _clashes(nodes: Sequence[Mapping[str, object]], kinds: Sequence[object]) -> Iterator[tuple[int, str, str]]:
    """Yield index, key and remedy of each node that has an earlier one's name or address, or none of the kinds."""
    names: dict[str, int] = {}
    addresses: dict[tuple[str, object], int] = {}
    for index, node in enumerate(nodes):
        name, host, port = node.get("name"), node.get("host"), node.get("port", DEFAULT_PORT)
        if isinstance(name, str) and (first := names.setdefault(name.casefold(), index)) != index:
            yield index, "name", f"nodes[{first}] has the same name (case does not count): give each node its own"
        if isinstance(host, str) and isinstance(port, int):
            first = addresses.setdefault((_same_host(host), port), index)
            if first != index:
                yield index, "host", f"nodes[{first}] has the same host and port: name each node once"
        build = node.get("build")
        if list(kinds) == ["backup-sensitive"] and isinstance(build, int) and build < FIRST_SPLIT_BUILD:
            remedy = f"backup-sensitive is there from build {FIRST_SPLIT_BUILD} on: add backup to kinds"
            yield index, "build", f"{_named(name)} is left without a kind, as {remedy}"


def _named(name: object) -> str:
    return f"node {_quoted(name)}" if isinstance(name, str) else "the node"


def _same_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.casefold()
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address).casefold()


def _clash_problems(tree: _Tree) -> Iterator[_Problem]:
    root = tree.root if isinstance(tree.root, dict) else {}
    nodes, kinds = root.get("nodes"), root.get("kinds")
    rows = [node if isinstance(node, dict) else {} for node in nodes] if isinstance(nodes, list) else []
    for index, key, remedy in _clashes(rows, kinds if isinstance(kinds, list) else []):
        place = ("nodes", index, key)
        yield _Problem(tree.line(place), _at(place, remedy, rows[index][key]))


_MODELS: Final[dict[Place, type[BaseModel]]] = {
    (): Fleet,
    ("a0cli",): A0cliSettings,
    ("password",): PasswordSource,
    ("polling",): Polling,
    ("contents",): ContentsLimits,
    ("nodes",): Node,
}


def _problem(tree: _Tree, detail: ErrorDetails) -> _Problem:
    """Return what the models found wrong as a problem with its line, key and remedy."""
    place: Place = tuple(part for part in detail["loc"] if part != "[key]")
    if place and isinstance(place[-1], int) and place not in tree.lines:
        place = place[:-1]  # one value stands where a list may
    kind, given, limits = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("extra_forbidden", "unknown_key"):
        model = _MODELS.get(place[:-1] if place[:-1] in _MODELS else place[:1], Fleet)
        known = MEANINGS if kind == "unknown_key" else model.model_fields
        return _Problem(tree.line(place), _at(place, f"unknown key{_aid(str(place[-1]), known)}"))
    if kind == "missing":
        return _Problem(tree.line(place), _at(place, f"is missing: {_description(place)}"))
    if kind == "value_error":
        remedy = str(limits["error"])
    elif kind == "literal_password":
        remedy = detail["msg"]
    elif kind == "within":
        place = (*place, *limits["place"])
        return _Problem(tree.line(place), _at(place, limits["remedy"]))
    elif kind == "literal_error":
        remedy = f"write {limits['expected']}".replace("'", "")
    elif kind in ("greater_than_equal", "less_than_equal"):
        field = _MODELS[place[:1] if len(place) > 1 else ()].model_fields[str(place[-1])]
        bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "le") if hasattr(m, name)}
        number = "number" if field.annotation is float else "whole number"
        remedy = f"write a {number} from {bounds['ge']} to {bounds['le']}"
    elif kind in ("too_short", "too_long") and not isinstance(given, str):
        most = limits.get("max_length")
        bound = "is empty: name at least one" if kind == "too_short" else f"holds more than {most} entries"
        return _Problem(tree.line(place), _at(place, bound))
    else:
        remedy = _WANTED.get(kind, detail["msg"])
    return _Problem(tree.line(place), _at(place, remedy, given))


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether this only repeats what is reported elsewhere: clashes, and lists short of entries that are wrong."""
    return detail["type"] == "clash" or (detail["type"] == "too_short" and bool(detail["input"]))


_WANTED: Final = {
    "string_type": "write text, in quotes where it is a number",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "finite_number": "write a number",
    "model_type": "write `key: value` lines below it, or leave the key out",
    "dict_type": "write `key: value` lines below it",
    "list_type": "write a list: `[…]` or `- …` lines below it",
    "tuple_type": "write a list: `[…]` or `- …` lines below it",
    "string_unicode": "write plain text",
}


def _description(place: Place) -> str:
    model = _MODELS.get(place[:-1] if place[:-1] in _MODELS else place[:1], Fleet)
    text = model.model_fields[str(place[-1])].description or ""
    return text[:1].lower() + text[1:].rstrip(".")


def _at(place: Place, text: str, given: object = None) -> str:
    """Return the text behind its key and, where it gives nothing away, the value that stood there."""
    dotted = ""
    for part in place[:1] if place[:1] == ("password",) and not _is_known(place) else place:
        if isinstance(part, int):
            dotted += f"[{part}]"
        else:
            # A key that is no plain word may be a value written in the wrong place, such as `password=…`.
            plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,39}", part, re.ASCII)
            dotted += "." * bool(dotted) + (part if plain else "(odd key)")
    secret = any("passw" in str(part).casefold() for part in place)
    if secret or not isinstance(given, str | int) or given == "":
        return f"{dotted}: {text}" if dotted else text
    return f"{dotted} is {_quoted(given)}: {text}"


def _is_known(place: Place) -> bool:
    # A key further in may be a value written in the wrong place.
    return len(place) > 1 and place[1] in PasswordSource.model_fields and all(isinstance(p, int) for p in place[2:])


def _quoted(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return repr(value if len(value) <= _LONGEST_QUOTE else value[: _LONGEST_QUOTE - 1] + "…")


def _sorted_texts(problems: Iterable[_Problem]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: problem.line)
    texts = [f"line {problem.line}: {problem.text}" if problem.line else problem.text for problem in ordered]
    if len(texts) > _MOST_PROBLEMS:
        texts[_MOST_PROBLEMS:] = [f"and {len(texts) - _MOST_PROBLEMS} more problems"]
    return texts
