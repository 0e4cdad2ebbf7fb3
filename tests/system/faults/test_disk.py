"""The disk of the fault harness, against real processes: it sees every call, and breaks the one it is told to."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.patience import patience
from tests.system.faults.disk import NAMES, Disk, attach, preloaded, read_tree

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the library is of Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the library is built by cc"),
]


# Each step is one counted call, in the many spellings of the C library. `here` is the root, `other` a file elsewhere.
STEPS = {
    "os.mkdir('d', 0o755)": "mkdir",
    "fd = os.open('d/a.partial', os.O_CREAT | os.O_RDWR, 0o600)": "create",
    "os.write(fd, b'first')": "write",
    "os.pwrite(fd, b'F', 0)": "write",
    "os.writev(fd, [b' and', b' more'])": "write",
    "os.pwritev(fd, [b'irs'], 1)": "write",
    "os.sendfile(fd, other, 0, 3)": "write",
    "os.copy_file_range(other, fd, 4)": "write",
    "os.ftruncate(fd, 19)": "truncate",
    "os.posix_fallocate(fd, 0, 32)": "fallocate",
    "os.fchmod(fd, 0o640)": "chmod",
    "os.fsync(fd)": "fsync",
    "os.rename('d/a.partial', 'd/a')": "rename",
    "os.chmod('d/a', 0o600)": "chmod",
    "os.truncate('d/a', 4)": "truncate",
    "os.fdatasync(fd)": "fsync",
    "os.link('d/a', 'hard')": "link",
    "os.symlink('d/a', 'soft')": "symlink",
    "os.open('hard', os.O_WRONLY | os.O_TRUNC)": "truncate",
    "os.unlink('hard')": "unlink",
    "os.replace('d/a', 'd/b', src_dir_fd=here, dst_dir_fd=here)": "rename",
    "os.chmod('d/b', 0o400, dir_fd=here)": "chmod",
    "os.unlink('d/b', dir_fd=here)": "unlink",
    "os.mkdir('e', 0o700, dir_fd=here)": "mkdir",
    "os.open('e/new', os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600, dir_fd=here)": "create",
    "os.symlink('e', 'e/link', dir_fd=here)": "symlink",
    "os.link('e/new', 'e/same', src_dir_fd=here, dst_dir_fd=here)": "link",
    "os.rmdir('d')": "rmdir",
    "os.fsync(here)": "fsync",
    "os.mkdir('f')": "mkdir",
    "os.rmdir('f', dir_fd=here)": "rmdir",
}
PREAMBLE = "import os; os.umask(0o022); here = os.open('.', os.O_RDONLY); other = os.open('../other', os.O_RDONLY)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "other").write_bytes(b"other bytes")
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def disk(root: Path) -> Disk:
    return Disk(root, root.parent / "room")


def run(
    code: str, root: Path, environment: dict[str, str], *, expect: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run *code* in a separate Python whose directory is *root*."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert expect is None or done.returncode == expect
    return done


def state(root: Path) -> dict[str, object]:
    return {
        place: (stat.S_IMODE((root / place).lstat().st_mode), content) for place, content in read_tree(root).items()
    }


@functools.cache
def _states() -> list[dict[str, object]]:
    """Return the state after each step, without the library. The first entry is the state before them."""
    report = "print(repr(state(Path('.'))), flush=True)\n"
    imports = "from pathlib import Path; from tests.system.faults.test_disk import state\n"
    room = Path(os.environ["A0BACKUP_TEST_ROOM"]) / f"disk-states-{os.getpid()}"
    root = room / "root"
    root.mkdir(parents=True)
    try:
        (room / "other").write_bytes(b"other bytes")
        # With the packages that the test module needs.
        done = subprocess.run(
            [sys.executable, "-c", imports + PREAMBLE + report + "".join(f"{step}\n{report}" for step in STEPS)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=patience(60),
            check=True,
        )
    finally:
        shutil.rmtree(room)
    return [eval(line) for line in done.stdout.splitlines()]


def emptied(root: Path) -> Path:
    shutil.rmtree(root)
    root.mkdir()
    return root


# -- what is seen ------------------------------------------------------------------------------------------------


def test_every_call_is_counted_in_order(disk: Disk, root: Path) -> None:
    before = time.time()
    run(PREAMBLE + "\n".join(STEPS), root, disk.environment())
    seen = disk.operations()
    assert [operation.name for operation in seen] == list(STEPS.values())
    assert [operation.ordinal for operation in seen] == list(range(1, len(STEPS) + 1))
    assert {(operation.life, operation.error, operation.killed) for operation in seen} == {(1, 0, "")}
    assert before <= seen[0].at <= seen[-1].at <= time.time()
    assert [operation.at for operation in seen] == sorted(operation.at for operation in seen)
    paths = {operation.ordinal: (operation.path, operation.to, operation.size) for operation in seen}
    assert [paths[n] for n in (1, 3, 6, 12, 13)] == [
        ("d", "", 0),
        ("d/a.partial", "", 5),
        ("d/a.partial", "", 3),
        ("d/a.partial", "", 32),
        ("d/a.partial", "d/a", 0),
    ]
    assert [paths[n] for n in (17, 18, 21, 28, 29)] == [
        ("d/a", "hard", 0),
        ("soft", "d/a", 0),
        ("d/a", "d/b", 0),
        ("d", "", 0),
        (".", "", 0),
    ]
    assert state(root) == _states()[-1]
    assert set(STEPS.values()) == set(NAMES)


def test_calls_that_fail_on_their_own_are_counted_with_their_error(disk: Disk, root: Path) -> None:
    code = """
import contextlib, os
for attempt in ("os.unlink('none')", "os.unlink('none/none')", "os.mkdir('../root/.')", "os.rename('none', 'to')"):
    with contextlib.suppress(OSError):
        exec(attempt)
open('there', 'x').close()
with contextlib.suppress(FileExistsError):
    open('there', 'x')
open('there', 'a').close()
os.open('there', os.O_RDWR | os.O_CREAT)
"""
    run(code, root, disk.environment())
    assert [(operation.name, operation.path, operation.error) for operation in disk.operations()] == [
        ("unlink", "none", errno.ENOENT),
        ("unlink", "none/none", errno.ENOENT),
        ("mkdir", ".", errno.EEXIST),
        ("rename", "none", errno.ENOENT),
        ("create", "there", 0),
    ]


def test_the_calls_of_all_threads_are_counted_in_one_order(disk: Disk, root: Path) -> None:
    code = """
import os, threading
start = threading.Barrier(4)
def work(name):
    start.wait()
    for n in range(50):
        os.mkdir(f'{name}-{n}')
        os.rmdir(f'{name}-{n}')
threads = [threading.Thread(target=work, args=(name,)) for name in 'abcd']
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    run(code, root, disk.environment())
    seen = disk.operations()
    assert [operation.ordinal for operation in seen] == list(range(1, 401))
    threads = {operation.thread: operation.path[0] for operation in seen}
    assert sorted(threads.values()) == list("abcd")
    for thread, name in threads.items():
        own = [(operation.name, operation.path) for operation in seen if operation.thread == thread]
        assert own == [(call, f"{name}-{n}") for n in range(50) for call in ("mkdir", "rmdir")]


def test_files_elsewhere_are_left_alone(disk: Disk, root: Path) -> None:
    disk.kill_at(1)
    disk.fail(1, lasting=True)
    code = """
import os
for place in ('..', '../root/..'):
    os.mkdir(f'{place}/root-b')
    with open(f'{place}/root-b/file', 'wb') as file:
        file.write(b'bytes')
        os.fsync(file.fileno())
    os.rename(f'{place}/root-b/file', f'{place}/root-b/moved')
    os.unlink(f'{place}/root-b/moved')
    os.rmdir(f'{place}/root-b')
os.listdir('.')
os.open('.', os.O_RDONLY)
print('done')
"""
    assert run(code, root, disk.environment()).stdout == "done\n"
    assert disk.operations() == []


def test_a_file_is_recognised_by_any_of_its_paths(disk: Disk, root: Path) -> None:
    (root.parent / "way").symlink_to(root)
    code = f"""
import os
os.mkdir({str(root)!r} + '/a//')
os.mkdir('../way/b')
os.mkdir('a/../../root/c/')
os.chdir('..')
os.mkdir('root/./d')
os.rename('root/d', 'moved-out')
os.rename('moved-out', 'way/e')
os.symlink('/nowhere', 'root/link')
os.unlink('way/link')
"""
    run(code, root, disk.environment())
    out = str(root.parent / "moved-out")
    assert [(operation.path, operation.to) for operation in disk.operations()] == [
        ("a", ""),
        ("b", ""),
        ("c", ""),
        ("d", ""),
        ("d", out),
        (out, "e"),
        ("link", "/nowhere"),
        ("link", ""),
    ]
    assert disk.durable(names="kept") == dict.fromkeys("abce")


# -- lives -------------------------------------------------------------------------------------------------------


def test_a_process_that_is_not_attached_is_left_alone(disk: Disk, root: Path) -> None:
    disk.kill_at(1)
    run(PREAMBLE + "\n".join(STEPS), root, preloaded())
    assert disk.operations() == []
    assert state(root) == _states()[-1]


def test_each_forked_child_that_attaches_has_its_own_life(disk: Disk, root: Path) -> None:
    code = f"""
import os
from pathlib import Path
from tests.system.faults.disk import attach
for name in 'abc':
    child = os.fork()
    if child == 0:
        life = attach(Path({str(disk.control)!r}))
        os.mkdir(name)
        os.mkdir(f'{{name}}/{{life}}')
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os.mkdir('by the parent')
"""
    run(code, root, preloaded())
    assert [(operation.life, operation.ordinal, operation.path) for operation in disk.operations()] == [
        (1, 1, "a"),
        (1, 2, "a/1"),
        (2, 1, "b"),
        (2, 2, "b/2"),
        (3, 1, "c"),
        (3, 2, "c/3"),
    ]
    assert (root / "by the parent").is_dir()


def test_a_forked_child_continues_the_count_of_its_parent(disk: Disk, root: Path) -> None:
    code = """
import os
os.mkdir('a')
child = os.fork()
os.mkdir('b' if child == 0 else 'c')
if child:
    assert os.waitpid(child, 0)[1] == 0
    os.mkdir('d')
"""
    run(code, root, disk.environment())
    seen = disk.operations()
    assert [(operation.life, operation.ordinal) for operation in seen] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert [seen[0].path, *sorted([seen[1].path, seen[2].path]), seen[3].path] == list("abcd")
    assert len({operation.thread for operation in seen}) == 2


def test_programs_that_the_process_starts_are_left_alone(disk: Disk, root: Path) -> None:
    disk.kill_at(3)
    code = """
import os, subprocess, sys
os.mkdir('a')
subprocess.run([sys.executable, '-S', '-c', 'import os; os.mkdir("b"); os.mkdir("c"); os.mkdir("d")'], check=True)
assert not {'A0_DISK', 'LD_PRELOAD'} & set(os.environ)
os.mkdir('e')
"""
    run(code, root, disk.environment())
    assert [operation.path for operation in disk.operations()] == ["a", "e"]


def test_attaching_without_the_library_is_refused(disk: Disk) -> None:
    with pytest.raises(RuntimeError, match="without the library"):
        attach(disk.control)


def test_attaching_to_a_missing_disk_is_refused(root: Path) -> None:
    code = f"""
from pathlib import Path
from tests.system.faults.disk import attach
try:
    attach(Path({str(root / "none")!r}))
except FileNotFoundError:
    print('refused')
"""
    assert run(code, root, preloaded()).stdout == "refused\n"


# -- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_is_killed_exactly_at_each_call(disk: Disk, root: Path, after: bool) -> None:
    for n, name in enumerate(STEPS.values(), start=1):
        disk.start_anew()
        disk.kill_at(n, after=after)
        run(PREAMBLE + "\n".join(STEPS), emptied(root), disk.environment(), expect=-signal.SIGKILL)
        assert state(root) == _states()[n if after else n - 1], name
        seen = disk.operations()
        assert [operation.killed for operation in seen] == [""] * (n - 1) + ["after" if after else "before"]
        assert (seen[-1].ordinal, seen[-1].name) == (n, name)
    # A kill order is used up: the same steps again are not killed.
    run(PREAMBLE + "\n".join(STEPS), emptied(root), disk.environment())


def test_a_kill_stops_every_thread_at_once(disk: Disk, root: Path) -> None:
    code = """
import os, threading
def work(name):
    for n in range(1000):
        os.mkdir(f'{name}-{n}')
for name in 'abcd':
    threading.Thread(target=work, args=(name,)).start()
"""
    for n in (1, 2, 50):
        disk.start_anew()
        disk.kill_at(n)
        run(code, emptied(root), disk.environment(), expect=-signal.SIGKILL)
        assert len(list(root.iterdir())) == n - 1


def test_one_of_two_processes_is_killed_and_the_other_continues(disk: Disk, root: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from tests.system.faults.disk import attach
ready, go = os.pipe()
children = []
for name in 'ab':
    children.append(os.fork())
    if children[-1] == 0:
        attach(Path({str(disk.control)!r}))
        os.close(go)
        os.read(ready, 1)
        for n in range(30):
            os.mkdir(f'{{name}}-{{n}}')
        os._exit(0)
os.close(go)
print(sorted(os.waitpid(child, 0)[1] for child in children))
"""
    disk.kill_at(20)
    assert run(code, root, preloaded()).stdout == f"[0, {signal.SIGKILL}]\n"
    assert len(list(root.iterdir())) == 30 + 19


# -- faults ------------------------------------------------------------------------------------------------------


def test_each_call_fails_as_ordered_and_changes_nothing(disk: Disk, root: Path) -> None:
    for n, step in enumerate(STEPS, start=1):
        disk.start_anew()
        disk.fail(n, errno.EIO)
        before = "".join(f"{done}\n" for done in list(STEPS)[: n - 1])
        attempt = f"try: {step}\nexcept OSError as error: print(error.errno)\n"
        # The second attempt succeeds: the order was for one call.
        done = run(PREAMBLE + before + attempt + f"os.stat('.')\n{step}\n", emptied(root), disk.environment())
        assert done.stdout == f"{errno.EIO}\n", step
        assert [operation.error for operation in disk.operations()] == [0] * (n - 1) + [errno.EIO, 0]
        assert state(root) == _states()[n], step


ATTEMPTS = """
import os
def attempt(function, *args):
    try:
        function(*args)
        print('done')
    except OSError as error:
        print(error.errno)
fd = os.open('a', os.O_CREAT | os.O_WRONLY)
for n in range(3):
    attempt(os.write, fd, b'bytes')
    attempt(os.fsync, fd)
    attempt(os.mkdir, f'd{n}')
"""


def test_one_call_of_the_named_kind_fails(disk: Disk, root: Path) -> None:
    disk.fail(3, errno.EDQUOT, only={"write"})
    assert run(ATTEMPTS, root, disk.environment()).stdout.split() == ["done"] * 3 + [str(errno.EDQUOT)] + ["done"] * 5


def test_a_lasting_error_hits_every_call_of_the_named_kinds_from_there_on(disk: Disk, root: Path) -> None:
    disk.fail(3, lasting=True, only={"write", "fsync"})
    full = str(errno.ENOSPC)
    assert run(ATTEMPTS, root, disk.environment()).stdout.split() == ["done", full, "done", *[full, full, "done"] * 2]
    assert (root / "a").read_bytes() == b"bytes"


def test_orders_can_change_while_a_process_runs(disk: Disk, root: Path) -> None:
    code = """
import os, sys
for line in sys.stdin:
    try:
        os.mkdir(line.strip())
        print('done', flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        cwd=root,
        env=os.environ | disk.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask(name: str) -> str:
            print(name, file=stdin, flush=True)
            return stdout.readline().strip()

        assert ask("a") == "done"
        disk.fail(error=errno.EROFS, lasting=True)
        assert [ask("b"), ask("c")] == [str(errno.EROFS)] * 2
        disk.calm()
        assert ask("d") == "done"
        disk.kill_at(1)
        assert ask("e") == ""
        assert process.wait(patience(30)) == -signal.SIGKILL
    assert sorted(read_tree(root)) == ["a", "d"]


def test_a_slow_disk_delays_only_the_named_calls(disk: Disk, root: Path) -> None:
    disk.slow(1, only={"fsync"})
    code = """
import os, threading, time
fd = os.open('a', os.O_CREAT | os.O_WRONLY)
started = threading.Event()
def meanwhile():
    started.wait()
    os.mkdir('b')
thread = threading.Thread(target=meanwhile)
thread.start()
began = time.monotonic()
started.set()
os.fsync(fd)
assert time.monotonic() - began >= 1
thread.join()
"""
    run(code, root, disk.environment())
    assert [operation.name for operation in disk.operations()] == ["create", "mkdir", "fsync"]


def test_a_lying_disk_spoils_what_was_made_durable(disk: Disk, root: Path) -> None:
    disk.lie("*.tar")
    code = """
import os
os.mkdir('sub')
for name in ('sub/one.tar', 'two.tar', 'whole.json', 'empty.tar'):
    fd = os.open(name, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b'' if 'empty' in name else bytes(100))
    os.fsync(fd)
    if name == 'two.tar':
        os.fsync(fd)
os.fsync(os.open('sub', os.O_RDONLY))
os.fsync(os.open('.', os.O_RDONLY))
"""
    run(code, root, disk.environment())
    spoilt = bytes(50) + b"\1" + bytes(49)
    wanted = {
        "empty.tar": b"",
        "sub": None,
        "sub/one.tar": spoilt,
        "two.tar": bytes(50) + b"\2" + bytes(49),
        "whole.json": bytes(100),
    }
    assert read_tree(root) == wanted
    assert disk.durable() == wanted


# -- the clock ---------------------------------------------------------------------------------------------------

CLOCKS = """
import ctypes, json, os, time
from datetime import UTC, datetime
libc = ctypes.CDLL(None)
libc.time.restype = ctypes.c_long
def clocks():
    parts = (ctypes.c_long * 2)()
    libc.gettimeofday(ctypes.byref(parts), None)
    stamps = [time.time(), datetime.now().timestamp(), datetime.now(UTC).timestamp(), time.time_ns() / 1e9]
    stamps += [time.clock_gettime(time.CLOCK_REALTIME), libc.time(None), parts[0] + parts[1] / 1e6]
    return {'wall': stamps, 'monotonic': time.monotonic()}
"""


@pytest.mark.parametrize("hours", [5, -5])
def test_the_clock_is_stepped_at_a_call(disk: Disk, root: Path, hours: int) -> None:
    disk.step_clock(hours * 3600, at=2)
    code = (
        CLOCKS + "seen = []\nfor name in 'ab':\n    os.mkdir(name)\n    seen.append(clocks())\nprint(json.dumps(seen))"
    )
    began, monotonic = time.time(), time.monotonic()
    before, after = json.loads(run(code, root, disk.environment()).stdout)
    ended = time.time()
    for offset, seen in ((0, before), (hours * 3600, after)):
        # libc.time() has whole seconds, and the coarse clock behind it lags by a tick.
        assert all(began - 1.1 <= stamp - offset <= ended for stamp in seen["wall"]), (began, seen, ended)
        assert monotonic <= seen["monotonic"] <= monotonic + ended - began + 1
    # The log uses true time.
    assert all(began <= operation.at <= ended for operation in disk.operations())


def test_the_clock_is_stepped_at_once_and_made_true_again(disk: Disk, root: Path) -> None:
    disk.step_clock(7200)
    code = CLOCKS + "print(json.dumps(clocks()))"
    assert json.loads(run(code, root, disk.environment()).stdout)["wall"][0] > time.time() + 7000
    disk.calm()
    assert json.loads(run(code, root, disk.environment()).stdout)["wall"][0] <= time.time()


# -- power cuts --------------------------------------------------------------------------------------------------

PUBLISH = """
import os
def write_aside(path, content, sync=True):
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    os.write(fd, content)
    if sync:
        os.fsync(fd)
    os.close(fd)
def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
"""


@pytest.fixture
def former(root: Path) -> Path:
    """Return a root in which something is already stored."""
    (root / "stored").mkdir()
    (root / "stored" / "file").write_bytes(b"former")
    return root


def test_what_existed_at_first_is_durable(former: Path) -> None:
    disk = Disk(former, former.parent / "room")
    assert disk.durable() == disk.durable(names="kept") == {"stored": None, "stored/file": b"former"}


def test_a_file_published_with_every_fsync_survives(former: Path) -> None:
    disk = Disk(former, former.parent / "room")
    code = PUBLISH + (
        "write_aside('stored/.partial', b'new'); os.rename('stored/.partial', 'stored/file'); sync('stored')"
    )
    run(code, former, disk.environment())
    assert disk.durable() == disk.durable(names="kept") == {"stored": None, "stored/file": b"new"}


def test_a_rename_without_fsync_of_the_bytes_can_leave_an_empty_file(former: Path) -> None:
    disk = Disk(former, former.parent / "room")
    code = PUBLISH + (
        "write_aside('stored/.partial', b'new', sync=False); os.rename('stored/.partial', 'stored/file');sync('stored')"
    )
    run(code, former, disk.environment())
    assert disk.durable() == disk.durable(names="kept") == {"stored": None, "stored/file": b""}


def test_a_rename_without_fsync_of_the_directory_can_be_lost(former: Path) -> None:
    disk = Disk(former, former.parent / "room")
    code = PUBLISH + "write_aside('stored/.partial', b'new'); os.rename('stored/.partial', 'stored/file')"
    run(code, former, disk.environment())
    assert disk.durable() == {"stored": None, "stored/file": b"former"}
    assert disk.durable(names="kept") == {"stored": None, "stored/file": b"new"}


def test_a_removal_without_fsync_of_the_directory_can_be_undone(former: Path) -> None:
    disk = Disk(former, former.parent / "room")
    run("import os; os.unlink('stored/file')", former, disk.environment())
    assert disk.durable() == {"stored": None, "stored/file": b"former"}
    assert disk.durable(names="kept") == {"stored": None}


def test_a_directory_is_durable_only_by_an_fsync_of_its_parent(disk: Disk, root: Path) -> None:
    code = PUBLISH + "os.mkdir('a'); os.mkdir('a/b'); write_aside('a/b/file', b'new'); sync('a/b'); sync('a')"
    run(code, root, disk.environment())
    assert disk.durable() == {}
    assert disk.durable(names="kept") == {"a": None, "a/b": None, "a/b/file": b"new"}
    run(PUBLISH + "sync('.')", root, disk.environment())
    assert disk.durable() == {"a": None, "a/b": None, "a/b/file": b"new"}


def test_a_renamed_directory_keeps_only_its_durable_names(disk: Disk, root: Path) -> None:
    code = PUBLISH + (
        "os.mkdir('a'); write_aside('a/synced', b'new'); sync('a'); write_aside('a/late', b'new');"
        "os.rename('a', 'b'); sync('.')"
    )
    run(code, root, disk.environment())
    assert disk.durable() == {"b": None, "b/synced": b"new"}
    assert disk.durable(names="kept") == {"b": None, "b/synced": b"new", "b/late": b"new"}


def test_a_name_moved_between_directories_can_be_in_both_or_in_neither(former: Path) -> None:
    (former / "work").mkdir()
    disk = Disk(former, former.parent / "room")
    run(PUBLISH + "os.rename('stored/file', 'work/file'); sync('work')", former, disk.environment())
    assert set(disk.durable()) == {"stored", "stored/file", "work", "work/file"}
    disk.cut_power("lost")
    run(PUBLISH + "os.rename('work/file', 'stored/moved'); sync('work')", former, disk.environment())
    assert disk.durable() == {"stored": None, "stored/file": b"former", "work": None}


def test_bytes_written_after_the_last_fsync_are_lost(disk: Disk, root: Path) -> None:
    code = PUBLISH + (
        "write_aside('a', b'first'); sync('.'); fd = os.open('a', os.O_WRONLY | os.O_TRUNC); os.write(fd, b'second')"
    )
    run(code, root, disk.environment())
    assert disk.durable() == disk.durable(names="kept") == {"a": b"first"}


def test_a_file_whose_fsync_failed_is_not_made_durable_by_a_second_one(disk: Disk, root: Path) -> None:
    disk.fail(1, errno.EIO, only={"fsync"})
    code = PUBLISH + "\ntry: write_aside('a', b'new')\nexcept OSError: sync('a')\nsync('.')"
    run(code, root, disk.environment())
    assert [operation.error for operation in disk.operations() if operation.name == "fsync"] == [errno.EIO, 0, 0]
    assert disk.durable() == disk.durable(names="kept") == {"a": b""}


def test_what_another_program_wrote_is_durable_only_after_an_attached_process_made_it_so(
    disk: Disk, root: Path
) -> None:
    code = (
        PUBLISH
        + """
import subprocess, sys
os.mkdir('work')
sync('.')
subprocess.run([sys.executable, '-S', '-c', "for n in 'abc': open(f'work/{n}', 'w').write('retrieved')"], check=True)
os.rename('work/a', 'a')
os.rename('work/b', 'b')
sync('b')
sync('.')
"""
    )
    run(code, root, disk.environment())
    assert disk.durable() == {"a": b"", "b": b"retrieved", "work": None}
    assert disk.durable(names="kept") == {"a": b"", "b": b"retrieved", "work": None, "work/c": b""}


def test_the_durable_state_is_available_for_any_moment(disk: Disk, root: Path) -> None:
    code = PUBLISH + "write_aside('.partial', b'new'); os.rename('.partial', 'file'); sync('.')"
    run(code, root, disk.environment())
    moments = [operation.at for operation in disk.operations()]
    assert [operation.name for operation in disk.operations()] == ["create", "write", "fsync", "rename", "fsync"]
    kept = [disk.durable(moment, names="kept") for moment in [0.0, *moments]]
    assert kept == [{}, {".partial": b""}, {".partial": b""}, {".partial": b"new"}, {"file": b"new"}, {"file": b"new"}]
    assert [disk.durable(moment) for moment in [0.0, *moments]] == [{}] * 5 + [{"file": b"new"}]


@pytest.mark.parametrize(("names", "left"), [("lost", {"a": b"a"}), ("kept", {"a": b"a", "b": b"", "link": "a"})])
def test_a_power_cut_leaves_what_is_durable_and_the_next_run_continues_from_there(
    disk: Disk, root: Path, names: str, left: dict[str, bytes]
) -> None:
    first = PUBLISH + "write_aside('a', b'a'); sync('.'); write_aside('b', b'b', sync=False); os.symlink('a', 'link')"
    run(first, root, disk.environment())
    (root / "a").chmod(0o640)
    disk.cut_power(names)  # type: ignore[arg-type]
    assert read_tree(root) == left
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o640
    assert disk.operations() == []
    assert disk.durable() == left
    run(PUBLISH + "write_aside('c', b'c'); sync('.')", root, disk.environment())
    assert disk.durable() == left | {"c": b"c"}
    assert [operation.life for operation in disk.operations()] == [2] * 4


def test_a_killed_run_and_the_next_one_share_one_log(disk: Disk, root: Path) -> None:
    code = (
        PUBLISH + "os.path.exists('.partial') or write_aside('.partial', b'new'); os.rename('.partial', 'a'); sync('.')"
    )
    disk.kill_at(4)
    run(code, root, disk.environment(), expect=-signal.SIGKILL)
    assert disk.durable() == {}
    run(code, root, disk.environment())
    assert [(operation.life, operation.name) for operation in disk.operations()][-3:] == [
        (1, "rename"),
        (2, "rename"),
        (2, "fsync"),
    ]
    assert disk.durable() == {"a": b"new"}


# -- nothing is missed -------------------------------------------------------------------------------------------

PRODUCT = """
import asyncio, hashlib, os
from datetime import UTC, datetime
from pathlib import Path

from a0backup.files import Digests, digests, in_thread, make_private_directory, publish, remove_durably
from a0backup.vault.journal import Journal, JournalFile
from a0backup.vault.lock import node_lock
from a0backup.vault.known_vault import create
from a0backup.vault.leftovers import salvage, sweep
from a0backup.vault.manifest import ManifestNode, ManifestPassword
from a0backup.vault.quarantine import quarantine
from a0backup.vault.storing import store
from a0backup.vault.vault import Vault

now = datetime(2026, 11, 23, 2, tzinfo=UTC)
vault = Vault(Path(os.environ["VAULT"]))
node = ManifestNode(name="a0-1", host="a0-1.example", port=22)
folder = vault.folder("a0-1")

def retrieved(content):
    place = vault.work("a0-1") / "private-01234567"
    make_private_directory(place)
    (place / "backup.tar.gz.enc").write_bytes(content)
    return place / "backup.tar.gz.enc"

async def main():
    create(vault)
    vault.ensure_writable("a0-1")
    async with node_lock(folder, node="a0-1", run="r1", deadline=5):
        journal = JournalFile(folder, "backup")
        ours = Journal(node="a0-1", kind="backup", host="a", port=1, flow_run="r1", started_at=now, sealed=False)
        await in_thread(journal.write, ours)
        file = retrieved(b"bytes")
        expected = digests(file)
        assert await in_thread(salvage, vault, "a0-1", "backup", expected.md5)
        of_it = dict(node=node, kind="backup", name_on_node="n", expected=expected, started_at=now, now=now,
                     password=ManifestPassword(mode="unknown"), flow_run="r1")
        await in_thread(lambda: store(vault, **of_it))
        for _ in range(2):
            await in_thread(lambda: quarantine(vault, "a0-1", "backup", retrieved(b"spoilt"), reason={}, now=now))
        await asyncio.gather(*(
            in_thread(publish, folder / f"published-{n}", bytes(3_000_000)) for n in range(4)
        ))
        retrieved(b"left")
        await in_thread(lambda: sweep(vault, "a0-1", kind="backup", keep=vault.work("a0-1") / "none"))
        await in_thread(journal.set_aside, now)
        await in_thread(remove_durably, folder / "published-0")
        await in_thread(remove_durably, folder / "none")
    async with node_lock(folder, node="a0-1", run="r2", deadline=5):
        pass
asyncio.run(main())
"""

# Calls that change nothing below the root. Everything else that strace shows there must be in the log.
HARMLESS = re.compile(
    r"access|chdir|close|dup[23]?|epoll_ctl|execve|getcwd|faccessat2?|fadvise64|fcntl|flock|[fl]?stat|f?statfs|newfstatat"
    r"|statx|getdents(64)?|l?getxattr|llistxattr|ioctl|lseek|poll|pread64|preadv|readv?|readlink(at)?"
)
CANONICAL = {
    "renameat": "rename",
    "renameat2": "rename",
    "linkat": "link",
    "symlinkat": "symlink",
    "mkdirat": "mkdir",
    "fchmod": "chmod",
    "fchmodat": "chmod",
    "ftruncate": "truncate",
    "fdatasync": "fsync",
    "pwrite64": "write",
    "writev": "write",
    "pwritev": "write",
    "pwritev2": "write",
    "sendfile": "write",
    "copy_file_range": "write",
}
LINE = re.compile(r"(?P<time>[\d.]+) (?P<name>\w+)\((?P<args>.*)\)\s+= (?P<result>.*)")

Call = tuple[str, str, str, str]


def traced(folder: Path, root: Path) -> dict[int, list[Call]]:
    """Return the calls that strace saw change files below *root*, by thread: name, path, new name, error."""
    lines = [(line, int(file.suffix[1:])) for file in folder.iterdir() for line in file.read_text().splitlines()]
    seen: dict[int, list[Call]] = {}
    there: set[str] = set()
    # A line begins with its time.
    for line, thread in sorted(lines):
        match = LINE.match(line)
        assert match, f"a line of strace that is not understood: {line}"
        name, args, error = match["name"], match["args"], (re.match(r"-1 (\w+)", match["result"]) or ["", ""])[1]
        paths = list(_paths(args, root))
        if HARMLESS.fullmatch(name) or not any(Path(path).is_relative_to(root) for path in paths):
            continue
        if name == "mmap" and not ("MAP_SHARED" in args and "PROT_WRITE" in args):
            continue
        path, to = paths[0], ""
        if name in ("open", "openat", "openat2", "creat"):
            made = ("O_CREAT" in args or name == "creat") and path not in there
            if not made and ("O_TRUNC" not in args or "O_EXCL" in args):
                continue
            name = "create" if made else "truncate"
        elif name == "unlinkat":
            name = "rmdir" if "AT_REMOVEDIR" in args else "unlink"
        else:
            name = CANONICAL.get(name, name)
        if name == "symlink":
            path, to = paths[1], (re.match(r'"([^"]*)"', args) or ["", ""])[1]
        elif name in ("rename", "link"):
            to = paths[1]
        elif match["name"] == "copy_file_range":
            path = paths[1]
        # A file that is only read from is not changed.
        if name == "write" and not Path(path).is_relative_to(root):
            continue
        seen.setdefault(thread, []).append((name, path, to, error))
        if not error:
            there |= {path} if name == "create" else {to} if name in ("rename", "link") else set()
            there -= {path} if name in ("rename", "unlink") else set()
    return seen


def _paths(args: str, cwd: Path) -> Iterator[str]:
    """Yield the paths that a call is about: a descriptor's, or a name with the directory that it is relative to."""
    folder = str(cwd)
    tokens = list(re.finditer(r'(?:\d+|AT_FDCWD)<([^>]*)>|"([^"]*)"', args))
    for n, token in enumerate(tokens):
        if token[2] is not None:
            yield os.path.normpath(Path(folder, token[2]))
        else:
            folder = token[1]
            names = [after.start() for after in tokens[n + 1 : n + 2] if after[2] is not None]
            if names != [token.end() + 2]:
                yield folder


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("code", [PRODUCT, PREAMBLE + "\n".join(STEPS)], ids=["product", "spellings"])
def test_nothing_that_strace_shows_is_missed(disk: Disk, root: Path, tmp_path: Path, code: str) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    # Only the traced program is preloaded, not strace.
    given = [f"-E{name}={value}" for name, value in {**disk.environment(), "VAULT": str(root)}.items()]
    # Without the bytes that are written, which could look like a path. One file per thread.
    trace = ["strace", "-qq", "-ff", "-y", "-ttt", "-s0", "-etrace=%file,%desc", f"-o{traces}/t"]
    subprocess.run(
        [*trace, *given, sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=patience(120),
    )
    logged: dict[int, list[Call]] = {}
    for operation in disk.operations():
        to = operation.to if operation.name == "symlink" or not operation.to else str(root / operation.to)
        path = os.path.normpath(root / operation.path)
        error = errno.errorcode[operation.error] if operation.error else ""
        logged.setdefault(operation.thread, []).append((operation.name, path, to, error))
    shown = traced(traces, root)
    assert shown.keys() == logged.keys()
    for thread, calls in shown.items():
        assert calls == logged[thread]
    assert sum(map(len, logged.values())) >= len(STEPS)
    if code == PRODUCT:
        assert len(logged) > 1
        assert {operation.name for operation in disk.operations()} >= {"rename", "fsync", "unlink", "rmdir", "chmod"}


# -- the harness's own promises ----------------------------------------------------------------------------------


def test_a_room_below_the_root_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="is below"):
        Disk(root, root / "room")


def test_several_threads_may_give_orders(disk: Disk) -> None:
    def give() -> None:
        for n in range(1, 200):
            disk.fail(n)

    threads = [threading.Thread(target=give) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.calm()
