"""What an inspection says of the MongoDB dump in an artifact."""

import gzip
import json
import random
import tarfile

import pytest

from a0backup.artifact.byte_stream import Work
from a0backup.artifact.dump import Dump
from a0backup.artifact.inspection import Contents, verified_by
from a0backup.artifact.tar_walk import MAX_LARGEST
from a0backup.errors import (
    DumpDamagedError,
    GzipDamagedError,
    TarTruncatedError,
    TooLargeUnpackedError,
    TooManyPartsError,
)
from a0backup.vault.manifest import (
    MAX_COLLECTIONS,
    MAX_MANIFEST_BYTES,
    Encryption,
    Manifest,
    ManifestArtifact,
    ManifestNode,
    ManifestPassword,
    SealedPassword,
    newest_that_fit,
)
from a0backup.vault.vault import parsed
from simulator.artifact import bson
from tests.support.artifacts import END, MIB, Look, file, header, long, opened, padded, record, refused
from tests.support.stored import START

ONE = bson({"_id": bytes(12), "email": "user@example.com"})
METADATA = json.dumps({"indexes": [{"v": 2, "key": {"_id": 1}, "name": "_id_"}], "options": {}, "uuid": "a1"}).encode()


def counted(contents: Contents) -> list[tuple[str, int, int]]:
    return [(each.name, each.documents, each.size) for each in contents.collections or ()]


def of(*files: bytes) -> bytes:
    return gzip.compress(b"".join(files) + END)


def test_the_documents_of_each_collection_are_counted_largest_first(look: Look) -> None:
    contents = opened(
        look(
            of(
                file("dump/auth0/empty.bson", b""),
                file("dump/auth0/users.bson", ONE * 3000),
                file("dump/auth0/users.metadata.json", METADATA),
                file("dump/other/users.bson", ONE),
            )
        )
    )
    size = len(ONE)
    assert counted(contents) == [("auth0.users", 3000, 3000 * size), ("other.users", 1, size), ("auth0.empty", 0, 0)]
    assert contents.members == 4
    assert contents.odd == ()


@pytest.mark.parametrize("size", [1, 4097, 3 * MIB])
def test_a_dump_that_mongodump_compressed_is_counted_unpacked(look: Look, size: int) -> None:
    documents = ONE * (size // len(ONE) + 1)
    packed = file("dump/auth0/users.bson.gz", gzip.compress(documents, mtime=0))
    contents = opened(look(of(packed, file("dump/auth0/users.metadata.json.gz", gzip.compress(METADATA)))))
    assert counted(contents) == [("auth0.users", len(documents) // len(ONE), len(documents))]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_the_oplog_of_a_compressed_dump_is_compressed_though_its_name_does_not_say_so(look: Look, count: int) -> None:
    packed = gzip.compress(ONE * count, mtime=0)
    contents = opened(look(of(file("dump/oplog.bson", packed), file("dump/a/b.bson.gz", gzip.compress(b"")))))
    assert counted(contents)[-1 if not count else 0] == ("dump.oplog", count, count * len(ONE))


def test_a_document_may_begin_like_a_gzip(look: Look) -> None:
    length = int.from_bytes(b"\x1f\x8b\x08\0", "little")
    document = bson({"_id": bytes(12), "history": bytes(length - 36)})
    assert document.startswith(b"\x1f\x8b\x08\0")
    assert counted(opened(look(of(file("dump/auth0/users.bson", document))))) == [("auth0.users", 1, length)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("users.bson", "users"),
        ("./auth0/users.bson", "auth0.users"),
        ("dump/auth0/fs.chunks.bson", "auth0.fs.chunks"),
        ("a/b/auth0/a%2Fb.bson.gz", "auth0.a%2Fb"),
    ],
)
def test_a_collection_is_named_by_its_database_and_file(look: Look, path: str, name: str) -> None:
    held = gzip.compress(ONE) if path.endswith(".gz") else ONE
    assert counted(opened(look(of(file(path, held))))) == [(name, 1, len(ONE))]


@pytest.mark.parametrize("name", ["users.bson/x", "dump/.bson", "dump/users.bson.txt", "dump/bson", "user-export.json"])
def test_another_layout_is_no_dump(look: Look, name: str) -> None:
    contents = opened(look(of(file(name, b"anything"))))
    assert contents.collections is None
    assert "collections" not in json.loads(verified_by(contents).model_dump_json(exclude_none=True))


def test_links_folders_and_files_with_holes_are_not_read_as_documents(look: Look) -> None:
    contents = opened(
        look(
            of(
                header("dump/a.bson", 0, tarfile.SYMTYPE, "elsewhere"),
                header("dump/b.bson", 0, tarfile.LNKTYPE, "elsewhere"),
                header("dump/c.bson", 0, tarfile.DIRTYPE),
                long(tarfile.XHDTYPE, record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")),
                file("dump/d.bson", b"1\n0\n7\n"),
            )
        )
    )
    assert contents.members == 4
    assert contents.collections is None


@pytest.mark.parametrize(
    ("path", "held", "words"),
    [
        ("dump/auth0/users.bson", ONE * 500 + ONE[:-1], ["dump/auth0/users.bson: it ends at byte"]),
        ("dump/auth0/users.bson", ONE + b"\4\0\0\0\0", ["users.bson: ", f"at byte {len(ONE)} has a length of 4"]),
        (
            "dump/auth0/users.bson.gz",
            gzip.compress(ONE[:-1], mtime=0),
            ["users.bson.gz: ", "where its last document should end at byte"],
        ),
        ("dump/auth0/users.metadata.json", b"", ["users.metadata.json: it is no JSON"]),
        ("dump/auth0/users.metadata.json", METADATA[:-1], ["users.metadata.json: it is no JSON"]),
        ("dump/auth0/users.metadata.json", b"[" * 100_000, ["it is no JSON: it is nested too deep"]),
        ("dump/auth0/users.metadata.json", b'  {"a": {"b": "\xc3\xbc"}\n', ["it is no JSON"]),
        ("dump/auth0/users.metadata.json", b'{"a": "}', ["it is no JSON"]),
        ("dump/auth0/users.metadata.json", b"{a: 1" + bytes(100) + b"}", ["it is no JSON"]),
        ("dump/auth0/users.metadata.json", b"[]", ["it is JSON, and not the options of a collection"]),
    ],
)
def test_a_damaged_file_of_a_dump_is_damaged_contents_and_named(
    look: Look, path: str, held: bytes, words: list[str]
) -> None:
    refused(look(of(file("dump/auth0/before.bson", ONE), file(path, held))), DumpDamagedError, *words)


def test_a_broken_gzip_in_a_dump_is_named_with_its_file(look: Look) -> None:
    broken = gzip.compress(ONE * 1000)[:-5]
    seen = look(of(file("dump/auth0/users.bson.gz", broken)))
    refused(seen, GzipDamagedError, "dump/auth0/users.bson.gz: the compressed stream is cut off")


def test_the_first_damage_is_named_and_a_broken_tar_or_gzip_around_it_instead(look: Look) -> None:
    files = file("dump/a.bson", ONE[:-1]) + file("dump/b.bson", b"x")
    refused(look(gzip.compress(files + END)), DumpDamagedError, "dump/a.bson: ")
    refused(look(gzip.compress(files)[:-9]), GzipDamagedError, "cut off")
    refused(look(gzip.compress(files + header("dump/c.bson", 10_000))), TarTruncatedError, "dump/c.bson")


@pytest.mark.parametrize("name", ["dump/auth0/users.bson", "dump/auth0/users.bson.gz"])
def test_damage_around_a_file_of_the_dump_is_not_taken_for_damage_within_it(look: Look, name: str) -> None:
    documents = b"".join(bson({"_id": bytes(12), "history": random.Random(n).randbytes(900)}) for n in range(3000))
    held = gzip.compress(documents, 1) if name.endswith(".gz") else documents
    packed = bytearray(of(file(name, held)))
    for spoilt in (packed[: len(packed) // 2], packed[: len(packed) // 2] + bytes(1000) + packed[len(packed) // 2 :]):
        seen = look(bytes(spoilt))
        refused(seen, GzipDamagedError, "the compressed stream ")
        assert seen.error is not None
        assert "users.bson" not in seen.error.text()
    seen = look(bytes(packed), max_unpacked=MIB)
    refused(seen, TooLargeUnpackedError, "contents.max_unpacked")


def test_numbers_of_any_length_in_metadata_are_passed(look: Look) -> None:
    text = b'{"options": {"max": ' + b"9" * 20_000 + b"}}"
    assert opened(look(of(file("dump/auth0/users.metadata.json", text)))).odd == ()


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_mongodump_writes_and_json_lacks_are_passed(look: Look, number: bytes) -> None:
    text = b'{"options": {}, "indexes": [{"name": "expires", "expireAfterSeconds": %s}]}\n' % number
    assert opened(look(of(file("dump/auth0/users.metadata.json", text)))).odd == ()


@pytest.mark.parametrize(
    "text",
    [
        b'{"options": {}, "indexes": [{"expireAfterSeconds": +Infinity}]}',
        b'{options : { "create" : "users" }, indexes:[ { "key" : { "_id" : 1 } }]}',
        b'{"indexes": [{"partialFilterExpression": {"name": undefined}}]}',
    ],
)
def test_metadata_as_old_versions_of_mongodump_write_it_is_passed_and_noted(look: Look, text: bytes) -> None:
    contents = opened(look(of(file("dump/auth0/users.bson", ONE), file("dump/auth0/users.metadata.json", text))))
    [odd] = contents.odd
    assert odd.startswith("dump/auth0/users.metadata.json is no strict JSON, and was not read: ")
    assert counted(contents) == [("auth0.users", 1, len(ONE))]


def test_the_name_of_an_index_may_be_in_any_encoding(look: Look) -> None:
    text = b'{"options": {}, "indexes": [{"name": "gr\xf6\xdfe_1"}]}'
    assert opened(look(of(file("dump/auth0/users.metadata.json", text)))).odd == ()


def test_metadata_of_unusual_size_is_passed_and_noted(look: Look) -> None:
    text = b'{"options": "' + b"x" * MIB + b'"}'
    [odd] = opened(look(of(file("dump/auth0/users.metadata.json", text)))).odd
    assert "dump/auth0/users.metadata.json is larger than 1 MiB" in odd


def test_the_metadata_in_one_artifact_is_bounded_as_it_takes_long_to_read() -> None:
    """Nested lists take a tenth of a second per MiB, and compress to nothing."""
    text = b'{"a": "%s"}' % (b"x" * (MIB - 10))
    dump = Dump(Work(1 << 20), 1 << 40, "too large")
    for number in range(200):
        dump.read(f"dump/{number}.metadata.json", iter([text]))
    assert dump.fault is None
    for number in range(200):
        dump.read(f"dump/{number}.metadata.json", iter([text]))
    assert dump.fault is not None
    assert dump.fault.kind_of_error is TooManyPartsError


def test_a_bomb_within_the_tar_ends_the_reading(look: Look) -> None:
    bomb = gzip.compress(ONE * 4_000_000)
    assert len(bomb) < 2 * MIB
    seen = look(of(file("dump/auth0/users.bson.gz", bomb)), max_unpacked=50 * MIB)
    refused(seen, TooLargeUnpackedError, "contents.max_unpacked")


def test_the_largest_collections_are_kept_and_their_names_bounded(look: Look) -> None:
    files = [padded_file(f"dump/{'n' * 150}{number}.bson", ONE * (number % 3)) for number in range(3000)]
    contents = opened(look(of(*files)))
    assert len(contents.collections or ()) == MAX_COLLECTIONS
    assert {each.documents for each in contents.collections or ()} == {2}


@pytest.mark.parametrize("character", ["\N{GRINNING FACE}", ",", "\\", '"'])
def test_a_manifest_has_room_for_any_collections_besides_any_sealed_passwords(look: Look, character: str) -> None:
    name = character * 190  # the first takes twelve bytes in JSON
    files = [padded_file(f"{name}/{number}{name}.bson", ONE) for number in range(MAX_COLLECTIONS)]
    files += [padded_file(f"{number}{name}.json", ONE * 2) for number in range(MAX_LARGEST)]
    verified = verified_by(opened(look(of(*files))))
    box = SealedPassword(recovery_key="0" * 64, box="A" * 684)
    manifest = Manifest(
        id="a0-1/20261122T020000Z-backup",
        node=ManifestNode(name="a0-1", host="127.0.0.1", port=1),
        kind="backup",
        name_on_node="x.tar.gz",
        started_at=START,
        stored_at=START,
        artifact=ManifestArtifact(file="backup.tar.gz.enc", size=1, md5="0" * 32, sha256="0" * 64),
        encryption=Encryption(password=ManifestPassword(mode="unknown", sealed=newest_that_fit((box,) * 9000))),
        verified=verified,
        flow_run="run",
    )
    content = json.dumps(manifest.to_json(), indent=2).encode()
    assert len(verified.collections or ()) == MAX_COLLECTIONS
    assert MAX_MANIFEST_BYTES // 2 < len(content) <= MAX_MANIFEST_BYTES
    assert parsed(manifest.id, content) == manifest


def padded_file(name: str, held: bytes) -> bytes:
    return long(tarfile.GNUTYPE_LONGNAME, name.encode() + b"\0") + header("short", len(held)) + padded(held)


def test_files_of_one_name_add_up(look: Look) -> None:
    contents = opened(look(of(file("one/auth0/users.bson", ONE), file("two/auth0/users.bson", ONE * 2))))
    assert counted(contents) == [("auth0.users", 3, 3 * len(ONE))]


def test_a_name_is_shown_without_control_characters_and_passwords(look: Look) -> None:
    contents = opened(look(of(file("dump/\x1b[31mPassw0rd\u202e.bson", ONE))))
    [(name, _, _)] = counted(contents)
    assert name.isprintable()
    assert "Passw0rd" not in name
