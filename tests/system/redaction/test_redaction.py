"""A password is found nowhere but at its source, whatever goes wrong, and whatever is enabled to see more."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.support.extent import EVERY, deep
from tests.support.patience import until
from tests.support.places import ACCESS_KEY, BUCKET, s3_server
from tests.support.stored import store
from tests.system.faults.engines import operators_server, worker_of
from tests.system.redaction.canary import search
from tests.system.redaction.faults import ENDINGS, ERR, NAME, NODES, OUT, SAYS, order_faults
from tests.system.redaction.room import LOUD, NASTY, PLAIN, Room

OFFSITE = {"url": f"s3://{BUCKET}/vault", "secret_block": "a0-offsite"}
TOKEN, NO_SECRET = "Canary7SessionToken", "Canary7AnotherSecret"

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def room(request: pytest.FixtureRequest, tmp_path: Path, migrated_home: Path) -> Iterator[Room]:
    with Room(tmp_path, request.param, migrated_home) as room:
        yield room


def nodes(number: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("room", [number], indirect=True, ids=[f"{number} nodes"])


# -- runs --------------------------------------------------------------------------------------------------------------


@nodes(NODES)
@pytest.mark.parametrize("source", ["env", "file", "block", "sealed"])
def test_a_night_in_which_every_node_fails_in_its_own_way_leaves_no_password(room: Room, source: str) -> None:
    room.fleet(room.password_from(source, NASTY))
    order_faults(room)
    night = room.run("run", **LOUD)
    assert night.code == 3, night.report
    assert night.said.count("***") > 100
    for number, ending in enumerate(ENDINGS, 1):
        assert re.search(rf"^a0-{number} +{ending}", night.report, re.M), f"a0-{number}: {night.report}"
    told = room.told()
    room.is_clean_of(*told)
    if source == "sealed":
        assert set() < set(room.unsealed()) <= set(told)
        assert len(told) == NODES
    else:
        assert told == [NASTY]
    assert search(told, [room.environments_of_a0cli()]) == []

    [one] = [path.parent.name for path in room.place.glob("vault/a0-1/*/manifest.json")]
    for command in (["status"], ["list", "--json"], ["show", f"a0-1/{one}"], ["verify"]):
        room.run(*command, **LOUD)
    room.is_clean_of(*told)


@nodes(2)
@pytest.mark.parametrize("source", ["env", "sealed"])
def test_a_killed_or_interrupted_run_leaves_no_password_and_neither_does_the_next(room: Room, source: str) -> None:
    room.fleet(room.password_from(source))
    room.says("a0-1", backup=OUT)
    room.says("a0-2", backup=OUT | {"text": SAYS}, backup_status=NAME, backup_delete=ERR)
    orders, calls = room.appliances.tell, room.appliances.calls

    def killed_at(command: str, when: str) -> None:
        orders("a0-1", command, "kill_parent", when=when, times=1)
        assert room.run("run", **LOUD).code == -signal.SIGKILL
        room.is_clean_of(*room.told())

    def cancelled_by(number: signal.Signals) -> None:
        orders("a0-1", "backup-retrieve", "hang", ignore_sigterm=True, times=1)
        before = len(calls("a0-1", "backup-retrieve"))
        run = room.start("run", **LOUD)
        until(lambda: len(calls("a0-1", "backup-retrieve")) > before, "a0-1 is retrieved")
        assert run.interrupt(number) == 130
        room.is_clean_of(*room.told())

    killed_at("backup", "after")
    cancelled_by(signal.SIGTERM)
    if EVERY:
        cancelled_by(signal.SIGINT)
        killed_at("backup-retrieve", "during")
    killed_at("backup-delete", "after")

    assert room.on_a_terminal("run") == 0
    room.run("check", **LOUD)
    room.is_clean_of(*room.told())
    if source == "sealed":
        # A run that is struck right before a start leaves a password that no node was told.
        assert room.unsealed()
        room.is_clean_of(*room.unsealed())


@nodes(2)
@deep
def test_a_run_cancelled_under_a_worker_leaves_no_password(room: Room) -> None:
    # Not from the environment: Prefect's worker writes its whole environment to a file below TMPDIR.
    source, secret = "file", NASTY
    folder = room.place / "operator"
    with (
        patch.dict(os.environ, room.environment | LOUD, clear=True),
        operators_server(room.engine, **LOUD) as server,
        worker_of(server, folder, room.appliances) as deployed,
    ):
        room.fleet(room.password_from(source, secret), folder=folder.name)
        room.says("a0-1", backup=OUT | {"text": SAYS}, backup_status=ERR)
        room.says("a0-2", backup=ERR)
        room.appliances.tell("a0-1", "backup-status", "in_progress", skip=1)
        room.appliances.tell("a0-2", "backup-retrieve", "hang", ignore_sigterm=True)
        run = deployed.run("backup-fleet/nightly").raise_for_status().json()["id"]
        until(lambda: bool(room.appliances.calls("a0-2", "backup-retrieve")), "a0-2 is retrieved")
        deployed.set_state(run, type="CANCELLING", name="Cancelling")
        assert deployed.ends_as("Cancelled", run)
        assert room.told() == [secret]
        room.is_clean_of(secret)
    room.is_clean_of(secret)


@nodes(1)
def test_the_credentials_of_a_place_in_a_block_copy_a_night_and_are_left_nowhere(room: Room) -> None:
    (room.beside / "s3").mkdir()
    with s3_server(room.beside / "s3") as s3:
        room.environment |= s3.environment(room.beside)
        room.fleet(room.password_from("sealed"), copies=[{"name": "offsite", **OFFSITE}])
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": s3.secret, "aws_session_token": TOKEN}
        room.block("a0-offsite", json.dumps(keys))
        night = room.run("run", **LOUD)
        assert night.code == 0, night.said
        assert [path.parent.name for path in s3.folder.glob("vault/a0-1/*/manifest.json")]
        room.is_clean_of(s3.secret, TOKEN)

        room.block("a0-offsite", json.dumps(keys | {"aws_secret_access_key": NO_SECRET}))
        night = room.run("run", **LOUD)
        assert night.code == 1, night.said
        assert "SignatureDoesNotMatch" in night.report
        room.is_clean_of(s3.secret, TOKEN, NO_SECRET)

        # Where there is no engine, it is said what to do.
        copy = room.run("copy", **LOUD)
        assert copy.code == 4
        assert "HINT: start the deployment that does the same, such as copy-vault/daily-copy" in copy.report


@nodes(1)
@deep
def test_a_worker_copies_with_the_credentials_in_a_block_and_leaves_them_nowhere(room: Room) -> None:
    (room.beside / "s3").mkdir()
    folder = room.place / "operator"
    with s3_server(room.beside / "s3") as s3:
        room.environment |= s3.environment(room.beside)
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": s3.secret, "aws_session_token": TOKEN}
        room.block("a0-offsite", json.dumps(keys))
        with (
            patch.dict(os.environ, room.environment | LOUD, clear=True),
            operators_server(room.engine, **LOUD) as server,
            worker_of(server, folder, room.appliances) as deployed,
        ):
            room.fleet(room.password_from("file"), folder=folder.name, copies=[{"name": "offsite", **OFFSITE}])
            stored = store(folder / "vault", PLAIN)
            for name in ("copy-vault/daily-copy", "verify-vault/nightly-verify"):
                run = deployed.run(name).raise_for_status().json()["id"]
                assert deployed.ends_as("Completed", run)
            assert (s3.folder / "vault" / stored.id / "manifest.json").exists()
            room.is_clean_of(s3.secret, TOKEN)
        room.is_clean_of(s3.secret, TOKEN)


# -- the search would find it ------------------------------------------------------------------------------------------

UNREDACTED = """
from a0backup.a0cli import text
text.redact = lambda text, secret: text
text.redact_both = lambda first, second, secret: (first, second)
from a0backup.cli.main import main
main()
"""
KINDS_OF_PLACES = [
    *("terminal/1-run.out", "terminal/1-run.err", "storage/", "state/a0backup/engine/prefect.db"),
    *(f"state/a0backup/engine/prefect.db, table {name}" for name in ("log", "events", "event_resources", "artifact")),
    *(f"state/a0backup/engine/prefect.db, table {name}" for name in ("flow_run_state", "task_run_state")),
    *("vault/a0-10/", "vault/a0-5/journal-backup.json"),
]
FORMS = ["repr", "JSON", "URL", "form", "hex of plain", "base64 of plain"]


@nodes(NODES)
def test_with_redaction_switched_off_the_search_finds_the_password_in_every_kind_of_place(room: Room) -> None:
    room.fleet(room.password_from("env", NASTY))
    order_faults(room)
    room.program = [sys.executable, "-c", UNREDACTED]
    assert room.run("run", **LOUD).code == 3
    with pytest.raises(AssertionError, match="hits"):
        room.is_clean_of(NASTY)
    hits = room.hits(NASTY)
    for place in KINDS_OF_PLACES:
        assert any(hit.place.startswith(f"place/{place}") for hit in hits), place
    for form in FORMS:
        assert any(hit.form.startswith(form) for hit in hits), f"{form}: {sorted({hit.form for hit in hits})}"


# -- the recovery key --------------------------------------------------------------------------------------------------

PASSPHRASE, WRONG = "Canary9 Pass'\"\\phrase%+é", "Canary6 Another phrase"


@nodes(1)
def test_the_passphrase_of_the_recovery_key_is_left_nowhere(room: Room) -> None:
    given, wrong = room.beside / "passphrase", room.beside / "wrong"
    for path, text in ((given, PASSPHRASE), (wrong, WRONG)):
        path.touch(0o600)
        path.write_text(f"{text}\n", encoding="utf-8")
    create = ("key", "create")
    assert room.on_a_terminal(*create, answers=[PASSPHRASE, WRONG], **LOUD) == 2
    assert room.on_a_terminal(*create, answers=[PASSPHRASE, PASSPHRASE], **LOUD) == 0
    (room.place / "elsewhere").mkdir()
    assert room.run(*create, "--passphrase-file", str(wrong), "elsewhere", **LOUD).code == 0
    room.fleet({"sealed_to": "recovery.pub.pem"})
    assert room.run("run", **LOUD).code == 0
    [artifact] = [f"a0-1/{path.parent.name}" for path in room.place.glob("vault/a0-1/*/manifest.json")]

    key = ("--key", "recovery.key.pem")

    def decrypt(file: str) -> list[str]:
        return ["decrypt", artifact, "-o", file]

    for command, passphrase, code in (
        (decrypt("by-hand.tar.gz"), PASSPHRASE, 0),
        (decrypt("by-file.tar.gz"), given, 0),
        (decrypt("none.tar.gz"), WRONG, 1),
        (decrypt("none.tar.gz"), wrong, 1),
        (["drill"], PASSPHRASE, 0),
        (["drill"], given, 0),
        (["drill"], WRONG, 1),
    ):
        if isinstance(passphrase, Path):
            ended = room.run(*command, *key, "--passphrase-file", str(passphrase), **LOUD).code
        else:
            ended = room.on_a_terminal(*command, *key, answers=[passphrase], **LOUD)
        assert ended == code, (command, passphrase)
    assert room.run("handoff", artifact, "-o", "handed", **LOUD).code == 0
    room.is_clean_of(PASSPHRASE, WRONG, *room.told())


# -- unusual output of a0cli -------------------------------------------------------------------------------------------


@nodes(2)
def test_a_password_split_by_a_colour_is_recognised(room: Room) -> None:
    room.fleet(room.password_from("env"))
    room.says("a0-1", backup=OUT | {"forms": ["colours"]})
    room.says("a0-2", backup_status=NAME | {"forms": ["colours"]})
    room.run("run")
    room.is_clean_of(PLAIN)


@nodes(1)
def test_a_shared_password_that_a_node_repeats_on_another_day_is_recognised(room: Room) -> None:
    room.fleet(room.password_from("env"))
    assert room.run("run").code == 0
    room.says("a0-1", backup_status=OUT | {"which": "of any run", "exit": 0})
    room.run("check")
    room.run("run")
    room.is_clean_of(PLAIN)


@nodes(1)
def test_the_sealed_password_of_the_previous_kind_is_recognised(room: Room) -> None:
    room.fleet(room.password_from("sealed"), kinds=["backup", "backup-sensitive"])
    room.says("a0-1", backup_sensitive=OUT | {"which": "the first"})
    room.run("run")
    assert len(room.told()) == 2
    room.is_clean_of(*room.told())


def test_the_key_of_the_health_endpoints_is_left_nowhere(tmp_path: Path, migrated_home: Path) -> None:
    with Room(tmp_path, 4, migrated_home, health=True) as room:
        key = Path(room.appliances.health["key_file"]).read_text().strip()
        room.fleet(room.password_from("env"))
        tell = room.appliances.tell
        tell("a0-1", "backup", "refuse", message=f"no: {key}\n")
        echo = {"reason": f"see {key}", "headers": {"Location": f"https://127.0.0.1/?k={key}"}, "body": key}
        tell("a0-2", "status/disk", "health_answer", status=302, **echo)
        tell("a0-3", "status/disk", "health_endless", what="headers")
        tell("a0-4", "status/disk", "unwell")
        night = room.run("run", **LOUD)
        assert night.code == 3, night.report
        for number, ending in enumerate(("failed", "stored", "stored", "failed"), 1):
            assert re.search(rf"^a0-{number} +{ending}", night.report, re.M), night.report
        assert room.run("check", **LOUD).code == 3
        room.is_clean_of(key, f"api_keys_health:{key}")
        assert search([key], [room.beside])
