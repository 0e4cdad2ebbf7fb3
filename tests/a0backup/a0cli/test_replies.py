"""The output of a0cli is read as meant, and never as success unless it clearly is one."""

import base64
import html
import json
import quopri
import re
import shlex
import subprocess
import textwrap
import time
import unicodedata
import urllib.parse

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from a0backup.a0cli.listing import missing_commands, offered_commands, offers_backup, offers_sensitive
from a0backup.a0cli.printed import Printed
from a0backup.a0cli.redaction import redact
from a0backup.a0cli.replies import gave_no_role, made_nothing, read_ping, read_status, refusal, teach
from a0backup.a0cli.status import Absent, Found, InProgress, Status
from a0backup.a0cli.text import quote
from a0backup.a0cli.wordings import Meaning, Wordings, meaning
from a0backup.errors import A0cliError, FleetFileError, RefusedError, UnknownReplyError, UnreachableError
from tests.support.patience import patience

NAME = "04-06-2016-15-04-30.tar.gz"
MD5 = "77d68bb4ab2c66200e6bfb4ec08d257d"
DOCUMENTED = f'{{"message":"Backup found","arguments":{{"name":"{NAME}","md5":"{MD5}"}}}}'
# As printed on the vendor's page, without a comma after the name.
PAGE = f'{{\n  "message": "Backup found",\n  "arguments": {{\n    "name": "{NAME}"\n    "md5": "{MD5}"\n  }}\n}}\n'
FOUND = Found(NAME, MD5)


def printed(stdout: str = "", stderr: str = "", exit_code: int = 0) -> Printed:
    return Printed("backup-status", exit_code, stdout, stderr, 0.1)


def status(stdout: str = "", stderr: str = "", exit_code: int = 0, wordings: Wordings = Wordings()) -> Status:  # noqa: B008 - frozen
    return read_status(printed(stdout, stderr, exit_code), node="a0-1", command="backup-status", wordings=wordings)


def told(stdout: str = "", stderr: str = "", exit_code: int = 0, wordings: Wordings = Wordings()) -> Status | None:  # noqa: B008 - frozen
    """Return the status, or None where there is none."""
    try:
        return status(stdout, stderr, exit_code, wordings)
    except A0cliError:
        return None


def said(message: str, **arguments: object) -> str:
    return json.dumps({"message": message, "arguments": arguments} if arguments else {"message": message})


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENTED,
        PAGE,
        PAGE.replace("\n", "\r\n"),
        json.dumps(json.loads(DOCUMENTED), indent=4),
        f"{{ message: 'Backup found',\n  arguments: {{ name: '{NAME}', md5: '{MD5}' }} }}",
        json.dumps({"message": "Backup found", "name": NAME, "md5": MD5}),
        said("backup found.", name=NAME, md5=MD5.upper()),
        said("Backup ready", name=NAME, md5=MD5),
        said("Export found", name=NAME, md5=MD5),
        said("User export found", name=NAME, md5=MD5),
        said("Sensitive backup found", name=NAME, md5=f" {MD5} "),
        said("Backup completed successfully", name=NAME, md5=MD5, size=1234, warnings=[]),
        said("\x1b[32mBackup found\x1b[0m", name=NAME, md5=MD5),
        f"a0cli 2.1 {{o_o}}\n> asking a0-1\n{DOCUMENTED}\ndone in 0.3 s",
        f"2026-11-23T02:00:00.123Z INFO reply: {DOCUMENTED}",
        f"\x1b]0;a0cli\x07\x1b[1m\x1b[32m{DOCUMENTED}\x1b[0m\x1b[K",
        f"asking  10 %\rasking 100 %\r{DOCUMENTED}",
        DOCUMENTED + "\n" + PAGE,
        DOCUMENTED.replace("}}", ",}}"),
        '{"version":"2.1"}\n' + DOCUMENTED,
    ],
)
def test_a_backup_is_found_in_every_shape(text: str) -> None:
    assert status(text) == FOUND
    assert status("", text) == FOUND
    assert status(text, "(node:12) [DEP0005] DeprecationWarning: Buffer() is deprecated\n") == FOUND


@pytest.mark.parametrize(
    ("md5", "shown"),
    [
        ("", "md5 ''"),
        ("abc", "md5 'abc'"),
        (MD5[:-1], MD5[:-1]),
        (MD5 + "0", MD5 + "0"),
        ("g" * 32, "g" * 32),
        (None, "None"),
        (12, "12"),
        ("\N{ARABIC-INDIC DIGIT ONE}" * 32, "md5"),
        ([MD5], "md5"),
    ],
)
def test_a_malformed_md5_is_none_and_is_shown(md5: object, shown: str) -> None:
    found = status(said("Backup found", name=NAME, md5=md5))
    assert isinstance(found, Found)
    assert (found.name, found.md5) == (NAME, None)
    assert shown in found.shown


def test_a_missing_md5_is_none() -> None:
    assert status(said("Backup found", name=NAME)) == Found(NAME, None)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "-rf", "\x1b[2J\nx", "a" * 1000, "\N{RIGHT-TO-LEFT OVERRIDE}x"]
)
def test_a_name_is_kept_as_it_is(name: str) -> None:
    found = status(json.dumps({"message": "Backup found", "arguments": {"name": name, "md5": MD5}}))
    assert found == Found(name, MD5)


def test_a_lone_surrogate_in_a_name_can_be_written_down() -> None:
    found = status(DOCUMENTED.replace(NAME, "a\\ud800b"))
    assert isinstance(found, Found)
    assert found.name.encode() == b"a?b"


ABSENT = [
    "No backup found", "No backups found", "No backup found.", "no backup", "No Backup!", "There is no backup",
    "There are no backups on this node.", "There is currently no backup", "Backup not found", "No backup available",
    "Nothing found", "Nothing here", "Nothing to retrieve", "Nothing stored", "No backup exists", "None available",
    "Backup does not exist", "Backup doesn't exist", "No backup present on this node", "No such backup",
    "No backup was found on the appliance", "No sensitive backup found", "No user export found", "0 backups found",
    "This node has no backup", "The node does not have any backups", "No backup has been made yet", "No backup yet",
    "No backup stored here", "No backup file found", "No existing backup found", "No backup could be found",
    "The backup was not found",
]  # fmt: skip


@pytest.mark.parametrize("message", ABSENT)
def test_absent_is_understood(message: str) -> None:
    assert status(message) == Absent()
    assert status(said(message)) == Absent()
    assert status(json.dumps({"message": message, "arguments": {"name": None, "md5": ""}})) == Absent()
    assert status("", f"\x1b[33m{message}\x1b[0m\r\n") == Absent()
    assert status(f"info: {message}") == Absent()


IN_PROGRESS = [
    "Backup in progress", "Backup in progress.", "Backup in progress...", "Backup is in progress", "in progress",
    "A backup is already running", "Backup is being created", "Backup is currently being prepared", "Backup pending",
    "Backup not ready yet", "Backup not finished yet", "Backup is not yet complete", "Creating backup", "Please wait",
    "Backup in progress: 45%", "Backup in progress (45.5 %)", "Backup started", "Still running", "Backup not ready",
    "User export in progress", "Backup is still in progress, please try again later", "Backup queued",
    "There is a backup in progress", "backup process is running",
]  # fmt: skip


@pytest.mark.parametrize("message", IN_PROGRESS)
def test_in_progress_is_understood(message: str) -> None:
    assert status(message) == InProgress()
    assert status(said(message)) == InProgress()
    assert status(said(message, name=NAME, progress=40, running=True)) == InProgress()
    assert status(f"=== a0cli ===\n{message}\n") == InProgress()


NEITHER = [
    "No backup in progress", "No backup is running", "no such command", "not found", "Not found.", "No space",
    "No space left on device", "none", "None", "nothing", "null", "No", "Backup failed", "No backup: disk full",
    "Backup not in progress", "Backup not started", "This node is not a backup node", "No backup node found",
    "No backup role", "Backup could not be created", "Backup was not created", "No backup was not found",
    "Cannot find backup", "backup-status not found", "backup: not found", "OK", "", "{}", "[]", "Done", "PONG",
    "Nothing in progress", "No backup found because the disk is offline", "No backups allowed", "No, backup found",
    "Error: no backup found", "No backup found?", "backup no", "Kein Backup gefunden", "Backup found", "Backup ready",
    "Backup not available yet", "No backup can be made", "Backup in progress failed", "Backup aborted",
    "Backup missing", "Unknown", "undefined", "500", "Backup fo\N{CYRILLIC SMALL LETTER U}nd",
]  # fmt: skip


@pytest.mark.parametrize("message", NEITHER)
def test_an_unknown_message_is_not_a_status(message: str) -> None:
    wanted = InProgress() if "not finished" in message else None
    assert told(message) == wanted
    assert told(said(message)) == wanted
    if message not in ("OK", "Done", "Backup found", "Backup ready"):
        assert told(said(message, name=NAME, md5=MD5)) is None


@pytest.mark.parametrize(
    "text",
    [
        f"Backup found {NAME} {MD5}",
        said("Backup found"),
        said("Backup found", md5=MD5),
        said("Backup found", name=7, md5=MD5),
        said("Backup found", name=None, md5=MD5),
        said("No backup found", name=NAME, md5=MD5),
        said("No backup found", md5=MD5),
        said("No backup found", error="disk gone"),
        said("No backup found", status="in progress"),
        said("Backup found", name=NAME, md5=MD5, error="disk gone"),
        said("Backup found", name=NAME, md5=MD5, status="in progress"),
        said("Backup found", name=NAME, md5=MD5, complete=False),
        said("Backup found", name=NAME, md5=MD5, partial=True),
        said("Backup found", name=NAME, md5=MD5, success=False),
        said("Backup found", name=NAME, md5=MD5, statusCode=500),
        said("Backup found", name=NAME, md5=MD5, note={"state": "expired"}),
        json.dumps({"message": "Backup found", "arguments": [{"name": NAME, "md5": MD5}]}),
        json.dumps({"message": ["Backup found"], "arguments": {"name": NAME, "md5": MD5}}),
        json.dumps({"reply": json.loads(DOCUMENTED)}),
        json.dumps({"name": NAME, "md5": MD5}),
        json.dumps({"message": "Backup found", "md5": "0" * 32, "arguments": {"name": NAME, "md5": MD5}}),
        DOCUMENTED[:-1],
        DOCUMENTED[:-4],
        DOCUMENTED.replace(":", "", 1),
        '{"reply": ' + DOCUMENTED,
        DOCUMENTED.replace("{", '{"message":"No backup found",', 1),
        DOCUMENTED + DOCUMENTED.replace("77", "88"),
        DOCUMENTED + said("No backup found"),
        DOCUMENTED + said("Backup in progress"),
        DOCUMENTED + "\nBackup in progress",
        DOCUMENTED + "\nError: the md5 may be wrong",
        DOCUMENTED + said("something else"),
        DOCUMENTED + '{"error":"disk gone"}',
        said("No backup found") + said("Backup in progress"),
        "No backup found\nBackup in progress",
        "Error: disk gone\n" + said("No backup found"),
        '{"error":"No backup found"}',
        '{"message":"No backup found"',
        '{"message":"No backup found}',
        "banner\n" * 300 + DOCUMENTED,
    ],
)
def test_a_contradictory_or_truncated_reply_is_not_a_status(text: str) -> None:
    assert told(text) is None
    assert told("", text) is None


SETLOCALE = "/usr/local/bin/a0cli: line 3: warning: setlocale: LC_ALL: cannot change locale (en_US.UTF-8)"


@pytest.mark.parametrize(
    "noise",
    [
        SETLOCALE,
        "bash: warning: setlocale: LC_ALL: cannot change locale (de_DE.UTF-8): No such file or directory",
        "(node:71) [DEP0005] DeprecationWarning: Buffer() is deprecated, permission denied in later versions",
        "warning: permission denied while reading /etc/a0cli.conf",
        "the update server could not be reached: connection timed out",
        "mesg: ttyname failed: Inappropriate ioctl for device",
    ],
)
def test_a_complete_json_reply_counts_whatever_noise_is_beside_it(noise: str) -> None:
    for text, wanted in (
        (DOCUMENTED, FOUND),
        (said("No backup found"), Absent()),
        (said("Backup in progress"), InProgress()),
    ):
        assert status(text, noise) == wanted
        assert status(f"{noise}\n{text}") == wanted
        assert status(f"{text}\n{noise}\n") == wanted


def test_a_warning_beside_a_plain_reply_is_no_verdict() -> None:
    assert status("No backup found", SETLOCALE) == Absent()
    assert status("No backup found", "warning: permission denied while reading /etc/a0cli.conf") == Absent()


@pytest.mark.parametrize(
    "more",
    [
        {"progress": 100},
        {"progress": "100%"},
        {"retention": "not set", "expires": "never"},
        {"created": "2026-11-28T02:00:00Z", "size": 12345, "sha256": "0" * 64, "encrypted": True},
        {"note": "no errors, nothing missing"},
    ],
)
def test_members_that_a_newer_build_adds_do_not_hide_a_backup(more: dict[str, object]) -> None:
    assert status(said("Backup found", name=NAME, md5=MD5, **more)) == FOUND
    assert status(json.dumps({"message": "Backup found", "name": NAME, "md5": MD5, **more})) == FOUND


def test_a_line_that_the_operator_ignores_stands_beside_any_reply() -> None:
    line = "FATAL: the licence could not be checked"
    reply = printed("No backup found", line)
    assert told("No backup found", line) is None
    taught = yaml.safe_load(teach(reply))["a0cli"]["replies"]
    assert taught == {"ignore": [line]}
    assert status("No backup found", line, wordings=Wordings.extended(taught)) == Absent()
    assert told(line, wordings=Wordings.extended(taught)) is None
    assert told(DOCUMENTED, line) is None
    assert status(DOCUMENTED, line, wordings=Wordings.extended(taught)) == FOUND


def test_contradictory_streams_are_not_a_status() -> None:
    assert told(DOCUMENTED, "No backup found") is None
    assert told("No backup found", "TypeError: x is not a function") is None
    assert told("No backup found", "FATAL disk") is None


def test_output_that_lost_its_middle_is_not_a_status() -> None:
    assert told("No backup found" + " " * 70_000) is None


@pytest.mark.parametrize("text", [DOCUMENTED, "No backup found", "Backup in progress", said("No backup found")])
@pytest.mark.parametrize("exit_code", [1, 2, 127, 255, -9])
def test_a_status_needs_exit_code_0(text: str, exit_code: int) -> None:
    with pytest.raises(UnknownReplyError) as caught:
        status(text, exit_code=exit_code)
    assert caught.value.exit_code == exit_code
    assert text in caught.value.tail


REFUSED = [
    "Unknown command backup-status", "error: unknown option '-t'", "Invalid command: backup", "'x' is not a command",
    "No key found", "no public key", "Unauthorized", "401: Not authorized", "Permission denied (publickey).",
    "Access denied", "EACCES: permission denied, open 'id_rsa'", "This node is not a backup node", "403 Forbidden",
    "node is not in the backup role", "wrong role", "Missing key", "Command not supported", "command not found",
    "key not registered", "Invalid signature", "Device not configured as backup",
]  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_refusal_is_permanent(message: str, exit_code: int) -> None:
    for text in (message, said(message), f"Error: {message}", json.dumps({"error": message})):
        for streams in ((text, ""), ("", text)):
            with pytest.raises(RefusedError) as caught:
                status(*streams, exit_code=exit_code)
            assert not caught.value.transient


UNREACHABLE = [
    "connect ECONNREFUSED 127.0.0.1:10121", "connect ETIMEDOUT 10.0.0.1:10121", "read ECONNRESET",
    "getaddrinfo ENOTFOUND a0-1", "connect EHOSTUNREACH 10.0.0.1", "Connection refused", "connection reset by peer",
    "No route to host", "socket hang up", "Could not connect to a0-1", "Name or service not known",
    "Operation timed out", "getaddrinfo EAI_AGAIN a0-1",
]  # fmt: skip


@pytest.mark.parametrize("message", UNREACHABLE)
@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_node_that_does_not_answer_is_unreachable(message: str, exit_code: int) -> None:
    for text in (message, f"Error: {message}\n    at Socket.emit (events.js:315)", said(message)):
        with pytest.raises(UnreachableError) as caught:
            status("", text, exit_code=exit_code)
        assert caught.value.transient


def test_an_unknown_reply_is_quoted_and_transient() -> None:
    with pytest.raises(UnknownReplyError, match="Kein Backup") as caught:
        status("\x1b[31mKein\nBackup\x1b[0m")
    assert caught.value.transient
    assert (caught.value.node, caught.value.command, caught.value.tail) == ("a0-1", "backup-status", "Kein Backup")


@pytest.mark.parametrize(
    "text", ['{"message": "PONG"}', '{"message":"PONG"}\n', "PONG", "pong!", '\x1b[32m{\n "message": "PONG"\n}\x1b[0m']
)
def test_pong_is_understood(text: str) -> None:
    read_ping(printed(text), node="a0-1", wordings=Wordings())


@pytest.mark.parametrize(
    "text", ["", "No PONG", said("PING"), "pong pong", said("PONG", error="x"), "PONG?", DOCUMENTED]
)
def test_anything_else_is_not_a_pong(text: str) -> None:
    with pytest.raises(UnknownReplyError):
        read_ping(printed(text), node="a0-1", wordings=Wordings())


def test_a_pong_needs_exit_code_0() -> None:
    with pytest.raises(UnknownReplyError):
        read_ping(printed('{"message":"PONG"}', exit_code=1), node="a0-1", wordings=Wordings())


# ---------------------------------------------------------------------------------------------------------------------
# The operator's wordings


def test_the_operators_wordings_take_precedence() -> None:
    wordings = Wordings.extended(
        {
            "absent": ["Nix  da!"],
            "in_progress": ["no backup found"],
            "found": ["Da"],
            "refused": ["nein"],
            "pong": ["ja"],
        }
    )
    assert status("nix da", wordings=wordings) == Absent()
    assert status(said("No backup found"), wordings=wordings) == InProgress()
    assert status(said("DA", name=NAME, md5=MD5), wordings=wordings) == FOUND
    assert told("da", wordings=wordings) is None
    assert told("nix da", exit_code=1, wordings=wordings) is None
    with pytest.raises(RefusedError):
        status("Nein.", exit_code=1, wordings=wordings)
    read_ping(printed("JA"), node="a0-1", wordings=wordings)


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ({"missing": ["x"]}, "missing"),
        ({"unknown": ["x"]}, "unknown"),
        ({"absent": [" . "]}, "empty"),
        ({"absent": ["x"], "found": ["X."]}, "also under absent"),
    ],
)
def test_unusable_wordings_are_refused(replies: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(FleetFileError, match=problem):
        Wordings.extended(replies)


@pytest.mark.parametrize(
    ("text", "exit_code", "key"),
    [
        ("Nix da", 0, "absent"),
        (said('Nichts: "da" \\ # {x}'), 0, "absent"),
        ("banner of nothing known", 0, "absent"),
        (said("Backup wird erstellt, running"), 0, "in_progress"),
        (said("Backup liegt bereit", name=NAME, md5=MD5), 0, "found"),
        ("Error: geht nicht", 0, "refused"),
        (said("geht nicht"), 3, "refused"),
    ],
)
def test_the_suggested_line_teaches_the_wording(text: str, exit_code: int, key: str) -> None:
    line = teach(printed(text, exit_code=exit_code))
    replies = yaml.safe_load(line)["a0cli"]["replies"]
    assert list(replies) == [key]
    wordings = Wordings.extended(replies)
    if key == "refused":
        with pytest.raises(RefusedError):
            status(text, exit_code=exit_code, wordings=wordings)
    else:
        assert status(text, wordings=wordings) == {"absent": Absent(), "in_progress": InProgress(), "found": FOUND}[key]


@pytest.mark.parametrize("text", ["", DOCUMENTED, said("Backup found"), "No backup found", "a\nb", "x" * 500, '{"a'])
def test_no_line_is_suggested_unless_there_is_a_single_unknown_message(text: str) -> None:
    assert teach(printed(text)) == ""


# ---------------------------------------------------------------------------------------------------------------------
# Quoting


def test_a_quote_is_one_short_line_of_printable_text() -> None:
    assert quote(" \x1b[31ma\x1b[0m\r\n\tb\x00\N{RIGHT-TO-LEFT OVERRIDE}c\x07 ") == "a bc"
    long = quote("start " + "x" * 5000 + " end")
    assert len(long) == 200
    assert long.startswith("start")
    assert long.endswith("end")


@pytest.mark.parametrize("secret", ["Passw0rd", "p", "a b/c'd\"e&<\\", "pä$$\N{GRINNING FACE}", "%41+", "line\nline"])
def test_no_form_of_a_secret_is_quoted(secret: str) -> None:
    octets = secret.encode()
    forms = [
        *(secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), shlex.quote(secret)),
        *(urllib.parse.quote(secret), urllib.parse.quote_plus(secret), urllib.parse.quote(secret, safe="").lower()),
        octets.hex(),
    ]
    for form in forms:
        assert secret not in redact(f"[{form}]", secret).replace("***", "")
        assert form.strip("'\"").casefold() not in redact(f"[{form}]", secret).casefold()
    if len(octets) >= 8:
        for before in (b"", b"x", b"xy", b"xyz"):
            encoded = base64.b64encode(before + octets + b"!").decode()
            shown = redact(encoded, secret)
            assert "***" in shown
            assert octets[1:-1] not in base64.b64decode(shown.replace("***", "AAAA")[: len(shown) // 4 * 4] + "====")


SECRET = "Passw0rd12345678'abcd\"efgh\N{LATIN SMALL LETTER E WITH ACUTE}"
OCTETS = SECRET.encode()


@pytest.mark.parametrize(
    "form",
    [
        "<Buffer " + OCTETS.hex(" ") + ">",
        "Uint8Array(8) [\n  " + ",\n  ".join(map(str, OCTETS)) + "\n]",
        json.dumps({"type": "Buffer", "data": list(OCTETS)}),
        SECRET.encode("utf-16-le").hex(" "),
        OCTETS.hex("-").upper(),
        ",".join(f"0x{octet:02x}" for octet in OCTETS),
        "".join(f"\\x{octet:02x}" for octet in OCTETS),
        "".join(f"%{octet:02X}" for octet in OCTETS),
        "".join(f"\\u{ord(character):04x}" for character in SECRET),
        "".join(f"&#{ord(character)};" for character in SECRET),
        quopri.encodestring(OCTETS, quotetabs=True).decode(),
        html.escape(SECRET),
        *(
            f"{SECRET[:cut]}{broken}{SECRET[cut:]}"
            for cut in (1, 7, 15)
            for broken in ("\n", "\r\n  ", "\\\n", "=\n", "' +\n    '", "\n> ")
        ),
        "\n".join(textwrap.wrap(base64.b64encode(OCTETS).decode(), 10)),
    ],
)  # fmt: skip
def test_a_secret_in_any_form_that_programs_print_is_removed(form: str) -> None:
    shown = redact(f"before {form} after", SECRET)
    assert "***" in shown
    left = shown.replace("***", "")
    assert not re.search(r"w0rd|1234|77.?30|119|abcd|61.?62.?63", left), shown


@pytest.mark.parametrize("tool", ["od -c", "od -tx1", "od -tu1", "od -An -tx1z", "od -A x -t x1z"])
@pytest.mark.parametrize("before", ["", "pass=", "the password is "])
def test_a_secret_is_removed_from_the_dumps_of_tools(tool: str, before: str) -> None:
    secret = SECRET.encode("ascii", "ignore").decode()
    dump = subprocess.run(tool.split(), input=f"{before}{secret}".encode(), capture_output=True, check=True).stdout
    shown = redact(dump.decode(), secret)
    assert "***" in shown
    assert not re.search(r"w +0 +r|w0rd|77 +30|119 +48|1 +2 +3|1234|31 +32|49 +50", shown), shown


def test_the_part_of_a_secret_that_a_cut_dump_shows_is_removed() -> None:
    assert redact(f"<Buffer 00 {OCTETS[:9].hex(' ')} ... 20 more bytes>", SECRET) == "<Buffer 00 *** ... 20 more bytes>"
    numbers = ", ".join(map(str, OCTETS[:9]))
    assert redact(f"[ 7, {numbers}, ... 20 more items ]", SECRET) == "[ 7, ***, ... 20 more items ]"


@pytest.mark.parametrize(
    "between", [" ", " \n", "    \n ", ", ", "' +\n  '", "\\\n", "\n> ", "  |\n0000010  ", ":", "\\"]
)
@pytest.mark.parametrize("form", ["letters", "hexadecimal", "decimal", "base64"])
def test_a_secret_without_its_end_is_searched_for_quickly(form: str, between: str) -> None:
    """A node knows the password: what nearly matches must not take longer than anything else."""
    secret = "Kx7mQ2vT9pLwKx7mQ2vT9pLwKx7mQ2vT9pLwKx7mQ2v"
    octets = secret.encode()[:-1]
    parts: dict[str, list[str]] = {
        "letters": list(secret[:-1]),
        "hexadecimal": [f"{octet:02x}" for octet in octets],
        "decimal": [str(octet) for octet in octets],
        "base64": list(base64.b64encode(octets).decode().rstrip("=")[:-2]),
    }
    began = time.process_time()
    redact((between.join(parts[form]) + " zz\n") * 40, secret)
    assert time.process_time() - began < patience(1)


@pytest.mark.parametrize(
    "form",
    [
        json.dumps({"config": {"data": json.dumps({"password": SECRET})}}),
        json.dumps(json.dumps(json.dumps(SECRET))),
        json.dumps({"data": {"type": "Buffer", "data": list(OCTETS)}}, indent=4),
        json.dumps({str(index): octet for index, octet in enumerate(OCTETS)}, separators=(",", ":")),
        "Map(12) { " + ", ".join(f"{index} => {octet}" for index, octet in enumerate(OCTETS)) + " }",
        "{ " + ", ".join(f"'{index}': '{letter}'" for index, letter in enumerate(SECRET)) + " }",
        "[ " + ", ".join(f"'{letter}'" for letter in SECRET) + " ]",
        urllib.parse.quote(urllib.parse.quote(SECRET, safe=""), safe=""),
        urllib.parse.quote(base64.b64encode(OCTETS).decode(), safe=""),
        base64.b64encode(SECRET.encode("utf-16-le")).decode(),
        OCTETS.decode("latin-1"),
        unicodedata.normalize("NFD", SECRET),
        " ".join(f"{octet:08b}" for octet in OCTETS),
        " ".join(f"{octet:03o}" for octet in OCTETS),
    ],
)  # fmt: skip
def test_a_secret_that_was_encoded_more_than_once_or_taken_apart_is_removed(form: str) -> None:
    shown = redact(f"before {form} after", SECRET)
    assert "***" in shown
    assert not re.search(r"w0rd|1234|119|abcd|77.?30|'w', '0'", shown.replace("***", "")), shown


WIDE = "Zoë→Grün😀💀-pass"


@pytest.mark.parametrize(
    "form",
    [
        json.dumps(WIDE),
        json.dumps(list(WIDE)),
        json.dumps(list(WIDE), indent=1),
        json.dumps({str(index): letter for index, letter in enumerate(WIDE)}),
        json.dumps(json.dumps(list(WIDE))),
        "".join(f"\\u{int.from_bytes(WIDE.encode('utf-16-be')[at : at + 2]):04x}" for at in range(0, 2 * 18, 2)),
        "".join(f"\\u{{{ord(letter):x}}}" for letter in WIDE),
        "".join(f"&#x{ord(letter):x};" for letter in WIDE),
        json.dumps(WIDE[:5]) + " +\n  " + json.dumps(WIDE[5:], ensure_ascii=False),
        urllib.parse.quote(WIDE, safe="ë"),
        urllib.parse.quote(WIDE[:4]) + WIDE[4:],
        WIDE[:9] + urllib.parse.quote(urllib.parse.quote(WIDE[9:])),
        WIDE.replace("→", "\\xe2\\x86\\x92"),
        WIDE.replace("ë", "\\xeb").replace("ü", "\\374"),
        WIDE.replace("😀", "\\360\\237\\230\\200"),
        WIDE.replace("ü", "=C3=BC"),
        unicodedata.normalize("NFD", WIDE).replace("\u0308", "\\u0308"),
        unicodedata.normalize("NFD", WIDE[:5]) + WIDE[5:],
    ],
)  # fmt: skip
def test_a_secret_of_wide_characters_is_removed_however_each_of_them_is_written(form: str) -> None:
    shown = redact(f"before {form} after", WIDE)
    assert "***" in shown
    assert not re.search(r"Zo|Gr|pass|\\ud|c3", shown.replace("***", ""), re.IGNORECASE), shown


# What splits a text without being seen: as it is, and as programs escape it.
SPLITS = [
    *("\b", "\0", "\x7f", "\x85", "\N{ZERO WIDTH SPACE}", "\N{SOFT HYPHEN}", "\N{RIGHT-TO-LEFT OVERRIDE}", "\x1b[31m"),
    *("\N{COMBINING GRAPHEME JOINER}", "\N{HANGUL FILLER}", "\N{VARIATION SELECTOR-16}", "\N{BRAILLE PATTERN BLANK}"),
    *("\\b", "\\f", "\\v", "\\0", "\\a", "\\n", "\\r\\n", "\\t", "\\\\b", "\\u0000", "\\u200b", "\\x7f", "\\\\u200b"),
    *("\\u001b[31m", "\\x1b[1;32m", "\\033[0m", "\\e[0m", "\\u009b0m", "\\u{e0041}", "&#8203;", "&shy;", "%00"),
    *("%E2%80%8B", "\\xe2\\x80\\x8b", "\\u001b]0;title\\u0007", "\\b\\u200b\\f"),
]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("secret", ["Xk3-Secret-Pass-9", "p\\ath\\new-Secret", WIDE])
def test_a_secret_is_removed_whatever_invisible_splits_it(split: str, secret: str) -> None:
    for cut in (1, 7, len(secret) - 1):
        shown = redact(f"before {secret[:cut]}{split}{secret[cut:]} after", secret)
        assert "***" in shown
        left = quote(shown.replace("***", ""))
        assert left.startswith("before")
        assert not re.search(r"Xk3|ecret|Pass|ath|ew|Zo|Gr|pass", left), shown


def test_the_beginning_of_a_secret_before_a_cut_is_removed() -> None:
    said = f'SyntaxError: Unexpected token P, "{SECRET[:10]}"... is not valid JSON'
    assert redact(said, SECRET) == 'SyntaxError: Unexpected token P, "***"... is not valid JSON'


def test_a_secret_split_by_a_colour_code_is_not_quoted() -> None:
    assert "Passw0rd" not in quote("Pass\x1b[0mw0rd", secret="Passw0rd")


# ---------------------------------------------------------------------------------------------------------------------
# Fuzz

unhurried = settings(deadline=None)  # a busy machine is not a failure

noise = st.text(st.characters(blacklist_categories=["Cs"]), max_size=80)
hostile = st.one_of(
    noise,
    st.lists(
        st.sampled_from(
            [*'{}[]:,"\'\\', "\n", " ", "\x1b[", "message", '"message"', ':"Backup found"', "No ", "backup", " found",
             "arguments", '"name":"x"', f'"md5":"{MD5}"', "null", "true", "1e9", "in progress", "Error", DOCUMENTED,
             '{"message":"No backup found"}']
        ),
        max_size=30,
    ).map("".join),
)  # fmt: skip
banner = st.sampled_from(
    ["", "a0cli 2.1.0\n", "=== PSaaS ===\r\n\n", "\x1b[36m> asking a0-1 ...\x1b[0m\n", "[1/2] 12:00:01 fetching\n",
     "Update available 2.1 -> 2.2\n", "{o_o}\n", '"quoted"\n', "took 3 ms\n", "\x1b]0;title\x07\n", "$ \n"]
)  # fmt: skip
colour = st.sampled_from(["", "\x1b[0m", "\x1b[1;32m", "\x1b[K", "\x1b]8;;http://x\x07"])


@unhurried
@given(hostile, hostile, st.sampled_from([0, 0, 0, 1, -9]))
@example("{" * 2000, '"' * 2000, 0)
def test_any_output_is_a_status_or_an_a0cli_error(stdout: str, stderr: str, exit_code: int) -> None:
    reply = printed(stdout, stderr, exit_code)
    answer = told(stdout, stderr, exit_code)
    if answer is not None:
        assert exit_code == 0
        if isinstance(answer, Found):
            assert answer.md5 is None or re.fullmatch("[0-9a-f]{32}", answer.md5)
    line = teach(reply)
    assert line == "" or set(yaml.safe_load(line)) == {"a0cli"}
    assert "\n" not in line
    error = refusal(reply, node="a0-1", command="x", wordings=Wordings())
    assert error.tail.isprintable()
    assert len(error.tail) <= 200


@unhurried
@given(
    st.sampled_from(
        [(t, FOUND) for t in (DOCUMENTED, PAGE)]
        + [(t, Absent()) for t in ABSENT]
        + [(t, InProgress()) for t in IN_PROGRESS]
    ),
    banner,
    banner,
    colour,
    colour,
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_a_wrapped_reply_keeps_its_meaning(
    reply: tuple[str, Status], before: str, after: str, on: str, off: str, windows: bool, pretty: bool
) -> None:
    text, wanted = reply
    if pretty and text != PAGE:
        text = json.dumps(json.loads(text) if text.startswith("{") else {"message": text}, indent=2)
    text = f"{before}{on}{text}{off}\n{after}"
    assert status(text.replace("\n", "\r\n") if windows else text) == wanted


@unhurried
@given(st.sampled_from([DOCUMENTED, PAGE]), st.integers(0, len(DOCUMENTED) - 1), st.sampled_from([*'{}":,x0 \n\\', ""]))
def test_one_garbled_character_elsewhere_never_changes_name_and_md5(text: str, at: int, other: str) -> None:
    answer = told(text[:at] + other + text[at + 1 :])
    assert not isinstance(answer, Absent | InProgress)
    if answer is not None:
        inside = text.index(NAME) - 1 <= at <= text.index(MD5) + 40
        assert answer == FOUND or inside


@unhurried
@given(st.sampled_from([DOCUMENTED, PAGE]), st.integers(0, len(DOCUMENTED) - 2))
def test_a_reply_cut_short_is_never_success(text: str, at: int) -> None:
    assert told(text.strip()[:at]) is None


@unhurried
@given(
    st.sampled_from(["not", "no", "never", "failed", "error", "cannot", "deleted", "without", "partial", "expired"]),
    st.sampled_from(["{word} Backup found", "Backup {word} found", "Backup found {word}", "Backup found: {word}"]),
)
def test_a_negated_message_is_never_found(word: str, message: str) -> None:
    assert told(said(message.format(word=word), name=NAME, md5=MD5)) is None


@unhurried
@given(hostile, st.integers(1, 255))
def test_no_text_is_a_status_unless_the_exit_code_is_0(text: str, exit_code: int) -> None:
    assert told(text, DOCUMENTED, exit_code) is None
    assert told("No backup found", text, exit_code) is None


@unhurried
@given(noise, st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable() and text.strip(" *") == text))
def test_a_quote_never_contains_the_secret(text: str, secret: str) -> None:
    shown = quote(f"{text}{secret}{text}", secret=secret)
    assert secret not in shown.replace("***", "\n")
    assert len(shown) <= 200


@pytest.mark.parametrize("message", ["Backup found", "OK"])
def test_a_found_message_alone_is_not_a_status(message: str) -> None:
    assert meaning(message, Wordings()) is Meaning.FOUND
    assert told(message) is None


ADVERSE = [
    *(
        "{",
        '"',
        '{"',
        '{"a":',
        '\\"',
        '{"\\"',
        "\x1b[",
        "\x1b]",
        "a\n",
        "no ",
        "error ",
        "{a:1}",
        " ",
        "{ ",
        "[",
        "0 %",
    ),
    *(
        "backup ",
        "not ",
        "{a",
        "{'",
        "'\\",
        "already ",
        "there ",
        "exists ",
        "device ",
        "no public ",
        "a: ",
        "line 1: ",
    ),
    *("{}", "{a:[", "aerror", "100 % ", "50 61 73 ", "80, 97, ", "P a s ", "Pa", "P\n", "&#80;", "00000010: 50 "),
    *("\\", "%25", "&amp;", "&#x0", "=", "0", "...", "P...", "0x", "\\x"),
]


@pytest.mark.parametrize("text", ADVERSE)
def test_reading_a_reply_takes_time_in_proportion_to_its_size(text: str) -> None:
    text = (text * 65536)[: 64 * 1024]
    began = time.process_time()
    for stdout, stderr in ((text, '{"a":' + text[5:]), (f'{{"message":"{text}"}}', "")):
        told(stdout, stderr)
        reply = printed(redact(stdout, SECRET), stderr, 1)
        said = refusal(reply, node="a0-1", command="backup", wordings=Wordings())
        made_nothing(reply, said)
        gave_no_role(reply, said)
        teach(reply)
    # 192 KiB in all: 30 microseconds for each byte, of the processor alone, whatever else runs beside it.
    assert time.process_time() - began < patience(6)


@pytest.mark.parametrize(
    ("said", "exit_code", "nothing"),
    [
        ('{"message":"Backup already in progress"}', 1, True),
        ("Error: a backup already exists on this node", 1, True),
        ("there is a backup running already", 2, True),
        ("error: permission denied", 1, True),
        ("Backup in progress", 1, False),
        ("already done. Backup in progress", 1, False),
        ("Backup already in progress", 0, True),
        ('{"message":"There is a backup already, delete it first"}', 0, True),
        ('{"message":"Backup in progress"}', 0, False),
        ("error: permission denied", 0, False),
        ("Error: socket hang up", 1, False),
        ("", 1, False),
    ],
)
def test_a_start_made_nothing_if_it_was_refused_or_there_was_a_backup_already(
    said: str, exit_code: int, nothing: bool
) -> None:
    reply = Printed("backup", exit_code, "", said, 0.1)
    refused = refusal(reply, node="a0-1", command="backup", wordings=Wordings())
    assert made_nothing(reply, refused) is nothing


@pytest.mark.parametrize(
    ("said", "exit_code", "nothing"),
    [
        ('{"message":"A backup folder already exists"}', 1, True),
        ("Error: backup folder exists, use force", 1, True),
        ("Error: /dev/sdz: no such device", 1, True),
        ("device /dev/sdb is busy", 1, True),
        ("/dev/sdb: No such file or directory", 1, True),
        ("error: unknown command `set-as-backup'", 1, True),
        ("Das geht nicht", 1, True),
        ("device /dev/sdb is busy", 0, False),
        ("formatting the device", 1, False),
        ("Error: connect ECONNREFUSED", 1, False),
        ("Error: socket hang up", 1, False),
        ("", 1, False),
    ],
)
def test_no_role_was_given_only_if_the_command_failed_and_said_so(said: str, exit_code: int, nothing: bool) -> None:
    reply = Printed("set-as-backup", exit_code, "", said, 0.1)
    taught = Wordings.extended({"refused": ["Das geht nicht"]})
    assert gave_no_role(reply, refusal(reply, node="a0-1", command="set-as-backup", wordings=taught)) is nothing


LISTING = """
  Usage: a0cli [options] <command>

  Commands:

    create-key                    create a key pair on the current path
    backup <password>             start a backup, see backup-sensitive for the keys
    backup-status                 show it
    ping                          ask whether the node is there
    nslookup <host>               look a host up
"""


def test_a_command_that_the_node_does_not_list_is_missing() -> None:
    kinds = ["backup", "backup-sensitive", "user-export"]
    assert missing_commands(LISTING, kinds) == ["backup-sensitive", "user-export"]
    assert offered_commands(LISTING) is not None
    assert not offers_sensitive(LISTING)
    assert offers_sensitive(LISTING + "    backup-sensitive <password>  the keys\n")


def test_a_node_has_the_backup_role_if_it_lists_backup_itself() -> None:
    assert offers_backup(LISTING) is True
    assert offers_backup(LISTING.replace("    backup <password>", "    export <password>")) is False


@pytest.mark.parametrize("text", ["", "backup, backup-sensitive, ping, nslookup", '{"commands": ["backup-sensitive"]}'])
def test_a_listing_in_another_format_proves_nothing(text: str) -> None:
    assert missing_commands(text, ["backup", "backup-sensitive"]) == []
    assert offered_commands(text) is None
    assert not offers_sensitive(text)
    assert offers_backup(text) is None
