"""Open a place by its address: the one place that knows every kind."""

from contextlib import AbstractContextManager

from a0backup.fleet.copies import Copy
from a0backup.places.store import Store


def open_store(copy: Copy) -> AbstractContextManager[Store]:
    """Return the place of *copy*, opened for the block. Raise PlaceError."""
    match copy.scheme:
        case "file":
            from a0backup.places.directory import open_directory

            return open_directory(copy)
        case "s3":
            from a0backup.places.s3 import open_bucket

            return open_bucket(copy)
        case "sftp":
            from a0backup.places.sftp import open_server

            return open_server(copy)
