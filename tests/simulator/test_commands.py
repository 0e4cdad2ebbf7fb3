"""What a0cli prints and what a node refuses, as on the vendor's page."""

import json
import re
import stat
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import patience, until

if TYPE_CHECKING:
    from tests.simulator.conftest import Desk


def test_ping_answers_pong_as_documented(desk: "Desk") -> None:
    assert desk.run("ping").stdout.strip() == '{"message": "PONG"}'


def test_a_started_backup_is_answered_in_plain_text_without_a_newline(desk: "Desk") -> None:
    assert desk.run("backup", "Passw0rd").stdout == "Backup in progress"


def test_a_found_backup_is_one_line_of_json_without_a_newline(desk: "Desk") -> None:
    held = desk.put()
    assert re.fullmatch(r"\d\d-\d\d-\d{4}-\d\d-\d\d-\d\d\.tar\.gz", held["name"])
    expected = f'{{"message":"Backup found","arguments":{{"name":"{held["name"]}","md5":"{held["md5"]}"}}}}'
    assert desk.run("backup-status").stdout == expected


def test_a_backup_is_started_shown_retrieved_and_deleted(desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=1)
    assert desk.status() == {"message": "No backup found"}
    assert desk.run("backup", "Passw0rd").returncode == 0
    assert desk.status() == {"message": "Backup in progress"}
    until(lambda: desk.status()["message"] == "Backup found")
    assert desk.run("backup-retrieve").returncode == 0
    held = desk.holds()
    assert held
    assert desk.retrieved.stat().st_size == held["size"]
    assert desk.run("backup-delete").returncode == 0
    assert desk.status() == {"message": "No backup found"}
    assert desk.holds() is None


def test_the_password_can_also_be_an_option(desk: "Desk") -> None:
    desk.run("backup", "--password", "Passw0rd")
    until(desk.holds)
    as_option = desk.holds()
    desk.fleet.remove(desk.name)
    assert as_option
    assert desk.put()["password"] == as_option["password"]


@pytest.mark.parametrize(
    ("kind", "args", "found", "file"),
    [
        ("backup-sensitive", ["P"], "Sensitive backup found", "backup-sensitive-retrieve.tar.gz.enc"),
        ("user-export", ["P", "_id,email"], "User export found", "user_export.tar.gz.enc"),
    ],
)
def test_the_other_kinds_have_their_own_slots(desk: "Desk", kind: str, args: list[str], found: str, file: str) -> None:
    desk.put()
    assert desk.run(kind, *args).returncode == 0
    until(lambda: json.loads(desk.run(f"{kind}-status").stdout)["message"] == found)
    assert desk.run(f"{kind}-retrieve").returncode == 0
    assert (desk.directory / file).stat().st_size > 0
    assert desk.run(f"{kind}-delete").returncode == 0
    assert desk.holds(kind) is None
    assert desk.holds() is not None


@pytest.mark.parametrize(
    ("kind", "begun", "found", "absent"),
    [
        ("backup", "Backup in progress", "Backup found", "No backup found"),
        ("backup-sensitive", "Sensitive backup in progress", "Sensitive backup found", "No sensitive backup found"),
        ("user-export", "User export in progress", "User export found", "No user export found"),
    ],
)
def test_each_kind_has_its_own_messages(desk: "Desk", kind: str, begun: str, found: str, absent: str) -> None:
    def status() -> str:
        return str(json.loads(desk.run(f"{kind}-status").stdout)["message"])

    desk.tell(kind, "duration", seconds=1)
    assert status() == absent
    assert desk.run(kind, "P", *(["_id"] if kind == "user-export" else [])).stdout == begun
    assert status() == begun
    until(lambda: status() == found)
    assert desk.run(f"{kind}-delete").returncode == 0
    assert status() == absent


@pytest.mark.parametrize("style", [["P"], ["--password", "P"]])
def test_an_export_accepts_only_the_documented_fields(desk: "Desk", style: list[str]) -> None:
    documented = "_id,email,email_verified,phone_number,phone_verified,name,user_id,lastLogin,updated_at,__tenant"
    for fields in ("mail", "_id,", "", "_id email"):
        refused = desk.run("user-export", *style, fields)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"fields: {documented}" in refused.stderr
    without = desk.run("user-export", *style)
    assert without.returncode == 1
    assert "usage: user-export <password> <fields>" in without.stderr
    assert desk.run("user-export", *style, documented).returncode == 0
    until(lambda: desk.holds("user-export"))
    assert [call["outcome"] for call in desk.calls("user-export")] == ["refused"] * 5 + ["done"]
    assert desk.calls("user-export")[-1]["args"][-1] == documented


def test_a_build_before_the_split_has_no_commands_for_a_sensitive_backup(old_desk: "Desk", desk: "Desk") -> None:
    assert "backup-sensitive" in desk.run().stdout
    assert "backup-sensitive" not in old_desk.run().stdout
    assert "user-export <password> <fields>" in old_desk.run().stdout
    for command in (["backup-sensitive", "P"], ["backup-sensitive-status"]):
        refused = old_desk.run(*command)
        assert refused.returncode == 1
        assert f"unknown command `{command[0]}'" in refused.stderr
    # The node itself also refuses them from an a0cli that learned its commands elsewhere.
    (old_desk.directory / "a0cli-commands.json").write_bytes((desk.directory / "a0cli-commands.json").read_bytes())
    refused = old_desk.run("backup-sensitive", "P")
    assert (refused.returncode, json.loads(refused.stderr)["message"]) == (1, "unknown command backup-sensitive")
    assert old_desk.run("backup", "P").returncode == 0
    until(old_desk.holds)


def test_a_second_backup_is_refused_and_recorded_while_one_is_in_progress_or_exists(desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=1, times=1)
    desk.run("backup", "Passw0rd")
    assert "already in progress" in desk.run("backup", "Passw0rd").stderr
    until(desk.holds)
    first = desk.holds()
    refused = desk.run("backup", "Passw0rd")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "already exists" in refused.stderr
    assert desk.holds() == first
    assert [call["outcome"] for call in desk.calls("backup")] == ["done", "refused", "refused"]


def test_a_backup_in_progress_is_neither_deleted_nor_retrieved(desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=60)
    desk.run("backup", "Passw0rd")
    assert desk.run("backup-delete").returncode == 1
    assert desk.run("backup-retrieve").returncode == 1
    assert not desk.retrieved.exists()


def test_retrieving_or_deleting_a_missing_backup_is_refused(desk: "Desk") -> None:
    for command in ("backup-retrieve", "backup-delete"):
        refused = desk.run(command)
        assert (refused.returncode, refused.stderr) == (1, '{"message":"No backup found"}\n')
    assert not desk.retrieved.exists()


def test_a_remote_command_is_unknown_before_update_commands(bare_desk: "Desk") -> None:
    bare_desk.link_keys()
    refused = bare_desk.run("backup-status")
    assert refused.returncode == 1
    assert "unknown command `backup-status'" in refused.stderr
    assert bare_desk.calls() == []


def test_a_remote_command_is_unknown_without_the_key_pair(desk: "Desk") -> None:
    (desk.directory / "a0cli-key").unlink()
    assert "unknown command `ping'" in desk.run("ping").stderr
    assert desk.calls("ping") == []


def test_update_commands_is_refused_without_the_key_pair(bare_desk: "Desk") -> None:
    refused = bare_desk.run("update-commands")
    assert refused.returncode == 1
    assert "no key" in refused.stderr


def test_a_key_that_the_node_does_not_know_is_refused(bare_desk: "Desk") -> None:
    assert bare_desk.run("create-key").stdout.startswith("ssh-rsa AAAAB3NzaC1yc2E")
    refused = bare_desk.run("update-commands")
    assert refused.returncode == 1
    assert "not known to the node" in refused.stderr


def test_a_key_pair_is_created_shown_and_deleted_in_the_current_directory(bare_desk: "Desk") -> None:
    created = bare_desk.run("create-key").stdout
    key = bare_desk.directory / "a0cli-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert bare_desk.run("show-key").stdout == created
    assert bare_desk.run("create-key").returncode == 1
    assert bare_desk.run("delete-key").returncode == 0
    assert list(bare_desk.directory.iterdir()) == []
    assert bare_desk.run("show-key").returncode == 1


def test_a_bare_call_lists_the_remote_commands_only_after_update_commands(bare_desk: "Desk") -> None:
    bare_desk.link_keys()
    before = bare_desk.run().stdout
    assert "update-commands" in before
    assert "backup-status" not in before
    bare_desk.run("update-commands")
    after = bare_desk.run().stdout
    for command in ("backup <password>", "backup-sensitive <password>", "user-export <password> <fields>", "ping"):
        assert command in after
    assert bare_desk.run("-h").stdout == after


@pytest.mark.parametrize("args", [["backup"], ["backup", "a", "b"], ["backup-status", "x"], ["nslookup"]])
def test_a_wrong_number_of_arguments_is_refused(desk: "Desk", args: list[str]) -> None:
    refused = desk.run(*args)
    assert refused.returncode == 1
    assert "usage" in refused.stderr


@pytest.mark.parametrize(
    "args",
    [["set-as-backup", "/dev/sdb", "true"], ["re-ip", "10.0.0.1"], ["nslookup", "localhost"], ["test-port", "h", "1"]],
)
def test_the_other_documented_commands_exist(desk: "Desk", args: list[str]) -> None:
    assert desk.run(*args).returncode == 0


def test_an_unknown_option_and_a_missing_target_are_refused(desk: "Desk") -> None:
    assert "unknown option" in desk.run("--json", "ping").stderr
    assert desk.run("-p", "0x7", "ping").returncode == 1
    assert desk.run("-t", "", "ping").returncode == 1


def test_the_record_of_a_call_says_what_when_and_by_whom_but_not_the_password(desk: "Desk") -> None:
    with desk.start("backup", "s3cret-word") as process:
        process.communicate(timeout=patience(20))
    call = desk.calls("backup")[0]
    assert call["pid"] == process.pid
    assert call["cwd"] == str(desk.directory)
    assert call["args"] == [call["password"]]
    assert re.fullmatch("sha256:[0-9a-f]{12}", call["password"])
    assert (call["outcome"], call["exit"], call["faults"]) == ("done", 0, [])
    assert len(call["key"]) == 16
    assert "s3cret-word" not in (desk.fleet.state / "calls.jsonl").read_text()
    numbers = [call["seq"] for call in desk.fleet.calls()]
    assert numbers == sorted(set(numbers))


def test_the_record_of_a_retrieval_says_how_many_bytes_were_sent(desk: "Desk") -> None:
    held = desk.put()
    desk.run("backup-retrieve")
    assert [(call["outcome"], call["bytes"]) for call in desk.calls("backup-retrieve")] == [("done", held["size"])]
