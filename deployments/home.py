"""The home of our own engine, and how a process uses an engine's API."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from a0backup.access import places_of_others
from a0backup.errors import EngineError
from a0backup.files import make_private_directory, publish
from a0backup.state_folder import require_home, state_folder

if TYPE_CHECKING:
    pass


NO_HOME = (
    "make it writable and free space on its disk; it is below XDG_STATE_HOME where that is set, else ~/.local/state"
)


CREDENTIALS = "credentials"


def operators_api() -> str | None:
    """Return the API address set by the operator's environment, profile or prefect.toml, as Prefect resolves it.

    Raise EngineError if Prefect cannot read its settings, NoHomeError.
    """
    require_home()
    # The import alone would report a new user to Prefect's telemetry.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        from prefect.settings import get_current_settings

        # Prefect takes an empty address for none.
        return get_current_settings().api.url or None
    except Exception as error:
        # Prefect reads them on import, and lets through whatever its readers raise: of TOML, of .env files, of values.
        reason = " ".join(str(error).split())[:300]
        raise EngineError(
            f"Prefect's settings cannot be read: {type(error).__name__}: {reason}",
            "correct the PREFECT_ variables, or pyproject.toml, prefect.toml or .env in the current folder, or start"
            " from another folder",
        ) from error


def default_home() -> Path:
    """Return the folder in the user's state folder where our own engine keeps its database, results and log."""
    return state_folder() / "engine"


def make_home(home: Path) -> None:
    """Make the folder *home* unless it exists, whatever the umask.

    Raise EngineError where it cannot be used, or where somebody else than this user and root could
    put another in its place: what is in it decides what the engine runs.
    """
    with using(home):
        make_private_directory(home)
        place = next(places_of_others(home / CREDENTIALS), None)
    if place is not None:
        raise EngineError(
            f"others can replace what is in the engine's home {home}: they can write {place}",
            f"chmod go-w {place}, or set XDG_STATE_HOME to a folder that is only yours",
        )


@contextmanager
def use_api(api: str, home: Path) -> Iterator[None]:
    """Make this process and its children use our own server at *api*, with results and all else in its *home*.

    Works whether or not Prefect is already imported. The operator's profile does not apply inside the block.
    """
    changes: dict[str, str | None] = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home),
        # These belong to another server: a profile that *home* does not know, and secrets that ours must not see.
        "PREFECT_PROFILE": None,
        "PREFECT_PROFILES_PATH": None,
        "PREFECT_API_KEY": None,
        "PREFECT_API_AUTH_STRING": credentials(home),
        "DO_NOT_TRACK": "1",
        **past_the_proxy(),
    }
    with environment(changes):
        yield


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set these environment variables inside the block, and unset those that are None; Prefect reloads its settings."""
    before = {name: os.environ.get(name) for name in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def past_the_proxy() -> dict[str, str]:
    """Return the variables that keep loopback requests, which carry the credentials, off the operator's proxy."""
    found = {name: os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    # Where both are set, clients differ in which one they prefer. Where only one is set, ours must not hide it.
    theirs = {name: value or found["no_proxy"] or found["NO_PROXY"] for name, value in found.items()}
    return {name: value if value.strip() == "*" else f"{value},127.0.0.1".lstrip(",") for name, value in theirs.items()}


def credentials(home: Path) -> str:
    """Return the ``user:password`` that our own server in *home* requires; create it where it is missing.

    Anyone who can talk to a server can make its worker run any program, and every user of the machine
    can reach loopback. Raise EngineError where the file cannot be used or does not hold both parts.
    """
    path = home / CREDENTIALS
    make_home(home)
    with using(home):
        if not path.exists():
            # Complete or missing, never partial: another process may read the file while this one creates it.
            partial = home / f".{CREDENTIALS}-{secrets.token_hex(8)}"
            publish(partial, f"a0backup:{secrets.token_urlsafe(32)}\n".encode())
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
            partial.unlink()
        user_password = path.read_text().strip()
    if not all(user_password.partition(":")):
        # With an empty password the server would admit everybody.
        raise EngineError(f"{path} holds no user:password", "delete it: the next start makes another")
    return user_password


def _set_environment(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Prefect reads the environment once, at import, and then also derives the paths below its home.
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


@contextmanager
def using(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"the engine's home {home} cannot be used: {error}", NO_HOME) from error
