"""The board shows each node's step, its duration, and how much of the backup has been retrieved."""

from pathlib import Path

import pytest

from a0backup.report.outcomes import Ending, Outcome
from a0backup.report.progress import Board, Ended, Row, Step, Warned, percent_ended, table, tell, watched_by
from a0backup.report.warnings import RunWarning

ARTIFACT = "backup-retrieve.tar.gz.enc"


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board(["a0-1", "a0-2"], clock=clock)


def row(board: Board, node: str) -> Row:
    [found] = [row for row in board.rows() if row.node == node]
    return found


def outcome(node: str, ending: Ending = Ending.STORED, **more: object) -> Ended:
    return Ended(Outcome(node, **{"kind": "backup", "ending": ending, "seconds": 61.0, **more}))  # type: ignore[arg-type]


def test_a_node_is_shown_at_its_last_step_with_the_time_since_that_step_began(board: Board, clock: Clock) -> None:
    board.hear(Step("a0-1", "", "ping"))
    clock.now += 2
    board.hear(Step("a0-1", "backup", "start"))
    clock.now += 3
    board.hear(Step("a0-1", "backup", "start", "the node replied 'Backup in progress'"))
    clock.now += 4
    assert (row(board, "a0-1").step, row(board, "a0-1").seconds) == ("start", 7)
    assert row(board, "a0-1").says == "the node replied 'Backup in progress'"


def test_an_await_is_one_wait_however_often_the_node_is_polled(board: Board, clock: Clock) -> None:
    for _ in range(5):
        board.hear(Step("a0-1", "backup", "await"))
        clock.now += 60
    assert row(board, "a0-1").duration == "5 min 00 s"
    board.hear(Step("a0-1", "backup-sensitive", "await"))
    assert (row(board, "a0-1").who, row(board, "a0-1").seconds) == ("a0-1 backup-sensitive", 0)


def test_listed_nodes_are_shown_in_order_even_before_their_first_step(board: Board) -> None:
    board.hear(Step("a0-2", "", "ping"))
    board.hear(Step("a0-3", "", "ping"))
    assert [(each.node, each.step, each.duration) for each in board.rows()] == [
        ("a0-1", "not begun", ""),
        ("a0-2", "ping", "0.0 s"),
    ]


def test_every_reporting_node_is_shown_if_no_nodes_are_listed() -> None:
    board = Board()
    with watched_by(board.hear):
        tell(Step("a0-3", "", "ping"))
        tell(Warned(RunWarning("nobody's")))
    tell(Step("a0-4", "", "ping"))
    assert [each.node for each in board.rows()] == ["a0-3"]


def test_the_retrieved_bytes_are_the_size_of_the_growing_file(board: Board, tmp_path: Path) -> None:
    board.hear(Step("a0-1", "backup", "retrieve", watch=tmp_path, size=7_000_000))
    assert row(board, "a0-1").bytes == ""
    (tmp_path / ARTIFACT).write_bytes(bytes(1_500_000))
    assert row(board, "a0-1").bytes == "1.5 MB of about 7.0 MB"
    (tmp_path / ARTIFACT).write_bytes(bytes(2_500_000))
    assert row(board, "a0-1").bytes == "2.5 MB of about 7.0 MB"


def test_the_retrieved_bytes_remain_when_the_file_is_moved_and_restart_with_another_retrieval(
    board: Board, tmp_path: Path
) -> None:
    board.hear(Step("a0-1", "backup", "retrieve", watch=tmp_path))
    (tmp_path / ARTIFACT).write_bytes(bytes(1000))
    board.hear(Step("a0-1", "backup", "verify"))
    assert row(board, "a0-1").bytes == "1.0 kB"
    (tmp_path / ARTIFACT).unlink()
    assert row(board, "a0-1").bytes == "1.0 kB"
    board.hear(Step("a0-1", "backup", "retrieve", watch=tmp_path))
    assert row(board, "a0-1").bytes == ""
    (tmp_path / ARTIFACT).write_bytes(bytes(10))
    assert row(board, "a0-1").bytes == "10 B"
    board.hear(Step("a0-1", "backup-sensitive", "start"))
    assert row(board, "a0-1").bytes == ""


def test_a_missing_directory_is_not_an_error(board: Board, tmp_path: Path) -> None:
    board.hear(Step("a0-1", "backup", "retrieve", watch=tmp_path / "gone"))
    assert row(board, "a0-1").bytes == ""


def test_an_ended_node_shows_its_outcome_and_the_reason(board: Board) -> None:
    reason = "the node does not answer"
    board.hear(outcome("a0-1", size=734_003_200))
    board.hear(outcome("a0-2", Ending.UNREACHABLE, step="ping", reason=reason))
    assert percent_ended(board.rows()) == 100
    assert table(board.rows()) == [
        {"node": "a0-1", "step": "stored", "for": "1 min 01 s", "retrieved": "734.0 MB", "note": ""},
        {
            "node": "a0-2",
            "step": "unreachable (ping)",
            "for": "1 min 01 s",
            "retrieved": "",
            "note": "the node does not answer",
        },
    ]


def test_a_node_with_two_kinds_is_one_row_that_shows_the_failed_kind(board: Board) -> None:
    board.hear(outcome("a0-1", size=1000))
    board.hear(outcome("a0-1", Ending.FAILED, kind="backup-sensitive", step="verify", reason="md5 mismatch"))
    assert (row(board, "a0-1").step, row(board, "a0-1").says) == ("failed (verify)", "md5 mismatch")
    assert (row(board, "a0-1").bytes, row(board, "a0-1").duration) == ("1.0 kB", "2 min 02 s")
    assert percent_ended(board.rows()) == 50


def test_the_retrieved_bytes_of_a_failed_retrieval_are_still_shown(board: Board, tmp_path: Path) -> None:
    board.hear(Step("a0-1", "backup", "retrieve", watch=tmp_path, size=7_000_000))
    (tmp_path / ARTIFACT).write_bytes(bytes(1_500_000))
    board.rows()
    board.hear(outcome("a0-1", Ending.FAILED, step="retrieve", reason="the connection dropped"))
    assert row(board, "a0-1").bytes == "1.5 MB"


def test_each_of_three_nodes_counts_as_a_third() -> None:
    board = Board(["a", "b", "c"])
    assert percent_ended(board.rows()) == 0
    board.hear(outcome("b"))
    assert percent_ended(board.rows()) == 33.3
    assert percent_ended([]) == 100


def test_the_words_of_a_node_are_plain_text_in_the_table(board: Board) -> None:
    board.hear(Step("a0-1", "backup", "start", "![x](https://evil.example/x.png)"))
    assert table(board.rows())[0]["note"] == r"\!\[x\](https\://evil.example/x.png)"
