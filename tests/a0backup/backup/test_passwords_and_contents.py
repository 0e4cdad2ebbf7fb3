"""Passwords and contents in one run's work on one node: what a backup is worth is whether it can be opened."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from a0backup.errors import (
    ContentsError,
    ForeignBackupError,
    GzipDamagedError,
    RecoveryKeyError,
    TarTruncatedError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import digests
from a0backup.passwords.recovery_keys import candidates, load_private
from a0backup.report.outcomes import Ending
from a0backup.vault.manifest import Manifest
from tests.desk import Desk
from tests.nights import PASSWORD

KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=3072) for _ in range(2)]


def keep(key: rsa.RSAPrivateKey, folder: Path, name: str) -> tuple[Path, Path]:
    """Write both halves of *key* and return the paths of the public and the private one."""
    public, private = folder / f"{name}.pub.pem", folder / "offline" / f"{name}.key.pem"
    private.parent.mkdir(exist_ok=True)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    pkcs8 = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, none))
    return public, private


class Sealed:
    """A desk whose backups are sealed to recovery keys."""

    def __init__(self, desk: Desk, count: int = 1) -> None:
        self.desk = desk
        self.pairs = [keep(key, desk.room, f"recovery-{number}") for number, key in enumerate(KEYS[:count])]
        self.configure()

    def configure(self, **overrides: object) -> None:
        self.desk.configure(password={"sealed_to": [str(public) for public, _ in self.pairs]}, **overrides)

    @property
    def files(self) -> list[Path]:
        return sorted((self.desk.vault.folder(self.desk.name) / "passwords").glob("*"))

    def passwords(self, manifest: Manifest, *, key: int = 0) -> list[str]:
        return candidates(manifest.encryption.password.sealed, load_private(self.pairs[key][1], None))

    def opens(self, manifest: Manifest, password: str) -> bool:
        """Whether openssl and tar read the stored artifact to its end with *password*."""
        artifact = self.desk.vault.artifact(manifest)
        command = f"openssl enc -d -aes-256-ctr -md md5 -nosalt -pass env:P -in {artifact} | tar tzf - > /dev/null"
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], env={**os.environ, "P": password}, capture_output=True
        )
        return ended.returncode == 0


@pytest.fixture
def sealed(desk: Desk) -> Sealed:
    return Sealed(desk)


def said_of_password(manifest: Manifest) -> tuple[str, bool]:
    password = manifest.encryption.password
    return password.mode, password.confirmed


# -- sealed passwords --------------------------------------------------------------------------------------------------


async def test_a_sealed_backup_is_opened_by_its_recovery_key_alone(sealed: Sealed) -> None:
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


async def test_two_nights_have_two_passwords(sealed: Sealed) -> None:
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


async def test_the_sealed_password_is_on_the_disk_before_the_node_is_asked(sealed: Sealed) -> None:
    desk = sealed.desk
    desk.tell("backup", "kill_parent", when="before")
    await desk.killed_after("never that far")
    assert desk.holds is None
    [file] = sealed.files
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(file.read_text())["sealed"]


@pytest.mark.parametrize("stage", ["start", "await", "retrieve", "verify", "inspect", "store", "delete"])
async def test_wherever_a_run_is_killed_the_password_of_its_backup_is_in_the_manifest(
    sealed: Sealed, stage: str
) -> None:
    await sealed.desk.killed_after(stage)
    ended = await sealed.desk.night()
    assert ended.error is None
    [manifest] = sealed.desk.stored
    # The run that knew the password is gone: proven only where it had come as far as the store.
    assert said_of_password(manifest) == ("sealed", stage in ("store", "delete"))
    assert any(sealed.opens(manifest, password) for password in sealed.passwords(manifest))
    assert sealed.files == []
    sealed.desk.is_settled()


async def test_after_a_lost_start_every_password_that_may_have_made_the_backup_is_kept(sealed: Sealed) -> None:
    desk = sealed.desk
    sealed.configure(a0cli={"call_timeout": "0.5s"})
    # The first start never arrives; the second does, and its run is killed as well.
    desk.tell("backup", "refuse", message="", exit=0, times=1)
    await desk.killed_after("start")
    await desk.killed_after("start")
    assert len(sealed.files) == 2
    ended = await desk.night(flow_run="run-3")
    assert ended.error is None
    manifest = desk.stored[0]
    assert said_of_password(manifest) == ("sealed", False)
    passwords = sealed.passwords(manifest)
    assert len(passwords) == 2
    assert [sealed.opens(manifest, password) for password in passwords].count(True) == 1


async def test_with_a_torn_journal_the_password_is_kept_all_the_same(sealed: Sealed) -> None:
    desk = sealed.desk
    await desk.killed_after("await")
    desk.journal.path.write_text("{torn")
    await desk.night()
    theirs, ours = sorted(desk.stored, key=lambda manifest: manifest.started_at is not None)
    assert said_of_password(theirs) == ("unknown", False)
    assert any(sealed.opens(theirs, password) for password in sealed.passwords(theirs))
    assert said_of_password(ours) == ("sealed", True)
    assert len(sealed.passwords(ours)) == 1


async def test_an_unreadable_sealed_password_is_named_and_never_removed(sealed: Sealed) -> None:
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
async def test_nothing_is_started_with_a_recovery_key_that_cannot_seal(
    sealed: Sealed, spoil: Callable[[Path], Any], reason: str
) -> None:
    spoil(sealed.pairs[0][0])
    ended = await sealed.desk.night()
    assert isinstance(ended.error, RecoveryKeyError)
    assert reason in ended.outcome.reason
    assert ended.outcome.step == "start"
    assert sealed.desk.counts == (0, 0, 0)
    assert sealed.files == []


async def test_no_password_is_in_the_vault_but_sealed(sealed: Sealed) -> None:
    await sealed.desk.killed_after("await")
    await sealed.desk.night()
    [manifest] = sealed.desk.stored
    [password] = sealed.passwords(manifest)
    for path in sealed.desk.room.rglob("*"):
        assert not path.is_file() or password.encode() not in path.read_bytes()


# -- contents ----------------------------------------------------------------------------------------------------------


async def test_the_manifest_says_what_was_read_in_the_artifact(desk: Desk) -> None:
    await desk.night()
    [manifest] = desk.stored
    read = manifest.verified
    assert read.level == "contents"
    assert read.members == 5
    assert read.largest is not None
    assert read.largest[0].name == "dump/auth0/users.bson"
    assert read.unpacked_size is not None
    assert read.unpacked_size > read.largest[0].size > 0
    assert said_of_password(manifest) == ("shared", True)


async def test_what_cannot_be_opened_after_a_start_of_this_run_fails_the_node_which_keeps_it(desk: Desk) -> None:
    causes: list[tuple[str, type[ContentsError]]] = [
        ("noise", WrongPasswordError),
        ("uncompressed", UnexpectedFormatError),
        ("flipped", GzipDamagedError),
        ("cut", GzipDamagedError),
        ("cut_tar", TarTruncatedError),
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


async def test_bytes_that_a_killed_run_left_are_read_to_their_end_by_the_next_with_the_shared_password(
    desk: Desk,
) -> None:
    await desk.killed_after("verify")
    ended = await desk.night()
    assert ended.error is None
    [manifest] = desk.stored
    assert said_of_password(manifest) == ("shared", True)
    assert manifest.verified.level == "contents"
    assert desk.counted("backup-retrieve") == 1


async def test_what_failed_is_kept_as_foreign_by_the_next_run_which_makes_a_new_one(desk: Desk) -> None:
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
    # Its verified bytes were here; only the new one came from the node.
    assert desk.counted("backup-retrieve") == retrieved + 1
    desk.is_settled()


async def test_what_a_sealed_run_could_not_open_is_no_success_of_the_next_run_that_cannot_try(sealed: Sealed) -> None:
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
    # Whatever can still be got out of it: its password is there.
    assert len(sealed.passwords(spoilt)) == 1
    assert sealed.files == []


async def test_with_the_policy_to_fail_what_cannot_be_shown_to_be_ours_is_left_on_the_node(desk: Desk) -> None:
    desk.tell("backup", "contents", are="noise", times=1)
    await desk.night(flow_run="run-1")
    desk.configure(existing="fail")
    ended = await desk.night(flow_run="run-2")
    assert isinstance(ended.error, ForeignBackupError)
    assert desk.holds is not None
    assert desk.stored == []


async def test_the_operator_can_give_up_for_once_what_cannot_be_opened(desk: Desk) -> None:
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


async def test_a_foreign_backup_that_the_shared_password_opens_is_said_to_be_so(desk: Desk) -> None:
    desk.simulated.put(desk.name, password=PASSWORD)
    await desk.night()
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("shared", True)
    assert theirs.verified.level == "contents"


async def test_a_foreign_backup_is_kept_whatever_is_in_it(desk: Desk) -> None:
    desk.put()
    ended = await desk.night()
    assert ended.error is None
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("unknown", False)
    assert theirs.verified.level == "md5"


async def test_what_another_made_in_the_place_of_a_lost_start_is_foreign(desk: Desk) -> None:
    desk.configure(a0cli={"call_timeout": "1s"})
    # The reply is lost and nothing was made; then somebody else makes one.
    desk.tell("backup", "hang", times=1)
    working = asyncio.create_task(desk.night())
    while desk.counted("backup") < 1:  # noqa: ASYNC110 - told by another process
        await asyncio.sleep(0.01)
    desk.put()
    ended = await working
    assert ended.error is None
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    assert said_of_password(theirs) == ("unknown", False)
    assert ended.outcome.id != theirs.id
    desk.is_settled()


async def test_a_decompression_bomb_ends_the_reading_and_fails_the_node(desk: Desk) -> None:
    desk.configure(contents={"max_unpacked": "1MB"})
    desk.tell("backup", "size", bytes=3_000_000)
    ended = await desk.night()
    assert type(ended.error).__name__ == "TooLargeUnpackedError"
    assert "max_unpacked" in ended.outcome.hint
    assert desk.holds is not None
