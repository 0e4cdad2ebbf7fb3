"""Encrypt a private key as PKCS#8 with a passphrase (RFC 5958, RFC 8018), readable by openssl."""

import base64
import secrets

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.padding import PKCS7

# The number in OWASP's Password Storage Cheat Sheet for PBKDF2-HMAC-SHA256.
PASSPHRASE_ROUNDS = 600_000
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_PBKDF2 = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256 = bytes.fromhex("2a864886f70d0209")
_AES_256_CBC = bytes.fromhex("60864801650304012a")


_INTEGER, _OCTETS, _NULL, _OID, _SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30


def encrypted_pem(der: bytes, passphrase: bytes) -> bytes:
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    secret = PBKDF2HMAC(hashes.SHA256(), 32, salt, PASSPHRASE_ROUNDS).derive(passphrase)
    padder, encryptor = PKCS7(128).padder(), Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padder.update(der) + padder.finalize()) + encryptor.finalize()
    rounds = PASSPHRASE_ROUNDS.to_bytes(PASSPHRASE_ROUNDS.bit_length() // 8 + 1, "big")
    prf = _tlv(_SEQUENCE, _tlv(_OID, _HMAC_SHA256), _tlv(_NULL))
    kdf = _tlv(_SEQUENCE, _tlv(_OID, _PBKDF2), _tlv(_SEQUENCE, _tlv(_OCTETS, salt), _tlv(_INTEGER, rounds), prf))
    cipher = _tlv(_SEQUENCE, _tlv(_OID, _AES_256_CBC), _tlv(_OCTETS, iv))
    scheme = _tlv(_SEQUENCE, _tlv(_OID, _PBES2), _tlv(_SEQUENCE, kdf, cipher))
    body = base64.b64encode(_tlv(_SEQUENCE, scheme, _tlv(_OCTETS, encrypted)))
    lines = b"\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + lines + b"\n-----END ENCRYPTED PRIVATE KEY-----\n"


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Return one DER element."""
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
