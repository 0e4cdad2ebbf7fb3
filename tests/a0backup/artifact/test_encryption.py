"""Decryption of what openssl encrypted."""

import asyncio
import hashlib
import io
import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.artifact.encryption import decrypt_file, decryptor, key_and_iv
from a0backup.files import CHUNK, Digests, digests, in_thread
from tests.support.patience import patience

PASSWORDS = ["Passw0rd", "pässwörd €", "two words", "q\"uo'tes $`\\", "p" * 500, os.fsdecode(b"\xff\xfe octets")]


def openssl(source: Path, target: Path, password: str, *options: str) -> str:
    command = ["openssl", "enc", "-aes-256-ctr", "-md", "md5", "-nosalt", "-k", os.fsencode(password), *options]
    return subprocess.run(
        [*command, "-in", source, "-out", target],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("password", PASSWORDS)
def test_key_and_iv_match_those_that_openssl_prints(password: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    printed = openssl(tmp_path / "plain", tmp_path / "artifact", password, "-p")
    key, iv = key_and_iv(password)
    assert re.findall(r"^(?:key|iv )=([0-9A-F]+)$", printed, re.MULTILINE) == [key.hex().upper(), iv.hex().upper()]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_what_openssl_encrypted_is_decrypted(password: str, size: int, tmp_path: Path) -> None:
    plain = hashlib.shake_128(password.encode("utf-8", "surrogateescape")).digest(size)
    (tmp_path / "plain").write_bytes(plain)
    openssl(tmp_path / "plain", tmp_path / "artifact", password)
    with (tmp_path / "opened").open("wb") as opened:
        read = decrypt_file(tmp_path / "artifact", opened, password)
    assert (tmp_path / "opened").read_bytes() == plain
    assert read == digests(tmp_path / "artifact")


@given(password=st.text(), plain=st.binary(), cuts=st.lists(st.integers(0, 300)))
def test_the_size_of_the_pieces_makes_no_difference(password: str, plain: bytes, cuts: list[int]) -> None:
    whole, pieced = decryptor(password), decryptor(password)
    at = [0, *sorted(cuts), len(plain)]
    pieces = [pieced.update(plain[begin:end]) for begin, end in itertools.pairwise(at)]
    assert b"".join(pieces) == whole.update(plain)[: sum(map(len, pieces))]


def test_the_target_may_be_a_descriptor_or_any_open_file(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(decryptor("p").update(b"whole" * 1000))
    held = io.BytesIO()
    decrypt_file(tmp_path / "artifact", held, "p")
    fd = os.open(tmp_path / "opened", os.O_WRONLY | os.O_CREAT, 0o600)
    decrypt_file(tmp_path / "artifact", fd, "p")
    os.fstat(fd)  # still open: closing it is up to the caller
    os.close(fd)
    assert held.getvalue() == (tmp_path / "opened").read_bytes() == b"whole" * 1000


def test_a_target_with_short_writes_gets_everything(tmp_path: Path) -> None:
    class Reluctant(io.RawIOBase):
        taken = b""

        def writable(self) -> bool:
            return True

        def write(self, chunk) -> int:
            self.taken += bytes(chunk[:1000])
            return min(1000, len(chunk))

    (tmp_path / "artifact").write_bytes(decryptor("p").update(bytes(12_345)))
    target = Reluctant()
    assert decrypt_file(tmp_path / "artifact", target, "p").size == 12_345
    assert target.taken == bytes(12_345)


def test_a_full_target_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(bytes(100))
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        decrypt_file(tmp_path / "artifact", full, "p")


def test_an_empty_artifact_has_the_digests_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(b"")
    assert decrypt_file(tmp_path / "artifact", io.BytesIO(), "p") == Digests(
        0, hashlib.md5(b"").hexdigest(), hashlib.sha256(b"").hexdigest()
    )


async def test_a_cancelled_decryption_ends_at_the_next_chunk(tmp_path: Path) -> None:
    """A pipe delivers one chunk and then nothing: only the cancellation can end the reading."""
    os.mkfifo(tmp_path / "pipe")
    held = os.open(tmp_path / "pipe", os.O_RDWR)
    target = io.BytesIO()
    try:
        decrypting = asyncio.ensure_future(in_thread(decrypt_file, tmp_path / "pipe", target, "p"))
        await asyncio.to_thread(os.write, held, b"x" * 1000)
        while not target.getvalue() and not decrypting.done():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0)
        decrypting.cancel()
        await asyncio.sleep(0)
        os.write(held, b"x")
        async with asyncio.timeout(patience(20)) as limit:
            with pytest.raises(asyncio.CancelledError):
                await decrypting
        # The timeout cancels the task, too. CancelledError alone would prove nothing.
        assert not limit.expired()
    finally:
        os.close(held)
