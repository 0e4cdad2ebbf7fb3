"""`a0backup init PATH` prints what to do next; done as printed, the key pair is not where the fleet file looks for
it.
"""

import re
import shlex
from pathlib import Path

import pytest

from a0backup.fleet.load import load_fleet
from tests.support.command import a0backup


def test_the_printed_next_steps_lead_to_a_fleet_file_that_finds_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleets").mkdir()
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("twelve or more\n")
    passphrase.chmod(0o600)
    printed = a0backup("init", "fleets/prod.yaml").stdout
    command = re.search(r"`a0backup (key create[^`]*)`", printed)
    assert command
    made = a0backup(*shlex.split(command[1]), "--passphrase-file", str(passphrase))
    assert made.returncode == 0, made.stdout
    [public] = load_fleet(tmp_path / "fleets" / "prod.yaml").password.sealed_to or ()
    assert public.exists(), (printed, sorted(tmp_path.rglob("*.pem")))
