"""Pass items from one thread to another, few at a time."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

DEPTH = 8  # maximum number of items that wait between two threads

T = TypeVar("T")


class Pipe(Generic[T]):
    """What one thread puts in, another one takes out. If one side leaves, the other never waits."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.left = False

    def put(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < DEPTH or self.left)
            if not self.left:
                self._items.append(item)
                self._changed.notify_all()

    def close(self) -> None:
        """Signal the end of the items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def leave(self) -> None:
        """Drop all waiting and all later items."""
        with self._changed:
            self.left = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed or self.left)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
