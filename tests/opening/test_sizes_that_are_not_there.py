"""`verified.largest` in the manifest says sizes of members that have no bytes: what a link's header claims,
unproven.
"""

import gzip
import tarfile
from pathlib import Path

from a0backup.artifact.encryption import decryptor
from a0backup.artifact.inspection import inspect
from a0backup.fleet.models import ContentsLimits


def test_the_largest_members_together_are_no_larger_than_the_tar(tmp_path: Path) -> None:
    link = tarfile.TarInfo("dump/auth0/users.bson")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "elsewhere", 1 << 70
    tar = link.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "artifact").write_bytes(decryptor("P").update(gzip.compress(tar)))
    seen = inspect(tmp_path / "artifact", ["P"], node="n", kind="backup", limits=ContentsLimits())
    assert seen.contents is not None
    # The manifest would say: users.bson, 1,180,591,620,717,411,303,424 bytes, of a tar of 1,536.
    assert sum(member.size for member in seen.contents.largest) <= seen.contents.unpacked_size, seen.contents
