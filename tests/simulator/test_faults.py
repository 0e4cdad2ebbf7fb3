"""Each fault of the table, as seen through a0cli."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simulator.faults import FAULTS
from tests.support.paths import REPOSITORY
from tests.support.patience import patience, until

if TYPE_CHECKING:
    from tests.simulator.conftest import Desk


def differences(left: bytes, right: bytes) -> int:
    return sum(a != b for a, b in zip(left, right, strict=True))


def ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


def test_latency_delays_the_reply(desk: "Desk") -> None:
    desk.tell("ping", "latency", seconds=0.5)
    began = time.monotonic()
    assert desk.run("ping").returncode == 0
    assert time.monotonic() - began >= 0.5


def test_a_fault_with_a_count_ends_after_that_many_calls_of_that_command(desk: "Desk") -> None:
    desk.tell("ping", "exit", times=2, code=7)
    assert desk.run("backup-status").returncode == 0
    assert [desk.run("ping").returncode for _ in range(3)] == [7, 7, 0]


def test_a_fault_with_a_skip_passes_that_many_calls_whatever_their_command(desk: "Desk") -> None:
    desk.tell(None, "exit", skip=2, times=1, code=7)
    commands = ("ping", "backup-status", "ping", "ping")
    assert [desk.run(command).returncode for command in commands] == [0, 0, 7, 0]
    assert [call["faults"] for call in desk.calls()[1:]] == [[], [], ["exit"], []]


def test_each_fault_counts_its_own_skips(desk: "Desk") -> None:
    desk.tell("ping", "exit", skip=3, times=1, code=4)
    desk.tell("ping", "exit", skip=1, times=1, code=2)
    desk.tell("ping", "exit", skip=0, times=1, code=1)
    assert [desk.run("ping").returncode for _ in range(5)] == [1, 2, 0, 4, 0]


def test_a_skip_counts_only_the_calls_that_the_fault_applies_to(desk: "Desk") -> None:
    desk.tell(None, "wrong_md5", skip=1)
    assert desk.run("ping").returncode == 0
    assert "arguments" not in desk.status()
    held = desk.put()
    desk.run("backup-retrieve")
    assert desk.status()["arguments"]["md5"] == held["md5"]
    assert desk.status()["arguments"]["md5"] != held["md5"]


def test_the_skip_of_a_fault_during_transfers_counts_only_transfers(desk: "Desk") -> None:
    desk.put()
    desk.tell(None, "kill_client", when="during", skip=1, times=1)
    commands = ("ping", "backup-retrieve", "backup-status", "backup-retrieve", "backup-retrieve")
    assert [desk.run(command).returncode for command in commands] == [0, 0, 0, -signal.SIGKILL, 0]


def test_a_fault_for_every_command_leaves_out_those_it_does_not_apply_to(desk: "Desk") -> None:
    desk.tell(None, "late", seconds=60)
    assert desk.run("ping").returncode == 0


def test_forget_clears_the_faults_of_one_node(desk: "Desk") -> None:
    desk.tell("ping", "exit", code=7)
    desk.fleet.forget(desk.name)
    assert desk.run("ping").returncode == 0


def test_a_hung_call_waits_until_it_is_terminated(desk: "Desk") -> None:
    desk.tell("ping", "hang")
    with desk.start("ping") as process:
        until(lambda: desk.calls("ping"))
        assert process.poll() is None
        process.terminate()
        assert process.wait(patience(10)) == -signal.SIGTERM
    assert desk.calls("ping")[0]["outcome"] == "hang"


def test_a_hung_call_can_ignore_sigterm(desk: "Desk") -> None:
    desk.tell("ping", "hang", ignore_sigterm=True)
    with desk.start("ping") as process:
        until(lambda: ignores_sigterm(process.pid))
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)


def test_a_refusal_prints_the_ordered_message_and_has_no_effect(desk: "Desk") -> None:
    desk.tell("backup", "refuse", message="error: wrong role\n", exit=13)
    refused = desk.run("backup", "Passw0rd")
    assert (refused.returncode, refused.stdout, refused.stderr) == (13, "", "error: wrong role\n")
    desk.fleet.forget(desk.name)
    desk.tell("backup", "refuse", message="Something went wrong", exit=0, stream="stdout")
    assert desk.run("backup", "Passw0rd").stdout == "Something went wrong"
    assert desk.status() == {"message": "No backup found"}


def test_a_dropped_transfer_leaves_the_partial_file_and_fails(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "drop", fraction=0.25, times=1)
    assert desk.run("backup-retrieve").returncode == 1
    sent = held["size"] // 4
    assert desk.retrieved.read_bytes() == Path(held["path"]).read_bytes()[:sent]
    assert [(call["outcome"], call["bytes"]) for call in desk.calls("backup-retrieve")] == [("drop", sent)]
    assert desk.run("backup-retrieve").returncode == 0


def test_a_truncated_transfer_claims_success(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "truncate", fraction=0.5)
    assert desk.run("backup-retrieve").returncode == 0
    assert desk.retrieved.stat().st_size == held["size"] // 2


def test_a_flipped_byte_leaves_the_backup_on_the_node_unchanged(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "flip", fraction=1.0, times=1)
    assert desk.run("backup-retrieve").returncode == 0
    assert differences(desk.retrieved.read_bytes(), Path(held["path"]).read_bytes()) == 1
    desk.run("backup-retrieve")
    assert hashlib.md5(desk.retrieved.read_bytes()).hexdigest() == held["md5"]


def test_the_retrieved_file_can_have_another_name(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-retrieve", "file_name", name="../backup.tar.gz.enc")
    desk.run("backup-retrieve")
    assert (desk.directory / "backup.tar.gz.enc").exists()


def test_a_transfer_can_drip(desk: "Desk") -> None:
    desk.put(size=20_000)
    desk.tell("backup-retrieve", "drip", bytes_per_second=40_000)
    began = time.monotonic()
    assert desk.run("backup-retrieve").returncode == 0
    assert time.monotonic() - began > 0.4


def test_a_backup_has_the_ordered_duration_and_size(desk: "Desk") -> None:
    desk.tell("backup", "duration", seconds=1.0)
    desk.tell("backup", "size", bytes=200_000)
    desk.run("backup", "Passw0rd")
    began = time.monotonic()
    until(desk.holds)
    assert time.monotonic() - began > 0.5
    held = desk.holds()
    assert held
    assert abs(held["size"] - 200_000) < 20_000


def test_a_wrong_md5_is_well_formed_and_stays_the_same(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-status", "wrong_md5")
    first, second = desk.status(), desk.status()
    assert first == second
    assert len(bytes.fromhex(first["arguments"]["md5"])) == 16
    assert first["arguments"]["md5"] != held["md5"]


def test_the_md5_can_be_missing_or_malformed(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-status", "no_md5", times=1)
    desk.tell("backup-status", "bad_md5", value="77d6")
    assert desk.status()["arguments"] == {"name": held["name"]}
    assert desk.status()["arguments"]["md5"] == "77d6"


def test_the_status_can_be_in_progress_forever(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-status", "in_progress")
    assert [desk.status() for _ in range(2)] == [{"message": "Backup in progress"}] * 2


def test_the_status_can_show_the_old_backup_for_a_while_after_a_start(desk: "Desk") -> None:
    old = desk.put()
    desk.run("backup-delete")
    desk.tell("backup-status", "stale_status", seconds=1.5)
    desk.run("backup", "Passw0rd")
    assert desk.status()["arguments"]["md5"] == old["md5"]
    until(lambda: desk.status().get("arguments", {"md5": None})["md5"] != old["md5"])
    until(lambda: desk.status()["message"] == "Backup found")


def test_json_can_be_broken(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-status", "bad_json")
    with pytest.raises(json.JSONDecodeError):
        desk.status()


def test_a_comma_can_be_missing_as_on_the_vendors_page(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-status", "missing_comma")
    assert desk.run("backup-status").stdout == (
        '{\n  "message": "Backup found",\n  "arguments": {\n'
        f'    "name": "{held["name"]}"\n    "md5": "{held["md5"]}"\n  }}\n}}\n'
    )


def test_banner_colours_and_indentation_surround_the_reply(desk: "Desk") -> None:
    for fault in ("pretty", "colours"):
        desk.tell("backup-status", fault)
    desk.tell("backup-status", "banner", before="before\n", after="\nafter")
    assert desk.run("backup-status").stdout == ('before\n\x1b[32m{\n  "message": "No backup found"\n}\n\x1b[39m\nafter')


def test_any_wording_can_be_replaced_for_one_state_or_for_all(desk: "Desk") -> None:
    desk.tell("backup-status", "say", stdout="nothing stored", when="absent")
    desk.tell("backup-status", "say", stdout="have {name}", stderr="sum {md5}", exit=3)
    assert desk.run("backup-status").stdout == "nothing stored"
    held = desk.put()
    found = desk.run("backup-status")
    assert (found.stdout, found.stderr, found.returncode) == (f"have {held['name']}", f"sum {held['md5']}", 3)
    desk.tell("backup-delete", "say", stdout="gone", exit=9)
    assert desk.run("backup-delete").returncode == 9
    assert desk.holds() is None


def test_a_false_delete_is_acknowledged_but_not_done(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-delete", "false_delete", times=1)
    assert desk.run("backup-delete").stdout == '{"message":"Backup deleted"}'
    assert desk.holds() == held
    assert desk.calls("backup-delete")[0]["outcome"] == "false_delete"
    desk.run("backup-delete")
    assert desk.holds() is None


@pytest.mark.parametrize(("command", "args"), [("backup", ["Passw0rd"]), ("backup-delete", [])])
def test_a_lost_reply_hides_that_the_command_took_effect(desk: "Desk", command: str, args: list[str]) -> None:
    if command == "backup-delete":
        desk.put()
    desk.tell(command, "lost_reply", times=1)
    lost = desk.run(command, *args)
    assert (lost.returncode, lost.stdout, lost.stderr) == (1, "", "Error: socket hang up\n")
    until(lambda: bool(desk.holds()) is (command == "backup"))
    call = desk.calls(command)[0]
    assert (call["outcome"], call["faults"], call["exit"]) == ("done", ["lost_reply"], None)


@pytest.mark.parametrize(("reply", "exit_code"), [("lost", 1), ("ok", 0)])
def test_a_late_delete_takes_effect_after_its_reply(desk: "Desk", reply: str, exit_code: int) -> None:
    held = desk.put()
    desk.tell("backup-delete", "late", seconds=2, reply=reply)
    assert desk.run("backup-delete").returncode == exit_code
    assert desk.holds() == held
    until(lambda: desk.holds() is None)


def test_a_late_start_takes_effect_while_its_caller_waits(desk: "Desk") -> None:
    desk.tell("backup", "late", seconds=0.5, reply="hang")
    with desk.start("backup", "Passw0rd") as process:
        until(desk.holds)
        assert process.poll() is None


def test_a_node_that_forgot_its_role_neither_offers_nor_takes_a_backup(desk: "Desk") -> None:
    desk.tell(None, "no_role")
    refused = desk.run("backup", "Passw0rd")
    assert (refused.returncode, refused.stderr) == (1, '{"message":"This node is not a backup node"}\n')
    desk.run("update-commands")
    assert "unknown command `backup'" in desk.run("backup", "Passw0rd").stderr
    assert desk.run("set-as-backup", "/dev/sdb").returncode == 0
    desk.run("update-commands")
    assert desk.run("backup", "Passw0rd").returncode == 0


def test_an_existing_backup_folder_blocks_the_role_and_force_empties_it(desk: "Desk") -> None:
    desk.put()
    desk.tell(None, "no_role")
    desk.tell(None, "backup_folder")
    refused = desk.run("set-as-backup", "/dev/sdb")
    assert (refused.returncode, refused.stderr) == (1, '{"message":"A backup folder already exists"}\n')
    assert desk.run("set-as-backup", "/dev/sdb", "true").stdout == '{"message":"OK"}'
    assert desk.holds() is None
    assert [event["event"] for event in desk.events()] == ["complete", "deleted"]
    assert desk.run("set-as-backup", "/dev/sdb").returncode == 1


def test_an_invalid_device_is_refused(desk: "Desk") -> None:
    desk.tell(None, "no_role")
    refused = desk.run("set-as-backup", "sdb")
    assert (refused.returncode, refused.stderr) == (1, '{"message":"sdb: no such device"}\n')


def test_the_role_can_take_effect_late(desk: "Desk") -> None:
    desk.tell(None, "no_role")
    desk.tell("set-as-backup", "late", seconds=0.5, reply="ok")
    assert desk.run("set-as-backup", "/dev/sdb").stdout == '{"message":"OK"}'
    assert desk.run("backup", "Passw0rd").returncode == 1
    until(lambda: desk.run("backup", "Passw0rd").returncode == 0)


def test_an_unreachable_node_refuses_connections_until_it_is_forgotten(desk: "Desk") -> None:
    desk.tell(None, "unreachable")
    refused = desk.run("ping")
    assert refused.returncode == 1
    assert refused.stderr == f"Error: connect ECONNREFUSED 127.0.0.1:{desk.node['port']}\n"
    desk.fleet.forget(desk.name)
    assert desk.run("ping").returncode == 0


def test_an_unreachable_node_can_come_back_by_itself(desk: "Desk") -> None:
    desk.tell(None, "unreachable", seconds=0.5)
    assert desk.run("ping").returncode == 1
    until(lambda: desk.run("ping").returncode == 0)


def parent_of(desk: "Desk", *args: str) -> "subprocess.Popen[bytes]":
    program = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", program, *desk.argv(*args)], cwd=desk.directory)


def test_the_caller_is_killed_before_the_command_takes_effect(desk: "Desk") -> None:
    desk.tell("backup", "kill_parent", when="before", times=1)
    with parent_of(desk, "backup", "Passw0rd") as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    assert desk.status() == {"message": "No backup found"}
    assert desk.calls("backup")[0]["outcome"] == "kill_parent"


def test_an_orphan_takes_effect_after_its_caller_was_killed(desk: "Desk") -> None:
    desk.tell("backup", "kill_parent", when="before", orphan=1)
    with parent_of(desk, "backup", "Passw0rd") as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    assert desk.holds() is None
    until(desk.holds)


def test_the_caller_is_killed_after_the_command_took_effect(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-delete", "kill_parent", when="after")
    with parent_of(desk, "backup-delete") as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    assert desk.holds() is None


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_the_caller_is_killed_at_each_point_of_a_transfer(desk: "Desk", when: str) -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "kill_parent", when=when, fraction=0.3)
    with parent_of(desk, "backup-retrieve") as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    until(lambda: desk.calls("backup-retrieve"))
    assert desk.retrieved.exists() is (when != "before")
    if when == "after":
        assert desk.retrieved.stat().st_size == held["size"]


def test_a_client_that_was_killed_mid_transfer_is_on_record(desk: "Desk") -> None:
    desk.put()
    desk.tell("backup-retrieve", "drip", bytes_per_second=10_000)
    with desk.start("backup-retrieve") as process:
        until(lambda: desk.retrieved.exists() and desk.retrieved.stat().st_size)
        process.kill()
    until(lambda: desk.calls("backup-retrieve"))
    assert desk.calls("backup-retrieve")[0]["outcome"] == "gone"


def test_the_caller_is_killed_at_the_call_with_a_given_number(desk: "Desk") -> None:
    program = "import subprocess, sys\nfor _ in range(9): subprocess.run(sys.argv[1:])"
    desk.tell(None, "kill_parent", when="after", skip=3, times=1)
    with subprocess.Popen([sys.executable, "-c", program, *desk.argv("ping")], cwd=desk.directory) as parent:
        assert parent.wait(patience(20)) == -signal.SIGKILL
    assert [call["faults"] for call in desk.calls("ping")] == [[], [], [], ["kill_parent"]]


def test_a0cli_itself_is_killed_before_or_after_its_command_takes_effect(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-delete", "kill_client", when="before", times=1)
    desk.tell("backup-delete", "kill_client", when="after", times=1)
    assert desk.run("backup-delete").returncode == -signal.SIGKILL
    assert desk.holds() == held
    assert desk.run("backup-delete").returncode == -signal.SIGKILL
    assert desk.holds() is None
    assert [(call["outcome"], call["exit"]) for call in desk.calls("backup-delete")] == [
        ("kill_client", None),
        ("done", None),
    ]


def test_a0cli_itself_is_killed_during_a_transfer(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "kill_client", when="during", fraction=0.3)
    killed = desk.run("backup-retrieve")
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "", "")
    call = desk.calls("backup-retrieve")[0]
    assert (call["outcome"], call["bytes"], call["exit"]) == ("kill_client", int(held["size"] * 0.3), None)


def test_a_kill_ordered_after_the_end_of_a_dropped_transfer_comes_at_its_end(desk: "Desk") -> None:
    held = desk.put()
    desk.tell("backup-retrieve", "drop", fraction=0.5)
    desk.tell("backup-retrieve", "kill_client", when="during", fraction=0.9)
    assert desk.run("backup-retrieve").returncode == -signal.SIGKILL
    assert desk.calls("backup-retrieve")[0]["bytes"] == held["size"] // 2


@pytest.mark.parametrize("command", ["backup-status", "backup-retrieve"])
def test_a_backup_is_replaced_right_after_the_call_that_saw_it(desk: "Desk", command: str) -> None:
    desk.tell(command, "replaced", times=1, password="theirs")
    assert desk.run(command).returncode == (command == "backup-retrieve"), "with nothing there it waits"
    old = desk.put()
    seen = desk.run(command)
    new = desk.holds()
    assert seen.returncode == 0
    assert new
    assert new["md5"] != old["md5"]
    assert new["password"] == "sha256:" + hashlib.sha256(b"theirs").hexdigest()[:12]
    if command == "backup-status":
        assert json.loads(seen.stdout)["arguments"]["md5"] == old["md5"]
    else:
        assert hashlib.md5(desk.retrieved.read_bytes()).hexdigest() == old["md5"]
    assert desk.status()["arguments"]["md5"] == new["md5"]
    assert [(e["event"], e["md5"], e["by"]) for e in desk.events()] == [
        ("complete", old["md5"], "hand"),
        ("removed", old["md5"], "hand"),
        ("complete", new["md5"], "hand"),
    ]


def test_a_backup_is_taken_right_after_the_call_that_saw_it(desk: "Desk") -> None:
    old = desk.put()
    desk.tell("backup-status", "taken", times=1)
    assert desk.status()["arguments"]["md5"] == old["md5"]
    assert desk.status() == {"message": "No backup found"}
    assert [event["event"] for event in desk.events()] == ["complete", "removed"]


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"command": "ping", "fault": "explode"}, "there is no fault explode; there are latency"),
        ({"command": "ping", "fault": "drop"}, "drop is not for ping; it is for retrieve"),
        ({"command": "ping", "fault": "hang", "hours": 1}, "hang has no setting hours"),
        ({"command": "backup", "fault": "late", "reply": "x"}, "reply is one of lost, hang, ok"),
        ({"command": None, "fault": "unreachable", "times": 1}, "cannot be counted"),
        ({"command": None, "fault": "no_role", "skip": 1}, "cannot be counted"),
        ({"command": "ping", "fault": "hang", "times": 0}, "times is 1 or more, and skip 0 or more"),
        ({"command": "ping", "fault": "hang", "skip": -1}, "times is 1 or more, and skip 0 or more"),
        ({"command": "bakcup", "fault": "hang"}, "there is no command bakcup; there are backup, backup-status"),
        ({"command": "ping", "fault": "kill_parent", "when": "during"}, "when=during is not for ping; it is for retr"),
        ({"command": "backup", "fault": "kill_client", "when": "during"}, "is not for backup; it is for retrieve"),
        ({"command": "ping", "fault": "kill_client", "when": "later"}, "when is one of before, during, after"),
        ({"command": "ping", "fault": "say", "when": "found"}, "say with when=found is not for ping"),
        ({"command": "backup-delete", "fault": "replaced"}, "replaced is not for backup-delete; it is for status, ret"),
        ({"command": "backup-retrieve", "fault": "drop", "fraction": 1.5}, "fraction is from 0 to 1"),
    ],
)
def test_an_invalid_order_is_refused_with_what_would_be_valid(desk: "Desk", order: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        desk.fleet.order("tell", node=desk.name, **order)


def test_a_peer_that_is_not_a0cli_is_disconnected(desk: "Desk") -> None:
    for request in (b"GET / HTTP/1.1\r\n", b"{}\n", b"[1]\n"):
        with socket.create_connection(("127.0.0.1", desk.node["port"])) as connection:
            connection.settimeout(10)
            connection.sendall(request)
            assert connection.recv(100) == b""
    assert desk.run("ping").returncode == 0


def test_every_fault_has_an_example_in_the_readme() -> None:
    readme = (REPOSITORY / "simulator" / "README.md").read_text()
    assert [fault for fault in FAULTS if f"`{fault}`" not in readme] == []
