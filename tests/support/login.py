"""User and password for our own servers."""

import os
from pathlib import Path


def logged_in(home: Path | None = None) -> tuple[str, str]:
    """Those of the server in *home*; by default of all homes that are copies of the migrated one."""
    place = home or Path(os.environ["A0BACKUP_TEST_ROOM"]) / "migrated-home"
    user, _, password = (place / "credentials").read_text().strip().partition(":")
    return user, password


def reaching(environment: dict[str, str]) -> dict[str, str]:
    """*environment* with the credentials for the server that it names, where it names one."""
    if "PREFECT_API_URL" not in environment:
        return environment
    return {"PREFECT_API_AUTH_STRING": ":".join(logged_in())} | environment
