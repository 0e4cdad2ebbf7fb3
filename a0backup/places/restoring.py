"""Make a vault again that is gone as a whole, with the identity that its places have."""

from a0backup.errors import PlaceError, UnknownVaultError
from a0backup.files import make_private_directory, publish_new
from a0backup.fleet.models import Fleet
from a0backup.places.places import Places, identity_in
from a0backup.vault.known_vault import require_known
from a0backup.vault.vault import VAULT, Vault


async def bring_back(fleet: Fleet) -> str | None:
    """Make the vault of *fleet* anew if its folder is gone or empty, and return the place that has its identity.

    Return None if the vault is there. Its artifacts are brought back by a repair. Raise
    UnknownVaultError if its disk is not mounted, if no place has its identity, or if a place has
    that of another vault than the one that was used last.
    """
    vault = Vault(fleet.vault)
    if (vault.root / VAULT).exists() or vault.nodes():
        return None
    vault.require_mounted("the vault")
    reasons = []
    for place in Places.of(fleet):
        name = place.copy.name
        try:
            identity = await place.call(identity_in, place.new_transfer())
        except PlaceError as error:
            reasons.append(error.text())
            continue
        if identity is None:
            reasons.append(f"{name}: it has no {VAULT}")
            continue
        make_private_directory(vault.root)
        publish_new(vault.root / VAULT, identity)
        try:
            require_known(fleet)
        except UnknownVaultError:
            (vault.root / VAULT).unlink()
            reasons.append(f"{name}: it has the copies of another vault")
            continue
        return name
    why = "; ".join(reasons) or "fleet.yaml names no copies"
    raise UnknownVaultError(str(fleet.vault), f"is gone, and no place brings it back: {why}")
