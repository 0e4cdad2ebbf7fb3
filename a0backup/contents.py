"""Opening an artifact and reading it to its end, in one pass, without writing any of it anywhere.

    inspection = inspect(path, ["Passw0rd"], node="a0-1", kind="backup", limits=fleet.contents)

Three threads share the work: one reads and takes the md5, one takes the SHA-256 and decrypts, one unpacks and walks
the tar. All of it releases the interpreter's lock, so that the slowest, the unpacking, sets the pace.
"""

import contextlib
import contextvars
import hashlib
import heapq
import itertools
import os
import re
import struct
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from isal import isal_zlib

from a0backup.encryption import decryptor
from a0backup.errors import (
    ContentsError,
    GzipDamagedError,
    TarTruncatedError,
    TooLargeUnpackedError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import Digests, _raise_if_stopped
from a0backup.replies import quote

# From 64 KiB to 1 MiB the speed is the same; what waits between two threads is at most DEPTH of these.
CHUNK = 256 << 10
DEPTH = 8
HEAD = 64 << 10  # what candidate passwords are tried on
RATIO_FROM = 64 << 20  # a small tar of zeros compresses a thousand times and is no bomb
LONGEST_HEADER = 1 << 20  # of a long name, a pax header or a gzip header's text
MOST_LARGEST = 32
MOST_ODD = 20


class Limits(Protocol):
    """The `contents` part of fleet.yaml."""

    @property
    def max_unpacked(self) -> int:
        """The most bytes that the tar stream may have."""

    @property
    def max_ratio(self) -> float:
        """The most that the tar stream may be to the artifact; judged from 64 MiB unpacked on."""


@dataclass(frozen=True)
class Member:
    """A member of the tar: its name made printable and cut to a bounded length, its bytes in the tar."""

    name: str
    size: int


@dataclass(frozen=True)
class Contents:
    """What an artifact holds that was opened and read to its end.

    *opened_by* is the index of the password that opened it, *unpacked_size* the bytes of the tar stream. *odd* are
    sentences on what does not belong into a backup: '..', absolute names, links, devices.
    """

    opened_by: int
    members: int
    unpacked_size: int
    largest: tuple[Member, ...]
    odd: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The digests of the encrypted bytes, always of the whole file, and either the contents or why there are none."""

    digests: Digests
    contents: Contents | None
    error: ContentsError | None


def inspect(path: Path, passwords: Sequence[str], *, node: str, kind: str, limits: Limits) -> Inspection:
    """Return the digests of the artifact *path* and what it holds, opened by one of *passwords*.

    The file is read once, in constant memory; what is wrong with its contents is returned, not raised. Raise OSError
    where it cannot be read, or StoppedError when called off; no thread is left then.
    """
    with path.open("rb", buffering=0) as file:
        head = _head_of(file)
        # More than the file's own size times the ratio cannot come right again further on.
        most = _Most(limits, os.fstat(file.fileno()).st_size)
        try:
            opened_by = _choose(head, passwords)
        except _Fault as fault:
            return Inspection(_hashed_and_opened(file, head, None, most)[0], None, fault.error(node, kind))
        digests, read = _hashed_and_opened(file, head, passwords[opened_by], most)
    if isinstance(read, _Fault):
        return Inspection(digests, None, read.error(node, kind))
    assert read is not None
    largest = tuple(Member(_printable(name), size) for size, _, name in sorted(read.largest, reverse=True))
    return Inspection(digests, Contents(opened_by, read.members, read.unpacked_size, largest, tuple(read.odd)), None)


class _Fault(Exception):
    """Why the contents cannot be read, on its way to becoming the error that names the node."""

    def __init__(self, kind_of_error: type[ContentsError], reason: str) -> None:
        super().__init__(kind_of_error, reason)
        self.kind_of_error, self.reason = kind_of_error, reason

    def error(self, node: str, kind: str) -> ContentsError:
        return self.kind_of_error(node, kind, self.reason)


class _Most:
    """The most bytes that may come out of an artifact of *size* bytes."""

    def __init__(self, limits: Limits, size: int) -> None:
        by_ratio = max(RATIO_FROM, int(limits.max_ratio * size))
        self.unpacked = min(limits.max_unpacked, by_ratio)
        if by_ratio < limits.max_unpacked:
            self.reason = (
                f"it unpacks to more than {limits.max_ratio:g} times its {size:,} bytes (contents.max_ratio);"
                " the reading ended there"
            )
        else:
            self.reason = (
                f"it unpacks to more than {limits.max_unpacked:,} bytes (contents.max_unpacked);"
                " the reading ended there"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Choosing the password

_GZIP = b"\x1f\x8b\x08"
_RESERVED_FLAGS = 0xE0
_SMALLEST_GZIP = 18

_FORMATS = (
    (re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), "a gzip"),
    (re.compile(rb"Salted__"), "a file that openssl encrypted with a salt"),
    (re.compile(rb"PK(?:\x03\x04|\x05\x06)"), "a zip"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd"),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "a bzip2"),
    (re.compile(rb"\x6d\xe2\x99\x81"), "an archive of mongodump"),
)


def _head_of(file: BinaryIO) -> bytes:
    head = b""
    while len(head) < HEAD and (more := file.read(HEAD - len(head))):
        head += more
    return head


def _looks_like(plain: bytes) -> str:
    """Return what known thing *plain* begins as, or nothing."""
    for begins, name in _FORMATS:
        if begins.match(plain):
            return name
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(plain[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        return "a tar"
    return ""


def _choose(head: bytes, passwords: Sequence[str]) -> int:
    """Return the index of the password that makes a gzip of *head*. Raise _Fault where none does."""
    if not head:
        raise _Fault(UnexpectedFormatError, "the file is empty")
    if len(head) < _SMALLEST_GZIP:
        raise _Fault(UnexpectedFormatError, f"the file has only {len(head)} bytes")
    opened = [decryptor(password).update(head) for password in passwords]
    looking_right = [i for i, plain in enumerate(opened) if plain.startswith(_GZIP) and not plain[3] & _RESERVED_FLAGS]
    if len(looking_right) > 1:
        looking_right = [i for i in looking_right if _inflates(opened[i])] or looking_right
    if looking_right:
        return looking_right[0]
    if what := _looks_like(head):
        raise _Fault(UnexpectedFormatError, f"the file itself is {what}, not encrypted as the appliance does it")
    for plain in opened:
        if what := _looks_like(plain):
            raise _Fault(UnexpectedFormatError, f"the password makes {what} of it, not a gzip")
    count = "the password" if len(passwords) == 1 else f"none of the {len(passwords)} passwords"
    makes = "does not make" if len(passwords) == 1 else "makes"
    raise _Fault(WrongPasswordError, f"{count} {makes} a gzip of it")


def _inflates(plain: bytes) -> bool:
    try:
        isal_zlib.decompressobj(wbits=31).decompress(plain, HEAD)
    except _IsalError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The threads


class _Pipe:
    """Chunks from one thread to another, few at a time. Either side may leave; the other is never kept waiting then."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.left = False

    def put(self, chunk: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._chunks) < DEPTH or self.left)
            if not self.left:
                self._chunks.append(chunk)
                self._changed.notify_all()

    def close(self) -> None:
        """Say that there is no more to come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Drop what waits and all that may still come."""
        with self._changed:
            self.left = True
            self._chunks.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._closed or self.left)
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk


def _hashed_and_opened(
    file: BinaryIO, head: bytes, password: str | None, most: _Most
) -> "tuple[Digests, _Walked | _Fault | None]":
    """Return the digests of *head* and the rest of *file*, and what *password* opens of it, if there is one."""
    encrypted, packed = _Pipe(), _Pipe()
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    cipher = decryptor(password) if password is not None else None
    if cipher is None:
        packed.leave()

    def hash_and_decrypt() -> None:
        try:
            for chunk in encrypted:
                sha256.update(chunk)
                if cipher is not None and not packed.left:
                    packed.put(cipher.update(chunk))
        finally:
            encrypted.leave()
            packed.close()

    def unpack_and_walk() -> _Walked | _Fault | None:
        try:
            return _read(iter(packed), most) if cipher is not None else None
        except _Fault as fault:
            return fault
        finally:
            packed.leave()

    with ThreadPoolExecutor(2, "inspect") as threads:
        try:
            # Each in a context of its own, so that a call to stop reaches it.
            hashing = threads.submit(contextvars.copy_context().run, hash_and_decrypt)
            opening = threads.submit(contextvars.copy_context().run, unpack_and_walk)
            for chunk in itertools.chain([head], iter(lambda: file.read(CHUNK), b"")):
                encrypted.put(chunk)
                md5.update(chunk)
                size += len(chunk)
                _raise_if_stopped()
            encrypted.close()
            hashing.result()
            return Digests(size, md5.hexdigest(), sha256.hexdigest()), opening.result()
        finally:
            encrypted.leave()
            packed.leave()


class _Stream:
    """A stream of bytes that comes in pieces, read in other ones."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self.position = 0

    def some(self, most: int = sys.maxsize) -> bytes:
        """Return the next bytes, at most *most*; none at the end only."""
        while self._at == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece, self._at = piece, 0
        got = self._piece[self._at : self._at + most]
        self._at += len(got)
        self.position += len(got)
        return got

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes, fewer at the end only."""
        got = self.some(count)
        while len(got) < count and (more := self.some(count - len(got))):
            got += more
        return got

    def skip(self, count: int) -> int:
        """Pass over *count* bytes and return how many of them were there."""
        passed = 0
        while passed < count:
            step = min(count - passed, len(self._piece) - self._at)
            if step:
                self._at += step
                self.position += step
                passed += step
            elif one := self.some(1):
                passed += len(one)
            else:
                break
        return passed

    def give_back(self, unused: bytes) -> None:
        """Put the last bytes that were read back."""
        self.position -= len(unused)
        if len(unused) <= self._at:
            self._at -= len(unused)
        else:
            self._piece, self._at = unused + self._piece[self._at :], 0


def _read(chunks: Iterator[bytes], most: _Most) -> "_Walked":
    """Read the packed *chunks* to their end. Raise _Fault."""
    unpacked = _bounded(_unzipped(_Stream(chunks)), most)
    try:
        return _walk(_Stream(unpacked))
    except _Fault as fault:
        if fault.kind_of_error in (TarTruncatedError, UnexpectedFormatError):
            # A compressed stream that turns out to be damaged explains a broken tar, and is told instead.
            for _ in unpacked:
                pass
        raise


def _bounded(pieces: Iterator[bytes], most: _Most) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        _raise_if_stopped()
        size += len(piece)
        if size > most.unpacked:
            raise _Fault(TooLargeUnpackedError, most.reason)
        yield piece


# ---------------------------------------------------------------------------------------------------------------------
# gzip (RFC 1952). Its frame is read here: isal's own reading forgets a header's flags where the header is split.

_IsalError = cast(type[Exception], isal_zlib.IsalError)
_HAS_CHECKSUM, _HAS_EXTRA, _HAS_NAME, _HAS_COMMENT = 2, 4, 8, 16
_FIRST_BYTES = 4096  # few, as many small members would each give back what was too much for them


def _unzipped(packed: _Stream) -> Iterator[bytes]:
    """Yield what the gzip members of *packed* hold, at most CHUNK at a time. Raise _Fault where one is not whole."""
    while True:
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
                    piece = inflater.decompress(chunk, CHUNK)
                except _IsalError as error:
                    raise _damaged(packed, f"is broken at byte {packed.position:,} or before it ({error})") from None
                crc = isal_zlib.crc32(piece, crc)
                size += len(piece)
                if piece:
                    yield piece
                chunk, full = inflater.unconsumed_tail, len(piece) == CHUNK
        packed.give_back(inflater.unused_data)
        if struct.unpack("<II", _exactly(packed, 8)) != (crc, size & 0xFFFFFFFF):
            raise _damaged(packed, f"has a wrong checksum or length at byte {packed.position:,}")
        # Zeros may follow, as tapes and blocks have them.
        rest = b""
        while not rest:
            part = packed.some(512)
            if not part:
                return
            rest = part.lstrip(b"\0")
        packed.give_back(rest)


def _read_gzip_header(packed: _Stream) -> None:
    begin = packed.position
    header = packed.take(10)
    if not _GZIP.startswith(header[:3]) or (len(header) > 3 and header[3] & _RESERVED_FLAGS):
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


def _exactly(packed: _Stream, count: int) -> bytes:
    got = packed.take(count)
    if len(got) < count:
        raise _cut(packed)
    return got


def _gzip_text(packed: _Stream) -> bytes:
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


def _cut(packed: _Stream) -> _Fault:
    return _Fault(GzipDamagedError, f"the compressed stream is cut off after {packed.position:,} bytes")


def _damaged(packed: _Stream, how: str) -> _Fault:
    return _Fault(GzipDamagedError, f"the compressed stream {how}")


# ---------------------------------------------------------------------------------------------------------------------
# tar (POSIX pax and ustar, GNU tar's manual, Python's tarfile)

_NO_MORE = bytes(tarfile.BLOCKSIZE)
_ZEROS = bytes(CHUNK)
_WITHOUT_BYTES = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_PAX_NUMBER = re.compile(rb"[0-9]{1,19}")
_PAX_KEYS = {
    b"path": "name",
    b"GNU.sparse.name": "name",
    b"linkpath": "linkname",
    b"size": "size",
}


class _Walked:
    """What a walk over the tar has seen."""

    def __init__(self) -> None:
        self.members = 0
        self.unpacked_size = 0
        self.largest: list[tuple[int, int, str]] = []
        self.odd: list[str] = []

    def see(self, name: str, size: int, header: tarfile.TarInfo, linkname: str) -> None:
        self.members += 1
        if len(self.largest) < MOST_LARGEST:
            heapq.heappush(self.largest, (size, -self.members, name))
        elif size > self.largest[0][0]:
            heapq.heapreplace(self.largest, (size, -self.members, name))
        if name.startswith("/"):
            self.note(f"{_printable(name)} has an absolute name")
        if ".." in name.split("/"):
            self.note(f"{_printable(name)} has '..' in its name")
        if header.issym():
            self.note(f"{_printable(name)} is a symbolic link to {_printable(linkname)}")
        elif header.islnk():
            self.note(f"{_printable(name)} is a hard link to {_printable(linkname)}")
        elif header.isdev():
            self.note(f"{_printable(name)} is a {'pipe' if header.isfifo() else 'device'}")

    def note(self, sentence: str) -> None:
        if len(self.odd) < MOST_ODD:
            self.odd.append(sentence)


def _walk(tar: _Stream) -> _Walked:
    """Walk every member of *tar* and what follows them. Raise _Fault where it is no tar, broken or cut."""
    walked = _Walked()
    everywhere: dict[str, str] = {}  # the records of pax's global headers
    ahead: dict[str, str] = {}  # what extended headers say of the member that comes next
    announced = False
    while True:
        at = tar.position
        block = tar.take(tarfile.BLOCKSIZE)
        if block == _NO_MORE:
            break
        header = _header(block, at)
        announced = header.type in _EXTENDED
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = _long_header(tar, header, at).partition(b"\0")[0]
            key = "name" if header.type == tarfile.GNUTYPE_LONGNAME else "linkname"
            ahead.setdefault(key, text.decode("utf-8", "surrogateescape"))
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            ahead = _pax(_long_header(tar, header, at), at) | ahead
        elif header.type == tarfile.XGLTYPE:
            everywhere |= _pax(_long_header(tar, header, at), at)
        else:
            _pass_member(tar, header, block, everywhere | ahead, walked)
            ahead = {}
    if announced and walked.members:
        raise _broken(f"it ends at byte {at:,} where a header announced one more member")
    if not walked.members:
        raise _broken("it holds no member")
    while piece := tar.some():
        if not _ZEROS.startswith(piece):
            walked.note("bytes other than zeros follow the end of the tar")
            tar.skip(sys.maxsize)
    walked.unpacked_size = tar.position
    return walked


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    if at == 0 and not block:
        raise _broken("it is empty")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if at == 0:
            what = _looks_like(block) or "something else"
            raise _Fault(UnexpectedFormatError, f"it unpacks to {what}, not to a tar") from None
        if len(block) < tarfile.BLOCKSIZE:
            raise _broken(f"it is cut off at byte {at + len(block):,}, without the mark of its end") from None
        raise _broken(f"no header of a member at byte {at:,}, where one is due ({error})") from None
    if header.size < 0:
        raise _broken(f"a member of a negative size at byte {at:,}")
    return header


def _long_header(tar: _Stream, header: tarfile.TarInfo, at: int) -> bytes:
    if header.size > LONGEST_HEADER:
        raise _broken(f"a header of {header.size:,} bytes at byte {at:,}, more than {LONGEST_HEADER:,}")
    text = tar.take(header.size)
    if len(text) < header.size or tar.skip(-header.size % tarfile.BLOCKSIZE) < -header.size % tarfile.BLOCKSIZE:
        raise _broken(f"it is cut off at byte {tar.position:,}, within a header")
    return text


def _pax(records: bytes, at: int) -> dict[str, str]:
    """Return those of the *records* of a pax header that say how a member is called and how long it is."""
    said: dict[str, str] = {}
    here = 0
    while here < len(records) and records[here]:
        length = _PAX_RECORD.match(records, here)
        after = here + int(length[1]) if length else 0
        if length is None or not length.end() < after <= len(records) or records[after - 1] != ord("\n"):
            raise _broken(f"a pax header that cannot be read at byte {at:,}")
        key, _, text = records[length.end() : after - 1].partition(b"=")
        if key in _PAX_KEYS:
            if _PAX_KEYS[key] == "size" and not _PAX_NUMBER.fullmatch(text):
                raise _broken(f"a pax header with a size that is no number at byte {at:,}")
            said[_PAX_KEYS[key]] = text.decode("utf-8", "surrogateescape")
        here = after
    return said


def _pass_member(tar: _Stream, header: tarfile.TarInfo, block: bytes, said: dict[str, str], walked: _Walked) -> None:
    """Note the member and pass over its bytes; *said* by extended headers goes before what its own header says."""
    size = int(said.get("size", header.size))
    # GNU tar's old form of a sparse file: the map of its holes may go on in blocks of its own.
    more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
    while more:
        extension = tar.take(tarfile.BLOCKSIZE)
        if len(extension) < tarfile.BLOCKSIZE:
            raise _broken(f"it is cut off at byte {tar.position:,}, within a header")
        more = extension[504]
    name = said.get("name") or header.name
    walked.see(name.rstrip("/") or name, size, header, said.get("linkname") or header.linkname)
    if header.type in _WITHOUT_BYTES:
        return
    missing = size - tar.skip(size)
    if missing:
        raise _broken(f"it is cut off {missing:,} bytes before the end of {_printable(name)}")
    padding = -size % tarfile.BLOCKSIZE
    if tar.skip(padding) < padding:
        raise _broken(f"it is cut off at byte {tar.position:,}, without the mark of its end")


def _broken(reason: str) -> _Fault:
    return _Fault(TarTruncatedError, f"the tar is broken or cut: {reason}")


def _printable(name: str) -> str:
    # quote() looks at every character, and a name may have a million of them.
    return quote(name if len(name) <= 2000 else name[:1000] + name[-1000:])
