"""The shared password, as read from the engine's Secret block."""

import pytest
from prefect.blocks.system import Secret

from a0backup.errors import PasswordError
from a0backup.fleet.models import PasswordSource
from tasks.shared_password import shared_password


async def loaded(value: object, monkeypatch: pytest.MonkeyPatch) -> str | None:
    async def aload(name: str) -> Secret[object]:
        return Secret(value=value)  # a real block; only the server that stores it is left out

    monkeypatch.setattr(Secret, "aload", aload)
    return await shared_password(PasswordSource(secret_block="a0-backup-password"))


@pytest.mark.parametrize("stored", ["4711e2026", "20261123.10", '"in quotes"', "1e3", "true", "Passw0rd"])
async def test_the_password_is_the_text_in_the_block(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await loaded(stored, monkeypatch) == stored  # parsed as a number, 4711e2026 is inf


@pytest.mark.parametrize("value", [{"password": "Passw0rd"}, ["Passw0rd"], '{"password": "Passw0rd"}'])
async def test_a_block_that_holds_an_object_is_refused(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    # As password.load promises: 'store the password as a text, not as JSON'.
    try:
        got = await loaded(value, monkeypatch)
    except PasswordError:
        return
    # A text that looks like JSON is still a text: the password exactly as stored.
    assert got == value, got
