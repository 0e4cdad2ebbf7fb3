"""A place of each kind: a directory, a bucket on rclone's S3 server, a folder on OpenSSH's SFTP server."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from a0backup.fleet.copies import Copy
from tests.support.places import S3Server, SftpServer, place, s3_server, sftp_server


@dataclass
class Spot:
    """A place of a test alone, and the folder in which its files can be seen."""

    copy: Copy
    folder: Path


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    with sftp_server(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture(params=("file", "s3", "sftp"))
def spot(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spot:
    folder = tmp_path / "copies"
    match request.param:
        case "file":
            return Spot(place("disk", str(folder)), folder)
        case "s3":
            server = request.getfixturevalue("s3")
            server.introduce(monkeypatch, tmp_path)
            # A bucket of all tests, and in it a prefix of this one.
            folder = server.folder / f"{tmp_path.name}-{random.getrandbits(64):x}" / "copies"
            return Spot(server.copy(str(folder.relative_to(server.folder))), folder)
        case _:
            server = request.getfixturevalue("sftp")
            server.introduce(monkeypatch, tmp_path / "home")
            return Spot(server.copy(folder), folder)
