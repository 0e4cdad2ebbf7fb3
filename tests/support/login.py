"""User and password of our own servers."""

import os
from pathlib import Path


def logged_in(home: Path | None = None) -> tuple[str, str]:
    """Return user and password of the server in *home*, by default of every copy of the migrated home."""
    place = home or Path(os.environ["A0BACKUP_TEST_ROOM"]) / "migrated-home"
    user, _, password = (place / "credentials").read_text().strip().partition(":")
    return user, password


def reaching(environment: dict[str, str]) -> dict[str, str]:
    """Return *environment* with the credentials of the server that it names, if any."""
    if "PREFECT_API_URL" not in environment:
        return environment
    return {"PREFECT_API_AUTH_STRING": ":".join(logged_in())} | environment
