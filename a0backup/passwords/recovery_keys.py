"""Recovery keys: the public part seals passwords; the private part, which stays offline, opens them.

    keys = load_all(fleet.password.sealed_to)
    sealed = [key.seal(password) for key in keys]
    ...
    candidates(manifest.encryption.password.sealed, load_private(path, passphrase))

Sealing is RSA-OAEP with SHA-256, also for MGF1, and no label. `openssl pkeyutl -decrypt` opens it
(docs/restore.md).
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from a0backup.errors import PasswordError, RecoveryKeyError
from a0backup.files import UnsuitableFileError, fsync_directory, open_private, read_whole
from a0backup.passwords.pkcs8 import encrypted_pem
from a0backup.passwords.secret_file import read_secret
from a0backup.vault.manifest import SealedPassword

SMALLEST_BITS = 3072
BITS = 4096
SHORTEST_PASSPHRASE = 12
LONGEST_PASSPHRASE = 500  # openssl accepts 1,023 bytes
MAX_BYTES = 64 << 10
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")


@dataclass(frozen=True)
class RecoveryKey:
    """The public part. *fingerprint* is what `openssl pkey -pubin -in FILE -outform DER | sha256sum` prints."""

    fingerprint: str
    _key: rsa.RSAPublicKey = field(repr=False, compare=False)

    def seal(self, password: str) -> SealedPassword:
        """Return *password*, sealed; only the private part opens it."""
        box = self._key.encrypt(password.encode(), _OAEP)
        return SealedPassword(recovery_key=self.fingerprint, box=base64.b64encode(box).decode())


@dataclass(frozen=True)
class PrivateKey:
    """The private part, from the file *where*."""

    where: str
    fingerprint: str
    _key: rsa.RSAPrivateKey = field(repr=False, compare=False)

    def unseal(self, box: str) -> str:
        """Return the password in *box*. Raise RecoveryKeyError if this key does not open it."""
        try:
            return self._key.decrypt(base64.b64decode(box, validate=True), _OAEP).decode()
        except (ValueError, binascii.Error):
            raise RecoveryKeyError(
                self.where, "it does not open the sealed password", "the manifest is damaged; try another copy of it"
            ) from None


def load_public(path: Path) -> RecoveryKey:
    """Return the public part in the PEM file *path*. Raise RecoveryKeyError unless it is RSA of 3072 bits or more."""
    make_one = "name the public part of a pair that `a0backup key create` made"
    content = _read(path, make_one)
    if b"PRIVATE KEY" in content:
        raise RecoveryKeyError(
            str(path),
            "this is a PRIVATE key, which opens every backup: it must not be on the machine that makes them",
            f"TAKE IT OFF THIS MACHINE NOW; there, run `openssl pkey -in {path.name} -pubout` and put its output here."
            " If others could read it, make a new pair",
        )
    blocks = _PEM.findall(content)
    if len(blocks) != 1 or content.count(b"-----BEGIN") != 1:
        reason = "it is not one key in PEM form" if blocks else "it is not a key in PEM form"
        raise RecoveryKeyError(str(path), reason, f"give each recovery key a file of its own; {make_one}")
    [(label, body)] = blocks
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise RecoveryKeyError(str(path), "it cannot be read as a public key", make_one) from None
    # Compare bytes: a signature-only RSA key (RSA-PSS) loads like any other, but openssl cannot decrypt with it.
    form = PublicFormat.PKCS1 if label == b"RSA PUBLIC KEY" else PublicFormat.SubjectPublicKeyInfo
    if not isinstance(key, rsa.RSAPublicKey) or key.public_bytes(Encoding.DER, form) != base64.b64decode(body):
        raise RecoveryKeyError(str(path), "it is not an RSA key for encryption", make_one)
    if key.key_size < SMALLEST_BITS:
        reason = f"it has {key.key_size} bits, and {SMALLEST_BITS} is the least that is safe to seal with"
        raise RecoveryKeyError(str(path), reason, make_one)
    found = RecoveryKey(_fingerprint(key), key)
    try:
        found.seal("a trial")
    except ValueError:
        raise RecoveryKeyError(str(path), "nothing can be sealed with it", make_one) from None
    return found


def load_all(paths: Iterable[Path]) -> tuple[RecoveryKey, ...]:
    """Return the public parts in these files, without duplicates. Raise RecoveryKeyError."""
    return tuple(dict.fromkeys(load_public(path) for path in paths))


def load_private(path: Path, passphrase: str | None) -> PrivateKey:
    """Return the private part in the PEM file *path*; *passphrase* is ignored if the file is not encrypted.

    Raise RecoveryKeyError; its reason says whether the passphrase is missing or wrong, the key is public, or
    the key is not RSA.
    """
    give_private = "give the private part of the pair, recovery.key.pem where `a0backup key create` made it"
    content = _read(path, give_private)
    if b"PRIVATE KEY-----" not in content:
        public = b"PUBLIC KEY-----" in content
        reason = "this is a public key, which opens nothing" if public else "it is not a private key in PEM form"
        raise RecoveryKeyError(str(path), reason, give_private)
    encrypted = is_encrypted(content)
    if encrypted and not passphrase:
        raise RecoveryKeyError(str(path), "it is encrypted, and no passphrase was given", "give its passphrase")
    secret = passphrase.encode("utf-8", "surrogateescape") if encrypted and passphrase else None
    try:
        key = serialization.load_pem_private_key(content, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # A wrong passphrase yields noise, which may fail at any later point.
        reason = "the passphrase does not open it" if encrypted else "it cannot be read as a private key"
        remedy = (
            f"try again; `openssl pkey -in {path.name} -noout` asks for it, too, if the file itself may be damaged"
            if encrypted
            else give_private
        )
        raise RecoveryKeyError(str(path), reason, remedy) from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise RecoveryKeyError(str(path), "it is not an RSA key", give_private)
    return PrivateKey(str(path), _fingerprint(key.public_key()), key)


def is_encrypted(content: bytes) -> bool:
    """Return whether a private key in PEM form needs a passphrase."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in content or b"Proc-Type: 4,ENCRYPTED" in content


def wants_passphrase(path: Path) -> bool:
    """Return whether the private key *path* needs a passphrase. Raise RecoveryKeyError if it is unreadable."""
    return is_encrypted(_read(path, "give the private part of the pair"))


def read_passphrase(path: Path) -> str:
    """Return the first line of the private file *path*. Raise PasswordError, which never quotes it."""
    where, remedy = f"passphrase file {path}", f"write the passphrase into {path} and `chmod 600 {path}`"
    line = read_secret(path, MAX_BYTES, where=where, remedy=remedy).partition(b"\n")[0]
    if not line:
        raise PasswordError(where, "it is empty", remedy)
    return line.decode("utf-8", "surrogateescape")


def make_pair(private: Path, public: Path, passphrase: str) -> RecoveryKey:
    """Make a 4096-bit pair, each part durably in a new file of mode 0600, and return its public part.

    The private part is PKCS#8, encrypted with *passphrase*: PBES2 with PBKDF2-HMAC-SHA256, 600,000 rounds, and
    AES-256-CBC (RFC 8018), which openssl reads. (`BestAvailableEncryption` of cryptography does the same with
    2,048 rounds, which makes each guess 300 times cheaper.)

    Raise RecoveryKeyError for a passphrase under 12 characters or one that openssl or a person could not enter,
    FileExistsError if a file exists already: none is ever overwritten. Raise OSError; neither part remains then.
    """
    if len(passphrase) < SHORTEST_PASSPHRASE:
        reason = f"the passphrase has {len(passphrase)} characters, {SHORTEST_PASSPHRASE} are the least"
        raise RecoveryKeyError(str(private), reason, "choose a longer one: several random words are easy to write down")
    too_long = len(passphrase.encode("utf-8", "surrogateescape")) > LONGEST_PASSPHRASE
    if too_long or not passphrase.isprintable():
        reason = f"has over {LONGEST_PASSPHRASE} bytes" if too_long else "has a character that nobody sees"
        reason = f"the passphrase {reason}"
        raise RecoveryKeyError(str(private), reason, "choose one that can be read off a paper and typed")
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_new(private, encrypted_pem(der, passphrase.encode("utf-8", "surrogateescape")))
    try:
        _write_new(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except BaseException:
        private.unlink()
        raise
    return load_public(public)


def _fingerprint(key: rsa.RSAPublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read(path: Path, remedy: str) -> bytes:
    """Return the content of the small file *path*. Raise RecoveryKeyError with *remedy*."""
    try:
        return read_whole(path, MAX_BYTES, follow=True)
    except FileNotFoundError:
        raise RecoveryKeyError(str(path), "there is no such file", remedy) from None
    except UnsuitableFileError as error:
        raise RecoveryKeyError(str(path), f"it {error.reason}", remedy) from None
    except OSError as error:
        raise RecoveryKeyError(str(path), f"it cannot be read: {error.strerror}", remedy) from None


def _write_new(path: Path, content: bytes) -> None:
    # Write under the final name: a USB stick may support neither links nor a rename that never overwrites.
    with open(path, "xb", buffering=0, opener=open_private) as file:
        try:
            os.fchmod(file.fileno(), 0o600)
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
            fsync_directory(path.parent)
        except BaseException:
            path.unlink()
            raise
