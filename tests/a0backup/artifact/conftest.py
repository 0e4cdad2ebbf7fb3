"""What the tests of artifacts share."""

from pathlib import Path

import pytest

from tests.support.artifacts import Look


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return Look(tmp_path)
