"""The files of one place, by their path below its root, such as `a0-1/20261123T020000Z-backup/manifest.json`.

with open_store(copy) as store:  # opening.py
    store.write(path, chunks, size=734003200)
    for chunk in store.read(path): ...

A directory, an S3 bucket and an SFTP server look the same from here. One thread at a time uses a store.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from a0backup.errors import PlaceError
from a0backup.fleet.copies import Copy

CHUNK = 1 << 20  # bytes
SYNC = 64 << 20  # bytes; a sync of many gigabytes at once would look like a disk that hangs
LEFT_AFTER = 86400.0  # seconds; what a transfer left that began longer ago is removed


# What our own transfers leave when they are killed; a file of somebody else may end in .partial, too.
PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
# What they write in a place: artifacts and manifests, also in quarantine.
OF_TRANSFER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/(?:quarantine/)?\d{8}T\d{6}Z-[a-z-]+[^/]*/[^/]+")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Entry(NamedTuple):
    """A file in a place: its path and its size in bytes."""

    path: str
    size: int


class Store(Protocol):
    """The files of one place. Every method raises PlaceError where the place fails or refuses."""

    def size(self, path: str) -> int | None:
        """Return the size of the file in bytes, or None if there is none."""

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of the file as the place has them, past its caches. Raise FileNotFoundError."""

    def write(self, path: str, chunks: Iterable[bytes], *, size: int) -> bool:
        """Make the file of *chunks*, *size* bytes in all; after a failure, its name shows what it did before.

        When this returns, the file is as durable as the place can make it. Return whether the place
        itself has computed a SHA-256 over what it stored, and it is that of *chunks*.
        """

    def settle(self, path: str) -> None:
        """Make a file that is there durable: whoever wrote it may have been killed before it was."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield every file whose path begins with *prefix*, also those that are not ours.

        Folders that can be no node's, such as lost+found, belong to the file system and are left out.
        """

    def remove(self, path: str) -> None:
        """Remove the file if it exists."""

    def tidy(self) -> None:
        """Remove what transfers of ours left that were killed more than a day ago."""


def can_be_nodes(folder: str) -> bool:
    """Return whether a node can have a folder of this name at the root of a place."""
    return _NODE.fullmatch(folder) is not None


def missing_extra(copy: Copy) -> PlaceError:
    """Return the error that the package for the kind of place of *copy* is not installed."""
    return PlaceError(
        copy.name,
        f"{copy.scheme}:// places need a package that is not installed",
        f"pip install 'a0backup[{copy.scheme}]', or `make install`",
    )
