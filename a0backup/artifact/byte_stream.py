"""A byte stream over pieces of any size, from which the gzip and the tar of an artifact are read."""

import sys
from collections.abc import Iterator

from a0backup.errors import ContentsError, TooManyPartsError

# Larger chunks do not make an inspection faster.
CHUNK = 256 << 10
_PARTS = 1_000_000  # allowed in any artifact
_BYTES_PER_PART = 128  # one more part is allowed for each so many bytes
_SMALL_PARTS = 100  # together take as long as one part
LONGEST_HEADER = 1 << 20  # maximum of a long name, a pax header or a gzip header's text


class Fault(Exception):
    """Why a stream cannot be read to its end; the caller turns it into the error that names the node."""

    def __init__(self, kind_of_error: type[ContentsError], reason: str) -> None:
        super().__init__(kind_of_error, reason)
        self.kind_of_error, self.reason = kind_of_error, reason

    def error(self, node: str, kind: str) -> ContentsError:
        """Return the error that reports this fault for the *kind* of file that *node* made."""
        return self.kind_of_error(node, kind, self.reason)


class Work:
    """Bounds the work of reading an artifact of *size* bytes.

    A part is a gzip member, a tar header, a pax record, a hundred documents or 256 bytes of metadata. Each takes some
    10 microseconds however small it is, so an artifact of nothing else would be read for hours per gigabyte.
    """

    def __init__(self, size: int) -> None:
        self._most = self._left = _PARTS + size // _BYTES_PER_PART
        self._small = 0

    def part(self, length: int = 0) -> None:
        """Count one part with a name or text of *length* characters. Raise Fault if there are too many."""
        # A global header can give one long name to each of many members, and long headers compress to nothing.
        self._left -= 1 + length // 64
        if self._left < 0:
            raise Fault(TooManyPartsError, f"it consists of more than {self._most:,} parts; the reading ended there")

    def small_parts(self, count: int) -> None:
        """Count *count* documents. Raise Fault if there are too many."""
        self._small += count
        if self._small >= _SMALL_PARTS:
            self.part(64 * (self._small // _SMALL_PARTS - 1))
            self._small %= _SMALL_PARTS


class ByteStream:
    """The bytes of all *pieces* in order; *position* is the number of bytes read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self.position = 0

    def some(self, most: int = sys.maxsize) -> bytes:
        """Return the next bytes, at most *most*; empty only at the end."""
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
        """Return the next *count* bytes; fewer only at the end."""
        got = self.some(count)
        while len(got) < count and (more := self.some(count - len(got))):
            got += more
        return got

    def pieces(self, count: int) -> Iterator[bytes]:
        """Yield the next *count* bytes, as few pieces as they come in; fewer only at the end."""
        while count and (got := self.some(count)):
            count -= len(got)
            yield got

    def skip(self, count: int) -> int:
        """Skip *count* bytes and return how many of them existed."""
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
        """Put back the last bytes that were read."""
        self.position -= len(unused)
        if len(unused) <= self._at:
            self._at -= len(unused)
        else:
            self._piece, self._at = unused + self._piece[self._at :], 0
