"""Open an artifact and read it to its end in one pass, without writing any of its contents.

    inspection = inspect(path, ["Passw0rd"], node="a0-1", kind="backup", limits=fleet.contents)

Three threads share the work: one reads and computes the md5, one computes the SHA-256 and decrypts, one unpacks
and walks the tar and the documents of the dump in it. But for the documents, all this work releases the interpreter's
lock, so the slowest part, unpacking, sets the pace. The documents are walked in the thread that unpacks: another one
would wait for that lock, and read the bytes from the other processor's cache.
"""

import contextvars
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from a0backup.a0cli.redaction import LOOKED_FOR
from a0backup.artifact.byte_stream import CHUNK, ByteStream, Fault, Work
from a0backup.artifact.dump import Collection, Dump
from a0backup.artifact.encryption import decryptor
from a0backup.artifact.formats import looks_like
from a0backup.artifact.gunzip import gunzip, inflated, may_begin_gzip
from a0backup.artifact.pipe import Pipe
from a0backup.artifact.tar_walk import Member, Walked, walk
from a0backup.errors import (
    ContentsError,
    TarTruncatedError,
    TooLargeUnpackedError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import Digests, raise_if_stopped
from a0backup.vault.manifest import Verified, VerifiedCollection, VerifiedMember

HEAD = 64 << 10  # bytes on which candidate passwords are tried
RATIO_FROM = 64 << 20  # a small tar of zeros compresses 1000:1 and is no bomb
SMALLEST_GZIP = 18


class Limits(Protocol):
    """The `contents` section of fleet.yaml."""

    @property
    def max_unpacked(self) -> int:
        """The maximum size of the tar stream in bytes."""

    @property
    def max_ratio(self) -> float:
        """The maximum ratio of tar stream to artifact size; applied from 64 MiB unpacked on."""


@dataclass(frozen=True)
class Contents:
    """The contents of an artifact that was opened and read to its end.

    *opened_by* is the index of the password that opened it, *unpacked_size* the size of the tar stream in
    bytes. *odd* holds sentences on what does not belong in a backup: '..', absolute names, links, devices.
    *collections*: those of the MongoDB dump in it, the largest first; None without one.
    """

    opened_by: int
    members: int
    unpacked_size: int
    largest: tuple[Member, ...]
    odd: tuple[str, ...]
    collections: tuple[Collection, ...] | None = None


def verified_by(contents: Contents | None) -> Verified:
    """Return what a manifest says of an artifact whose *contents* were read; None if they were not."""
    if contents is None:
        return Verified()
    collections = contents.collections
    return Verified(
        level="contents",
        members=contents.members,
        unpacked_size=contents.unpacked_size,
        largest=tuple(VerifiedMember(name=each.name, size=each.size) for each in contents.largest),
        collections=None
        if collections is None
        else tuple(VerifiedCollection(name=e.name, documents=e.documents, size=e.size) for e in collections),
    )


@dataclass(frozen=True)
class Inspection:
    """The digests of the encrypted bytes, always of the whole file, and either the contents or the error."""

    digests: Digests
    contents: Contents | None
    error: ContentsError | None


def inspect(
    path: Path, passwords: Sequence[str], *, node: str, kind: str, limits: Limits, secrets: Sequence[str] = ()
) -> Inspection:
    """Return the digests and the contents of the artifact *path*, opened with one of *passwords*.

    Names in it are returned without *passwords* and *secrets*, unless these are short.

    The file is read once, in constant memory. Errors in its contents are returned, not raised. Raise OSError
    if the file cannot be read, or StoppedError when stopped; no thread remains in either case.
    """
    with path.open("rb", buffering=0) as file:
        head = _head_of(file)
        # Output beyond the whole file's size times the ratio cannot become acceptable later.
        most = _Most(limits, os.fstat(file.fileno()).st_size)
        kept_out = [secret for secret in dict.fromkeys([*passwords, *secrets]) if len(secret) >= LOOKED_FOR]
        dump = Dump(most.work, most.unpacked, most.reason, kept_out)
        try:
            opened_by = _choose(head, passwords)
        except Fault as fault:
            return Inspection(_hashed_and_opened(file, head, None, most, dump)[0], None, fault.error(node, kind))
        digests, read = _hashed_and_opened(file, head, passwords[opened_by], most, dump)
    read = dump.fault or read if isinstance(read, Walked) else read
    if isinstance(read, Fault):
        return Inspection(digests, None, read.error(node, kind))
    assert read is not None
    for sentence in dump.odd:
        read.note(sentence)
    contents = Contents(opened_by, read.members, read.unpacked_size, read.largest, tuple(read.odd), dump.collections)
    return Inspection(digests, contents, None)


class _Most:
    """The maximum number of bytes that an artifact of *size* bytes may unpack to, and of parts in it."""

    def __init__(self, limits: Limits, size: int) -> None:
        self.work = Work(size)
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


def _head_of(file: BinaryIO) -> bytes:
    head = b""
    while len(head) < HEAD and (more := file.read(HEAD - len(head))):
        head += more
    return head


def _choose(head: bytes, passwords: Sequence[str]) -> int:
    """Return the index of the password that decrypts *head* to a gzip. Raise Fault if none does."""
    if not head:
        raise Fault(UnexpectedFormatError, "the file is empty")
    if len(head) < SMALLEST_GZIP:
        raise Fault(UnexpectedFormatError, f"the file has only {len(head)} bytes")
    opened = [decryptor(password).update(head) for password in passwords]
    looking_right = [i for i, plain in enumerate(opened) if may_begin_gzip(plain)]
    if looking_right:
        # Not the first unbroken one: the flags from a wrong password may announce a header longer than the data.
        return max(looking_right, key=lambda i: inflated(opened[i]))
    if what := looks_like(head):
        raise Fault(UnexpectedFormatError, f"the file itself is {what}, not encrypted as the appliance does it")
    for plain in opened:
        if what := looks_like(plain):
            raise Fault(UnexpectedFormatError, f"the password makes {what} of it, not a gzip")
    count = "the password" if len(passwords) == 1 else f"none of the {len(passwords)} passwords"
    makes = "does not make" if len(passwords) == 1 else "makes"
    raise Fault(WrongPasswordError, f"{count} {makes} a gzip of it")


# ---------------------------------------------------------------------------------------------------------------------
# The threads


def _hashed_and_opened(
    file: BinaryIO, head: bytes, password: str | None, most: _Most, dump: Dump
) -> tuple[Digests, Walked | Fault | None]:
    """Return the digests of *head* plus the rest of *file*, and what *password*, if given, opens in it.

    *dump* has read what of it belongs to a dump.
    """
    encrypted, packed = Pipe[bytes](), Pipe[bytes]()
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

    def unpack_and_walk() -> Walked | Fault | None:
        try:
            return _read(iter(packed), most, dump) if cipher is not None else None
        except Fault as fault:
            return fault
        finally:
            packed.leave()

    with ThreadPoolExecutor(2, "inspect") as threads:
        try:
            # Each thread runs in a copy of the context, through which a request to stop reaches it.
            hashing = threads.submit(contextvars.copy_context().run, hash_and_decrypt)
            opening = threads.submit(contextvars.copy_context().run, unpack_and_walk)
            for chunk in itertools.chain([head], iter(lambda: file.read(CHUNK), b"")):
                encrypted.put(chunk)
                md5.update(chunk)
                size += len(chunk)
                raise_if_stopped()
            encrypted.close()
            hashing.result()
            return Digests(size, md5.hexdigest(), sha256.hexdigest()), opening.result()
        finally:
            encrypted.leave()
            packed.leave()


def _read(chunks: Iterator[bytes], most: _Most, dump: Dump) -> Walked:
    """Read the packed *chunks* to their end. Raise Fault."""
    noise: list[str] = []
    unpacked = _bounded(gunzip(ByteStream(chunks), noise, most.work), most)
    try:
        read = walk(ByteStream(unpacked), most.work, dump.secrets, dump)
    except Fault as fault:
        if fault.kind_of_error in (TarTruncatedError, UnexpectedFormatError):
            # Read on: a damaged compressed stream explains a broken tar, and is reported instead.
            for _ in unpacked:
                pass
        raise
    for sentence in noise:
        read.note(sentence)
    return read


def _bounded(pieces: Iterator[bytes], most: _Most) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        raise_if_stopped()
        size += len(piece)
        if size > most.unpacked:
            raise Fault(TooLargeUnpackedError, most.reason)
        yield piece
