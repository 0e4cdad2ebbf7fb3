"""Look at the places before a run, without changing anything there."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path

from a0backup.errors import PlaceError, UnknownVaultError
from a0backup.fleet.models import Fleet
from a0backup.places.credentials import ReadBlock, load
from a0backup.places.opening import open_store
from a0backup.places.places import Place, Places, identity_in, require_ours
from a0backup.report.outcomes import Problem
from a0backup.vault.space import nearest
from a0backup.vault.vault import VAULT


async def look_at_places(fleet: Fleet, *, blocks: ReadBlock | None = None) -> tuple[list[Problem], list[str]]:
    """Return what would keep a run from deleting backups on their nodes, and what is wrong with single places."""
    found = await asyncio.gather(*map(_error_of, Places.of(fleet, blocks=blocks)))
    errors = [error for error in found if error is not None]
    if len(fleet.copies) - len(errors) < fleet.copies_required:
        return [Problem.of(error) for error in errors], []
    return [], [f"{error.text()}; enough other places can be used" for error in errors]


async def _error_of(place: Place) -> PlaceError | None:
    try:
        await place.call(partial(require_ours, place.vault, place.copy), place.new_transfer())
    except PlaceError as error:
        return error
    return None


def require_no_lost_vault(fleet: Fleet, *, blocks: ReadBlock | None = None) -> None:
    """Raise UnknownVaultError if there is no vault, and a place holds the copies of one: a new one could not use it.

    A place that fails is passed over. Where credentials are in a block, the thread must have no event loop.
    """
    if (fleet.vault / VAULT).exists():
        return
    for copy in fleet.copies:
        with suppress(PlaceError):
            credentials = asyncio.run(load(copy, blocks)) if copy.secret_block else None
            with open_store(copy, credentials) as store:
                identity = identity_in(store)
            if identity is not None:
                raise UnknownVaultError(
                    str(fleet.vault),
                    f"is not there, and the place {copy.name} holds the copies of one",
                    "`a0backup verify --repair` brings that vault back; for a new vault, give it places of its own",
                )


def same_disk_warnings(fleet: Fleet) -> tuple[str, ...]:
    """Return a warning for each place that is lost together with the vault's disk."""
    return tuple(
        f"the place {copy.name} is on the vault's disk and is lost with it: put it on another disk or machine"
        for copy in fleet.copies
        if copy.scheme == "file" and _device(Path(copy.root)) == _device(fleet.vault)
    )


def _device(path: Path) -> int | None:
    try:
        return nearest(path).stat().st_dev
    except OSError:
        return None
