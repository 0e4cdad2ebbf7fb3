"""A small disk of its own, for tests of what happens when the vault's disk fills."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a disk of *size*, such as "20m", at the new folder *place*."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)
