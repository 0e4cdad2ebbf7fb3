"""An artifact in an unexpected format is refused, and the format is named."""

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


@pytest.mark.parametrize("what", FORMATS)
def test_the_format_of_an_unencrypted_file_is_named(what: str, tmp_path: Path) -> None:
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
def test_the_format_of_the_decrypted_file_is_named(what: str, look: Look) -> None:
    refused(look(FORMATS[what]), UnexpectedFormatError, f"makes {what} of it")


@pytest.mark.parametrize("what", [what for what in FORMATS if what != "a tar"])
def test_the_format_inside_the_gzip_is_named_unless_it_is_a_tar(what: str, look: Look) -> None:
    refused(look(gzip.compress(FORMATS[what])), UnexpectedFormatError, f"unpacks to {what}")
