"""A transfer to or from a place: its bandwidth, its progress, and the end of one in which nothing moves.

transfer = Transfer(throttle)
await watched(partial(send, transfer), transfer, place="nas", deadline=120)
"""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from a0backup.errors import PlaceError
from a0backup.files import raise_if_stopped, stoppable

R = TypeVar("R")

_NAP = 0.5  # seconds between two looks whether a throttled thread must stop


class Throttle:
    """Keeps all transfers of a place together below *rate* bytes per second; without one, it lets all pass."""

    def __init__(self, rate: int | None) -> None:
        self._rate, self._lock, self._free_at = rate, threading.Lock(), 0.0

    def reserve(self, octets: int) -> float:
        """Return the time of the monotonic clock from which on *octets* more bytes may pass."""
        if self._rate is None:
            return 0.0
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + octets / self._rate
            return self._free_at


class Transfer:
    """The bytes of one artifact that have moved so far, for whoever watches it."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self.moved = 0  # bytes, sent and read
        self.last = time.monotonic()  # when the last of them moved

    def passing(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield *chunks*, counted and not faster than allowed. Raise StoppedError once the transfer is stopped."""
        for chunk in chunks:
            at = self._throttle.reserve(len(chunk))
            raise_if_stopped()
            while (left := at - time.monotonic()) > 0:
                self.alive()
                time.sleep(min(left, _NAP))
                raise_if_stopped()
            self.moved += len(chunk)
            self.alive()
            yield chunk
            self.alive()

    def reading(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield *chunks* of the vault, which are not of the place: they neither count nor wait."""
        for chunk in chunks:
            raise_if_stopped()
            self.alive()
            yield chunk

    def alive(self) -> None:
        """Record that the transfer goes on."""
        self.last = time.monotonic()


async def watched(work: Callable[[], R], transfer: Transfer, *, place: str, deadline: float | None) -> R:
    """Return what *work* returns, done in a thread. Raise PlaceError if nothing moves for *deadline* seconds.

    The thread is then abandoned, as a file server that hangs may never let it go; the process can
    end without it. When cancelled, it is stopped at its next chunk, and not awaited.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()
    stop, context = threading.Event(), contextvars.copy_context()

    def settle(result: R | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # there is a result where there is no error

    def body() -> None:
        result, error = None, None
        try:
            result = context.run(stoppable(stop, work))
        except BaseException as raised:  # noqa: BLE001 - handed to the caller, whatever it is
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    transfer.last = time.monotonic()
    threading.Thread(target=body, name=f"copy-{place}", daemon=True).start()
    try:
        while not done.done():
            left = None if deadline is None else transfer.last + deadline - time.monotonic()
            if left is not None and left <= 0:
                raise PlaceError(place, f"nothing moved for {deadline:.0f} s", "check the server and the network")
            await asyncio.wait({done}, timeout=left)
        return done.result()
    finally:
        stop.set()
        if done.done() and not done.cancelled():
            done.exception()  # retrieved here, or the loop reports it as never retrieved
