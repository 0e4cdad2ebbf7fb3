"""What one look says about an awaited backup: every rule of `judge`, and what holds for every look."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.a0cli.status import Absent, Found, InProgress, Status
from a0backup.backup.await_ import Look, Verdict, judge
from a0backup.identity import BackupIdentity

BEFORE = BackupIdentity(name="04-06-2016-15-04-30.tar.gz", md5="a" * 32)
OLD, NEW = Found(BEFORE.name, BEFORE.md5), Found("05-06-2016-15-04-30.tar.gz", "b" * 32)
NO_MD5 = Found("05-06-2016-15-04-30.tar.gz", None, "no md5")

# Ours was started 1 s ago; before that, the node showed OLD.
OURS = Look(
    InProgress(),
    ours=True,
    started_here=True,
    before=BEFORE,
    accepted=True,
    refused=False,
    sealed=False,
    seen_in_progress=False,
    since_start=1,
    call_timeout=60,
    existing="preserve",
)
THEIRS = replace(OURS, ours=False, before=None)
REFUSED = replace(OURS, ours=False, accepted=False, refused=True)

ROWS: list[tuple[str, Look, Status, Verdict]] = [
    ("ours is in progress", OURS, InProgress(), Verdict.WAIT),
    ("ours is there", OURS, NEW, Verdict.FOUND),
    ("ours is there without its md5", OURS, NO_MD5, Verdict.NO_MD5),
    ("the one from before is still shown", OURS, OLD, Verdict.WAIT),
    ("the one from before is still shown after call_timeout", replace(OURS, since_start=60), OLD, Verdict.FOUND),
    (
        "the same after a start whose reply was lost",
        replace(OURS, since_start=60, accepted=False),
        OLD,
        Verdict.NO_EFFECT,
    ),
    ("the one from before, after one in progress", replace(OURS, seen_in_progress=True), OLD, Verdict.FOUND),
    ("nothing is shown yet", OURS, Absent(), Verdict.WAIT),
    ("nothing is shown after call_timeout", replace(OURS, since_start=60), Absent(), Verdict.NO_EFFECT),
    ("ours was in progress and is gone", replace(OURS, seen_in_progress=True), Absent(), Verdict.NO_EFFECT),
    (
        "that of an earlier run was in progress and is gone",
        replace(OURS, seen_in_progress=True, started_here=False),
        Absent(),
        Verdict.GONE,
    ),
    ("theirs is in progress", THEIRS, InProgress(), Verdict.WAIT),
    ("theirs is there", THEIRS, NEW, Verdict.FOUND),
    ("theirs is gone", THEIRS, Absent(), Verdict.GONE),
    ("ours was refused, and nothing is there", REFUSED, Absent(), Verdict.REFUSED),
    ("ours was refused, and another is in progress", REFUSED, InProgress(), Verdict.WAIT),
    (
        "ours was refused, another is in progress and to be left alone",
        replace(REFUSED, existing="fail"),
        InProgress(),
        Verdict.NOT_OURS,
    ),
    (
        "ours was refused, and our password will tell whether the one in progress is ours",
        replace(REFUSED, existing="fail", sealed=True),
        InProgress(),
        Verdict.WAIT,
    ),
    ("ours was refused, and another is there", REFUSED, NEW, Verdict.FOUND),
    ("ours was refused, and the one from before is shown", REFUSED, OLD, Verdict.WAIT),
    ("the same after call_timeout", replace(REFUSED, since_start=60), OLD, Verdict.REFUSED),
]


@pytest.mark.parametrize(("look", "status", "verdict"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_judge_decides_as_the_table_says(look: Look, status: Status, verdict: Verdict) -> None:
    assert judge(replace(look, status=status)) is verdict


looks = st.builds(
    Look,
    st.sampled_from([InProgress(), Absent(), OLD, NEW, NO_MD5]),
    ours=st.booleans(),
    started_here=st.booleans(),
    before=st.sampled_from([None, BEFORE]),
    refused=st.booleans(),
    sealed=st.booleans(),
    seen_in_progress=st.booleans(),
    since_start=st.sampled_from([0.0, 59.9, 60.0, 1e6]),
    call_timeout=st.just(60.0),
    existing=st.sampled_from(["preserve", "replace", "fail"]),
)


@given(looks)
def test_a_backup_shown_before_the_start_is_taken_for_ours_only_if_it_stays_after_an_accepted_start(look: Look) -> None:
    if look.ours and look.from_before and not (look.accepted and look.since_start >= look.call_timeout):
        assert judge(look) is not Verdict.FOUND


@given(looks)
def test_only_a_backup_in_progress_is_awaited_once_the_start_can_no_longer_take_effect(look: Look) -> None:
    if judge(replace(look, since_start=1e6)) is Verdict.WAIT:
        assert isinstance(look.status, InProgress)


@given(looks)
def test_a_backup_is_found_only_if_it_is_shown_with_its_md5(look: Look) -> None:
    if judge(look) is Verdict.FOUND:
        assert isinstance(look.status, Found)
        assert look.status.md5 is not None
