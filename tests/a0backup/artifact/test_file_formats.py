"""What is told of an artifact that is something else."""

import bz2
import gzip
import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from a0backup.errors import (
    UnexpectedFormatError,
)
from tests.support.artifacts import (
    OPENSSL,
    TAR,
    Look,
    inspected,
    refused,
)

FORMATS = {
    "a gzip": gzip.compress(TAR),
    "a tar": TAR,
    "a zip": b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(100),
    "a zstd": b"\x28\xb5\x2f\xfd\x24\x05" + bytes(100),
    "an xz": lzma.compress(TAR),
    "a bzip2": bz2.compress(TAR),
    "an archive of mongodump": struct.pack("<I", 0x8199E26D) + bytes(100),
}


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return Look(tmp_path)


@pytest.mark.parametrize("what", FORMATS)
def test_a_file_that_is_not_encrypted_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(FORMATS[what])
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, f"itself is {what}")


def test_openssls_salted_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(TAR)
    subprocess.run(
        [*OPENSSL, "-in", tmp_path / "tar", "-out", tmp_path / "artifact"],
        check=True,
    )
    refused(inspected(tmp_path / "artifact"), UnexpectedFormatError, "salt")


@pytest.mark.parametrize("what", [what for what in FORMATS if what != "a gzip"])
def test_what_the_password_makes_of_it_is_named(what: str, look: Look) -> None:
    refused(look(FORMATS[what]), UnexpectedFormatError, f"makes {what} of it")


@pytest.mark.parametrize("what", [what for what in FORMATS if what != "a tar"])
def test_what_the_gzip_holds_instead_of_a_tar_is_named(what: str, look: Look) -> None:
    refused(look(gzip.compress(FORMATS[what])), UnexpectedFormatError, f"unpacks to {what}")
