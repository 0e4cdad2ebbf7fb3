"""Which vault it is: a vault has an identity, and its users remember which one they used last.

    vault/vault.json            the identity, written once
    .fleet.yaml.vault           beside fleet.yaml, or in the state folder: the identity that was used last

A vault that is gone, or another one in its place, is so detected even if nobody declared its mount.
"""

import hashlib
import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a0backup.errors import NoHomeError, UnknownVaultError
from a0backup.files import UnsuitableFileError, make_private_directory, publish, publish_new, read_whole
from a0backup.fleet.models import Fleet
from a0backup.state_folder import state_folder
from a0backup.vault.filesystem import require_able
from a0backup.vault.journal import later_schema
from a0backup.vault.manifest import Time
from a0backup.vault.space import nearest
from a0backup.vault.vault import VAULT, Vault

MAX_BYTES = 4096
_FROM_COPIES = (
    "mount its disk, or correct fleet.yaml; if it is lost, `a0backup verify --repair` brings it back from its copies"
)


class _Identity(BaseModel):
    """The content of vault.json (schema 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    id: str = Field(min_length=1, max_length=64)
    made_at: Time


class _Memory(BaseModel):
    """Which vault a fleet used last (schema 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")
    id: str
    path: str


def require_vault(vault: Vault) -> str:
    """Return the identity of *vault*. Raise UnknownVaultError if there is no vault there."""
    try:
        return _Identity.model_validate_json(read_whole(vault.root / VAULT, MAX_BYTES)).id
    except (FileNotFoundError, NotADirectoryError):
        what = "is empty" if _is_empty(vault.root) else "is no vault" if vault.root.exists() else "does not exist"
        raise UnknownVaultError(str(vault.root), f"{what}: it has no {VAULT}") from None
    except UnsuitableFileError as error:
        raise UnknownVaultError(str(vault.root), f"cannot be identified: {VAULT} {error.reason}") from None
    except OSError as error:
        raise UnknownVaultError(str(vault.root), f"cannot be read: {error.strerror}") from None
    except ValidationError as error:
        reason = later_schema(error) or "cannot be read"
        raise UnknownVaultError(str(vault.root), f"cannot be identified: {VAULT} {reason}") from None


def require_known(fleet: Fleet) -> str:
    """Return the identity of the vault of *fleet*.

    Raise UnknownVaultError unless it is there, and is the one that was used last, if any was.
    """
    try:
        identity, known = require_vault(Vault(fleet.vault)), _remembered(fleet)
    except UnknownVaultError as error:
        if not fleet.copies or error.remedy:
            raise
        raise UnknownVaultError(error.root, error.reason, _FROM_COPIES) from None
    if known is not None and known.id != identity:
        raise UnknownVaultError(str(fleet.vault), _another(known))
    return identity


def recognise(fleet: Fleet) -> str:
    """Return the identity of the vault of *fleet* if it may be written: it was used last, or none was used yet.

    A first vault is made. Raise UnknownVaultError, OSError.
    """
    vault, known = Vault(fleet.vault), _remembered(fleet)
    if known is None:
        create(vault)
        _remember(fleet, require_vault(vault))
    identity = require_known(fleet)
    require_able(fleet.vault)
    return identity


def require_same(vault: Vault, identity: str) -> None:
    """Raise UnknownVaultError unless *vault* still has this identity: its disk may have gone since."""
    if require_vault(vault) != identity:
        raise UnknownVaultError(str(vault.root), "is another vault now than at the beginning of this run")


def refusal(fleet: Fleet) -> UnknownVaultError | None:
    """Return why a run would refuse the vault of *fleet*; None if it would not."""
    try:
        if _remembered(fleet) is not None:
            require_known(fleet)
        if _exists(Vault(fleet.vault)):
            require_able(fleet.vault)
    except UnknownVaultError as error:
        return error
    return None


def is_there(fleet: Fleet) -> bool:
    """Return whether the vault of *fleet* is there; False only if none was ever used. Raise UnknownVaultError."""
    if _remembered(fleet) is None and not (fleet.vault / VAULT).exists():
        return False
    require_known(fleet)
    return True


def adopt(fleet: Fleet) -> str:
    """Make the vault of *fleet* the known one and return its identity. Raise UnknownVaultError, OSError."""
    vault = Vault(fleet.vault)
    create(vault)
    try:
        identity = require_vault(vault)
    except UnknownVaultError:
        # Torn, or of a later version: keep it for a person to read.
        file = vault.root / VAULT
        file.replace(file.with_name(f"{VAULT}.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"))
        create(vault)
        identity = require_vault(vault)
    _remember(fleet, identity)
    if (known := _remembered(fleet)) is not None and known.id != identity:
        raise UnknownVaultError(str(fleet.vault), "cannot be remembered", f"make {_places(fleet)[0]} writable")
    return identity


def memory_warning(fleet: Fleet) -> str:
    """Return a warning if nothing can remember the vault of *fleet*; otherwise an empty text."""
    places = _places(fleet)
    # Not Path.exists(), which raises an error below a folder that this user may not enter.
    if any(os.path.exists(place) or os.access(nearest(place.parent), os.W_OK) for place in places):  # noqa: PTH110
        return ""
    return (
        f"no run remembers which vault it used, as it cannot write {' or '.join(map(str, places))}: if the vault's"
        " disk is missing one day, a run makes a new vault in its place"
    )


def _another(known: _Memory) -> str:
    return f"is another vault than the one that was used last (then at {known.path})"


def _is_empty(root: Path) -> bool:
    try:
        return root.is_dir() and not any(root.iterdir())
    except OSError:
        return False


def create(vault: Vault) -> None:
    """Make the vault unless it exists.

    Raise UnknownVaultError if that cannot be seen, VaultUnusableError if its disk is not mounted, OSError.
    """
    if _exists(vault):
        return
    vault.require_mounted("the vault")
    make_private_directory(vault.root)
    made = _Identity(id=str(uuid.uuid4()), made_at=datetime.now(UTC).replace(microsecond=0))
    publish_new(vault.root / VAULT, made.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def _exists(vault: Vault) -> bool:
    """Return whether there is a vault.json, whatever it is. Raise UnknownVaultError if that cannot be seen."""
    try:
        (vault.root / VAULT).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnknownVaultError(str(vault.root), f"cannot be read: {error.strerror}") from None
    return True


def _places(fleet: Fleet) -> list[Path]:
    """Return where the last vault may be remembered, the best place first."""
    places = [fleet.path.with_name(f".{fleet.path.name}.vault")]
    try:
        name = hashlib.sha256(os.fsencode(fleet.path)).hexdigest()[:16]
        places.append(state_folder() / "vaults" / f"{name}.json")
    except NoHomeError:
        pass
    return places


def _remembered(fleet: Fleet) -> _Memory | None:
    """Return which vault was used last; None if none was. Raise UnknownVaultError if that cannot be read."""
    for place in _places(fleet):
        try:
            return _Memory.model_validate_json(read_whole(place, MAX_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UnsuitableFileError as error:
            reason = error.reason
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        except ValidationError as error:
            reason = later_schema(error) or "cannot be read"
        raise UnknownVaultError(
            str(fleet.vault),
            f"cannot be recognised: {place}, which says which one was used last, {reason}",
            f"remove {place}, then `a0backup vault use` if this is the vault",
        )
    return None


def _remember(fleet: Fleet, identity: str) -> None:
    """Write down the identity where that is possible; where it is not, the next run takes what it finds."""
    content = json.dumps({"schema": 1, "id": identity, "path": str(fleet.vault)}, indent=1).encode() + b"\n"
    for place in _places(fleet):
        try:
            make_private_directory(place.parent)
            publish(place, content)
        except OSError:
            continue
        return
