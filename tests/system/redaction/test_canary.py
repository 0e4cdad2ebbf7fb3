"""The search itself finds what it must find."""

import base64
import gzip
import json
import os
import pickle
import shlex
import sqlite3
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest

from tests.system.redaction.canary import search

PLAIN = "Canary7Password"
# Each of its characters except the letters is changed by one encoding or another.
NASTY = "Canary 7'\"\\/%+&<é→𝄞>ß"

FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "in other letters": lambda secret: secret.swapcase().encode() if secret == PLAIN else secret.lower().encode(),
    "broken over lines": lambda secret: f"{secret[:7]}\r\n    {secret[7:]}".encode(),
    "coloured": lambda secret: f"{secret[:7]}\x1b[1;31m{secret[7:]}\x1b[0m".encode(),
    "JSON": lambda secret: json.dumps({"password": secret}).encode(),
    "JSON with other letters as they are": lambda secret: json.dumps([secret], ensure_ascii=False).encode(),
    "JSON in JSON": lambda secret: json.dumps({"said": json.dumps([secret])}).encode(),
    "JSON from JavaScript": lambda secret: json.dumps([secret]).replace("/", "\\/").encode(),
    "repr": lambda secret: repr([secret]).encode(),
    "repr between quotes": lambda secret: repr(f'it\'s "{secret}"').encode(),
    "ascii": lambda secret: ascii(secret).encode(),
    "repr of bytes": lambda secret: repr(secret.encode()).encode(),
    "unicode escapes": lambda secret: secret.encode("unicode_escape"),
    "shell words": lambda secret: shlex.join(["a0cli", "backup", secret]).encode(),
    "URL": lambda secret: urllib.parse.quote(secret, safe="").encode(),
    "URL with slashes": lambda secret: urllib.parse.quote(secret).encode(),
    "URL with small digits": lambda secret: urllib.parse.quote(secret, safe="").lower().encode(),
    "form": lambda secret: urllib.parse.urlencode({"password": secret}).encode(),
    "hex": lambda secret: secret.encode().hex().encode(),
    "large hex": lambda secret: secret.encode().hex().upper().encode(),
    "UTF-16": lambda secret: secret.encode("utf-16"),
    "UTF-16, the other end first": lambda secret: secret.encode("utf-16-be"),
    "pickle": lambda secret: pickle.dumps({"password": secret}),
    "pickle in base64": lambda secret: base64.b64encode(pickle.dumps(ValueError(secret))),
    "cloudpickle": lambda secret: cloudpickle.dumps(lambda: secret),
    "cloudpickle in base64 in JSON": lambda secret: json.dumps(
        {"result": base64.b64encode(cloudpickle.dumps(ValueError(secret))).decode()}
    ).encode(),
    "JSON in base64": lambda secret: base64.b64encode(json.dumps({"password": secret}).encode()),
    "base64 on lines": lambda secret: base64.encodebytes(b"some more of it " * 8 + secret.encode() + bytes(99)),
    "gzip": lambda secret: gzip.compress(secret.encode()),
    "gzip behind something else": lambda secret: b"header" + gzip.compress(secret.encode()),
    "gzip, cut": lambda secret: gzip.compress(secret.encode() + os.urandom(4000))[:-2000],
    "zlib": lambda secret: zlib.compress(secret.encode()),
    "zlib in base64": lambda secret: b'"' + base64.b64encode(zlib.compress(json.dumps(secret).encode())) + b'"',
    "gzip in base64": lambda secret: base64.b64encode(gzip.compress(pickle.dumps(secret))),
    "gzip in gzip": lambda secret: gzip.compress(gzip.compress(secret.encode())),
    **{
        f"{name}, byte {offset} of three": lambda secret, offset=offset, encode=encode: encode(
            bytes(offset) + secret.encode() + b"after it"
        ).rstrip(b"=")
        for name, encode in {"base64": base64.b64encode, "URL-safe base64": base64.urlsafe_b64encode}.items()
        for offset in range(3)
    },
}


@pytest.mark.parametrize("secret", [PLAIN, NASTY], ids=["plain", "nasty"])
@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_in_every_form(form: str, secret: str) -> None:
    planted = FORMS[form](secret)
    assert search([secret], [bytes(range(256)) + planted + b"\x80\x00 after"])


def test_another_secret_is_not_found() -> None:
    planted = b"".join(encode("Canary8Password") for encode in FORMS.values())
    assert search([PLAIN, NASTY], [planted]) == []


def test_a_secret_is_found_anywhere_in_a_directory_and_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep" / "below").mkdir(parents=True)
    (tmp_path / "deep" / "below" / "log").write_text(f"password={PLAIN}\n")
    (tmp_path / "deep" / PLAIN).touch()
    (tmp_path / "deep" / "link").symlink_to(f"/nowhere/{PLAIN}")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("log", PLAIN)
    places = {hit.place.replace(tmp_path.name, "") for hit in search([PLAIN], [tmp_path])}
    assert places == {
        "/deep/below/log",
        f"the name {PLAIN}",
        "the target of /deep/link",
        "/packed.zip, unpacked",
    }
    assert [hit.form for hit in search([NASTY, PLAIN], [tmp_path / "deep" / "below" / "log"])] == ["plain of secret 2"]


def test_each_value_of_a_database_is_searched_even_if_its_writer_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "engine.db"
    database = sqlite3.connect(path)
    database.execute("pragma journal_mode = wal")
    database.execute("create table log (id integer, message text)")
    database.execute('create table "a result" (content blob)')
    # Longer than a page of the file, so it is stored in pieces. The other value is packed.
    database.execute("insert into log values (1, ?)", ["x" * 4050 + NASTY * 300])
    database.execute('insert into "a result" values (?)', [zlib.compress(pickle.dumps(PLAIN))])
    database.commit()
    left = tmp_path / "left"
    left.mkdir()
    for suffix in ("", "-wal"):
        (left / f"{path.name}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    assert "left/engine.db, table log" in {hit.place for hit in search([NASTY], [left])}
    assert "left/engine.db, table a result, unpacked" in {hit.place for hit in search([PLAIN], [left])}
    assert {file.name: file.read_bytes() for file in left.iterdir()} == before
    database.close()


def test_a_deleted_value_of_a_database_is_found_in_its_file(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "engine.db")
    database.execute("pragma secure_delete = off")
    database.execute("create table log (message text)")
    database.execute("insert into log values (?)", [PLAIN])
    database.commit()
    database.execute("delete from log")
    database.commit()
    database.close()
    assert [hit.place for hit in search([PLAIN], [tmp_path / "engine.db"])] == ["engine.db"]


def test_a_secret_that_could_occur_by_chance_is_refused() -> None:
    with pytest.raises(AssertionError, match="by chance"):
        search(["short"], [b""])
