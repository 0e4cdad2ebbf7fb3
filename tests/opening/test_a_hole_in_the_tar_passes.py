"""A block of zeros where a member's header was: the rest of the dump is never read, and `verified` says `contents`."""

import gzip
import io
import tarfile
from pathlib import Path

from a0backup.artifact.encryption import decryptor
from a0backup.artifact.inspection import inspect
from a0backup.fleet.models import ContentsLimits


def test_a_dump_of_which_most_members_cannot_be_reached_is_not_good(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for number in range(10):
            member = tarfile.TarInfo(f"dump/auth0/collection-{number}.bson")
            member.size = 1024
            tar.addfile(member, io.BytesIO(b"x" * 1024))
    broken = bytearray(out.getvalue())
    broken[1536 : 1536 + 512] = bytes(512)  # one header, lost on the node before it was compressed
    (tmp_path / "artifact").write_bytes(decryptor("P").update(gzip.compress(bytes(broken))))
    seen = inspect(tmp_path / "artifact", ["P"], node="n", kind="backup", limits=ContentsLimits())
    # One of ten members is seen, and what follows are well-formed headers.
    assert seen.error is not None, seen.contents
