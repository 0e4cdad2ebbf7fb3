"""The `a0backup` command from the outside: its process, its output and its exit code."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from a0backup.fleet.load import load_fleet
from a0backup.passwords import recovery_keys
from simulator.fleet import SimulatedFleet
from tests.support.command import A0BACKUP, PASSWORD, a0backup
from tests.support.login import reaching
from tests.support.paths import REPOSITORY
from tests.support.patience import patience
from tests.support.stored import PASSPHRASE, at_terminal


@pytest.fixture(scope="module")
def stored(engine_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet.yaml whose vault holds one artifact of each of two nodes."""
    place = tmp_path_factory.mktemp("stored")
    with SimulatedFleet(place / "sim", nodes=2) as appliances:
        fleet_yaml = appliances.fleet_yaml(place / "fleet.yaml")
        ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
        assert ended.returncode == 0, ended.stderr
    return fleet_yaml


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Path:
    """A copy of that fleet.yaml and its vault, which a test may damage."""
    shutil.copytree(stored.parent / "vault", tmp_path / "vault")
    shutil.copy(stored.with_name(".fleet.yaml.vault"), tmp_path)
    return Path(shutil.copy(stored, tmp_path / "fleet.yaml"))


def artifacts(fleet_yaml: Path) -> list[Path]:
    return sorted(fleet_yaml.parent.glob("vault/*/*/backup.tar.gz.enc"))


# -- without an engine ------------------------------------------------------------------------------------------------


def test_init_writes_a_fleet_file_that_loads(tmp_path: Path) -> None:
    assert a0backup("init", cwd=tmp_path).returncode == 0
    assert a0backup("vault", "use", cwd=tmp_path).returncode == 0
    listed = a0backup("list", "--json", cwd=tmp_path)
    assert (listed.returncode, json.loads(listed.stdout)) == (0, [])


@pytest.mark.parametrize("command", ["list", "verify", "status", "drill"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_nothing_is_read_from_a_vault_that_is_not_there(copied: Path, command: str, left: str) -> None:
    shutil.rmtree(copied.parent / "vault")
    if left == "an empty folder":
        (copied.parent / "vault").mkdir()
    ended = a0backup(command, "--fleet", copied)
    assert ended.returncode == 1
    assert f"error: the vault {copied.parent / 'vault'}" in ended.stderr
    assert "a0backup vault use" in ended.stderr


@pytest.mark.engine
def test_a_run_and_a_check_refuse_a_vault_that_is_not_there(copied: Path, engine_server: str) -> None:
    shutil.rmtree(copied.parent / "vault")
    for command in ("check", "run"):
        ended = a0backup(command, "--fleet", copied, api=engine_server)
        assert ended.returncode == 1
        assert "does not exist" in ended.stdout + ended.stderr
        assert not (copied.parent / "vault").exists()


def test_init_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("mine")
    ended = a0backup("init", cwd=tmp_path)
    assert ended.returncode == 2
    assert (tmp_path / "fleet.yaml").read_text() == "mine"


def passphrase_file(place: Path, passphrase: str = PASSPHRASE) -> Path:
    path = place / "passphrase"
    path.write_text(f"{passphrase}\n")
    path.chmod(0o600)
    return path


def test_key_create_makes_the_key_pair_that_the_fleet_file_names(tmp_path: Path) -> None:
    ended = a0backup("key", "create", "--passphrase-file", passphrase_file(tmp_path), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    public, private = tmp_path / "recovery.pub.pem", tmp_path / "recovery.key.pem"
    assert f"fingerprint {recovery_keys.load_private(private, PASSPHRASE).fingerprint}" in ended.stdout
    assert "TAKE IT OFF THIS MACHINE" in ended.stdout
    assert PASSPHRASE not in ended.stdout + ended.stderr
    a0backup("init", cwd=tmp_path)
    assert load_fleet(tmp_path / "fleet.yaml").password.sealed_to == (public,)


def test_the_command_that_key_create_suggests_shows_the_printed_fingerprint(tmp_path: Path) -> None:
    said = a0backup("key", "create", "--passphrase-file", passphrase_file(tmp_path), cwd=tmp_path).stdout
    [fingerprint] = re.findall(r"^fingerprint ([0-9a-f]{64})$", said, re.MULTILINE)
    [command] = re.findall(r"openssl pkey .*", said)
    command = command.replace("-pubout", "-passin file:passphrase -pubout")
    shown = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout
    assert shown.split()[0] == fingerprint


@pytest.mark.parametrize("there", ["recovery.pub.pem", "recovery.key.pem"])
def test_key_create_never_overwrites_a_key(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    ended = a0backup("key", "create", "--passphrase-file", passphrase_file(tmp_path), cwd=tmp_path)
    assert ended.returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {there, "passphrase"}
    assert (tmp_path / there).read_text() == "mine"


def test_a_passphrase_that_is_too_short_creates_no_key(tmp_path: Path) -> None:
    ended = a0backup("key", "create", "--passphrase-file", passphrase_file(tmp_path, "short1"), cwd=tmp_path)
    assert ended.returncode == 1
    assert "12 are the least" in ended.stderr
    assert "short1" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["passphrase"]


@pytest.mark.parametrize(
    ("answers", "code"), [([PASSPHRASE, PASSPHRASE], 0), ([PASSPHRASE, "Another Passphrase"], 2), ([""], 2)]
)
def test_the_passphrase_is_asked_for_twice_and_not_shown(tmp_path: Path, answers: list[str], code: int) -> None:
    ended, shown = at_terminal("key", "create", cwd=tmp_path, answers=answers)
    assert ended == code, shown
    assert "Passphrase" not in shown
    assert (tmp_path / "recovery.key.pem").exists() == (code == 0)


def test_without_a_terminal_a_key_needs_a_passphrase_file(tmp_path: Path) -> None:
    ended = a0backup("key", "create", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--passphrase-file" in ended.stderr


def test_schema_is_a_json_schema() -> None:
    schema = json.loads(a0backup("schema").stdout)
    assert set(schema["required"]) >= {"nodes", "password"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vault: ./v\nnodes:\n  - {name: -x, host: h}\n", ["line 3", "nodes[0].name"]),
        ("vault: [", ["line "]),
        ("", ["fleet.yaml"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "list", "status"])
def test_an_invalid_fleet_file_ends_every_command_with_2_and_the_position(
    tmp_path: Path, command: str, text: str, words: list[str]
) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    ended = a0backup(command, cwd=tmp_path)
    assert ended.returncode == 2
    assert "HINT" in ended.stderr
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.stderr


def test_an_unknown_node_ends_with_2_before_anything_is_started(tmp_path: Path) -> None:
    a0backup("init", cwd=tmp_path)
    ended = a0backup("run", "a0-99", cwd=tmp_path)
    assert ended.returncode == 2
    assert "a0-99" in ended.stderr
    assert "engine" not in ended.stderr


@pytest.mark.parametrize("module", ["a0backup.cli.main"])
def test_the_command_does_not_import_the_engine(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(name.partition('.')[0] == 'prefect' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_names_every_command_and_the_exit_codes() -> None:
    text = a0backup("--help").stdout
    for word in [
        "init",
        "schema",
        "check",
        "run",
        "status",
        "list",
        "show",
        "verify",
        "drill",
        "decrypt",
        "handoff",
        "demo",
    ]:
        assert f"  {word} " in text
    assert "Exit codes" in text


def test_help_says_in_one_whole_sentence_what_each_command_does() -> None:
    listed = a0backup("--help").stdout.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert listed
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


# -- on a vault -------------------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_list_prints_whole_ids_even_on_a_narrow_terminal(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = a0backup("list", "--fleet", stored).stdout
    for artifact in artifacts(stored):
        assert f"{artifact.parent.parent.name}/{artifact.parent.name}  " in text


@pytest.mark.engine
def test_list_as_json_is_an_array_of_the_manifests(stored: Path) -> None:
    expected = [json.loads((path.parent / "manifest.json").read_text()) for path in artifacts(stored)]
    assert json.loads(a0backup("list", "--fleet", stored, "--json").stdout) == expected


@pytest.mark.engine
def test_the_command_that_show_prints_opens_the_artifact(stored: Path) -> None:
    artifact = artifacts(stored)[0]
    shown = a0backup("show", "--fleet", stored, f"{artifact.parent.parent.name}/{artifact.parent.name}").stdout
    [command] = [line.strip() for line in shown.splitlines() if "openssl enc" in line]
    command = command.replace("-nosalt", f"-nosalt -k {PASSWORD}")
    opened = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert "users.bson" in opened.stdout


@pytest.mark.engine
def test_verify_succeeds_on_a_good_vault(stored: Path) -> None:
    ended = a0backup("verify", "--all", "--fleet", stored)
    assert (ended.returncode, ended.stdout.count("  ok")) == (0, 2)
    ended = a0backup("verify", "--fleet", stored)
    assert (ended.returncode, ended.stdout) == (0, "vault: 2 artifacts read, all whole\n2 read: 2 whole\n")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("spoil", "seen_by_list"),
    [
        (flip, False),
        (lambda path: path.unlink(), True),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), True),
        (lambda path: path.with_name("manifest.json").write_text("{"), True),
    ],
    ids=["flipped", "missing", "truncated", "manifest torn"],
)
def test_a_damaged_artifact_ends_verify_with_4_and_is_named(copied: Path, spoil, seen_by_list: bool) -> None:
    artifact = artifacts(copied)[0]
    spoil(artifact)
    ended = a0backup("verify", "--all", "--fleet", copied)
    assert ended.returncode == 4
    assert f"{artifact.parent.parent.name}/{artifact.parent.name}  DAMAGED" in ended.stdout
    assert ended.stdout.count("  ok") == 1
    assert a0backup("list", "--fleet", copied).returncode == (4 if seen_by_list else 0)


@pytest.mark.engine
@pytest.mark.parametrize("artifact_id", ["a0-1/20200101T000000Z-backup", "../../etc/passwd", "a0-1/.."])
def test_an_unknown_id_ends_with_2(stored: Path, artifact_id: str) -> None:
    for command in ("show", "verify"):
        assert a0backup(command, "--fleet", stored, artifact_id).returncode == 2


@pytest.mark.engine
def test_status_shows_the_last_artifact_and_a_free_lock(stored: Path) -> None:
    rows = json.loads(a0backup("status", "--fleet", stored, "--json").stdout)
    assert [(row["node"], row["journal"], row["holder"]) for row in rows] == [
        ("a0-1", None, None),
        ("a0-2", None, None),
    ]
    assert rows[0]["last"].startswith("a0-1/")


def test_status_shows_an_unconfirmed_deletion(copied: Path) -> None:
    (copied.parent / "vault" / "a0-1" / "deleting-backup.json").write_text("{}")
    rows = json.loads(a0backup("status", "--fleet", copied, "--json").stdout)
    assert rows[0]["journal"] == "a deletion was sent and is not confirmed; the next start waits for it first"
    assert rows[1]["journal"] is None


# -- on an engine -----------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.slow
def test_seventeen_of_twenty_nodes_are_stored_although_three_fail(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=20) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml", a0cli={"call_timeout": "3s"}, max_parallel=20)
        appliances.tell("a0-3", "backup-status", "wrong_md5")
        appliances.tell("a0-7", None, "unreachable")
        appliances.tell("a0-11", "backup-status", "hang", ignore_sigterm=True)
        ended = a0backup("run", "--fleet", fleet_yaml, "--json", api=engine_server)
        assert ended.returncode == 3, ended.stderr
        outcomes = {outcome["node"]: outcome for outcome in json.loads(ended.stdout)["backups"]}
        bad = {name: outcome for name, outcome in outcomes.items() if not outcome["ok"]}
        assert len(outcomes) == 20
        assert {name: outcome["outcome"] for name, outcome in bad.items()} == {
            "a0-3": "failed",
            "a0-7": "unreachable",
            "a0-11": "failed",
        }
        assert "md5 mismatch in 3 attempts" in bad["a0-3"]["reason"]
        assert "no end within 3 s" in bad["a0-11"]["reason"]
        assert len(artifacts(fleet_yaml)) == 17
        for call in appliances.calls("a0-11"):
            assert not Path(f"/proc/{call['pid']}").exists()


@pytest.mark.engine
@pytest.mark.parametrize("output", ["/dev/full", "a closed pipe"])
def test_the_exit_code_is_that_of_the_nodes_although_the_report_cannot_be_written(
    engine_server: str, tmp_path: Path, output: str
) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml")
        appliances.tell("a0-2", None, "unreachable")
        environment = reaching({**os.environ, "A0_BACKUP_PASSWORD": PASSWORD, "PREFECT_API_URL": engine_server})
        if output == "a closed pipe":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(output, os.O_WRONLY)
        with os.fdopen(writer, "wb") as stdout:
            ended = subprocess.run(
                [str(A0BACKUP), "run", "--fleet", str(fleet_yaml)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                timeout=patience(60),
            )
    assert ended.returncode == 3, ended.stderr
    assert "standard output cannot be written" in ended.stderr
    assert "2 node backups: 1 stored, 1 failed (1 unreachable)" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_list_that_cannot_be_written_fails(stored: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [str(A0BACKUP), "list", "--fleet", str(stored)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.engine
def test_a_dry_run_says_what_a_run_would_do_and_does_nothing(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml")
        appliances.put("a0-1", password="somebody's")
        ended = a0backup("run", "--dry-run", "--fleet", fleet_yaml, "--json", api=engine_server)
        assert ended.returncode == 0, ended.stderr
        first, second = json.loads(ended.stdout)["nodes"]
        assert "retrieve, verify and store it, delete it on the node, then start a backup" in first["would"]
        assert second["would"].startswith("start a backup")
        assert not (tmp_path / "vault").exists()
        assert {call["command"] for call in appliances.calls()} == {"update-commands", "ping", "backup-status"}


@pytest.mark.engine
def test_existing_on_the_command_line_applies_to_this_run(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml")
        held = appliances.put("a0-1", password="somebody's")
        ended = a0backup("run", "--fleet", fleet_yaml, "--existing", "fail", api=engine_server)
        assert ended.returncode == 1
        assert "did not start" in ended.stdout
        assert appliances.holds("a0-1")["md5"] == held["md5"]
        assert a0backup("run", "--fleet", fleet_yaml, api=engine_server).returncode == 0
        modes = [
            m["encryption"]["password"]["mode"]
            for m in json.loads(a0backup("list", "--fleet", fleet_yaml, "--json").stdout)
        ]
        assert sorted(modes) == ["shared", "unknown"]


@pytest.mark.engine
def test_a_backup_that_never_verifies_is_replaced_on_request(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml")
        appliances.tell("a0-1", "backup-retrieve", "flip", times=6)
        assert a0backup("run", "--fleet", fleet_yaml, api=engine_server).returncode == 1
        assert appliances.holds("a0-1") is not None
        ended = a0backup("run", "--fleet", fleet_yaml, "--existing", "replace", api=engine_server)
        assert ended.returncode == 0, ended.stdout
        assert len(artifacts(fleet_yaml)) == 1
        assert len(appliances.calls("a0-1", "backup")) == 2


@pytest.mark.engine
def test_a_backup_is_replaced_at_most_once_per_run(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml", retrieve_attempts=2)
        appliances.tell("a0-1", "backup-retrieve", "flip")
        ended = a0backup("run", "--fleet", fleet_yaml, "--existing", "replace", api=engine_server)
        assert ended.returncode == 1
        assert len(appliances.calls("a0-1", "backup")) == 2
        assert len(appliances.calls("a0-1", "backup-retrieve")) == 4
        assert appliances.holds("a0-1") is not None


WORDS = {
    "json": {
        "commands": "ping\nbackup\nbackup-status\nbackup-retrieve\nbackup-delete\n",
        "no_key": {"stdout": '{"error":"Unauthorized"}', "exit": 1},
        "updated": "",
        "pong": '{"message": "PONG"}',
        "exists": '{"message":"Backup already exists"}',
        "started": '{"message":"Backup started"}\n',
        "absent": '{"message":"No backup found"}',
        "running": '{"message":"Backup is being created"}',
        "found": '{\n "message": "Backup found",\n "arguments": {\n  "name": "{name}"\n  "md5": "{md5}"\n }\n}\n',
        "retrieved": '{"message":"Backup retrieved"}',
        "deleted": '{"message":"OK"}',
    },
    "plain, in colour, all of it on stderr": {
        "commands": {"stderr": "Usage: a0cli [options] <command>\n\n  ping\n  backup <password>\n"},
        "no_key": {"stderr": "error: unknown command", "exit": 0},
        "updated": {"stderr": "\x1b[32mcommands updated\x1b[0m\n"},
        "pong": {"stderr": 'a0cli 2.1\n\x1b[32m{"message":"PONG"}\x1b[0m\n'},
        "exists": {"stderr": "error: a backup exists", "exit": 0},
        "started": {"stderr": "", "exit": 0},
        "absent": {"stderr": "\x1b[33mThere is no backup on this node.\x1b[0m\n"},
        "running": {"stderr": "Backup in progress...\n"},
        "found": {"stderr": 'a0cli 2.1\n{"message":"Backup found","arguments":{"md5":"{md5}","name":"{name}"}}\nbye\n'},
        "retrieved": {"stderr": "100 %", "exit": 3},
        "deleted": {"stderr": "error: nothing to report", "exit": 1},
    },
}


def other_fleet(place: Path, words: dict[str, object]) -> Path:
    """Write the fleet.yaml of one node that uses another a0cli than the simulator's."""
    (place / "node").mkdir()
    (place / "words.json").write_text(json.dumps(words))
    program = place / "a0cli"
    program.write_text(f"#!{sys.executable} -IS\n{(REPOSITORY / 'tests' / 'support' / 'other_a0cli.py').read_text()}")
    program.chmod(0o700)
    (place / "keys").mkdir()
    (place / "keys" / "appliance.key").write_text("key")
    fleet_yaml = place / "fleet.yaml"
    fleet_yaml.write_text(
        "vault: ./vault\n"
        "a0cli: {path: ./a0cli, key_dir: ./keys, call_timeout: 5s}\n"
        "password: {env: A0_BACKUP_PASSWORD}\n"
        "polling: {interval: 1s, deadline: 30s}\n"
        "nodes: [{name: a0-1, host: 127.0.0.1, port: 1}]\n"
    )
    return fleet_yaml


@pytest.mark.engine
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_an_a0cli_with_its_own_wording_works_unchanged(
    engine_server: str, tmp_path: Path, words: dict[str, object]
) -> None:
    fleet_yaml = other_fleet(tmp_path, words)
    ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(artifacts(fleet_yaml)) == 1
    assert not (tmp_path / "node" / "started").exists()


@pytest.mark.engine
def test_three_kinds_are_sealed_and_the_recovery_key_alone_opens_them(engine_server: str, tmp_path: Path) -> None:
    passphrase = ("--passphrase-file", passphrase_file(tmp_path))
    assert a0backup("key", "create", *passphrase, cwd=tmp_path).returncode == 0
    offline = tmp_path / "offline" / "recovery.key.pem"
    offline.parent.mkdir()
    (tmp_path / "recovery.key.pem").rename(offline)
    with SimulatedFleet(tmp_path / "sim", nodes=1) as appliances:
        fleet_yaml = appliances.fleet_yaml(
            tmp_path / "fleet.yaml",
            password={"sealed_to": "recovery.pub.pem"},
            kinds=["backup", "backup-sensitive", {"user-export": ["_id", "email"]}],
        )
        checked = a0backup("check", "--fleet", fleet_yaml, api=engine_server)
        ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
        exported = appliances.calls("a0-1", "user-export")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert recovery_keys.load_public(tmp_path / "recovery.pub.pem").fingerprint in checked.stdout
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "warning" not in checked.stdout + ended.stdout
    assert [call["args"][-1] for call in exported] == ["_id,email"]

    manifests = json.loads(a0backup("list", "--fleet", fleet_yaml, "--json").stdout)
    assert {manifest["kind"] for manifest in manifests} == {"backup", "backup-sensitive", "user-export"}
    for manifest in manifests:
        password = manifest["encryption"]["password"]
        assert (password["mode"], password["confirmed"], len(password["sealed"])) == ("sealed", True, 1)
        assert manifest["verified"]["level"] == "contents"
    boxes = {manifest["encryption"]["password"]["sealed"][0]["box"] for manifest in manifests}
    assert len(boxes) == 3
    drilled = a0backup("drill", "--vault", tmp_path / "vault", "--key", offline, *passphrase)
    assert drilled.returncode == 0, drilled.stdout + drilled.stderr
    assert drilled.stdout.count("  ok: ") == 3

    for manifest in manifests:
        plain = tmp_path / f"{manifest['kind']}.tar.gz"
        opened = a0backup(
            *("decrypt", manifest["id"], "-o", plain, "--fleet", fleet_yaml, "--key", offline, *passphrase)
        )
        assert opened.returncode == 0, opened.stderr
        listed = subprocess.run(["tar", "tzf", plain], capture_output=True, text=True, check=True).stdout
        assert len(listed.splitlines()) == manifest["verified"]["members"]


@pytest.mark.engine
def test_a_run_and_a_check_warn_once_about_a_shared_password(stored: Path, engine_server: str) -> None:
    with SimulatedFleet(stored.parent / "again", nodes=2) as appliances:
        fleet_yaml = appliances.fleet_yaml(stored.parent / "again.yaml", vault="./again-vault")
        for command in ("check", "run"):
            ended = a0backup(command, "--fleet", fleet_yaml, api=engine_server)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            assert (ended.stdout + ended.stderr).count("one keystream") == 1
        said = json.loads(a0backup("run", "--fleet", fleet_yaml, "--json", api=engine_server).stdout)
        assert ["one keystream" in warning["text"] for warning in said["warnings"]].count(True) == 1


@pytest.mark.engine
def test_a_run_names_the_node_of_which_it_stored_only_one_half(engine_server: str, tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as appliances:
        both = ["backup", "backup-sensitive"]
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml", kinds=both)
        appliances.tell("a0-2", "backup-sensitive", "refuse")
        ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
    assert ended.returncode == 3
    [half] = [line for line in ended.stdout.splitlines() if "cannot be fully recovered" in line]
    assert half.startswith("warning: a0-2: ")


@pytest.mark.engine
def test_a_backup_identical_to_the_one_of_the_night_before_is_its_own_artifact(
    engine_server: str, tmp_path: Path
) -> None:
    fleet_yaml = other_fleet(tmp_path, WORDS["json"] | {"content": "the same every night"})
    for nights in (1, 2):
        ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert len(artifacts(fleet_yaml)) == nights


def test_the_printed_next_steps_lead_to_a_fleet_file_that_finds_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleets").mkdir()
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("twelve or more\n")
    passphrase.chmod(0o600)
    printed = a0backup("init", "fleets/prod.yaml").stdout
    command = re.search(r"`a0backup (key create[^`]*)`", printed)
    assert command
    made = a0backup(*shlex.split(command[1]), "--passphrase-file", str(passphrase))
    assert made.returncode == 0, made.stdout
    [public] = load_fleet(tmp_path / "fleets" / "prod.yaml").password.sealed_to or ()
    assert public.exists(), (printed, sorted(tmp_path.rglob("*.pem")))


@pytest.mark.engine
def test_a_quiet_run_prints_nothing_if_all_is_well_and_the_failures_otherwise(
    engine_server: str, tmp_path: Path
) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=2) as appliances:
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml")
        ended = a0backup("run", "--quiet", "--fleet", fleet_yaml, api=engine_server)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        appliances.tell("a0-2", None, "unreachable")
        ended = a0backup("run", "-q", "--fleet", fleet_yaml, api=engine_server)
        assert ended.returncode == 3
        assert ended.stdout.startswith("2 node backups: 1 stored, 1 failed (1 unreachable)\n")
        assert ended.stderr == ""


@pytest.mark.engine
def test_a_quiet_command_names_a_place_that_fails_although_enough_others_hold_the_artifact(
    engine_server: str, tmp_path: Path
) -> None:
    with SimulatedFleet(tmp_path / "sim", nodes=1) as appliances:
        copies = [{"name": "nas", "url": "nas"}, {"name": "far", "url": "far"}]
        fleet_yaml = appliances.fleet_yaml(tmp_path / "fleet.yaml", copies=copies)
        for command in ("run", "check"):
            ended = a0backup(command, "--quiet", "--fleet", fleet_yaml, api=engine_server)
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        shutil.rmtree(tmp_path / "nas")
        (tmp_path / "nas").write_text("not a folder")
        ended = a0backup("run", "--quiet", "--fleet", fleet_yaml, api=engine_server)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "  not copied to nas: " in ended.stdout
        ended = a0backup("check", "--quiet", "--fleet", fleet_yaml, api=engine_server)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.search("^warning: nas: .*; enough other places can be used", ended.stdout, re.MULTILINE)


# -- the engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "variable"),
    [
        ("prefect.toml", "[broken", ""),
        ("pyproject.toml", "[tool.prefect\n", ""),
        ("", "", "PREFECT_SERVER_API_PORT"),
    ],
)
def test_settings_that_prefect_cannot_read_are_an_error_that_says_so(
    copied: Path, name: str, content: str, variable: str
) -> None:
    if name:
        copied.with_name(name).write_text(content)
    environment = {**os.environ, "A0_BACKUP_PASSWORD": PASSWORD, **({variable: "many"} if variable else {})}
    ended = subprocess.run(
        [str(A0BACKUP), "run"],
        cwd=copied.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert ended.returncode == 1, ended.stderr
    assert "error: Prefect's settings cannot be read" in ended.stderr
    assert "HINT: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_commands_that_need_no_home_work_without_one_and_the_others_say_what_to_set(copied: Path) -> None:
    def homeless(*arguments: str) -> subprocess.CompletedProcess[str]:
        # No entry in passwd either.
        return subprocess.run(
            ["unshare", "--user", "--map-user=54321", str(A0BACKUP), *arguments],
            cwd=copied.parent,
            env={"PATH": os.environ["PATH"], "A0_BACKUP_PASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(60),
        )

    if homeless("--version").returncode != 0:
        pytest.skip("user namespaces are not available")
    assert homeless("list").returncode == 0
    ended = homeless("run")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "HOME" in ended.stderr
