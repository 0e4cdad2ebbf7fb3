"""Every row of design.md's table "Reconcile", and what must hold whatever node, vault and journal say."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.fleet import Existing
from a0backup.journal import Journal, Pair, pair
from a0backup.reconcile import Action, Plan, reconcile
from a0backup.replies import Absent, Found, InProgress, Status
from a0backup.vault import Encryption, Manifest, ManifestArtifact, ManifestNode, ManifestPassword

NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
X, Y = Pair(name="04-06-2016-15-04-30.tar.gz", md5="a" * 32), Pair(name="05-06-2016-15-04-30.tar.gz", md5="b" * 32)
FOUND_X, FOUND_Y, NO_MD5 = Found(X.name, X.md5), Found(Y.name, Y.md5), Found(X.name, None, "no md5")


def stored(which: Pair) -> Manifest:
    return Manifest(
        id="a0-1/20261123T020000Z-backup",
        node=ManifestNode(name="a0-1", host="10.0.0.1", port=10121),
        kind="backup",
        name_on_node=which.name,
        started_at=NOW,
        stored_at=NOW,
        artifact=ManifestArtifact(file="backup.tar.gz.enc", size=1, md5=which.md5, sha256="0" * 64),
        encryption=Encryption(password=ManifestPassword(mode="shared")),
        flow_run="run",
    )


def ours(pinned: Pair | None = None, seen_before: Pair | None = None) -> Journal:
    return Journal(
        node="a0-1", kind="backup", flow_run="run", started_at=NOW, sealed=False, pinned=pinned, seen_before=seen_before
    )


def planned(status: Status, *, existing: Existing = "preserve", **known: Any) -> Plan:
    return reconcile(status, existing=existing, **{"journal": None, "stored": None, "proven": False} | known)


NOTHING = Absent()
ROWS = [
    ("nothing, no journal", NOTHING, {}, Action.START, False),
    ("nothing, ours, stored", NOTHING, {"journal": ours(X), "stored": stored(X)}, Action.DONE, True),
    ("nothing, ours, not stored", NOTHING, {"journal": ours()}, Action.ASK_AGAIN, True),
    ("nothing, ours, found once and gone", NOTHING, {"journal": ours(X)}, Action.ASK_AGAIN, True),
    ("nothing, ours, still nothing", NOTHING, {"journal": ours(), "asked_again": True}, Action.START, False),
    (
        "nothing, ours, its verified bytes are here",
        NOTHING,
        {"journal": ours(X), "at_hand": True},
        Action.KEEP,
        True,
    ),
    ("found, ours, not stored", FOUND_X, {"journal": ours()}, Action.KEEP, True),
    ("found, ours and pinned, not stored", FOUND_X, {"journal": ours(X)}, Action.KEEP, True),
    ("found, not the pair that was pinned", FOUND_Y, {"journal": ours(X)}, Action.KEEP, False),
    (
        "found, not the pair that was pinned, whose verified bytes are here",
        FOUND_Y,
        {"journal": ours(X), "at_hand": True},
        Action.KEEP,
        True,
    ),
    (
        "in progress, not the pair that was pinned, whose verified bytes are here",
        InProgress(),
        {"journal": ours(X), "at_hand": True, "existing": "fail"},
        Action.KEEP,
        True,
    ),
    ("found, what was there before the start", FOUND_Y, {"journal": ours(seen_before=Y)}, Action.ASK_AGAIN, True),
    (
        "found, what was there before the start, asked again, in the vault",
        FOUND_Y,
        {"journal": ours(seen_before=Y), "asked_again": True, "stored": stored(Y)},
        Action.KEEP,
        False,
    ),
    (
        "found, what was there before the start, asked again, not in the vault",
        FOUND_Y,
        {"journal": ours(seen_before=Y), "asked_again": True, "existing": "replace"},
        Action.KEEP,
        False,
    ),
    (
        "found, not the one that was pinned: it may be our own after all",
        FOUND_Y,
        {"journal": ours(X), "existing": "replace"},
        Action.KEEP,
        False,
    ),
    ("found, in the vault, not read back", FOUND_X, {"stored": stored(X)}, Action.KEEP, False),
    ("found, in the vault, read back", FOUND_X, {"stored": stored(X), "proven": True}, Action.DELETE, False),
    ("found, ours, in the vault, not read back", FOUND_X, {"journal": ours(X), "stored": stored(X)}, Action.KEEP, True),
    (
        "found, ours, in the vault, read back",
        FOUND_X,
        {"journal": ours(X), "stored": stored(X), "proven": True},
        Action.DELETE,
        True,
    ),
    ("found, not ours, preserve", FOUND_X, {"existing": "preserve"}, Action.KEEP, False),
    ("found, not ours, replace", FOUND_X, {"existing": "replace"}, Action.REPLACE, False),
    ("found, not ours, fail", FOUND_X, {"existing": "fail"}, Action.REFUSE, False),
    ("found without md5, not ours", NO_MD5, {}, Action.KEEP, False),
    ("found without md5, ours", NO_MD5, {"journal": ours(), "existing": "replace"}, Action.KEEP, True),
    (
        "found without md5, ours and pinned",
        NO_MD5,
        {"journal": ours(X), "existing": "replace"},
        Action.KEEP,
        True,
    ),
    ("found, ours, given up", FOUND_X, {"journal": ours(X), "give_up": True}, Action.REPLACE, True),
    (
        "found, ours, given up, damaged in the vault",
        FOUND_X,
        {"journal": ours(X), "stored": stored(X), "give_up": True},
        Action.REPLACE,
        True,
    ),
    (
        "found, not ours, given up, damaged in the vault",
        FOUND_X,
        {"stored": stored(X), "give_up": True, "existing": "replace"},
        Action.REPLACE,
        False,
    ),
    ("in progress, ours", InProgress(), {"journal": ours()}, Action.AWAIT, True),
    ("in progress, ours, fail", InProgress(), {"journal": ours(), "existing": "fail"}, Action.AWAIT, True),
    ("in progress, not ours, preserve", InProgress(), {"existing": "preserve"}, Action.AWAIT, False),
    ("in progress, not ours, replace", InProgress(), {"existing": "replace"}, Action.AWAIT, False),
    ("in progress, not ours, fail", InProgress(), {"existing": "fail"}, Action.REFUSE, False),
    ("in progress, ours was found before", InProgress(), {"journal": ours(X)}, Action.AWAIT, False),
    (
        "in progress, ours was found before, fail",
        InProgress(),
        {"journal": ours(X), "existing": "fail"},
        Action.REFUSE,
        False,
    ),
]


@pytest.mark.parametrize(("status", "known", "action", "is_ours"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS])
def test_the_table(status: Status, known: dict[str, Any], action: Action, is_ours: bool) -> None:
    plan = planned(status, **known)
    assert (plan.action, plan.ours) == (action, is_ours)
    assert plan.because


@st.composite
def situations(draw: st.DrawFn) -> tuple[Status, dict[str, Any]]:
    pairs = st.sampled_from([None, X, Y])
    statuses: list[Status] = [NOTHING, InProgress(), FOUND_X, FOUND_Y, NO_MD5]
    status = draw(st.sampled_from(statuses))
    journal = draw(st.one_of(st.none(), st.builds(ours, pairs, pairs)))
    # As the callers ask the vault: for the md5 shown, or for the one pinned where nothing is shown.
    wanted = pair(status) if isinstance(status, Found) else journal.pinned if journal else None
    is_stored = wanted is not None and draw(st.booleans())
    known = {
        "journal": journal,
        "stored": stored(wanted) if wanted and is_stored else None,
        "proven": is_stored and isinstance(status, Found) and draw(st.booleans()),
        "existing": draw(st.sampled_from(["preserve", "replace", "fail"])),
        "asked_again": draw(st.booleans()),
        "at_hand": journal is not None and journal.pinned is not None and draw(st.booleans()),
        "give_up": draw(st.booleans()),
    }
    return status, known


@given(situations())
def test_a_finished_backup_is_only_deleted_once_safe_or_where_the_operator_said_so(
    situation: tuple[Status, dict[str, Any]],
) -> None:
    status, known = situation
    plan = planned(status, **known)
    if plan.action is Action.DELETE:
        assert known["stored"] is not None
        assert known["proven"]
    if plan.action is Action.REPLACE:
        foreign = known["existing"] == "replace" and not plan.ours
        assert foreign or (known["give_up"] and plan.ours)
    if plan.action in (Action.DELETE, Action.REPLACE):
        assert isinstance(status, Found), "one in progress is never deleted, and nothing is not either"


@given(situations())
def test_what_our_journal_pinned_is_never_replaced_as_foreign(situation: tuple[Status, dict[str, Any]]) -> None:
    status, known = situation
    journal = known["journal"]
    if isinstance(status, Found) and journal is not None and journal.pinned is not None:
        same = status.name == journal.pinned.name and status.md5 in (None, journal.pinned.md5)
        if same and not known["give_up"]:
            assert planned(status, **known).action is not Action.REPLACE


@given(situations())
def test_nothing_is_started_while_something_is_on_the_node(situation: tuple[Status, dict[str, Any]]) -> None:
    status, known = situation
    if planned(status, **known).action in (Action.START, Action.DONE):
        assert isinstance(status, Absent)


@given(situations())
def test_nothing_is_deleted_unkept_while_a_backup_of_our_own_is_unfinished(
    situation: tuple[Status, dict[str, Any]],
) -> None:
    status, known = situation
    if known.get("journal") is not None and not known.get("give_up"):
        assert planned(status, **known).action is not Action.REPLACE


@given(situations())
def test_a_policy_to_fail_never_touches_what_is_not_ours(situation: tuple[Status, dict[str, Any]]) -> None:
    status, known = situation
    known = known | {"existing": "fail", "journal": None, "stored": None, "proven": False, "at_hand": False}
    assert planned(status, **known).action in (Action.START, Action.REFUSE)


@given(situations())
def test_a_given_up_backup_is_not_kept_for_ever(situation: tuple[Status, dict[str, Any]]) -> None:
    """Bytes that cannot be verified, and are to be replaced, must not be asked for again."""
    status, known = situation
    known = known | {"give_up": True, "existing": "replace", "proven": False, "at_hand": False}
    if isinstance(status, Found):
        assert planned(status, **known).action in (Action.REPLACE, Action.ASK_AGAIN)
