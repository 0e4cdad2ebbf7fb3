"""Whatever the artifacts and the rules are, some artifacts never go, and nights stay whole."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from a0backup.fleet.retention import Retention
from a0backup.retention.planning import Stored, kept, nights
from tests.support.retention import FORMS, kept_by_model

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@st.composite
def artifacts(draw: st.DrawFn) -> list[Stored]:
    """Return the artifacts of a node over a few weeks: of two kinds, some foreign, pinned, drilled, or not opened."""
    hours = draw(st.lists(st.integers(0, 24 * 40), max_size=30, unique=True))
    stored = []
    for number, each in enumerate(sorted(hours)):
        at = NOW - timedelta(hours=each)
        kind = draw(st.sampled_from(["backup", "backup-sensitive"]))
        stored.append(
            Stored(
                f"a0-1/{at:%Y%m%dT%H%M%SZ}-{kind}",
                kind,
                at,
                f"run-{number if draw(st.booleans()) else number // 2}",
                ours=draw(st.integers(0, 9)) > 0,
                opened=draw(st.booleans()),
                pin="pinned" if draw(st.integers(0, 9)) == 0 else "",
                drilled_at=at if draw(st.integers(0, 4)) == 0 else None,
            )
        )
    return stored


rules = st.fixed_dictionaries(
    {"keep_last": st.integers(1, 3), "keep_min": st.integers(1, 3)},
    optional={f"keep_{period}": st.integers(0, 4) for period in FORMS},
)


def of_kind(stored: Sequence[Stored], kind: str) -> list[Stored]:
    """Return the artifacts of one kind, newest first."""
    return sorted((each for each in stored if each.kind == kind), key=lambda each: each.at, reverse=True)


@given(artifacts(), rules)
def test_what_is_pinned_foreign_drilled_opened_or_among_the_last_never_goes(
    stored: list[Stored], written: dict[str, Any]
) -> None:
    ids = set(kept(stored, Retention.model_validate(written), now=NOW))
    assert {each.id for each in stored if each.pin or not each.ours} <= ids
    for kind in ("backup", "backup-sensitive"):
        newest_first = of_kind(stored, kind)
        for fact in ("opened", "drilled_at"):
            assert {each.id for each in newest_first if getattr(each, fact)} & ids or not any(
                getattr(each, fact) for each in newest_first
            )
            newest = next((each for each in newest_first if getattr(each, fact)), None)
            assert newest is None or newest.id in ids
        ours = [each for each in newest_first if each.ours]
        assert len([each for each in ours if each.id in ids]) >= min(written["keep_min"], len(ours))


@given(artifacts(), rules)
def test_what_stays_is_what_the_model_keeps_and_what_safety_and_nights_add(
    stored: list[Stored], written: dict[str, Any]
) -> None:
    reasons = kept(stored, Retention.model_validate(written), now=NOW)
    for kind in ("backup", "backup-sensitive"):
        times = {each.id: each.at for each in of_kind(stored, kind) if each.ours}
        model = {rule: value for rule, value in written.items() if rule != "keep_min"}
        by_rules = kept_by_model(times, model, NOW)
        assert by_rules <= set(reasons)
        extra = {each for each in reasons if each in times} - by_rules
        words = ("keep_min", "newest ", "pinned", "of one night")
        assert all(any(reason.startswith(words) for reason in reasons[each]) for each in extra)


@given(artifacts(), rules)
def test_a_night_stays_or_goes_as_a_whole(stored: list[Stored], written: dict[str, Any]) -> None:
    ids = set(kept(stored, Retention.model_validate(written), now=NOW))
    groups = nights(stored)
    assert sorted(each.id for group in groups for each in group) == sorted(each.id for each in stored)
    for group in groups:
        assert len({each.id in ids for each in group}) == 1
        assert max(each.at for each in group) - min(each.at for each in group) < timedelta(hours=30)


@given(artifacts(), rules)
def test_one_more_damaged_artifact_makes_no_other_one_go(stored: list[Stored], written: dict[str, Any]) -> None:
    policy = Retention.model_validate(written | {"keep_within": "3d"})
    before = set(kept(stored, policy, now=NOW))
    for damaged in stored[:5]:
        rest = [each for each in stored if each != damaged]
        mates = {each.id for night in nights(stored) if damaged in night for each in night}
        gone = before - set(kept(rest, policy, now=NOW)) - {damaged.id}
        assert gone <= mates
