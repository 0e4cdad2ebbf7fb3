"""`decrypt -o FILE` into a folder that is not there: told only after the whole artifact was read, perhaps an hour
later.
"""

from pathlib import Path

from tests.stored import store
from tests.support.command import a0backup


def test_a_target_that_cannot_be_made_is_told_before_the_artifact_is_read(tmp_path: Path) -> None:
    manifest = store(tmp_path / "vault", "Passw0rd")
    artifact = tmp_path / "vault" / manifest.id / manifest.artifact.file
    artifact.write_bytes(artifact.read_bytes()[:-1])  # what only a reading can tell
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "not there" / "plain.tar.gz"
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    ended = a0backup(*arguments)
    assert "not there" in f"{ended.stdout}{ended.stderr}", ended.stdout
