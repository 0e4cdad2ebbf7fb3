"""The rules of `retention`: they keep what restic's keep, in any time zone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.fleet.retention import Retention
from a0backup.retention.policy import reasons_to_keep
from tests.support.retention import FORMS, kept_by_model

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
# Around both changes of the clock, the turn of a year, the end of a short month, and any time.
MOMENTS = [
    datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    datetime(2026, 3, 29, 0, 30, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 3, 1, tzinfo=UTC),
    datetime(2024, 2, 29, 12, tzinfo=UTC),
]
times = st.one_of(
    st.builds(
        lambda moment, minutes: moment + timedelta(minutes=minutes), st.sampled_from(MOMENTS), st.integers(-200, 200)
    ),
    st.integers(0, 3 * 365 * 24).map(lambda hours: NOW + timedelta(days=5) - timedelta(hours=hours)),
)
counts = st.one_of(st.integers(-1, 6), st.just("unlimited"))
spans = st.builds(
    lambda *numbers: "".join(f"{number}{unit}" for number, unit in zip(numbers, "ymdh", strict=True) if number) or "1d",
    *(st.integers(0, most) for most in (3, 14, 40, 50)),
)
names = ("", *(f"_{period}" for period in FORMS))
policies = st.fixed_dictionaries(
    {"timezone": st.sampled_from(ZONES)},
    optional={
        **{f"keep_{name}": counts for name in ("last", *FORMS)},
        **{f"keep_within{name}": spans for name in names},
    },
)


def retention(**rules: Any) -> Retention:
    return Retention.model_validate(rules)


def nightly(nights: int, *, hour: int = 2) -> dict[str, datetime]:
    newest = NOW.replace(hour=hour, minute=0)
    return {f"night-{night:04}": newest - timedelta(days=night) for night in range(nights)}


@given(st.lists(times, max_size=40), policies)
def test_what_is_kept_is_what_a_naive_model_keeps(moments: list[datetime], rules: dict[str, Any]) -> None:
    if not any(value for rule, value in rules.items() if rule.startswith("keep")):
        rules = rules | {"keep_last": 1}
    stored = {f"id-{number:03}": moment for number, moment in enumerate(moments)}
    assert set(reasons_to_keep(stored, retention(**rules), now=NOW)) == kept_by_model(stored, rules, NOW)


@given(st.lists(times, min_size=1, max_size=40), policies)
def test_to_prune_twice_removes_no_more_than_once(moments: list[datetime], rules: dict[str, Any]) -> None:
    policy = retention(**rules | {"keep_last": 1})
    stored = {f"id-{number:03}": moment for number, moment in enumerate(moments)}
    once = reasons_to_keep(stored, policy, now=NOW)
    assert set(reasons_to_keep({each: stored[each] for each in once}, policy, now=NOW)) == set(once)


@given(st.lists(times, min_size=1, max_size=40), policies)
def test_the_newest_backup_that_is_not_in_the_future_is_always_kept(
    moments: list[datetime], rules: dict[str, Any]
) -> None:
    stored = {f"id-{number:03}": min(moment, NOW) for number, moment in enumerate(moments)}
    kept = reasons_to_keep(stored, retention(**rules | {"keep_daily": 1}), now=NOW)
    assert max(stored, key=lambda each: (stored[each], each)) in kept


def test_the_newest_of_each_period_is_kept_with_every_rule_that_keeps_it() -> None:
    kept = reasons_to_keep(nightly(400), retention(keep_daily=3, keep_weekly=2, keep_monthly=2), now=NOW)
    assert kept == {
        "night-0000": ["daily", "weekly", "monthly"],  # Tuesday, 24 November
        "night-0001": ["daily"],
        "night-0002": ["daily", "weekly"],  # Sunday: the newest of its week
        "night-0024": ["monthly"],  # 31 October
    }


def test_the_oldest_stays_while_a_rule_has_counts_left() -> None:
    assert reasons_to_keep(nightly(10), retention(keep_monthly=12), now=NOW) == {
        "night-0000": ["monthly"],
        "night-0009": ["oldest monthly"],
    }
    assert list(reasons_to_keep(nightly(10), retention(keep_monthly=1), now=NOW)) == ["night-0000"]


def test_within_counts_from_the_newest_backup_and_not_from_now() -> None:
    long_ago = {each: time - timedelta(days=500) for each, time in nightly(30).items()}
    assert list(reasons_to_keep(long_ago, retention(keep_within="7d"), now=NOW)) == [f"night-{n:04}" for n in range(7)]


def test_what_a_clock_that_was_ahead_has_made_does_not_move_the_others_out_of_reach() -> None:
    stored = nightly(10) | {"ahead": NOW + timedelta(days=3650)}
    kept = reasons_to_keep(stored, retention(keep_within="3d"), now=NOW)
    assert set(kept) == {"ahead", "night-0000", "night-0001", "night-0002"}


@pytest.mark.parametrize(("zone", "days"), [("UTC", 2), ("Europe/Berlin", 1), ("America/New_York", 2)])
def test_days_begin_in_the_time_zone_of_the_policy(zone: str, days: int) -> None:
    # 23:30 and 00:30 in UTC; 00:30 and 01:30 in Berlin.
    stored = {"late": datetime(2026, 11, 22, 23, 30, tzinfo=UTC), "early": datetime(2026, 11, 23, 0, 30, tzinfo=UTC)}
    if zone == "America/New_York":
        stored = {each: time + timedelta(hours=5) for each, time in stored.items()}
    assert len(reasons_to_keep(stored, retention(keep_daily=5, timezone=zone, keep_last=1), now=NOW)) == 2
    newest_days = reasons_to_keep(stored, retention(keep_daily=1, timezone=zone), now=NOW)
    assert list(newest_days) == ["early"]
    assert len({time.astimezone(retention(keep_last=1, timezone=zone).zone).date() for time in stored.values()}) == days


@pytest.mark.parametrize("change", [datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 3, 29, tzinfo=UTC)])
def test_a_night_in_which_the_clock_changes_is_one_day(change: datetime) -> None:
    stored = {f"hour-{hour:02}": change + timedelta(hours=hour - 12) for hour in range(36)}
    kept = reasons_to_keep(stored, retention(keep_daily=2, timezone="Europe/Berlin"), now=NOW)
    zone = retention(keep_last=1, timezone="Europe/Berlin").zone
    assert len({stored[each].astimezone(zone).date() for each in kept}) == len(kept) == 2


def test_a_rule_without_a_limit_keeps_the_newest_of_every_period() -> None:
    assert len(reasons_to_keep(nightly(100), retention(keep_daily="unlimited"), now=NOW)) == 100
    assert len(reasons_to_keep(nightly(100), retention(keep_daily=-1), now=NOW)) == 100


def test_one_month_before_the_31st_of_march_is_the_3rd_as_restic_counts() -> None:
    newest = datetime(2026, 3, 31, 2, tzinfo=UTC)
    stored = {f"{newest - timedelta(days=days):%m-%d}": newest - timedelta(days=days) for days in range(60)}
    assert min(reasons_to_keep(stored, retention(keep_within="1m"), now=NOW)) == "03-04"
