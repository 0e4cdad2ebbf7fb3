"""A password file with more than one line, or with a CR: what docs/restore.md and `openssl` make of it is another
password.
"""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from a0backup.artifact.encryption import decryptor
from a0backup.errors import PasswordError
from a0backup.passwords import shared as password


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
async def test_the_openssl_line_of_the_docs_opens_what_the_password_file_made(tmp_path: Path, written: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(written)
    file.chmod(0o600)
    try:
        source = SimpleNamespace(secret_block=None, env=None, file=file, sealed_to=None)
        given = await password.load(source, block=_never)
    except PasswordError:
        return  # refused at the start, before anything is encrypted with it: well
    assert given is not None
    artifact = tmp_path / "artifact"
    artifact.write_bytes(decryptor(given).update(b"what the node made"))  # CTR: both ways the same
    # docs/restore.md, step 3b: one line is read from the terminal, where nobody types a CR; step 4: `-pass file:`, of
    # which openssl takes the first line, also where it is the operator's very own file.
    typed = written.partition(b"\n")[0].rstrip(b"\r").decode()
    wrote = f"IFS= read -r PASSWORD <<< '{typed}' && printf '%s\\n' \"$PASSWORD\" > {tmp_path}/password-1"
    line = f"{wrote}; openssl enc -d -aes-256-ctr -md md5 -nosalt -in {artifact} -pass file:{tmp_path}/password-1"
    opened = subprocess.run(["bash", "-c", line], capture_output=True).stdout  # noqa: ASYNC221 - nothing else runs in this loop
    assert opened == b"what the node made"
