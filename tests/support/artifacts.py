"""Handmade artifacts, and checks of their inspection."""

import struct
import tarfile
import threading
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from a0backup.artifact.encryption import decryptor
from a0backup.artifact.inspection import Contents, Inspection, inspect
from a0backup.errors import ContentsError
from a0backup.files import digests

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


class Look:
    """Inspects an artifact made of given compressed bytes. The digests must be right despite any damage."""

    def __init__(self, place: Path) -> None:
        self.path = place / "artifact"

    def __call__(self, packed: bytes, **bounds: float) -> Inspection:
        self.path.write_bytes(encrypted(packed))
        seen = inspected(self.path, limits=replace(Bounds(), **bounds))
        assert seen.digests == digests(self.path)
        return seen


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
    """Return a header in one block, as written by GNU tar, with a base-256 size if required."""
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


TAR = file("dump/users.bin", b"users" * 500) + file("dump/tenants.bin", b"t") + END


def gzip_header(flags: int, rest: bytes = b"") -> bytes:
    begin = b"\x1f\x8b\x08" + bytes([flags]) + b"\1\2\3\4\0\3" + rest
    return begin + struct.pack("<H", zlib.crc32(begin) & 0xFFFF) if flags & 2 else begin


MIB = 1 << 20


def deflated(plain: bytes, *, last: bool = False) -> bytes:
    """Compress *plain* into an independent part of a deflate stream that ends on a byte boundary."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    return compressor.compress(plain) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


def repeated(block: bytes, count: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a gzip of *before*, *count* times *block* and *after*, but compress the block only once."""
    one = deflated(block)
    crc = zlib.crc32(before)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    length = len(before) + count * len(block) + len(after)
    packed = gzip_header(0) + deflated(before) + one * count + deflated(after, last=True)
    return packed + struct.pack("<II", zlib.crc32(after, crc), length & 0xFFFFFFFF)
