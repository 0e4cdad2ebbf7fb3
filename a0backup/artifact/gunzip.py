"""Read gzip (RFC 1952) from a stream and verify it to its end.

This module parses the gzip frame itself: isal's parser forgets the flags of a header that is split.
"""

import struct
from collections.abc import Iterator
from typing import cast

from isal import isal_zlib

from a0backup.artifact.byte_stream import CHUNK, LONGEST_HEADER, ByteStream, Fault, Work
from a0backup.errors import GzipDamagedError

_GZIP = b"\x1f\x8b\x08"
_RESERVED_FLAGS = 0xE0
_BLANK = b"\0 \t\r\n"
_IsalError = cast(type[Exception], isal_zlib.IsalError)
_HAS_CHECKSUM, _HAS_EXTRA, _HAS_NAME, _HAS_COMMENT = 2, 4, 8, 16
# With 256 KiB, inspecting data that compresses 5:1 is a tenth slower: the threads wait for each other more often.
_PIECE = 1 << 20
_FIRST_BYTES = 4096  # small, because each of many small members would give back its excess


def may_begin_gzip(plain: bytes) -> bool:
    """Return whether *plain*, as far as it goes, can be the start of a gzip."""
    return _GZIP.startswith(plain[:3]) and not (len(plain) > 3 and plain[3] & _RESERVED_FLAGS)


def inflated(plain: bytes) -> int:
    """Return how many bytes, at most CHUNK, *plain*, a gzip's first bytes, inflates to; -1 if it is broken."""
    try:
        return len(isal_zlib.decompressobj(wbits=31).decompress(plain, CHUNK))
    except _IsalError:
        return -1


def gunzip(packed: ByteStream, noise: list[str], work: Work) -> Iterator[bytes]:
    """Yield the contents of the gzip members of *packed*, at most 1 MiB at a time. Raise Fault if one is damaged.

    Line breaks or blanks after the last member, which some programs add, are described in *noise*.
    *work* bounds the number of members.
    """
    while True:
        work.part()
        _read_gzip_header(packed)
        inflater = isal_zlib.decompressobj(wbits=-15)
        crc, size, step = 0, 0, _FIRST_BYTES
        while not inflater.eof:
            chunk = packed.some(step)
            if not chunk:
                raise _cut(packed)
            step, full = CHUNK, True
            while full and not inflater.eof:
                try:
                    piece = inflater.decompress(chunk, _PIECE)
                except _IsalError as error:
                    raise _damaged(packed, f"is broken at byte {packed.position:,} or before it ({error})") from None
                crc = isal_zlib.crc32(piece, crc)
                size += len(piece)
                if piece:
                    yield piece
                chunk, full = inflater.unconsumed_tail, len(piece) == _PIECE
        packed.give_back(inflater.unused_data)
        if struct.unpack("<II", _exactly(packed, 8)) != (crc, size & 0xFFFFFFFF):
            raise _damaged(packed, f"has a wrong checksum or length at byte {packed.position:,}")
        # Zeros may follow, as on tapes and block devices.
        rest = b""
        while not rest:
            part = packed.some(512)
            if not part:
                return
            rest = part.lstrip(b"\0")
        packed.give_back(rest)
        if not rest.strip(_BLANK):
            noise.append(_blank_rest(packed))
            return


def _blank_rest(packed: ByteStream) -> str:
    """Read *packed* to its end and return a sentence about it. Raise Fault if it is not blank."""
    begin = packed.position
    while part := packed.some(CHUNK):
        if part.strip(_BLANK):
            raise _damaged(packed, f"goes on at byte {begin:,} with something that is no gzip")
    return f"line breaks or blanks follow the gzip, from byte {begin:,} on; they are no damage"


def _read_gzip_header(packed: ByteStream) -> None:
    begin = packed.position
    header = packed.take(10)
    if not may_begin_gzip(header):
        raise _damaged(packed, f"goes on at byte {begin:,} with something that is no gzip")
    if len(header) < 10:
        raise _cut(packed)
    flags = header[3]
    if flags & _HAS_EXTRA:
        length = _exactly(packed, 2)
        header += length + _exactly(packed, int.from_bytes(length, "little"))
    for flag in (_HAS_NAME, _HAS_COMMENT):
        if flags & flag:
            header += _gzip_text(packed)
    if flags & _HAS_CHECKSUM and struct.pack("<H", isal_zlib.crc32(header) & 0xFFFF) != _exactly(packed, 2):
        raise _damaged(packed, f"has a header with a wrong checksum at byte {begin:,}")


def _exactly(packed: ByteStream, count: int) -> bytes:
    got = packed.take(count)
    if len(got) < count:
        raise _cut(packed)
    return got


def _gzip_text(packed: ByteStream) -> bytes:
    text = b""
    while len(text) < LONGEST_HEADER:
        part = packed.some(_FIRST_BYTES)
        if not part:
            raise _cut(packed)
        end = part.find(b"\0") + 1
        if end:
            packed.give_back(part[end:])
            return text + part[:end]
        text += part
    raise _damaged(packed, f"has a header of more than {LONGEST_HEADER:,} bytes")


def _cut(packed: ByteStream) -> Fault:
    return Fault(GzipDamagedError, f"the compressed stream is cut off after {packed.position:,} bytes")


def _damaged(packed: ByteStream, how: str) -> Fault:
    return Fault(GzipDamagedError, f"the compressed stream {how}")
