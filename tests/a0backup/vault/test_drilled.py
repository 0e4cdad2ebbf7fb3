"""The record of a drill beside an artifact: written whole, and read from anybody without harm."""

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a0backup.vault.drilled import DRILLED, MAX_DRILLED_BYTES, Drilled, read_drilled, write_drilled

THEN = datetime(2026, 11, 29, 5, 0, 0, tzinfo=UTC)
WELL = '{"schema": 1, "drilled_at": "2026-11-29T05:00:00Z", "passed": true, "level": "contents", "problem": null}'


def test_the_record_holds_what_was_written(tmp_path: Path) -> None:
    for drilled in (
        Drilled(drilled_at=THEN, passed=True, level="contents"),
        Drilled(drilled_at=THEN, passed=False, level="md5", problem="the artifact is missing"),
    ):
        write_drilled(tmp_path, drilled)
        assert read_drilled(tmp_path) == drilled
    assert [path.name for path in tmp_path.iterdir()] == [DRILLED]


def test_the_record_is_the_documented_json_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_drilled(tmp_path, Drilled(drilled_at=THEN, passed=True, level="contents"))
    finally:
        os.umask(before)
    file = tmp_path / DRILLED
    assert file.read_text().split() == WELL.replace("{", "{ ").replace("}", " }").split()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_record_there_is_none(tmp_path: Path) -> None:
    assert read_drilled(tmp_path) is None
    assert read_drilled(tmp_path / "gone") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 20_000,
        WELL.replace("1,", "2,"),
        WELL.replace("true", '"yes"'),
        WELL.replace("contents", "all"),
        WELL.replace("Z", ""),
        WELL.replace("2026-11-29", "0001-01-01").replace("Z", "+14:00"),
        WELL.replace('"2026-11-29T05:00:00Z"', "9" * 5000),
        WELL.replace("null", '"' + "x" * MAX_DRILLED_BYTES + '"'),
        WELL.replace("}", ', "more": 1}'),
    ],
)
def test_what_is_no_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / DRILLED).write_text(content)
    assert read_drilled(tmp_path) is None


@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_record_or_none(content: bytes) -> None:
    assert Drilled.parsed(content) is None


def test_no_link_pipe_or_folder_is_read_as_a_record(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(WELL)
    file = tmp_path / DRILLED
    file.symlink_to("elsewhere")
    assert read_drilled(tmp_path) is None
    file.unlink()
    os.mkfifo(file)
    assert read_drilled(tmp_path) is None
    file.unlink()
    file.mkdir()
    assert read_drilled(tmp_path) is None


def test_a_problem_is_one_printable_line_of_bounded_length(tmp_path: Path) -> None:
    (tmp_path / DRILLED).write_text(WELL.replace("null", r'"\u001b[31mred\nmore \u202e' + "x" * 5000 + '"'))
    drilled = read_drilled(tmp_path)
    assert drilled is not None
    assert drilled.problem is not None
    assert drilled.problem.isprintable()
    assert drilled.problem.startswith("red more")
    assert len(drilled.problem) <= 1000
