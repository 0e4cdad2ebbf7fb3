"""Walk a tar to its end (POSIX pax and ustar, GNU tar's manual, Python's tarfile) without keeping its bytes."""

import heapq
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from a0backup.a0cli.text import quote, without
from a0backup.artifact.byte_stream import LONGEST_HEADER, ByteStream, Fault, Work
from a0backup.artifact.formats import looks_like
from a0backup.errors import TarTruncatedError, UnexpectedFormatError

MAX_LARGEST = 32
MAX_ODD = 20
_NO_MORE = bytes(tarfile.BLOCKSIZE)
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
_WHOLE = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)  # the bytes are the file's
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_PAX_NUMBER = re.compile(rb"[0-9]{1,19}")
_PAX_KEYS = {
    b"path": "name",
    b"GNU.sparse.name": "name",
    b"linkpath": "linkname",
    b"size": "size",
    # The bytes of such a member are those of the file without its holes.
    b"GNU.sparse.major": "sparse",
    b"GNU.sparse.map": "sparse",
    b"GNU.sparse.numblocks": "sparse",
}


@dataclass(frozen=True)
class Member:
    """A member of the tar: its name, printable and of bounded length, and its size in the tar in bytes."""

    name: str
    size: int


class Reader(Protocol):
    """Reads the bytes of some of the files while the walk goes on."""

    def wants(self, name: str) -> bool:
        """Return whether to read the file of this name."""

    def read(self, name: str, pieces: Iterator[bytes]) -> None:
        """Read the file in *pieces*, as far as it is of use; fewer bytes than its size may be there."""


class Walked:
    """The result of a walk over the tar, with names without *secrets*.

    *odd* holds at most 20 sentences, however many members are odd.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = secrets
        self.members = 0
        self.unpacked_size = 0
        self.odd: list[str] = []
        self._largest: list[tuple[int, int, str]] = []  # a heap

    @property
    def largest(self) -> tuple[Member, ...]:
        """The largest members, at most 32, largest first; equal ones in the order of the tar."""
        return tuple(Member(self.shown(name), size) for size, _, name in sorted(self._largest, reverse=True))

    def see(self, name: str, size: int, header: tarfile.TarInfo, linkname: str) -> None:
        """Count a member and note what is odd about it."""
        self.members += 1
        if len(self._largest) < MAX_LARGEST:
            heapq.heappush(self._largest, (size, -self.members, bounded(name)))
        elif size > self._largest[0][0]:
            heapq.heapreplace(self._largest, (size, -self.members, bounded(name)))
        # Names take long to search for secrets, and a tar may have a million odd ones.
        if len(self.odd) < MAX_ODD:
            self._note_oddities(name, header, linkname)

    def _note_oddities(self, name: str, header: tarfile.TarInfo, linkname: str) -> None:
        if name.startswith("/"):
            self.note(f"{self.shown(name)} has an absolute name")
        if ".." in name.split("/"):
            self.note(f"{self.shown(name)} has '..' in its name")
        if header.issym():
            self.note(f"{self.shown(name)} is a symbolic link to {self.shown(linkname)}")
        elif header.islnk():
            self.note(f"{self.shown(name)} is a hard link to {self.shown(linkname)}")
        elif header.isdev():
            self.note(f"{self.shown(name)} is a {'pipe' if header.isfifo() else 'device'}")

    def shown(self, name: str) -> str:
        """Return *name* printable, of bounded length, without the secrets."""
        return shown(name, self._secrets)

    def note(self, sentence: str) -> None:
        """Keep *sentence* unless the maximum is reached."""
        if len(self.odd) < MAX_ODD:
            self.odd.append(sentence)


def shown(name: str, secrets: Sequence[str]) -> str:
    """Return *name* printable, of bounded length, without *secrets*."""
    # Before it is cut: a part of a secret would not be recognised.
    return quote(without(secrets, bounded(name)))


def walk(tar: ByteStream, work: Work, secrets: Sequence[str] = (), reader: Reader | None = None) -> Walked:
    """Walk every member of *tar* and what follows them. Raise Fault if it is no tar, broken or cut off.

    *work* bounds the headers and the records in them, by number and length. *secrets* are
    removed from the names. *reader* gets the bytes of the files that it wants.
    """
    walked = Walked(secrets)
    everywhere: dict[str, str] = {}  # the records of global pax headers
    ahead: dict[str, str] = {}  # what extended headers say about the next member
    announced = False
    while True:
        at = tar.position
        block = tar.take(tarfile.BLOCKSIZE)
        if block == _NO_MORE:
            # Two such blocks mark the end, or one with nothing after it. Otherwise one block means a lost header.
            if tar.take(tarfile.BLOCKSIZE).strip(b"\0"):
                raise _broken(f"zeros at byte {at:,}, where the header of a member is due")
            break
        header = _header(block, at)
        announced = header.type in _EXTENDED
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = _long_header(tar, header, at, work).partition(b"\0")[0]
            key = "name" if header.type == tarfile.GNUTYPE_LONGNAME else "linkname"
            ahead.setdefault(key, text.decode("utf-8", "surrogateescape"))
        elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            ahead = _pax(_long_header(tar, header, at, work), at, work) | ahead
        elif header.type == tarfile.XGLTYPE:
            everywhere |= _pax(_long_header(tar, header, at, work), at, work)
        else:
            _pass_member(tar, header, block, everywhere | ahead, walked, work, reader)
            ahead = {}
    if announced and walked.members:
        raise _broken(f"it ends at byte {at:,} where a header announced one more member")
    if not walked.members:
        raise _broken("it holds no member")
    while piece := tar.some():
        if piece != bytes(len(piece)):
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
            what = looks_like(block) or "something else"
            raise Fault(UnexpectedFormatError, f"it unpacks to {what}, not to a tar") from None
        if len(block) < tarfile.BLOCKSIZE:
            raise _broken(f"it is cut off at byte {at + len(block):,}, without the mark of its end") from None
        raise _broken(f"no header of a member at byte {at:,}, where one is due ({error})") from None
    if header.size < 0:
        raise _broken(f"a member of a negative size at byte {at:,}")
    return header


def _long_header(tar: ByteStream, header: tarfile.TarInfo, at: int, work: Work) -> bytes:
    if header.size > LONGEST_HEADER:
        raise _broken(f"a header of {header.size:,} bytes at byte {at:,}, more than {LONGEST_HEADER:,}")
    work.part(header.size)
    text = tar.take(header.size)
    if len(text) < header.size or tar.skip(-header.size % tarfile.BLOCKSIZE) < -header.size % tarfile.BLOCKSIZE:
        raise _broken(f"it is cut off at byte {tar.position:,}, within a header")
    return text


def _pax(records: bytes, at: int, work: Work) -> dict[str, str]:
    """Return the *records* of a pax header that give the names and the size of a member."""
    said: dict[str, str] = {}
    here = 0
    while here < len(records) and records[here]:
        work.part()
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


def _pass_member(
    tar: ByteStream,
    header: tarfile.TarInfo,
    block: bytes,
    said: dict[str, str],
    walked: Walked,
    work: Work,
    reader: Reader | None,
) -> None:
    """Note the member and pass its bytes on or skip them; *said*, from extended headers, overrides its own header."""
    # Not header.type: TarInfo treats a member with V7's file type as a directory if its name, perhaps cut off, ends
    # in '/'. GNU tar reads its bytes.
    has_bytes = block[156:157] not in _WITHOUT_BYTES
    size = int(said.get("size", header.size)) if has_bytes else 0
    # GNU tar's old sparse format: the map of holes may continue in separate blocks.
    more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
    while more:
        work.part()
        extension = tar.take(tarfile.BLOCKSIZE)
        if len(extension) < tarfile.BLOCKSIZE:
            raise _broken(f"it is cut off at byte {tar.position:,}, within a header")
        more = extension[504]
    name = said.get("name") or header.name
    work.part(len(name) + len(said.get("linkname", "")))
    walked.see(name.rstrip("/") or name, size, header, said.get("linkname") or header.linkname)
    if reader is not None and block[156:157] in _WHOLE and "sparse" not in said and reader.wants(name):
        missing = size - _hand_over(tar, reader, name, size)
    else:
        missing = size - tar.skip(size)
    if missing:
        raise _broken(f"it is cut off {missing:,} bytes before the end of {walked.shown(name)}")
    padding = -size % tarfile.BLOCKSIZE
    if tar.skip(padding) < padding:
        raise _broken(f"it is cut off at byte {tar.position:,}, without the mark of its end")


def _hand_over(tar: ByteStream, reader: Reader, name: str, size: int) -> int:
    """Let *reader* read the next *size* bytes, skip what it leaves, and return how many of them existed."""
    begin = tar.position
    reader.read(name, tar.pieces(size))
    passed = tar.position - begin
    return passed + tar.skip(size - passed)


def _broken(reason: str) -> Fault:
    return Fault(TarTruncatedError, f"the tar is broken or cut: {reason}")


def bounded(name: str) -> str:
    """Return *name*, without its middle if it is longer than 2000 characters."""
    # What is shown of a name is processed by the character, and a name may have a million.
    return name if len(name) <= 2000 else name[:1000] + name[-1000:]
