"""What a0cli has written cannot change after it was taken over."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from a0backup.a0cli.ownership import MARK, end_descendants, take_over
from tests.support.disks import as_root
from tests.support.paths import REPOSITORY
from tests.support.patience import patience, until

# Opens the file for writing, says so, and writes when it is told to.
WRITER = """
import sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    print("open", flush=True)
    sys.stdin.readline()
    file.write(b"changed")
    print("written", flush=True)
"""


@pytest.fixture
def arrived(tmp_path: Path) -> Path:
    file = tmp_path / "work" / "run-1" / "backup.tar.gz.enc"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"as retrieved")
    return file


@contextmanager
def writing(file: Path, mark: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={MARK: mark},
        start_new_session=True,
    ) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            yield writer
        finally:
            writer.kill()


def test_a_file_that_nobody_else_can_write_is_taken_over_as_it_is(arrived: Path) -> None:
    inode = arrived.stat().st_ino
    take_over(arrived)
    assert arrived.stat().st_ino == inode
    assert arrived.read_bytes() == b"as retrieved"


def test_a_process_that_a0cli_left_is_ended(arrived: Path) -> None:
    with writing(arrived, str(arrived.parent)) as left:
        take_over(arrived)
        assert left.wait() == -signal.SIGKILL
    assert arrived.read_bytes() == b"as retrieved"


def test_a_process_of_another_node_or_run_is_left_alone(arrived: Path) -> None:
    with writing(arrived, f"{arrived.parent}-2") as other:
        assert end_descendants(arrived.parent) == []
        assert psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE


def test_a_file_that_another_process_can_still_write_is_replaced_by_a_copy(arrived: Path) -> None:
    with writing(arrived, "elsewhere") as writer:
        take_over(arrived)
        print(file=writer.stdin, flush=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
    assert arrived.read_bytes() == b"as retrieved"
    assert list(arrived.parent.iterdir()) == [arrived]


def test_a_file_with_a_second_name_is_replaced_by_a_copy(arrived: Path) -> None:
    os.link(arrived, arrived.with_name("second"))
    take_over(arrived)
    arrived.with_name("second").write_bytes(b"changed")
    assert arrived.read_bytes() == b"as retrieved"
    assert arrived.stat().st_mode & 0o777 == 0o600


def take_over_unseeing(file: Path) -> None:
    """Take *file* over in a process that sees the other processes no more than those that hide from it."""
    body = "from a0backup.a0cli.ownership import take_over"
    take = f"{body}\nimport sys\nfrom pathlib import Path\ntake_over(Path(sys.argv[1]))"
    beside = 'sleep 60 >/dev/null 2>&1 & "$@"; ended=$?; kill $!; exit $ended'
    unseeing = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", beside, "sh"]
    subprocess.run([*unseeing, sys.executable, "-c", take, file], cwd=REPOSITORY, timeout=patience(60), check=True)


@as_root
def test_a_file_that_a_process_which_cannot_be_seen_can_still_write_is_replaced_by_a_copy(arrived: Path) -> None:
    with writing(arrived, "elsewhere") as writer:
        take_over_unseeing(arrived)
        print(file=writer.stdin, flush=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
    assert arrived.read_bytes() == b"as retrieved"


def test_the_holes_of_a_file_are_not_filled_by_its_copy(arrived: Path) -> None:
    with arrived.open("r+b") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"data")
    before = arrived.read_bytes()
    os.link(arrived, arrived.with_name("second"))
    take_over(arrived, spare=4 << 20)
    assert arrived.stat().st_blocks * 512 <= 4 << 20
    assert arrived.read_bytes() == before


def test_a_copy_that_would_take_more_than_may_be_taken_is_not_made(arrived: Path) -> None:
    arrived.write_bytes(b"x" * 2_000_000)
    os.link(arrived, arrived.with_name("second"))
    with pytest.raises(OSError, match="no room for a copy"):
        take_over(arrived, spare=1_999_999)
    assert {path.name for path in arrived.parent.iterdir()} == {arrived.name, "second"}
    take_over(arrived, spare=2_100_000)
    assert arrived.stat().st_nlink == 1


def test_the_copy_of_a_file_that_grows_without_end_ends(arrived: Path) -> None:
    grower = "import sys\nfile = open(sys.argv[1], 'ab', buffering=0)\nwhile True:\n    file.write(b'x' * 999)"
    with subprocess.Popen([sys.executable, "-c", grower, arrived], env={}) as writer:
        try:
            until(lambda: arrived.stat().st_size > 100_000)
            inode = arrived.stat().st_ino
            take_over(arrived, spare=1 << 30)
            assert arrived.stat().st_ino != inode
        finally:
            writer.kill()


def test_a_link_is_not_followed(arrived: Path) -> None:
    elsewhere = arrived.with_name("elsewhere")
    arrived.rename(elsewhere)
    arrived.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        take_over(arrived)


def test_descendants_that_start_further_ones_are_all_ended(arrived: Path) -> None:
    script = "for i in 1 2 3 4 5; do setsid sh -c 'sleep 60 & setsid sleep 60' & done; wait"
    with subprocess.Popen(["sh", "-c", script], env={MARK: str(arrived.parent), "PATH": os.defpath}) as shell:
        mark = f"{MARK}={arrived.parent}".encode()

        def count() -> int:
            found = 0
            for process in psutil.process_iter():
                try:
                    found += mark in Path(f"/proc/{process.pid}/environ").read_bytes()
                except OSError:
                    continue
            return found

        until(lambda: count() >= 16)
        end_descendants(arrived.parent)
        assert count() == 0
        shell.wait()


def test_whoever_opens_the_file_meanwhile_does_not_end_this_process(arrived: Path) -> None:
    """A lease that is broken sends a signal, whose default is to end the process."""
    opener = "import sys\nwhile True:\n    open(sys.argv[1], 'r+b').close()"
    take = (
        "import sys\nfrom pathlib import Path\nfrom a0backup.a0cli.ownership import take_over\n"
        "for _ in range(300):\n    take_over(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", opener, arrived], env={}) as other:
        try:
            taking = [sys.executable, "-c", take, arrived]
            assert subprocess.run(taking, cwd=REPOSITORY, timeout=patience(120)).returncode == 0
        finally:
            other.kill()
    assert arrived.read_bytes() == b"as retrieved"


def test_a_file_that_another_process_has_mapped_for_writing_is_replaced_by_a_copy(arrived: Path) -> None:
    program = (
        "import mmap, sys\nfile = open(sys.argv[1], 'r+b')\nmapped = mmap.mmap(file.fileno(), 0)\nfile.close()\n"
        "print('mapped', flush=True)\nsys.stdin.readline()\nmapped[0:2] = b'XX'\nmapped.flush()\n"
        "print('written', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, arrived], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "mapped\n"
        take_over(arrived)
        print(file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "written\n"
    assert arrived.read_bytes() == b"as retrieved"
