"""Recognise other file formats by their first bytes."""

import contextlib
import re
import tarfile

_FORMATS = (
    (re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), "a gzip"),
    (re.compile(rb"Salted__"), "a file that openssl encrypted with a salt"),
    (re.compile(rb"PK(?:\x03\x04|\x05\x06)"), "a zip"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "a zstd"),
    (re.compile(rb"\xfd7zXZ\x00"), "an xz"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), "a bzip2"),
    (re.compile(rb"\x6d\xe2\x99\x81"), "an archive of mongodump"),
)


def looks_like(plain: bytes) -> str:
    """Return the name of the known format that *plain* begins like, or an empty text."""
    for begins, name in _FORMATS:
        if begins.match(plain):
            return name
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(plain[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        return "a tar"
    return ""
