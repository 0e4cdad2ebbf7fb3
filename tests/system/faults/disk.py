"""The disk of the fault harness: what processes change below one directory, logged in order and broken on order.

    disk = Disk(vault, room)
    disk.kill_at(7)
    subprocess.run([...], env=os.environ | disk.environment())  # dies right before its 7th change of the vault
    print(disk.operations()[-1])
    disk.cut_power("lost")  # the vault is now what the machine would have had after a power cut

A small library (disk.c) is preloaded into the process and stands between it and the C library. Programs that the
process starts by exec are not affected: neither the library nor its orders are passed on to them.
"""

import atexit
import ctypes
import errno
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# In the order of `enum name` in disk.c.
NAMES = (
    "create",  # an open that creates a file
    "truncate",  # also an open of an existing file
    "write",
    "fallocate",
    "fsync",
    "rename",
    "link",
    "symlink",
    "unlink",
    "mkdir",
    "rmdir",
    "chmod",
)

Names = Literal["lost", "kept"]
Tree = dict[str, bytes | str | None]
"""What is below a directory, by relative path: a file's bytes, a link's target, None for a directory."""

_SOURCE = Path(__file__).with_name("disk.c")


@dataclass(frozen=True)
class Operation:
    """One call by which a process changed something below the root, or tried to."""

    life: int  # counts the attached processes, from 1
    ordinal: int  # counts the calls of that life, from 1, over all its threads and forked children
    thread: int
    name: str  # one of NAMES
    path: str  # relative to the root, which itself is "."; absolute if elsewhere
    to: str  # the new name of a rename or link, the target of a symlink, otherwise ""
    at: float  # the true clock when the call was done, whatever time the process was told
    error: int
    size: int  # bytes written, or of the file that was made durable; otherwise 0
    killed: Literal["", "before", "after"]  # whether the process died at this call


class _Orders(ctypes.Structure):
    _fields_ = (
        ("kill_at", ctypes.c_uint64),
        ("kill_after", ctypes.c_uint64),
        ("fail_at", ctypes.c_uint64),
        ("fail_error", ctypes.c_uint64),
        ("fail_lasting", ctypes.c_uint64),
        ("fail_only", ctypes.c_uint64),
        ("slow_ns", ctypes.c_uint64),
        ("slow_only", ctypes.c_uint64),
        ("clock_at", ctypes.c_uint64),
        ("clock_step_ns", ctypes.c_int64),
        ("clock_offset_ns", ctypes.c_int64),
        ("lie", ctypes.c_char * 256),
    )


@functools.cache
def library() -> Path:
    """Return the library to preload, built by `cc` at the first call. Raise OSError if it cannot be built."""
    source = _SOURCE.read_bytes()
    # The pytest-xdist workers share the room of a test session, which is removed at its end.
    room = os.environ.get("A0BACKUP_TEST_ROOM")
    if room is None:
        room = tempfile.mkdtemp(prefix="a0backup-disk-")
        atexit.register(shutil.rmtree, room, ignore_errors=True)
    built = Path(room) / f"disk-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not built.exists():
        partial = built.with_name(f"{built.name}.{os.getpid()}.partial")
        command = ["cc", "-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]
        done = subprocess.run(
            [*command, "-o", str(partial), str(_SOURCE), "-ldl", "-lpthread"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise OSError(f"{_SOURCE.name} cannot be built: {done.stderr}")
        partial.replace(built)
    return built


def preloaded() -> dict[str, str]:
    """Return the environment of a process that is attached later, by `attach` in it or in a child of it."""
    return {"LD_PRELOAD": str(library())}


def attach(control: Path) -> int:
    """Attach this process to the disk of this control file. Return the number of its life, which begins now.

    Raise RuntimeError if the process was not started with `preloaded()`, OSError if there is no such disk.
    """
    try:
        function = ctypes.CDLL(None).a0_disk_attach
    except AttributeError:
        raise RuntimeError("this process was started without the library of the fault harness") from None
    life = int(function(os.fsencode(control)))
    if life < 0:
        raise OSError(-life, os.strerror(-life), str(control))
    return life


class Disk:
    """What processes do to the files below *root*: logged, and broken on order.

    Orders apply to every attached process until `calm()`, and may change while one runs. "The call *n*" is the first
    call whose ordinal in its life is *n* or more. What is below *root* at first counts as durable; *root* itself always
    does. The control file, the log and the snapshots are in *room*, a directory created here, not below *root*. Calls
    are made one at a time, so a process that is stopped in the middle of one (SIGSTOP) blocks the others of this disk.
    """

    def __init__(self, root: Path, room: Path) -> None:
        self.root = root.resolve()
        self.room = room.resolve()
        if self.room.is_relative_to(self.root):
            raise ValueError(f"{room} is below {root}")
        self.room.mkdir(mode=0o700, parents=True)
        self.control = self.room / "control"
        self._log = self.room / "log"
        self._snapshots = self.room / "snapshots"
        self._library = ctypes.CDLL(str(library()), use_errno=True)
        self._library.a0_disk_create.restype = ctypes.c_void_p
        self._library.a0_disk_create.argtypes = [ctypes.c_char_p] * 4
        self._library.a0_disk_lock.argtypes = self._library.a0_disk_unlock.argtypes = [ctypes.c_void_p]
        self._library.a0_disk_orders.restype = ctypes.POINTER(_Orders)
        self._library.a0_disk_orders.argtypes = [ctypes.c_void_p]
        places = [os.fsencode(path) for path in (self.control, self.root, self._log, self._snapshots)]
        self._mapped = self._library.a0_disk_create(*places)
        if not self._mapped:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.control))
        # A process can map only so much, and a matrix creates many disks.
        self._library.a0_disk_close.argtypes = [ctypes.c_void_p]
        weakref.finalize(self, self._library.a0_disk_close, self._mapped)
        self._orders = self._library.a0_disk_orders(self._mapped).contents
        self.start_anew()

    # -- processes ---------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the environment that attaches a process from its start."""
        return preloaded() | {"A0_DISK": str(self.control)}

    def attach(self) -> int:
        """Attach this process. See the function `attach`."""
        return attach(self.control)

    # -- orders ------------------------------------------------------------------------------------------------

    @contextmanager
    def _giving(self) -> Iterator[_Orders]:
        self._library.a0_disk_lock(self._mapped)
        try:
            yield self._orders
        finally:
            self._library.a0_disk_unlock(self._mapped)

    def calm(self) -> None:
        """Cancel all orders. The clock is true again."""
        with self._giving() as orders:
            ctypes.memset(ctypes.addressof(orders), 0, ctypes.sizeof(orders))

    def kill_at(self, n: int, *, after: bool = False) -> None:
        """SIGKILL the process that makes the call *n*, right before it takes effect or right *after*. Once."""
        with self._giving() as orders:
            orders.kill_at, orders.kill_after = _ordinal(n), after

    def fail(
        self, at: int = 1, error: int = errno.ENOSPC, *, only: Collection[str] | None = None, lasting: bool = False
    ) -> None:
        """Fail the call *at*, or the first of the names *only* from there on; all of them if *lasting*.

        A failed call has no effect. A file whose fsync failed is not made durable by a later one.
        """
        with self._giving() as orders:
            orders.fail_at, orders.fail_error, orders.fail_lasting = _ordinal(at), error, lasting
            orders.fail_only = _mask(only)

    def slow(self, seconds: float, *, only: Collection[str] | None = None) -> None:
        """Delay each call, or those of the names *only*, by *seconds* before it takes effect."""
        with self._giving() as orders:
            orders.slow_ns, orders.slow_only = round(seconds * 1e9), _mask(only)

    def lie(self, name_pattern: str) -> None:
        """Spoil one byte of each regular file that is fsynced and whose relative path matches. The fsync succeeds.

        *name_pattern* is an fnmatch(3) pattern whose `*` matches slashes too.
        """
        pattern = os.fsencode(name_pattern)
        if not 0 < len(pattern) < 256:
            raise ValueError("a pattern has 1 to 255 bytes")
        with self._giving() as orders:
            orders.lie = pattern

    def step_clock(self, seconds: float, *, at: int = 0) -> None:
        """Set the wall clock of the attached processes off by *seconds* at the call *at*; 0: at once."""
        step = round(seconds * 1e9)
        with self._giving() as orders:
            orders.clock_at, orders.clock_step_ns = at, step
            if at == 0:
                orders.clock_offset_ns = step

    # -- what was done -----------------------------------------------------------------------------------------

    def operations(self) -> list[Operation]:
        """Return every call counted since this disk was made or last started anew, in order."""
        return [record.operation for record in self._records()]

    def _records(self) -> "Iterator[_Record]":
        with self._giving():  # no process is in the middle of a record
            fields = self._log.read_bytes().split(b"\0")
        for start in range(0, len(fields) - 1, 12):
            sequence, life, ordinal, thread, name, kind, path, to, at, error, size, killed = fields[start : start + 12]
            named = NAMES[int(name)]
            operation = Operation(
                life=int(life),
                ordinal=int(ordinal),
                thread=int(thread),
                name=named,
                path=self._relative(path),
                to=os.fsdecode(to) if named == "symlink" else self._relative(to),
                at=int(at) / 1e9,
                error=int(error),
                size=int(size),
                killed=("", "before", "after")[int(killed)],
            )
            yield _Record(operation, os.fsdecode(kind), self._snapshots / os.fsdecode(sequence))

    def _relative(self, path: bytes) -> str:
        text = os.fsdecode(path)
        if text == str(self.root):
            return "."
        return text.removeprefix(f"{self.root}/")

    # -- power cuts --------------------------------------------------------------------------------------------

    def durable(self, until: float | None = None, *, names: Names = "lost") -> Tree:
        """Return what a power cut leaves below the root in the worst case, now or at the time *until*.

        "lost": only the names that an fsync of their directory made durable. "kept": all names as they are, as on a
        file system that writes names ahead of bytes. Either way, a file has the bytes of its last fsync, and is empty
        without one. What unattached programs wrote is not durable until an attached process makes it so.
        """
        model = _Model(self._start)
        for record in self._records():
            if until is not None and record.operation.at > until:
                break
            model.apply(record)
        if until is None:
            model.meet(self.root)
        return model.tree(names)

    def cut_power(self, names: Names) -> None:
        """Reduce the root to what a power cut would have left, and start anew. No attached process is alive."""
        tree = self.durable(names=names)
        _make(self.root, tree)
        self.start_anew()

    def start_anew(self) -> None:
        """Take what is below the root now as durable, and clear the log. No attached process is alive."""
        shutil.rmtree(self._snapshots, ignore_errors=True)
        self._snapshots.mkdir(mode=0o700)
        self._log.write_bytes(b"")
        self._start = read_tree(self.root)


def read_tree(root: Path) -> Tree:
    """Return what is below *root* now, nothing if it is missing. Only directories, files and links are seen."""
    tree: Tree = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            place = str(path.relative_to(root))
            if stat.S_ISLNK(mode):
                tree[place] = str(path.readlink())
            elif stat.S_ISDIR(mode):
                tree[place] = None
            elif stat.S_ISREG(mode):
                tree[place] = path.read_bytes()
    return dict(sorted(tree.items()))


def _ordinal(n: int) -> int:
    if n < 1:
        raise ValueError("calls are counted from 1")
    return n


def _mask(only: Collection[str] | None) -> int:
    return sum(1 << NAMES.index(name) for name in set(NAMES if only is None else only))


def _make(root: Path, tree: Tree) -> None:
    """Make what is below *root* equal to *tree*. Leave alone what is already right."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = read_tree(root)
    for place in sorted(now, reverse=True):
        if place not in tree or type(tree[place]) is not type(now[place]):
            path = root / place
            if now[place] is None:
                path.rmdir()
            else:
                path.unlink()
            del now[place]
    for place, content in sorted(tree.items()):
        path = root / place
        if place in now and now[place] == content:
            continue
        if content is None:
            path.mkdir(0o700)
        elif isinstance(content, str):
            path.unlink(missing_ok=True)
            path.symlink_to(content)
        else:
            with open(path, "wb", opener=functools.partial(os.open, mode=0o600)) as file:
                file.write(content)


# -- the model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    operation: Operation
    kind: str  # of what was changed: "d", "f", "l", otherwise "?"
    snapshot: Path


@dataclass(eq=False)
class _File:
    durable: bytes | Path = b""
    spoilt: bool = False  # an fsync failed: the kernel took its pages for clean, and no later fsync writes them


@dataclass(eq=False)
class _Link:
    target: str


@dataclass(eq=False)
class _Directory:
    now: "dict[str, _Inode]" = field(default_factory=dict)
    durable: "dict[str, _Inode]" = field(default_factory=dict)

    def sync(self) -> None:
        self.durable = dict(self.now)


_Inode = _File | _Link | _Directory


class _Model:
    """The directories and inodes below the root, each in its current and its durable state."""

    def __init__(self, start: Mapping[str, bytes | str | None]) -> None:
        self.root = _Directory()
        for place, content in sorted(start.items()):
            inode: _Inode
            match content:
                case None:
                    inode = _Directory()
                case str():
                    inode = _Link(content)
                case bytes():
                    inode = _File(content)
            self._put(place, inode)
            folder, name = self._parent(place)
            folder.durable[name] = inode

    def apply(self, record: _Record) -> None:
        operation = record.operation
        path = operation.path
        # A file without a name is of no use after a power cut.
        if operation.killed == "before" or path.endswith(" (deleted)"):
            return
        if operation.error:
            if operation.name == "fsync" and isinstance(inode := self._find(path), _File):
                inode.spoilt = True
            return
        match operation.name:
            case "create":
                self._put(path, _File())
            case "fsync":
                self._sync(record)
            case "rename":
                inode = self._known(path, record.kind)
                self._drop(path)
                self._put(operation.to, inode)
            case "link":
                self._put(operation.to, self._known(path, record.kind))
            case "symlink":
                self._put(path, _Link(operation.to))
            case "mkdir":
                self._put(path, _Directory())
            case "unlink" | "rmdir":
                self._drop(path)

    def meet(self, root: Path) -> None:
        """Take in what is below the real *root*: what unattached programs created and removed there."""
        self._meet(self.root, root)

    def tree(self, names: Names) -> Tree:
        found: Tree = {}
        self._collect(self.root, "", names, found)
        return dict(sorted(found.items()))

    def _sync(self, record: _Record) -> None:
        inode = self._known(record.operation.path, record.kind)
        if isinstance(inode, _Directory):
            inode.sync()
        elif isinstance(inode, _File) and not inode.spoilt:
            inode.durable = record.snapshot

    def _find(self, path: str) -> _Inode | None:
        inode: _Inode | None = self.root
        for part in Path(path).parts:
            inode = inode.now.get(part) if isinstance(inode, _Directory) else None
        return inode

    def _known(self, path: str, kind: str) -> _Inode:
        """Return the inode of this name. One that came from elsewhere is new here and not durable."""
        inode = self._find(path)
        if inode is None or {"d": _Directory, "f": _File, "l": _Link}.get(kind, type(inode)) is not type(inode):
            inode = _Directory() if kind == "d" else _Link("") if kind == "l" else _File()
            self._put(path, inode)
        return inode

    def _parent(self, path: str) -> tuple[_Directory, str]:
        folder = self.root
        *above, name = Path(path).parts
        for part in above:
            inner = folder.now.get(part)
            if not isinstance(inner, _Directory):
                inner = folder.now[part] = _Directory()
            folder = inner
        return folder, name

    def _put(self, path: str, inode: _Inode) -> None:
        # An absolute path is outside the root.
        if not path.startswith("/") and path != ".":
            folder, name = self._parent(path)
            folder.now[name] = inode

    def _drop(self, path: str) -> None:
        if not path.startswith("/") and path != ".":
            folder, name = self._parent(path)
            folder.now.pop(name, None)

    def _meet(self, folder: _Directory, real: Path) -> None:
        entries = {entry.name: entry for entry in os.scandir(real)} if real.is_dir() else {}
        for name in [name for name in folder.now if name not in entries]:
            del folder.now[name]
        for name, entry in entries.items():
            known = folder.now.get(name)
            if entry.is_symlink():
                if not isinstance(known, _Link):
                    folder.now[name] = _Link(str(Path(entry.path).readlink()))
            elif entry.is_dir():
                inner = known if isinstance(known, _Directory) else _Directory()
                folder.now[name] = inner
                self._meet(inner, Path(entry.path))
            elif not isinstance(known, _File):
                folder.now[name] = _File()

    def _collect(self, folder: _Directory, above: str, names: Names, found: Tree) -> None:
        for name, inode in (folder.durable if names == "lost" else folder.now).items():
            place = f"{above}{name}"
            if isinstance(inode, _Directory):
                found[place] = None
                self._collect(inode, f"{place}/", names, found)
            elif isinstance(inode, _Link):
                found[place] = inode.target
            else:
                found[place] = inode.durable if isinstance(inode.durable, bytes) else inode.durable.read_bytes()
