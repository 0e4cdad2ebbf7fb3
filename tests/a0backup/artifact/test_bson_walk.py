"""The walk over documents by their lengths: however the bytes come in, and whatever they are."""

import random
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from a0backup.artifact.bson_walk import LONGEST, walk_documents
from a0backup.artifact.byte_stream import Fault, Work
from a0backup.errors import DumpDamagedError, TooManyPartsError
from simulator.artifact import bson

ENOUGH = 1 << 30


def document(size: int, fill: bytes = b"\1") -> bytes:
    return struct.pack("<i", size) + fill * (size - 5) + b"\0"


def walked(pieces: Sequence[bytes]) -> tuple[int, int] | str:
    """Return the number of documents and bytes, or the reason why they cannot be walked."""
    try:
        return walk_documents(pieces, Work(ENOUGH))
    except Fault as fault:
        return fault.reason if fault.kind_of_error is DumpDamagedError else repr(fault)


def model(plain: bytes) -> bool:
    """Return whether each document in *plain* ends where it says, and in a zero: plainly, one after another."""
    while plain:
        length = struct.unpack("<i", plain[:4])[0] if len(plain) >= 4 else 0
        if not 5 <= length <= min(LONGEST, len(plain)) or plain[length - 1]:
            return False
        plain = plain[length:]
    return True


def split(plain: bytes, cuts: Sequence[int]) -> list[bytes]:
    ends = sorted(cut % (len(plain) + 1) for cut in cuts)
    return [plain[one:other] for one, other in zip([0, *ends], [*ends, len(plain)], strict=True)]


SIZES = st.lists(st.integers(5, 60), max_size=20)
CUTS = st.lists(st.integers(0, 2000), max_size=30)
MEMBER = b"".join(bson({"_id": bytes(12), "email": "a@example.com", "logins": number}) for number in range(300))


def test_whole_documents_are_counted() -> None:
    assert walked([MEMBER]) == (300, len(MEMBER))
    assert walked([]) == (0, 0)
    assert walked([b"", b""]) == (0, 0)
    assert walked([document(5)]) == (1, 5)


@given(sizes=SIZES, cuts=CUTS)
def test_any_split_into_pieces_gives_the_same_numbers(sizes: list[int], cuts: list[int]) -> None:
    plain = b"".join(map(document, sizes))
    assert walked(split(plain, cuts)) == (len(sizes), len(plain))


@given(plain=st.binary(max_size=80), cuts=CUTS)
@example(plain=document(9)[:-1] + b"\1", cuts=[])
@example(plain=document(9)[:-1] + b"\1" + document(9), cuts=[9])
@example(plain=document(9) + b"\5\0\0", cuts=[9, 10, 11])
@example(plain=b"\4\0\0\0\0", cuts=[1, 2, 3, 4])
@example(plain=struct.pack("<i", LONGEST + 1), cuts=[2])
@example(plain=struct.pack("<i", -5) + b"\0", cuts=[])
def test_any_split_of_any_bytes_gives_the_same_answer_and_it_is_right(plain: bytes, cuts: list[int]) -> None:
    whole = walked([plain])
    assert walked(split(plain, cuts)) == whole
    assert walked([plain[at : at + 1] for at in range(len(plain))]) == whole
    assert isinstance(whole, tuple) == model(plain)


@given(
    sizes=st.lists(st.integers(5, 60), min_size=1, max_size=20),
    at=st.integers(0, 2000),
    put=st.integers(0, 255),
    cuts=CUTS,
)
def test_a_changed_byte_is_found_unless_the_lengths_still_fit(
    sizes: list[int], at: int, put: int, cuts: list[int]
) -> None:
    """In a length or at an end, a change is found; within a document, only its lengths are read."""
    plain = bytearray(b"".join(map(document, sizes)))
    at %= len(plain)
    begins = [sum(sizes[:number]) for number in range(len(sizes))]
    changed, plain[at] = plain[at] != put, put
    found = isinstance(walked(split(bytes(plain), cuts)), str)
    assert found == (not model(bytes(plain)))
    within = not any(begin <= at < begin + 4 for begin in begins) and at + 1 not in (*begins, len(plain))
    # These documents hold no zeros, so that no wrong length ends at a document's end by chance, but at another's end.
    if changed and not within and len(sizes) == 1:
        assert found
    if within:
        assert not found


@given(sizes=st.lists(st.integers(5, 60), min_size=1, max_size=20), at=st.integers(0, 2000), cuts=CUTS)
def test_a_file_that_is_cut_within_a_document_is_found(sizes: list[int], at: int, cuts: list[int]) -> None:
    plain = b"".join(map(document, sizes))
    ends = {sum(sizes[:number]) for number in range(len(sizes) + 1)}
    cut = plain[: at % len(plain)]
    assert isinstance(walked(split(cut, cuts)), str) == (len(cut) not in ends)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (document(9) * 3 + b"\4\0\0\0\0", "the document at byte 27 has a length of 4, which none can have"),
        (document(9) + struct.pack("<i", -1), "the document at byte 9 has a length of -1, which none can have"),
        (document(9) + struct.pack("<i", LONGEST + 1), "at byte 9 has a length of 16,793,601, which none can have"),
        (document(9) + document(9)[:-1], "it ends at byte 17, where its last document should end at byte 18"),
        (document(9) + b"\x09\0\0", "it ends at byte 12, within the length of a document"),
        (document(9)[:-1] + b"x" + document(9), "the document that ends at byte 9 does not end in a zero"),
        (document(9) + document(9)[:-1] + b"x", "the document that ends at byte 18 does not end in a zero"),
    ],
)
def test_the_reason_names_the_byte(plain: bytes, reason: str) -> None:
    found = walked([plain])
    assert isinstance(found, str)
    assert reason in found


def test_documents_up_to_the_maximum_are_whole_in_pieces_of_any_size() -> None:
    plain = document(LONGEST) + document(7) + document(LONGEST)
    assert walked([plain]) == (3, len(plain))
    pieces = random.Random(3)
    cuts = sorted(pieces.randrange(len(plain)) for _ in range(100))
    assert walked(split(plain, cuts)) == (3, len(plain))
    too_long = document(7) + document(LONGEST + 1)
    assert walked([too_long]) == walked(split(too_long, [7 + LONGEST])) != (2, len(too_long))


def test_a_file_of_nothing_but_empty_documents_is_not_read_on() -> None:
    with pytest.raises(Fault) as found:
        walk_documents((document(5) * 100_000 for _ in range(100_000)), Work(0))
    assert found.value.kind_of_error is TooManyPartsError
