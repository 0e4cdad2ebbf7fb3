"""Make a vault again that is gone as a whole, or has lost its identity, with the identity that its places have."""

from datetime import UTC, datetime
from functools import partial
from itertools import islice

from a0backup.errors import PlaceError, UnknownVaultError, VaultUnusableError
from a0backup.files import UnsuitableFileError, make_private_directory, publish_new, read_whole
from a0backup.fleet.models import Fleet
from a0backup.places.copying import manifest_bytes, manifest_path, read_small
from a0backup.places.places import MAX_IDENTITY, Places, identity_in, is_identity
from a0backup.places.store import Store
from a0backup.vault.known_vault import require_known
from a0backup.vault.manifest import MAX_MANIFEST_BYTES
from a0backup.vault.vault import VAULT, Vault

_COMPARED = 20  # manifests; one that is the same in the vault and in a place is enough


async def bring_back(fleet: Fleet) -> str | None:
    """Make the vault of *fleet* anew if it or its identity is gone, and return the place that has its identity.

    Return None if the vault is there. Its artifacts are brought back by a repair. Raise
    UnknownVaultError if its disk is not mounted, if no place has its identity, if a place has that of
    another vault than the one that was used last, or if other folders are there; OSError.
    """
    vault = Vault(fleet.vault)
    if not _lacks_identity(vault):
        return None
    vault.require_mounted("the vault")
    reasons = []
    for place in Places.of(fleet):
        name = place.copy.name
        try:
            identity = await place.call(identity_in, place.new_transfer())
            is_same = await place.call(partial(_holds_the_same, vault), place.new_transfer())
        except PlaceError as error:
            reasons.append(error.text())
            continue
        if identity is None:
            reasons.append(f"{name}: it has no {VAULT}")
            continue
        if not is_same:
            reasons.append(f"{name}: it has none of the artifacts in {vault.root}")
            continue
        make_private_directory(vault.root)
        file = vault.root / VAULT
        if file.is_symlink() or file.exists():
            file.replace(file.with_name(f"{VAULT}.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"))
        publish_new(file, identity)
        try:
            require_known(fleet)
        except UnknownVaultError:
            file.unlink()
            reasons.append(f"{name}: it has the copies of another vault")
            continue
        return name
    why = "; ".join(reasons) or "fleet.yaml names no copies"
    raise UnknownVaultError(str(fleet.vault), f"is gone, and no place brings it back: {why}")


def _lacks_identity(vault: Vault) -> bool:
    """Return whether the vault has no identity that anybody could read. Raise OSError."""
    try:
        return not is_identity(read_whole(vault.root / VAULT, MAX_IDENTITY))
    except (FileNotFoundError, NotADirectoryError, UnsuitableFileError):
        return True


def _holds_the_same(vault: Vault, store: Store) -> bool:
    """Return whether the place has an artifact of the vault; True if the vault has no folders. Raise PlaceError.

    Where other folders are, another disk may be mounted, and it must not become this vault.
    """
    if not vault.nodes():
        return True
    for manifest in islice(reversed(vault.manifests()), _COMPARED):
        try:
            if read_small(store, manifest_path(manifest.id), MAX_MANIFEST_BYTES) == manifest_bytes(vault, manifest):
                return True
        except VaultUnusableError:
            continue
    return False
