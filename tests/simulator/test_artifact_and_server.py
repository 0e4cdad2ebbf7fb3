"""What the nodes send is real, large backups cost no memory, and the server process behaves."""

import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from simulator.artifact import key_and_iv
from simulator.fleet import SimulatedFleet
from tests.support.paths import REPOSITORY
from tests.support.patience import patience, until

if TYPE_CHECKING:
    from tests.simulator.conftest import Desk


def decrypted(path: Path, password: str) -> "subprocess.Popen[bytes]":
    command = ["openssl", "enc", "-d", "-aes-256-ctr", "-md", "md5", "-nosalt", "-k", password, "-in", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def members(path: Path, password: str) -> list[str]:
    with decrypted(path, password) as openssl:
        listing = subprocess.run(["tar", "tz"], stdin=openssl.stdout, capture_output=True, text=True, check=True)
    return listing.stdout.splitlines()


def documents(block: bytes) -> Iterator[bytes]:
    while block:
        (length,) = struct.unpack_from("<i", block)
        assert 5 <= length <= len(block)
        assert block[length - 1] == 0
        yield block[:length]
        block = block[length:]


@pytest.mark.parametrize("size", [4_000, 1_000_000])
def test_openssl_and_tar_open_a_retrieved_backup(desk: "Desk", size: int) -> None:
    held = desk.put(size=size)
    assert abs(held["size"] - size) < 0.1 * size
    desk.run("backup-retrieve")
    assert members(desk.retrieved, "Passw0rd") == [
        "dump/auth0/system.indexes.bson",
        "dump/auth0/tenants.bson",
        "dump/auth0/tenants.metadata.json",
        "dump/auth0/users.metadata.json",
        "dump/auth0/users.bson",
    ]


def test_the_dump_holds_whole_bson_documents(desk: "Desk") -> None:
    held = desk.put(size=100_000)
    with (
        decrypted(Path(held["path"]), "Passw0rd") as openssl,
        tarfile.open(fileobj=openssl.stdout, mode="r|gz") as dump,
    ):
        read = {member.name: file.read() for member in dump if (file := dump.extractfile(member))}
    assert len(list(documents(read["dump/auth0/users.bson"]))) > 50
    assert len(list(documents(read["dump/auth0/tenants.bson"]))) == 1


def test_an_export_is_lines_of_json(desk: "Desk") -> None:
    desk.run("user-export", "Passw0rd", "_id,email")
    until(lambda: desk.holds("user-export"))
    desk.run("user-export-retrieve")
    with (
        decrypted(desk.directory / "user_export.tar.gz.enc", "Passw0rd") as openssl,
        tarfile.open(fileobj=openssl.stdout, mode="r|gz") as export,
    ):
        member = export.next()
        assert member is not None
        file = export.extractfile(member)
        assert file is not None
        assert {"_id", "email"} <= json.loads(file.readline()).keys()
    assert member.name == "user-export.json"


@pytest.mark.parametrize("password", ["Passw0rd", "pässwörd", "with space and 'quotes\"", "x" * 200])
def test_the_key_derivation_matches_openssl(password: str) -> None:
    command = ["openssl", "enc", "-aes-256-ctr", "-md", "md5", "-nosalt", "-P", "-k", password]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    key, iv = key_and_iv(password)
    assert printed.splitlines()[:2] == [f"key={key.hex().upper()}", f"iv ={iv.hex().upper()}"]


def test_two_backups_of_a_node_never_have_the_same_bytes(desk: "Desk") -> None:
    first = desk.put()
    desk.fleet.remove(desk.name)
    assert desk.put()["md5"] != first["md5"]


@pytest.mark.slow
def test_a_backup_of_300_mb_is_made_sent_and_opened_while_the_server_stays_small(tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path / "fleet", 1, size=300_000_000) as fleet:
        server = psutil.Process(fleet.process.pid)
        directory = tmp_path / "desk"
        directory.mkdir()
        for key in fleet.key_dir.iterdir():
            (directory / key.name).symlink_to(key)
        a0cli = [str(fleet.a0cli), "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"])]
        for command in (["update-commands"], ["backup", "Passw0rd"]):
            subprocess.run([*a0cli, *command], cwd=directory, check=True, capture_output=True)
        peaks = [server.memory_info().rss]

        def finished() -> Any:
            peaks.append(server.memory_info().rss)
            return fleet.holds("a0-1")

        until(finished)
        subprocess.run([*a0cli, "backup-retrieve"], cwd=directory, check=True, capture_output=True)
        peaks.append(server.memory_info().rss)
        assert len(members(directory / "backup-retrieve.tar.gz.enc", "Passw0rd")) == 5
        assert max(peaks) < peaks[0] + 60_000_000


def serve(state: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "simulator", "serve", "--state", str(state), *options]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ready_line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout
    ready: dict[str, Any] = json.loads(process.stdout.readline())
    return ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_on_a_signal_even_while_it_makes_a_backup(tmp_path: Path, number: int) -> None:
    with serve(tmp_path, "--nodes", "n", "--size", "50000000000") as process:
        ready = ready_line(process)
        a0cli = [ready["a0cli"], "-t", "127.0.0.1", "-p", str(ready["nodes"][0]["port"])]
        for command in (["update-commands"], ["backup", "P"]):
            subprocess.run([*a0cli, *command], cwd=ready["key_dir"], check=True, capture_output=True)
        process.send_signal(number)
        assert process.wait(patience(10)) == 0
        assert process.stderr
        assert process.stderr.read() == ""
    assert list((tmp_path / "nodes" / "n").iterdir()) == []
    assert not (tmp_path / "control.sock").exists()


def test_a_hanging_call_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with SimulatedFleet(tmp_path, 1, scenario=[{"fault": "hang"}]) as fleet:
        a0cli = [str(fleet.a0cli), "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"]), "update-commands"]
        hung = subprocess.Popen(a0cli, cwd=fleet.key_dir, stderr=subprocess.PIPE)
        until(fleet.calls)
    assert hung.communicate(timeout=patience(10))[1] == b"Error: socket hang up\n"
    assert fleet.process.returncode == 0
    assert (tmp_path / "server.log").read_text() == ""


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with serve(tmp_path, "--nodes", "n", "--until-stdin-closes") as process:
        ready_line(process)
        process.communicate(timeout=patience(10))
        assert process.returncode == 0


def test_a_directory_whose_path_is_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 30)
    with SimulatedFleet(state, ["n"]) as fleet:
        assert fleet.holds("n") is None


def test_a_scenario_is_in_force_from_the_start(tmp_path: Path) -> None:
    scenario: list[dict[str, Any]] = [
        {"node": "a0-1", "fault": "unreachable"},
        {"node": "a0-2", "command": "ping", "fault": "exit", "code": 4},
        {"order": "put", "node": "a0-2", "password": "P"},
    ]
    with SimulatedFleet(tmp_path, 2, scenario=scenario) as fleet:
        assert fleet.holds("a0-2")
        refused = subprocess.run(
            [fleet.a0cli, "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"]), "update-commands"],
            cwd=fleet.key_dir,
            capture_output=True,
            check=False,
        )
        assert b"ECONNREFUSED" in refused.stderr


def test_a_second_server_continues_the_record_of_its_directory(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        with SimulatedFleet(tmp_path, 1) as fleet:
            a0cli = [str(fleet.a0cli), "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"])]
            subprocess.run([*a0cli, "update-commands"], cwd=fleet.key_dir, check=True, capture_output=True)
            made.append(fleet.put("a0-1", password="P")["md5"])
            calls = fleet.calls()
    assert [call["seq"] for call in calls] == [1, 2]
    assert made[0] != made[1]


@pytest.mark.parametrize("names", ["a,a", "../x", ""])
def test_invalid_node_names_are_refused(tmp_path: Path, names: str) -> None:
    with serve(tmp_path / "state", "--nodes", names) as process:
        assert process.wait(patience(20)) == 2


def test_the_client_starts_if_the_interpreters_path_does_not_fit_a_shebang(tmp_path: Path) -> None:
    interpreter = tmp_path / "with space" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    program = """
from pathlib import Path
from simulator.server import install
print(install(Path("state").resolve())[0])
"""
    state = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.executable = {str(interpreter)!r}\n{program}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert state.stdout == f"{tmp_path}/state/bin/a0cli\n"
    assert (tmp_path / "state" / "keys" / "a0cli-key").exists()


def test_fleet_yaml_names_the_nodes_and_merges_settings_deeply(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    with SimulatedFleet(tmp_path / "fleet", 2) as fleet:
        path = fleet.fleet_yaml(tmp_path / "fleet.yaml", a0cli={"call_timeout": "2s"}, kinds=["backup"])
        settings = yaml.safe_load(path.read_text())
    assert settings["nodes"] == fleet.nodes
    assert settings["a0cli"]["call_timeout"] == "2s"
    assert settings["a0cli"]["path"] == str(fleet.a0cli)
    assert settings["kinds"] == ["backup"]
