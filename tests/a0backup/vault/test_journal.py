"""A journal is read back as it was written, and nothing else is accepted as one."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from a0backup.identity import BackupIdentity
from a0backup.vault.journal import MAX_BYTES, Journal, JournalFile

NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
PAIR = BackupIdentity(name="04-06-2016-15-04-30.tar.gz", md5="a" * 32)
JOURNAL = Journal(
    node="a0-1",
    kind="backup",
    host="10.0.0.1",
    port=10121,
    flow_run="run-1",
    started_at=NOW,
    sealed=False,
    seen_before=PAIR,
)


@pytest.fixture
def place(tmp_path: Path) -> JournalFile:
    folder = tmp_path / "a0-1"
    folder.mkdir()
    return JournalFile(folder, "backup")


def test_there_is_no_journal_at_first(place: JournalFile) -> None:
    assert place.read() is None


def test_a_journal_is_read_back_as_it_was_written(place: JournalFile) -> None:
    noted = JOURNAL.noted(NOW, "found", pinned=PAIR).noted(NOW, "stored")
    place.write(noted)
    assert place.read() == noted
    assert noted.pinned == PAIR
    assert [entry.what for entry in noted.history] == ["found", "stored"]


def test_each_kind_has_its_own_journal(place: JournalFile) -> None:
    place.write(JOURNAL)
    assert JournalFile(place.path.parent, "backup-sensitive").read() is None
    assert [path.name for path in place.path.parent.iterdir()] == ["journal-backup.json"]


@pytest.mark.parametrize("other", [{"node": "a0-2"}, {"kind": "backup-sensitive"}])
def test_the_journal_of_another_node_or_kind_is_rejected(place: JournalFile, other: dict[str, str]) -> None:
    place.write(JOURNAL.model_copy(update=other))
    with pytest.raises(ValueError, match="is that of another node or kind"):
        place.read()


def test_a_removed_journal_is_gone_and_may_be_removed_again(place: JournalFile) -> None:
    place.write(JOURNAL)
    place.remove()
    place.remove()
    assert place.read() is None


WHOLE = JOURNAL.model_dump_json(by_alias=True).encode()
UNREADABLE = {
    "empty": b"",
    "torn": WHOLE[: len(WHOLE) // 2],
    "zeros, as a power cut may leave": b"\0" * len(WHOLE),
    "not JSON": b"\xff\xfe",
    "a list": b"[]",
    "another schema": WHOLE.replace(b'"schema":1', b'"schema":2'),
    "a pin without its md5": WHOLE.replace(b'"pinned":null', b'"pinned":{"name":"n","md5":null}'),
    "an unknown key": WHOLE.replace(b'"schema":1', b'"schema":1,"more":1'),
    "too deep": b"[" * 10_000,
    "too large": WHOLE + b" " * MAX_BYTES,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_invalid_content_is_never_read_as_a_journal(place: JournalFile, content: bytes) -> None:
    place.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"journal-backup\.json"):
        place.read()


@pytest.mark.parametrize("what", ["directory", "pipe", "link"])
def test_a_file_that_is_not_regular_is_neither_followed_nor_waited_for(place: JournalFile, what: str) -> None:
    if what == "directory":
        place.path.mkdir()
    elif what == "pipe":
        os.mkfifo(place.path)
    else:
        (place.path.parent / "other").write_bytes(WHOLE)
        place.path.symlink_to("other")
    with pytest.raises(ValueError, match="not a regular file"):
        place.read()
    place.set_aside(NOW)
    assert place.read() is None


def test_an_unreadable_journal_is_set_aside_for_a_person_to_read(place: JournalFile) -> None:
    place.path.write_bytes(b"torn")
    aside = place.set_aside(NOW)
    assert aside.name == "journal-backup.json.unreadable-20261123T020000Z"
    assert aside.read_bytes() == b"torn"
    assert place.read() is None
