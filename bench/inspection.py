"""Compare the inspection of an artifact with each of its stages alone, and with shell commands for the same work.

python bench/inspection.py --size 150000000

There are three artifacts: one of documents that hardly compress, one of documents of 600 bytes that compress about
5:1, one of documents of 170 bytes. "documents" is the walk over the documents alone, with the read of the tar.
All measurements take turns, with a warm page cache; the fastest round of each counts. Speeds are in MB
of the artifact per second.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from a0backup.artifact.bson_walk import walk_documents
from a0backup.artifact.byte_stream import CHUNK, ByteStream, Work
from a0backup.artifact.encryption import decryptor
from a0backup.artifact.gunzip import gunzip
from a0backup.artifact.inspection import inspect
from a0backup.artifact.tar_walk import walk
from simulator import artifact

PASSWORD = "Passw0rd"
DECRYPT = f"openssl enc -d -aes-256-ctr -md md5 -nosalt -k {PASSWORD} -in artifact"
SHELL = {
    "md5sum": "md5sum artifact",
    "decrypt | tar tz": f"{DECRYPT} | tar tz",
    "md5sum; sha256sum; decrypt | tar tz": f"md5sum artifact; sha256sum artifact; {DECRYPT} | tar tz",
}


@dataclass(frozen=True)
class Limits:
    max_unpacked: int = 1 << 50
    max_ratio: float = 1e6


def documents(size: int) -> bytes:
    """Return user documents of about *size* bytes that gzip compresses to a fifth."""
    rng = random.Random("documents")
    words = [rng.randbytes(4).hex() for _ in range(200)]
    made: list[bytes] = []
    length = 0
    while length < size:
        made.append(
            artifact.bson(
                {
                    "_id": rng.randbytes(12),
                    "email": f"user{len(made)}@example.com",
                    "user_id": f"auth0|{rng.randbytes(6).hex():0>24}",
                    "connection": "Username-Password-Authentication",
                    "logins_count": rng.randrange(10_000),
                    "created_at": f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T02:00:00.000Z",
                    "roles": " ".join(rng.choices(words, k=24)),
                    "app_metadata": json.dumps({"plan": rng.choice(words), "tenant": "example", "active": True}),
                    "picture": f"https://s.gravatar.com/avatar/{rng.randbytes(8).hex()}?s=480&r=pg&d=example.png",
                }
            )
        )
        length += len(made[-1])
    return b"".join(made)


def small_documents(size: int) -> bytes:
    """Return documents of 170 bytes, of about *size* bytes together."""
    rng = random.Random("small")
    words = [rng.randbytes(4).hex() for _ in range(200)]
    count = size // 170
    return b"".join(
        artifact.bson(
            {
                "_id": rng.randbytes(12),
                "email": f"user{number}@example.com",
                "user_id": f"auth0|{rng.randbytes(6).hex():0>24}",
                "roles": " ".join(rng.choices(words, k=7)),
            }
        )
        for number in range(count)
    )


def make_compressible(path: Path, size: int, block: bytes) -> None:
    """Write an artifact of about *size* bytes to *path*: *block*, compressed at gzip's default level, repeated."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    count = max(1, round(size / len(packed)))
    member = tarfile.TarInfo("dump/auth0/users.bson")
    member.size = count * len(block)
    before = member.tobuf(tarfile.GNU_FORMAT)
    after = bytes(-member.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    crc = zlib.crc32(before)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    trailer = struct.pack("<II", zlib.crc32(after, crc), (len(before) + member.size + len(after)) & 0xFFFFFFFF)

    def deflated(plain: bytes, mode: int) -> bytes:
        one = zlib.compressobj(6, zlib.DEFLATED, -15)
        return one.compress(plain) + one.flush(mode)

    begin = b"\x1f\x8b\x08\0\0\0\0\0\0\3" + deflated(before, zlib.Z_FULL_FLUSH)
    end = deflated(after, zlib.Z_FINISH) + trailer
    cipher = decryptor(PASSWORD)
    with path.open("wb") as file:
        file.writelines(map(cipher.update, itertools.chain([begin], itertools.repeat(packed, count), [end])))


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def exhaust(pieces: Iterator[bytes]) -> None:
    for _ in pieces:
        pass


def hash_all(path: Path, name: str) -> None:
    digest = hashlib.new(name, usedforsecurity=False)
    for chunk in chunks(path):
        digest.update(chunk)


def decrypt_all(path: Path) -> None:
    cipher = decryptor(PASSWORD)
    for chunk in chunks(path):
        cipher.update(chunk)


def follow_documents(tar: Path) -> None:
    with tarfile.open(tar) as opened, opened.extractfile("dump/auth0/users.bson") as documents:  # type: ignore[union-attr]
        walk_documents(iter(lambda: documents.read(4 * CHUNK), b""), Work(1 << 50))


def inspect_all(path: Path) -> None:
    seen = inspect(path, [PASSWORD], node="a0-1", kind="backup", limits=Limits())
    assert seen.error is None, seen.error


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(place: Path, rounds: int) -> dict[str, Any]:
    """Measure everything on the file `artifact` in *place*."""
    encrypted, packed, tar = (place / name for name in ("artifact", "packed", "tar"))
    cipher = decryptor(PASSWORD)
    with packed.open("wb") as file:
        file.writelines(map(cipher.update, chunks(encrypted)))
    with tar.open("wb") as file:
        file.writelines(gunzip(ByteStream(chunks(packed)), [], Work(packed.stat().st_size)))

    def shell(script: str) -> None:
        command = ["bash", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.stderr)

    # The inflate includes its CRC. The stages read their input from the page cache, as `read` alone does.
    stages: dict[str, Callable[[], object]] = {
        "read": lambda: exhaust(chunks(encrypted)),
        "md5": lambda: hash_all(encrypted, "md5"),
        "sha256": lambda: hash_all(encrypted, "sha256"),
        "AES-CTR": lambda: decrypt_all(encrypted),
        "inflate": lambda: exhaust(gunzip(ByteStream(chunks(packed)), [], Work(packed.stat().st_size))),
        "documents": lambda: follow_documents(tar),
        "tar walk": lambda: walk(ByteStream(chunks(tar)), Work(tar.stat().st_size)),
    }
    reads = {"read tar": lambda: exhaust(chunks(tar))}
    inspection = {"inspect": lambda: inspect_all(encrypted)}
    shells = {name: lambda script=script: shell(script) for name, script in SHELL.items()}
    everything = stages | reads | inspection | shells
    took = {name: min(times) for name, times in in_turns(everything, rounds).items()}

    work = {name: took[name] - took["read"] for name in ("md5", "sha256", "AES-CTR", "inflate")}
    work["tar walk"] = max(0.0, took["tar walk"] - took["read tar"])
    least = max(max(work.values()), (took["read"] + sum(work.values())) / len(os.sched_getaffinity(0)))
    slowest = max((name for name in stages if name not in ("documents", "tar walk")), key=took.__getitem__)
    size = encrypted.stat().st_size
    return {
        "artifact_mb": round(size / 1e6),
        "unpacks_to": round(tar.stat().st_size / size, 1),
        "mb_per_s": {name: round(size / took[name] / 1e6) for name in [*stages, *inspection, *shells]},
        "most_mb_per_s": round(size / least / 1e6),
        "slowest_stage": slowest,
        "to_slowest_stage": round(took[slowest] / took["inspect"], 2),
        "to_most": round(least / took["inspect"], 2),
        "to_shell": {name: round(took[name] / took["inspect"], 2) for name in shells},
    }


def in_turns(everything: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in everything}
    for _ in range(rounds):
        for name, work in everything.items():
            took[name].append(seconds_of(work))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=150_000_000, help="of each artifact in bytes, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    measured = {}
    for name in ("hardly", "5:1", "small documents"):
        with tempfile.TemporaryDirectory(prefix="a0backup-bench-") as directory:
            path = Path(directory) / "artifact"
            if name == "hardly":
                artifact.make(
                    path, kind="backup", seed="bench", size=given.size, password=PASSWORD, stopped=lambda: False
                )
            else:
                block = documents(4 << 20) if name == "5:1" else small_documents(4 << 20)
                make_compressible(path, given.size, block)
            measured[name] = measure(path.parent, given.rounds)
    if given.json:
        print(json.dumps(measured))
        return
    for seen in measured.values():
        print(f"{seen['artifact_mb']} MB, {seen['unpacks_to']} times as much unpacked; in MB of the artifact a second:")
        for name, speed in seen["mb_per_s"].items():
            print(f"  {speed:6} {name}")
        print(f"  {seen['most_mb_per_s']:6} the most: the slowest stage, or all work shared evenly by the processors")
        print(
            f"inspect: {seen['to_slowest_stage']} of {seen['slowest_stage']} alone, {seen['to_most']} of the most; "
            + ", ".join(f"{ratio} times `{name}`" for name, ratio in seen["to_shell"].items())
        )


if __name__ == "__main__":
    main()
