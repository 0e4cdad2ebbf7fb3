"""`key create --passphrase-file`: passphrases with which a key is made that openssl, or nobody, opens."""

import subprocess
from pathlib import Path

import pytest

from a0backup.passwords import recovery_keys
from tests.support.command import a0backup


@pytest.mark.parametrize("written", [b"x" * 1100, b"twelve or more\r", b"twelve \0 or more"], ids=["long", "CR", "NUL"])
def test_a_key_pair_that_is_made_opens_again(tmp_path: Path, written: bytes) -> None:
    passphrase, private = tmp_path / "passphrase", tmp_path / "recovery.key.pem"
    passphrase.write_bytes(written + b"\n")
    passphrase.chmod(0o600)
    arguments = ["key", "create", "--passphrase-file", str(passphrase), str(tmp_path)]
    made = a0backup(*arguments)
    if made.returncode != 0:
        return  # refused: well
    # With the software ...
    recovery_keys.load_private(private, recovery_keys.read_passphrase(passphrase))
    # ... and as docs/restore.md has it: `IFS= read -rsp` and `-passin env:`. Only bash takes a NUL or more out of it.
    typed = 'IFS= read -r PASSPHRASE < "$1" && export PASSPHRASE && openssl pkey -in "$2" -passin env:PASSPHRASE -noout'
    ended = subprocess.run(["bash", "-c", typed, "-", passphrase, private], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # A person who reads it off a paper types no CR.
    seen = written.decode().rstrip("\r")
    recovery_keys.load_private(private, seen)
