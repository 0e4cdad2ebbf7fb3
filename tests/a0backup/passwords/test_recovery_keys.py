"""Only the private half of a recovery key opens what is sealed to it, here as in openssl."""

import base64
import hashlib
import os
import stat
import subprocess
import traceback
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from a0backup.errors import PasswordError, RecoveryKeyError
from a0backup.passwords import recovery_keys
from a0backup.passwords.sealed import candidates, random_password
from a0backup.vault.manifest import SealedPassword

PASSPHRASE = "Canary9 Passphrase ü"


def openssl(*arguments: object, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=True).stdout


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with various keys."""
    room = tmp_path_factory.mktemp("keys")
    recovery_keys.make_pair(room / "recovery.key.pem", room / "recovery.pub.pem", PASSPHRASE)
    other = rsa.generate_private_key(65537, 3072)
    public, spki = other.public_key(), PublicFormat.SubjectPublicKeyInfo
    pem, pkcs8 = Encoding.PEM, PrivateFormat.PKCS8
    files = {
        "other.key.pem": other.private_bytes(pem, pkcs8, NoEncryption()),
        "other.pub.pem": public.public_bytes(pem, spki),
        "pkcs1.pub.pem": public.public_bytes(pem, PublicFormat.PKCS1),
        "traditional.key.pem": other.private_bytes(
            pem, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(PASSPHRASE.encode())
        ),
        "small.pub.pem": rsa.generate_private_key(65537, 2048).public_key().public_bytes(pem, spki),
        "curve.pub.pem": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(pem, spki),
        "curve.key.pem": ec.generate_private_key(ec.SECP256R1()).private_bytes(pem, pkcs8, NoEncryption()),
        "der.pub": public.public_bytes(Encoding.DER, spki),
        "empty": b"",
        "large": b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 100_000,
    }
    files["two.pub.pem"] = files["other.pub.pem"] + (room / "recovery.pub.pem").read_bytes()
    files["both.pem"] = files["other.pub.pem"] + files["other.key.pem"]
    files["cut.pub.pem"] = files["other.pub.pem"][:300]
    files["noise.pub.pem"] = (
        b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(b"x" * 90) + b"\n-----END PUBLIC KEY-----\n"
    )
    files["cut.key.pem"] = files["other.key.pem"].replace(b"\n", b"", 4)[200:]
    for name, content in files.items():
        (room / name).write_bytes(content)
    openssl("genpkey", "-quiet", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:3072", "-out", room / "pss.key")
    openssl("pkey", "-in", room / "pss.key", "-pubout", "-out", room / "pss.pub.pem")
    return room


@pytest.fixture(scope="session")
def public(room: Path) -> recovery_keys.RecoveryKey:
    return recovery_keys.load_public(room / "recovery.pub.pem")


@pytest.fixture(scope="session")
def private(room: Path) -> recovery_keys.PrivateKey:
    return recovery_keys.load_private(room / "recovery.key.pem", PASSPHRASE)


# -- sealing -----------------------------------------------------------------------------------------------------------


def test_the_private_half_opens_what_the_public_half_sealed(public, private) -> None:
    sealed = public.seal("Passw0rd")
    assert sealed.recovery_key == public.fingerprint == private.fingerprint
    assert "Passw0rd" not in sealed.box
    assert public.seal("Passw0rd").box != sealed.box
    assert private.unseal(sealed.box) == "Passw0rd"


def test_openssl_opens_a_sealed_password(room: Path, public, tmp_path: Path) -> None:
    password = random_password()
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    options = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]
    opened = openssl(
        *("pkeyutl", "-decrypt", "-inkey", room / "recovery.key.pem", "-passin", f"file:{tmp_path / 'passphrase'}"),
        *(part for option in options for part in ("-pkeyopt", option)),
        stdin=base64.b64decode(public.seal(password).box),
    )
    assert opened.decode() == password


def test_the_fingerprint_matches_that_of_openssl_and_sha256sum(room: Path, public) -> None:
    der = openssl("pkey", "-pubin", "-in", room / "recovery.pub.pem", "-outform", "DER")
    assert public.fingerprint == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("box", ["", "!", "QUJD", base64.b64encode(b"x" * 512).decode(), "ü"])
def test_a_box_that_does_not_open_is_an_error(private, box: str) -> None:
    with pytest.raises(RecoveryKeyError, match="does not open"):
        private.unseal(box)


# -- the public half ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recovery.pub.pem", "other.pub.pem", "pkcs1.pub.pem"])
def test_a_public_key_is_read(room: Path, name: str) -> None:
    assert len(recovery_keys.load_public(room / name).fingerprint) == 64


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.pem", "no such file"),
        (".", "not a regular file"),
        ("empty", "not a key in PEM form"),
        ("der.pub", "not a key in PEM form"),
        ("cut.pub.pem", "not a key in PEM form"),
        ("two.pub.pem", "not one key"),
        ("noise.pub.pem", "cannot be read as a public key"),
        ("large", "larger than 64 KiB"),
        ("recovery.key.pem", "PRIVATE key"),
        ("traditional.key.pem", "PRIVATE key"),
        ("both.pem", "PRIVATE key"),
        ("curve.pub.pem", "not an RSA key"),
        ("pss.pub.pem", "not an RSA key for encryption"),
        ("small.pub.pem", "2048 bits, and 3072"),
    ],
)
def test_an_unusable_public_key_is_refused_with_a_remedy(room: Path, name: str, reason: str) -> None:
    with pytest.raises(RecoveryKeyError, match=reason) as caught:
        recovery_keys.load_public(room / name)
    assert caught.value.where == str(room / name)
    assert caught.value.hint()


def test_a_private_key_on_this_machine_is_refused_with_the_hint_to_remove_it(room: Path) -> None:
    with pytest.raises(RecoveryKeyError) as caught:
        recovery_keys.load_public(room / "recovery.key.pem")
    assert "TAKE IT OFF THIS MACHINE" in caught.value.hint()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.touch(0o000)
    with pytest.raises(RecoveryKeyError, match="Permission denied"):
        recovery_keys.load_public(path)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecoveryKeyError, match="not a regular file"):
        recovery_keys.load_public(tmp_path / "pipe")


def test_the_same_key_given_twice_counts_once(room: Path) -> None:
    names = ["other.pub.pem", "recovery.pub.pem", "pkcs1.pub.pem"]
    keys = recovery_keys.load_all(room / name for name in names)
    assert [key.fingerprint for key in keys] == [
        recovery_keys.load_public(room / name).fingerprint for name in names[:2]
    ]


def test_one_bad_key_among_good_ones_is_an_error(room: Path) -> None:
    with pytest.raises(RecoveryKeyError):
        recovery_keys.load_all([room / "other.pub.pem", room / "small.pub.pem"])


# -- the private half --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "passphrase"),
    [
        ("recovery.key.pem", PASSPHRASE),
        ("traditional.key.pem", PASSPHRASE),
        ("other.key.pem", None),
        ("other.key.pem", "not needed"),
    ],
)
def test_a_private_key_is_read(room: Path, name: str, passphrase: str | None) -> None:
    assert recovery_keys.wants_passphrase(room / name) == (name != "other.key.pem")
    key = recovery_keys.load_private(room / name, passphrase)
    assert (
        key.fingerprint
        == recovery_keys.load_public(
            room / f"{name.partition('.')[0]}.pub.pem".replace("traditional", "other")
        ).fingerprint
    )


@pytest.mark.parametrize(
    ("name", "passphrase", "reason"),
    [
        ("recovery.key.pem", None, "no passphrase was given"),
        ("recovery.key.pem", "", "no passphrase was given"),
        ("recovery.key.pem", "wrong", "passphrase does not open it"),
        ("traditional.key.pem", "wrong", "passphrase does not open it"),
        ("recovery.pub.pem", None, "a public key"),
        ("empty", None, "not a private key"),
        ("missing.pem", None, "no such file"),
        (".", None, "not a regular file"),
        ("curve.key.pem", None, "not an RSA key"),
    ],
)
def test_an_unusable_private_key_is_refused_with_a_remedy(
    room: Path, name: str, passphrase: str | None, reason: str
) -> None:
    with pytest.raises(RecoveryKeyError, match=reason) as caught:
        recovery_keys.load_private(room / name, passphrase)
    assert caught.value.hint()
    assert "wrong" not in "".join(traceback.format_exception(caught.value)).replace("a wrong", "")


def test_a_truncated_private_key_is_refused(room: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes((room / "other.key.pem").read_bytes()[:1000])
    with pytest.raises(RecoveryKeyError, match="cannot be read as a private key"):
        recovery_keys.load_private(tmp_path / "cut", None)


def test_no_repr_shows_a_secret(private) -> None:
    assert "RSAPrivateKey" not in repr(private)


# -- candidates --------------------------------------------------------------------------------------------------------


def test_each_password_that_the_key_opens_is_a_candidate_once_and_in_order(room: Path, public, private) -> None:
    other = recovery_keys.load_public(room / "other.pub.pem")
    sealed = [key.seal(password) for password in ("second", "first", "second") for key in (other, public)]
    assert candidates(sealed, private) == ["second", "first"]


def test_a_damaged_box_does_not_hide_the_others(public, private) -> None:
    sealed = [SealedPassword(recovery_key=public.fingerprint, box="QUJD"), public.seal("good")]
    assert candidates(sealed, private) == ["good"]
    with pytest.raises(RecoveryKeyError, match="does not open the sealed password"):
        candidates(sealed[:1], private)


def test_a_different_key_that_is_needed_is_named(room: Path, private) -> None:
    other = recovery_keys.load_public(room / "other.pub.pem")
    with pytest.raises(RecoveryKeyError, match=other.fingerprint):
        candidates([other.seal("x")], private)


def test_a_hostile_fingerprint_is_escaped(private) -> None:
    sealed = [SealedPassword.model_construct(recovery_key=f"\x1b[2J{number}", box="") for number in range(1000)]
    with pytest.raises(RecoveryKeyError) as caught:
        candidates(sealed, private)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 8000


# -- a new pair --------------------------------------------------------------------------------------------------------


def test_a_pair_has_4096_bits_and_openssl_opens_its_private_half(room: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    shown = openssl(
        *("pkey", "-in", room / "recovery.key.pem", "-passin", f"file:{tmp_path / 'passphrase'}", "-noout", "-text")
    )
    assert b"4096 bit" in shown
    made = openssl(*("pkey", "-in", room / "recovery.key.pem", "-passin", f"file:{tmp_path / 'passphrase'}", "-pubout"))
    assert made == (room / "recovery.pub.pem").read_bytes()


def test_the_passphrase_is_stretched_600_000_times(room: Path) -> None:
    parsed = openssl("asn1parse", "-in", room / "recovery.key.pem").decode()
    for word in ("PBES2", "PBKDF2", f":0{600_000:X}", "hmacWithSHA256", "aes-256-cbc"):
        assert word in parsed


def test_only_the_owner_can_read_a_new_pair_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        recovery_keys.make_pair(tmp_path / "key", tmp_path / "pub", PASSPHRASE)
    finally:
        os.umask(former)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("key", "pub")] == [0o600, 0o600]


def test_a_short_passphrase_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecoveryKeyError, match="11 characters, 12"):
        recovery_keys.make_pair(tmp_path / "key", tmp_path / "pub", "elevenchars")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["key", "pub"])
def test_a_pair_overwrites_nothing_and_leaves_no_half(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError):
        recovery_keys.make_pair(tmp_path / "key", tmp_path / "pub", PASSPHRASE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


# -- the passphrase ----------------------------------------------------------------------------------------------------


def test_the_passphrase_is_the_first_line_of_its_file_as_with_openssl(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\nand a note\n")
    (tmp_path / "passphrase").chmod(0o600)
    assert recovery_keys.read_passphrase(tmp_path / "passphrase") == PASSPHRASE


@pytest.mark.parametrize(
    ("content", "mode", "reason"), [(b"", 0o600, "empty"), (b"\nx", 0o600, "empty"), (b"secret", 0o640, "0640")]
)
def test_a_passphrase_file_that_is_empty_or_open_to_others_is_refused(
    tmp_path: Path, content: bytes, mode: int, reason: str
) -> None:
    (tmp_path / "passphrase").write_bytes(content)
    (tmp_path / "passphrase").chmod(mode)
    with pytest.raises(PasswordError, match=reason) as caught:
        recovery_keys.read_passphrase(tmp_path / "passphrase")
    assert "secret" not in str(caught.value)
