"""What every kind of place promises: a directory, a bucket on rclone's S3 server, a folder on OpenSSH's SFTP server."""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places import s3
from a0backup.places.opening import open_store
from a0backup.places.store import LEFT_AFTER, Entry, Store
from tests.a0backup.places.conftest import Spot
from tests.support.patience import eventually
from tests.support.places import (
    BUCKET,
    s3_client,
    unfinished_uploads,
)

FOLDER = "a0-1/20261123T020000Z-backup"
LARGE = 40_000_000  # bytes: three parts of an upload to S3


@dataclass
class Site:
    """A place of a test alone, opened, and the folder in which its files can be seen."""

    store: Store
    folder: Path
    copy: Copy

    def files(self) -> dict[str, int]:
        """Return all that is in the folder, by its path."""
        found = [path for path in self.folder.rglob("*") if not path.is_dir()]
        return {str(path.relative_to(self.folder)): path.lstat().st_size for path in found}


@pytest.fixture
def site(spot: Spot) -> Iterator[Site]:
    if spot.copy.scheme == "file":
        spot.folder.mkdir(0o700)  # a folder is a place once it bears the vault's identity
    with open_store(spot.copy) as store:
        yield Site(store, spot.folder, spot.copy)


def pieces(content: bytes, size: int = 1 << 20) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


class SourceError(Exception):
    """The vault cannot be read."""


def breaking(content: bytes, after: int) -> Iterator[bytes]:
    """Yield the first *after* bytes, and then raise SourceError."""
    yield from pieces(content[:after])
    raise SourceError


def whole(store: Store, path: str) -> bytes:
    return b"".join(store.read(path))


def test_a_file_that_was_written_is_read_back_whole(site: Site) -> None:
    content = random.randbytes(2_500_000)
    assert site.store.write(f"{FOLDER}/a0-1.tgz", pieces(content), size=len(content)) is False
    assert whole(site.store, f"{FOLDER}/a0-1.tgz") == content
    assert site.store.size(f"{FOLDER}/a0-1.tgz") == len(content)
    assert site.files() == {f"{FOLDER}/a0-1.tgz": len(content)}


def test_a_large_file_is_read_back_whole(site: Site) -> None:
    content = random.randbytes(LARGE)
    # Chunks that fit into nothing: neither into a part of an upload nor into a packet.
    site.store.write(f"{FOLDER}/a0-1.tgz", pieces(content, 700_001), size=LARGE)
    assert whole(site.store, f"{FOLDER}/a0-1.tgz") == content
    assert site.files() == {f"{FOLDER}/a0-1.tgz": LARGE}


def test_an_empty_file_is_a_file(site: Site) -> None:
    site.store.write("empty", [], size=0)
    assert site.store.size("empty") == 0
    assert whole(site.store, "empty") == b""
    assert list(site.store.entries()) == [Entry("empty", 0)]


@pytest.mark.parametrize("path", ["absent", "no/such/folder/absent"])
def test_a_missing_file_has_no_size_and_cannot_be_read(site: Site, path: str) -> None:
    site.store.write("present", [b"1"], size=1)
    assert site.store.size(path) is None
    with pytest.raises(FileNotFoundError):
        next(site.store.read(path))


def test_a_place_that_was_never_used_is_empty(site: Site) -> None:
    assert list(site.store.entries()) == []
    assert site.store.size("vault.json") is None
    site.store.tidy()


def test_a_file_that_is_written_again_holds_what_was_written_last(site: Site) -> None:
    site.store.write("vault.json", [b"the first and longer one"], size=24)
    site.store.write("vault.json", [b"the last", b" one"], size=12)
    assert whole(site.store, "vault.json") == b"the last one"
    assert site.files() == {"vault.json": 12}


def test_a_removed_file_is_gone_and_can_be_removed_again(site: Site) -> None:
    site.store.write(f"{FOLDER}/manifest.json", [b"{}"], size=2)
    site.store.write("vault.json", [b"{}"], size=2)
    site.store.remove(f"{FOLDER}/manifest.json")
    site.store.remove(f"{FOLDER}/manifest.json")
    site.store.remove("no/such/folder/absent")
    assert site.store.size(f"{FOLDER}/manifest.json") is None
    assert [entry.path for entry in site.store.entries()] == ["vault.json"]


def test_entries_are_all_files_whose_path_begins_with_the_prefix(site: Site) -> None:
    paths = {
        "a0-1/x/manifest.json": 3,
        "a0-1/y/artifact": 5,
        "a0-10/x/manifest.json": 7,
        "vault.json": 11,
        ".hidden": 13,
    }
    for path, size in paths.items():
        site.store.write(path, [bytes(size)], size=size)
    (site.folder / "not-ours").write_bytes(b"something else")

    def found(prefix: str = "") -> dict[str, int]:
        return {entry.path: entry.size for entry in site.store.entries(prefix)}

    # rclone shows what others put into its folder a moment later.
    assert eventually(lambda: found() == paths | {"not-ours": 14}), found()
    assert found("a0-1/") == {path: size for path, size in paths.items() if path.startswith("a0-1/")}
    assert found("a0-1") == {path: size for path, size in paths.items() if path.startswith("a0-1")}
    assert found("a0-1/x/manif") == {"a0-1/x/manifest.json": 3}
    assert found("a0-2/") == {}


@pytest.mark.parametrize("size", [3_000_000, LARGE])
def test_a_source_that_fails_leaves_neither_the_name_nor_a_part(site: Site, size: int) -> None:
    content = random.randbytes(size)
    with pytest.raises(SourceError):
        site.store.write(f"{FOLDER}/a0-1.tgz", breaking(content, size - 1_000_000), size=size)
    assert site.store.size(f"{FOLDER}/a0-1.tgz") is None
    assert site.files() == {}
    assert site.copy.scheme != "s3" or unfinished_uploads(site.copy.root) == 0


@pytest.mark.parametrize("size", [3_000_000, LARGE])
def test_a_source_that_fails_leaves_the_former_file_as_it_was(site: Site, size: int) -> None:
    site.store.write("artifact", [b"as before"], size=9)
    with pytest.raises(SourceError):
        site.store.write("artifact", breaking(random.randbytes(size), size - 1_000_000), size=size)
    assert whole(site.store, "artifact") == b"as before"
    assert site.files() == {"artifact": 9}


@pytest.mark.parametrize("size", [2_000_000, LARGE])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_another_number_of_bytes_than_announced_is_refused(site: Site, size: int, wrong: int) -> None:
    with pytest.raises(PlaceError, match=f"not {size + wrong}") as caught:
        site.store.write("artifact", pieces(bytes(size)), size=size + wrong)
    assert caught.value.place == site.copy.name
    assert site.files() == {}
    assert site.copy.scheme != "s3" or unfinished_uploads(site.copy.root) == 0


def test_a_reader_may_stop_early_and_the_place_goes_on(site: Site) -> None:
    content = random.randbytes(10_000_000)
    site.store.write("artifact", pieces(content), size=len(content))
    chunks = site.store.read("artifact")
    first = next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert content.startswith(first)
    assert whole(site.store, "artifact") == content


def test_files_are_copied_within_one_place(site: Site) -> None:
    content = random.randbytes(5_000_000)
    site.store.write("one", pieces(content), size=len(content))
    site.store.write("two", site.store.read("one"), size=len(content))
    assert whole(site.store, "two") == content


@pytest.mark.parametrize("spot", ["file", "sftp"], indirect=True)
def test_no_link_is_followed(site: Site, tmp_path: Path) -> None:
    site.store.write("present", [b"1"], size=1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(b"secret")
    (site.folder / "a0-1").symlink_to(elsewhere)
    (site.folder / "link").symlink_to(elsewhere / "secret")
    assert not [entry.path for entry in site.store.entries() if entry.path.endswith("secret")]
    for path in ("link", "a0-1/secret"):
        with pytest.raises(PlaceError):
            next(site.store.read(path))
    with pytest.raises(PlaceError):
        site.store.write("a0-1/new", [b"1"], size=1)
    # A link gives way to the file of its name; what it pointed to stays.
    site.store.write("link", [b"new"], size=3)
    assert whole(site.store, "link") == b"new"
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"secret": b"secret"}


@pytest.mark.parametrize("spot", ["file", "sftp"], indirect=True)
def test_only_the_owner_may_read_what_is_stored(site: Site) -> None:
    site.store.write(f"{FOLDER}/a0-1.tgz", [b"1"], size=1)
    modes = [(site.folder / part).stat().st_mode & 0o777 for part in ("", "a0-1", FOLDER, f"{FOLDER}/a0-1.tgz")]
    assert modes == [0o700, 0o700, 0o700, 0o600]


@pytest.mark.parametrize("spot", ["file", "sftp"], indirect=True)
def test_tidy_removes_what_killed_transfers_left_more_than_a_day_ago(site: Site) -> None:
    site.store.write(f"{FOLDER}/a0-1.tgz", [b"1"], size=1)
    old, new = (f".a0-1.tgz.{digit * 16}.partial" for digit in "ab")
    for name in (old, new, "notes.partial"):
        (site.folder / FOLDER / name).write_bytes(b"1")
    long_ago = time.time() - LEFT_AFTER - 60
    for name in (old, "notes.partial", "a0-1.tgz"):
        os.utime(site.folder / FOLDER / name, (long_ago, long_ago))
    site.store.tidy()
    assert {path.name for path in (site.folder / FOLDER).iterdir()} == {new, "notes.partial", "a0-1.tgz"}


@pytest.mark.parametrize("spot", ["s3"], indirect=True)
def test_tidy_ends_uploads_that_were_killed_more_than_a_day_ago(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.store.write("present", [b"1"], size=1)
    for key in (f"{FOLDER}/backup.tar.gz.enc", "somebody/elses"):
        s3_client().create_multipart_upload(Bucket=BUCKET, Key=f"{site.copy.root}/{key}")
    site.store.tidy()
    assert unfinished_uploads(site.copy.root) == 2
    monkeypatch.setattr(s3, "LEFT_AFTER", -60.0)
    site.store.tidy()
    assert unfinished_uploads(f"{site.copy.root}/{FOLDER}") == 0
    assert unfinished_uploads(f"{site.copy.root}/somebody") == 1
