"""An independent model of `retention`: which ids stay, computed in the most naive way.

It shares no code with the product: periods are texts, every rule looks at all backups anew, and the calendar is that of
the datetime module alone.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

FORMS = {
    "hourly": "%Y-%m-%d %H",
    "daily": "%Y-%m-%d",
    "weekly": "%G week %V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}


def kept_by_model(times: Mapping[str, datetime], rules: Mapping[str, Any], now: datetime) -> set[str]:
    """Return the ids that *rules*, as they stand in a fleet file, keep of the backups of one node and kind."""
    zone = ZoneInfo(rules.get("timezone", "UTC"))
    oldest = min(times, key=lambda each: (times[each], each), default=None)
    kept: set[str] = set()
    for rule, value in rules.items():
        if rule.startswith("keep_within"):
            since = before(newest_until(times, now), value, zone)
            chosen = {each for each in times if times[each] > since}
            period = rule.removeprefix("keep_within").removeprefix("_")
            ends = newest_of_each(times, chosen, period, zone)
            kept |= ends | ({oldest} & chosen)
        elif rule.removeprefix("keep_") in ("last", *FORMS) and value:
            period = rule.removeprefix("keep_").replace("last", "")
            ends = newest_of_each(times, set(times), period, zone)
            number = len(times) + 1 if value in (-1, "unlimited") else value
            newest_first = sorted(ends, key=lambda each: (times[each], each), reverse=True)
            kept |= set(newest_first[:number])
            if number > len(ends) and oldest is not None:
                kept.add(oldest)
    return kept


def newest_of_each(times: Mapping[str, datetime], chosen: set[str], period: str, zone: ZoneInfo) -> set[str]:
    if not period:
        return chosen
    labels: dict[str, str] = {}
    for each in sorted(chosen, key=lambda each: (times[each], each)):
        labels[times[each].astimezone(zone).strftime(FORMS[period])] = each
    return set(labels.values())


def newest_until(times: Mapping[str, datetime], now: datetime) -> datetime | None:
    return max((time for time in times.values() if time <= now), default=None)


def before(time: datetime | None, span: str, zone: ZoneInfo) -> datetime:
    """Return the time *span* before *time*; the first of all times where there is none."""
    if time is None:
        return datetime.min.replace(tzinfo=UTC)
    number = {"y": 0, "m": 0, "d": 0, "h": 0}
    digits = ""
    for character in span:
        if character.isdigit():
            digits += character
        else:
            number[character], digits = int(digits), ""
    local = time.astimezone(zone)
    year, month = local.year - number["y"], local.month - number["m"]
    while month < 1:
        year, month = year - 1, month + 12
    if year < 1:
        return datetime.min.replace(tzinfo=UTC)
    day = date(year, month, 1).toordinal() + local.day - 1 - number["d"]
    if day < 2:
        return datetime.min.replace(tzinfo=UTC)
    there = datetime.combine(date.fromordinal(day), local.time(), zone)
    return there.astimezone(UTC) - timedelta(hours=number["h"])
