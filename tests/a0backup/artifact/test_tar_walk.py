"""The walk through whole and through broken tars."""

import gzip
import heapq
import io
import json
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from a0backup.a0cli.text import quote
from a0backup.artifact.byte_stream import CHUNK, LONGEST_HEADER
from a0backup.artifact.tar_walk import Member
from a0backup.errors import (
    TarTruncatedError,
    UnexpectedFormatError,
)
from tests.support.artifacts import (
    BLOCK,
    END,
    TAR,
    Look,
    file,
    header,
    long,
    opened,
    padded,
    record,
    refused,
)


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_sparse_members_are_walked_correctly(options: list[str], tmp_path: Path, look: Look) -> None:
    # A hundred islands do not fit into the header itself: blocks of the sparse map follow.
    with (tmp_path / "holes.bin").open("wb") as holes:
        for island in range(100):
            holes.seek(island * 65_536)
            holes.write(b"island")
    (tmp_path / "after.bin").write_bytes(b"after")
    make = ["tar", "-C", tmp_path, "--sparse", *options, "-czf", "-", "holes.bin", "after.bin"]
    packed = subprocess.run(make, check=True, capture_output=True).stdout
    contents = opened(look(packed))
    assert contents.members == 2
    assert {member.name for member in contents.largest} == {"holes.bin", "after.bin"}
    assert contents.unpacked_size < 2_000_000


def test_at_most_32_of_the_largest_members_are_listed_largest_first(look: Look) -> None:
    sizes = random.Random(2).sample(range(5000), 200)
    tar = b"".join(file(f"{size}.bin", bytes(size)) for size in sizes) + END
    contents = opened(look(gzip.compress(tar)))
    assert contents.members == 200
    assert contents.largest == tuple(Member(f"{size}.bin", size) for size in heapq.nlargest(32, sizes))


def test_equal_sizes_keep_the_order_of_the_tar(look: Look) -> None:
    tar = b"".join(file(f"{n}.bin", b"x") for n in range(40)) + END
    assert [member.name for member in opened(look(gzip.compress(tar))).largest] == [f"{n}.bin" for n in range(32)]


def test_a_name_of_5000_bytes_is_read_and_shortened_for_display(look: Look) -> None:
    name = "dump/" + "n" * 4990 + ".bin"
    for tar in (
        long(tarfile.GNUTYPE_LONGNAME, name.encode() + b"\0") + file("short", b"x"),
        long(tarfile.XHDTYPE, record("path", name)) + file("short", b"x"),
    ):
        [member] = opened(look(gzip.compress(tar + END))).largest
        assert member.name.startswith("dump/nnn")
        assert member.name.endswith("nnn.bin")
        assert len(member.name) <= 200


def test_the_size_in_a_pax_header_overrides_the_one_in_the_tar_header(look: Look) -> None:
    held = b"h" * 1234
    tar = long(tarfile.XHDTYPE, record("size", "1234")) + header("dump/users.bin", 0) + padded(held) + END
    assert opened(look(gzip.compress(tar))).largest == (Member("dump/users.bin", 1234),)


def test_a_name_comes_from_the_header_nearest_to_the_member(look: Look) -> None:
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


def test_the_first_of_two_headers_for_one_member_counts_as_in_pythons_tarfile(look: Look) -> None:
    one, other = (long(tarfile.XHDTYPE, record("path", name) + record("size", size)) for name, size in ("a1", "b2"))
    tar = one + other + header("own", 0) + padded(b"x") + END
    with tarfile.open(fileobj=io.BytesIO(tar)) as read:
        expected = [Member(member.name, member.size) for member in read]
    assert list(opened(look(gzip.compress(tar))).largest) == expected == [Member("a", 1)]


@pytest.mark.parametrize(
    "member",
    [
        header("d/", 5, tarfile.AREGTYPE),
        long(tarfile.GNUTYPE_LONGNAME, b"n" * 99 + b"/f\0") + header("n" * 99 + "/", 5, tarfile.AREGTYPE),
        long(tarfile.XHDTYPE, record("path", "n" * 99 + "/f")) + header("n" * 99 + "/", 5, tarfile.AREGTYPE),
    ],
)
def test_the_bytes_of_a_v7_file_are_skipped_as_in_gnu_tar_even_if_its_name_ends_with_a_slash(
    member: bytes, look: Look, tmp_path: Path
) -> None:
    (tmp_path / "tar").write_bytes(member + padded(b"bytes") + TAR)
    listed = subprocess.run(["tar", "-tf", tmp_path / "tar"], check=True, capture_output=True, text=True).stdout
    contents = opened(look(gzip.compress((tmp_path / "tar").read_bytes())))
    assert contents.members == len(listed.splitlines()) == 3
    assert contents.unpacked_size == (tmp_path / "tar").stat().st_size


def test_a_directory_has_no_bytes_whatever_its_size_says(look: Look) -> None:
    contents = opened(look(gzip.compress(header("d/", 5, tarfile.DIRTYPE) + TAR)))
    assert contents.members == 3


def test_one_block_of_zeros_ends_a_tar_and_zeros_may_follow(look: Look) -> None:
    for end in (bytes(BLOCK), END, bytes(10_240), bytes(3 * CHUNK + 7)):
        contents = opened(look(gzip.compress(file("a", b"a") + end)))
        assert contents.unpacked_size == 2 * BLOCK + len(end)
        assert contents.odd == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300),
            st.integers(0, 3000),
            st.sampled_from([tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
            st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
        ),
        min_size=1,
        max_size=12,
    ),
    level=st.sampled_from([0, 1, 9]),
)
@example(chosen=[("0/", 0, tarfile.REGTYPE, tarfile.GNU_FORMAT)], level=0)
def test_the_walk_sees_what_pythons_tarfile_sees(chosen, level, look: Look) -> None:
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
    # tarfile strips a name of slashes only to nothing.
    # A directory or a link has no bytes, whatever its size says.
    expected = sorted((quote(m.name.rstrip("/")), m.size if m.isreg() else 0) for m in seen if m.name)
    assert sorted((m.name, m.size) for m in contents.largest if m.name.strip("/")) == [
        e for e in expected if e[0].strip("/")
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_broken_tar_that_passes_has_as_many_members_as_pythons_tarfile_reads(seed: int, look: Look) -> None:
    """Changed headers, mostly with a valid checksum. tarfile ends silently at a broken one, so it may see less."""
    rng = random.Random(seed)
    parts = [
        file("dump/users.bin", rng.randbytes(1500)),
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
# Broken


def test_a_tar_cut_anywhere_is_truncated(look: Look) -> None:
    tar = (
        long(tarfile.GNUTYPE_LONGNAME, b"dump/long\0")
        + file("short", b"held" * 100)
        + long(tarfile.XHDTYPE, record("path", "dump/pax"))
        + file("short", b"p" * 700)
    )
    for size in range(BLOCK, len(tar) + BLOCK, 37):
        refused(look(gzip.compress((tar + END)[:size])), TarTruncatedError, "cut")


def test_a_tar_without_an_end_marker_is_truncated(look: Look) -> None:
    tar = file("a", b"a" * 700)
    refused(look(gzip.compress(tar)), TarTruncatedError, "without the mark of its end", f"{len(tar):,}")
    refused(look(gzip.compress(tar + bytes(BLOCK - 1))), TarTruncatedError)


def test_a_member_of_more_than_8_gib_with_missing_bytes_is_truncated(look: Look) -> None:
    refused(
        look(gzip.compress(header("dump/users.bin", 9 << 30) + bytes(5000))),
        TarTruncatedError,
        f"{(9 << 30) - 5000:,} bytes before the end of dump/users.bin",
    )


def test_a_broken_header_within_the_tar_is_reported_with_its_position(look: Look) -> None:
    tar = bytearray(file("first", b"1") + file("second", b"2") + END)
    tar[2 * BLOCK + 3] ^= 1
    refused(look(gzip.compress(bytes(tar))), TarTruncatedError, "byte 1,024", "bad checksum")


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"X", b"g"])
def test_a_header_larger_than_a_mebibyte_is_refused(kind: bytes, look: Look) -> None:
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
def test_a_pax_header_that_cannot_be_read_is_refused(records: bytes, look: Look) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        refused(look(gzip.compress(long(kind, records) + TAR)), TarTruncatedError, "pax header", "byte 0")


def test_a_negative_size_is_refused(look: Look) -> None:
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
def test_a_tar_that_ends_after_a_header_announcing_a_member_is_truncated(ahead: bytes, look: Look) -> None:
    tar = file("a", b"a") + ahead + END
    refused(look(gzip.compress(tar)), TarTruncatedError, "one more member")


@pytest.mark.parametrize("tar", [b"", END, bytes(10_240), long(tarfile.XGLTYPE, record("comment", "c")) + END])
def test_a_tar_without_a_member_is_reported(tar: bytes, look: Look) -> None:
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
        (file("evil\x1b[31m\r\n\u202egnp.bin/../x", b"x"), "evil gnp.bin/../x has '..' in its name"),
    ],
)
def test_an_odd_member_is_reported_but_is_not_an_error(member: bytes, sentence: str, look: Look) -> None:
    contents = opened(look(gzip.compress(file("dump/a..b", b"x") + member + END)))
    assert contents.odd == (sentence,)
    assert contents.members == 2


def test_duplicate_names_are_not_odd(look: Look) -> None:
    contents = opened(look(gzip.compress(file("a", b"1") + file("a", b"2") + END)))
    assert (contents.members, contents.odd) == (2, ())


def test_bytes_after_the_end_of_the_tar_are_reported_once(look: Look) -> None:
    for after in (b"x", bytes(2 * CHUNK) + b"x" + bytes(2 * CHUNK) + b"y", file("hidden", b"x") + END):
        contents = opened(look(gzip.compress(TAR + after)))
        assert contents.odd == ("bytes other than zeros follow the end of the tar",)
        assert contents.unpacked_size == len(TAR) + len(after)


def test_no_more_than_20_odd_members_are_reported(look: Look) -> None:
    tar = b"".join(file(f"/{n}", b"") for n in range(1000)) + END
    contents = opened(look(gzip.compress(tar)))
    assert contents.odd == tuple(f"/{n} has an absolute name" for n in range(20))
    assert contents.members == 1000


def test_names_that_are_not_text_can_be_shown(look: Look) -> None:
    tar = long(tarfile.GNUTYPE_LONGNAME, b"\xff\xfe/" + b"\xf0" * (LONGEST_HEADER - 10) + b"\0") + file("s", b"x")
    contents = opened(look(gzip.compress(tar + file("../\x07", b"") + END)))
    json.dumps([member.name for member in contents.largest]).encode()
    assert all(member.name.isprintable() and len(member.name) <= 200 for member in contents.largest)
    "".join(contents.odd).encode()
