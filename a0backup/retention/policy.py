"""Apply the rules of `retention` to the backups of one node and kind, as restic's `forget` does.

reasons = reasons_to_keep({"a0-1/20261123T020000Z-backup": time, ...}, retention, now=now)

The newest backup of each period is kept. The oldest backup of all is kept, too, by each rule that
has counts left: history is then as long as the rule allows. `within` counts from the newest backup,
not from now, so that nothing goes just because backups have stopped.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo

from a0backup.fleet.retention import ALL, Retention

_BUCKETS: Mapping[str, Callable[[datetime], object]] = {
    "hourly": lambda time: (time.year, time.month, time.day, time.hour),
    "daily": lambda time: (time.year, time.month, time.day),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}
_NEVER = datetime.min.replace(tzinfo=UTC)


def reasons_to_keep(times: Mapping[str, datetime], retention: Retention, *, now: datetime) -> dict[str, list[str]]:
    """Return why each backup is kept, by id; those that no rule keeps are left out. *times* has the time of each id."""
    if not times:
        return {}
    newest_first = sorted(times, key=lambda each: (times[each], each), reverse=True)
    local = {each: _in_zone(times[each], retention.zone) for each in newest_first}
    # One in the future, from a clock that was ahead, is not what the others are measured against.
    latest = next((local[each] for each in newest_first if times[each] <= now), None)
    kept: dict[str, list[str]] = {}
    for name, count in retention.counts.items():
        if count:
            _keep_counted(kept, newest_first, local, name, count)
    for name, span in retention.spans.items():
        if span is not None:
            since = _NEVER if latest is None else span.before(latest)
            within = [each for each in newest_first if times[each] > since]
            _keep_within(kept, within, local, name, str(span), oldest=newest_first[-1])
    return {each: kept[each] for each in newest_first if each in kept}


def _in_zone(time: datetime, zone: tzinfo) -> datetime:
    try:
        return time.astimezone(zone)
    except OverflowError:  # an id with the first or the last day of all years: it may not end the prune of the others
        return time


def _keep_counted(
    kept: dict[str, list[str]], newest_first: list[str], local: Mapping[str, datetime], name: str, count: int
) -> None:
    bucket = _BUCKETS.get(name)
    last: object = None
    for each in newest_first:
        if not count:
            return
        value = each if bucket is None else bucket(local[each])
        if value == last and each != newest_first[-1]:
            continue
        kept.setdefault(each, []).append(name if value != last else f"oldest {name}")
        last = value
        if count != ALL:
            count -= 1


def _keep_within(
    kept: dict[str, list[str]], within: list[str], local: Mapping[str, datetime], name: str, span: str, *, oldest: str
) -> None:
    bucket = _BUCKETS.get(name)
    last: object = None
    for each in within:
        value = each if bucket is None else bucket(local[each])
        if value != last or each == oldest:
            rule = " ".join(filter(None, (name, f"within {span}")))
            kept.setdefault(each, []).append(rule if value != last else f"oldest {rule}")
        last = value
