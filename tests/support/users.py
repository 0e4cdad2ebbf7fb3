"""This process as another user.

with as_user(12345, 54321):      # only root can; relative paths, as the folders above tmp_path are closed
    Path("password").read_bytes()
with open_folder() as folder:    # all users can read what is in it
    (folder / "closed").mkdir(0o700)
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@contextmanager
def as_user(uid: int, gid: int) -> Iterator[None]:
    """Have the rights of this user and group alone inside the block."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a new folder that every user can read, by its absolute path, too."""
    with tempfile.TemporaryDirectory(prefix="a0backup-open-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
