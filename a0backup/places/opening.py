"""Open a place by its address: the one place that knows every kind."""

from contextlib import AbstractContextManager

from a0backup.fleet.copies import Copy
from a0backup.places.credentials import Credentials, S3Credentials, SftpCredentials
from a0backup.places.store import Store


def open_store(copy: Copy, credentials: Credentials | None = None) -> AbstractContextManager[Store]:
    """Return the place of *copy*, opened for the block, with *credentials* if they do not come from elsewhere.

    Raise PlaceError.
    """
    match copy.scheme:
        case "file":
            from a0backup.places.directory import open_directory

            return open_directory(copy)
        case "s3":
            from a0backup.places.s3 import open_bucket

            return open_bucket(copy, credentials if isinstance(credentials, S3Credentials) else None)
        case "sftp":
            from a0backup.places.sftp import open_server

            return open_server(copy, credentials if isinstance(credentials, SftpCredentials) else None)
