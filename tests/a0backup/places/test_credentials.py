"""Credentials from a Secret block: they open the place, and no error shows them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy
from a0backup.places.catching_up import CaughtUp, catch_up
from a0backup.places.places import Place
from a0backup.vault.vault import Vault
from tests.support.places import ACCESS_KEY, S3Server, SftpServer
from tests.support.stored import store

CANARY = "Canary7Secret"


async def caught_up(folder: Path, copy: Copy, value: object) -> CaughtUp:
    """Return what became of the place, with *value* in its block."""

    async def block(name: str) -> object:
        assert name == copy.secret_block
        if isinstance(value, Exception):
            raise value
        return value

    manifest = store(folder / "vault", "Passw0rd", size=4_000)
    return await catch_up(Place(Vault(folder / "vault"), copy, block), [manifest])


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A place in a bucket whose credentials are in no file and no variable."""
    s3.introduce(monkeypatch, tmp_path)
    (tmp_path / "credentials").write_text("")
    return s3.copy(f"{tmp_path.name}-{random.getrandbits(64):x}", secret_block="a0-offsite")


@pytest.mark.parametrize("stored_as", [json.dumps, lambda value: value])
async def test_an_s3_place_is_opened_with_the_keys_in_its_block(
    s3: S3Server, bucket: Copy, tmp_path: Path, stored_as: Callable[[object], object]
) -> None:
    """Prefect keeps a Secret as a text, or as what was parsed from JSON."""
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": s3.secret}
    assert (await caught_up(tmp_path, bucket, stored_as(keys))).copied


async def test_the_keys_in_the_block_count_more_than_those_of_the_profile(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.introduce(monkeypatch, tmp_path, secret="another")
    copy = s3.copy(f"{tmp_path.name}-{random.getrandbits(64):x}", secret_block="a0-offsite", profile="default")
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": s3.secret}
    assert (await caught_up(tmp_path, copy, keys)).copied


async def test_an_sftp_place_is_opened_with_the_private_key_in_its_block(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp.introduce(monkeypatch, tmp_path / "home", key="stranger")
    copy = sftp.copy(tmp_path / "copies", secret_block="a0-far")
    assert (await caught_up(tmp_path, copy, {"private_key": (sftp.room / "user").read_text()})).copied


@pytest.mark.parametrize(
    "value",
    [
        CANARY,
        {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": CANARY},
        {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": CANARY, "aws_session_token": CANARY},
        {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": [CANARY]},
        {"aws_access_key_id": ACCESS_KEY, CANARY: CANARY},
        [CANARY],
        f'{{"aws_secret_access_key": "{CANARY}',
        "[" * 100_000 + CANARY,
        ValueError(CANARY),
    ],
)
async def test_what_is_wrong_with_a_block_is_told_without_its_content(
    bucket: Copy, tmp_path: Path, value: object
) -> None:
    error = (await caught_up(tmp_path, bucket, value)).error
    assert error is not None
    assert error.place == "offsite"
    assert error.remedy
    told: BaseException | None = error
    while told is not None:
        assert CANARY not in repr(told)
        told = told.__cause__ or told.__context__


@pytest.mark.parametrize(
    "value",
    [
        {"private_key": CANARY},
        {"private_key": CANARY, "passphrase": CANARY},
        {"private_key": CANARY, "password": CANARY},
        {"password": CANARY},
        {"passphrase": CANARY},
        {},
    ],
)
async def test_credentials_that_open_no_server_are_told_without_their_content(
    sftp: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    """Neither the keys in ~/.ssh nor the agent stand in for them."""
    sftp.introduce(monkeypatch, tmp_path / "home")
    copy = sftp.copy(tmp_path / "copies", secret_block="a0-far")
    error = (await caught_up(tmp_path, copy, value)).error
    assert error is not None
    told: BaseException | None = error
    while told is not None:
        assert CANARY not in repr(told)
        told = told.__cause__ or told.__context__
    assert not (tmp_path / "copies").exists()


async def test_without_an_engine_it_is_told_what_to_do(bucket: Copy, tmp_path: Path) -> None:
    place = Place(Vault(tmp_path / "vault"), bucket)
    with pytest.raises(PlaceError, match="only a run of Prefect") as caught:
        await place.call(lambda store: store.size("vault.json"), place.new_transfer())
    assert "copy-vault" in caught.value.remedy
