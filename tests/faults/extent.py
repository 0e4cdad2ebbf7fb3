"""How much is tried: A0BACKUP_FAULTS=1 is every point, 10 is each tenth; without it only the short selection."""

import os
from collections.abc import Iterable
from typing import TypeVar

import pytest

EVERY = int(os.environ.get("A0BACKUP_FAULTS", "0"))
WHOLE = EVERY == 1
PARTS = 4  # of each matrix, so that the workers of pytest-xdist share it

matrix = pytest.mark.skipif(EVERY == 0, reason="takes minutes; `make test-faults` runs it")
deep = pytest.mark.skipif(not WHOLE, reason="takes minutes; `make test-faults` runs it")
in_parts = pytest.mark.parametrize("part", range(PARTS))

P = TypeVar("P")


def share(points: Iterable[P], part: int = 0, parts: int = 1) -> list[P]:
    """Return those of *points* that are tried, or one part of them."""
    return list(points)[EVERY // 2 :: EVERY][part::parts]
