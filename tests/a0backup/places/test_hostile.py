"""A place that is hostile or broken: what it lists, says and holds fails that place alone."""

import os
import shutil
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places.catching_up import catch_up
from a0backup.places.opening import open_store
from a0backup.places.places import Place
from a0backup.places.verification import Verification
from tests.a0backup.places.conftest import Spot
from tests.a0backup.places.test_verification import Room, bad, read_only
from tests.support.places import S3Server, small_server
from tests.support.users import as_user, needs_root, open_folder


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    await room.copy()
    return room


@pytest.mark.parametrize("content", [b"[" * 4000, b'{"a":' * 700, b"\xff\xfe", b'{"schema": 1e999}', b"null"])
async def test_an_identity_that_is_nonsense_fails_its_place_alone(room: Room, content: bytes) -> None:
    (room.folder / "nas" / "vault.json").write_bytes(content)
    assert bad(await room.verify()) == [("nas", str(room.folder / "nas"), "not read")]
    assert (await catch_up(room.places[0], room.manifests)).is_behind


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_an_identity_that_is_no_file_damages_no_artifact(room: Room, make: object) -> None:
    (room.folder / "nas" / "vault.json").unlink()
    make(room.folder / "nas" / "vault.json")  # type: ignore[operator]
    assert bad(await room.verify()) == [("nas", str(room.folder / "nas"), "not read")]


async def test_a_vault_that_cannot_be_written_can_be_verified_against_a_new_place(room: Room) -> None:
    shutil.copytree(room.folder / "nas", room.folder / "third")
    third = Place(room.vault, Copy(name="third", url=str(room.folder / "third")))
    with read_only(room.vault.root):
        found = await Verification(room.vault, [third]).run()
    assert {each.result for each in found if each.place == "third"} <= {"ok", "not read"}
    assert all(each.ok for each in found if each.place == "vault")


@pytest.mark.parametrize("name", ["\x1b[31mred\n", "\udcff\udcfe", "a0-1/20261122T020000Z-backup/\x07bell"])
async def test_names_that_nobody_can_print_are_strays_like_others(room: Room, name: str) -> None:
    (room.folder / "nas" / name).write_bytes(b"mine")
    assert [(place, result) for place, _, result in bad(await room.verify())] == [("nas", "stray")]


@needs_root
async def test_a_closed_folder_of_the_file_system_keeps_no_place_from_being_filled(tmp_path: Path) -> None:
    with open_folder() as folder:
        room = Room(folder)
        os.chown(room.vault.root, 12345, 54321)
        for path in [*room.vault.root.rglob("*")]:
            os.chown(path, 12345, 54321)
        (folder / "nas").mkdir(mode=0o755)
        os.chown(folder / "nas", 12345, 54321)
        (folder / "nas" / "lost+found").mkdir(mode=0o700)
        with as_user(12345, 54321):
            caught_up = await catch_up(room.places[0], room.manifests)
            assert caught_up.text() == "nas: 3 copied, 0 held already"
            found = await Verification(room.vault, room.places[:1]).run()
        assert bad(found) == []


def test_only_what_a_transfer_of_ours_left_is_removed(spot: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    if spot.copy.scheme == "s3":
        pytest.skip("a bucket has no such files")
    spot.folder.mkdir(parents=True, exist_ok=True)
    for name in (".mine.partial", ".backup.tar.gz.enc.0123456789abcdef.partial"):
        (spot.folder / name).write_bytes(b"1")
        os.utime(spot.folder / name, (1, 1))
    with open_store(spot.copy) as place:
        place.tidy()
    assert [path.name for path in spot.folder.iterdir()] == [".mine.partial"]


class _Odd(BaseHTTPRequestHandler):
    reply = b""
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.asked > 50:
            self.send_error(400)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.reply)))
        self.end_headers()
        self.wfile.write(self.reply)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def do_POST(self) -> None:
        self.do_PUT()

    def log_message(self, *_: object) -> None:
        pass


def odd_server(room: Path, reply: bytes) -> AbstractContextManager[S3Server]:
    return small_server(room, type("Odd", (_Odd,), {"reply": reply}))


@pytest.mark.parametrize(
    "reply",
    [
        b"<!DOCTYPE html><html><body><p>Log in<br></body></html>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        b"<Contents><Key>a</Key><Size>1</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><LastModified>never</LastModified></Contents></ListBucketResult>",
    ],
)
def test_what_is_no_answer_of_s3_is_a_failure_of_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    with odd_server(tmp_path, reply) as server:
        server.introduce(monkeypatch, tmp_path)
        with open_store(server.copy("any", deadline="2s")) as store, pytest.raises(PlaceError) as caught:
            list(store.entries())
        assert caught.value.remedy
        with open_store(server.copy("any", deadline="2s")) as store:
            store.tidy()
            with pytest.raises(PlaceError):
                store.write("big", [bytes(20_000_000)], size=20_000_000)


@pytest.mark.parametrize("spot", ["file", "sftp"], indirect=True)
def test_links_are_listed_and_not_followed(spot: Spot, tmp_path: Path) -> None:
    spot.folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"1")
    (spot.folder / "a0-1").symlink_to(tmp_path / "elsewhere")
    (spot.folder / "a0-2").symlink_to(tmp_path / "elsewhere" / "file")
    with open_store(spot.copy) as place:
        assert [entry.path for entry in place.entries()] == ["a0-1", "a0-2"]
