"""fleet.yaml is loaded as a whole, or refused with line, key and remedy for each error in it."""

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from a0backup.errors import BuildTooOldError, FleetFileError
from a0backup.fleet.example import EXAMPLE
from a0backup.fleet.fields import seconds, size
from a0backup.fleet.kinds import EXPORT_FIELDS, Kind
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import A0cliSettings, ContentsLimits, Fleet, Node, PasswordSource, Polling, schema
from tests.support.patience import patience

LEAST = """\
vault: ./vault
password: {env: A0_BACKUP_PASSWORD}
nodes:
  - {name: a0-1, host: 192.168.1.186}
"""
HEAD = "vault: ./vault\npassword: {env: P}\n"
NODE = HEAD + "nodes:\n  - "
SEALED = "vault: v\nnodes: [{name: a, host: b}]\npassword: {sealed_to: "

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "fleet.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(FleetFileError) as raised:
        load_fleet(path)
    assert raised.value.path == str(path)
    return raised.value.problems


def test_the_smallest_fleet_file_has_the_documented_defaults(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    path = write(LEAST)
    fleet = load_fleet(path)
    assert fleet.path == path
    assert fleet.vault == path.parent / "vault"
    assert fleet.a0cli == A0cliSettings(
        path="a0cli",
        key_dir=Path("/home/op/.a0cli"),
        call_timeout=60,
        retrieve_timeout=6 * 3600,
        password_style="positional",
        replies={},
    )
    assert fleet.password == PasswordSource(env="A0_BACKUP_PASSWORD")
    assert fleet.polling == Polling(interval=15, max_interval=120, deadline=4 * 3600)
    assert (fleet.lock_deadline, fleet.max_parallel, fleet.retrieve_attempts) == (7200, 16, 3)
    assert (fleet.existing, fleet.kinds) == ("preserve", ("backup",))
    assert fleet.contents == ContentsLimits(max_unpacked=10 * 10**12, max_ratio=200)
    assert fleet.nodes == (Node(name="a0-1", host="192.168.1.186", port=10121, build=None),)


def test_a_fleet_file_with_every_key_is_read(write: Write, tmp_path: Path) -> None:
    fleet = load_fleet(
        write("""\
vault: /srv/vault
a0cli:
  path: ./bin/a0cli
  key_dir: keys
  call_timeout: 0.5s
  retrieve_timeout: 1h30m
  password_style: option
  replies: {absent: ["Nothing stored", 'Nix da'], in_progress: [Working on it]}
password: {file: secret/password}
polling: {interval: 1s, max_interval: 1m30s, deadline: 1d}
lock_deadline: 0s
max_parallel: 1
retrieve_attempts: 20
existing: fail
contents: {max_unpacked: 1.5TB, max_ratio: 12.5}
kinds:
  - backup
  - backup-sensitive
  - user-export:
    - _id
    - __tenant
nodes:
  - {name: no, host: A0.example.com, port: 1, build: 13451}
  - {name: "2024", host: "fe80::1%eth0"}
  - {name: resolvers, host: a0-1_b.corp.}
""")
    )
    assert fleet.vault == Path("/srv/vault")
    assert fleet.a0cli == A0cliSettings(
        path=str(tmp_path / "bin/a0cli"),
        key_dir=tmp_path / "keys",
        call_timeout=0.5,
        retrieve_timeout=5400,
        password_style="option",
        replies={"absent": ["Nothing stored", "Nix da"], "in_progress": ["Working on it"]},
    )
    assert fleet.password == PasswordSource(file=tmp_path / "secret/password")
    assert fleet.polling == Polling(interval=1, max_interval=90, deadline=86400)
    assert (fleet.contents.max_unpacked, fleet.contents.max_ratio) == (1_500_000_000_000, 12.5)
    assert fleet.kinds == ("backup", "backup-sensitive", "user-export")
    assert [node.name for node in fleet.nodes] == ["no", "2024", "resolvers"]


# Each row: the file, the line, the key and part of the remedy.
WRONG: list[tuple[str, int, str, str]] = [
    # missing, unknown and duplicate keys
    ("password: {env: P}\nnodes: [{name: a, host: b}]\n", 1, "vault", "is missing: the folder that keeps"),
    ("# hello\n\nvault: v\nnodes: [{name: a, host: b}]\n", 3, "password", "is missing"),
    (HEAD, 1, "nodes", "is missing"),
    (NODE + "name: a0-1\n", 4, "nodes[0].host", "is missing"),
    (LEAST + "exsting: fail\n", 5, "exsting", "did you mean existing?"),
    (LEAST + "schedule: {}\n", 5, "schedule", "write one of vault, a0cli, password"),
    (LEAST + "retention: {}\n", 5, "retention", "write at least one rule"),
    (LEAST + "retention: {keep_dayly: 7}\n", 5, "retention.keep_dayly", "did you mean keep_daily?"),
    (LEAST + "retention: {keep_last: 1, keep_min: 0}\n", 5, "retention.keep_min", "from 1 to 100000"),
    (
        LEAST + "copies: [{name: nas, url: nas, retention: {keep_last: 1, keep_min: 0}}]\n",
        5,
        "copies[0].retention.keep_min",
        "from 1 to 100000",
    ),
    (LEAST + "retention: {keep_within: 7}\n", 5, "retention.keep_within", "write 7d"),
    (LEAST + "contents: {max_unpack: 1TB}\n", 5, "contents.max_unpack", "max_"),
    (LEAST + "vault: other\n", 5, "vault", "written twice, first on line 1"),
    (LEAST + "a0cli:\n  path: a\n  Path: b\n", 7, "a0cli.Path", "did you mean path?"),
    (LEAST + "polling: {dedline: 1h}\n", 5, "polling.dedline", "did you mean deadline?"),
    (NODE + "name: a\n    host: b\n    adress: c\n", 6, "nodes[0].adress", "unknown key"),
    (LEAST + "a0cli:\n  replies:\n    absnt: [x]\n", 7, "a0cli.replies.absnt", "did you mean absent?"),
    (LEAST + "<<: {existing: fail}\n", 5, "(odd key)", "unknown key"),
    (LEAST + "? [a, b]\n: c\n", 5, "", "key that is not plain text"),
    # values of the wrong type
    (LEAST + "polling: 5m\n", 5, "polling", "`key: value` lines below it"),
    (LEAST + "a0cli:\n", 5, "a0cli", "`key: value` lines below it"),
    (LEAST + "kinds: backup\n", 5, "kinds", "write a list"),
    (LEAST + "a0cli: {replies: {absent: Nothing}}\n", 5, "a0cli.replies.absent", "write a list"),
    (LEAST + "a0cli: {replies: [x]}\n", 5, "a0cli.replies", "`key: value` lines below it"),
    (HEAD + "nodes: {name: a, host: b}\n", 3, "nodes", "write a list"),
    (HEAD + "nodes:\n  - a0-1\n", 4, "nodes[0]", "`key: value` lines below it"),
    (HEAD + "nodes: []\n", 3, "nodes", "is empty"),
    (LEAST + "kinds: []\n", 5, "kinds", "is empty"),
    ("vault: 7\npassword: {env: P}\nnodes: [{name: a, host: b}]\n", 1, "vault", "in quotes"),
    ("vault: ''\npassword: {env: P}\nnodes: [{name: a, host: b}]\n", 1, "vault", "is empty"),
    ('vault: "a\\0b"\npassword: {env: P}\nnodes: [{name: a, host: b}]\n', 1, "vault", "control"),
    ("vault: ~nobody-of-that-name/v\npassword: {env: P}\nnodes: [{name: a, host: b}]\n", 1, "vault", "path in full"),
    # numbers
    (LEAST + "max_parallel: 0\n", 5, "max_parallel is 0", "from 1 to 256"),
    (LEAST + "max_parallel: 257\n", 5, "max_parallel is 257", "from 1 to 256"),
    (LEAST + "max_parallel: '8'\n", 5, "max_parallel is '8'", "without quotes"),
    (LEAST + "max_parallel: 1.5\n", 5, "max_parallel", "whole number"),
    (LEAST + "max_parallel: yes\n", 5, "max_parallel", "whole number"),
    (LEAST + "retrieve_attempts: 21\n", 5, "retrieve_attempts", "from 1 to 20"),
    (NODE + "{name: a, host: b, port: 0}\n", 4, "nodes[0].port", "from 1 to 65535"),
    (NODE + "{name: a, host: b, port: 65536}\n", 4, "nodes[0].port", "from 1 to 65535"),
    (NODE + "{name: a, host: b, port: 010}\n", 4, "nodes[0].port", "whole number"),
    (NODE + "{name: a, host: b, port: " + "9" * 5000 + "}\n", 4, "nodes[0].port", "whole number"),
    (NODE + "{name: a, host: b, build: -1}\n", 4, "nodes[0].build", "from 1 to"),
    # choices
    (LEAST + "existing: keep\n", 5, "existing is 'keep'", "preserve, replace or fail"),
    (
        LEAST + "kinds: [backup, export]\n",
        5,
        "kinds[1] is 'export'",
        "write backup, backup-sensitive or `user-export: [",
    ),
    (LEAST + "kinds:\n - backup\n - backup\n", 5, "kinds", "each kind once"),
    (LEAST + "kinds: [user-export]\n", 5, "kinds[0] is 'user-export'", "name the fields to export: `user-export: ["),
    (LEAST + "kinds: [7]\n", 5, "kinds[0] is 7", "write backup, backup-sensitive or"),
    (LEAST + "kinds: [[backup]]\n", 5, "kinds[0]", "write backup, backup-sensitive or"),
    (LEAST + "kinds: [{export: [_id]}]\n", 5, "kinds[0]", "write backup, backup-sensitive or"),
    (LEAST + "kinds: [{backup: [_id]}]\n", 5, "kinds[0]", "only user-export takes fields"),
    (LEAST + "kinds: [{user-export: [_id], backup: }]\n", 5, "kinds[0]", "one kind for each entry"),
    (LEAST + "kinds: [{user-export: }]\n", 5, "kinds[0].user-export", "at least one field: [_id, email]"),
    (LEAST + "kinds: [{user-export: []}]\n", 5, "kinds[0].user-export", "at least one field"),
    (LEAST + "kinds: [{user-export: '_id,email'}]\n", 5, "kinds[0].user-export", "write a list"),
    (
        LEAST + "kinds:\n  - user-export:\n    - email\n    - emial\n",
        8,
        "kinds[0].user-export[1]: unknown field 'emial'",
        "did you mean email?",
    ),
    (LEAST + "kinds: [{user-export: [7]}]\n", 5, "kinds[0].user-export[0]: unknown field 7", "write one of _id, "),
    (LEAST + "kinds: [{user-export: [[_id]]}]\n", 5, "kinds[0].user-export[0]: unknown field;", "did you mean _id?"),
    (
        LEAST + "kinds:\n  - user-export:\n    - email\n    - _id\n    - email\n",
        9,
        "kinds[0].user-export[2]",
        "'email' is written twice: write each field once",
    ),
    (LEAST + "kinds: [{user-export: [_id]}, {user-export: [email]}]\n", 5, "kinds", "each kind once"),
    (
        HEAD + "kinds: [backup-sensitive]\nnodes:\n - {name: a, host: b}\n - {name: b, host: c, build: 11637}\n",
        6,
        "nodes[1].build is 11637: node 'b' is left without a kind",
        "backup-sensitive is there from build 11638 on: add backup to kinds",
    ),
    # sizes and ratios
    (LEAST + "contents: 1TB\n", 5, "contents", "`key: value` lines below it"),
    (LEAST + "contents: {max_unpacked: 1000000000}\n", 5, "contents.max_unpacked is 1000000000", "write 500GB, 2TB"),
    (LEAST + "contents: {max_unpacked: 500 GB}\n", 5, "contents.max_unpacked is '500 GB'", "write 500GB, 2TB"),
    (LEAST + "contents: {max_unpacked: 1kB}\n", 5, "contents.max_unpacked", "write 500GB, 2TB"),
    (LEAST + "contents: {max_unpacked: 0.9MB}\n", 5, "contents.max_unpacked", "from 1MB to 1PB"),
    (LEAST + "contents: {max_unpacked: 1PiB}\n", 5, "contents.max_unpacked", "from 1MB to 1PB"),
    (LEAST + "contents: {max_unpacked: " + "9" * 400 + "TB}\n", 5, "contents.max_unpacked", "write 500GB, 2TB"),
    (LEAST + "contents: {max_ratio: 1.9}\n", 5, "contents.max_ratio is '1.9'", "write a number from 2 to 1032"),
    (LEAST + "contents: {max_ratio: 1033}\n", 5, "contents.max_ratio is 1033", "write a number from 2 to 1032"),
    (LEAST + "contents: {max_ratio: nan}\n", 5, "contents.max_ratio is 'nan'", "write a number"),
    (LEAST + "contents: {max_ratio: inf}\n", 5, "contents.max_ratio is 'inf'", "write a number"),
    (LEAST + "contents: {max_ratio: much}\n", 5, "contents.max_ratio is 'much'", "write a number"),
    (LEAST + "contents: {max_ratio: [3]}\n", 5, "contents.max_ratio", "write a number"),
    (LEAST + "a0cli: {password_style: stdin}\n", 5, "a0cli.password_style", "positional or option"),
    # durations
    (LEAST + "lock_deadline: 60\n", 5, "lock_deadline is 60", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: '60'\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: 1:30\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: 5 minutes\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: 30m1h\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: -1s\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: ٣s\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "lock_deadline: " + "9" * 400 + "d\n", 5, "lock_deadline", "from 0s to 30d"),
    (LEAST + "lock_deadline:\n", 5, "lock_deadline", "write 15s, 2m or 6h"),
    (LEAST + "polling: {deadline: 0.5s}\n", 5, "polling.deadline", "from 1s to 30d"),
    (LEAST + "polling:\n  interval: 1m\n  max_interval: 30s\n", 7, "polling.max_interval", "not below interval"),
    (LEAST + "polling:\n  interval: 5m\n", 5, "polling.max_interval", "2m where none is written"),
    # names
    (NODE + "{name: -a, host: b}\n", 4, "nodes[0].name", "starting with a letter or digit"),
    (NODE + "{name: .., host: b}\n", 4, "nodes[0].name", "starting with a letter or digit"),
    (NODE + "{name: a/b, host: b}\n", 4, "nodes[0].name", "letters, digits"),
    (NODE + '{name: "a\\n", host: b}\n', 4, "nodes[0].name", "letters, digits"),
    (NODE + "{name: é, host: b}\n", 4, "nodes[0].name", "letters, digits"),
    (NODE + "{name: " + "a" * 65 + ", host: b}\n", 4, "nodes[0].name", "1 to 64"),
    (NODE + "{name: 7, host: b}\n", 4, "nodes[0].name is 7", "in quotes"),
    (NODE + "{name: a0, host: b}\n  - {name: A0, host: c}\n", 5, "nodes[1].name is 'A0'", "give each node its own"),
    # hosts
    (NODE + "{name: a, host: -oProxyCommand=x}\n", 4, "nodes[0].host", "'-' only inside"),
    (NODE + "{name: a, host: ''}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: a b}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: 192.168.1.256}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: 1.2.3}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: '0x7f.0x1'}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: 010.0.0.1}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: a b.example}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: a..b}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: " + "a" * 64 + "}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: " + ".".join(["a" * 60] * 5) + "}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: 'https://b'}\n", 4, "nodes[0].host", "without scheme"),
    (NODE + "{name: a, host: 'b:10121'}\n", 4, "nodes[0].host", "alone"),
    (NODE + "{name: a, host: '[::1]'}\n", 4, "nodes[0].host", "brackets"),
    (NODE + "{name: a, host: 'fe80::1%-x'}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: '10.0.0.1%x'}\n", 4, "nodes[0].host", "host name"),
    (NODE + "{name: a, host: A0.lan}\n  - {name: b, host: a0.LAN, port: 10121}\n", 5, "nodes[1].host", "once"),
    (NODE + "{name: a, host: '::1'}\n  - {name: b, host: '0:0::1'}\n", 5, "nodes[1].host", "once"),
    (NODE + "{name: a, host: '::ffff:10.0.0.1'}\n  - {name: b, host: 10.0.0.1}\n", 5, "nodes[1].host", "once"),
    # a0cli
    (LEAST + "a0cli: {path: ''}\n", 5, "a0cli.path", "is empty"),
    (LEAST + "a0cli: {path: -x}\n", 5, "a0cli.path", "starts with '-'"),
    (LEAST + "a0cli: {replies: {absent: [' ']}}\n", 5, "a0cli.replies.absent[0]", "is empty"),
    # the password's source
    (
        "vault: v\npassword: {}\nnodes: [{name: a, host: b}]\n",
        2,
        "password",
        "exactly one of sealed_to, secret_block, env or file",
    ),
    ("vault: v\npassword:\nnodes: [{name: a, host: b}]\n", 2, "password", "`key: value` lines below it"),
    ("vault: v\npassword: {env: A, file: b}\nnodes: [{name: a, host: b}]\n", 2, "password", "exactly one"),
    (SEALED + "k.pem, env: A}\n", 3, "password", "exactly one"),
    (SEALED + "''}\n", 3, "password.sealed_to", "is empty"),
    (SEALED + "7}\n", 3, "password.sealed_to", "write a path"),
    (SEALED + "{file: k.pem}}\n", 3, "password.sealed_to", "write a path, or a list of paths"),
    (SEALED + "[]}\n", 3, "password.sealed_to", "is empty: name at least one"),
    (SEALED + "[" + "k.pem, " * 11 + "]}\n", 3, "password.sealed_to", "holds more than 10 entries"),
    (
        "vault: v\nnodes: [{name: a, host: b}]\npassword:\n  sealed_to:\n  - k.pem\n  - 7\n",
        6,
        "password.sealed_to[1]",
        "write a path, in quotes",
    ),
    ("vault: v\npassword: {envv: A}\nnodes: [{name: a, host: b}]\n", 2, "password", "did you mean env?"),
    ("vault: v\npassword: {env: 'A-B'}\nnodes: [{name: a, host: b}]\n", 2, "password.env", "variable's name"),
    (
        "vault: v\npassword: {secret_block: A}\nnodes: [{name: a, host: b}]\n",
        2,
        "password.secret_block",
        "block's name",
    ),
    # YAML that is more than keys and values
    (LEAST + "existing: &e fail\n", 5, "existing", "anchors"),
    (LEAST + "existing: *e\n", 5, "existing", "aliases"),
    (LEAST + "existing: !!str fail\n", 5, "existing", "tags"),
    (LEAST + "a0cli: !!python/object:os.system {}\n", 5, "a0cli", "tags"),
    (LEAST + "---\nvault: v\n", 5, "", "second document"),
    (LEAST + "existing: [fail\n", 6, "", "is not YAML"),
    (LEAST + "existing: fail: x\n", 5, "", "is not YAML"),
    (LEAST + "\texisting: fail\n", 5, "", "is not YAML"),
    (LEAST + "existing: " + "[" * 100 + "]" * 100 + "\n", 5, "", "nested too deeply"),
    (LEAST + "kinds: [" + "a," * 40000 + "]\n", 5, "", "too many values"),
    (LEAST + "existing: \a\n", 5, "", "control character U+0007"),
    ("- a\n", 1, "", "is not a mapping"),
    ("hello\n", 1, "", "is not a mapping"),
]


@pytest.mark.parametrize(("text", "line", "key", "remedy"), WRONG)
def test_each_error_names_line_key_and_remedy(write: Write, text: str, line: int, key: str, remedy: str) -> None:
    found = problems(write(text))
    assert len(found) == 1, found
    assert found[0].startswith(f"line {line}: {key}")
    assert remedy in found[0]
    assert len(found[0]) < 400


def test_all_problems_are_reported_at_once_in_line_order(write: Write) -> None:
    found = problems(
        write("""\
vault: v
existing: keep
pasword: {}
polling: {interval: 5, deadline: 1}
nodes:
  - {name: a, host: -b, port: 0}
  - name: A
    host: c
    tag: x
  - {name: b, host: C}
vault: w
""")
    )
    assert [re.sub(r"^(line \d+: \S+?):? .*", r"\1", p) for p in found] == [
        "line 1: password",
        "line 2: existing",
        "line 3: pasword",
        "line 4: polling.interval",
        "line 4: polling.deadline",
        "line 6: nodes[0].host",
        "line 6: nodes[0].port",
        "line 7: nodes[1].name",
        "line 9: nodes[1].tag",
        "line 10: nodes[2].host",
        "line 11: vault",
    ]


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "the file is empty"),
        (b"# nothing but this\n", "the file is empty"),
        (b"---\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"vault: v\nexisting: \xff\n", "line 2: is not UTF-8"),
        (LEAST.encode("utf-16"), "line 1: is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "larger than 1 MiB"),
        (b"vault: \x00\n", "line 1: holds the control character U+0000"),
    ],
)
def test_a_file_that_is_not_readable_text_is_refused(write: Write, content: bytes, remedy: str) -> None:
    (problem,) = problems(write(content))
    assert remedy in problem


def test_a_byte_order_mark_and_windows_line_endings_are_accepted(write: Write) -> None:
    assert load_fleet(write(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())).nodes[0].name == "a0-1"


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FleetFileError, match="there is no such file\nHINT: `a0backup init`"):
        load_fleet(tmp_path / "fleet.yaml")


def test_a_folder_and_a_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert problems(pipe) == ("is not a regular file",)
    assert problems(tmp_path) == ("is not a regular file",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_reported(write: Write) -> None:
    path = write(LEAST)
    path.chmod(0)
    assert problems(path) == ("cannot be read: Permission denied",)


def test_an_impossible_path_is_refused() -> None:
    with pytest.raises(FleetFileError, match="is not a usable path"):
        load_fleet("a\0b")
    with pytest.raises(FleetFileError, match="cannot be read"):
        load_fleet("x" * 5000)


SECRET = "hunter2-Kx9"


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}",
        f"password: '{SECRET}'",
        f"password: [{SECRET}]",
        f"password: {{{SECRET}: }}",
        f"password: {{{SECRET}: {SECRET}}}",
        f"password: {{value: {SECRET}}}",
        f"password: {{env: '{SECRET}'}}",
        f"password: {{secret_block: '{SECRET}'}}",
        f"password: {{env: [{SECRET}]}}",
        f"password: {{env: {{{SECRET}: x, {SECRET}: y}}}}",
        f"password:\n  {SECRET}: x\n  {SECRET}: x",
        f"password:\n  ? {{{SECRET}: {SECRET}}}\n  : {SECRET}",
        f"password: !{SECRET} x",
        f"password: !{SECRET}!x y",
        f"password: &{SECRET} x",
        f"password: *{SECRET}",
        f"password: '{SECRET}' '{SECRET}'",
        f"password: %{SECRET}",
        f"password: @{SECRET}",
        f"password: {SECRET}: x",
        f"password: {{env: {SECRET}",
        f'password: "{SECRET}',
        f'password: "\\{SECRET}"',
        f"password={SECRET}: x",
        f"password: !it's{SECRET}!x y",
        f"password: {{sealed_to: [[{SECRET}]]}}",
        f"password: {{sealed_to: {{{SECRET}: {SECRET}}}}}",
        f"password: {{sealed_to: [{{{SECRET}: x, {SECRET}: y}}]}}",
        f"password: {{sealed_to: k.pem, env: {SECRET}}}",
        f"pasword: {SECRET}",
        f"Password: {SECRET}",
        f"password {SECRET}",
        f"password: {{env: A0}}\na0cli: {{password: {SECRET}}}",
        f"password: {{env: A0}}\na0cli: {{password_style: {SECRET}}}",
        f"password: {{env: A0}}\nnode_password: {SECRET}",
    ],
)
@pytest.mark.parametrize("libyaml", [True, False])
def test_a_password_written_into_the_file_is_never_repeated(
    write: Write, text: str, libyaml: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    path = write(f"vault: v\n{text}\nnodes: [{{name: a, host: b}}]\n")
    with pytest.raises(FleetFileError) as raised:
        load_fleet(path)
    error: BaseException | None = raised.value
    while error:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__


def test_a_literal_password_is_refused_with_the_alternatives(write: Write) -> None:
    (problem,) = problems(write(f"vault: v\npassword: {SECRET}\nnodes: [{{name: a, host: b}}]\n"))
    assert problem.startswith("line 2: password: never write the password itself into this file: write sealed_to")


def test_an_invalid_model_built_in_python_does_not_repeat_a_password() -> None:
    with pytest.raises(ValidationError) as raised:
        Fleet.model_validate({"vault": "v", "password": SECRET, "nodes": [{"name": "a", "host": "b"}]})
    assert SECRET not in str(raised.value)


def test_long_values_are_shortened_and_odd_characters_are_escaped(write: Write) -> None:
    (problem,) = problems(write(LEAST + "existing: " + "x" * 10_000 + "\n"))
    assert len(problem) < 150
    (problem,) = problems(write(LEAST + 'existing: "\\e[31m\\u202e"\n'))
    assert "'\\x1b[31m\\u202e'" in problem


def test_at_most_50_problems_are_listed(write: Write) -> None:
    found = problems(write(HEAD + "nodes:\n" + "  - {}\n" * 500))
    assert len(found) == 51
    assert found[-1] == "and 950 more problems"


@pytest.mark.parametrize("text", ["[" * 500_000, "{" * 500_000, "? " * 300_000, "- " * 500_000, "a: [" * 200_000])
def test_a_megabyte_of_brackets_is_refused_quickly(write: Write, text: str) -> None:
    assert problems(write(text))


def test_a_thousand_nodes_are_accepted_and_one_more_is_refused(write: Write) -> None:
    rows = "".join(f"  - {{name: n{i}, host: h{i}, port: {i % 60000 + 1}, build: 13451}}\n" for i in range(1001))
    assert "more than 1000" in problems(write(HEAD + "nodes:\n" + rows))[0]
    fewer = rows[: rows.rindex("  - ")]
    assert len(load_fleet(write(HEAD + "nodes:\n" + fewer)).nodes) == 1000


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
@example(b'"\\ud800": x')
@example(b"? ? ?")
@example(b"%YAML 9.9\n---\n{}")
@example(b"%TAG ! tag:x\n--- {}")
@example(b"--- >-\n")
def test_garbage_gives_a_fleet_or_a_fleet_file_error(content: bytes) -> None:
    load_or_refuse(content)


keys = st.sampled_from(
    [
        *Fleet.model_fields,
        *Node.model_fields,
        *A0cliSettings.model_fields,
        *Polling.model_fields,
        *ContentsLimits.model_fields,
        *PasswordSource.model_fields,
        *("absent", "user-export"),
    ]
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=5)
    | st.sampled_from(["15s", "1d", "backup", "a0-1", "::1", "A" * 5000, "\ud800", "~root", "~x", "a/b", "2TB", "_id"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(keys, values, max_size=9), st.booleans())
def test_any_yaml_gives_a_fleet_or_a_fleet_file_error(tree: dict[str, Any], flow: bool) -> None:
    base = yaml.safe_load(LEAST)
    load_or_refuse(yaml.safe_dump({**base, **tree}, default_flow_style=flow).encode("utf-8", "surrogatepass"))


def load_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yaml"
        path.write_bytes(content)
        try:
            found = [node.name for node in load_fleet(path).nodes]
        except FleetFileError as error:
            found = list(error.problems)
    assert found
    assert all(text.isprintable() for text in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("15s", 15), ("2m", 120), ("6h", 21600), ("1d", 86400), ("1h30m", 5400), ("0.5s", 0.5), ("1d2h3m4s", 93784)],
)
def test_durations_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "15", "s", "1 s", "1S", ".5s", "1.s", "1m1m", "1s1m", "1h-1m", "1e3s", "inf", "1s\n"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 15s, 2m or 6h"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1MB", 10**6),
        ("500GB", 500 * 10**9),
        ("2TB", 2 * 10**12),
        ("0.1GB", 10**8),
        ("1PB", 10**15),
        ("500GiB", 500 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("123456789012.123456789012MB", 123456789012123456),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "1", "GB", "1 GB", "1gb", "1Gb", ".5GB", "1.GB", "-1GB", "1e3GB", "1GB\n", "٣GB"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 500GB, 2TB or 500GiB"):
        size(text)


def test_a_password_may_be_sealed_to_one_recovery_key_or_to_several(write: Write, tmp_path: Path) -> None:
    assert load_fleet(write(SEALED + "keys/a.pem}\n")).password.sealed_to == (tmp_path / "keys/a.pem",)
    several = load_fleet(write(SEALED + "[a.pem, /b.pem]}\n")).password
    assert several.sealed_to == (tmp_path / "a.pem", Path("/b.pem"))
    assert (several.secret_block, several.env, several.file) == (None, None, None)
    assert load_fleet(write(LEAST)).password.sealed_to is None
    assert PasswordSource(sealed_to=Path("/k.pem")).sealed_to == (Path("/k.pem"),)


def test_an_export_is_started_with_its_fields_and_other_kinds_without_arguments(write: Write) -> None:
    text = LEAST + "kinds: [backup, {user-export: [email, _id, lastLogin]}]\n"
    fleet = load_fleet(write(text))
    assert fleet.kinds == ("backup", "user-export")
    assert fleet.arguments("user-export") == ("email,_id,lastLogin",)
    assert fleet.arguments("backup") == fleet.arguments("backup-sensitive") == ()
    for same in (
        pickle.loads(pickle.dumps(fleet)),
        fleet.model_copy(deep=True),
        Fleet.model_validate_json(fleet.model_dump_json()),
    ):
        assert same.arguments("user-export") == ("email,_id,lastLogin",)
        assert same.kinds == fleet.kinds


def test_the_sensitive_kind_is_skipped_if_the_declared_build_lacks_it(write: Write) -> None:
    fleet = load_fleet(
        write(
            HEAD + "kinds: [backup, backup-sensitive]\n"
            "nodes: [{name: a, host: a, build: 11637}, {name: b, host: b, build: 11638}, {name: c, host: c}]\n"
        )
    )
    both = ("backup", "backup-sensitive")
    assert [fleet.kinds_of(node) for node in fleet.nodes] == [("backup",), both, both]
    assert [node.splits for node in fleet.nodes] == [False, True, None]


def test_a_node_left_without_a_kind_is_refused_in_python_too() -> None:
    node = {"name": "a", "host": "b", "build": 11637}
    fleet = {"vault": "v", "password": {"env": "P"}, "nodes": [node]}
    with pytest.raises(ValidationError, match="node 'a' is left without a kind"):
        Fleet.model_validate({**fleet, "kinds": ["backup-sensitive"]})
    left = Fleet.model_validate({**fleet, "kinds": ["backup-sensitive", {"user-export": ["_id"]}]})
    assert left.kinds_of(left.nodes[0]) == ("user-export",)
    assert left.kinds == (Kind("backup-sensitive"), Kind("user-export"))


def test_the_pauses_grow_by_half_up_to_the_maximum() -> None:
    assert Polling().delays() == [15.0, 22.5, 33.75, 50.625, 75.9375, 113.90625, 120.0]
    assert Polling(interval=1, max_interval=1).delays() == [1.0]
    assert Polling(interval=15, max_interval=120, deadline=1).delays() == [1.0]


@settings(deadline=None)
@given(st.floats(0.01, 86400), st.floats(1, 10_000), st.floats(1, 30 * 86400))
def test_the_pauses_never_exceed_the_deadline_and_the_retries_always_cover_it(
    interval: float, factor: float, deadline: float
) -> None:
    polling = Polling(interval=interval, max_interval=min(interval * factor, 86400), deadline=deadline)
    delays, retries = polling.delays(), polling.retries()
    assert 1 <= len(delays) <= 50
    assert sum(delays) <= deadline * (1 + 1e-9)
    assert all(delay <= polling.max_interval for delay in delays)
    assert all(delay >= interval for delay in delays[1:])
    shortened = 0.8 * (sum(delays[:retries]) + delays[-1] * max(0, retries - len(delays)))
    assert deadline <= shortened <= deadline + 3.5 * polling.max_interval


def test_nodes_are_selected_by_name_in_the_given_order(write: Write) -> None:
    fleet = load_fleet(write(HEAD + "nodes: [{name: a0-1, host: a}, {name: a0-2, host: b}, {name: b0-3, host: c}]\n"))
    assert fleet.chosen([]) == fleet.nodes
    assert [node.name for node in fleet.chosen(["b0-3", "a0-1", "b0-3"])] == ["b0-3", "a0-1"]
    assert fleet.node("a0-2") == fleet.nodes[1]


def test_all_unknown_nodes_are_named_with_the_closest_or_the_known_names(write: Write) -> None:
    fleet = load_fleet(write(HEAD + "nodes: [{name: a0-1, host: a}, {name: berlin, host: b}]\n"))
    with pytest.raises(FleetFileError) as raised:
        fleet.chosen(["Berlin", "a0-1", "\x1b[2J", "x" * 500])
    berlin, escape, long = raised.value.problems
    assert berlin == "no node is named 'Berlin'; did you mean berlin?"
    assert escape == "no node is named '\\x1b[2J'; write one of a0-1, berlin"
    assert len(long) < 120
    with pytest.raises(FleetFileError):
        fleet.node("nowhere")


def test_a_build_before_6868_loads_but_is_too_old(write: Write) -> None:
    fleet = load_fleet(
        write(HEAD + "nodes: [{name: a, host: a, build: 6867}, {name: b, host: b, build: 6868}, {name: c, host: c}]\n")
    )
    assert [node.too_old for node in fleet.nodes] == [True, False, False]
    with pytest.raises(BuildTooOldError, match="a: build 6867"):
        fleet.nodes[0].require_build()
    fleet.nodes[1].require_build()
    fleet.nodes[2].require_build()


def test_a_fleet_is_frozen_and_survives_pickling_and_dumping(write: Write) -> None:
    fleet = load_fleet(write(LEAST))
    with pytest.raises(ValidationError):
        fleet.max_parallel = 3
    again = pickle.loads(pickle.dumps(fleet))
    assert (again, again.path) == (fleet, fleet.path)
    dumped = Fleet.model_validate_json(fleet.model_dump_json())
    assert dumped.model_dump() == fleet.model_dump()


def test_relative_paths_are_relative_to_the_file_and_not_to_the_current_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(LEAST)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    fleet = load_fleet("../fleet.yaml")
    assert fleet.path.is_absolute()
    assert fleet.vault.parent.resolve() == tmp_path.resolve()


def test_the_example_loads_unchanged_and_with_every_comment_activated(write: Write) -> None:
    fleet = load_fleet(write(EXAMPLE))
    opened = re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", EXAMPLE, flags=re.MULTILINE)
    opened = re.sub(r"^  (file|env|secret_block): .*\n", "", opened, flags=re.MULTILINE)
    full = load_fleet(write(opened))
    assert full.nodes[0].build == 13451
    assert [copy.name for copy in full.copies] == ["nas"]
    # The other comments show the defaults.
    assert full.retention is not None
    assert full.health is not None
    same = {name: getattr(fleet, name) for name in ("nodes", "copies", "require_copies", "retention", "health")}
    assert full.model_copy(update=same).model_dump() == fleet.model_dump()
    keys = set(yaml.safe_load(opened))
    assert keys == set(Fleet.model_fields)


def test_the_schema_is_valid_and_accepts_the_example() -> None:
    described = schema()
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.Draft202012Validator(described).validate(yaml.safe_load(EXAMPLE))
    json.dumps(described)


@pytest.mark.parametrize(
    "change",
    [
        {"existing": "keep"},
        {"lock_deadline": 60},
        {"lock_deadline": "1 hour"},
        {"max_parallel": 0},
        {"kinds": []},
        {"kinds": ["backup", "backup"]},
        {"kinds": ["user-export"]},
        {"kinds": [{"user-export": []}]},
        {"kinds": [{"user-export": ["mail"]}]},
        {"kinds": [{"user-export": ["_id", "_id"]}]},
        {"kinds": [{"user-export": ["_id"]}, {"user-export": ["email"]}]},
        {"kinds": [{"backup": ["_id"]}]},
        {"contents": {"max_unpacked": 10**9}},
        {"contents": {"max_unpacked": "1 TB"}},
        {"contents": {"max_ratio": 1}},
        {"contents": {"max_ratio": 1033}},
        {"unknown": 1},
        {"password": {}},
        {"password": {"env": "A", "file": "b"}},
        {"password": {"env": "A-B"}},
        {"password": {"env": "A", "sealed_to": "k.pem"}},
        {"password": {"sealed_to": []}},
        {"password": {"sealed_to": ["k.pem"] * 11}},
        {"a0cli": {"replies": {"absnt": ["x"]}}},
        {"nodes": []},
        {"nodes": [{"name": "-a", "host": "b"}]},
        {"nodes": [{"name": "a", "host": "b", "port": 0}]},
    ],
)
def test_the_schema_and_the_loader_refuse_the_same_files(change: dict[str, Any], write: Write) -> None:
    tree = {**yaml.safe_load(EXAMPLE), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(tree)
    assert problems(write(yaml.safe_dump(tree)))


@pytest.mark.parametrize(
    "change",
    [
        {"kinds": ["backup", "backup-sensitive", {"user-export": list(EXPORT_FIELDS)}]},
        {"contents": {"max_unpacked": "1.5TiB", "max_ratio": 2}},
        {"password": {"sealed_to": "k.pem"}},
        {"password": {"sealed_to": ["k.pem", "l.pem"]}},
    ],
)
def test_the_schema_and_the_loader_accept_the_same_files(change: dict[str, Any], write: Write) -> None:
    tree = {**yaml.safe_load(EXAMPLE), **change}
    jsonschema.Draft202012Validator(schema()).validate(tree)
    load_fleet(write(yaml.safe_dump(tree)))


@pytest.mark.parametrize("model", [Fleet, Node, A0cliSettings, PasswordSource, Polling, ContentsLimits])
def test_every_setting_is_described_in_one_sentence(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_package_imports_neither_the_engine_nor_the_terminal_library() -> None:
    code = "import sys, a0backup.fleet, a0backup.report; print({'prefect', 'rich', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_files_are_read_the_same_without_libyaml(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text, *_, remedy in WRONG if remedy != "is not YAML"]
    with_libyaml = [problems(write(text)) for text in texts]
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert [problems(write(text)) for text in texts] == with_libyaml
    assert all("is not YAML" in problems(write(text))[0] for text, *_, remedy in WRONG if remedy == "is not YAML")


def test_thousands_of_aliases_are_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("password: &p {env: P}\nvault: v\nnodes:\n" + "- *p\n" * 20_000)
    began = time.process_time()
    with pytest.raises(FleetFileError, match="aliases"):
        load_fleet(path)
    assert time.process_time() - began < patience(4)
