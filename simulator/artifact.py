"""Make the file of a node backup: a real tar.gz of a Mongo-dump-like tree, encrypted as the appliance does.

Any size is made quickly and in constant memory: one block of documents is compressed once, ended by a
full flush, and repeated byte for byte within a single gzip stream.
"""

import hashlib
import json
import random
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MIB = 1 << 20
SMALLEST_BLOCK = 2048


@dataclass(frozen=True)
class Artifact:
    """A finished node backup on the node."""

    name: str
    md5: str
    size: int
    path: Path
    password: str  # a fingerprint, never the password itself


def fingerprint(password: str) -> str:
    return "sha256:" + hashlib.sha256(password.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def key_and_iv(password: str) -> tuple[bytes, bytes]:
    """Return key and IV for AES-256-CTR, from OpenSSL's EVP_BytesToKey with MD5, no salt and one round."""
    secret, derived = password.encode("utf-8", "surrogateescape"), b""
    digest = b""
    while len(derived) < 48:
        digest = hashlib.md5(digest + secret, usedforsecurity=False).digest()
        derived += digest
    return derived[:32], derived[32:48]


def bson(document: dict[str, str | int | bytes]) -> bytes:
    """Encode the BSON types that a dump of users needs (bsonspec.org): ObjectId as 12 bytes, string, int64, binary."""
    body = b""
    for name, value in document.items():
        key = name.encode() + b"\0"
        if isinstance(value, str):
            text = value.encode() + b"\0"
            body += b"\x02" + key + struct.pack("<i", len(text)) + text
        elif isinstance(value, int):
            body += b"\x12" + key + struct.pack("<q", value)
        elif name == "_id":
            body += b"\x07" + key + value
        else:
            body += b"\x05" + key + struct.pack("<i", len(value)) + b"\0" + value
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def users(seed: str, size: int, *, as_json: bool) -> bytes:
    """Return whole user documents of about *size* bytes that hardly compress, the same for the same *seed*."""
    rng = random.Random(seed)  # noqa: S311 (repeatable contents, not a secret)
    block = bytearray()
    number = 0
    while not block or len(block) < size - 600:
        number += 1
        filler = min(900, max(16, size - len(block) - 300))
        user: dict[str, str | int | bytes] = {
            "_id": rng.randbytes(12),
            "email": f"user{number}@example.com",
            "user_id": f"auth0|{number:024x}",
            "logins_count": rng.randrange(10_000),
            "history": rng.randbytes(filler),
        }
        if as_json:
            plain = {key: value.hex() if isinstance(value, bytes) else value for key, value in user.items()}
            block += json.dumps(plain).encode() + b"\n"
        else:
            block += bson(user)
    return bytes(block)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, 1_465_052_670
    # GNU, because its sizes can exceed the 8 GiB of ustar.
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)


def _deflated(plain: bytes, *, last: bool = False) -> bytes:
    """Compress *plain* into an independent part of a deflate stream that ends on a byte boundary."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    return compressor.compress(plain) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


def _gzip(kind: str, seed: str, size: int, how: str = "") -> Iterator[bytes]:
    """Yield one gzip stream of a tar of about *size* bytes, whole or spoilt.

    *how*: "cut_tar" truncates the tar in its last member, "torn_document" a document in a member that is whole,
    and "empty_users" leaves no users in it.
    """
    cut = how == "cut_tar"
    if kind == "user-export":
        small: dict[str, bytes] = {}
        large = "user-export.json"
    else:
        folder = "dump/auth0" if kind == "backup" else "dump/auth0-keys"
        tenant = bson({"_id": hashlib.sha256(seed.encode()).digest()[:12], "name": seed, "region": "private"})
        tenant = tenant[:-3] if how == "torn_document" else tenant
        index = json.dumps({"options": {}, "indexes": [{"v": 1, "key": {"_id": 1}, "name": "_id_"}]}).encode()
        small = {
            f"{folder}/system.indexes.bson": b"",
            f"{folder}/tenants.bson": tenant,
            f"{folder}/tenants.metadata.json": index,
            f"{folder}/users.metadata.json": index,
        }
        large = f"{folder}/users.bson"
    before = b"".join(_header(name, len(held)) + held + _padding(len(held)) for name, held in small.items())
    room = max(0, size - len(_deflated(before)) - 200)
    # Eight or more blocks match any size within a few percent.
    block = users(seed, min(MIB, max(SMALLEST_BLOCK, room // 8)), as_json=kind == "user-export")
    deflated = _deflated(block)
    count = 0 if how == "empty_users" else max(1, round(room / len(deflated)))

    announced = (count + cut) * len(block)
    before += _header(large, announced)
    after = b"" if cut else _padding(count * len(block)) + b"\0" * (2 * tarfile.BLOCKSIZE)
    crc, length = zlib.crc32(before), len(before) + count * len(block) + len(after)
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _deflated(before)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
        yield deflated
    yield _deflated(after, last=True)
    yield struct.pack("<II", zlib.crc32(after, crc), length & 0xFFFFFFFF)


def _spoilt(kind: str, seed: str, size: int, how: str) -> Iterator[bytes]:
    """Yield the bytes that a faulty node encrypts."""
    if how == "uncompressed":
        yield from (_header("users.bson", size), bytes(size), _padding(size), bytes(2 * tarfile.BLOCKSIZE))
        return
    pieces = [piece for piece in _gzip(kind, seed, size, how) if piece]
    if how == "flipped":
        middle = bytearray(pieces[len(pieces) // 2])
        middle[len(middle) // 2] ^= 1
        pieces[len(pieces) // 2] = bytes(middle)
    yield from pieces[:-2] if how == "cut" else pieces


def make(
    path: Path,
    *,
    kind: str,
    seed: str,
    size: int,
    password: str,
    stopped: Callable[[], bool],
    spoilt: str = "",
) -> Artifact:
    """Write an encrypted artifact of about *size* bytes to *path* and return its description.

    Memory is constant, except for a *spoilt* artifact. Raise InterruptedError, leaving nothing at *path*,
    once *stopped* returns true.
    """
    key, iv = key_and_iv(f"not {password}" if spoilt == "noise" else password)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    md5, written = hashlib.md5(usedforsecurity=False), 0
    name = time.strftime("%d-%m-%Y-%H-%M-%S.tar.gz", time.gmtime())
    if spoilt == "unchanged":
        seed, name = kind, f"{kind}.tar.gz"
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            for piece in _spoilt(kind, seed, size, spoilt) if spoilt else _gzip(kind, seed, size):
                if stopped():
                    raise InterruptedError(f"the making of {path.name} was stopped")
                sealed = encryptor.update(piece)
                md5.update(sealed)
                written += file.write(sealed)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Artifact(name, md5.hexdigest(), written, path, fingerprint(password))
