"""Sealed passwords: each is made for one backup and opened with the private part of a recovery key."""

import secrets
import string
from collections.abc import Sequence

from a0backup.a0cli.text import quote
from a0backup.errors import RecoveryKeyError
from a0backup.passwords.recovery_keys import PrivateKey
from a0backup.vault.manifest import SealedPassword


def candidates(sealed: Sequence[SealedPassword], key: PrivateKey) -> list[str]:
    """Return every password that *key* opens, in order, without duplicates.

    Raise RecoveryKeyError if none is sealed to it, naming the keys that are needed, or if it opens none.
    """
    ours = [entry.box for entry in sealed if entry.recovery_key == key.fingerprint]
    if not ours:
        needed = list(dict.fromkeys(quote(entry.recovery_key) for entry in sealed))[:20]
        raise RecoveryKeyError(
            key.where,
            f"its fingerprint is {key.fingerprint}, and the password is sealed to {', '.join(needed) or 'no key'}",
            "give the private part of one of these; `openssl pkey -pubin -in PUBLIC -outform DER | sha256sum` prints"
            " the fingerprint of a public part",
        )
    opened: dict[str, None] = {}
    failure: RecoveryKeyError | None = None
    for box in ours:
        try:
            opened[key.unseal(box)] = None
        except RecoveryKeyError as error:
            failure = error
    if not opened and failure is not None:
        raise failure
    return list(opened)


_LETTERS_AND_DIGITS = string.ascii_letters + string.digits


def random_password() -> str:
    """Return a new 256-bit password of letters and digits only, as the vendor's page on the CLI advises."""
    # 62 ** 43 is the first power of 62 above 2 ** 256.
    return "".join(secrets.choice(_LETTERS_AND_DIGITS) for _ in range(43))
