"""Look for a secret in everything that was written, in every form in which it may have got there.

for found in search(["Canary7Password"], [tmp_path / "place", terminal_output]):
    print(found)  # place/engine/prefect.db, table log: the secret in base64 ... its surroundings

White space, colours and letter case are ignored: a terminal breaks lines, and text is often case-folded before it is
compared. So a secret must be long enough not to occur by chance.
"""

import base64
import contextlib
import html
import io
import json
import re
import shlex
import shutil
import sqlite3
import stat
import tempfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 12  # characters
_DEEPEST = 4  # levels of packing within packing
_PIECE, _MAX_PIECES = 1 << 10, 1 << 16  # of a packed stream

_SPACE = b" \t\r\n\v\f"
_COLOUR = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_DATABASE = b"SQLite format 3\0"
_PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
_ZIP = b"PK\x03\x04"
# Where the base64 of a gzip or zlib stream begins, if the stream was encoded on its own.
_WRAPPED = re.compile(rb"(?<![A-Za-z0-9+/_-])(?:H4sI|e[AFJN])[A-Za-z0-9+/_\n-]{12,}={0,2}")


@dataclass(frozen=True)
class Hit:
    """A secret that was found: where, in which form, and its surroundings."""

    place: str
    form: str
    context: bytes

    def __str__(self) -> str:
        return f"{self.place}: in {self.form}: ...{self.context!r}..."


def search(secrets: Sequence[str], places: Sequence[Path | bytes]) -> list[Hit]:
    """Return each occurrence of one of *secrets* in *places*: directories with everything in them, files, and bytes.

    The search covers names, contents, packed contents, and each value in the tables of a database. A database that is
    in use, or was left by a crash, is not touched: a copy of it is read. Links are not followed.
    """
    needles: dict[str, bytes] = {}
    for number, secret in enumerate(secrets, 1):
        of_which = f" of secret {number}" if len(secrets) > 1 else ""
        needles |= {f"{form}{of_which}": needle for form, needle in forms(secret).items()}
    return [
        Hit(name, form, context)
        for place in places
        for name, octets in _texts(place)
        for form, context in _found(needles, octets)
    ]


def forms(secret: str) -> dict[str, bytes]:
    """Return what to look for, by the name of the form, without white space and in lower case."""
    assert len(secret) >= SHORTEST, "a short secret comes about by chance"
    octets = secret.encode("utf-8", "surrogatepass")
    once = json.dumps(secret)[1:-1]
    plainly = json.dumps(secret, ensure_ascii=False)[1:-1]
    written = {
        "plain": secret,
        "JSON": once,
        "JSON with other letters as they are": plainly,
        "JSON in JSON": json.dumps(once)[1:-1],
        "JSON in JSON with other letters as they are": json.dumps(plainly, ensure_ascii=False)[1:-1],
        "JSON with slashes escaped": once.replace("/", "\\/"),
        "repr": repr(secret)[1:-1],
        "repr in quotes of its own": repr(f"'\"{secret}")[4:-1],
        "ascii()": ascii(secret)[1:-1],
        "repr of its bytes": repr(octets)[2:-1],
        "unicode escapes": secret.encode("unicode_escape").decode(),
        "HTML": html.escape(secret),
        "shell words": shlex.quote(secret),
        "URL": urllib.parse.quote(octets, safe=""),
        "URL with slashes": urllib.parse.quote(octets),
        "form": urllib.parse.quote_plus(octets),
    }
    looked_for = {name: text.encode("utf-8", "surrogatepass") for name, text in written.items()}
    for name, text in tuple(looked_for.items()):
        looked_for[f"hex of {name}"] = text.hex().encode()
        for offset in range(3):
            looked_for[f"base64 of {name}, byte {offset} of three"] = inner = _base64_at(text, offset)
            looked_for[f"URL-safe base64 of {name}, byte {offset} of three"] = inner.translate(_URL_SAFE)
    looked_for |= {encoding: secret.encode(encoding, "surrogatepass") for encoding in ("utf-16-le", "utf-16-be")}
    unique: dict[bytes, str] = {}
    for name, needle in looked_for.items():
        unique.setdefault(_squeezed(needle), name)
    return {name: needle for needle, name in unique.items()}


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def _base64_at(octets: bytes, offset: int) -> bytes:
    """Return the base64 digits that depend on *octets* alone, with *offset* bytes of a group of 3 before them."""
    whole = base64.b64encode(bytes(offset) + octets)
    return whole[(0, 2, 3)[offset] : (offset + len(octets)) * 8 // 6]


def _squeezed(octets: bytes) -> bytes:
    return octets.translate(None, _SPACE).lower()


def _found(needles: Mapping[str, bytes], octets: bytes) -> Iterator[tuple[str, bytes]]:
    views = [_squeezed(octets)]
    if b"\x1b" in octets:
        views.append(_squeezed(_COLOUR.sub(b"", octets)))
    for form, needle in needles.items():
        for view in views:
            at = view.find(needle)
            if at >= 0:
                yield form, view[max(0, at - 60) : at + len(needle) + 30]
                break


def _texts(place: Path | bytes) -> Iterator[tuple[str, bytes]]:
    """Yield everything to search in *place*, each with its name."""
    if isinstance(place, bytes):
        yield from _unpacked("bytes", place)
    elif place.is_dir() and not place.is_symlink():
        for path in sorted(place.rglob("*")):
            yield f"the name {path.name}", bytes(path.relative_to(place))
            yield from _texts_of_file(path, str(path.relative_to(place.parent)))
    else:
        yield from _texts_of_file(place, place.name)


def _texts_of_file(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_symlink():
            yield f"the target of {name}", bytes(path.readlink())
            return
        if not stat.S_ISREG(path.stat().st_mode):
            return
        octets = path.read_bytes()
    except FileNotFoundError:
        return  # a running process has removed it meanwhile
    yield from _unpacked(name, octets)
    if octets.startswith(_DATABASE):
        yield from _values(path, name)


def _values(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield all values of each table: in the file itself, a long value is stored in pieces."""
    tables: dict[str, bytes] = {}
    for last in (False, False, False, False, True):
        try:
            tables = _tables(path)
            break
        except sqlite3.DatabaseError:
            # A server was writing during the copy.
            if last:
                raise
    for table, values in tables.items():
        yield from _unpacked(f"{name}, table {table}", values)


def _tables(path: Path) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="a0backup-canary-") as room:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{room}/copy{suffix}")
        with contextlib.closing(sqlite3.connect(f"{room}/copy")) as database:
            names = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
            database.text_factory = bytes
            return {name: _joined(database.execute(f'select * from "{name}"')) for name in names}


def _joined(rows: Iterable[tuple[object, ...]]) -> bytes:
    return b"\0\0".join(value for row in rows for value in row if isinstance(value, bytes))


def _unpacked(name: str, octets: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield *octets*, and what they hold packed by gzip, zlib or zip, also inside base64."""
    yield name, octets
    if depth == _DEEPEST:
        return
    whole = memoryview(octets)
    packed = [_inflated(whole[begin.start() :]) for begin in _PACKED.finditer(octets)]
    if _ZIP in octets:
        packed.append(_of_zip(octets))
    for inner in filter(None, packed):
        yield from _unpacked(f"{name}, unpacked", inner, depth + 1)
    for wrapped in _WRAPPED.finditer(octets):
        text = wrapped[0].translate(bytes.maketrans(b"-_", b"+/"), b"\n=")
        text = text[: len(text) - (len(text) % 4 == 1)]  # a surplus digit belongs to what follows
        yield from _unpacked_only(f"{name}, from base64", base64.b64decode(text + b"=" * (-len(text) % 4)), depth + 1)


def _unpacked_only(name: str, octets: bytes, depth: int) -> Iterator[tuple[str, bytes]]:
    texts = _unpacked(name, octets, depth)
    next(texts)  # its base64 forms have already been searched for
    yield from texts


def _inflated(octets: memoryview) -> bytes:
    """Return what the gzip or zlib stream at the beginning holds, as far as it goes; nothing if there is none."""
    stream, pieces, begin = zlib.decompressobj(wbits=47), list[bytes](), 0
    with contextlib.suppress(zlib.error):
        while begin < len(octets) and not stream.eof and len(pieces) < _MAX_PIECES:
            pieces.append(stream.decompress(octets[begin : begin + _PIECE]))
            begin += _PIECE
    return b"".join(pieces)


def _of_zip(octets: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(octets)) as packed:
            return b"\0\0".join(packed.read(name) for name in packed.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, zlib.error):
        return b""
