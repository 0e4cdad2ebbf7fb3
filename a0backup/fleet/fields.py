"""The values of fleet.yaml: durations, sizes, paths, hosts. Each error says what to write."""

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

# The vendor's page on backups: a0cli must not back up builds before this one.
FIRST_BUILD: Final = 6868


# From this build on, `backup` omits the encryption keys, and `backup-sensitive` exists to fetch them (same page).
FIRST_SPLIT_BUILD: Final = 11638
DEFAULT_PORT: Final = 10121

_LONGEST_QUOTE = 60
_MAX_RECOVERY_KEYS = 10
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # resolvers take underscores, too
_DURATION = r"^(?:[0-9]+(?:\.[0-9]+)?[dhms])+$"
_SIZE = r"^[0-9]{1,12}(?:\.[0-9]{1,12})?[MGTP]i?B$"
_PERCENT = r"^[0-9]{1,3}%$"
_RATE = r"^[0-9]{1,12}(?:\.[0-9]{1,12})?[kMG]B/s$"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
Place = tuple[str | int, ...]


class Strict(BaseModel):
    """A part of a fleet file: unknown keys are errors."""

    # Inputs are hidden because one of them could be a literal password.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def seconds(text: str) -> float:
    """Return a duration, e.g. `15s`, `2m`, `6h`, `1d` or `1h30m`, in seconds. Raise ValueError if it is not one."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", text) if re.fullmatch(_DURATION[1:-1], text, re.ASCII) else []
    units = [unit for _, unit in parts]
    if not parts or units != sorted(set(units), key="dhms".index):
        raise ValueError("write 15s, 2m or 6h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True)
class Between:
    """Marks a float as a duration with bounds: text in a fleet file, seconds in Python."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _DURATION, "examples": ["15s", "2m", "6h"]}

    def _read(self, value: object, info: ValidationInfo) -> float:
        # A bare number in a file has no unit. From Python, without a file's context, it is in seconds.
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
    """Return a size, e.g. `500GB`, `1.5TB` or `500GiB`, in bytes. Raise ValueError if it is not one."""
    if not re.fullmatch(_SIZE[1:-1], text, re.ASCII):
        raise ValueError("write 500GB, 2TB or 500GiB")
    base = 1024 if text[-2] == "i" else 1000
    number = text.rstrip("MGTPiB")
    return int(Decimal(number) * base ** (" kMGTP".index(text[len(number)])))


@dataclass(frozen=True)
class SizeBetween:
    """Marks an int as a number of bytes with bounds: text in a fleet file, bytes in Python."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _SIZE, "examples": ["500GB", "2TB", "500GiB"]}

    def _read(self, value: object, info: ValidationInfo) -> int:
        # As with durations: a bare number in a file has no unit.
        if isinstance(value, int) and not isinstance(value, bool) and info.context is None:
            octets = value
        elif isinstance(value, str):
            octets = size(value)
        else:
            raise ValueError("write 500GB, 2TB or 500GiB")
        if not size(self.least) <= octets <= size(self.most):
            raise ValueError(f"write a size from {self.least} to {self.most}")
        return octets


@dataclass(frozen=True)
class PercentBetween:
    """Marks a float as a share with bounds in percent: text in a fleet file, such as `30%`, and 0.3 in Python."""

    least: int
    most: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _PERCENT, "examples": ["30%"]}

    def _read(self, value: object, info: ValidationInfo) -> float:
        percent: float | None = None
        # As with sizes: a bare number in a file may be meant as either.
        if isinstance(value, float) and info.context is None:
            percent = value * 100
        elif isinstance(value, str) and re.fullmatch(_PERCENT[1:-1], value, re.ASCII):
            percent = int(value[:-1])
        if percent is None or not self.least <= percent <= self.most:
            raise ValueError(f"write a share from {self.least}% to {self.most}%")
        return percent / 100


@dataclass(frozen=True)
class RateBetween:
    """Marks an int as a number of bytes per second with bounds: text in a fleet file, bytes per second in Python."""

    least: str
    most: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _RATE, "examples": ["20MB/s", "500kB/s"]}

    def _read(self, value: object) -> int:
        if not isinstance(value, str):
            raise ValueError("write 20MB/s or 500kB/s")
        rate = _rate(value)
        if not _rate(self.least) <= rate <= _rate(self.most):
            raise ValueError(f"write a rate from {self.least} to {self.most}")
        return rate


def _rate(text: str) -> int:
    if not re.fullmatch(_RATE[1:-1], text, re.ASCII):
        raise ValueError("write 20MB/s or 500kB/s")
    return int(Decimal(text[:-4]) * 1000 ** (" kMG".index(text[-4])))


def _folder(info: ValidationInfo) -> Path | None:
    folder = info.context.get("folder") if isinstance(info.context, Mapping) else None
    return folder if isinstance(folder, Path) else None


def printable(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write a value or leave the key out")
    if not text.isprintable():
        raise ValueError("holds a control or invisible character: write plain text")
    return text


def path_value(value: object, info: ValidationInfo) -> Path:
    """Return the path *value*, relative to the folder of the fleet file. Raise ValueError."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("write a path, in quotes where it is a number")
    try:
        path = Path(printable(value)).expanduser()
    except RuntimeError:
        raise ValueError("there is no such user's home: write the path in full") from None
    folder = _folder(info)
    return folder / path if folder else path


_PATH_SCHEMA: Final = {"type": "string", "format": "path"}
FilePath = Annotated[Path, PlainValidator(path_value), WithJsonSchema(_PATH_SCHEMA)]


def _listed(value: object) -> object:
    if isinstance(value, Mapping):
        raise ValueError("write a path, or a list of paths")
    return value if isinstance(value, list | tuple) else [value]


FilePaths = Annotated[
    tuple[FilePath, ...],
    Field(min_length=1, max_length=_MAX_RECOVERY_KEYS),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                _PATH_SCHEMA,
                {"type": "array", "items": _PATH_SCHEMA, "minItems": 1, "maxItems": _MAX_RECOVERY_KEYS},
            ]
        }
    ),
]


def program(value: str, info: ValidationInfo) -> str:
    if printable(value).startswith("-"):
        raise ValueError("starts with '-': write a program's name or path")
    # A name without a slash is not resolved here: PATH is searched at each call.
    return str(path_value(value, info)) if "/" in value else value


def _ip_version(address: str) -> int:
    try:
        return ipaddress.ip_address(address).version
    except ValueError:
        return 0


def host_name(value: str) -> str:
    address, _, zone = value.partition("%")
    version = _ip_version(address)
    if version and (not zone or (version == 6 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", zone, re.ASCII))):
        return value
    if "://" in value or "/" in value or re.fullmatch(r"\[.*\](:\d+)?|[^:]*:\d*", value):
        raise ValueError("write the host name or address alone, without scheme, brackets, path or port")
    last = value.removesuffix(".").rpartition(".")[2]
    if (
        len(value) > 253
        or not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*\.?", value, re.ASCII)
        or re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last, re.ASCII)
    ):
        raise ValueError(
            "write a host name (letters, digits, '.', '_', and '-' only inside) or an IPv4 or IPv6 address"
        )
    return value


def matching(pattern: str, remedy: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value, re.ASCII):
            raise ValueError(remedy)
        return value

    return AfterValidator(check)


BLOCK_NAME = r"^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$"
BlockName = Annotated[str, matching(BLOCK_NAME, "write a block's name: lower-case letters, digits and '-'")]


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or the known words if none is close."""
    known = list(known)
    closest = difflib.get_close_matches(word.casefold()[:64], [k.casefold() for k in known], n=1)
    if closest:
        return f"; did you mean {next(k for k in known if k.casefold() == closest[0])}?"
    return f"; write one of {', '.join(known[:20])}" + (", …" if len(known) > 20 else "")


def quoted_value(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return repr(value if len(value) <= _LONGEST_QUOTE else value[: _LONGEST_QUOTE - 1] + "…")
