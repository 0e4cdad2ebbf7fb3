"""The password comes from one of three sources, is accepted by a0cli, and is never quoted."""

import asyncio
import os
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from a0backup.artifact.encryption import decryptor
from a0backup.errors import PasswordError
from a0backup.passwords import shared as password
from a0backup.passwords.sealed import random_password
from a0backup.passwords.shared import describe, load
from tests.support.users import as_user, needs_root

SECRET = "S3cret-Passw0rd"


@dataclass(frozen=True)
class Source:
    secret_block: str | None = None
    env: str | None = None
    file: Path | None = None
    sealed_to: tuple[Path, ...] | None = None
    for_a0cli: bool = True


async def no_block(name: str) -> str:
    raise AssertionError(name)


async def refused(source: Source, text: str | None = None) -> PasswordError:
    async def block(name: str) -> str:
        return text or ""

    with pytest.raises(PasswordError) as caught:
        await load(source, block=block)
    assert caught.value.hint()
    return caught.value


def written(path: Path, octets: bytes, mode: int = 0o600) -> Source:
    path.write_bytes(octets)
    path.chmod(mode)
    return Source(file=path)


async def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A0_BACKUP_PASSWORD", SECRET)
    source = Source(env="A0_BACKUP_PASSWORD")
    assert await load(source, block=no_block) == SECRET
    assert describe(source) == "environment variable A0_BACKUP_PASSWORD"


async def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A0_BACKUP_PASSWORD", raising=False)
    assert "environment variable A0_BACKUP_PASSWORD: it is not set" in str(
        await refused(Source(env="A0_BACKUP_PASSWORD"))
    )


async def test_a_password_comes_from_a_secret_block() -> None:
    async def block(name: str) -> str:
        return SECRET if name == "a0-backup-password" else ""

    source = Source(secret_block="a0-backup-password")
    assert await load(source, block=block) == SECRET
    assert describe(source) == "Secret block a0-backup-password"


async def test_the_engines_error_about_a_block_is_not_repeated() -> None:
    async def block(name: str) -> str:
        raise ValueError(f"cannot decode {SECRET}")

    with pytest.raises(PasswordError) as caught:
        await load(Source(secret_block="x"), block=block)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "ValueError" in str(caught.value)


@pytest.mark.parametrize(
    ("octets", "password"),
    [
        (b"abc", "abc"),
        (b"abc\n", "abc"),
        (b"a b", "a b"),
        ("pä€".encode(), "pä€"),
        (b"x" * 4096 + b"\n", "x" * 4096),
    ],
)
async def test_a_file_is_read_without_one_trailing_newline(tmp_path: Path, octets: bytes, password: str) -> None:
    source = written(tmp_path / "password", octets)
    assert await load(source, block=no_block) == password
    assert describe(source) == f"file {tmp_path}/password"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777])
async def test_a_file_accessible_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    error = await refused(written(tmp_path / "password", SECRET.encode(), mode))
    assert error.hint() == f"chmod 600 {tmp_path}/password"
    assert f"{mode:04o}" in str(error)


@needs_root
@pytest.mark.parametrize(
    ("mode", "uid", "accepted"),
    [
        (0o440, 0, True),
        (0o444, 0, False),
        (0o460, 0, False),
        (0o440, 12345, False),
    ],
)
async def test_a_file_that_only_our_own_group_can_read_is_accepted_if_it_belongs_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, uid: int, accepted: bool
) -> None:
    """Container platforms mount secrets like this, behind links."""
    (tmp_path / "..data").mkdir()
    source = written(tmp_path / "..data" / "password", SECRET.encode(), mode)
    assert source.file is not None
    os.chown(source.file, uid, 54321)
    (tmp_path / "password").symlink_to("..data/password")
    for folder in (tmp_path, tmp_path / "..data"):
        folder.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    linked = Source(file=Path("password"))
    with as_user(12345, 54321):
        if accepted:
            assert await load(linked, block=no_block) == SECRET
        else:
            error = await refused(linked)
            assert f"{mode:04o}" in str(error)
            assert "chmod 600" in error.hint()


@needs_root
@pytest.mark.parametrize("mode", [0o600, 0o440])
async def test_a_file_of_another_user_who_could_change_it_is_refused(tmp_path: Path, mode: int) -> None:
    source = written(tmp_path / "password", SECRET.encode(), mode)
    os.chown(tmp_path / "password", 12345, os.getegid())
    error = await refused(source)
    assert "it belongs to uid 12345, who can change it" in str(error)
    assert error.hint() == f"chown root {tmp_path}/password"


async def test_a_link_to_a_private_file_is_followed(tmp_path: Path) -> None:
    written(tmp_path / "real", SECRET.encode(), 0o400)
    (tmp_path / "link").symlink_to("real")
    assert await load(Source(file=tmp_path / "link"), block=no_block) == SECRET


async def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in str(await refused(Source(file=tmp_path / "pipe")))
    assert "not a regular file" in str(await refused(Source(file=tmp_path)))
    assert "not a regular file" in str(await refused(Source(file=Path("/dev/zero"))))
    assert "No such file" in str(await refused(Source(file=tmp_path / "none")))


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"x" * 4097, "than 4 KiB"),
        (b"y" * 100_000, "than 4 KiB"),
        (b"S3c\0ret", "NUL"),
        (b"-S3cret", "starts with '-'"),
        (b"S3c\xffret", "not UTF-8"),
        ("S3c\ufeffret".encode(), "character 4 of 7 is invisible (U+FEFF ZERO WIDTH NO-BREAK SPACE)"),
        ("S3cret\u200b".encode(), "character 7 of 7 is invisible (U+200B ZERO WIDTH SPACE)"),
        ("S3c\u00a0ret".encode(), "character 4 of 7 is invisible (U+00A0 NO-BREAK SPACE)"),
        ("S3c\u2060ret".encode(), "U+2060"),
        ("S3cret\u3164".encode(), "U+3164"),
        (b" S3cret", "character 1 of 7 is invisible (U+0020 SPACE)"),
        (b"S3cret ", "character 7 of 7 is invisible (U+0020 SPACE)"),
    ],
)
async def test_a_password_that_a0cli_cannot_take_is_refused_from_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, octets: bytes, reason: str
) -> None:
    text = octets.removesuffix(b"\n").decode(errors="surrogateescape")
    errors = [
        await refused(written(tmp_path / "password", octets)),
        await refused(Source(secret_block="x"), text),
    ]
    if b"\0" not in octets:
        monkeypatch.setenv("A0_TEST", text)
        errors.append(await refused(Source(env="A0_TEST")))
    for error in errors:
        assert reason in str(error)
        shown = "".join(traceback.format_exception(error))
        assert "S3c" not in shown
        assert "yyyy" not in shown


@pytest.mark.parametrize(
    ("octets", "reason"),
    [(b"S3cret\r\n", "Windows line ends"), (b"\xef\xbb\xbfS3cret\n", "begins with a byte order mark")],
)
async def test_a_file_as_windows_writes_it_is_refused_and_the_remedy_works(
    tmp_path: Path, octets: bytes, reason: str
) -> None:
    error = await refused(written(tmp_path / "password", octets))
    assert reason in str(error)
    remedy = await asyncio.create_subprocess_shell(error.hint().partition(": ")[2])
    assert await remedy.wait() == 0
    assert await load(Source(file=tmp_path / "password"), block=no_block) == "S3cret"


@pytest.mark.parametrize(("text", "two"), [("p\u00e4", True), ("pa\u0308", True), ("pä€", True), ("pa€", False)])
def test_a_character_with_two_encodings_is_noticed(text: str, two: bool) -> None:
    assert password.has_two_encodings(text) is two


async def test_a_block_without_text_is_refused() -> None:
    async def block(name: str) -> str:
        return {"password": SECRET}  # type: ignore[return-value]

    with pytest.raises(PasswordError, match="does not hold a text") as caught:
        await load(Source(secret_block="x"), block=block)
    assert SECRET not in str(caught.value)


async def test_a_missing_source_is_an_error() -> None:
    with pytest.raises(PasswordError, match="names no source"):
        await load(Source(), block=no_block)


def test_a_random_password_is_unique_and_has_256_bits_in_letters_and_digits() -> None:
    made = {random_password() for _ in range(200)}
    assert len(made) == 200
    assert all(len(password) == 43 and password.isascii() and password.isalnum() for password in made)
    assert 62**43 > 2**256 > 62**42
    assert len(set("".join(made))) == 62


SECRET = "Canary7Password"


def chain(error: BaseException | None) -> str:
    text = ""
    while error is not None:
        text += f"{error!r} {vars(error)!r} "
        error = error.__cause__ or error.__context__
    return text


async def quoting(name: str) -> str:
    raise ValueError(f"the block {name} holds {SECRET!r}, which is no JSON")


async def test_no_password_error_contains_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(SECRET.encode() + b"\xff\n")
    file.chmod(0o600)
    monkeypatch.setenv("THE_PASSWORD", SECRET + "\udcff")
    nothing = {"secret_block": None, "env": None, "file": None, "sealed_to": None}
    carried = []
    for source in ({"file": file}, {"env": "THE_PASSWORD"}, {"secret_block": "a-block"}):
        with pytest.raises(PasswordError) as caught:
            await password.load(SimpleNamespace(**nothing | source, for_a0cli=True), block=quoting)
        if SECRET in chain(caught.value):
            carried += source
    assert carried == []


async def _never(name: str) -> str:
    raise AssertionError(name)


@pytest.mark.parametrize(
    "written",
    [
        # `openssl rand -base64 72 > password` writes two lines.
        b"kPqU8Gm4zv0eFJ2mC0q8m7rU2lJ3dT6nQk1yWZB5s9uXoHcVbYtEaLiRfNjDgKxw\nP0q8m7rU2lJ3dT6nQk1yWZB5s9uXoHc=\n",
        b"Passw0rd-of-a-Windows-editor\r\n",
    ],
)
async def test_the_openssl_line_in_the_docs_decrypts_with_the_password_from_the_file(
    tmp_path: Path, written: bytes
) -> None:
    file = tmp_path / "password"
    file.write_bytes(written)
    file.chmod(0o600)
    try:
        source = SimpleNamespace(secret_block=None, env=None, file=file, sealed_to=None, for_a0cli=True)
        given = await password.load(source, block=_never)
    except PasswordError:
        return  # fine: refused before anything is encrypted with it
    assert given is not None
    artifact = tmp_path / "artifact"
    artifact.write_bytes(decryptor(given).update(b"what the node made"))  # CTR: encryption and decryption are the same
    # docs/restore.md, step 3b: one line is read from the terminal, where nobody types a CR. Step 4: `-pass file:`. Of
    # that file openssl takes the first line, even where it is the operator's own file.
    typed = written.partition(b"\n")[0].rstrip(b"\r").decode()
    wrote = f"IFS= read -r PASSWORD <<< '{typed}' && printf '%s\\n' \"$PASSWORD\" > {tmp_path}/password-1"
    line = f"{wrote}; openssl enc -d -aes-256-ctr -md md5 -nosalt -in {artifact} -pass file:{tmp_path}/password-1"
    opened = subprocess.run(["bash", "-c", line], capture_output=True).stdout  # noqa: ASYNC221 - nothing else runs in this loop
    assert opened == b"what the node made"
