"""Every row of the table in docs/reconcile.md, and the invariants for any state of node, vault and journal."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.a0cli.status import Absent, Found, InProgress, Status
from a0backup.backup.reconcile import (
    Action,
    AskAgain,
    Await,
    Claim,
    Delete,
    Facts,
    Keep,
    ReadBack,
    Refuse,
    Replace,
    Settle,
    SoFar,
    Start,
    reconcile,
)
from a0backup.fleet.models import Existing
from a0backup.identity import BackupIdentity
from a0backup.vault.journal import Effect, Journal
from a0backup.vault.manifest import Encryption, Manifest, ManifestArtifact, ManifestNode, ManifestPassword

NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
X, Y = (
    BackupIdentity(name="04-06-2016-15-04-30.tar.gz", md5="a" * 32),
    BackupIdentity(name="05-06-2016-15-04-30.tar.gz", md5="b" * 32),
)
FOUND_X, FOUND_Y, NO_MD5 = Found(X.name, X.md5), Found(Y.name, Y.md5), Found(X.name, None, "no md5")


def stored(which: BackupIdentity) -> Manifest:
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


def ours(
    pinned: BackupIdentity | None = None,
    seen_before: BackupIdentity | None = None,
    effect: Effect | None = None,
    *,
    sealed: bool = False,
) -> Journal:
    """Return our journal; what it pins, the run that started it has opened unless *effect* says otherwise."""
    return Journal(
        node="a0-1",
        kind="backup",
        host="10.0.0.1",
        port=10121,
        flow_run="run",
        started_at=NOW,
        sealed=sealed,
        effect=effect or (Effect.OPENED if pinned else Effect.UNKNOWN),
        pinned=pinned,
        seen_before=seen_before,
    )


def decided(status: Status, *, existing: Existing = "preserve", **known: Any) -> Action:
    of_run = {name: known.pop(name) for name in list(known) if name in OF_RUN}
    return reconcile(Facts(status, existing, run=SoFar(**of_run), **known))


OF_RUN = {field.name for field in fields(SoFar)}
NOTHING = Absent()
MOVED = {"moved": True}
RENAMED = BackupIdentity(name=X.name, md5="c" * 32)
READ_BACK = {"read_back": frozenset({stored(X).id})}
KEEP_OURS, KEEP_SEEN, KEEP_GUESS, KEEP_FOREIGN = (
    Keep(FOUND_X, claim, because="") for claim in (Claim.OPENED, Claim.SEEN, Claim.GUESS, Claim.NONE)
)
ROWS: list[tuple[str, Status, dict[str, Any], Action]] = [
    ("nothing, no journal", NOTHING, {}, Start(because="")),
    (
        "our stored bytes under another name",
        Found(Y.name, X.md5),
        {"outcome": stored(X), "stored": stored(X), **READ_BACK},
        Delete(Found(Y.name, X.md5), because=""),
    ),
    ("nothing, ours, stored", NOTHING, {"journal": ours(X), "stored": stored(X)}, ReadBack(stored(X), because="")),
    (
        "nothing, ours, stored, read back",
        NOTHING,
        {"journal": ours(X), "stored": stored(X), **READ_BACK},
        Settle(stored(X), because=""),
    ),
    (
        "nothing, ours, stored, damaged",
        NOTHING,
        {"journal": ours(X), "stored": stored(X), "damaged": frozenset({stored(X).id})},
        Start(because=""),
    ),
    (
        "nothing, ours, stored, damaged, its verified bytes are here",
        NOTHING,
        {"journal": ours(X), "stored": stored(X), "damaged": frozenset({stored(X).id}), "lost_by_node": True},
        KEEP_OURS,
    ),
    (
        "nothing, ours, stored, started long ago",
        NOTHING,
        {"journal": ours(X), "stored": stored(X), "recent": False, **READ_BACK},
        Start(because=""),
    ),
    (
        "the same, not read back",
        NOTHING,
        {"journal": ours(X), "stored": stored(X), "recent": False},
        ReadBack(stored(X), because=""),
    ),
    ("nothing, our start was refused", NOTHING, {"journal": ours(effect=Effect.REFUSED)}, Start(because="")),
    ("nothing, ours, not stored", NOTHING, {"journal": ours()}, AskAgain(because="")),
    ("nothing, ours, found once and gone", NOTHING, {"journal": ours(X)}, AskAgain(because="")),
    ("nothing, ours, still nothing", NOTHING, {"journal": ours(), "asked_again": True}, Start(because="")),
    ("nothing, ours, its verified bytes are here", NOTHING, {"journal": ours(X), "lost_by_node": True}, KEEP_OURS),
    (
        "nothing, this run's outcome is stored",
        NOTHING,
        {"outcome": stored(X), **READ_BACK},
        Settle(stored(X), because=""),
    ),
    ("the same, not read back", NOTHING, {"outcome": stored(X)}, ReadBack(stored(X), because="")),
    (
        "nothing, this run's outcome is stored, another of ours is unfinished",
        NOTHING,
        {"outcome": stored(X), "journal": ours()},
        AskAgain(because=""),
    ),
    (
        "nothing, this run's outcome is stored, the journal is unreadable",
        NOTHING,
        {"outcome": stored(X), "unreadable": True, **READ_BACK},
        Settle(stored(X), because=""),
    ),
    (
        "found another, this run's outcome is stored",
        FOUND_Y,
        {"outcome": stored(X), **READ_BACK},
        Settle(stored(X), because=""),
    ),
    (
        "found another, this run's outcome is stored, the journal is unreadable",
        FOUND_X,
        {"outcome": stored(Y), "unreadable": True},
        KEEP_FOREIGN,
    ),
    (
        "found this run's outcome, read back",
        FOUND_X,
        {"outcome": stored(X), "journal": ours(X), "stored": stored(X), **READ_BACK},
        Delete(FOUND_X, because=""),
    ),
    (
        "found without md5, may be this run's outcome",
        NO_MD5,
        {"outcome": stored(X), "journal": ours(X)},
        Keep(NO_MD5, Claim.OPENED, because=""),
    ),
    ("found, may be ours, not stored", FOUND_X, {"journal": ours()}, KEEP_GUESS),
    ("found, may be ours, fail", FOUND_X, {"journal": ours(), "existing": "fail"}, KEEP_GUESS),
    ("found, pinned by a run that did not start it", FOUND_X, {"journal": ours(X, effect=Effect.UNKNOWN)}, KEEP_GUESS),
    ("found, seen to come", FOUND_X, {"journal": ours(X, effect=Effect.SEEN)}, KEEP_SEEN),
    (
        "in progress, its md5 may have been shown too early",
        InProgress(),
        {"journal": ours(X, effect=Effect.SEEN), "existing": "fail"},
        Await(True, because=""),
    ),
    (
        "found, our start had no effect, fail",
        FOUND_X,
        {"journal": ours(effect=Effect.NONE), "existing": "fail"},
        KEEP_FOREIGN,
    ),
    ("found, a manifest is hidden, fail", FOUND_X, {"hidden": True, "existing": "fail"}, KEEP_FOREIGN),
    (
        "in progress, our start had no effect",
        InProgress(),
        {"journal": ours(effect=Effect.NONE)},
        Await(False, because=""),
    ),
    ("found, pinned with another md5", FOUND_X, {"journal": ours(RENAMED)}, KEEP_GUESS),
    ("found, pinned with another md5, the node has moved", FOUND_X, {"journal": ours(RENAMED), **MOVED}, KEEP_FOREIGN),
    ("found, the node has moved", FOUND_X, {"journal": ours(), **MOVED}, KEEP_FOREIGN),
    ("found, the node has moved, fail", FOUND_X, {"journal": ours(), "existing": "fail", **MOVED}, Refuse(because="")),
    ("found, pinned, the node has moved", FOUND_X, {"journal": ours(X), **MOVED}, KEEP_OURS),
    ("found, our start was refused", FOUND_X, {"journal": ours(effect=Effect.REFUSED)}, KEEP_FOREIGN),
    (
        "found, our start was refused, fail",
        FOUND_X,
        {"journal": ours(effect=Effect.REFUSED), "existing": "fail"},
        Refuse(because=""),
    ),
    (
        "found, our start was refused, fail, its sealed password may open it",
        FOUND_X,
        {"journal": ours(effect=Effect.REFUSED), "existing": "fail", "refusals": 1, "own_password": True},
        KEEP_FOREIGN,
    ),
    ("found, our start was refused, replace", FOUND_X, {"refusals": 1, "existing": "replace"}, KEEP_FOREIGN),
    ("found, a manifest is hidden, replace", FOUND_X, {"hidden": True, "existing": "replace"}, KEEP_FOREIGN),
    ("found, our start had no effect", FOUND_X, {"journal": ours(effect=Effect.NONE)}, KEEP_FOREIGN),
    ("found, our sealed start had no effect", FOUND_X, {"journal": ours(effect=Effect.NONE, sealed=True)}, KEEP_GUESS),
    ("found, ours and pinned, not stored", FOUND_X, {"journal": ours(X)}, KEEP_OURS),
    ("found, not the pair that was pinned", FOUND_X, {"journal": ours(Y)}, KEEP_FOREIGN),
    (
        "found, not the pair that was pinned, whose verified bytes are here",
        FOUND_Y,
        {"journal": ours(X), "lost_by_node": True},
        KEEP_OURS,
    ),
    (
        "in progress, not the pair that was pinned, whose verified bytes are here",
        InProgress(),
        {"journal": ours(X), "lost_by_node": True, "existing": "fail"},
        KEEP_OURS,
    ),
    ("found, what was there before the start", FOUND_Y, {"journal": ours(seen_before=Y)}, AskAgain(because="")),
    (
        "found, what was there before the start, asked again, in the vault",
        FOUND_X,
        {"journal": ours(seen_before=X), "asked_again": True, "stored": stored(X)},
        Keep(FOUND_X, Claim.NONE, stored(X), because=""),
    ),
    (
        "found, what was there before the start, asked again, not in the vault",
        FOUND_X,
        {"journal": ours(seen_before=X), "asked_again": True, "existing": "replace"},
        KEEP_FOREIGN,
    ),
    (
        "found, not the one that was pinned: it may be our own after all",
        FOUND_X,
        {"journal": ours(Y), "existing": "replace"},
        KEEP_FOREIGN,
    ),
    (
        "found, in the vault, not read back",
        FOUND_X,
        {"stored": stored(X)},
        Keep(FOUND_X, Claim.NONE, stored(X), because=""),
    ),
    ("found, in the vault, read back", FOUND_X, {"stored": stored(X), **READ_BACK}, Delete(FOUND_X, because="")),
    (
        "found, ours, in the vault, not read back",
        FOUND_X,
        {"journal": ours(X), "stored": stored(X)},
        Keep(FOUND_X, Claim.OPENED, stored(X), because=""),
    ),
    (
        "found, ours, in the vault, read back",
        FOUND_X,
        {"journal": ours(X), "stored": stored(X), **READ_BACK},
        Delete(FOUND_X, because=""),
    ),
    ("found, not ours, preserve", FOUND_X, {"existing": "preserve"}, KEEP_FOREIGN),
    ("found, not ours, replace", FOUND_X, {"existing": "replace"}, Replace(FOUND_X, because="")),
    ("found, not ours, fail", FOUND_X, {"existing": "fail"}, Refuse(because="")),
    ("found without md5, not ours", NO_MD5, {}, Keep(NO_MD5, Claim.NONE, because="")),
    (
        "found without md5, ours",
        NO_MD5,
        {"journal": ours(), "existing": "replace"},
        Keep(NO_MD5, Claim.GUESS, because=""),
    ),
    (
        "found without md5, ours and pinned",
        NO_MD5,
        {"journal": ours(X), "existing": "replace"},
        Keep(NO_MD5, Claim.OPENED, because=""),
    ),
    ("found, ours, given up", FOUND_X, {"journal": ours(X), "given_up": X}, Replace(FOUND_X, because="")),
    (
        "found, ours, given up, damaged in the vault",
        FOUND_X,
        {"journal": ours(X), "stored": stored(X), "given_up": X},
        Replace(FOUND_X, because=""),
    ),
    (
        "found, not ours, given up, damaged in the vault",
        FOUND_X,
        {"stored": stored(X), "given_up": X, "existing": "replace"},
        Replace(FOUND_X, because=""),
    ),
    ("found, ours, another was given up", FOUND_X, {"journal": ours(X), "given_up": Y}, KEEP_OURS),
    (
        "in progress, our start was refused",
        InProgress(),
        {"journal": ours(effect=Effect.REFUSED)},
        Await(False, because=""),
    ),
    ("in progress, the node has moved", InProgress(), {"journal": ours(), **MOVED}, Await(False, because="")),
    ("in progress, ours", InProgress(), {"journal": ours()}, Await(True, because="")),
    ("in progress, ours, fail", InProgress(), {"journal": ours(), "existing": "fail"}, Await(True, because="")),
    ("in progress, not ours, preserve", InProgress(), {"existing": "preserve"}, Await(False, because="")),
    ("in progress, not ours, replace", InProgress(), {"existing": "replace"}, Await(False, because="")),
    ("in progress, not ours, fail", InProgress(), {"existing": "fail"}, Refuse(because="")),
    ("in progress, ours was found before", InProgress(), {"journal": ours(X)}, Await(False, because="")),
    (
        "in progress, ours was found before, fail",
        InProgress(),
        {"journal": ours(X), "existing": "fail"},
        Refuse(because=""),
    ),
]


@pytest.mark.parametrize(("status", "known", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_reconcile_decides_as_the_table_says(status: Status, known: dict[str, Any], expected: Action) -> None:
    action = decided(status, **known)
    assert replace(action, because="") == expected
    assert action.because
    assert action.then


@st.composite
def situations(draw: st.DrawFn) -> Facts:
    seen = st.sampled_from([None, X, Y])
    statuses: list[Status] = [NOTHING, InProgress(), FOUND_X, FOUND_Y, NO_MD5]
    status = draw(st.sampled_from(statuses))
    effects = st.sampled_from([None, *Effect])
    journal = draw(st.one_of(st.none(), st.builds(ours, seen, seen, effects, sealed=st.booleans())))
    # The callers query the vault like this: for the md5 shown, or for the pinned one if nothing is shown.
    wanted = status.identity if isinstance(status, Found) else journal.pinned if journal else None
    is_stored = wanted is not None and wanted.md5 is not None and draw(st.booleans())
    manifest = stored(wanted) if wanted and is_stored else None
    return Facts(
        status,
        draw(st.sampled_from(["preserve", "replace", "fail"])),
        journal=journal,
        unreadable=draw(st.booleans()),
        moved=journal is not None and draw(st.booleans()),
        recent=journal is None or draw(st.booleans()),
        stored=manifest,
        hidden=draw(st.booleans()),
        lost_by_node=journal is not None and journal.pinned is not None and draw(st.booleans()),
        run=SoFar(
            outcome=draw(st.sampled_from([None, stored(X), stored(Y)])),
            read_back=frozenset({manifest.id}) if manifest and draw(st.booleans()) else frozenset(),
            damaged=frozenset({manifest.id}) if manifest and draw(st.booleans()) else frozenset(),
            asked_again=draw(st.booleans()),
            refusals=draw(st.sampled_from([0, 1])),
            own_password=draw(st.booleans()),
            given_up=draw(seen),
        ),
    )


@given(situations())
def test_a_finished_backup_is_deleted_only_if_it_is_safe_or_the_operator_said_so(facts: Facts) -> None:
    match reconcile(facts):
        case Delete(found):
            assert facts.stored is not None
            assert facts.stored.id in facts.run.read_back
            assert found == facts.status, "what is shown is deleted, and nothing else"
        case Replace(found):
            unclear = facts.journal is not None or facts.run.refusals or facts.hidden
            foreign = facts.existing == "replace" and not unclear
            assert foreign or facts.run.given_up == found.identity
            assert found == facts.status, "one in progress is never deleted, and nothing is not either"


@given(situations())
def test_a_backup_pinned_by_our_journal_is_never_replaced_as_foreign(facts: Facts) -> None:
    if isinstance(facts.status, Found) and facts.pinned is not None and facts.status.identity.may_be(facts.pinned):
        action = reconcile(facts)
        assert not isinstance(action, Replace) or facts.run.given_up == facts.status.identity


@given(situations())
def test_no_backup_is_started_while_one_is_on_the_node(facts: Facts) -> None:
    if isinstance(reconcile(facts), Start):
        assert isinstance(facts.status, Absent)


@given(situations())
def test_only_what_was_read_back_is_settled_and_not_while_it_may_still_be_on_the_node(facts: Facts) -> None:
    action = reconcile(facts)
    if isinstance(action, Settle):
        assert action.outcome.id in facts.run.read_back
    if isinstance(action, Settle) and isinstance(facts.status, Found):
        assert not facts.status.identity.may_be(action.outcome.identity)


@given(situations())
def test_no_backup_is_deleted_unstored_while_one_of_ours_is_unfinished(facts: Facts) -> None:
    if facts.journal is not None and facts.run.given_up is None:
        assert not isinstance(reconcile(facts), Replace)


@given(situations())
def test_existing_fail_never_touches_a_backup_that_is_not_ours(facts: Facts) -> None:
    run = replace(facts.run, outcome=None, own_password=False)
    facts = replace(facts, existing="fail", journal=None, stored=None, hidden=False, lost_by_node=False, run=run)
    assert isinstance(reconcile(facts), Start | Refuse)


@given(situations())
def test_a_given_up_backup_is_not_retrieved_again(facts: Facts) -> None:
    """Bytes that cannot be verified and will be replaced must not be requested again."""
    if isinstance(facts.status, Found):
        run = replace(facts.run, given_up=facts.status.identity, read_back=frozenset(), outcome=None)
        facts = replace(facts, existing="replace", lost_by_node=False, run=run)
        assert isinstance(reconcile(facts), Replace | AskAgain)
