"""`retention` in fleet.yaml: what is understood, and what is refused with a remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from a0backup.fleet.retention import ALL, Retention, Span


def test_restics_names_counts_and_spans_are_understood() -> None:
    read = Retention.model_validate(
        {"keep_last": 3, "keep_daily": "unlimited", "keep_weekly": -1, "keep_within_yearly": "1y6m7d2h"}
    )
    assert (read.keep_last, read.keep_daily, read.keep_weekly) == (3, ALL, ALL)
    assert read.keep_within_yearly == Span(1, 6, 7, 2)
    assert str(read.keep_within_yearly) == "1y6m7d2h"


def test_the_defaults_keep_two_refuse_half_and_begin_days_in_utc() -> None:
    read = Retention.model_validate({"keep_last": 1})
    assert (read.keep_min, read.prune_most, read.timezone) == (2, 0.5, "UTC")


def test_it_survives_being_written_as_json_and_read_again() -> None:
    read = Retention.model_validate({"keep_within_yearly": "1y6m", "keep_last": "unlimited", "prune_most": "30%"})
    assert Retention.model_validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, "write at least one rule"),
        ({"keep_min": 5, "timezone": "Europe/Berlin"}, "write at least one rule"),
        ({"keep_daily": 0}, "write at least one rule"),
        ({"keep_daily": True}, "write a number"),
        ({"keep_daily": "14"}, "write a number"),
        ({"keep_daily": -2}, "write a number"),
        ({"keep_daily": 10**9}, "write a number"),
        ({"keep_min": 0, "keep_last": 1}, "greater than or equal to 1"),
        ({"keep_within": 7}, "write 7d"),
        ({"keep_within": "90s"}, "write 7d"),
        ({"keep_within": "0d"}, "write 7d"),
        ({"keep_within": "99999999999999999999d"}, "write 7d"),
        ({"keep_within": "\N{ARABIC-INDIC DIGIT SEVEN}d"}, "write 7d"),
        ({"keep_last": 1, "timezone": "Mars/Base"}, "there is no time zone 'Mars/Base'"),
        ({"keep_last": 1, "timezone": "../../etc/passwd"}, "there is no time zone"),
        ({"keep_last": 1, "prune_most": "101%"}, "write a share from 0% to 100%"),
        ({"keep_last": 1, "prune_most": 0.5}, "write a share from 0% to 100%"),
        ({"keep_last": 1, "prune_most": 2}, "write a share from 0% to 100%"),
        ({"keep_days": 14}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_meant_is_refused(written: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Retention.model_validate(written, context={"folder": None})
