"""PasswordError 'never quotes the password', and carries it: the exception that it replaces stays as its
__context__.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

from a0backup.errors import PasswordError
from a0backup.passwords import shared as password

SECRET = "Canary7Password"


def chain(error: BaseException | None) -> str:
    text = ""
    while error is not None:
        text += f"{error!r} {vars(error)!r} "
        error = error.__cause__ or error.__context__
    return text


async def quoting(name: str) -> str:
    raise ValueError(f"the block {name} holds {SECRET!r}, which is no JSON")


async def test_no_error_of_a_password_carries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_bytes(SECRET.encode() + b"\xff\n")
    file.chmod(0o600)
    monkeypatch.setenv("THE_PASSWORD", SECRET + "\udcff")
    nothing = {"secret_block": None, "env": None, "file": None, "sealed_to": None}
    carried = []
    for source in ({"file": file}, {"env": "THE_PASSWORD"}, {"secret_block": "a-block"}):
        with pytest.raises(PasswordError) as caught:
            await password.load(SimpleNamespace(**nothing | source), block=quoting)
        if SECRET in chain(caught.value):
            carried += source
    assert carried == []
