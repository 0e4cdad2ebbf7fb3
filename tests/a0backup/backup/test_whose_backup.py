"""Whose backup is on the node: what journal, reply, vault and contents prove, and what follows from it."""

import asyncio
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.backup.loop import NodeOutcomes, back_up_node
from a0backup.errors import (
    AwaitDeadlineError,
    ForeignBackupError,
    Md5MismatchError,
    NodeBusyError,
    RefusedError,
    StartFailedError,
)
from a0backup.files import digests
from a0backup.report.outcomes import Ending
from a0backup.vault.journal import Effect
from a0backup.vault.manifest import Manifest
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Night, Plainly, run_of, sharing, whole_night
from tests.support.patience import until
from tests.support.sealed import Sealed

ALREADY_THERE = '{"message":"There is a backup already, delete it first"}\n'


def says_refused_but_works(desk: Desk, text: str, exit_code: int = 1) -> None:
    desk.tell("backup", "say", stderr=f"{text}\n", exit=exit_code)


# -- an outcome is read back -------------------------------------------------------------------------------------------


def flip_a_byte(artifact: Path) -> None:
    content = bytearray(artifact.read_bytes())
    content[100] ^= 1
    artifact.write_bytes(content)


@pytest.mark.parametrize("spoil", [flip_a_byte, os.unlink])
async def test_what_a_killed_run_stored_is_read_back_before_the_next_run_reports_it(desk: Desk, spoil: object) -> None:
    await desk.killed_after("confirm-delete")
    [lost] = desk.stored
    spoil(desk.vault.artifact(lost))  # type: ignore[operator]
    ended = await desk.night()
    assert ended.error is None
    assert lost.id in ended.notes
    assert ended.outcome.id != lost.id
    assert ended.outcome.members == 5
    desk.vault.reread(next(manifest for manifest in desk.stored if manifest.id == ended.outcome.id))
    assert desk.counts == (2, 2, 2)


async def test_verified_bytes_in_the_work_folder_replace_a_stored_artifact_that_is_damaged(desk: Desk) -> None:
    await desk.killed_after("confirm-delete")
    [lost] = desk.stored
    artifact = desk.vault.artifact(lost)
    (desk.vault.work(desk.name) / "backup.tar.gz.enc").write_bytes(artifact.read_bytes())
    flip_a_byte(artifact)
    ended = await desk.night()
    assert ended.outcome.id == lost.id
    assert desk.counts == (1, 1, 1)
    desk.is_settled()


async def test_what_another_run_stored_meanwhile_is_read_back_too(desk: Desk) -> None:
    waiting = run_of(desk.fleet, "run-2")
    await desk.night(flow_run="run-1")
    [theirs] = desk.stored
    flip_a_byte(desk.vault.artifact(theirs))
    ended = await desk.night(run=waiting)
    assert ended.error is None
    assert ended.outcome.id != theirs.id
    assert theirs.id in ended.notes


# -- which night a backup belongs to -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["await", "store", "delete", "confirm-delete"])
async def test_a_backup_that_was_started_long_ago_is_kept_and_a_new_one_is_made(desk: Desk, stage: str) -> None:
    desk.configure(reuse_within="0s")
    await desk.killed_after(stage)
    ended = await desk.night()
    assert ended.error is None
    earlier, new = desk.stored
    assert ended.outcome.id == new.id
    assert earlier.started_at is not None
    assert f"finished the backup that run run-1 started at {earlier.started_at:%Y-%m-%d %H:%M:%S UTC}" in ended.notes
    assert desk.counts == (2, 2, 2)
    desk.is_settled()


async def test_a_later_try_of_the_same_run_finishes_its_backup_however_long_ago_it_began(desk: Desk) -> None:
    desk.configure(reuse_within="0s")
    await desk.killed_after("await")
    ended = await desk.night(flow_run="run-1")
    assert ended.error is None
    assert desk.counts == (1, 1, 1)


async def test_backups_with_the_same_name_and_bytes_are_each_kept(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "1.2s"})
    desk.tell("backup", "contents", are="unchanged")
    desk.tell("backup", "duration", seconds=0)
    for night in range(1, 4):
        ended = await desk.night(flow_run=f"run-{night}")
        assert ended.error is None
        assert ended.outcome.members == 5
        this_second = datetime.now(UTC).replace(microsecond=0)
        # Starts are told apart by their second.
        until(lambda second=this_second: datetime.now(UTC).replace(microsecond=0) > second)  # type: ignore[misc]
    assert len({manifest.id for manifest in desk.stored}) == 3
    assert len({manifest.identity for manifest in desk.stored}) == 1
    assert "nothing in it has changed" in ended.notes
    assert desk.counts == (3, 3, 3)
    desk.is_settled()


async def test_a_stored_md5_under_another_name_is_no_reason_to_delete_what_is_on_the_node(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [stored] = desk.stored
    theirs = desk.put()
    status = json.dumps({"message": "Backup found", "arguments": {"name": "theirs.tar.gz", "md5": stored.artifact.md5}})
    desk.tell("backup-status", "say", stdout=status, when="found")
    ended = await desk.night(flow_run="run-2")
    assert isinstance(ended.error, Md5MismatchError)
    assert desk.holds == theirs
    assert desk.counted("backup-delete") == 1


async def test_a_stored_name_with_another_md5_is_no_reason_to_delete_what_is_on_the_node(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [stored] = desk.stored
    theirs = desk.put()
    status = json.dumps({"message": "Backup found", "arguments": {"name": stored.name_on_node, "md5": theirs["md5"]}})
    desk.tell("backup-status", "say", stdout=status, when="found", times=2)
    ended = await desk.night(flow_run="run-2")
    assert ended.error is None
    assert theirs["md5"] in {manifest.artifact.md5 for manifest in desk.stored}
    assert len(desk.stored) == 3


# -- a refused start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_code", [0, 1])
async def test_a_stopped_run_whose_start_was_refused_does_not_adopt_what_is_there(
    sealed: Sealed, exit_code: int
) -> None:
    desk = sealed.desk
    sealed.configure(existing="fail")
    desk.tell("backup", "refuse", message=ALREADY_THERE, exit=exit_code, times=1)
    await desk.killed_after("start")
    theirs = desk.put()
    ended = await desk.night()
    assert isinstance(ended.error, ForeignBackupError)
    assert desk.holds == theirs
    assert desk.stored == []


async def test_a_start_known_to_have_had_no_effect_claims_nothing_that_comes_later(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "0.5s"})
    desk.tell("backup", "refuse", message="Fine.\n", exit=0, times=1)
    first = await desk.night(flow_run="run-1")
    assert isinstance(first.error, StartFailedError)
    desk.simulated.put(desk.name, password=PASSWORD)  # by hand, with the fleet's password
    second = await desk.night(flow_run="run-2")
    assert second.error is None
    theirs, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert theirs.started_at is None
    assert second.outcome.id == ours.id
    assert desk.counted("backup") == 2


@pytest.mark.parametrize("existing", ["preserve", "replace", "fail"])
@pytest.mark.parametrize("text", ["Backup already in progress", "error: permission denied"])
async def test_what_our_own_sealed_password_opens_is_ours_although_the_start_was_refused(
    sealed: Sealed, existing: str, text: str
) -> None:
    desk = sealed.desk
    sealed.configure(existing=existing)
    says_refused_but_works(desk, text)
    desk.tell("backup", "duration", seconds=0.3)
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert (manifest.encryption.password.mode, manifest.encryption.password.confirmed) == ("sealed", True)
    assert manifest.started_at is not None
    assert desk.counts == (1, 1, 1)
    desk.is_settled()


@pytest.mark.parametrize("existing", ["preserve", "replace"])
async def test_a_second_refusal_ends_the_run_and_nothing_is_replaced_after_the_first(desk: Desk, existing: str) -> None:
    desk.configure(existing=existing)
    says_refused_but_works(desk, "Backup already in progress")
    ended = await desk.night()
    assert isinstance(ended.error, StartFailedError | RefusedError)
    assert desk.counted("backup") == 2
    # The backup of the first start is kept as foreign, that of the second stays on the node.
    [kept] = desk.stored
    assert kept.started_at is None
    made = [event["md5"] for event in desk.simulated.events(desk.name) if event["event"] == "complete"]
    assert kept.artifact.md5 == made[0]
    assert desk.counted("backup-delete") == 1


async def test_no_sealed_password_is_removed_until_it_is_proven_to_open_an_artifact(sealed: Sealed) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    await desk.killed_after("start")
    until(lambda: desk.holds is not None, "the backup is there")
    desk.remove()  # by the run of another vault, which has stored it
    [password] = sealed.files
    ended = await desk.night()
    assert ended.error is None
    assert sealed.files == [password]
    desk.put()
    await desk.night(flow_run="run-3")
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert len(sealed.passwords(theirs)) == 1
    assert sealed.files == [password]


# -- a guess is not a success ------------------------------------------------------------------------------------------


async def test_a_sealed_backup_that_nobody_saw_come_is_kept_as_unknown_and_a_new_one_is_made(sealed: Sealed) -> None:
    desk = sealed.desk
    desk.tell("backup", "duration", seconds=0.5, times=1)
    desk.tell("backup-status", "kill_parent", when="after", skip=1, times=1)  # the first poll
    await desk.killed_after("never that far")
    until(lambda: desk.holds is not None, "the backup is there")
    desk.remove()
    theirs = desk.put()  # an operator deleted ours, and made one with their own password
    ended = await desk.night()
    assert ended.error is None
    kept, new = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert kept.artifact.md5 == theirs["md5"]
    assert kept.encryption.password.mode == "unknown"
    assert len(sealed.passwords(kept)) == 1, "the password of the killed run may open it"
    assert kept.id in ended.notes
    assert ended.outcome.id == new.id
    assert sealed.can_be_opened(new)
    desk.is_settled()


async def test_a_guess_that_was_kept_is_not_retrieved_again_after_a_kill(sealed: Sealed) -> None:
    desk = sealed.desk
    await desk.killed_after("start")
    await desk.killed_after("store")
    ended = await desk.night(flow_run="run-3")
    assert ended.error is None
    assert len(desk.stored) == 2
    assert desk.counted("backup-retrieve") == 2
    desk.is_settled()


async def test_a_shared_password_that_opens_a_backup_proves_enough(desk: Desk) -> None:
    await desk.killed_after("start")
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert manifest.started_at is not None
    assert desk.counts == (1, 1, 1)


async def test_the_backup_of_another_host_is_not_taken_for_ours(desk: Desk) -> None:
    await desk.killed_after("start")
    journal = desk.journal.read()
    assert journal is not None
    desk.journal.write(journal.model_copy(update={"host": "the-former-host"}))
    ended = await desk.night()
    assert ended.error is None
    kept, new = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert kept.started_at is None
    assert ended.outcome.id == new.id


async def test_existing_replace_keeps_a_backup_whose_manifest_may_be_the_unreadable_one(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "0.5s"})
    desk.tell("backup-delete", "false_delete")
    assert (await desk.night(flow_run="run-1")).outcome.ending is Ending.NOT_DELETED
    desk.forget()
    [ours] = desk.stored
    (desk.vault.root / ours.id / "manifest.json").write_text("{torn")
    ended = await desk.night(flow_run="run-2", existing="replace")
    assert ended.error is None
    assert ours.artifact.md5 in [manifest.artifact.md5 for manifest in desk.stored]


# -- an md5 that was shown too early -----------------------------------------------------------------------------------


def shows_a_premature_md5(desk: Desk, stage: str) -> None:
    if stage == "start" and desk.counted("backup") == 1:
        while desk.holds is None:
            time.sleep(0.01)
        desk.tell("backup-status", "wrong_md5", times=1)


async def test_the_status_is_asked_again_between_two_retrievals(desk: Desk) -> None:
    desk.configure(existing="fail")
    ended = await desk.night(after=lambda stage: shows_a_premature_md5(desk, stage))
    assert ended.error is None
    [manifest] = desk.stored
    assert manifest.started_at is not None
    # The bytes that did not match the first md5 match the second.
    assert ended.stages.count("retrieve") == 2
    assert desk.counts == (1, 1, 1)
    desk.is_settled()


async def test_a_run_whose_backups_are_taken_away_does_not_make_one_after_another(desk: Desk) -> None:
    desk.tell("backup-status", "taken", times=3)
    ended = await desk.night()
    assert ended.error is not None
    assert desk.counted("backup") == 1


async def test_with_existing_fail_a_backup_that_was_pinned_with_a_premature_md5_blocks_no_night(desk: Desk) -> None:
    desk.configure(existing="fail", retrieve_attempts=1)
    first = await desk.night(flow_run="run-1", after=lambda stage: shows_a_premature_md5(desk, stage))
    assert first.error is not None
    journal = desk.journal.read()
    assert journal is not None
    assert journal.effect is Effect.SEEN
    second = await desk.night(flow_run="run-2")
    assert second.error is None
    assert desk.counted("backup") == 1
    desk.is_settled()


# -- two kinds ---------------------------------------------------------------------------------------------------------


async def test_the_sweep_of_one_kind_leaves_what_another_kind_retrieved(desk: Desk) -> None:
    desk.configure(kinds=["backup", "backup-sensitive"])
    desk.tell("backup-retrieve", "flip", times=3)
    desk.tell("backup-sensitive-retrieve", "kill_parent", when="after", times=1)
    await desk.killed_after("never that far")
    for ended in await whole_night(desk.fleet):
        assert ended.error is None
    assert desk.counted("backup-sensitive-retrieve") == 1


async def test_no_kind_is_started_while_the_node_is_still_making_another(desk: Desk) -> None:
    desk.configure(
        kinds=["backup", "backup-sensitive"],
        polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "1s"},
    )
    desk.tell("backup", "duration", seconds=60, times=1)
    first, second = await whole_night(desk.fleet)
    assert isinstance(first.error, AwaitDeadlineError)
    assert isinstance(second.error, NodeBusyError)
    assert desk.counted("backup-sensitive") == 0


async def test_a_kind_that_a_killed_run_left_in_progress_is_finished_first(desk: Desk) -> None:
    desk.configure(kinds=["backup", "backup-sensitive"])
    desk.tell("backup-sensitive", "duration", seconds=1, times=1)
    desk.tell("backup-sensitive", "kill_parent", when="after", times=1)
    await desk.killed_after("never that far")
    for ended in await whole_night(desk.fleet):
        assert ended.error is None
    order = [event for event in desk.simulated.events(desk.name) if event["event"] in ("started", "complete")]
    assert [(event["kind"], event["event"]) for event in order] == [
        (kind, event) for kind in ("backup", "backup-sensitive", "backup") for event in ("started", "complete")
    ]


# -- a backup that never verifies --------------------------------------------------------------------------------------


async def later(desk: Desk, number: int, **said: object) -> Night:
    """Run the night *number*, a day after the one before it."""
    began = datetime.now(UTC) + timedelta(days=number)
    run = replace(run_of(desk.fleet, f"run-{number}"), began=began)
    return await desk.night(run=run, **said)


@pytest.mark.parametrize("theirs", [False, True])
async def test_a_backup_that_never_matches_its_md5_is_given_up_after_two_nights(desk: Desk, theirs: bool) -> None:
    if theirs:
        desk.put()
    desk.tell("backup-status", "wrong_md5")
    first = await later(desk, 1)
    assert isinstance(first.error, Md5MismatchError)
    bad = desk.holds
    assert bad is not None
    again = await desk.night(run=replace(run_of(desk.fleet, "run-1b"), began=datetime.now(UTC) + timedelta(days=1.1)))
    assert isinstance(again.error, Md5MismatchError), "runs within reuse_within are one night"

    def calm(stage: str) -> None:
        if stage == "confirm-delete":
            desk.forget()

    second = await later(desk, 2, after=calm)
    assert second.error is None
    assert "given up after 2 nights and replaced by a new one: md5 mismatch" in second.notes
    [new] = desk.stored
    assert second.outcome.id == new.id
    [kept] = (desk.vault.folder(desk.name) / "quarantine").glob("*/backup.tar.gz.enc")
    assert digests(kept).md5 == bad["md5"]
    assert str(kept.parent) in second.notes
    desk.is_settled()
    assert not (desk.vault.folder(desk.name) / "unverified-backup.json").exists()


@pytest.mark.parametrize("fault", ["drop", "flip"])
async def test_a_backup_that_comes_incomplete_or_different_each_time_is_never_given_up(desk: Desk, fault: str) -> None:
    for number in range(1, 5):
        for fraction in (0.2, 0.4, 0.6):
            desk.tell("backup-retrieve", fault, fraction=fraction, times=1)
        assert (await later(desk, number)).error is not None
    assert desk.counted("backup") == 1
    assert desk.counted("backup-delete") == 0


async def test_without_room_for_its_bytes_a_backup_is_not_given_up(desk: Desk) -> None:
    await desk.night(flow_run="run-0")
    desk.configure(retrieve_attempts=1)
    desk.tell("backup-status", "wrong_md5")
    await later(desk, 1)

    def full(stage: str) -> None:
        if stage == "retrieve":
            desk.say_the_last_was_huge()

    assert isinstance((await later(desk, 2, after=full)).error, Md5MismatchError)
    assert desk.holds is not None


# -- what an attacker of the logic found -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["store", "delete", "confirm-delete"])
async def test_a_second_try_of_a_night_does_not_take_the_backup_of_the_night_before_for_its_own(
    desk: Desk, stage: str
) -> None:
    await desk.killed_after("await")
    desk.configure(reuse_within="0.2s")
    await asyncio.sleep(1.2)  # now it was started long ago
    await desk.killed_after(stage, flow_run="run-2")
    ended = await desk.night(flow_run="run-2")
    assert ended.error is None
    assert desk.counted("backup") == 2
    assert len(desk.stored) == 2


async def test_what_is_in_progress_after_a_start_without_effect_is_not_ours(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "0.5s"})
    desk.tell("backup", "refuse", message="Fine.\n", exit=0, times=1)
    assert isinstance((await desk.night(flow_run="run-1")).error, StartFailedError)
    desk.tell("backup", "duration", seconds=0.5, times=1)
    desk.simulated.hand_start(desk.name, password=PASSWORD)
    second = await desk.night(flow_run="run-2")
    assert second.error is None
    theirs, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert theirs.started_at is None
    assert second.outcome.id == ours.id


async def test_a_pinned_pair_that_nothing_has_opened_is_not_a_success(sealed: Sealed) -> None:
    desk = sealed.desk
    desk.tell("backup", "kill_client", when="before", times=1)
    desk.tell("backup-retrieve", "drop")

    def theirs(stage: str) -> None:
        if stage == "start":
            desk.put()

    assert (await desk.night(flow_run="run-1", after=theirs)).error is not None
    desk.forget()
    ended = await desk.night(flow_run="run-2")
    assert ended.error is None
    stored = desk.vault.get(ended.outcome.id)
    assert isinstance(stored, Manifest)
    assert sealed.can_be_opened(stored)


async def test_what_was_given_up_is_removed_by_no_run(desk: Desk) -> None:
    theirs = desk.put()
    desk.tell("backup-status", "wrong_md5")
    await later(desk, 1)
    await later(desk, 2)  # gives it up; the new one does not match either
    await later(desk, 3)
    kept = list((desk.vault.folder(desk.name) / "quarantine").glob("*.given-up/backup.tar.gz.enc"))
    assert theirs["md5"] in [digests(path).md5 for path in kept]


async def test_two_runs_of_one_night_count_once_in_whatever_order_they_began(desk: Desk) -> None:
    desk.tell("backup-status", "wrong_md5")
    now = datetime.now(UTC)
    for name, began in (("run-1", now), ("run-2", now - timedelta(seconds=1))):
        ended = await desk.night(run=replace(run_of(desk.fleet, name), began=began))
        assert isinstance(ended.error, Md5MismatchError)
    assert desk.counted("backup-delete") == 0


async def test_a_password_that_cannot_be_read_for_one_night_blocks_no_later_one(desk: Desk) -> None:
    await desk.killed_after("start")
    desk.configure(existing="fail")
    assert isinstance((await desk.night(flow_run="run-2", password="rotated")).error, ForeignBackupError)
    third = await desk.night(flow_run="run-3")
    assert third.error is None
    assert desk.counted("backup") == 1


async def test_a_start_from_a_clock_that_ran_ahead_is_not_recent(desk: Desk) -> None:
    await desk.killed_after("await")
    journal = desk.journal.read()
    assert journal is not None
    desk.journal.write(journal.model_copy(update={"started_at": journal.started_at + timedelta(days=400)}))
    ended = await desk.night()
    assert ended.error is None
    assert desk.counted("backup") == 2


async def test_a_backup_in_progress_that_is_gone_when_an_earlier_run_resumes_is_made_anew(desk: Desk) -> None:
    desk.tell("backup", "duration", seconds=1.5, times=1)
    await desk.killed_after("start")
    desk.tell("backup-status", "in_progress", times=2)
    removed: list[bool] = []

    def remove(stage: str) -> None:
        if stage == "status" and not removed:
            until(lambda: desk.holds is not None, "the backup is there")
            desk.remove()
            removed.append(True)

    ended = await desk.night(after=remove)
    assert ended.error is None
    assert desk.counted("backup") == 2


async def test_an_unfinished_kind_that_fleet_yaml_names_no_more_is_reported(desk: Desk) -> None:
    desk.configure(kinds=["backup", "backup-sensitive"])
    desk.tell("backup-sensitive", "kill_parent", when="after", times=1)
    await desk.killed_after("never that far")
    desk.configure(kinds=["backup"])
    run = run_of(desk.fleet, "run-2")
    outcomes = NodeOutcomes(desk.fleet.nodes[0], desk.fleet)
    await back_up_node(run, outcomes, take=Plainly(), shared=sharing(PASSWORD))
    told = "an unfinished backup-sensitive of an earlier run is not in `kinds` any more: no run finishes it"
    assert told in [warning.text for warning in outcomes.warnings]


async def test_what_was_not_read_back_is_not_reported_as_stored(desk: Desk) -> None:
    await desk.killed_after("confirm-delete")
    [lost] = desk.stored
    desk.vault.artifact(lost).unlink()
    desk.tell(None, "unreachable")
    ended = await desk.night(flow_run="run-1")
    assert (ended.outcome.ending, ended.outcome.id) == (Ending.UNREACHABLE, "")
