"""The appliance's encryption: AES-256-CTR, with key and IV from OpenSSL's oldest key derivation.

`openssl enc -d -aes-256-ctr -md md5 -nosalt -k PASSWORD` decrypts it (vendor's page on exports). There is no salt
and no authentication: one password gives one keystream, and a wrong password gives noise without any error.
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from a0backup.files import CHUNK, Digests, Hasher, raise_if_stopped


def key_and_iv(password: str) -> tuple[bytes, bytes]:
    """Return the key and IV for *password*: OpenSSL's EVP_BytesToKey with MD5, no salt and one round."""
    # The bytes that a0cli gets as its argument.
    secret = password.encode("utf-8", "surrogateescape")
    derived = digest = b""
    while len(derived) < 48:
        digest = hashlib.md5(digest + secret, usedforsecurity=False).digest()
        derived += digest
    return derived[:32], derived[32:]


def decryptor(password: str) -> CipherContext:
    """Return the cipher, positioned at the first byte of an artifact."""
    key, iv = key_and_iv(password)
    return Cipher(algorithms.AES(key), modes.CTR(iv)).decryptor()


def decrypt_file(source: Path, target: int | BinaryIO, password: str) -> Digests:
    """Decrypt all of *source* into the open file *target*; return the digests of the encrypted bytes.

    Memory use is constant. Raise OSError, or StoppedError when stopped; *target* then holds what was
    written so far.
    """
    write = functools.partial(os.write, target) if isinstance(target, int) else target.write
    cipher = decryptor(password)
    hasher = Hasher()
    with source.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            plain = memoryview(cipher.update(chunk))
            while plain:
                plain = plain[write(plain) :]
            raise_if_stopped()
    return hasher.digests()
