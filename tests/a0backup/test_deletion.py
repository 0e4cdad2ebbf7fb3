"""The mark of a deletion; what it is for is told in test_backup_run.py, with real nodes."""

import os
from datetime import UTC, datetime
from pathlib import Path

from a0backup.deletion import DeletionMark
from a0backup.replies import Found


def test_the_mark_of_a_deletion_tells_how_long_ago_it_was_sent(tmp_path: Path) -> None:
    mark = DeletionMark(tmp_path, "backup")
    assert mark.age() is None
    mark.put(Found("n.tar.gz", "a" * 32), flow_run="run-1", at=datetime.now(UTC))
    age = mark.age()
    assert age is not None
    assert -1 < age < 60
    os.utime(mark.path, (0, 0))
    assert (mark.age() or 0) > 10**9
    mark.remove()
    mark.remove()
    assert mark.age() is None
