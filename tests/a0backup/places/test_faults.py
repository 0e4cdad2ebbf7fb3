"""What becomes of faults: servers that refuse, hang, break off or are gone, and disks that are full.

Whether a server's own checksums are believed is tried with three: rclone's, which only repeats what it is sent; a small
one that really computes them; and, where it is installed, SeaweedFS, which does so, too.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from a0backup.errors import PlaceDeniedError, PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places import s3 as s3_module
from a0backup.places.opening import open_store
from tests.support.parts import free_port
from tests.support.patience import eventually, patience
from tests.support.places import (
    ACCESS_KEY,
    BUCKET,
    Interference,
    S3Server,
    SftpServer,
    checking_server,
    make_key,
    place,
    s3_client,
    s3_server,
    seaweedfs,
    sftp_server,
    unfinished_uploads,
)

SIZE = 20_000_000  # bytes: two parts of an upload to S3


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """Return a prefix in the bucket for this test alone."""
    return f"{tmp_path.name}-{random.getrandbits(64):x}"


@pytest.fixture(params=["s3", "sftp"])
def between(
    request: pytest.FixtureRequest, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Interference, Copy]]:
    """Yield a proxy before a server, and the place that is reached through it."""
    server = request.getfixturevalue(request.param)
    with Interference(server.port) as proxy:
        if request.param == "s3":
            server.introduce(monkeypatch, tmp_path, port=proxy.port)
            yield proxy, server.copy(prefix, deadline="2s")
        else:
            server.introduce(monkeypatch, tmp_path / "home", port=proxy.port)
            yield proxy, server.copy(tmp_path / "copies", port=proxy.port, deadline="2s")


def chunks(size: int = SIZE) -> Iterator[bytes]:
    for at in range(0, size, 1 << 20):
        yield random.randbytes(min(1 << 20, size - at))


def refused(copy: Copy) -> PlaceError:
    """Return the error with which the place fails to say whether it has a file."""
    with pytest.raises(PlaceError) as caught, open_store(copy) as store:
        store.size("vault.json")
    assert caught.value.place == copy.name
    return caught.value


@contextmanager
def soon(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < patience(seconds)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "boto3"), ("sftp", "asyncssh")])
def test_a_package_that_is_not_installed_is_named_by_its_extra(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(place("far", f"{scheme}://somewhere/folder"))
    assert f"a0backup[{scheme}]" in error.remedy


def test_credentials_that_are_missing_are_asked_for(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.introduce(monkeypatch, tmp_path)
    (tmp_path / "credentials").write_text("")
    assert "~/.aws/credentials" in refused(s3.copy("any")).remedy


def test_a_profile_that_is_missing_is_named(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.introduce(monkeypatch, tmp_path)
    error = refused(s3.copy("any", profile="offsite"))
    assert "offsite" in error.reason
    assert "~/.aws/config" in error.remedy


@pytest.mark.parametrize(("key", "secret"), [(ACCESS_KEY, "Canary7Secret"), ("AKIAWRONGWRONG00", "Canary7Secret")])
def test_wrong_credentials_are_reported_without_the_secret(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, secret: str
) -> None:
    s3.introduce(monkeypatch, tmp_path, key=key, secret=secret)
    with open_store(s3.copy("any")) as store:
        with pytest.raises(PlaceError, match="credentials") as caught:
            list(store.entries())
        assert "Canary7Secret" not in str(caught.value)
        with pytest.raises(PlaceError):
            store.write("vault.json", [b"1"], size=1)
        with pytest.raises(PlaceError):
            store.size("vault.json")


def test_a_bucket_that_is_missing_is_no_empty_place(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.introduce(monkeypatch, tmp_path)
    copy = place("offsite", "s3://no-such-bucket/prefix")
    assert "make the bucket" in refused(copy).remedy
    with open_store(copy) as store:
        for use in (
            lambda: list(store.entries()),
            lambda: next(store.read("vault.json")),
            lambda: store.write("vault.json", [b"1"], size=1),
        ):
            with pytest.raises(PlaceError, match="make the bucket"):
                use()


def test_an_s3_server_that_is_not_there_is_reported_soon(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.introduce(monkeypatch, tmp_path, port=free_port())
    with soon(5):
        assert "endpoint_url" in refused(s3.copy("any", deadline="2s")).remedy


def test_an_sftp_server_that_is_not_there_is_reported_soon(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp.introduce(monkeypatch, tmp_path / "home")
    with soon(5):
        assert "check that the server runs" in refused(sftp.copy(tmp_path, port=free_port())).remedy


def test_a_server_that_hangs_from_the_start_is_given_up_after_the_deadline(between: tuple[Interference, Copy]) -> None:
    proxy, copy = between
    proxy.stall_after = 0
    with soon(8):
        refused(copy)


def test_a_server_that_hangs_in_an_upload_is_given_up_after_the_deadline(between: tuple[Interference, Copy]) -> None:
    proxy, copy = between
    with open_store(copy) as store:
        store.size("vault.json")
        proxy.stall_after = proxy.received + 5_000_000
        with soon(12), pytest.raises(PlaceError):
            store.write("artifact", chunks(), size=SIZE)


def test_a_server_that_hangs_in_an_upload_costs_one_deadline(
    s3: S3Server, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Interference(s3.port) as proxy:
        s3.introduce(monkeypatch, tmp_path, port=proxy.port)
        proxy.stall_after = 3_000_000
        with open_store(s3.copy(prefix, deadline="6s")) as store, soon(10), pytest.raises(PlaceError):
            store.write("a0-1/20261123T020000Z-backup/backup.tar.gz.enc", chunks(), size=SIZE)


def test_a_connection_that_breaks_in_a_download_is_no_shorter_file(between: tuple[Interference, Copy]) -> None:
    proxy, copy = between
    with open_store(copy) as store:
        store.write("artifact", chunks(), size=SIZE)
    proxy.cut_after = 12_000_000
    came: list[int] = []
    with open_store(copy) as store, pytest.raises(PlaceError):
        came.extend(map(len, store.read("artifact")))
    assert sum(came) < SIZE
    proxy.cut_after = None
    with open_store(copy) as store:
        assert sum(map(len, store.read("artifact"))) == SIZE


def test_a_connection_that_was_lost_is_made_anew(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Interference(sftp.port) as proxy:
        sftp.introduce(monkeypatch, tmp_path / "home", port=proxy.port)
        with open_store(sftp.copy(tmp_path / "copies", port=proxy.port)) as store:
            store.write("artifact", chunks(), size=SIZE)
            proxy.cut_after = 0
            with pytest.raises(PlaceError):
                list(store.read("artifact"))
            proxy.cut_after = None
            assert sum(map(len, store.read("artifact"))) == SIZE


@pytest.mark.parametrize("size", [1000, SIZE])
def test_an_s3_server_that_is_busy_for_a_while_is_waited_for(
    s3: S3Server, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_module, "_LONGEST_PAUSE", 0.1)
    with Interference(s3.port) as proxy:
        s3.introduce(monkeypatch, tmp_path, port=proxy.port)
        proxy.busy = 3
        with open_store(s3.copy(prefix)) as store:
            store.write("artifact", chunks(size), size=size)
            assert store.size("artifact") == size
    assert proxy.busy == 0


def test_an_s3_server_that_stays_busy_is_given_up_after_the_deadline(
    s3: S3Server, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Interference(s3.port) as proxy:
        s3.introduce(monkeypatch, tmp_path, port=proxy.port)
        proxy.busy = 1_000_000
        with soon(5), open_store(s3.copy(prefix, deadline="2s")) as store:
            with pytest.raises(PlaceError, match="503") as caught:
                store.write("artifact", [b"1"], size=1)
            assert "at_most" in caught.value.remedy


@pytest.mark.parametrize("kind", ["s3", "sftp"])
def test_a_server_that_is_killed_in_an_upload_shows_no_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "server"
    room.mkdir()
    with (s3_server if kind == "s3" else sftp_server)(room) as server:
        if isinstance(server, S3Server):
            server.introduce(monkeypatch, tmp_path)
            copy, folder = server.copy("prefix", deadline="3s"), server.folder / "prefix"
        else:
            server.introduce(monkeypatch, tmp_path / "home")
            copy, folder = server.copy(tmp_path / "copies", deadline="3s"), tmp_path / "copies"

        def killing() -> Iterator[bytes]:
            for number, chunk in enumerate(chunks(60_000_000)):
                if number == 25:
                    assert server.part is not None
                    server.part.kill()
                yield chunk

        with open_store(copy) as store, soon(20), pytest.raises(PlaceError):
            store.write("artifact", killing(), size=60_000_000)
    assert not (folder / "artifact").exists()


@pytest.mark.parametrize("known", ["another key", "none"])
def test_a_server_with_another_key_than_the_known_one_gets_nothing(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    sftp.introduce(monkeypatch, tmp_path / "home")
    make_key(tmp_path / "other")
    line = f"[127.0.0.1]:{sftp.port} {(tmp_path / 'other.pub').read_text()}" if known == "another key" else ""
    (tmp_path / "home/.ssh/known_hosts").write_text(line)
    error = refused(sftp.copy(tmp_path / "copies"))
    assert "known_hosts" in error.reason
    assert "ssh-keyscan" in error.remedy
    assert "fingerprint" in error.remedy


def test_no_setting_of_ssh_lets_an_unknown_server_pass(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp.introduce(monkeypatch, tmp_path / "home")
    config = tmp_path / "home/.ssh/config"
    (tmp_path / "home/.ssh/known_hosts").write_text("")
    for setting in ("StrictHostKeyChecking no", "UserKnownHostsFile none", "UserKnownHostsFile /dev/null"):
        config.write_text(f"IdentityFile {sftp.room / 'user'}\n{setting}\n")
        refused(sftp.copy(tmp_path / "copies"))


def test_a_key_that_the_server_does_not_know_is_reported(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp.introduce(monkeypatch, tmp_path / "home", key="stranger")
    error = refused(sftp.copy(tmp_path / "copies"))
    assert "login" in error.reason
    assert "authorized_keys" in error.remedy


def test_a_full_disk_of_an_sftp_server_is_reported_and_keeps_no_part(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, timeout=patience(10)).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    try:
        sftp.introduce(monkeypatch, tmp_path / "home")
        with open_store(sftp.copy(disk)) as store:
            store.write("vault.json", [b"as before"], size=9)
            with pytest.raises(PlaceError, match="free space") as caught:
                store.write("vault.json", chunks(5_000_000), size=5_000_000)
            assert "no space" in caught.value.reason
            assert b"".join(store.read("vault.json")) == b"as before"
        assert [path.name for path in disk.iterdir()] == ["vault.json"]
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=patience(10))


@pytest.mark.parametrize("size", [1000, SIZE])
def test_checksums_of_a_server_that_takes_wrong_ones_are_not_believed(
    s3: S3Server, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    s3.introduce(monkeypatch, tmp_path)
    with open_store(s3.copy(prefix, prove="checksum")) as store:
        assert store.write("artifact", chunks(size), size=size) is False
        assert [entry.path for entry in store.entries()] == ["artifact"]


@pytest.mark.parametrize("size", [0, 1000, SIZE])
@pytest.mark.parametrize("prove", ["checksum", "read"])
def test_checksums_of_a_server_that_computes_them_are_a_proof_if_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, prove: str
) -> None:
    with checking_server(tmp_path) as server:
        server.introduce(monkeypatch, tmp_path)
        with open_store(server.copy("prefix", prove=prove)) as store:
            assert store.write("artifact", chunks(size), size=size) is (prove == "checksum")


def test_credentials_that_may_not_list_can_still_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with checking_server(tmp_path) as server:
        server.introduce(monkeypatch, tmp_path)
        with open_store(server.copy("prefix")) as store:
            assert store.size("artifact") is None
            with pytest.raises(FileNotFoundError):
                next(store.read("artifact"))
            store.write("artifact", [b"1"], size=1)
            assert store.size("artifact") == 1
            store.tidy()
            with pytest.raises(PlaceDeniedError, match="s3:ListBucket"):
                next(store.entries())


@pytest.mark.slow
def test_seaweedfs_proves_by_its_own_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "server"
    room.mkdir()
    with seaweedfs(room) as server:
        server.introduce(monkeypatch, tmp_path)
        make_bucket()
        with open_store(server.copy("prefix", prove="checksum")) as store:
            for size in (0, 1000, SIZE):
                assert store.write(f"artifact-{size}", chunks(size), size=size) is True
                assert sum(map(len, store.read(f"artifact-{size}"))) == size
            assert {entry.size for entry in store.entries()} == {0, 1000, SIZE}


def make_bucket() -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    def made() -> bool:
        try:
            s3_client().create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    assert eventually(made, 60)


def test_no_thread_and_no_upload_is_left_after_a_failure(
    s3: S3Server, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.introduce(monkeypatch, tmp_path)

    def failing() -> Iterator[bytes]:
        yield from chunks(2 * SIZE)
        raise KeyboardInterrupt

    with open_store(s3.copy(prefix)) as store, pytest.raises(KeyboardInterrupt):
        store.write("artifact", failing(), size=3 * SIZE)
    assert unfinished_uploads(prefix) == 0
    assert eventually(lambda: not any(each.name.startswith("copy-offsite") for each in threading.enumerate()))
