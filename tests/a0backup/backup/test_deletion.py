"""The mark of a deletion. test_nights.py tests its purpose, with nodes of the simulator."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

from a0backup.a0cli.status import Found
from a0backup.backup.deletion import DeletionMark


def test_the_mark_of_a_deletion_says_what_was_deleted_and_by_whom(tmp_path: Path) -> None:
    mark = DeletionMark(tmp_path, "backup")
    assert not mark.is_there()
    mark.put(Found("n.tar.gz", "a" * 32), flow_run="run-1", at=datetime(2026, 11, 23, 2, tzinfo=UTC))
    assert mark.is_there()
    assert json.loads((tmp_path / "deleting-backup.json").read_text()) == {
        "schema": 1,
        "at": "2026-11-23T02:00:00Z",
        "name": "n.tar.gz",
        "md5": "a" * 32,
        "flow_run": "run-1",
    }
    assert stat.S_IMODE(mark.path.stat().st_mode) == 0o600
    mark.remove()
    mark.remove()
    assert not mark.is_there()
