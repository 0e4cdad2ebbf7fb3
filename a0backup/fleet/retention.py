"""`retention` in fleet.yaml: which artifacts stay, with the names and the meaning that restic gave them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Annotated, Any, Final, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from a0backup.fleet.fields import PercentBetween, Strict, quoted_value

ALL: Final = -1  # of a count: without a limit
PERIODS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")
_MOST = 100_000
_SPAN = r"^(?=.)(?:[0-9]{1,4}y)?(?:[0-9]{1,5}m)?(?:[0-9]{1,6}d)?(?:[0-9]{1,7}h)?$"


@dataclass(frozen=True)
class Span:
    """A time before the newest backup, in years, months, days and hours of the calendar."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the span that is written as `7d` or `1y6m`. Raise ValueError."""
        found = re.fullmatch(_SPAN[1:-1], text, re.ASCII)
        numbers = {unit: int(number) for number, unit in re.findall(r"(\d+)([ymdh])", text)} if found else {}
        if not any(numbers.values()):
            raise ValueError("write 7d, 6m (months) or 1y6m")
        return cls(*(numbers.get(unit, 0) for unit in "ymdh"))

    def before(self, time: datetime) -> datetime:
        """Return the time this span before *time*, on the calendar of *time*'s zone.

        A day that a month lacks is counted on into the next one, as restic does: one month before 31
        March is 3 March. A time before the first year is the beginning of that.
        """
        year, month = divmod(time.year * 12 + time.month - 1 - self.years * 12 - self.months, 12)
        try:
            first = time.replace(year=year, month=month + 1, day=1, fold=0)
            there = first + timedelta(days=time.day - 1 - self.days)  # on the calendar: the hour of the day stays
            return there.astimezone(UTC) - timedelta(hours=self.hours)
        except (ValueError, OverflowError):
            return datetime.min.replace(tzinfo=UTC)

    def __str__(self) -> str:
        parts = ((self.years, "y"), (self.months, "m"), (self.days, "d"), (self.hours, "h"))
        return "".join(f"{number}{unit}" for number, unit in parts if number)


class SpanText:
    """Marks a Span as text in a fleet file."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read, serialization=core_schema.to_string_ser_schema()
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": _SPAN, "examples": ["7d", "6m", "1y6m"]}

    @staticmethod
    def _read(value: object) -> Span:
        if isinstance(value, Span):
            return value
        if not isinstance(value, str):
            raise ValueError("write 7d, 6m (months) or 1y6m")
        return Span.parse(value)


class CountText:
    """Marks an int as a number of backups; `unlimited` and -1 are all of them."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": -1, "maximum": _MOST}, {"const": "unlimited"}]}

    @staticmethod
    def _read(value: object) -> int:
        if value == "unlimited":
            return ALL
        if type(value) is int and ALL <= value <= _MOST:
            return value
        raise ValueError(f"write a number up to {_MOST}, or unlimited")


def _time_zone(name: str) -> str:
    try:
        _zone(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"there is no time zone {quoted_value(name)}: write Europe/Berlin or UTC") from None
    return name


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC needs no database of time zones


Count = Annotated[int, CountText()]
Within = Annotated[Span, SpanText()] | None


def _number(what: str) -> Any:
    return Field(0, description=f"Keep {what}; with `unlimited`, of all of them.")


def _within(what: str) -> Any:
    return Field(None, description=f"Keep {what} that was made within this time before the newest one.")


class Retention(Strict):
    """Which artifacts stay when the vault is pruned: those that one of these rules keeps."""

    keep_last: Count = Field(0, description="Keep this many of the newest backups; with `unlimited`, all of them.")
    keep_hourly: Count = _number("the newest backup of each of this many hours")
    keep_daily: Count = _number("the newest backup of each of this many days")
    keep_weekly: Count = _number("the newest backup of each of this many weeks")
    keep_monthly: Count = _number("the newest backup of each of this many months")
    keep_yearly: Count = _number("the newest backup of each of this many years")
    keep_within: Within = _within("every backup")
    keep_within_hourly: Within = _within("the newest backup of each hour")
    keep_within_daily: Within = _within("the newest backup of each day")
    keep_within_weekly: Within = _within("the newest backup of each week")
    keep_within_monthly: Within = _within("the newest backup of each month")
    keep_within_yearly: Within = _within("the newest backup of each year")
    keep_min: int = Field(
        default=2,
        ge=1,
        le=_MOST,
        strict=True,
        description="How many artifacts of each node and kind stay however old they are: the newest whose contents "
        "were verified, and others if there are too few of those.",
    )
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_time_zone)] = Field(
        default="UTC", description="The time zone in which hours, days, weeks, months and years begin."
    )
    prune_most: Annotated[float, PercentBetween(0, 100)] = Field(
        default="50%",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="If more than this part of a node's artifacts would go at once, nothing is pruned without "
        "`--force`.",
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if not any(self.counts.values()) and not any(self.spans.values()):
            raise ValueError("write at least one rule, e.g. keep_daily: 14; without one, almost everything would go")
        return self

    @property
    def zone(self) -> tzinfo:
        """The time zone in which periods begin."""
        return _zone(self.timezone)

    @property
    def counts(self) -> dict[str, int]:
        """How many to keep, by `last` and the period; 0 where none are named, ALL without a limit."""
        return {name: getattr(self, f"keep_{name}") for name in ("last", *PERIODS)}

    @property
    def spans(self) -> dict[str, Span | None]:
        """The times before the newest backup within which to keep, by the period; '' for every backup."""
        return {"": self.keep_within} | {name: getattr(self, f"keep_within_{name}") for name in PERIODS}
