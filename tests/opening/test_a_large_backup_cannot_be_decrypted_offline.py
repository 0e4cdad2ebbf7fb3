"""`decrypt --vault`: what fleet.yaml allowed to be stored is refused where there is no fleet.yaml to allow it."""

import gzip
import io
import tarfile
from pathlib import Path

from tests.stored import store
from tests.support.command import a0backup


def test_what_the_run_stored_can_be_decrypted_where_there_is_no_fleet_yaml(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("dump/auth0/empty.bson")
        member.size = 80 << 20
        tar.addfile(member, io.BytesIO(bytes(80 << 20)))
    # A ratio of 220; the fleet has `contents: {max_ratio: 1032}`, with which a run stores and a drill opens it.
    manifest = store(tmp_path / "vault", "Passw0rd", plain=gzip.compress(out.getvalue(), 1))
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "plain.tar.gz"
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    ended = a0backup(*arguments)
    # Whoever has password and vault wants the bytes; `ContentsLimits` are about what a node may do to a run.
    assert ended.returncode == 0, ended.stdout
