"""Read a password or passphrase from a file that only its owner may read."""

import os
from pathlib import Path

from a0backup.errors import PasswordError
from a0backup.files import ExposedFileError, ForeignFileError, UnsuitableFileError, read_whole, user_name


def read_secret(path: Path, limit: int, *, where: str, remedy: str) -> bytes:
    """Return the bytes of *path*, at most *limit*. Raise PasswordError, which names *where* and never quotes them."""
    try:
        return read_whole(path, limit, follow=True, private=True)
    except ExposedFileError as error:
        raise PasswordError(where, f"it {error.reason}", f"chmod 600 {path}") from None
    except ForeignFileError as error:
        raise PasswordError(where, f"it {error.reason}", f"chown {user_name(os.geteuid())} {path}") from None
    except UnsuitableFileError as error:
        raise PasswordError(where, f"it {error.reason}", remedy) from None
    except OSError as error:
        raise PasswordError(where, error.strerror or type(error).__name__, remedy) from None
