"""Walk the documents of a BSON file by their lengths (bsonspec.org), without keeping or decoding them.

A document is its length in four bytes, these included, then its elements, then a zero byte. Most are small, so
what is done for each sets the pace: one call reads the last byte of a document and the length of the next.
"""

import struct
from collections.abc import Iterable, Iterator

from a0backup.artifact.byte_stream import Fault, Work
from a0backup.errors import DumpDamagedError

SHORTEST = 5
# What users store is limited to 16 MiB; mongodump allows 16 KiB more, for entries of the oplog.
LONGEST = (16 << 20) + (16 << 10)
_LAST_AND_LENGTH = struct.Struct("<Bi")  # the last byte of one document, and the length of the next
_WINDOW = 1 << 20  # less than LONGEST: so no document of more bytes ends within the window it begins in


def walk_documents(pieces: Iterable[bytes], work: Work) -> tuple[int, int]:
    """Return the number of documents in *pieces*, and their bytes. Raise Fault if one does not end where it says."""
    documents, begin = 0, 0  # *begin*: where the window begins
    last, held = -1, b"\0"  # where the last byte of a document is; it and what follows it, while fewer than 5 bytes
    for window in _windows(pieces):
        if held:
            held += window[: _LAST_AND_LENGTH.size - len(held)]
            if len(held) == _LAST_AND_LENGTH.size:
                last += _length(held, 0, last + 1)
                documents, held = documents + 1, b""
        if not held:
            here = last - begin
            at, count = _walk_window(window, here, begin)
            last, documents = begin + at, documents + count
            work.small_parts(count + 1)
            held = window[at:]
        begin += len(window)
    if held != b"\0":
        raise _cut(last, begin, held)
    return documents, begin


def _walk_window(window: bytes, at: int, begin: int) -> tuple[int, int]:
    """Follow the documents from the one whose last byte is *at*; return where the last byte of the last one is.

    The second number counts the documents whose lengths were read.
    """
    read, end, count, length = _LAST_AND_LENGTH.unpack_from, len(window) - SHORTEST + 1, 0, SHORTEST
    while at < end:
        zero, length = read(window, at)
        if zero or length < SHORTEST:
            break
        at += length
        count += 1
    else:
        if length <= LONGEST:
            return at, count
        at, count = at - length, count - 1
    _length(window, at, begin + at + 1)
    raise AssertionError("one of the two was wrong")


def _length(window: bytes, at: int, begin: int) -> int:
    """Return the length of the document that begins at byte *begin*, which is *at* + 1 in *window*. Raise Fault."""
    zero, length = _LAST_AND_LENGTH.unpack_from(window, at)
    if zero:
        raise _damaged(f"the document that ends at byte {begin:,} does not end in a zero")
    if not SHORTEST <= length <= LONGEST:
        raise _damaged(f"the document at byte {begin:,} has a length of {length:,}, which none can have")
    return int(length)


def _cut(last: int, end: int, held: bytes) -> Fault:
    if held[:1] > b"\0":
        return _damaged(f"the document that ends at byte {last + 1:,} does not end in a zero")
    if held:
        return _damaged(f"it ends at byte {end:,}, within the length of a document")
    return _damaged(f"it ends at byte {end:,}, where its last document should end at byte {last + 1:,}")


def _damaged(reason: str) -> Fault:
    return Fault(DumpDamagedError, reason)


def _windows(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if len(piece) <= _WINDOW:
            yield piece
        else:
            yield from (piece[at : at + _WINDOW] for at in range(0, len(piece), _WINDOW))
