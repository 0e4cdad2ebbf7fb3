"""Files survive a crash at any system call, a full disk and any umask. A thread ends before its caller continues."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from a0backup.access import others_can_write
from a0backup.files import (
    CHUNK,
    Digests,
    ExposedFileError,
    StoppedError,
    digests,
    in_thread,
    make_new_directory,
    make_private_directory,
    publish,
    read_whole,
    remove_durably,
    remove_file,
    remove_tree,
)
from tests.support.environment import unwatched
from tests.support.paths import REPOSITORY
from tests.support.patience import patience, until
from tests.support.users import as_user, needs_root

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def python(room: Path, body: str, *, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run *body* in its own process, whose current directory is *room*."""
    program = f"import os, resource\nfrom pathlib import Path\nfrom a0backup.files import *\n{body}"
    return subprocess.run(
        [*(before or []), sys.executable, "-c", program],
        cwd=room,
        env=unwatched() | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )


def traced(room: Path, body: str, *, inject: str = "") -> list[str]:
    """Return the file calls of *body* after the creation of MARK, as `call name` or `call from -> to`."""
    log = room.parent / f"{room.name}.trace"
    options = [
        "-f",
        "-qq",
        "-y",
        "-e",
        "trace=openat,write,pwrite64,fsync,fdatasync,rename,unlink,mkdir,fadvise64,read",
    ]
    if inject:
        options += ["-e", f"inject={inject}"]
    python(room, f"os.mkdir('MARK')\n{body}", before=["strace", *options, "-o", str(log)])
    lines = iter(log.read_text().splitlines())
    next(line for line in lines if "MARK" in line)
    told = []
    for line in lines:
        call, _, rest = line.partition(" ")[2].strip().partition("(")
        names = [Path(name).name for name in re.findall(rf"{re.escape(str(room))}[^\">]*", rest)]
        names = names or [Path(name).name for name in re.findall(r'"([^"]*)"', rest)]
        if call == "rename":
            told.append(f"rename {names[0]} -> {names[1]}")
        elif call in ("write", "pwrite64", "fsync", "fdatasync", "fadvise64", "unlink", "mkdir") and names:
            told.append(f"{call} {names[0]}")
    return [re.sub(r"\.[0-9a-f]{32}\.partial", ".partial", line) for line in told]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    made = tmp_path / "room"
    made.mkdir()
    return made


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=["umask 000", "umask 022", "umask 777"])
def any_umask(request: pytest.FixtureRequest, room: Path) -> Iterator[None]:
    """The umask of the call, not of the room where it runs."""
    former = os.umask(request.param)
    yield
    os.umask(former)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- publish -----------------------------------------------------------------------------------------------------------


@needs_strace
def test_a_file_is_published_in_the_order_that_survives_a_power_cut(room: Path) -> None:
    assert traced(room, "publish(Path('journal.json').absolute(), b'content')") == [
        "write .journal.json.partial",
        "fsync .journal.json.partial",
        "rename .journal.json.partial -> journal.json",
        "fsync room",
    ]


@needs_strace
@pytest.mark.parametrize("fails", ["fsync:error=EIO", "write:error=ENOSPC", "rename:error=ENOSPC"])
def test_a_failed_publish_keeps_the_old_file_and_leaves_nothing_beside_it(room: Path, fails: str) -> None:
    (room / "journal.json").write_bytes(b"former")
    traced(room, "publish(Path('journal.json').absolute(), b'content')", inject=fails)
    (room / "MARK").rmdir()
    assert {path.name: path.read_bytes() for path in room.iterdir()} == {"journal.json": b"former"}


@needs_strace
@pytest.mark.parametrize("failed", [1, 2])
def test_after_a_failed_fsync_the_file_is_rewritten_rather_than_synced_again(room: Path, failed: int) -> None:
    (room / "journal.json").write_bytes(b"former")
    inject = f"fsync:error=EIO:when={failed}"  # 1: of the file, 2: of its directory
    calls = traced(room, "publish(Path('journal.json').absolute(), b'content')", inject=inject)
    assert (room / "journal.json").read_bytes() == b"content"
    again = calls[calls.index("fsync .journal.json.partial" if failed == 1 else "fsync room") + 1 :]
    assert [call for call in again if call.startswith(("write", "fsync", "rename"))] == [
        "write .journal.json.partial",
        "fsync .journal.json.partial",
        "rename .journal.json.partial -> journal.json",
        "fsync room",
    ]


@needs_strace
@pytest.mark.parametrize("failed", [1, 2])
def test_bytes_left_by_a_failed_fsync_are_rewritten(room: Path, failed: int) -> None:
    (room / "artifact").write_bytes(b"x" * 3_000_000)
    before = (room / "artifact").stat().st_ino
    calls = traced(room, "make_durable(Path('artifact').absolute())", inject=f"fsync:error=EIO:when={failed}")
    assert calls[-2:] == ["rename .artifact.partial -> artifact", "fsync room"]
    assert (room / "artifact").read_bytes() == b"x" * 3_000_000
    assert (room / "artifact").stat().st_ino != before


@needs_strace
def test_a_disk_that_fills_up_during_a_write_keeps_the_old_file(room: Path) -> None:
    (room / "journal.json").write_bytes(b"former")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    done = python(room, f"{limit}\npublish(Path('journal.json'), b'x' * 100_000)")
    assert "File too large" in done.stderr
    assert {path.name: path.read_bytes() for path in room.iterdir()} == {"journal.json": b"former"}


@pytest.mark.usefixtures("any_umask")
def test_a_published_file_is_private_whatever_the_umask(room: Path) -> None:
    publish(room / "journal.json", b"content")
    assert mode(room / "journal.json") == 0o600
    assert (room / "journal.json").read_bytes() == b"content"


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(room: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (room / "journal.json").symlink_to(tmp_path / "elsewhere")
    publish(room / "journal.json", b"content")
    assert not (room / "journal.json").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


@needs_strace
def test_a_file_is_removed_durably(room: Path) -> None:
    (room / "journal.json").write_bytes(b"content")
    assert traced(room, "remove_durably(Path('journal.json').absolute())") == ["unlink journal.json", "fsync room"]


def test_removing_a_missing_file_is_not_an_error(room: Path) -> None:
    remove_durably(room / "journal.json")


# -- directories -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_umask")
def test_directories_are_private_whatever_the_umask(room: Path) -> None:
    make_private_directory(room / "vault" / "a0-1" / "work")
    make_new_directory(room / "vault" / "a0-1" / "new")
    made = [path for path in (room / "vault").rglob("*") if path.is_dir()] + [room / "vault"]
    assert {path.name: mode(path) for path in made} == dict.fromkeys(["vault", "a0-1", "work", "new"], 0o700)


def test_an_existing_directory_of_the_operator_is_left_unchanged(room: Path) -> None:
    (room / "vault").mkdir()
    (room / "vault").chmod(0o750)
    make_private_directory(room / "vault")
    assert mode(room / "vault") == 0o750


def test_only_one_caller_can_create_a_new_directory(room: Path) -> None:
    make_new_directory(room / "new")
    with pytest.raises(FileExistsError):
        make_new_directory(room / "new")


@needs_strace
def test_a_new_directory_is_durable_in_its_parent(room: Path) -> None:
    assert traced(room, "make_new_directory(Path('new').absolute())") == ["mkdir new", "fsync room"]


# -- who else can write or read ----------------------------------------------------------------------------------------


def allow(user: int, path: Path, rights: int) -> None:
    """Give *user* these *rights* on *path* and its group by an access control list, as `setfacl` does."""
    everyone = 0xFFFFFFFF
    owner, named, group, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20  # acl(5), in the kernel's form
    entries = [(owner, 6, everyone), (named, rights, user), (group, rights, everyone), (mask, rights, everyone)]
    packed = [struct.pack("<HHI", *entry) for entry in [*entries, (other, 0, everyone)]]
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(packed))
    except OSError:
        pytest.skip("this file system has no access control lists")


def test_who_may_write_by_an_access_control_list_is_somebody_else(room: Path) -> None:
    file = room / "fleet.yaml"
    file.touch()
    os.chown(file, -1, os.getgid())
    file.chmod(0o640)
    assert not others_can_write(file)
    allow(65534, file, 6)
    assert others_can_write(file)


@needs_root
def test_a_secret_for_our_group_is_refused_if_an_access_control_list_lets_somebody_else_read_it(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = room / "password"
    file.write_bytes(b"secret")
    os.chown(file, 0, 65534)
    file.chmod(0o440)
    room.chmod(0o755)
    monkeypatch.chdir(room)
    with as_user(65534, 65534):
        assert read_whole(Path("password"), 100, private=True) == b"secret"
    allow(65533, file, 4)
    with as_user(65534, 65534), pytest.raises(ExposedFileError):
        read_whole(Path("password"), 100, private=True)


# -- digests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
@pytest.mark.parametrize("past_cache", [False, True])
def test_digests_are_those_of_the_bytes(room: Path, size: int, past_cache: bool) -> None:
    content = b"\x5a" * size
    (room / "artifact").write_bytes(content)
    expected = Digests(size, hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest())
    assert digests(room / "artifact", past_cache=past_cache) == expected


@needs_strace
def test_a_file_read_past_the_cache_is_dropped_from_it_first(room: Path) -> None:
    (room / "artifact").write_bytes(b"content")
    told = traced(room, "digests(Path('artifact').absolute(), past_cache=True)")
    assert told == ["fadvise64 artifact", "fadvise64 artifact"]


@pytest.mark.parametrize(
    "call",
    [
        "digests(path)",
        "digests(path, past_cache=True)",
        "read_past_cache(path)",
        "make_durable(path)",
        "open(path, 'rb', opener=open_regular)",
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_not_a_file_is_refused_at_once(room: Path, call: str, make: Callable[[Path], None]) -> None:
    make(room / "artifact")
    ended = python(room, f"path = Path('artifact')\ntry:\n    {call}\nexcept OSError as error:\n    print(error)")
    assert "is not a regular file" in ended.stdout, ended.stderr


# -- in_thread ---------------------------------------------------------------------------------------------------------


async def test_a_thread_returns_its_result_and_raises_its_error(room: Path) -> None:
    assert await in_thread(lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(FileNotFoundError):
        await in_thread(digests, room / "nowhere")


class Work:
    """Work in a thread that does not end before it is let go."""

    def __init__(self) -> None:
        self.began, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.let_go.wait(patience(20))
        self.ended.set()

    async def begun(self) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(in_thread(self))
        assert await asyncio.to_thread(self.began.wait, 20)
        return task


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_however_many_threads_are_at_work_one_more_begins_at_once(room: Path) -> None:
    """The artifacts of all nodes may be read at the same time, and the others' journals are written meanwhile."""
    (room / "journal").write_bytes(b"content")
    works = [Work() for _ in range(300)]
    tasks = [asyncio.ensure_future(in_thread(work)) for work in works]
    await turns()
    try:
        one_more = asyncio.ensure_future(in_thread(digests, room / "journal"))
        await asyncio.wait({one_more}, timeout=patience(10))
        at_once = one_more.done()
    finally:
        for work in works:
            work.let_go.set()
        await asyncio.gather(*tasks, one_more)
    assert at_once


async def test_a_thread_ends_with_its_work() -> None:
    before = threading.active_count()
    for _ in range(20):
        await in_thread(int)
    until(lambda: threading.active_count() <= before)


def test_a_process_ends_after_the_thread_of_a_cancelled_caller(room: Path) -> None:
    body = """
import asyncio, time
def work():
    time.sleep(1)
    Path("written").write_text("whole")
async def main():
    task = asyncio.create_task(in_thread(work))
    await asyncio.sleep(0.2)
    task.cancel()
asyncio.run(main())
print((Path("written")).read_text())
"""
    assert python(room, body).stdout == "whole\n"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_caller_waits_for_its_thread_however_often_it_is_cancelled(times: int) -> None:
    work = Work()
    task = await work.begun()
    for _ in range(times):
        task.cancel()
        await turns()
    gone_early = task.done()
    work.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not gone_early
    assert work.ended.is_set()


async def test_a_cancelled_reading_ends_at_the_next_chunk(room: Path) -> None:
    """A sparse file of a terabyte takes minutes: only the cancellation can end the reading in time."""
    with (room / "artifact").open("wb") as file:
        file.truncate(1 << 40)
    reading = asyncio.ensure_future(in_thread(digests, room / "artifact"))
    await turns()
    reading.cancel()
    async with asyncio.timeout(patience(20)):
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_a_stopped_thread_does_not_stop_the_next_one(room: Path) -> None:
    work = Work()
    task = await work.begun()
    task.cancel()
    await turns()
    work.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    (room / "artifact").write_bytes(json.dumps([1]).encode())
    assert (await in_thread(digests, room / "artifact")).size == 3


def test_a_stop_is_not_an_os_error() -> None:
    assert not issubclass(StoppedError, OSError)


def test_a_tree_is_not_removed_through_a_link_on_the_way_to_it(room: Path) -> None:
    (room / "elsewhere" / "run").mkdir(parents=True)
    (room / "vault").mkdir()
    (room / "vault" / "node").symlink_to(room / "elsewhere")
    assert remove_tree(room / "vault" / "node" / "run", below=room / "vault") == [room / "vault" / "node" / "run"]
    assert (room / "elsewhere" / "run").exists()
    with pytest.raises(NotADirectoryError):
        remove_file(room / "vault" / "node" / "run", below=room / "vault")
    assert remove_tree(room / "vault" / "gone" / "run", below=room / "vault") == []


# Root may enter every folder, unless it gives that up.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(UNPRIVILEGED != [] and shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_folders_that_are_closed_to_their_owner_are_removed(room: Path) -> None:
    ended = python(
        room,
        """
        Path("elsewhere").mkdir(0o500)
        for mode in (0o000, 0o500, 0o300):
            for folder in ("d", "d/inner", "d/inner/most"):
                Path(folder).mkdir()
                (Path(folder) / "file").touch()
            Path("d/link").symlink_to("../elsewhere")
            Path("d/file").chmod(0)
            for folder in ("d/inner/most", "d/inner", "d"):
                Path(folder).chmod(mode)
            assert remove_tree(Path("d").absolute()) == []
            assert not os.path.lexists("d")
        print(oct(Path("elsewhere").stat().st_mode & 0o777))
        """.replace("\n        ", "\n"),
        before=UNPRIVILEGED,
    )
    assert (ended.stdout, ended.stderr) == ("0o500\n", "")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can give a folder away")
def test_a_closed_folder_of_another_user_stays_as_it_is(room: Path) -> None:
    theirs = room / "d" / "theirs"
    theirs.mkdir(parents=True)
    (theirs / "file").touch()
    os.chown(theirs, 65534, 65534)
    theirs.chmod(0o500)
    ended = python(room, f"print(len(remove_tree(Path({str(room / 'd')!r}))))", before=UNPRIVILEGED)
    assert ended.stdout != "0\n", ended.stderr
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o500
    assert (theirs / "file").exists()


def test_thousands_of_nested_folders_end_nothing(room: Path) -> None:
    nest = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')"
    subprocess.run([sys.executable, "-c", nest], cwd=room, check=True)
    try:
        assert remove_tree(room / "d") in ([], [room / "d"])
    finally:
        subprocess.run(["rm", "-rf", room / "d"], check=True)
