"""The only module that starts a process: an a0cli, with bounded time and bounded output.

    ended = await run_program("/usr/bin/a0cli", ["-t", host, "ping"], directory=private, limit=60.0)

A call is an argument list and never goes through a shell. At the deadline, on cancellation and on any error,
the whole process group is gone before the caller continues. (A grandchild that opened its own session escapes
this. It still holds the node's lock, so it is not forgotten.)
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from a0backup.a0cli.ownership import MARK, end_descendants
from a0backup.a0cli.redaction import longest_form
from a0backup.a0cli.text import without, without_both
from a0backup.files import in_thread

# The rest of the environment is not passed on: it may hold the password, and a0cli needs none of it.
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "LD_LIBRARY_PATH"),
)


_KEPT = 32 * 1024
_POLITE = 1.0  # seconds between SIGTERM and SIGKILL
_PIPES = 0.5  # seconds for the pipes to close after a0cli has ended
_KILLED = 5.0  # seconds for a killed process to end; it takes longer only if the kernel itself waits
_running: set[int] = set()
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Ended:
    """How a process ended: *exit_code* is None if it timed out, *left* is its pid if it is still alive.

    *stdout* and *stderr* are the first and last 32 KiB of each stream, without the secrets.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float
    left: int | None = None


async def run_program(
    program: str,
    arguments: Sequence[str],
    *,
    directory: Path,
    limit: float,
    inherit: Sequence[int] = (),
    secrets: Sequence[str] = (),
    environment: Sequence[str] = (),
) -> Ended:
    """Run *program* in *directory* for at most *limit* seconds; return how it ended, whatever the exit code.

    The process inherits the descriptors *inherit*, and of the environment a few variables that every
    program needs and those that *environment* names. *secrets* are removed from its output. Raise OSError
    if it cannot be started.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with contextlib.AsyncExitStack() as stack:
        stdout, stdout_end = await _pipe(stack)
        stderr, stderr_end = await _pipe(stack)
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout_end,
                stderr=stderr_end,
                cwd=directory,
                env={name: os.environ[name] for name in (*_ENVIRONMENT, *environment) if name in os.environ}
                | {MARK: str(directory)},
                start_new_session=True,
                umask=0o077,
                pass_fds=inherit,
            )
        )
        # A half-started process cannot be ended, so a cancellation waits until it can.
        cancelled = await _to_the_end(starting)
        stdout_end.close()
        stderr_end.close()
        if cancelled is not None and starting.exception() is not None:
            raise cancelled
        process = starting.result()
        _running.add(process.pid)
        exit_code = None
        try:
            if cancelled is not None:
                raise cancelled
            async with asyncio.timeout_at(began + limit):
                exit_code = await process.wait()
            await asyncio.wait({stdout.closed, stderr.closed}, timeout=_PIPES)
        except TimeoutError:
            pass  # exit_code None reports it, once the group is gone
        finally:
            ending = asyncio.ensure_future(_end_group(process, (stdout, stderr)))
            cancelled = await _to_the_end(ending)
            if ending.cancelled():  # the event loop itself is being closed
                _signal_group(process.pid, signal.SIGKILL)
            elif exit_code is None:
                # What left the group would go on writing, and hold the node's lock.
                rest = asyncio.ensure_future(in_thread(end_descendants, directory))
                cancelled = (await _to_the_end(rest)) or cancelled
            if process.returncode is not None:
                _running.discard(process.pid)
        if cancelled is not None:
            raise cancelled
        left = process.pid if process.returncode is None else None
        # In a thread: the other nodes must not wait while a large output is searched for secrets.
        out, err = await in_thread(_texts, stdout, stderr, secrets)
        return Ended(exit_code, out, err, loop.time() - began, left)


def kill_running() -> None:
    """Kill every running a0cli and everything it started, for a process that is about to exit."""
    for group in tuple(_running):
        _signal_group(group, signal.SIGKILL)


class _Stream(asyncio.Protocol):
    """Reads a pipe to its end and keeps the first and last 32 KiB: the writer never waits, memory never grows."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head, self._tail, self._size = b"", b"", 0

    def data_received(self, octets: bytes) -> None:
        self._size += len(octets)
        room = _KEPT - len(self._head)
        self._head += octets[:room]
        self._tail = (self._tail + octets[room:])[-_KEPT:] if len(octets) > room else self._tail

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def kept(self, margin: int) -> tuple[str, list[str]]:
        """Return the text that stands for what was left out, and the parts of the kept output around it.

        A secret cut in two would not be recognised, so *margin* more bytes are left out on both sides of a cut.
        """
        left_out = self._size - len(self._head) - len(self._tail)
        parts = [self._head[: max(0, _KEPT - margin)], self._tail[margin:]] if left_out else [self._head + self._tail]
        return f"\n[{left_out + 2 * margin} bytes left out]\n", [part.decode(errors="replace") for part in parts]


def _texts(stdout: _Stream, stderr: _Stream, secrets: Sequence[str]) -> tuple[str, str]:
    """Return the kept output of both streams without *secrets*."""
    margin = max((longest_form(secret) for secret in secrets), default=0)
    between_out, (*head, out) = stdout.kept(margin)
    between_err, (err, *tail) = stderr.kept(margin)
    # Messages show them joined.
    out, err = without_both(secrets, out, err)
    return (
        between_out.join([*(without(secrets, part) for part in head), out]),
        between_err.join([err, *(without(secrets, part) for part in tail)]),
    )


async def _pipe(stack: contextlib.AsyncExitStack) -> tuple[_Stream, IO[bytes]]:
    """Return a stream and its write end.

    With asyncio's own pipes, `wait` would not return while a grandchild holds them open.
    """
    read_end, write_end = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    stack.callback(write_end.close)
    stack.callback(read_end.close)
    transport, stream = await asyncio.get_running_loop().connect_read_pipe(_Stream, read_end)
    stack.callback(transport.close)
    return stream, write_end


async def _to_the_end(work: asyncio.Future[_Answer]) -> asyncio.CancelledError | None:
    """Wait until *work* is done despite cancellations; return the first cancellation for the caller to raise."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    return cancelled


async def _end_group(process: asyncio.subprocess.Process, streams: Sequence[_Stream]) -> None:
    """End what is left of the process group, with SIGTERM first if a0cli itself is still running."""

    def silent() -> bool:
        return process.returncode is not None and all(stream.closed.done() for stream in streams)

    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        await _until(lambda: silent() or _gone(process), _POLITE)
    if _signal_group(process.pid, signal.SIGKILL):
        await _until(lambda: process.returncode is not None, _KILLED)
        # Dead children that nobody reaps stay in the group forever, as in a container without an init.
        await _until(lambda: _gone(process), _PIPES)
        await asyncio.wait({stream.closed for stream in streams}, timeout=_PIPES)


def _gone(process: asyncio.subprocess.Process) -> bool:
    return process.returncode is not None and not _signal_group(process.pid, 0)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait up to *seconds* until *condition* holds; the kernel reports only the end of one's own children."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:  # noqa: ASYNC110 - no event reports the end of a group
        await asyncio.sleep(0.01)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS: only zombies are left
        return False
    return True
