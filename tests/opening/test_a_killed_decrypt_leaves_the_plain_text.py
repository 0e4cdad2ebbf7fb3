"""`a0backup decrypt`: SIGTERM, or the SIGHUP of a connection that drops, leaves the decrypted backup in a hidden
file.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stored import store
from tests.support.patience import patience

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_decrypt_that_is_called_off_leaves_nothing_decrypted(tmp_path: Path, number: signal.Signals) -> None:
    manifest = store(tmp_path / "vault", "Passw0rd", size=150_000_000)
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "out" / "plain.tar.gz"
    target.parent.mkdir()
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    running = subprocess.Popen(
        [sys.executable, "-c", "from a0backup.cli.main import main; main()", *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + patience(60)
    while not any(path.stat().st_size for path in target.parent.iterdir()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(number)
    running.communicate(timeout=patience(30))
    left = [(path.name, path.stat().st_size, path.read_bytes()[:3]) for path in target.parent.iterdir()]
    shutil.rmtree(tmp_path / "vault")
    assert left == []
