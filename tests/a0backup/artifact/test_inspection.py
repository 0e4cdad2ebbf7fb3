"""The inspection of whole and of damaged artifacts."""

import asyncio
import gzip
import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from a0backup.a0cli.text import quote
from a0backup.artifact import byte_stream
from a0backup.artifact.byte_stream import CHUNK
from a0backup.artifact.encryption import decryptor
from a0backup.artifact.gunzip import may_begin_gzip
from a0backup.artifact.inspection import HEAD, inspect
from a0backup.artifact.tar_walk import Member
from a0backup.errors import (
    GzipDamagedError,
    TarTruncatedError,
    TooLargeUnpackedError,
    TooManyPartsError,
    UnexpectedFormatError,
    WrongPasswordError,
)
from a0backup.files import digests, in_thread
from a0backup.fleet.models import ContentsLimits
from simulator import artifact as simulated
from tests.support.artifacts import (
    BLOCK,
    END,
    MIB,
    OPENSSL,
    PASSWORD,
    TAR,
    Bounds,
    Look,
    encrypted,
    file,
    gzip_header,
    header,
    inspected,
    long,
    opened,
    record,
    refused,
    repeated,
)
from tests.support.paths import REPOSITORY
from tests.support.patience import patience

# ---------------------------------------------------------------------------------------------------------------------
# Whole artifacts


def folder(place: Path) -> Path:
    """Make a dump with names and sizes that tar has to treat specially."""
    root = place / "dump"
    deep = root / "/".join(["d" * 120] * 3)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep" * 300)
    (root / "empty.bin").touch()
    (root / "block.bin").write_bytes(b"b" * BLOCK)
    (root / "users.bin").write_bytes(random.Random(1).randbytes(300_001))
    (root / "ünïcode €.json").write_text("{}")
    return root


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax", "posix"])
def test_an_artifact_made_by_gnu_tar_and_openssl_is_opened(form: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    if form in ("v7", "ustar"):  # names are limited to 99 and 255 characters
        shutil.rmtree(root / ("d" * 120))
    make = ["tar", "-C", tmp_path, f"--format={form}", "-czf", tmp_path / "dump.tar.gz", "dump"]
    subprocess.run(make, check=True)
    subprocess.run(
        [*OPENSSL, "-nosalt", "-in", tmp_path / "dump.tar.gz", "-out", tmp_path / "artifact"],
        check=True,
    )
    contents = opened(inspected(tmp_path / "artifact"))
    with tarfile.open(tmp_path / "dump.tar.gz") as tar:
        members = [Member(quote(member.name), member.size) for member in tar]
    assert sorted(contents.largest, key=repr) == sorted(members, key=repr)
    assert contents.members == len(members)
    assert contents.unpacked_size == len(gzip.decompress((tmp_path / "dump.tar.gz").read_bytes()))
    assert contents.largest[0] == Member("dump/users.bin", 300_001)
    assert contents.odd == ()


@pytest.mark.parametrize("kind", ["backup", "backup-sensitive", "user-export"])
def test_an_artifact_of_the_simulated_appliance_is_opened(kind: str, tmp_path: Path) -> None:
    simulated.make(tmp_path / "artifact", kind=kind, seed="s", size=3_000_000, password=PASSWORD, stopped=lambda: False)
    contents = opened(inspected(tmp_path / "artifact", kind=kind))
    expected = "user-export.json" if kind == "user-export" else "users.bson"
    assert contents.largest[0].name.endswith(expected)
    assert contents.unpacked_size % BLOCK == 0


# ---------------------------------------------------------------------------------------------------------------------
# Which password


def test_the_right_password_is_found_among_others(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(encrypted(gzip.compress(TAR), "third"))
    for passwords in (("first", "second", "third"), ("first", "", "third", "third")):
        assert opened(inspected(tmp_path / "artifact", passwords)).opened_by == 2


def test_the_password_that_unpacks_is_chosen_among_those_that_look_right(tmp_path: Path) -> None:
    """The keystreams of these two agree in magic, method and reserved flags; found by trying 18,450 passwords."""
    one, other = "w13423", "w18449"
    artifact = encrypted(gzip.compress(TAR), one)
    assert may_begin_gzip(encrypted(artifact, one))
    assert may_begin_gzip(encrypted(artifact, other))
    (tmp_path / "artifact").write_bytes(artifact)
    assert opened(inspected(tmp_path / "artifact", (other, one))).opened_by == 1
    assert opened(inspected(tmp_path / "artifact", (one, other))).opened_by == 0


@pytest.mark.parametrize("passwords", [("wrong",), ("wrong", "wronger"), ("passw0rd",), ("Passw0rd ",), ()])
def test_noise_is_a_wrong_password(passwords: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(encrypted(gzip.compress(TAR)))
    seen = inspected(tmp_path / "artifact", passwords)
    refused(seen, WrongPasswordError, "password")
    assert seen.digests == digests(tmp_path / "artifact")
    assert "wrong" not in str(seen.error).replace("a wrong", "")


def test_a_large_artifact_gets_its_digests_despite_a_wrong_password(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(random.Random(4).randbytes(20 * CHUNK + 1))
    seen = inspected(tmp_path / "artifact")
    refused(seen, WrongPasswordError)
    assert seen.digests == digests(tmp_path / "artifact")


# ---------------------------------------------------------------------------------------------------------------------
# Unexpected formats


@pytest.mark.parametrize("text", [b"x", b"not a tar" * 1000, b"\xff" * (3 * CHUNK), b"\0" * 511])
def test_a_whole_gzip_without_a_tar_is_an_unexpected_format(text: bytes, look: Look) -> None:
    refused(look(gzip.compress(text)), UnexpectedFormatError, "not to a tar")


@pytest.mark.parametrize("plain", [b"not a tar" * 100_000, file("a", b"a" * 1000) + b"no header here" * 100_000])
def test_a_damaged_gzip_is_reported_rather_than_the_tar_inside(plain: bytes, look: Look) -> None:
    packed = bytearray(gzip.compress(plain))
    packed[-6] ^= 1
    refused(look(bytes(packed)), GzipDamagedError, "checksum")


def test_an_empty_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "artifact").touch()
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, "empty")


@pytest.mark.parametrize("size", [1, 3, 17])
def test_a_file_too_short_for_any_format_is_reported(size: int, look: Look) -> None:
    refused(look(gzip.compress(TAR)[:size]), UnexpectedFormatError, f"only {size} bytes")


# ---------------------------------------------------------------------------------------------------------------------
# Bombs, memory and cancellation


def test_a_bomb_by_ratio_ends_the_unpacking_but_not_the_hashing(look: Look) -> None:
    bomb = repeated(bytes(MIB), 200, before=header("dump/users.bin", 200 * MIB), after=END)
    assert len(bomb) < MIB
    refused(look(bomb, max_ratio=100), TooLargeUnpackedError, "100 times", "max_ratio")
    assert opened(look(bomb, max_ratio=2000)).members == 1


def test_a_bomb_by_total_ends_the_unpacking_but_not_the_hashing(look: Look) -> None:
    bomb = repeated(bytes(MIB), 50, before=header("dump/users.bin", 50 * MIB), after=END)
    refused(look(bomb, max_unpacked=50 * MIB), TooLargeUnpackedError, f"{50 * MIB:,} bytes", "max_unpacked")
    assert opened(look(bomb, max_unpacked=50 * MIB + BLOCK + len(END))).members == 1


PAX = b"5 a=\n" * 20_000
TINY = {
    "gzip members": gzip.compress(TAR[:-1]) + gzip.compress(b"") * 9000 + gzip.compress(TAR[-1:]),
    "tar headers": gzip.compress(b"".join(header(f"dump/{number}", 0) for number in range(9000)) + END),
    "pax records": gzip.compress(
        header("pax", len(PAX), tarfile.XHDTYPE) + PAX + bytes(-len(PAX) % BLOCK) + header("dump/a", 0) + END
    ),
}


def test_one_long_name_for_thousands_of_members_is_not_read_on(look: Look) -> None:
    path = record("path", "a/" * 200_000)
    members = b"".join(header(f"dump/{number}", 0) for number in range(3000))
    plain = gzip.compress(long(tarfile.XGLTYPE, path) + members + END)
    began = time.process_time()
    refused(look(plain, max_ratio=1000), TooManyPartsError, "parts")
    assert time.process_time() - began < patience(5)


LONG = b"dump/" + b"n" * (MIB - 100)


@pytest.mark.parametrize(
    "one",
    [
        long(tarfile.GNUTYPE_LONGNAME, LONG),
        long(tarfile.GNUTYPE_LONGLINK, LONG),
        long(tarfile.XHDTYPE, record("path", LONG.decode())),
        long(tarfile.XGLTYPE, record("comment", LONG.decode())),
    ],
    ids=["long name", "long link", "pax path", "global pax comment"],
)
def test_thousands_of_long_headers_are_not_read_on(one: bytes, look: Look) -> None:
    assert opened(look(gzip.compress(one + TAR))).members
    plain = repeated(one, 2000, after=TAR)
    began = time.process_time()
    refused(look(plain), TooManyPartsError, "parts")
    assert time.process_time() - began < patience(5)


@pytest.mark.parametrize("plain", TINY.values(), ids=TINY)
def test_an_artifact_of_too_many_tiny_parts_is_not_read_on(
    plain: bytes, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(look(plain, max_ratio=1000)).members
    monkeypatch.setattr(byte_stream, "_PARTS", 1000)
    refused(look(plain, max_ratio=1000), TooManyPartsError, "parts")


OTHER = "Xk3-Secret-Pass-9"


@pytest.mark.parametrize("secret", [PASSWORD, OTHER])
def test_names_in_an_artifact_are_shown_without_the_passwords(secret: str, tmp_path: Path) -> None:
    odd = [
        header(f"/dump/{secret}"),
        header(f"../{secret[:4]}\x1b[1m{secret[4:]}"),
        header("link", kind=tarfile.SYMTYPE, linkname=f"/etc/{secret}"),
        header("hard", kind=tarfile.LNKTYPE, linkname=secret.encode().hex()),
        header(f"pipe-{secret}", kind=tarfile.FIFOTYPE),
        long(tarfile.GNUTYPE_LONGNAME, b"/" + b"n" * 92 + secret.encode() + b"n" * 300 + b"\0") + header("long"),
    ]
    members = b"".join(odd) + file(f"dump/{secret}.bin", b"users")
    path = tmp_path / "artifact"
    path.write_bytes(encrypted(gzip.compress(members + END)))
    contents = opened(inspect(path, [PASSWORD], node="a0-1", kind="backup", limits=Bounds(), secrets=[OTHER]))
    assert contents.largest[0] == Member("dump/***.bin", 5)
    assert len(contents.odd) == len(odd)
    assert not re.search("w0rd|Pass|Xk3", str(contents))
    assert secret.encode().hex() not in str(contents)

    path.write_bytes(encrypted(gzip.compress(members[:-BLOCK])))
    cut = inspect(path, [PASSWORD], node="a0-1", kind="backup", limits=Bounds(), secrets=[OTHER])
    refused(cut, TarTruncatedError, "before the end of dump/***.bin")


def test_a_short_password_is_not_cut_out_of_names(tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    path.write_bytes(encrypted(gzip.compress(TAR), "u"))
    assert {member.name for member in opened(inspected(path, ("u",))).largest} == {
        "dump/users.bin",
        "dump/tenants.bin",
    }


def test_thousands_of_odd_names_are_read_quickly(look: Look) -> None:
    tar = b"".join(header(f"/{number}/../Passw0r") for number in range(20_000)) + END
    began = time.process_time()
    assert len(opened(look(gzip.compress(tar))).odd) == 20
    assert time.process_time() - began < patience(3)


def test_the_ratio_of_a_small_tar_is_not_limited(look: Look) -> None:
    most = 64 * MIB - BLOCK - len(END)
    assert opened(look(gzip.compress(file("zeros", bytes(most)) + END, 1), max_ratio=2)).members == 1
    refused(look(gzip.compress(file("zeros", bytes(most + BLOCK)) + END, 1), max_ratio=2), TooLargeUnpackedError)


def test_a_highly_compressed_beginning_is_not_a_bomb(look: Look) -> None:
    """The ratio of the whole counts: the empty part of a database may come first."""
    noise = random.Random(6).randbytes(3 * MIB)
    tar = header("a", 80 * MIB)
    packed = repeated(bytes(MIB), 80, before=tar, after=file("b", noise) + END)
    assert opened(look(packed, max_ratio=30)).members == 2


CHILD = """
import sys
from pathlib import Path
from a0backup.artifact.inspection import inspect
from tests.support.artifacts import Bounds

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

inspect(Path(sys.argv[1]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
before = peak()
seen = inspect(Path(sys.argv[2]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
assert seen.error is None, seen.error
print(peak() - before)
"""


def memory_grown(small: Path, large: Path) -> int:
    """Return by how many KiB the peak memory is higher for the inspection of *large* than for that of *small*."""
    run = [sys.executable, "-c", CHILD, small, large]
    return int(subprocess.run(run, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout)


@pytest.mark.parametrize("what", ["hardly compressed", "compressed a thousand times", "a million members"])
def test_memory_is_constant(what: str, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(encrypted(gzip.compress(TAR)))
    large = tmp_path / "large"
    if what == "hardly compressed":
        simulated.make(large, kind="backup", seed="s", size=300_000_000, password=PASSWORD, stopped=lambda: False)
    elif what == "compressed a thousand times":
        large.write_bytes(encrypted(repeated(bytes(MIB), 2000, before=header("a", 2000 * MIB), after=END)))
    else:
        large.write_bytes(encrypted(repeated(file("../" + "n" * 80, b"") * 1000, 100, after=END)))
    assert memory_grown(tmp_path / "small", large) < 30_000


def busy() -> bool:
    return any(thread.name.startswith("inspect") for thread in threading.enumerate())


async def test_a_cancelled_inspection_ends_at_once_and_leaves_no_thread(tmp_path: Path) -> None:
    """Twenty million members keep the walk busy for minutes, those of one chunk for seconds. The reader waits."""
    members = gzip.compress(file("../n", b"") * 20_000) * 1000 + gzip.compress(END)
    (tmp_path / "artifact").write_bytes(encrypted(members))
    work = asyncio.ensure_future(
        in_thread(inspect, tmp_path / "artifact", [PASSWORD], node="n", kind="backup", limits=Bounds())
    )
    while not busy() and not work.done():  # noqa: ASYNC110 - another thread makes it true
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    assert not work.done()
    work.cancel()
    async with asyncio.timeout(3) as limit:
        with pytest.raises(asyncio.CancelledError):
            await work
    # The timeout cancels the task, too. CancelledError alone would prove nothing.
    assert not limit.expired()
    assert not busy()


async def test_a_cancelled_inspection_of_a_slow_file_ends_at_the_next_chunk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    packed = encrypted(gzip.compress(file("a", random.Random(7).randbytes(2 * HEAD)) + END))
    held = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        work = asyncio.ensure_future(
            in_thread(inspect, tmp_path / "pipe", [PASSWORD], node="n", kind="backup", limits=Bounds())
        )
        await asyncio.to_thread(os.write, held, packed[: HEAD + 10])
        while not busy() and not work.done():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.sleep(0)
        os.write(held, b"x")
        async with asyncio.timeout(patience(20)) as limit:
            with pytest.raises(asyncio.CancelledError):
                await work
        # The timeout cancels the task, too. CancelledError alone would prove nothing.
        assert not limit.expired()
    finally:
        os.close(held)
    assert not busy()


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def test_an_unreadable_file_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspected(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        inspected(tmp_path)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_read_error_within_the_file_ends_the_inspection_and_leaves_no_thread(tmp_path: Path) -> None:
    simulated.make(
        tmp_path / "artifact", kind="backup", seed="s", size=5_000_000, password=PASSWORD, stopped=lambda: False
    )
    program = (
        "import sys, threading\nfrom pathlib import Path\nfrom a0backup.artifact.inspection import inspect\n"
        "from tests.support.artifacts import Bounds\n"
        "try:\n    inspect(Path(sys.argv[1]), ['Passw0rd'], node='n', kind='backup', limits=Bounds())\n"
        "except OSError as error:\n    print(error.strerror, threading.active_count())\n"
    )
    strace = ["strace", "-f", "-o", "/dev/null", "-P", tmp_path / "artifact"]
    strace += ["-e", "trace=read", "-e", "inject=read:error=EIO:when=5"]
    ended = subprocess.run(
        [*strace, sys.executable, "-c", program, tmp_path / "artifact"],
        check=True,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert ended.stdout == "Input/output error 1\n"


# ---------------------------------------------------------------------------------------------------------------------
# Ten thousand mutated artifacts


def originals() -> Iterator[tuple[bytes, bytes]]:
    """Yield (tar, its gzip): compressed, stored, in several members, with every gzip header field."""
    rng = random.Random(8)
    documents = b"".join(b'{"email":"user%d@example.com","id":"%s"}' % (n, rng.randbytes(6)) for n in range(60))
    tar = file("dump/auth0/users.bin", documents) + file("dump/auth0/keys.bin", rng.randbytes(600)) + END
    yield tar, gzip.compress(tar)
    yield tar, gzip.compress(tar, 0)
    yield tar, b"".join(gzip.compress(tar[at : at + 900]) for at in range(0, len(tar), 900))
    yield tar, gzip_header(31, b"\5\0extra" + b"dump.tar\0" + b"made by hand\0") + gzip.compress(tar)[10:]
    yield tar, gzip.compress(tar) + bytes(700)


def mutated(artifact: bytes, rng: random.Random) -> bytes:
    """Return *artifact* with one mutation, half of the time near its start or end, where the frames are."""
    made = bytearray(artifact)

    def spot() -> int:
        near = rng.choice([rng.randrange(min(24, len(made))), max(0, len(made) - 1 - rng.randrange(24))])
        return rng.choice([near, rng.randrange(len(made))])

    match rng.choice(["flip", "flip", "bytes", "cut", "begin", "insert", "delete", "swap", "zeros", "twice"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 2, 8])):
                made[spot()] ^= 1 << rng.randrange(8)
        case "bytes":
            made[spot()] = rng.randrange(256)
        case "cut":
            del made[spot() :]
        case "begin":
            del made[: spot()]
        case "insert":
            at = spot()
            made[at:at] = rng.choice([rng.randbytes(rng.randint(1, 64)), bytes(rng.randint(1, 64))])
        case "delete":
            at = spot()
            del made[at : at + rng.randint(1, 64)]
        case "swap":
            size = rng.choice([16, 64, 256])
            one, other = sorted(rng.sample(range(0, len(made) - size, size), 2))
            made[one : one + size], made[other : other + size] = made[other : other + size], made[one : one + size]
        case "zeros":
            at = spot()
            made[at : at + 512] = bytes(len(made[at : at + 512]))
        case "twice":
            at = spot()
            made[at:at] = made[at : at + rng.choice([1, 16, 512])]
    return bytes(made)


def zlib_reads(packed: bytes) -> bytes:
    """Return what zlib unpacks. Blanks may follow the last member."""
    whole = b""
    while packed.strip(b"\0 \t\r\n"):
        member = zlib.decompressobj(31)
        whole += member.decompress(packed)
        assert member.eof
        packed = member.unused_data.lstrip(b"\0")
    return whole


@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_mutated_artifacts_never_pass_as_good(part: int, tmp_path: Path) -> None:
    """1,000 per part. One whose contents pass still holds the original's bytes, but its digests differ."""
    rng = random.Random(f"mutated {part}")
    path = tmp_path / "artifact"
    sound = [(tar, encrypted(packed)) for tar, packed in originals()]
    tried = passed = 0
    while tried < 1000:
        tar, artifact = rng.choice(sound)
        password = rng.choice([PASSWORD] * 9 + [rng.randbytes(4).hex()])
        made = mutated(artifact, rng) if password == PASSWORD else artifact
        if made == artifact and password == PASSWORD:
            continue
        tried += 1
        path.write_bytes(made)
        seen = inspect(path, [password], node="a0-1", kind="backup", limits=Bounds())
        assert (seen.digests.size, seen.digests.md5) == (len(made), hashlib.md5(made).hexdigest())
        if seen.error is None:
            assert password == PASSWORD
            assert seen.digests.sha256 != hashlib.sha256(artifact).hexdigest()
            assert zlib_reads(encrypted(made)) == tar
            passed += 1
    assert 0 < passed < 100


def test_a_lost_tar_header_is_damage(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for number in range(10):
            member = tarfile.TarInfo(f"dump/auth0/collection-{number}.bin")
            member.size = 1024
            tar.addfile(member, io.BytesIO(b"x" * 1024))
    broken = bytearray(out.getvalue())
    broken[1536 : 1536 + 512] = bytes(512)  # one header, lost on the node before the compression
    (tmp_path / "artifact").write_bytes(decryptor("P").update(gzip.compress(bytes(broken))))
    seen = inspect(tmp_path / "artifact", ["P"], node="n", kind="backup", limits=ContentsLimits())
    # The walk sees one of ten members, although well-formed headers follow.
    assert seen.error is not None, seen.contents


def packed(name: str, count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}{name}")
            member.size = number
            tar.addfile(member, io.BytesIO(bytes(number)))
    return decryptor("Passw0rd").update(gzip.compress(out.getvalue(), 1))


def test_memory_is_constant_for_names_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(packed("n", 2))
    # One character beyond the BMP makes Python store every character in four bytes.
    (tmp_path / "large").write_bytes(packed("\U0001f600" + "n" * 700_000, 40))
    assert (tmp_path / "large").stat().st_size < 2_000_000
    grown = memory_grown(tmp_path / "small", tmp_path / "large")
    assert grown < 30_000, f"{grown:,} KiB"  # the same bound as in test_memory_is_constant


def test_the_largest_members_together_are_not_larger_than_the_tar(tmp_path: Path) -> None:
    link = tarfile.TarInfo("dump/auth0/users.bin")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "elsewhere", 1 << 70
    tar = link.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "artifact").write_bytes(decryptor("P").update(gzip.compress(tar)))
    seen = inspect(tmp_path / "artifact", ["P"], node="n", kind="backup", limits=ContentsLimits())
    assert seen.contents is not None
    # Otherwise the manifest would say: users.bin, 1,180,591,620,717,411,303,424 bytes, in a tar of 1,536.
    assert sum(member.size for member in seen.contents.largest) <= seen.contents.unpacked_size, seen.contents
