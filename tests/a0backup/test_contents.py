"""What is told of an artifact that is whole, and of one that is not."""

import asyncio
import bz2
import gzip
import hashlib
import heapq
import io
import itertools
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from a0backup.contents import CHUNK, HEAD, LONGEST_HEADER, Contents, Inspection, Member, inspect
from a0backup.encryption import decryptor
from a0backup.errors import (
    ContentsError,
    GzipDamagedError,
    TarTruncatedError,
    TooLargeUnpackedError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import digests, in_thread
from a0backup.replies import quote
from simulator import artifact as simulated

PASSWORD = "Passw0rd"
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
OPENSSL = ["openssl", "enc", "-aes-256-ctr", "-md", "md5", "-k", PASSWORD]


@dataclass(frozen=True)
class Bounds:
    max_unpacked: int = 1 << 40
    max_ratio: float = 1e9


def encrypted(plain: bytes, password: str = PASSWORD) -> bytes:
    return decryptor(password).update(plain)


def inspected(
    path: Path, passwords: tuple[str, ...] = (PASSWORD,), *, kind: str = "backup", limits: Bounds = Bounds()
) -> Inspection:
    seen = inspect(path, passwords, node="a0-1", kind=kind, limits=limits)
    assert (seen.contents is None) != (seen.error is None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("inspect")]
    return seen


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Inspection]:
    """Inspect an artifact of the given compressed bytes, whose digests must be right whatever is wrong with it."""

    def look(packed: bytes, **bounds: float) -> Inspection:
        (tmp_path / "artifact").write_bytes(encrypted(packed))
        seen = inspected(tmp_path / "artifact", limits=replace(Bounds(), **bounds))
        assert seen.digests == digests(tmp_path / "artifact")
        return seen

    return look


def opened(seen: Inspection) -> Contents:
    assert seen.error is None, seen.error
    assert seen.contents is not None
    return seen.contents


def refused(seen: Inspection, error: type[ContentsError], *words: str) -> None:
    assert type(seen.error) is error, seen
    assert (seen.error.node, seen.error.kind) == ("a0-1", "backup")
    for word in words:
        assert word in seen.error.reason, seen.error.reason


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> bytes:
    """Return a header in one block, as GNU tar writes it; base-256 where the size asks for it."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, linkname
    block = member.tobuf(tarfile.GNU_FORMAT)
    assert len(block) == BLOCK
    return block


def padded(text: bytes) -> bytes:
    return text + bytes(-len(text) % BLOCK)


def file(name: str, held: bytes) -> bytes:
    return header(name, len(held)) + padded(held)


def long(kind: bytes, text: bytes) -> bytes:
    return header("././@LongLink", len(text), kind) + padded(text)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


TAR = file("dump/users.bson", b"users" * 500) + file("dump/tenants.bson", b"t") + END


# ---------------------------------------------------------------------------------------------------------------------
# Whole artifacts


def folder(place: Path) -> Path:
    """Make a dump with the names and sizes that tar has to go out of its way for."""
    root = place / "dump"
    deep = root / "/".join(["d" * 120] * 3)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep" * 300)
    (root / "empty.bson").touch()
    (root / "block.bson").write_bytes(b"b" * BLOCK)
    (root / "users.bson").write_bytes(random.Random(1).randbytes(300_001))
    (root / "ünïcode €.json").write_text("{}")
    return root


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax", "posix"])
def test_what_gnu_tar_and_openssl_made_is_opened(form: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    if form in ("v7", "ustar"):  # their names end at 99 and 255 characters
        shutil.rmtree(root / ("d" * 120))
    make = ["tar", "-C", tmp_path, f"--format={form}", "-czf", tmp_path / "dump.tar.gz", "dump"]
    subprocess.run(make, check=True)
    subprocess.run(
        [*OPENSSL, "-nosalt", "-in", tmp_path / "dump.tar.gz", "-out", tmp_path / "artifact"],
        check=True,
    )
    contents = opened(inspected(tmp_path / "artifact"))
    with tarfile.open(tmp_path / "dump.tar.gz") as tar:
        members = [Member(quote(member.name), member.size) for member in tar]
    assert sorted(contents.largest, key=repr) == sorted(members, key=repr)
    assert contents.members == len(members)
    assert contents.unpacked_size == len(gzip.decompress((tmp_path / "dump.tar.gz").read_bytes()))
    assert contents.largest[0] == Member("dump/users.bson", 300_001)
    assert contents.odd == ()


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_sparse_members_are_passed_over(options: list[str], tmp_path: Path, look: Callable[..., Inspection]) -> None:
    # A hundred islands: more than fit into the header itself, so that blocks of the map follow.
    with (tmp_path / "holes.bson").open("wb") as holes:
        for island in range(100):
            holes.seek(island * 65_536)
            holes.write(b"island")
    (tmp_path / "after.bson").write_bytes(b"after")
    make = ["tar", "-C", tmp_path, "--sparse", *options, "-czf", "-", "holes.bson", "after.bson"]
    packed = subprocess.run(make, check=True, capture_output=True).stdout
    contents = opened(look(packed))
    assert contents.members == 2
    assert {member.name for member in contents.largest} == {"holes.bson", "after.bson"}
    assert contents.unpacked_size < 2_000_000


@pytest.mark.parametrize("kind", ["backup", "backup-sensitive", "user-export"])
def test_what_the_simulated_appliance_makes_is_opened(kind: str, tmp_path: Path) -> None:
    simulated.make(tmp_path / "artifact", kind=kind, seed="s", size=3_000_000, password=PASSWORD, stopped=lambda: False)
    contents = opened(inspected(tmp_path / "artifact", kind=kind))
    expected = "user-export.json" if kind == "user-export" else "users.bson"
    assert contents.largest[0].name.endswith(expected)
    assert contents.unpacked_size % BLOCK == 0


def test_the_largest_members_are_listed_largest_first_and_no_more_than_32(look: Callable[..., Inspection]) -> None:
    sizes = random.Random(2).sample(range(5000), 200)
    tar = b"".join(file(f"{size}.bson", bytes(size)) for size in sizes) + END
    contents = opened(look(gzip.compress(tar)))
    assert contents.members == 200
    assert contents.largest == tuple(Member(f"{size}.bson", size) for size in heapq.nlargest(32, sizes))


def test_equal_sizes_keep_the_order_of_the_tar(look: Callable[..., Inspection]) -> None:
    tar = b"".join(file(f"{n}.bson", b"x") for n in range(40)) + END
    assert [member.name for member in opened(look(gzip.compress(tar))).largest] == [f"{n}.bson" for n in range(32)]


def test_a_name_of_5000_bytes_is_read_and_cut_for_display(look: Callable[..., Inspection]) -> None:
    name = "dump/" + "n" * 4990 + ".bson"
    for tar in (
        long(tarfile.GNUTYPE_LONGNAME, name.encode() + b"\0") + file("short", b"x"),
        long(tarfile.XHDTYPE, record("path", name)) + file("short", b"x"),
    ):
        [member] = opened(look(gzip.compress(tar + END))).largest
        assert member.name.startswith("dump/nnn")
        assert member.name.endswith("nnn.bson")
        assert len(member.name) <= 200


def test_the_size_in_a_pax_header_goes_before_the_one_in_the_header(look: Callable[..., Inspection]) -> None:
    held = b"h" * 1234
    tar = long(tarfile.XHDTYPE, record("size", "1234")) + header("dump/users.bson", 0) + padded(held) + END
    assert opened(look(gzip.compress(tar))).largest == (Member("dump/users.bson", 1234),)


def test_a_name_comes_from_the_header_that_is_nearest_to_the_member(look: Callable[..., Inspection]) -> None:
    tar = (
        long(tarfile.XGLTYPE, record("path", "global") + record("comment", "c"))
        + long(tarfile.XHDTYPE, record("path", "first"))
        + file("own", b"333")
        + file("own", b"22")
        + long(tarfile.GNUTYPE_LONGNAME, b"long\0")
        + file("own", b"1")
        + END
    )
    assert [member.name for member in opened(look(gzip.compress(tar))).largest] == ["first", "global", "long"]


def test_one_block_of_zeros_ends_a_tar_and_zeros_may_follow(look: Callable[..., Inspection]) -> None:
    for end in (bytes(BLOCK), END, bytes(10_240), bytes(3 * CHUNK + 7)):
        contents = opened(look(gzip.compress(file("a", b"a") + end)))
        assert contents.unpacked_size == 2 * BLOCK + len(end)
        assert contents.odd == ()


def gzip_header(flags: int, rest: bytes = b"") -> bytes:
    begin = b"\x1f\x8b\x08" + bytes([flags]) + b"\1\2\3\4\0\3" + rest
    return begin + struct.pack("<H", zlib.crc32(begin) & 0xFFFF) if flags & 2 else begin


def test_every_field_of_a_gzip_header_is_read_however_it_is_cut_into_chunks(look: Callable[..., Inspection]) -> None:
    body = gzip.compress(TAR)[10:]
    for flags, rest in (
        (0, b""),
        (1, b""),
        (2, b""),
        (4, b"\5\0extra"),
        (8, b"name\0"),
        (16, b"comment\0"),
        (31, b"\0\0name\0comment\0"),
        # Past the first chunk, whose end falls into the name, the comment or the checksum.
        *((31, b"\5\0extra" + b"n" * length + b"\0" + b"c" * 50 + b"\0") for length in range(HEAD - 75, HEAD - 10, 9)),
        (24, b"n" * (LONGEST_HEADER - 10) + b"\0" + b"c" * (LONGEST_HEADER - 10) + b"\0"),
    ):
        assert opened(look(gzip_header(flags, rest) + body)).members == 2


def test_several_gzip_members_are_one_stream(look: Callable[..., Inspection]) -> None:
    rng = random.Random(3)
    tar = file("dump/users.bson", rng.randbytes(700_000)) + END
    cuts = [0, *sorted(rng.sample(range(len(tar)), 300)), len(tar)]
    packed = b"".join(gzip.compress(tar[a:b], rng.choice([0, 1, 9])) for a, b in itertools.pairwise(cuts))
    assert opened(look(packed)).unpacked_size == len(tar)
    assert opened(look(packed + bytes(5000))).unpacked_size == len(tar)
    assert opened(look(gzip.compress(b"") * 1000 + packed)).unpacked_size == len(tar)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
            st.integers(0, 3000),
            st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
            st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
        ),
        min_size=1,
        max_size=12,
    ),
    level=st.sampled_from([0, 1, 9]),
)
def test_it_sees_what_pythons_tarfile_sees(chosen, level, look: Callable[..., Inspection]) -> None:
    made = io.BytesIO()
    for name, size, kind, form in chosen:
        member = tarfile.TarInfo(name)
        member.size, member.type = size, kind
        member.linkname = name[::-1] if kind == tarfile.SYMTYPE else ""
        has_bytes = kind not in (tarfile.DIRTYPE, tarfile.SYMTYPE)
        made.write(member.tobuf(form, "utf-8", "surrogateescape") + padded(b"\xff" * size if has_bytes else b""))
    made.write(END)
    contents = opened(look(gzip.compress(made.getvalue(), level)))
    with tarfile.open(fileobj=io.BytesIO(made.getvalue())) as tar:
        seen = tar.getmembers()
    assert contents.members == len(seen) == len(chosen)
    assert contents.unpacked_size == len(made.getvalue())
    # Of a name that is all slashes, tarfile leaves nothing.
    expected = sorted((quote(m.name), m.size) for m in seen if m.name)
    assert sorted((m.name, m.size) for m in contents.largest if m.name.strip("/")) == [
        e for e in expected if e[0].strip("/")
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_broken_tar_that_passes_holds_what_pythons_tarfile_reads_in_it(
    seed: int, look: Callable[..., Inspection]
) -> None:
    """Headers changed behind a right checksum; tarfile ends silently where a header is broken, so it may see less."""
    rng = random.Random(seed)
    parts = [
        file("dump/users.bson", rng.randbytes(1500)),
        long(tarfile.GNUTYPE_LONGNAME, b"n" * 600 + b"\0") + file("short", b"held"),
        long(tarfile.XHDTYPE, record("path", "p" * 200) + record("size", "700")) + file("short", bytes(700)),
        header("dump", 0, tarfile.DIRTYPE),
        header("link", 0, tarfile.SYMTYPE, "target"),
    ]
    passed = 0
    for _ in range(250):
        tar = bytearray(b"".join(rng.sample(parts, len(parts))) + END)
        for _ in range(rng.choice([1, 1, 2, 5])):
            block = rng.randrange(len(tar) // BLOCK) * BLOCK
            spot = block + rng.choice([rng.randrange(BLOCK), 156, rng.randrange(124, 136), 482])
            tar[spot] = rng.choice([0, 0x30, 0x31, 0x37, 0x80, 0xFF, ord("S"), ord("x"), ord("L"), rng.randrange(256)])
            if rng.random() < 0.9:
                checked = tar[block : block + 148] + b" " * 8 + tar[block + 156 : block + BLOCK]
                tar[block + 148 : block + 156] = b"%06o\0 " % sum(checked)
        if rng.random() < 0.2:
            del tar[rng.randrange(len(tar)) :]
        seen = look(gzip.compress(bytes(tar), 1))
        if seen.contents is None:
            assert isinstance(seen.error, TarTruncatedError | UnexpectedFormatError)
            continue
        passed += 1
        with tarfile.open(fileobj=io.BytesIO(tar), format=tarfile.PAX_FORMAT) as read:
            assert seen.contents.members == len(read.getmembers())
    assert 20 < passed < 240


# ---------------------------------------------------------------------------------------------------------------------
# Which password


def test_the_password_that_fits_is_found_among_others(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(encrypted(gzip.compress(TAR), "third"))
    for passwords in (("first", "second", "third"), ("first", "", "third", "third")):
        assert opened(inspected(tmp_path / "artifact", passwords)).opened_by == 2


def test_of_passwords_that_look_right_the_one_that_unpacks_is_taken(tmp_path: Path) -> None:
    """Two that begin alike cannot be had by trying, so the wrong one is made from its own artifact's first bytes."""
    packed = gzip.compress(TAR)
    found = {}
    for number in range(200_000):
        first = decryptor(f"w{number}").update(bytes(2))
        if first in found:
            break
        found[first] = number
    one, other = f"w{found[first]}", f"w{number}"
    # The two agree on the magic; the rest is made to agree in a frame whose method and flags both make right.
    assert decryptor(one).update(b"\x1f\x8b") == decryptor(other).update(b"\x1f\x8b")
    artifact = encrypted(packed, one)
    (tmp_path / "artifact").write_bytes(artifact)
    assert opened(inspected(tmp_path / "artifact", (other, one))).opened_by == 1


@pytest.mark.parametrize("passwords", [("wrong",), ("wrong", "wronger"), ("passw0rd",), ("Passw0rd ",), ()])
def test_noise_is_a_wrong_password(passwords: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(encrypted(gzip.compress(TAR)))
    seen = inspected(tmp_path / "artifact", passwords)
    refused(seen, WrongPasswordError, "password")
    assert seen.digests == digests(tmp_path / "artifact")
    assert "wrong" not in str(seen.error).replace("a wrong", "")


def test_a_wrong_password_of_a_large_artifact_still_gives_its_digests(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(random.Random(4).randbytes(20 * CHUNK + 1))
    seen = inspected(tmp_path / "artifact")
    refused(seen, WrongPasswordError)
    assert seen.digests == digests(tmp_path / "artifact")


# ---------------------------------------------------------------------------------------------------------------------
# Something else


FORMATS = {
    "a gzip": gzip.compress(TAR),
    "a tar": TAR,
    "a zip": b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(100),
    "a zstd": b"\x28\xb5\x2f\xfd\x24\x05" + bytes(100),
    "an xz": lzma.compress(TAR),
    "a bzip2": bz2.compress(TAR),
    "an archive of mongodump": struct.pack("<I", 0x8199E26D) + bytes(100),
}


@pytest.mark.parametrize("what", FORMATS)
def test_a_file_that_is_not_encrypted_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(FORMATS[what])
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, f"itself is {what}")


def test_openssls_salted_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(TAR)
    subprocess.run(
        [*OPENSSL, "-in", tmp_path / "tar", "-out", tmp_path / "artifact"],
        check=True,
    )
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, "salt")


@pytest.mark.parametrize("what", [what for what in FORMATS if what != "a gzip"])
def test_what_the_password_makes_of_it_is_named(what: str, look: Callable[..., Inspection]) -> None:
    refused(look(FORMATS[what]), UnexpectedFormatError, f"makes {what} of it")


@pytest.mark.parametrize("what", [what for what in FORMATS if what != "a tar"])
def test_what_the_gzip_holds_instead_of_a_tar_is_named(what: str, look: Callable[..., Inspection]) -> None:
    refused(look(gzip.compress(FORMATS[what])), UnexpectedFormatError, f"unpacks to {what}")


@pytest.mark.parametrize("text", [b"x", b"not a tar" * 1000, b"\xff" * (3 * CHUNK), b"\0" * 511])
def test_a_whole_gzip_that_holds_no_tar_is_an_unexpected_format(text: bytes, look: Callable[..., Inspection]) -> None:
    refused(look(gzip.compress(text)), UnexpectedFormatError, "not to a tar")


@pytest.mark.parametrize("plain", [b"not a tar" * 100_000, file("a", b"a" * 1000) + b"no header here" * 100_000])
def test_a_damaged_gzip_is_told_before_what_it_does_to_the_tar(plain: bytes, look: Callable[..., Inspection]) -> None:
    packed = bytearray(gzip.compress(plain))
    packed[-6] ^= 1
    refused(look(bytes(packed)), GzipDamagedError, "checksum")


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "artifact").touch()
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, "empty")


@pytest.mark.parametrize("size", [1, 3, 17])
def test_a_file_too_short_for_anything_is_told(size: int, look: Callable[..., Inspection]) -> None:
    refused(look(gzip.compress(TAR)[:size]), UnexpectedFormatError, f"only {size} bytes")


# ---------------------------------------------------------------------------------------------------------------------
# Damaged gzip


def test_a_gzip_cut_anywhere_is_damaged(look: Callable[..., Inspection]) -> None:
    packed = gzip_header(31, b"\5\0extra" + b"name\0" + b"comment\0") + gzip.compress(TAR)[10:]
    for size in range(18, len(packed)):
        refused(look(packed[:size]), GzipDamagedError, f"cut off after {size:,} bytes")


@pytest.mark.parametrize("level", [0, 6])
def test_a_large_gzip_that_is_cut_is_damaged(level: int, look: Callable[..., Inspection]) -> None:
    packed = gzip.compress(file("dump/users.bson", random.Random(5).randbytes(6 * CHUNK)) + END, level)
    for size in (HEAD, HEAD + 1, CHUNK, HEAD + CHUNK, 4 * CHUNK + 3, len(packed) - 8, len(packed) - 1):
        refused(look(packed[:size]), GzipDamagedError, f"cut off after {size:,} bytes")


@pytest.mark.parametrize("spot", range(1, 9))
def test_checksum_and_length_are_proven(spot: int, look: Callable[..., Inspection]) -> None:
    packed = bytearray(gzip.compress(TAR))
    packed[-spot] ^= 0x10
    refused(look(bytes(packed)), GzipDamagedError, "checksum or length")


def test_a_stored_block_has_only_the_checksum_to_tell_a_flip(look: Callable[..., Inspection]) -> None:
    packed = bytearray(gzip.compress(file("a", bytes(2000)) + END, 0))
    packed[1500] ^= 1
    refused(look(bytes(packed)), GzipDamagedError, "checksum")


def test_a_wrong_header_checksum_is_damage(look: Callable[..., Inspection]) -> None:
    begin = bytearray(gzip_header(2))
    begin[-1] ^= 1
    refused(look(bytes(begin) + gzip.compress(TAR)[10:]), GzipDamagedError, "header")


def test_a_header_text_without_an_end_is_damage(look: Callable[..., Inspection]) -> None:
    refused(look(gzip_header(8, b"n" * (3 * LONGEST_HEADER))), GzipDamagedError, "header of more than")


@pytest.mark.parametrize(
    "after",
    [b"x", b"\0\0x", b"\x1f", b"\x1f\x8b\x08", bytes(600) + b"x", gzip_header(0x20), bytes(CHUNK) + b"\x1f\x8b"],
)
def test_bytes_after_the_stream_that_are_not_zeros_are_damage(after: bytes, look: Callable[..., Inspection]) -> None:
    refused(look(gzip.compress(TAR) + after), GzipDamagedError)


def test_a_damaged_second_gzip_member_is_damage(look: Callable[..., Inspection]) -> None:
    second = bytearray(gzip.compress(TAR[1000:]))
    second[len(second) // 2] ^= 0x40
    refused(look(gzip.compress(TAR[:1000]) + bytes(second)), GzipDamagedError)


# ---------------------------------------------------------------------------------------------------------------------
# Broken tar


def test_a_tar_cut_anywhere_is_truncated(look: Callable[..., Inspection]) -> None:
    tar = (
        long(tarfile.GNUTYPE_LONGNAME, b"dump/long\0")
        + file("short", b"held" * 100)
        + long(tarfile.XHDTYPE, record("path", "dump/pax"))
        + file("short", b"p" * 700)
    )
    for size in range(BLOCK, len(tar) + BLOCK, 37):
        refused(look(gzip.compress((tar + END)[:size])), TarTruncatedError, "cut")


def test_a_tar_without_the_mark_of_its_end_is_truncated(look: Callable[..., Inspection]) -> None:
    tar = file("a", b"a" * 700)
    refused(look(gzip.compress(tar)), TarTruncatedError, "without the mark of its end", f"{len(tar):,}")
    refused(look(gzip.compress(tar + bytes(BLOCK - 1))), TarTruncatedError)


def test_a_member_larger_than_8_gib_whose_bytes_are_missing_is_cut(look: Callable[..., Inspection]) -> None:
    refused(
        look(gzip.compress(header("dump/users.bson", 9 << 30) + bytes(5000))),
        TarTruncatedError,
        f"{(9 << 30) - 5000:,} bytes before the end of dump/users.bson",
    )


def test_a_broken_header_amid_the_tar_says_where(look: Callable[..., Inspection]) -> None:
    tar = bytearray(file("first", b"1") + file("second", b"2") + END)
    tar[2 * BLOCK + 3] ^= 1
    refused(look(gzip.compress(bytes(tar))), TarTruncatedError, "byte 1,024", "bad checksum")


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"X", b"g"])
def test_a_header_of_more_than_a_mebibyte_is_refused(kind: bytes, look: Callable[..., Inspection]) -> None:
    for size in (LONGEST_HEADER + 1, 9 << 30):
        tar = header("././@LongLink", size, kind) + bytes(3 * BLOCK)
        refused(look(gzip.compress(tar)), TarTruncatedError, f"a header of {size:,} bytes")


@pytest.mark.parametrize(
    "records",
    [
        b"no number",
        b"0 a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"999999999999 a=b\n",
        b"6 a=b",
        b"-6 a=b\n",
        b"2 \n",
        b"6  path",
        record("size", "-1"),
        record("size", "ten"),
        record("size", ""),
        record("size", "1" * 20),
        record("size", "1_0"),
        record("size", "\N{ARABIC-INDIC DIGIT ONE}"),
    ],
)
def test_a_pax_header_that_cannot_be_read_is_refused(records: bytes, look: Callable[..., Inspection]) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        refused(look(gzip.compress(long(kind, records) + TAR)), TarTruncatedError, "pax header", "byte 0")


def test_a_negative_size_is_refused(look: Callable[..., Inspection]) -> None:
    block = bytearray(header("a", 1))
    block[124:136] = b"\xff" * 11 + b"\x00"
    checked = block[:148] + b" " * 8 + block[156:]
    block[148:156] = b"%06o\0 " % sum(checked)
    refused(look(gzip.compress(file("before", b"") + block + END)), TarTruncatedError, "negative size", "byte 512")


@pytest.mark.parametrize(
    "ahead",
    [
        long(tarfile.GNUTYPE_LONGNAME, b"b\0"),
        long(tarfile.XHDTYPE, record("mtime", "1")),
        long(tarfile.XGLTYPE, record("mtime", "1")),
    ],
)
def test_a_header_that_announces_a_member_is_not_the_last_one(ahead: bytes, look: Callable[..., Inspection]) -> None:
    tar = file("a", b"a") + ahead + END
    refused(look(gzip.compress(tar)), TarTruncatedError, "one more member")


@pytest.mark.parametrize("tar", [b"", END, bytes(10_240), long(tarfile.XGLTYPE, record("comment", "c")) + END])
def test_a_tar_without_a_member_says_so(tar: bytes, look: Callable[..., Inspection]) -> None:
    refused(look(gzip.compress(tar)), TarTruncatedError, "no member" if tar else "empty")


# ---------------------------------------------------------------------------------------------------------------------
# Odd members


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (file("../../etc/passwd", b"x"), "../../etc/passwd has '..' in its name"),
        (file("dump/..", b"x"), "dump/.. has '..' in its name"),
        (file("/etc/passwd", b"x"), "/etc/passwd has an absolute name"),
        (long(b"L", b"/etc/long\0") + file("short", b"x"), "/etc/long has an absolute name"),
        (long(b"x", record("path", "a/../b")) + file("short", b"x"), "a/../b has '..' in its name"),
        (header("s", 0, tarfile.SYMTYPE, "/etc"), "s is a symbolic link to /etc"),
        (long(b"K", b"far\0") + header("h", 0, tarfile.LNKTYPE, "near"), "h is a hard link to far"),
        (header("null", 0, tarfile.CHRTYPE), "null is a device"),
        (header("disk", 0, tarfile.BLKTYPE), "disk is a device"),
        (header("queue", 0, tarfile.FIFOTYPE), "queue is a pipe"),
        (file("evil\x1b[31m\r\n\u202egnp.bson/../x", b"x"), "evil gnp.bson/../x has '..' in its name"),
    ],
)
def test_an_odd_member_is_reported_and_no_error(member: bytes, sentence: str, look: Callable[..., Inspection]) -> None:
    contents = opened(look(gzip.compress(file("dump/a..b", b"x") + member + END)))
    assert contents.odd == (sentence,)
    assert contents.members == 2


def test_duplicate_names_are_not_odd(look: Callable[..., Inspection]) -> None:
    contents = opened(look(gzip.compress(file("a", b"1") + file("a", b"2") + END)))
    assert (contents.members, contents.odd) == (2, ())


def test_bytes_after_the_end_of_the_tar_are_reported_once(look: Callable[..., Inspection]) -> None:
    for after in (b"x", bytes(2 * CHUNK) + b"x" + bytes(2 * CHUNK) + b"y", file("hidden", b"x") + END):
        contents = opened(look(gzip.compress(TAR + after)))
        assert contents.odd == ("bytes other than zeros follow the end of the tar",)
        assert contents.unpacked_size == len(TAR) + len(after)


def test_no_more_than_20_odd_members_are_reported(look: Callable[..., Inspection]) -> None:
    tar = b"".join(file(f"/{n}", b"") for n in range(1000)) + END
    contents = opened(look(gzip.compress(tar)))
    assert contents.odd == tuple(f"/{n} has an absolute name" for n in range(20))
    assert contents.members == 1000


def test_names_that_are_no_text_can_be_shown(look: Callable[..., Inspection]) -> None:
    tar = long(tarfile.GNUTYPE_LONGNAME, b"\xff\xfe/" + b"\xf0" * (LONGEST_HEADER - 10) + b"\0") + file("s", b"x")
    contents = opened(look(gzip.compress(tar + file("../\x07", b"") + END)))
    json.dumps([member.name for member in contents.largest]).encode()
    assert all(member.name.isprintable() and len(member.name) <= 200 for member in contents.largest)
    "".join(contents.odd).encode()


# ---------------------------------------------------------------------------------------------------------------------
# Bombs, memory, and being called off


def repeated(block: bytes, count: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a gzip of *before*, *count* times *block* and *after* without compressing the block again and again."""
    one = simulated._deflated(block)
    crc = zlib.crc32(before)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    length = len(before) + count * len(block) + len(after)
    packed = gzip_header(0) + simulated._deflated(before) + one * count + simulated._deflated(after, last=True)
    return packed + struct.pack("<II", zlib.crc32(after, crc), length & 0xFFFFFFFF)


MIB = 1 << 20


def test_a_bomb_by_ratio_ends_the_unpacking_and_not_the_hashing(look: Callable[..., Inspection]) -> None:
    bomb = repeated(bytes(MIB), 200, before=header("dump/users.bson", 200 * MIB), after=END)
    assert len(bomb) < MIB
    refused(look(bomb, max_ratio=100), TooLargeUnpackedError, "100 times", "max_ratio")
    assert opened(look(bomb, max_ratio=2000)).members == 1


def test_a_bomb_by_total_ends_the_unpacking_and_not_the_hashing(look: Callable[..., Inspection]) -> None:
    bomb = repeated(bytes(MIB), 50, before=header("dump/users.bson", 50 * MIB), after=END)
    refused(look(bomb, max_unpacked=50 * MIB), TooLargeUnpackedError, f"{50 * MIB:,} bytes", "max_unpacked")
    assert opened(look(bomb, max_unpacked=50 * MIB + BLOCK + len(END))).members == 1


def test_the_ratio_of_a_small_tar_is_not_judged(look: Callable[..., Inspection]) -> None:
    most = 64 * MIB - BLOCK - len(END)
    assert opened(look(gzip.compress(file("zeros", bytes(most)) + END, 1), max_ratio=2)).members == 1
    refused(look(gzip.compress(file("zeros", bytes(most + BLOCK)) + END, 1), max_ratio=2), TooLargeUnpackedError)


def test_a_beginning_that_compresses_well_is_no_bomb(look: Callable[..., Inspection]) -> None:
    """What counts is the whole: a database's empty part may come first."""
    noise = random.Random(6).randbytes(3 * MIB)
    tar = header("a", 80 * MIB)
    packed = repeated(bytes(MIB), 80, before=tar, after=file("b", noise) + END)
    assert opened(look(packed, max_ratio=30)).members == 2


CHILD = """
import sys
from pathlib import Path
from a0backup.contents import inspect
from tests.a0backup.test_contents import Bounds

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

inspect(Path(sys.argv[1]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
before = peak()
seen = inspect(Path(sys.argv[2]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
assert seen.error is None, seen.error
print(peak() - before)
"""


@pytest.mark.parametrize("what", ["hardly compressed", "compressed a thousand times", "a million members"])
def test_memory_is_constant(what: str, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(encrypted(gzip.compress(TAR)))
    large = tmp_path / "large"
    if what == "hardly compressed":
        simulated.make(large, kind="backup", seed="s", size=300_000_000, password=PASSWORD, stopped=lambda: False)
    elif what == "compressed a thousand times":
        large.write_bytes(encrypted(repeated(bytes(MIB), 2000, before=header("a", 2000 * MIB), after=END)))
    else:
        large.write_bytes(encrypted(repeated(file("../" + "n" * 80, b"") * 1000, 100, after=END)))
    grown = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "small", large],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert int(grown) < 30_000  # KiB


def busy() -> bool:
    return any(thread.name.startswith("inspect") for thread in threading.enumerate())


async def test_a_call_off_ends_it_amid_its_work_and_leaves_no_thread(tmp_path: Path) -> None:
    """Four million members keep the walk busy for most of a minute, and the reader waiting for it."""
    members = repeated(b"".join(file(f"../{n}", b"") for n in range(2048)), 2000, after=END)
    (tmp_path / "artifact").write_bytes(encrypted(members))
    work = asyncio.ensure_future(
        in_thread(inspect, tmp_path / "artifact", [PASSWORD], node="n", kind="backup", limits=Bounds())
    )
    while not busy():
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    assert not work.done()
    work.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await work
    assert not busy()


async def test_a_call_off_while_the_file_comes_slowly_ends_at_its_next_chunk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    packed = encrypted(gzip.compress(file("a", random.Random(7).randbytes(2 * HEAD)) + END))
    held = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        work = asyncio.ensure_future(
            in_thread(inspect, tmp_path / "pipe", [PASSWORD], node="n", kind="backup", limits=Bounds())
        )
        await asyncio.to_thread(os.write, held, packed[: HEAD + 10])
        while not busy():
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.sleep(0)
        os.write(held, b"x")
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await work
    finally:
        os.close(held)
    assert not busy()


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspected(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        inspected(tmp_path)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_disk_that_fails_amid_the_file_ends_it_and_leaves_no_thread(tmp_path: Path) -> None:
    simulated.make(
        tmp_path / "artifact", kind="backup", seed="s", size=5_000_000, password=PASSWORD, stopped=lambda: False
    )
    program = (
        "import sys, threading\nfrom pathlib import Path\nfrom a0backup.contents import inspect\n"
        "from tests.a0backup.test_contents import Bounds\n"
        "try:\n    inspect(Path(sys.argv[1]), ['Passw0rd'], node='n', kind='backup', limits=Bounds())\n"
        "except OSError as error:\n    print(error.strerror, threading.active_count())\n"
    )
    strace = ["strace", "-f", "-o", "/dev/null", "-P", tmp_path / "artifact"]
    strace += ["-e", "trace=read", "-e", "inject=read:error=EIO:when=5"]
    ended = subprocess.run(
        [*strace, sys.executable, "-c", program, tmp_path / "artifact"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert ended.stdout == "Input/output error 1\n"


# ---------------------------------------------------------------------------------------------------------------------
# Ten thousand mutated artifacts


def originals() -> Iterator[tuple[bytes, bytes]]:
    """Yield (tar, its gzip): compressed, stored, in several members, with all that a gzip header may have."""
    rng = random.Random(8)
    documents = b"".join(b'{"email":"user%d@example.com","id":"%s"}' % (n, rng.randbytes(6)) for n in range(60))
    tar = file("dump/auth0/users.bson", documents) + file("dump/auth0/keys.bson", rng.randbytes(600)) + END
    yield tar, gzip.compress(tar)
    yield tar, gzip.compress(tar, 0)
    yield tar, b"".join(gzip.compress(tar[at : at + 900]) for at in range(0, len(tar), 900))
    yield tar, gzip_header(31, b"\5\0extra" + b"dump.tar\0" + b"made by hand\0") + gzip.compress(tar)[10:]
    yield tar, gzip.compress(tar) + bytes(700)


def mutated(artifact: bytes, rng: random.Random) -> bytes:
    """Return *artifact* with something done to it; half of the time near its begin or end, where the frames are."""
    made = bytearray(artifact)

    def spot() -> int:
        near = rng.choice([rng.randrange(min(24, len(made))), max(0, len(made) - 1 - rng.randrange(24))])
        return rng.choice([near, rng.randrange(len(made))])

    match rng.choice(["flip", "flip", "bytes", "cut", "begin", "insert", "delete", "swap", "zeros", "twice"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                made[spot()] ^= 1 << rng.randrange(8)
        case "bytes":
            made[spot()] = rng.randrange(256)
        case "cut":
            del made[spot() :]
        case "begin":
            del made[: spot()]
        case "insert":
            at = spot()
            made[at:at] = rng.choice([rng.randbytes(rng.randint(1, 64)), bytes(rng.randint(1, 64))])
        case "delete":
            at = spot()
            del made[at : at + rng.randint(1, 64)]
        case "swap":
            size = rng.choice([16, 64, 256])
            one, other = sorted(rng.sample(range(0, len(made) - size, size), 2))
            made[one : one + size], made[other : other + size] = made[other : other + size], made[one : one + size]
        case "zeros":
            at = spot()
            made[at : at + 512] = bytes(len(made[at : at + 512]))
        case "twice":
            at = spot()
            made[at:at] = made[at : at + rng.choice([1, 16, 512])]
    return bytes(made)


@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_mutated_artifacts_never_pass_as_good(part: int, tmp_path: Path) -> None:
    """1,000 in each part. One whose contents pass holds the original's bytes; its digests are others all the same."""
    rng = random.Random(f"mutated {part}")
    path = tmp_path / "artifact"
    sound = [(tar, encrypted(packed)) for tar, packed in originals()]
    tried = passed = 0
    while tried < 1000:
        tar, artifact = rng.choice(sound)
        password = rng.choice([PASSWORD] * 9 + [rng.randbytes(4).hex()])
        made = mutated(artifact, rng) if password == PASSWORD else artifact
        if made == artifact and password == PASSWORD:
            continue
        tried += 1
        path.write_bytes(made)
        seen = inspect(path, [password], node="a0-1", kind="backup", limits=Bounds())
        assert (seen.digests.size, seen.digests.md5) == (len(made), hashlib.md5(made).hexdigest())
        if seen.error is None:
            assert password == PASSWORD
            assert seen.digests.sha256 != hashlib.sha256(artifact).hexdigest()
            assert gzip.decompress(encrypted(made)) == tar
            passed += 1
    assert 0 < passed < 100
