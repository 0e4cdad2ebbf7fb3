"""The members of a tar that are a MongoDB dump, as mongodump lays it out: what they hold, and whether it is whole.

    dump/auth0/users.bson               the documents of a collection; with `mongodump --gzip`, users.bson.gz
    dump/auth0/users.metadata.json      its options and indexes; likewise

The walk over the tar has them read here, one after another.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from a0backup.artifact.bson_walk import walk_documents
from a0backup.artifact.byte_stream import ByteStream, Fault, Work
from a0backup.artifact.gunzip import gunzip
from a0backup.artifact.tar_walk import MAX_ODD, bounded, shown
from a0backup.errors import DumpDamagedError, TooLargeUnpackedError
from a0backup.vault.manifest import MAX_COLLECTIONS

_DOCUMENTS, _METADATA, _GZIP = ".bson", ".metadata.json", ".gz"
# `mongodump --gzip --oplog` compresses oplog.bson, too, and does not say so in its name. Documents never begin so: one
# of this length has an element, and no element is of type 0.
_PACKED = b"\x1f\x8b\x08\0\0"
_LONGEST_METADATA = 1 << 20  # bytes; mongodump's are a few kilobytes
_KEPT = 2 * MAX_COLLECTIONS  # collections, before the smallest are dropped


@dataclass(frozen=True)
class Collection:
    """A collection in a dump: *name* is database.collection, *size* its documents' bytes, unpacked."""

    name: str
    documents: int
    size: int


class _OutsideError(Exception):
    """The tar or the gzip around a file of the dump is damaged."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Dump:
    """What was read of the dump in a tar; it is the Reader of the walk.

    *fault* is the first damage in the dump; what follows it is not read. It does not end the walk: damage to the tar
    or the gzip around it explains more. *odd* holds sentences on what was not read otherwise.
    """

    def __init__(self, work: Work, max_unpacked: int, too_large: str, secrets: Sequence[str] = ()) -> None:
        self._work, self._left, self._too_large, self.secrets = work, max_unpacked, too_large, secrets
        self._collections: dict[str, tuple[int, int]] = {}  # documents and bytes, by name
        self._found = False
        self.fault: Fault | None = None
        self.odd: list[str] = []

    @staticmethod
    def wants(name: str) -> bool:
        file = name.rpartition("/")[2].removesuffix(_GZIP)
        return file.endswith((_DOCUMENTS, _METADATA)) and file not in (_DOCUMENTS, _METADATA)

    def read(self, name: str, pieces: Iterator[bytes]) -> None:
        """Read a file of the dump, unless one before it is damaged. Raise what *pieces* raise."""
        if self.fault is not None:
            return
        try:
            self._read_file(name, _marked(pieces))
        except Fault as fault:
            self.fault = fault
        except _OutsideError as outside:
            raise outside.fault from None

    @property
    def collections(self) -> tuple[Collection, ...] | None:
        """The largest collections, at most MAX_COLLECTIONS, largest first; None if the tar has no dump."""
        if not self._found:
            return None
        return tuple(Collection(self._show(name), *counts) for name, counts in self._largest(MAX_COLLECTIONS))

    def _largest(self, count: int) -> list[tuple[str, tuple[int, int]]]:
        return heapq.nsmallest(count, self._collections.items(), key=lambda each: (-each[1][1], each[0]))

    def _read_file(self, name: str, pieces: Iterator[bytes]) -> None:
        try:
            head, pieces = _peeked(pieces, len(_PACKED))
            plain, noise = pieces, list[str]()
            if name.endswith(_GZIP) or head == _PACKED:
                plain = self._bounded(gunzip(ByteStream(pieces), noise, self._work))
            bare = name.removesuffix(_GZIP)
            if bare.endswith(_DOCUMENTS):
                self._count(collection_name(bare), *walk_documents(plain, self._work))
            else:
                self._read_metadata(name, plain)
            for sentence in noise:
                self._note(f"{self._show(name)}: {sentence}")
        except Fault as fault:
            if fault.kind_of_error is TooLargeUnpackedError:
                raise
            raise Fault(fault.kind_of_error, f"{self._show(name)}: {fault.reason}") from None

    def _bounded(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._left -= len(piece)
            if self._left < 0:
                raise Fault(TooLargeUnpackedError, self._too_large)
            yield piece

    def _count(self, name: str, documents: int, size: int) -> None:
        self._found = True
        before = self._collections.get(name, (0, 0))
        self._collections[name] = before[0] + documents, before[1] + size
        if len(self._collections) > _KEPT:
            self._collections = dict(self._largest(MAX_COLLECTIONS))

    def _read_metadata(self, name: str, pieces: Iterable[bytes]) -> None:
        text = b""
        for piece in pieces:
            if len(text) <= _LONGEST_METADATA:
                text += piece
        if len(text) > _LONGEST_METADATA:
            self._note(f"{self._show(name)} is larger than {_LONGEST_METADATA >> 20} MiB, and was not read")
            return
        # As long as it takes: lists in lists take a tenth of a second per MiB, and compress to nothing.
        self._work.part(len(text) // 4)
        written = text.decode(errors="surrogateescape").strip()
        try:
            # Numbers stay text: they are not needed, and a long one takes long to convert. NaN and others pass: the
            # server takes them, and mongodump writes them.
            options = json.loads(written, parse_int=str, parse_float=str)
        except RecursionError:
            raise Fault(DumpDamagedError, "it is no JSON: it is nested too deep") from None
        except ValueError as error:
            if not _may_be_whole(written, error):
                raise Fault(DumpDamagedError, f"it is no JSON: {error}") from None
            self._note(f"{self._show(name)} is no strict JSON, and was not read: {error}")
            return
        if not isinstance(options, dict):
            raise Fault(DumpDamagedError, "it is JSON, and not the options of a collection")

    def _show(self, name: str) -> str:
        return shown(name, self.secrets)

    def _note(self, sentence: str) -> None:
        if len(self.odd) < MAX_ODD:
            self.odd.append(sentence)


def collection_name(path: str) -> str:
    """Return database.collection for the *path* of a collection's documents in a dump, bounded in its length."""
    parts = [part for part in path.removesuffix(_DOCUMENTS).split("/") if part not in ("", ".")]
    return bounded(".".join(parts[-2:]))


def _marked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield *pieces*, and tell their own fault from one of what is in them."""
    try:
        yield from pieces
    except Fault as fault:
        raise _OutsideError(fault) from None


def _peeked(pieces: Iterator[bytes], count: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first *count* bytes of *pieces*, fewer if there are no more, and all of *pieces*."""
    head = b""
    while len(head) < count and (piece := next(pieces, b"")):
        head += piece
    return head[:count], chain([head], pieces)


def _may_be_whole(text: str, error: ValueError) -> bool:
    """Return whether *text* may be all of what an old mongodump wrote: it left out quotes, and wrote `+Infinity`."""
    cut = isinstance(error, json.JSONDecodeError) and (error.pos >= len(text) or error.msg.startswith("Unterminated"))
    return text.startswith("{") and text.endswith("}") and "\0" not in text and not cut
