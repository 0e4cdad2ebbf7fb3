"""What an inspection proves about an artifact and its password: every rule, without a node."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from a0backup.backup.evidence import Evidence, Verdict, judge, password_of
from a0backup.backup.reconcile import Claim
from a0backup.backup.start import KnownPassword
from a0backup.errors import GzipDamagedError, WrongPasswordError
from a0backup.vault.journal import Journal, NotOpened
from a0backup.vault.manifest import MAX_MANIFEST_BYTES, MAX_MANIFEST_COMMAS, ManifestPassword, SealedPassword

NOISE, CUT = WrongPasswordError("a0-1", "backup", "noise"), GzipDamagedError("a0-1", "backup", "cut")
KNOWN = NotOpened(reason="known from before", password_fits=False)
FITS = NotOpened(reason="too large", password_fits=True)


def journal(*, sealed: bool = False, not_opened: NotOpened | None = None) -> Journal:
    started = datetime(2026, 11, 23, 2, tzinfo=UTC)
    return Journal(
        node="a0-1",
        kind="backup",
        host="10.0.0.1",
        port=10121,
        flow_run="run",
        started_at=started,
        sealed=sealed,
        not_opened=not_opened,
    )


FOREIGN = Evidence(
    opened=None,
    error=None,
    claim=Claim.NONE,
    started_here=False,
    accepted=False,
    starts=0,
    journal=None,
    existing="preserve",
)
EARLIER = replace(FOREIGN, claim=Claim.OPENED, journal=journal())
SEALED = replace(EARLIER, journal=journal(sealed=True))
GUESS, SEALED_GUESS = (replace(each, claim=Claim.GUESS) for each in (EARLIER, SEALED))
SEEN, SEALED_SEEN = (replace(each, claim=Claim.SEEN) for each in (EARLIER, SEALED))
HERE = replace(EARLIER, started_here=True, accepted=True, starts=1)
LOST_REPLY = replace(HERE, accepted=False)
FAIL = {"existing": "fail"}

ROWS: list[tuple[str, Evidence, Verdict, str]] = [
    ("foreign, no password at hand", FOREIGN, Verdict.NOT_READ, ""),
    ("foreign, the shared password does not open it", replace(FOREIGN, error=NOISE), Verdict.NOT_OPENED, "noise"),
    ("foreign, cut", replace(FOREIGN, error=CUT), Verdict.NOT_OPENED, "cut"),
    ("of this run, accepted, noise", replace(HERE, error=NOISE), Verdict.FAILED, "noise"),
    ("of this run, accepted, cut", replace(HERE, error=CUT), Verdict.FAILED, "cut"),
    ("of this run, no password at hand", HERE, Verdict.NOT_READ, ""),
    ("of this run, its reply was lost, noise", replace(LOST_REPLY, error=NOISE), Verdict.NOT_OPENED, "noise"),
    ("of this run, its reply was lost, cut", replace(LOST_REPLY, error=CUT), Verdict.FAILED, "cut"),
    (
        "of this run, a second reply was lost, noise",
        replace(LOST_REPLY, error=NOISE, starts=2),
        Verdict.FAILED,
        "noise",
    ),
    ("of an earlier run, shared, noise", replace(EARLIER, error=NOISE), Verdict.NOT_OPENED, "noise"),
    ("the same with the policy to fail", replace(EARLIER, error=NOISE, **FAIL), Verdict.NOT_OPENED, "noise"),
    ("perhaps of an earlier run, shared, noise, fail", replace(GUESS, error=NOISE, **FAIL), Verdict.FOREIGN, "noise"),
    ("perhaps of an earlier run, shared, not at hand, fail", replace(GUESS, **FAIL), Verdict.FOREIGN, ""),
    (
        "seen by the run that started it, shared, noise, fail",
        replace(SEEN, error=NOISE, **FAIL),
        Verdict.NOT_OPENED,
        "noise",
    ),
    ("perhaps of an earlier run, sealed, fail", replace(SEALED_GUESS, **FAIL), Verdict.NOT_READ, ""),
    ("foreign, opened", replace(FOREIGN, opened="shared"), Verdict.OPENED, ""),
    ("of an earlier run, shared, cut, fail", replace(EARLIER, error=CUT, **FAIL), Verdict.NOT_OPENED, "cut"),
    ("of an earlier run, sealed, nothing at hand", SEALED, Verdict.NOT_READ, ""),
    ("of an earlier run, sealed, another is at hand", replace(SEALED, error=NOISE), Verdict.NOT_READ, ""),
    ("of an earlier run, sealed, opened by another", replace(SEALED, error=CUT), Verdict.NOT_OPENED, "cut"),
    (
        "of an earlier run, sealed, which could not open it either",
        replace(SEALED, error=NOISE, journal=journal(sealed=True, not_opened=KNOWN)),
        Verdict.NOT_OPENED,
        "known from before",
    ),
    (
        "of an earlier run, sealed, whose password fits, fail",
        replace(SEALED, journal=journal(sealed=True, not_opened=FITS), **FAIL),
        Verdict.NOT_OPENED,
        "too large",
    ),
    (
        "foreign: what the journal says of ours is not about it",
        replace(FOREIGN, journal=journal(not_opened=KNOWN)),
        Verdict.NOT_READ,
        "",
    ),
]


@pytest.mark.parametrize(("known", "verdict", "why"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_judge_decides_as_the_table_says(known: Evidence, verdict: Verdict, why: str) -> None:
    judged = judge(known)
    assert judged.verdict is verdict
    assert (judged.why.reason if judged.why else "").startswith(why)
    assert (judged.why is None) is (why == "")


@pytest.mark.parametrize(
    ("known", "ours"),
    [
        (FOREIGN, False),
        (replace(FOREIGN, opened="shared"), False),
        (replace(FOREIGN, opened="sealed"), True),
        (replace(GUESS, opened="shared"), True),
        (replace(EARLIER, opened="shared"), True),
        (GUESS, False),
        (SEALED_GUESS, False),
        (SEEN, False),
        (SEALED_SEEN, False),
        (replace(SEEN, opened="shared"), True),
        (EARLIER, True),
        (SEALED, True),
        (replace(SEALED, error=NOISE), True),
        (replace(EARLIER, error=NOISE), False),
        (replace(SEALED, error=CUT), False),
    ],
)
def test_a_backup_is_ours_only_if_a_password_of_ours_has_opened_it(known: Evidence, ours: bool) -> None:
    assert judge(known).ours is ours


@pytest.mark.parametrize("length", [684, 8192])  # of the boxes of a key with 4096 bits, and of the largest
def test_of_more_passwords_than_a_manifest_holds_the_newest_are_listed(length: int) -> None:
    many = tuple(SealedPassword(recovery_key="0" * 64, box=f"{number:0>{length}}") for number in range(9000))
    said = password_of(**(NOTHING | {"candidates": many}))
    assert 900 <= len(said.sealed) <= 8000
    assert said.sealed == many[-len(said.sealed) :]
    # As to_json indents it, inside of a whole manifest.
    written = json.dumps({"encryption": {"password": said.model_dump()}}, indent=2)
    assert len(written) <= MAX_MANIFEST_BYTES - (64 << 10)
    assert written.count(",") < MAX_MANIFEST_COMMAS


BOXES = (SealedPassword(recovery_key="0" * 64, box="b3Vycw=="),)
SHARED, OWN = KnownPassword("Passw0rd"), KnownPassword("its own", BOXES)
NOTHING = {"opened_by": None, "only_tried": None, "fits": False, "candidates": (), "journal": None}


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"opened_by": SHARED}, ManifestPassword(mode="shared", confirmed=True)),
        ({"opened_by": OWN}, ManifestPassword(mode="sealed", confirmed=True, sealed=BOXES)),
        ({}, ManifestPassword(mode="unknown")),
        ({"candidates": BOXES}, ManifestPassword(mode="unknown", sealed=BOXES)),
        ({"journal": journal()}, ManifestPassword(mode="shared")),
        ({"journal": journal(), "candidates": BOXES}, ManifestPassword(mode="shared", sealed=BOXES)),
        ({"journal": journal(sealed=True), "candidates": BOXES}, ManifestPassword(mode="sealed", sealed=BOXES)),
        ({"fits": True, "only_tried": SHARED}, ManifestPassword(mode="shared")),
        ({"fits": True, "only_tried": OWN, "candidates": BOXES}, ManifestPassword(mode="sealed", sealed=BOXES)),
        ({"fits": True, "candidates": BOXES}, ManifestPassword(mode="sealed", sealed=BOXES)),
        ({"only_tried": SHARED}, ManifestPassword(mode="unknown")),
    ],
)
def test_a_manifest_records_what_is_proven_about_the_password_and_keeps_every_candidate(
    known: dict[str, object], said: ManifestPassword
) -> None:
    assert password_of(**NOTHING | known) == said  # type: ignore[arg-type]
