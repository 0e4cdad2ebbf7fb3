"""One run on one node, without an engine, against the simulator: every night ends as design.md promises."""
# Other processes make the awaited conditions true, and nothing else runs in a test's event loop.
# ruff: noqa: ASYNC110

import asyncio
import functools
import json
import re
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from a0backup.a0cli.commands import A0cli
from a0backup.a0cli.printed import Printed
from a0backup.backup.session import Run
from a0backup.errors import (
    A0BackupError,
    AwaitDeadlineError,
    DeleteNotConfirmedError,
    ForeignBackupError,
    Md5MismatchError,
    Md5MissingError,
    RefusedError,
    RetrieveFailedError,
    StartFailedError,
    UnknownReplyError,
    UnknownVaultError,
    VaultFullError,
)
from a0backup.fleet.models import Existing
from a0backup.report.outcomes import Ending
from a0backup.vault.journal import Journal, JournalFile
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Night, night
from tests.support.patience import patience

# -- plain nights ------------------------------------------------------------------------------------------------------

SHORT = f"{patience(1.5)}s"  # for tests that wait until a call times out


async def test_a_plain_night_ends_with_a_verified_artifact_and_a_free_node(desk: Desk) -> None:
    ended = await desk.night()
    assert ended.error is None
    assert ended.outcome.ending is Ending.STORED
    [manifest] = desk.stored
    assert (ended.outcome.id, ended.outcome.md5, ended.outcome.size) == (
        manifest.id,
        manifest.artifact.md5,
        manifest.artifact.size,
    )
    assert (manifest.encryption.password.mode, manifest.encryption.password.confirmed) == ("shared", True)
    assert manifest.flow_run == "run-2"
    assert ended.stages == [
        *("update-commands", "ping", "status", "start", "await"),
        *("retrieve", "verify", "inspect", "store", "delete", "confirm-delete"),
    ]
    assert ended.notes == ""
    assert desk.counts == (1, 1, 1)
    desk.is_settled()


async def test_the_status_is_queried_right_before_and_right_after_the_deletion(desk: Desk) -> None:
    await desk.night()
    commands = [call["command"] for call in desk.simulated.calls(desk.name)]
    assert commands[-3:] == ["backup-status", "backup-delete", "backup-status"]


async def test_two_nights_give_two_artifacts(desk: Desk) -> None:
    first, second = await desk.night(flow_run="run-1"), await desk.night(flow_run="run-2")
    assert [manifest.id for manifest in desk.stored] == [first.outcome.id, second.outcome.id]
    assert desk.counts == (2, 2, 2)
    desk.is_settled()


async def test_a_node_is_not_touched_again_once_this_run_has_stored_its_backup(desk: Desk) -> None:
    first = await desk.night()
    desk.put()
    second = await desk.night(existing="replace")
    assert second.outcome.id == first.outcome.id
    assert desk.counts == (1, 1, 1)
    assert desk.holds is not None


# -- an existing backup ------------------------------------------------------------------------------------------------


async def test_a_foreign_backup_is_preserved_before_a_new_one_is_made(desk: Desk) -> None:
    theirs = desk.put()
    ended = await desk.night()
    foreign, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert (foreign.artifact.md5, foreign.started_at, foreign.encryption.password.mode) == (
        theirs["md5"],
        None,
        "unknown",
    )
    assert ended.outcome.id == ours.id
    assert foreign.id in ended.notes
    assert desk.counts == (1, 2, 2)
    desk.is_settled()


async def test_a_foreign_backup_is_replaced_without_being_stored_if_the_operator_said_so(desk: Desk) -> None:
    theirs = desk.put()
    ended = await desk.night(existing="replace")
    [ours] = desk.stored
    assert ended.outcome.id == ours.id
    assert ours.artifact.md5 != theirs["md5"]
    assert desk.counts == (1, 1, 2)


async def test_with_existing_fail_a_foreign_backup_is_not_touched(desk: Desk) -> None:
    theirs = desk.put()
    ended = await desk.night(existing="fail")
    assert isinstance(ended.error, ForeignBackupError)
    assert ended.outcome.ending is Ending.FAILED
    assert desk.counts == (0, 0, 0)
    assert desk.holds == theirs
    assert desk.stored == []


async def test_a_backup_that_somebody_else_is_making_is_awaited_and_preserved(desk: Desk) -> None:
    desk.tell("backup", "duration", seconds=0.5, times=1)
    desk.by_hand("backup", "their own")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert sorted(manifest.encryption.password.mode for manifest in desk.stored) == ["shared", "unknown"]
    assert desk.counts == (2, 2, 2)
    desk.is_settled()


async def test_with_existing_fail_a_foreign_backup_in_progress_fails_at_once(desk: Desk) -> None:
    desk.tell("backup", "duration", seconds=60, times=1)
    desk.by_hand("backup", "their own")
    ended = await desk.night(existing="fail")
    assert isinstance(ended.error, ForeignBackupError)
    assert desk.counts == (1, 0, 0)


async def test_the_await_for_our_own_backup_starts_fresh_after_that_for_a_foreign_one(desk: Desk) -> None:
    """It inherits neither the deadline nor what was seen in progress from the foreign backup."""
    desk.configure(polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": f"{patience(2)}s"})
    desk.tell("backup", "duration", seconds=patience(1.2), times=1)
    desk.by_hand("backup", "their own")
    desk.tell("backup", "late", seconds=patience(0.8), reply="ok", times=1)
    desk.tell("backup", "duration", seconds=patience(0.5), times=1)
    ended = await desk.night()
    assert ended.error is None
    desk.is_settled()


# -- disk space --------------------------------------------------------------------------------------------------------


async def test_no_backup_is_started_without_space_for_the_next_artifact(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    desk.say_the_last_was_huge()
    desk.quarantined()
    ended = await desk.night()
    assert isinstance(ended.error, VaultFullError)
    assert (ended.outcome.ending, ended.outcome.step) == (Ending.FAILED, "start")
    assert desk.counts == (1, 1, 1)
    assert desk.journal.read() is None
    # Mismatched bytes are deleted first if space is short.
    assert not list((desk.vault.folder(desk.name) / "quarantine").iterdir())
    desk.say_the_last_was(20_000)
    assert (await desk.night(flow_run="run-3")).outcome.ending is Ending.STORED


async def test_without_space_an_existing_backup_is_not_retrieved_and_stays_on_the_node(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    desk.say_the_last_was_huge()
    theirs = desk.put()
    ended = await desk.night()
    assert isinstance(ended.error, VaultFullError)
    assert desk.counts == (1, 1, 1)
    assert desk.holds == theirs


async def test_a_backup_that_is_already_stored_needs_no_space(desk: Desk) -> None:
    await desk.killed_after("store")
    [manifest] = desk.stored
    assert manifest.started_at is not None
    later = manifest.started_at + timedelta(hours=1)
    newest = desk.vault.folder(desk.name) / f"{later:%Y%m%dT%H%M%SZ}-backup"
    shutil.copytree(desk.vault.root / manifest.id, newest)
    file = newest / "manifest.json"
    other = file.read_text().replace(manifest.id, f"{desk.name}/{newest.name}").replace(manifest.artifact.md5, "0" * 32)
    file.write_text(other)
    desk.say_the_last_was_huge()
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED, ended.error
    assert ended.outcome.id == manifest.id
    assert desk.counts == (1, 1, 1)


async def test_a_clean_up_that_fails_undoes_no_success_and_stops_no_later_night(desk: Desk) -> None:
    def block(stage: str) -> None:
        if stage == "confirm-delete" and desk.journal.path.is_file():
            desk.journal.path.unlink()
            (desk.journal.path / "in the way").mkdir(parents=True)

    first = await desk.night(flow_run="run-1", after=block)
    assert first.outcome.ending is Ending.STORED
    assert "the journal could not be removed, and the next run tries again" in first.notes
    second = await desk.night(flow_run="run-2")
    assert second.outcome.ending is Ending.STORED
    assert len(desk.stored) == 2


async def test_a_folder_that_is_not_ours_stops_no_night_and_is_named(desk: Desk) -> None:
    theirs = desk.vault.work(desk.name) / "@eaDir"
    theirs.mkdir(parents=True)
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert ended.outcome.notes == (f"left alone, as a0backup did not make it or cannot remove it: {theirs}",)
    assert theirs.is_dir()


async def test_no_name_of_a_file_adds_a_line_to_the_log_or_controls_the_terminal(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    folder = desk.vault.work(desk.name) / "@ea\x1b[31m\nWARNING  all\x9b2J\tis well\N{RIGHT-TO-LEFT OVERRIDE}"
    folder.mkdir(parents=True)
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    [note] = ended.outcome.notes
    assert note.endswith("/@ea WARNING all is well")
    assert any(note in record.getMessage() for record in caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)


async def test_partial_bytes_of_dead_runs_are_removed_before_the_next_retrieval(desk: Desk) -> None:
    partial = desk.vault.work(desk.name) / "run-0-01234567" / "backup-retrieve.tar.gz.enc"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"part of it")
    await desk.killed_after("start")
    partial.parent.mkdir(parents=True)  # the start removed it
    partial.write_bytes(b"part of it")
    seen: list[bool] = []
    ended = await desk.night(after=lambda stage: seen.append(partial.exists()) if stage == "retrieve" else None)
    assert ended.outcome.ending is Ending.STORED
    assert seen == [False]


async def test_bytes_of_another_backup_without_a_manifest_are_reported_and_left_alone(desk: Desk) -> None:
    folder = desk.vault.folder(desk.name) / "20200101T000000Z-backup"
    folder.mkdir(parents=True)
    (folder / "backup.tar.gz.enc").write_bytes(b"of an unknown backup")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert "20200101T000000Z-backup in the vault holds an artifact without a manifest" in ended.notes
    assert (folder / "backup.tar.gz.enc").read_bytes() == b"of an unknown backup"


async def test_a_backup_started_before_our_refused_start_is_not_ours(desk: Desk) -> None:
    desk.tell("backup", "duration", seconds=0.5, times=1)
    ended = await desk.night(after=lambda stage: desk.by_hand("backup", "their own") if stage == "status" else None)
    assert ended.outcome.ending is Ending.STORED
    assert sorted(manifest.encryption.password.mode for manifest in desk.stored) == ["shared", "unknown"]
    desk.is_settled()


async def test_with_existing_fail_a_backup_started_before_our_refused_start_is_left_alone(desk: Desk) -> None:
    desk.tell("backup", "duration", seconds=5, times=1)
    ended = await desk.night(
        existing="fail", after=lambda stage: desk.by_hand("backup", "their own") if stage == "status" else None
    )
    assert isinstance(ended.error, ForeignBackupError)
    assert desk.counted("backup-delete") == 0


async def test_a_stale_status_after_a_refused_start_loses_no_foreign_backup(desk: Desk) -> None:
    """The foreign backup is started by hand before ours, and the node still shows the previous one."""
    desk.put()

    def begin_by_hand(stage: str) -> None:
        if stage == "confirm-delete" and not desk.counted("backup"):
            desk.tell("backup-status", "stale_status", seconds=1.0)
            desk.by_hand("backup", "their own")
            while desk.holds is None:
                time.sleep(0.02)

    ended = await desk.night(after=begin_by_hand)
    assert ended.outcome.ending is Ending.STORED
    complete = {event["md5"] for event in desk.simulated.events(desk.name) if event["event"] == "complete"}
    assert complete == {manifest.artifact.md5 for manifest in desk.stored}


@pytest.mark.parametrize("existing", ["fail", "replace", "preserve"])
async def test_a_start_that_timed_out_but_took_effect_is_ours_whatever_else_the_reply_says(
    desk: Desk, existing: Existing
) -> None:
    desk.tell("backup", "say", stderr="Error: connect ETIMEDOUT; the backup may already be running\n", exit=1, times=1)
    ended = await desk.night(existing=existing)
    assert ended.outcome.ending is Ending.STORED
    assert [manifest.encryption.password.mode for manifest in desk.stored] == ["shared"]
    assert desk.counts == (1, 1, 1)


async def test_a_backup_that_appears_after_a_refused_start_is_not_ours(desk: Desk) -> None:
    desk.tell("backup", "refuse", times=1)
    assert isinstance((await desk.night(flow_run="run-1")).error, RefusedError)
    theirs = desk.put()
    await desk.night()
    assert [m.started_at for m in desk.stored if m.artifact.md5 == theirs["md5"]] == [None]


@pytest.mark.parametrize("torn", [False, True])
async def test_an_unfinished_backup_is_kept_even_if_another_run_stored_one_meanwhile(desk: Desk, torn: bool) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    await desk.night(flow_run="run-0")
    await desk.killed_after("await")
    ours = desk.holds
    assert ours is not None
    if torn:
        desk.journal.path.write_bytes(b"torn")
    desk.tell("backup-retrieve", "drop")
    failed = await desk.night(flow_run="run-2", began=began)
    assert failed.outcome.ending is Ending.FAILED
    desk.forget()
    assert (await desk.night(flow_run="run-3", existing="replace")).outcome.ending is Ending.STORED
    [kept] = [manifest for manifest in desk.stored if manifest.artifact.md5 == ours["md5"]]
    assert (kept.started_at is None) is torn
    desk.is_settled()


async def test_the_journal_of_another_node_is_rejected(desk: Desk) -> None:
    theirs = desk.put()
    desk.vault.folder(desk.name).mkdir(parents=True)
    began = datetime(2026, 11, 23, 2, tzinfo=UTC)
    other = Journal(
        node="a0-other", kind="backup", host="a0-other", port=1, flow_run="x", started_at=began, sealed=False
    )
    desk.journal.write(other)
    ended = await desk.night(existing="replace")
    assert "the journal cannot be read" in ended.notes
    assert [m.started_at for m in desk.stored if m.artifact.md5 == theirs["md5"]] == [None]


# -- md5 mismatches and failed retrievals ------------------------------------------------------------------------------


async def test_a_mismatch_in_every_attempt_leaves_the_backup_on_the_node_and_quarantines_the_bytes(desk: Desk) -> None:
    desk.tell("backup-retrieve", "flip")
    ended = await desk.night()
    assert isinstance(ended.error, Md5MismatchError)
    assert (ended.error.attempts, ended.outcome.ending, ended.outcome.id) == (3, Ending.FAILED, "")
    assert desk.counts == (1, 3, 0)
    assert desk.stored == []
    assert desk.holds is not None
    assert ended.error.expected == desk.holds["md5"]
    [quarantined] = (desk.vault.folder(desk.name) / "quarantine").iterdir()
    reason = json.loads((quarantined / "reason.json").read_text())
    assert (reason["md5_of_node"], reason["md5_of_bytes"]) == (ended.error.expected, ended.error.actual)
    assert (quarantined / "backup.tar.gz.enc").stat().st_size == desk.holds["size"]


async def test_mismatched_bytes_are_not_quarantined_if_the_next_artifact_needs_their_space(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    desk.tell("backup-retrieve", "flip")
    ended = await desk.night(after=lambda stage: desk.say_the_last_was_huge() if stage == "retrieve" else None)
    assert isinstance(ended.error, VaultFullError)  # before another attempt
    desk.configure(retrieve_attempts=1)
    desk.say_the_last_was(20_000)
    ended = await desk.night(after=lambda stage: desk.say_the_last_was_huge() if stage == "retrieve" else None)
    assert isinstance(ended.error, Md5MismatchError)
    assert "the vault's disk is nearly full" in ended.notes
    assert not (desk.vault.folder(desk.name) / "quarantine").exists()


async def test_after_a_mismatch_the_next_night_finishes_that_backup(desk: Desk) -> None:
    desk.tell("backup-retrieve", "flip", times=3)
    await desk.night(flow_run="run-1")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert desk.counts == (1, 4, 1)
    assert "finished the backup that run run-1 started" in ended.notes
    desk.is_settled()


async def test_a_single_mismatch_is_retried_and_the_backup_is_stored(desk: Desk) -> None:
    desk.tell("backup-retrieve", "flip", times=1)
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert desk.counts == (1, 2, 1)
    assert not (desk.vault.folder(desk.name) / "quarantine").exists()
    desk.is_settled()


@pytest.mark.parametrize(("fault", "error"), [("drop", RetrieveFailedError), ("truncate", Md5MismatchError)])
async def test_a_transfer_that_ends_early_is_never_taken_for_complete(
    desk: Desk, fault: str, error: type[A0BackupError]
) -> None:
    desk.tell("backup-retrieve", fault)
    ended = await desk.night()
    assert isinstance(ended.error, error)
    assert desk.stored == []
    assert desk.holds is not None


async def test_a_retrieve_without_bytes_reports_once_what_a0cli_said(desk: Desk) -> None:
    desk.tell("backup-retrieve", "refuse", message="the disk is on holiday\n", exit=1)
    ended = await desk.night()
    assert isinstance(ended.error, RetrieveFailedError)
    assert str(ended.error).count("could not be retrieved") == 1
    assert "the disk is on holiday" in str(ended.error)


async def test_each_backup_has_its_own_retrieve_attempts(desk: Desk) -> None:
    desk.put()
    desk.tell("backup-retrieve", "flip", times=2)
    ended = await desk.night(after=lambda s: desk.tell("backup-retrieve", "flip", times=2) if s == "start" else None)
    assert ended.outcome.ending is Ending.STORED
    assert desk.counts == (1, 6, 2)


async def test_a_backup_whose_md5_appears_right_before_its_deletion_is_decided_on_again(desk: Desk) -> None:
    theirs = desk.put()
    desk.tell("backup-status", "no_md5", times=1)
    ended = await desk.night(existing="replace")
    assert ended.outcome.ending is Ending.STORED, ended.error
    assert ended.outcome.md5 != theirs["md5"]
    assert desk.counts == (1, 1, 2)


@pytest.mark.parametrize("fault", ["no_md5", "bad_md5"])
async def test_our_backup_without_a_well_formed_md5_fails_at_once_and_is_not_retrieved(desk: Desk, fault: str) -> None:
    desk.tell("backup-status", fault)
    ended = await desk.night()
    assert isinstance(ended.error, Md5MissingError)
    assert desk.counts == (1, 0, 0)
    resumed = await desk.night(flow_run="run-3")
    assert isinstance(resumed.error, Md5MissingError)
    assert desk.counts == (1, 0, 0)


async def test_a_foreign_backup_without_a_well_formed_md5_fails_and_is_not_retrieved(desk: Desk) -> None:
    theirs = desk.put()
    desk.tell("backup-status", "no_md5")
    ended = await desk.night()
    assert isinstance(ended.error, Md5MissingError)
    assert desk.counts == (0, 0, 0)
    assert desk.holds == theirs


async def test_our_own_backup_that_lost_its_md5_is_not_replaced_as_a_foreign_one(desk: Desk) -> None:
    desk.configure(existing="replace")
    await desk.killed_after("await")
    ours = desk.holds
    desk.tell("backup-status", "no_md5")
    ended = await desk.night()
    assert isinstance(ended.error, Md5MissingError)
    assert desk.holds == ours is not None
    assert desk.counts == (1, 0, 0)


async def test_a_backup_of_ours_that_cannot_be_verified_is_given_up_once_if_the_operator_said_so(desk: Desk) -> None:
    desk.tell("backup-retrieve", "flip", times=3)
    ended = await desk.night(existing="replace")
    assert ended.outcome.ending is Ending.STORED
    assert "given up and replaced by a new one" in ended.notes
    assert "an earlier run" not in ended.notes
    assert desk.counts == (2, 4, 2)
    assert len(desk.stored) == 1
    desk.is_settled()


# -- resuming after SIGKILL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["start", "await", "retrieve", "verify", "store", "delete", "confirm-delete"])
async def test_after_a_kill_the_next_run_finishes_without_doing_anything_twice(desk: Desk, stage: str) -> None:
    await desk.killed_after(stage)
    ended = await desk.night()
    assert ended.error is None
    assert ended.outcome.ending is Ending.STORED
    [manifest] = desk.stored
    assert (ended.outcome.id, manifest.started_at is not None) == (manifest.id, True)
    assert desk.counts == (1, 1, 1)
    assert "finished the backup that run run-1 started" in ended.notes
    desk.is_settled()


async def test_a_resuming_run_also_pins_the_backup_that_it_finds_first(desk: Desk) -> None:
    """A different backup that is found later is then known to be foreign."""
    await desk.killed_after("start")
    desk.tell("backup-retrieve", "flip")
    while desk.holds is None:
        await asyncio.sleep(0.01)
    ours = desk.holds
    await desk.night()
    journal = desk.journal.read()
    assert journal is not None
    assert journal.pinned is not None
    assert journal.pinned.md5 == ours["md5"]


async def test_a_stored_artifact_that_was_damaged_meanwhile_is_retrieved_again_before_the_deletion(desk: Desk) -> None:
    await desk.killed_after("store")
    [manifest] = desk.stored
    desk.vault.artifact(manifest).write_bytes(b"damaged")
    ended = await desk.night()
    assert ended.outcome.id == manifest.id
    assert "it is retrieved again" in ended.notes
    assert desk.counts == (1, 2, 1)
    desk.is_settled()


async def test_a_damaged_artifact_whose_backup_cannot_be_verified_is_given_up_once(desk: Desk) -> None:
    await desk.killed_after("store")
    [manifest] = desk.stored
    desk.vault.artifact(manifest).write_bytes(b"damaged")
    desk.tell("backup-retrieve", "flip", times=3)
    ended = await desk.night(existing="replace")
    assert ended.outcome.ending is Ending.STORED
    assert ended.outcome.id != manifest.id
    assert desk.counts == (2, 5, 2)


# -- an operator who works by hand -------------------------------------------------------------------------------------


async def test_verified_bytes_are_stored_even_if_the_node_lost_the_backup(desk: Desk) -> None:
    await desk.killed_after("verify")
    desk.remove()
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert [manifest.id for manifest in desk.stored] == [ended.outcome.id]
    assert desk.counts == (1, 1, 0)
    desk.is_settled()


@pytest.mark.parametrize("existing", ["preserve", "replace", "fail"])
async def test_verified_bytes_are_stored_even_if_another_backup_took_the_place_of_ours(
    desk: Desk, existing: Existing
) -> None:
    await desk.killed_after("verify")
    desk.remove()
    theirs = desk.put()
    ended = await desk.night(existing=existing)
    assert ended.outcome.ending is Ending.STORED
    assert [manifest.id for manifest in desk.stored] == [ended.outcome.id]
    assert desk.holds == theirs
    assert desk.counts == (1, 1, 0)


async def test_a_backup_of_ours_that_was_lost_is_reported_and_made_again(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "2s"})
    await desk.killed_after("await")
    desk.remove()
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert "an earlier run" in ended.notes
    assert desk.counts == (2, 1, 1)


async def test_a_backup_that_took_the_place_of_ours_is_foreign(desk: Desk) -> None:
    await desk.killed_after("await")
    desk.remove()
    theirs = desk.put()
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert [m.started_at for m in desk.stored if m.artifact.md5 == theirs["md5"]] == [None]
    assert desk.counts == (2, 2, 2)
    desk.is_settled()


@pytest.mark.parametrize("existing", ["preserve", "replace", "fail"])
async def test_a_backup_that_took_the_place_of_the_stored_one_is_not_deleted(desk: Desk, existing: Existing) -> None:
    theirs: list[dict[str, Any]] = []

    def swap(stage: str) -> None:
        if stage == "store":
            desk.remove()
            theirs.append(desk.put())

    ended = await desk.night(existing=existing, after=swap)
    assert ended.outcome.ending is Ending.STORED
    assert desk.holds == theirs[0]
    assert desk.counts == (1, 1, 0)
    assert desk.journal.read() is None


# -- the journal -------------------------------------------------------------------------------------------------------


async def test_a_torn_journal_is_set_aside_and_the_backup_preserved(desk: Desk) -> None:
    desk.configure(existing="replace")
    await desk.killed_after("await")
    ours = desk.holds
    assert ours is not None
    desk.journal.path.write_bytes(desk.journal.path.read_bytes()[:100])
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert "the journal cannot be read" in ended.notes
    assert ours["md5"] in [manifest.artifact.md5 for manifest in desk.stored]
    [aside] = desk.vault.folder(desk.name).glob("*.unreadable-*")
    assert aside.stat().st_size == 100
    desk.is_settled()


async def test_a_torn_journal_forces_preserve_until_the_backup_is_stored(desk: Desk) -> None:
    """If the run that found the torn journal cannot retrieve the backup, the next run must preserve it too."""
    desk.configure(existing="replace")
    await desk.killed_after("await")
    ours = desk.holds
    assert ours is not None
    desk.journal.path.write_bytes(b"torn")
    desk.tell("backup-retrieve", "flip", times=3)
    failed = await desk.night(flow_run="run-2", existing="replace")
    assert isinstance(failed.error, Md5MismatchError)
    assert desk.holds == ours
    ended = await desk.night(flow_run="run-3")
    assert ended.outcome.ending is Ending.STORED
    assert ours["md5"] in [manifest.artifact.md5 for manifest in desk.stored]
    desk.is_settled()


async def test_a_torn_journal_does_not_prevent_the_backup_of_a_free_node(desk: Desk) -> None:
    desk.vault.folder(desk.name).mkdir(parents=True)
    desk.journal.path.write_bytes(b"torn")
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert (await desk.night(flow_run="run-3")).notes == ""
    desk.is_settled()


# -- starts ------------------------------------------------------------------------------------------------------------


async def test_a_start_whose_reply_was_lost_is_judged_by_its_effect(desk: Desk) -> None:
    desk.tell("backup", "lost_reply", times=1)
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert desk.counts == (1, 1, 1)


async def test_a_start_that_takes_effect_late_is_waited_for(desk: Desk) -> None:
    desk.tell("backup", "late", seconds=1, reply="lost", times=1)
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert desk.counts == (1, 1, 1)


async def test_a_start_that_hangs_and_takes_effect_after_its_timeout_is_waited_for(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": SHORT})
    desk.tell("backup", "late", seconds=patience(2), reply="hang", times=1)
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert desk.counts == (1, 1, 1)


async def test_a_lost_start_fails_and_the_next_run_queries_the_status_again_before_its_own_start(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": SHORT})
    desk.tell("backup", "late", seconds=3600, reply="lost", times=1)
    failed = await desk.night(flow_run="run-1")
    assert isinstance(failed.error, StartFailedError)
    assert desk.journal.read() is not None
    before = desk.counted("backup-status")
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert desk.counts == (2, 1, 1)
    commands = [call["command"] for call in desk.simulated.calls(desk.name)]
    last_start = len(commands) - 1 - commands[::-1].index("backup")
    assert commands[:last_start].count("backup-status") - before == 2
    assert "an earlier run" in ended.notes
    desk.is_settled()


async def test_a_refused_start_fails_at_once(desk: Desk) -> None:
    desk.tell("backup", "refuse", message="error: this node is not a backup node\n")
    ended = await desk.night()
    assert isinstance(ended.error, RefusedError)
    assert "not a backup node" in str(ended.error)
    assert desk.counted("backup-status") == 2


async def test_a_stale_status_right_after_a_start_is_not_taken_for_the_new_backup(desk: Desk) -> None:
    theirs = desk.put()
    desk.tell("backup-status", "stale_status", seconds=1)
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert ended.outcome.md5 != theirs["md5"]
    assert desk.counts == (1, 2, 2)


async def test_a_backup_that_never_finishes_fails_at_the_deadline_and_the_next_run_succeeds(desk: Desk) -> None:
    desk.configure(polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "1s"})
    desk.tell("backup-status", "in_progress")
    failed = await desk.night(flow_run="run-1")
    # The first status was already 'in progress', so the backup is not ours.
    assert isinstance(failed.error, AwaitDeadlineError)
    desk.forget()
    assert (await desk.night()).outcome.ending is Ending.STORED


# -- deletions ---------------------------------------------------------------------------------------------------------


async def test_a_deletion_that_was_acknowledged_but_not_done_fails_and_the_next_run_deletes_first(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": SHORT})  # a deletion may take this long, and the next start waits twice that
    desk.tell("backup-delete", "false_delete", times=1)
    failed = await desk.night(flow_run="run-1")
    assert isinstance(failed.error, DeleteNotConfirmedError)
    assert failed.outcome.ending is Ending.NOT_DELETED
    [first] = desk.stored
    assert failed.outcome.id == first.id
    ended = await desk.night()
    assert ended.outcome.ending is Ending.STORED
    assert ended.outcome.id != first.id
    assert desk.counts == (2, 2, 3)
    desk.is_settled()


async def test_a_deletion_whose_reply_was_lost_is_judged_by_its_effect(desk: Desk) -> None:
    desk.tell("backup-delete", "lost_reply", times=1)
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert desk.counts == (1, 1, 1)


async def test_no_backup_is_deleted_if_the_status_before_the_deletion_fails(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": SHORT})  # the next start waits twice as long for a deletion to arrive
    ended = await desk.night(after=lambda s: desk.tell("backup-status", "bad_json") if s == "store" else None)
    assert isinstance(ended.error, UnknownReplyError)
    assert ended.error.transient, "asking again may help, and begins with a status again"
    assert ended.outcome.ending is Ending.NOT_DELETED
    assert desk.counts == (1, 1, 0)
    desk.forget()
    # The next night first deletes the stored backup on the node, then makes its own.
    assert (await desk.night(flow_run="run-3")).outcome.ending is Ending.STORED
    assert desk.counts == (2, 2, 2)


async def test_a_deletion_that_takes_effect_late_is_waited_for(desk: Desk) -> None:
    """Otherwise it would delete the next backup."""
    desk.configure(a0cli={"call_timeout": SHORT})
    desk.tell("backup-delete", "late", seconds=patience(0.7), reply="lost", times=1)
    assert (await desk.night(flow_run="run-1")).outcome.ending is Ending.STORED
    assert desk.holds is None
    assert desk.counts == (1, 1, 1)


@pytest.mark.parametrize("ours", [True, False])
async def test_a_late_deletion_of_a_killed_run_does_not_hit_the_next_backup(desk: Desk, ours: bool) -> None:
    desk.configure(a0cli={"call_timeout": "3s"})
    if not ours:
        desk.put()
    desk.tell("backup-delete", "late", seconds=2.5, reply="lost", times=1)
    await desk.killed_after("delete")
    [sent] = desk.simulated.calls(desk.name, "backup-delete")
    if ours:
        assert (await desk.night(flow_run="run-2")).outcome.ending is Ending.STORED
    desk.tell("backup-retrieve", "drop")
    await desk.night(flow_run="run-3")
    while time.time() < sent["time"] + 3:
        await asyncio.sleep(0.1)
    held = desk.holds
    assert held is not None
    desk.forget()
    assert (await desk.night(flow_run="run-4")).outcome.ending is Ending.STORED
    assert held["md5"] in [manifest.artifact.md5 for manifest in desk.stored]
    desk.is_settled()


# -- several runs ------------------------------------------------------------------------------------------------------


async def test_a_backup_that_another_run_made_since_this_run_began_is_the_outcome_of_this_run(desk: Desk) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    first = await desk.night(flow_run="run-1")
    second = await desk.night(flow_run="run-2", began=began)
    assert second.outcome.id == first.outcome.id
    assert second.outcome.ending is Ending.STORED
    assert "run run-1 stored" in second.notes
    assert desk.counts == (1, 1, 1)


def beginning(desk: Desk, flow_run: str = "run-2", *, due: datetime | None = None) -> Run:
    """Return a run that begins now, and was *due* earlier."""
    return Run.begin(desk.fleet, desk.fleet.nodes, id=flow_run, due=due)


async def test_a_backup_that_was_stored_after_a_run_was_due_and_before_it_began_is_its_outcome(desk: Desk) -> None:
    due = datetime.now(UTC).replace(microsecond=0)
    first = await desk.night(flow_run="run-1")
    late = await continued(desk, beginning(desk, due=due))
    assert late.outcome.id == first.outcome.id
    assert "run run-1 stored" in late.notes
    assert "after this run was due" in late.notes
    assert desk.counts == (1, 1, 1)


async def test_a_run_that_was_due_after_the_last_backup_makes_another(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [stored] = desk.stored
    late = await continued(desk, beginning(desk, due=stored.stored_at + timedelta(microseconds=1)))
    assert late.outcome.ok
    assert desk.counts == (2, 2, 2)


async def test_a_foreign_backup_that_was_stored_after_a_run_was_due_is_not_its_outcome(desk: Desk) -> None:
    due = datetime.now(UTC).replace(microsecond=0)
    desk.put()
    desk.tell("backup", "refuse")
    await desk.night(flow_run="run-1")
    desk.forget()
    late = await continued(desk, beginning(desk, due=due))
    assert late.outcome.ok
    assert desk.counted("backup") == 2


async def test_what_a_wrong_clock_says_was_stored_after_a_late_run_began_is_not_its_outcome(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [stored] = desk.stored
    run = replace(beginning(desk, due=stored.stored_at), began=stored.stored_at - timedelta(seconds=1))
    assert (await continued(desk, run)).outcome.id != stored.id


async def continued(desk: Desk, run: Run) -> Night:
    return await night(desk.fleet, run=run)


async def test_a_run_stops_if_another_vault_is_mounted_after_it_began(desk: Desk) -> None:
    await desk.night(flow_run="last-year")
    desk.fleet.vault.rename(desk.room / "disk")
    (desk.room / ".fleet.yaml.vault").unlink()  # as on a machine that has not used this vault yet
    run = beginning(desk)
    desk.fleet.vault.rename(desk.room / "below")
    (desk.room / "disk").rename(desk.fleet.vault)
    assert isinstance((await continued(desk, run)).error, UnknownVaultError)
    assert desk.counted("backup") == 1


@pytest.mark.parametrize("stage", ["retrieve", "store"])
async def test_nothing_is_deleted_on_the_node_once_the_vault_is_gone(desk: Desk, stage: str) -> None:
    def vanish(reached: str) -> None:
        if reached == stage:
            desk.fleet.vault.rename(desk.room / "disk")
            (desk.fleet.vault / desk.name / "work").mkdir(parents=True)  # the bare mount point

    ended = await desk.night(after=vanish)
    assert not ended.outcome.ok
    assert desk.counted("backup-delete") == 0


async def test_the_artifact_of_another_run_is_found_despite_a_later_foreign_one(desk: Desk) -> None:
    run = beginning(desk)
    await desk.night(flow_run="run-1")
    [own] = desk.stored
    desk.put()
    desk.tell("backup", "refuse")
    assert isinstance((await desk.night(flow_run="run-2")).error, RefusedError)
    assert len(desk.stored) == 2
    assert desk.vault.stored_since(desk.name, "backup", run.stored_before[desk.name]) == own


async def test_a_backup_of_another_run_that_is_shown_without_its_md5_does_not_count_as_deleted(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "1s"})
    desk.tell("backup-delete", "refuse")
    run = beginning(desk)
    assert (await desk.night(flow_run="run-1")).outcome.ending is Ending.NOT_DELETED
    desk.forget()
    desk.tell("backup-status", "no_md5")
    assert not (await continued(desk, run)).outcome.ok


async def test_a_run_without_a_status_does_not_claim_that_another_runs_backup_is_on_the_node(desk: Desk) -> None:
    run = beginning(desk)
    await desk.night(flow_run="run-1")
    desk.tell("backup-status", "refuse")
    assert (await continued(desk, run)).outcome.ending is Ending.FAILED


async def test_a_report_says_nothing_twice(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [manifest] = desk.stored
    old = desk.vault.folder(desk.name) / "20200101T000000Z-backup"
    (desk.vault.root / manifest.id).rename(old)
    (old / "manifest.json").unlink()
    ended = await desk.night()
    assert len(ended.outcome.notes) == len(set(ended.outcome.notes)) == 1


async def test_an_artifact_from_the_future_is_not_taken_for_one_stored_meanwhile(desk: Desk) -> None:
    """A clock that was wrong for one night must not make every later night end before it begins."""
    first = await desk.night(flow_run="run-1")
    file = desk.vault.root / first.outcome.id / "manifest.json"
    file.write_text(re.sub(r'"stored_at": "[^"]*"', '"stored_at": "2199-01-01T00:00:00Z"', file.read_text()))
    second = await desk.night(flow_run="run-2")
    assert second.outcome.id != first.outcome.id
    assert desk.counts == (2, 2, 2)


async def test_an_artifact_stored_after_this_run_began_is_its_outcome_whenever_it_was_started(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    [manifest] = desk.stored
    assert manifest.started_at is not None
    late = manifest.model_copy(update={"stored_at": manifest.started_at + timedelta(hours=2)})
    (desk.vault.root / manifest.id / "manifest.json").write_text(json.dumps(late.to_json()))
    await desk.night(flow_run="run-2", began=manifest.started_at + timedelta(seconds=1))
    assert desk.counts == (1, 1, 1)
    await desk.night(flow_run="run-3", began=manifest.started_at + timedelta(hours=3))
    assert desk.counts == (2, 2, 2)


async def test_an_unfinished_backup_is_finished_even_if_another_run_stored_one_meanwhile(desk: Desk) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    await desk.night(flow_run="run-0")
    await desk.killed_after("verify")
    ended = await desk.night(flow_run="run-2", began=began)
    assert ended.outcome.ending is Ending.STORED
    assert len(desk.stored) == 2
    assert desk.counts == (2, 2, 2)
    desk.is_settled()


async def test_a_hostile_name_of_allowed_length_is_stored_as_it_is(desk: Desk) -> None:
    name = "../" + "\N{SNOWMAN}" * 997
    reply = json.dumps({"message": "Backup found", "arguments": {"name": name, "md5": "{md5}"}}, ensure_ascii=False)
    desk.tell("backup-status", "say", stdout=reply, when="found")
    journals: list[Journal | None] = []
    ended = await desk.night(after=lambda stage: journals.append(desk.journal.read()))
    assert ended.outcome.ending is Ending.STORED
    [manifest] = desk.stored
    assert manifest.name_on_node == name
    desk.is_settled()


# -- losses found in a review ------------------------------------------------------------------------------------------


async def test_our_backup_with_a_wrong_md5_at_first_is_never_replaced_without_being_stored(desk: Desk) -> None:
    desk.configure(existing="replace")
    desk.tell("backup-status", "wrong_md5")
    assert isinstance((await desk.night(flow_run="run-1")).error, Md5MismatchError)
    held = desk.holds
    assert held is not None
    desk.forget()
    assert (await desk.night(flow_run="run-2")).outcome.ending is Ending.STORED
    assert held["md5"] in [manifest.artifact.md5 for manifest in desk.stored]


async def test_the_backup_stored_last_night_is_not_taken_for_the_backup_of_tonight(desk: Desk) -> None:
    await desk.night(flow_run="run-1")
    stale = functools.partial(desk.tell, "backup-status", "stale_status", seconds=2)
    ended = await desk.night(flow_run="run-2", after=lambda stage: stale() if stage == "start" else None)
    assert ended.outcome.ending is Ending.STORED
    first, second = desk.stored
    assert first.artifact.md5 != second.artifact.md5
    assert desk.counts == (2, 2, 2)


async def test_nothing_comes_between_the_last_status_and_the_deletion(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, call = JournalFile.write, A0cli._run

    def written(self: JournalFile, journal: Journal) -> None:
        done.append("journal")
        write(self, journal)

    async def called(self: A0cli, command: str, *arguments: Any, **options: Any) -> Printed:
        done.append(command)
        return await call(self, command, *arguments, **options)

    monkeypatch.setattr(JournalFile, "write", written)
    monkeypatch.setattr(A0cli, "_run", called)
    await desk.night()
    at = done.index("backup-delete")
    assert done[at - 2 : at] == ["journal", "backup-status"]


async def test_a_dropped_connection_does_not_give_up_a_backup(desk: Desk) -> None:
    desk.tell("backup-retrieve", "drop", fraction=0.5)
    ended = await desk.night(existing="replace")
    assert isinstance(ended.error, Md5MismatchError | RetrieveFailedError)
    assert desk.holds is not None
    assert desk.counts[0] == 1


async def test_a_password_that_the_node_echoes_is_masked(desk: Desk) -> None:
    desk.tell("backup-status", "say", stdout=f"cannot run tar -k {PASSWORD}", exit=1, when="found")
    desk.configure(polling={"interval": "0.05s", "max_interval": "0.05s", "deadline": "1s"})
    ended = await desk.night()
    assert "tar -k ***" in str(ended.error)
    assert PASSWORD not in repr(ended)


async def test_our_backup_is_made_after_an_awaited_foreign_backup_was_cancelled(desk: Desk) -> None:
    desk.tell("backup-status", "in_progress", times=2)
    assert (await desk.night()).outcome.ending is Ending.STORED
    assert desk.counts == (1, 1, 1)
