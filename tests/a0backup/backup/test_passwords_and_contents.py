"""Passwords and contents in one run on one node: a backup has value only if it can be opened."""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from a0backup.artifact.encryption import decryptor
from a0backup.errors import (
    ContentsError,
    DumpDamagedError,
    ForeignBackupError,
    GzipDamagedError,
    RecoveryKeyError,
    StartFailedError,
    TarTruncatedError,
    TooLargeUnpackedError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import digests
from a0backup.passwords.recovery_keys import load_private
from a0backup.passwords.sealed import candidates
from a0backup.report.outcomes import Ending
from a0backup.vault import known_vault
from a0backup.vault.manifest import Manifest, SealedPassword, UnreadableManifest
from a0backup.vault.sealed_files import SealedFiles
from tests.support.desk import Desk
from tests.support.nights import PASSWORD
from tests.support.paths import REPOSITORY
from tests.support.sealed import Sealed


def said_of_password(manifest: Manifest) -> tuple[str, bool]:
    password = manifest.encryption.password
    return password.mode, password.confirmed


# -- sealed passwords --------------------------------------------------------------------------------------------------


async def test_a_sealed_backup_can_be_opened_only_with_its_recovery_key(sealed: Sealed) -> None:
    ended = await sealed.desk.night()
    assert ended.error is None
    assert ended.notes == ""
    [manifest] = sealed.desk.stored
    assert said_of_password(manifest) == ("sealed", True)
    [password] = sealed.passwords(manifest)
    assert sealed.opens(manifest, password)
    assert not sealed.opens(manifest, PASSWORD)
    assert len(password) >= 43
    assert password.isascii()
    assert password.isalnum()
    assert sealed.files == []
    sealed.desk.is_settled()


async def test_each_night_has_its_own_password(sealed: Sealed) -> None:
    await sealed.desk.night(flow_run="run-1")
    await sealed.desk.night(flow_run="run-2")
    one, other = (sealed.passwords(manifest) for manifest in sealed.desk.stored)
    assert one != other


async def test_each_of_two_recovery_keys_opens_a_backup_sealed_to_both(desk: Desk) -> None:
    sealed = Sealed(desk, 2)
    await desk.night()
    [manifest] = desk.stored
    assert len(manifest.encryption.password.sealed) == 2
    assert sealed.passwords(manifest, key=0) == sealed.passwords(manifest, key=1)
    assert sealed.opens(manifest, sealed.passwords(manifest, key=1)[0])


async def test_the_sealed_password_is_on_disk_before_the_start_is_sent(sealed: Sealed) -> None:
    desk = sealed.desk
    desk.tell("backup", "kill_parent", when="before")
    await desk.killed_after("never that far")
    assert desk.holds is None
    [file] = sealed.files
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(file.read_text())["sealed"]


@pytest.mark.parametrize("stage", ["start", "await", "retrieve", "verify", "inspect", "store", "delete"])
async def test_the_manifest_has_the_password_wherever_the_run_was_killed(sealed: Sealed, stage: str) -> None:
    await sealed.desk.killed_after(stage)
    ended = await sealed.desk.night()
    assert ended.error is None
    manifest, *new = sealed.desk.stored
    # The run that knew the password is gone: the password is confirmed only if that run reached the store step. Unless
    # that run opened the backup, nothing proves that it is ours, and a new one is made.
    opened, stored = stage in ("inspect", "store", "delete"), stage in ("store", "delete")
    assert said_of_password(manifest) == ("sealed" if opened else "unknown", stored)
    assert [said_of_password(each) for each in new] == [("sealed", True)] * (not opened)
    assert any(sealed.opens(manifest, password) for password in sealed.passwords(manifest))
    # What no manifest proves is kept.
    assert len(sealed.files) == (not stored)
    sealed.desk.is_settled()


async def test_after_a_lost_start_every_password_that_may_have_made_the_backup_is_kept(sealed: Sealed) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    # The first start never arrives. The second does, and its run is killed too.
    desk.tell("backup", "refuse", message="", exit=0, times=1)
    await desk.killed_after("start")
    await desk.killed_after("start")
    assert len(sealed.files) == 2
    ended = await desk.night(flow_run="run-3")
    assert ended.error is None
    manifest = desk.stored[0]
    assert said_of_password(manifest) == ("unknown", False)
    passwords = sealed.passwords(manifest)
    assert len(passwords) == 2
    assert [sealed.opens(manifest, password) for password in passwords].count(True) == 1


async def test_a_torn_journal_does_not_lose_the_password(sealed: Sealed) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    desk.journal.path.write_text("{torn")
    await desk.night()
    theirs, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert said_of_password(theirs) == ("unknown", False)
    assert any(sealed.opens(theirs, password) for password in sealed.passwords(theirs))
    assert said_of_password(ours) == ("sealed", True)
    assert len(sealed.passwords(ours)) == 1


async def test_an_unreadable_sealed_password_is_reported_and_never_removed(sealed: Sealed) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    [file] = sealed.files
    file.write_text("{torn")
    ended = await desk.night()
    assert ended.error is None
    assert file.name in ended.notes
    assert file.read_text() == "{torn"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text("nonsense"), "PEM"),
        (
            lambda path: path.write_bytes(
                rsa.generate_private_key(public_exponent=65537, key_size=2048)
                .public_key()
                .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            ),
            "2048",
        ),
    ],
)
async def test_no_backup_is_started_if_a_recovery_key_cannot_seal(
    sealed: Sealed, spoil: Callable[[Path], Any], reason: str
) -> None:
    spoil(sealed.pairs[0][0])
    ended = await sealed.desk.night()
    assert isinstance(ended.error, RecoveryKeyError)
    assert reason in ended.outcome.reason
    assert ended.outcome.step == "start"
    assert sealed.desk.counts == (0, 0, 0)
    assert sealed.files == []


async def test_the_vault_never_holds_an_unsealed_password(sealed: Sealed) -> None:
    await sealed.desk.killed_after("await")
    await sealed.desk.night()
    passwords = [password for manifest in sealed.desk.stored for password in sealed.passwords(manifest)]
    assert passwords
    for path in sealed.desk.room.rglob("*"):
        assert not path.is_file() or not any(password.encode() in path.read_bytes() for password in passwords)


# -- contents ----------------------------------------------------------------------------------------------------------


async def test_the_manifest_records_what_was_read_in_the_artifact(desk: Desk) -> None:
    await desk.night()
    [manifest] = desk.stored
    read = manifest.verified
    assert read.level == "contents"
    assert read.members == 5
    assert read.largest is not None
    assert read.largest[0].name == "dump/auth0/users.bson"
    assert read.unpacked_size is not None
    assert read.unpacked_size > read.largest[0].size > 0
    assert read.collections is not None
    users, *others = read.collections
    assert (users.name, users.size) == ("auth0.users", read.largest[0].size)
    assert users.documents > 10
    assert [(each.name, each.documents) for each in others] == [("auth0.tenants", 1), ("auth0.system.indexes", 0)]
    assert said_of_password(manifest) == ("shared", True)


async def test_a_backup_of_this_run_that_cannot_be_opened_fails_and_stays_on_the_node(desk: Desk) -> None:
    causes: list[tuple[str, type[ContentsError]]] = [
        ("noise", WrongPasswordError),
        ("uncompressed", UnexpectedFormatError),
        ("flipped", GzipDamagedError),
        ("cut", GzipDamagedError),
        ("cut_tar", TarTruncatedError),
        ("torn_document", DumpDamagedError),
    ]
    for contents, error in causes:
        desk.tell("backup", "contents", are=contents, times=1)
        ended = await desk.night()
        assert type(ended.error) is error
        assert (ended.outcome.ending, ended.outcome.step) == (Ending.FAILED, "inspect")
        assert desk.holds is not None
        assert desk.counted("backup-delete") == 0
        assert desk.stored == []
        desk.remove()
        desk.journal.remove()


async def test_the_next_run_reads_the_bytes_of_a_killed_run_to_their_end_with_the_shared_password(desk: Desk) -> None:
    await desk.killed_after("verify")
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert said_of_password(manifest) == ("shared", True)
    assert manifest.verified.level == "contents"
    assert desk.counted("backup-retrieve") == 1


async def test_the_next_run_stores_a_failed_backup_as_foreign_and_makes_a_new_one(desk: Desk) -> None:
    desk.tell("backup", "contents", are="noise", times=1)
    failed = await desk.night(flow_run="run-1")
    assert isinstance(failed.error, WrongPasswordError)
    retrieved = desk.counted("backup-retrieve")
    ended = await desk.night(flow_run="run-2")
    assert ended.error is None
    theirs, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert said_of_password(theirs) == ("unknown", False)
    assert theirs.verified.level == "md5"
    assert theirs.id in ended.notes
    assert "WrongPasswordError" in ended.notes
    assert said_of_password(ours) == ("shared", True)
    assert ended.outcome.id == ours.id
    # The verified bytes of the failed one were still here; only the new one came from the node.
    assert desk.counted("backup-retrieve") == retrieved + 1
    desk.is_settled()


async def test_a_sealed_backup_that_its_run_could_not_open_is_not_a_success_of_the_next_run(sealed: Sealed) -> None:
    desk = sealed.desk
    desk.tell("backup", "contents", are="cut", times=1)
    failed = await desk.night(flow_run="run-1")
    assert isinstance(failed.error, GzipDamagedError)
    ended = await desk.night(flow_run="run-2")
    assert ended.error is None
    spoilt, whole = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert ended.outcome.id == whole.id
    assert said_of_password(whole) == ("sealed", True)
    assert said_of_password(spoilt) == ("sealed", False)
    assert spoilt.id in ended.notes
    assert "GzipDamagedError" in ended.notes
    # Its password is kept for whatever can still be recovered from it.
    assert len(sealed.passwords(spoilt)) == 1
    assert len(sealed.files) == 1, "not proven to open it"


async def test_with_existing_fail_a_backup_that_is_not_proven_ours_stays_on_the_node(desk: Desk) -> None:
    await desk.killed_after("start")
    desk.configure(existing="fail")
    ended = await desk.night(password="rotated since")
    assert isinstance(ended.error, ForeignBackupError)
    assert desk.holds is not None
    assert desk.stored == []


@pytest.mark.parametrize("contents", ["whole", "noise"])
async def test_with_existing_fail_a_backup_that_its_run_saw_come_is_kept_and_blocks_no_night(
    desk: Desk, contents: str
) -> None:
    desk.configure(existing="fail")
    if contents == "noise":
        desk.tell("backup", "contents", are="noise", times=1)
        await desk.night(flow_run="run-1")
    else:
        await desk.killed_after("await")
    ended = await desk.night(password="rotated since")
    assert ended.error is None
    kept, new = desk.stored
    assert (kept.started_at, said_of_password(kept)) == (None, ("unknown", False))
    assert kept.id in ended.notes
    assert said_of_password(new) == ("shared", True)
    desk.is_settled()


async def test_for_one_run_the_operator_can_give_up_a_backup_that_cannot_be_opened(desk: Desk) -> None:
    desk.tell("backup", "contents", are="cut", times=1)
    ended = await desk.night(existing="replace")
    assert ended.error is None
    assert "given up" in ended.notes
    [manifest] = desk.stored
    assert said_of_password(manifest) == ("shared", True)
    [kept] = (desk.vault.folder(desk.name) / "quarantine").glob("*/backup.tar.gz.enc")
    reason = json.loads((kept.parent / "reason.json").read_text())
    assert digests(kept).md5 == reason["md5"]
    assert "compressed" in reason["reason"] or "gzip" in reason["reason"]
    desk.is_settled()


async def test_the_manifest_of_a_foreign_backup_records_that_the_shared_password_opens_it(desk: Desk) -> None:
    desk.simulated.put(desk.name, password=PASSWORD)
    await desk.night()
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("shared", True)
    assert theirs.verified.level == "contents"


async def test_a_foreign_backup_is_stored_whatever_it_contains(desk: Desk) -> None:
    desk.put()
    ended = await desk.night()
    assert ended.error is None
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("unknown", False)
    assert theirs.verified.level == "md5"


async def test_a_backup_that_somebody_else_made_after_a_lost_start_is_foreign(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "1s"})
    # The reply is lost and no backup was made. Then somebody else makes one.
    desk.tell("backup", "hang", times=1)
    working = asyncio.create_task(desk.night())
    while desk.counted("backup") < 1:  # noqa: ASYNC110 - another process counts the calls
        await asyncio.sleep(0.01)
    desk.put()
    ended = await working
    assert ended.error is None
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("unknown", False)
    assert ended.outcome.id != theirs.id
    desk.is_settled()


async def test_a_decompression_bomb_stops_the_inspection_and_fails_the_node(desk: Desk) -> None:
    desk.configure(contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000)
    ended = await desk.night()
    assert type(ended.error).__name__ == "TooLargeUnpackedError"
    assert "max_unpacked" in ended.outcome.hint
    assert desk.holds is not None


async def test_a_foreign_backup_after_a_start_without_effect_is_not_reported_as_success(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    desk.tell("backup", "refuse", message="", exit=0, times=1)
    first = await desk.night(flow_run="run-1")
    assert isinstance(first.error, StartFailedError)  # 'was started and the node shows none'
    desk.put()  # made by hand, with another password
    second = await desk.night(flow_run="run-2")
    stored = desk.vault.get(second.outcome.id)
    assert second.error is not None or sealed.can_be_opened(stored), (stored, second.notes)


async def test_one_run_makes_at_most_one_backup_that_cannot_be_opened(desk: Any) -> None:
    # a0cli does not return before the backup is made: the call times out, but the backup exists.
    desk.configure(a0cli={"call_timeout": "0.4s"}, contents={"max_unpacked": "1MB"})
    desk.tell("backup", "late", seconds=0.05, reply="hang")
    desk.tell("backup", "size", bytes=3_000_000)
    ended = await desk.night()
    assert ended.error is not None
    assert desk.counted("backup") == 1, (ended.error, desk.counts, [m.id for m in desk.stored])


async def test_after_max_unpacked_is_raised_the_backup_is_finished_as_ours(sealed: Any) -> None:
    desk = sealed.desk
    # Its password opened it, which proves that it is ours. Only its size exceeds the limit in fleet.yaml.
    sealed.configure(existing="fail", contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000)
    first = await desk.night(flow_run="run-1")
    assert isinstance(first.error, TooLargeUnpackedError)
    assert "max_unpacked" in first.outcome.hint
    sealed.configure(existing="fail")
    nights = [await desk.night(flow_run=f"run-{number}") for number in (2, 3)]
    assert nights[-1].error is None, [str(night.error) for night in nights]


async def test_a_too_large_backup_is_stored_with_the_right_password_mode(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000, times=1)
    await desk.night(flow_run="run-1")
    sealed.configure()
    assert (await desk.night(flow_run="run-2")).error is None
    [large] = [manifest for manifest in desk.stored if manifest.artifact.size > 1_000_000]
    assert large.encryption.password.mode == "sealed", large.encryption.password.mode


async def test_the_password_of_a_refused_start_that_took_effect_is_kept(sealed: Any) -> None:
    desk = sealed.desk
    desk.tell("backup", "say", stdout="", stderr="error: a backup already exists\n", times=1)
    desk.tell("backup", "exit", code=1, times=1)
    await desk.killed_after("start")
    assert (await desk.night()).error is None
    made = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert sealed.can_be_opened(made), made.encryption


async def test_a_backup_that_the_shared_password_of_its_own_start_does_not_open_is_foreign(
    desk: Any, sealed: Any
) -> None:
    desk.tell("backup", "kill_parent", when="before", times=1)
    await desk.killed_after("never that far")  # the sealed password is on disk, but the start was never sent
    assert len(sealed.files) == 1
    desk.configure(a0cli={"call_timeout": "0.5s"})  # shared from now on
    desk.tell("backup", "contents", are="noise", times=1)
    await desk.killed_after("await")
    ended = await desk.night(flow_run="run-3")
    assert ended.error is None
    # Same as without that file: it is stored as foreign, and a new one that opens is made.
    assert ended.outcome.verified == "contents", (ended.outcome, ended.notes)


async def test_a_backup_is_kept_however_many_starts_failed_before_it(sealed: Any) -> None:
    desk = sealed.desk
    files = SealedFiles(desk.vault.folder(desk.name), "backup")
    known_vault.create(desk.vault)
    desk.vault.ensure_writable(desk.name)
    # 520 refused starts (22 days, hourly) of a fleet with 10 recovery keys of 4096 bits.
    now = datetime(2026, 1, 1, tzinfo=UTC)
    files.folder.mkdir(mode=0o700)
    for number in range(520):
        boxes = [SealedPassword(recovery_key=f"{key:064x}", box=f"{number:0>682}==") for key in range(10)]
        _quickly(files, now + timedelta(hours=number), boxes)
    desk.put()  # made by hand
    ended = await desk.night()
    entries = list(desk.vault.entries(desk.name))
    unreadable = [entry for entry in entries if isinstance(entry, UnreadableManifest)]
    assert not unreadable, (ended.error, len(unreadable), unreadable[0], desk.counts)
    assert ended.error is None
    assert len([entry for entry in entries if isinstance(entry, Manifest)]) == 2


def _quickly(files: SealedFiles, made_at: datetime, sealed: list[SealedPassword]) -> None:
    """Write a file as SealedFiles does, but without fsync."""
    import json

    content = {"schema": 1, "node": files.node, "kind": files.kind, "made_at": made_at.isoformat()}
    path = files.folder / f"{made_at:%Y%m%dT%H%M%SZ}-{files.kind}.json"
    path.write_text(json.dumps({**content, "sealed": [each.model_dump() for each in sealed]}))


async def test_a_sealed_backup_is_finished_after_the_fleet_switched_to_a_shared_password(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("inspect")
    desk.configure()  # shared
    ended = await desk.night()
    assert ended.error is None
    [manifest] = [each for each in desk.stored if each.encryption.password.sealed]
    # The run that made it had opened it.
    assert manifest.encryption.password.mode == "sealed"
    assert manifest.started_at is not None
    assert desk.counted("backup") == 1, "nor is a second backup made where the interrupted one can be finished"


async def test_with_existing_fail_a_change_to_a_shared_password_does_not_block_the_node(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    desk.configure(existing="fail")  # shared
    nights = [await desk.night(flow_run=f"run-{number}") for number in (2, 3, 4)]
    assert not all(isinstance(each.error, ForeignBackupError) for each in nights), nights[-1].error


async def test_a_password_that_is_in_no_manifest_survives_settle(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    [file] = sealed.files
    content = file.read_bytes()
    # Unreadable for one night: a disk error, or torn and later restored from a copy.
    file.write_bytes(b"{torn")
    desk.tell("backup-delete", "false_delete")
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    second = await desk.night(flow_run="run-2")
    assert second.error is not None  # stored, but the deletion is not confirmed
    assert "restore it from a copy" in second.notes
    # The operator looks at it and fixes it.
    file.write_bytes(content)
    desk.forget()
    third = await desk.night(flow_run="run-3")
    assert third.error is None
    earlier = desk.stored[0]
    assert file.exists() or sealed.can_be_opened(earlier), (earlier.encryption, sealed.files)


async def test_a_password_that_is_readable_again_at_settle_is_not_removed(sealed: Any) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    [file] = sealed.files
    content = file.read_bytes()
    file.write_bytes(b"")  # what a failing disk returns for a while

    def back_again(stage: str) -> None:
        if stage == "store":
            file.write_bytes(content)

    ended = await desk.night(after=back_again)
    assert ended.error is None
    manifest = desk.stored[0]
    assert file.exists() or sealed.can_be_opened(manifest), (manifest.encryption, sealed.files)


async def test_a_late_backup_of_a_killed_run_keeps_its_password(sealed: Any) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    # The first start takes effect long after call_timeout, and its run is killed.
    desk.tell("backup", "late", seconds=6, reply="ok", times=1)
    await desk.killed_after("start")

    def late(stage: str) -> None:
        # Right after this run deleted its own backup, the one of the first run appears.
        while stage == "delete" and desk.holds is None:
            time.sleep(0.05)

    second = await desk.night(flow_run="run-2", after=late)
    assert second.error is None
    assert desk.holds is not None, "the status that this run saw last shows a backup that it cannot tell whose it is"
    third = await desk.night(flow_run="run-3")
    assert third.error is None
    late_one = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert sealed.can_be_opened(late_one), late_one.encryption


async def test_the_manifest_records_that_a_backup_was_started_with_the_shared_password(desk: Any, sealed: Any) -> None:
    desk.configure()
    await desk.killed_after("inspect")
    sealed.configure()
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert manifest.started_at is not None
    # `unknown` would send the operator away: 'this vault did not start that backup: ask who did for its password'.
    assert manifest.encryption.password.mode == "shared", manifest.encryption


async def test_the_password_of_quarantined_bytes_is_kept_as_long_as_the_bytes(sealed: Any) -> None:
    desk = sealed.desk
    desk.tell("backup", "contents", are="cut", times=1)
    ended = await desk.night(existing="replace")
    assert ended.error is None
    [kept] = (desk.vault.folder(desk.name) / "quarantine").glob("*/backup.tar.gz.enc")
    boxes = json.loads((kept.parent / "reason.json").read_text()).get("sealed", [])
    for file in sealed.files:
        boxes += json.loads(file.read_text())["sealed"]
    for manifest in desk.stored:
        boxes += [entry.model_dump() for entry in manifest.encryption.password.sealed]
    found = candidates([SealedPassword(**box) for box in boxes], load_private(sealed.private, None))
    # Most of the dump is in these bytes: all but its end.
    assert any(decryptor(each).update(kept.read_bytes()).startswith(b"\x1f\x8b\x08") for each in found)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
async def test_a_night_is_stored_on_a_file_system_without_links_and_modes(sealed: Sealed) -> None:
    """As exFAT by FUSE, mounted for this user alone: neither a link can be made nor a mode changed."""
    desk = sealed.desk
    program = (
        "import asyncio, sys; from a0backup.fleet.load import load_fleet; from tests.support.nights import night;"
        "ended = asyncio.run(night(load_fleet(sys.argv[1]))); sys.exit(str(ended.error) if ended.error else 0)"
    )
    calls = "symlink,symlinkat,link,linkat,chmod,fchmod,fchmodat"
    deny = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-e", f"inject={calls}:error=EPERM", "-o", "/dev/null"]
    process = await asyncio.create_subprocess_exec(
        *(*deny, sys.executable, "-c", program, str(desk.file)), cwd=REPOSITORY, stderr=asyncio.subprocess.PIPE
    )
    _, shown = await process.communicate()
    assert process.returncode == 0, shown.decode()
    [manifest] = desk.stored
    assert said_of_password(manifest) == ("sealed", True)
    assert sealed.files == []
    desk.is_settled()
