"""A whole gzip stream is unpacked, and a damaged one is detected."""

import gzip
import itertools
import random

import pytest

from a0backup.artifact.byte_stream import CHUNK, LONGEST_HEADER
from a0backup.artifact.inspection import HEAD
from a0backup.errors import (
    GzipDamagedError,
    WrongPasswordError,
)
from tests.support.artifacts import (
    END,
    TAR,
    Look,
    file,
    gzip_header,
    opened,
    refused,
)


def test_every_field_of_a_gzip_header_is_read_however_it_is_cut_into_chunks(look: Look) -> None:
    body = gzip.compress(TAR)[10:]
    for flags, rest in (
        (0, b""),
        (1, b""),
        (2, b""),
        (4, b"\5\0extra"),
        (8, b"name\0"),
        (16, b"comment\0"),
        (31, b"\0\0name\0comment\0"),
        # Longer than the first chunk, which ends within the name, the comment or the checksum.
        *((31, b"\5\0extra" + b"n" * length + b"\0" + b"c" * 50 + b"\0") for length in range(HEAD - 75, HEAD - 10, 9)),
        (24, b"n" * (LONGEST_HEADER - 10) + b"\0" + b"c" * (LONGEST_HEADER - 10) + b"\0"),
    ):
        assert opened(look(gzip_header(flags, rest) + body)).members == 2


def test_several_gzip_members_are_one_stream(look: Look) -> None:
    rng = random.Random(3)
    tar = file("dump/users.bin", rng.randbytes(700_000)) + END
    cuts = [0, *sorted(rng.sample(range(len(tar)), 300)), len(tar)]
    packed = b"".join(gzip.compress(tar[a:b], rng.choice([0, 1, 9])) for a, b in itertools.pairwise(cuts))
    assert opened(look(packed)).unpacked_size == len(tar)
    assert opened(look(packed + bytes(5000))).unpacked_size == len(tar)
    assert opened(look(gzip.compress(b"") * 1000 + packed)).unpacked_size == len(tar)


# ---------------------------------------------------------------------------------------------------------------------
# Damaged


def test_a_gzip_cut_anywhere_is_damaged(look: Look) -> None:
    packed = gzip_header(31, b"\5\0extra" + b"name\0" + b"comment\0") + gzip.compress(TAR)[10:]
    for size in range(18, len(packed)):
        refused(look(packed[:size]), GzipDamagedError, f"cut off after {size:,} bytes")


@pytest.mark.parametrize("level", [0, 6])
def test_a_truncated_large_gzip_is_damaged(level: int, look: Look) -> None:
    packed = gzip.compress(file("dump/users.bin", random.Random(5).randbytes(6 * CHUNK)) + END, level)
    for size in (HEAD, HEAD + 1, CHUNK, HEAD + CHUNK, 4 * CHUNK + 3, len(packed) - 8, len(packed) - 1):
        refused(look(packed[:size]), GzipDamagedError, f"cut off after {size:,} bytes")


@pytest.mark.parametrize("spot", range(1, 9))
def test_checksum_and_length_are_verified(spot: int, look: Look) -> None:
    packed = bytearray(gzip.compress(TAR))
    packed[-spot] ^= 0x10
    refused(look(bytes(packed)), GzipDamagedError, "checksum or length")


def test_a_flipped_bit_in_a_stored_block_is_detected_by_the_checksum(look: Look) -> None:
    packed = bytearray(gzip.compress(file("a", bytes(2000)) + END, 0))
    packed[1500] ^= 1
    refused(look(bytes(packed)), GzipDamagedError, "checksum")


@pytest.mark.parametrize("before", [b"", gzip.compress(TAR)])
def test_a_compressed_block_of_unknown_type_is_damage(before: bytes, look: Look) -> None:
    """Also after a whole tar, where only the stream itself shows the damage."""
    packed = before + gzip_header(0) + b"\xff" * 100
    refused(look(packed), GzipDamagedError, "is broken at byte")


def test_a_wrong_header_checksum_is_damage(look: Look) -> None:
    begin = bytearray(gzip_header(2))
    begin[-1] ^= 1
    refused(look(bytes(begin) + gzip.compress(TAR)[10:]), GzipDamagedError, "header")


def test_an_unterminated_header_text_is_damage(look: Look) -> None:
    refused(look(gzip_header(8, b"n" * (3 * LONGEST_HEADER))), GzipDamagedError, "header of more than")


@pytest.mark.parametrize(
    "after",
    [b"x", b"\0\0x", b"\x1f", b"\x1f\x8b\x08", bytes(600) + b"x", gzip_header(0x20), bytes(CHUNK) + b"\x1f\x8b"],
)
def test_nonzero_bytes_after_the_stream_are_damage(after: bytes, look: Look) -> None:
    refused(look(gzip.compress(TAR) + after), GzipDamagedError)


@pytest.mark.parametrize("after", [b"\n", b"\r\n", bytes(600) + b"\n", b" " * 3 * CHUNK])
def test_blanks_after_the_stream_are_noted_and_are_no_damage(after: bytes, look: Look) -> None:
    seen = look(gzip.compress(TAR) + after)
    assert seen.contents is not None, seen.error
    [sentence] = seen.contents.odd
    assert sentence.startswith("line breaks or blanks follow the gzip, from byte ")


@pytest.mark.parametrize("after", [b"\nx", b" " * 3 * CHUNK + b"x"])
def test_something_else_after_blanks_is_damage(after: bytes, look: Look) -> None:
    refused(look(gzip.compress(TAR) + after), GzipDamagedError)


def test_a_damaged_second_gzip_member_is_damage(look: Look) -> None:
    second = bytearray(gzip.compress(TAR[1000:]))
    second[len(second) // 2] ^= 0x40
    refused(look(gzip.compress(TAR[:1000]) + bytes(second)), GzipDamagedError)


def test_a_header_with_flags_reserved_by_rfc_1952_is_not_a_gzip(look: Look) -> None:
    for flag in (0x20, 0x40, 0x80):
        second = gzip_header(flag) + gzip.compress(TAR[1000:])[10:]
        refused(look(gzip.compress(TAR[:1000]) + second), GzipDamagedError, "no gzip")
        refused(look(gzip_header(flag) + gzip.compress(TAR)[10:]), WrongPasswordError)
