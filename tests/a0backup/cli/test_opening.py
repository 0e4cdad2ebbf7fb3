"""`decrypt`, `drill` and `handoff` from the outside: only the right key or password opens an artifact."""

import gzip
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from a0backup.errors import ArtifactDamagedError
from a0backup.fleet.models import ContentsLimits
from a0backup.passwords import recovery_keys
from a0backup.upkeep import drill
from a0backup.vault import known_vault
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.command import a0backup
from tests.support.paths import REPOSITORY
from tests.support.patience import patience
from tests.support.stored import A0BACKUP, PASSPHRASE, Keys, at_terminal, store

SHARED = "Canary7Password"
LIMITS = ContentsLimits()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("offline"), SHARED)


def fleet_yaml(place: Path, password: str = "{env: A0_BACKUP_PASSWORD}") -> Path:
    path = place / "fleet.yaml"
    path.write_text(f"vault: ./vault\npassword: {password}\nnodes: [{{name: a0-1, host: 127.0.0.1}}]\n")
    return path


def plain_of(place: Path, manifest: Manifest, password: str) -> bytes:
    """Return the artifact as decrypted by openssl."""
    command = ["openssl", "enc", "-d", "-aes-256-ctr", "-md", "md5", "-nosalt", "-k", password]
    artifact = Vault(place / "vault").artifact(manifest)
    return subprocess.run([*command, "-in", str(artifact)], capture_output=True, check=True).stdout


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


SPOIL = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "a link": lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fleet_yaml(tmp_path)
    return tmp_path


def left_in(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"fleet.yaml", "vault"}


# -- decrypt -----------------------------------------------------------------------------------------------------------


def test_a_sealed_artifact_is_decrypted_with_the_recovery_key(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", *keys.options(), cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert (place / "plain.tar.gz").read_bytes() == plain_of(place, manifest, "abc123")
    assert stat.S_IMODE((place / "plain.tar.gz").stat().st_mode) == 0o600
    assert left_in(place) == {"plain.tar.gz"}
    assert "tar tzf plain.tar.gz" in ended.stdout
    assert "abc123" not in ended.stdout + ended.stderr


def test_decrypt_and_drill_need_only_the_vault_without_a_fleet_file(tmp_path: Path, keys: Keys) -> None:
    manifest = store(tmp_path / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    arguments = ["--vault", "vault", manifest.id, "-o", "plain.tar.gz", *keys.options()]
    assert a0backup("decrypt", *arguments, cwd=tmp_path).returncode == 0
    assert a0backup("drill", *arguments[:2], *keys.options(), cwd=tmp_path).returncode == 0


def test_any_one_of_the_recovery_keys_opens_an_artifact(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "other", "recovery"))
    for name in ("other", "recovery"):
        ended = a0backup("decrypt", manifest.id, "-o", name, *keys.options(name), cwd=place)
        assert ended.returncode == 0, ended.stderr
    assert (place / "other").read_bytes() == (place / "recovery").read_bytes()


def test_the_candidate_that_opens_the_artifact_is_used(place: Path, keys: Keys) -> None:
    sealed = [box for password in ("first", "abc123", "third") for box in keys.seal(password, "other", "recovery")]
    manifest = store(place / "vault", "abc123", sealed=sealed)
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", *keys.options(), cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert (place / "plain.tar.gz").read_bytes() == plain_of(place, manifest, "abc123")


def test_the_passphrase_is_asked_for_at_the_terminal_and_not_shown(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    code, shown = at_terminal(
        *("decrypt", manifest.id, "-o", "plain.tar.gz", "--key", keys.folder / "recovery.key.pem"),
        cwd=place,
        answers=[PASSPHRASE],
    )
    assert (code, "passphrase of" in shown, PASSPHRASE in shown) == (0, True, False), shown
    assert left_in(place) == {"plain.tar.gz"}


def test_a_shared_password_comes_from_a_file_or_the_terminal(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", SHARED)
    assert a0backup("decrypt", manifest.id, "-o", "one", *keys.password, cwd=place).returncode == 0
    code, shown = at_terminal("decrypt", manifest.id, "-o", "two", cwd=place, answers=[SHARED])
    assert (code, SHARED in shown) == (0, False), shown
    assert (place / "one").read_bytes() == (place / "two").read_bytes() == plain_of(place, manifest, SHARED)


def test_no_question_is_asked_without_a_terminal(place: Path) -> None:
    manifest = store(place / "vault", SHARED)
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", cwd=place)
    assert ended.returncode == 2
    assert "--password-file" in ended.stderr


def test_a_wrong_password_leaves_nothing_behind(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", SHARED)
    wrong = ["--password-file", keys.folder / "wrong"]
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", *wrong, cwd=place)
    assert ended.returncode == 1
    assert "HINT: give the password of that time" in ended.stderr
    assert "Canary8" not in ended.stderr
    assert left_in(place) == set()


def test_the_required_key_is_named_when_another_is_given(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", *keys.options("other"), cwd=place)
    assert ended.returncode == 1
    assert recovery_keys.load_public(keys.folder / "recovery.pub.pem").fingerprint in ended.stderr
    assert left_in(place) == set()


def test_a_sealed_password_of_another_artifact_leaves_nothing_behind(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("xyz789", "recovery"))
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", *keys.options(), cwd=place)
    assert ended.returncode == 1, ended.stderr
    assert "xyz789" not in ended.stderr
    assert left_in(place) == set()


def test_a_missing_key_for_a_sealed_artifact_is_reported(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    ended = a0backup("decrypt", manifest.id, "-o", "plain.tar.gz", cwd=place)
    assert ended.returncode == 1
    assert "--key" in ended.stderr


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL.keys())
def test_a_damaged_artifact_ends_with_4_and_leaves_nothing_behind(place: Path, keys: Keys, spoil) -> None:
    manifest = store(place / "vault", SHARED)
    spoil(Vault(place / "vault").artifact(manifest))
    for command in (
        ["decrypt", manifest.id, "-o", "plain.tar.gz", *keys.password],
        ["handoff", manifest.id, "-o", "d"],
    ):
        ended = a0backup(*command, cwd=place)
        assert ended.returncode == 4, ended.stderr
        assert "the artifact" in ended.stderr
        assert left_in(place) == set()


@pytest.mark.parametrize("there", ["a file", "a link that leads nowhere"])
@pytest.mark.parametrize("command", ["decrypt", "handoff"])
def test_an_existing_target_is_never_overwritten(place: Path, keys: Keys, command: str, there: str) -> None:
    manifest = store(place / "vault", SHARED)
    target = place / "mine"
    target.write_text("mine") if there == "a file" else target.symlink_to("nowhere")
    ended = a0backup(command, manifest.id, "-o", target, *(keys.password if command == "decrypt" else ()), cwd=place)
    assert ended.returncode == 2
    assert left_in(place) == {"mine"}
    assert target.is_symlink() or target.read_text() == "mine"


def test_a_file_that_appears_during_the_decryption_is_not_overwritten(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, target, write = store(place / "vault", SHARED), place / "plain.tar.gz", drill.decrypt_file

    def slow(source, file, password):
        target.write_text("mine")
        return write(source, file, password)

    monkeypatch.setattr(drill, "decrypt_file", slow)
    with pytest.raises(FileExistsError):
        drill.decrypt(Vault(place / "vault"), manifest, [SHARED], LIMITS, target)
    assert left_in(place) == {"plain.tar.gz"}
    assert target.read_text() == "mine"


def test_an_artifact_that_changes_during_the_decryption_is_not_published(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, manifest, write = Vault(place / "vault"), store(place / "vault", SHARED), drill.decrypt_file

    def spoilt(source, file, password):
        flip(source)
        return write(source, file, password)

    monkeypatch.setattr(drill, "decrypt_file", spoilt)
    with pytest.raises(ArtifactDamagedError):
        drill.decrypt(vault, manifest, [SHARED], LIMITS, place / "plain.tar.gz")
    assert left_in(place) == set()


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links_is_supported(
    place: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    manifest, target, write = store(place / "vault", SHARED), place / "plain.tar.gz", drill.decrypt_file

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def slow(source, file, password):
        if taken:
            target.write_text("mine")
        return write(source, file, password)

    monkeypatch.setattr(drill, "decrypt_file", slow)
    monkeypatch.setattr(drill.os, "link", refuse)
    if taken:
        with pytest.raises(FileExistsError):
            drill.decrypt(Vault(place / "vault"), manifest, [SHARED], LIMITS, target)
        assert target.read_text() == "mine"
    else:
        drill.decrypt(Vault(place / "vault"), manifest, [SHARED], LIMITS, target)
        assert target.read_bytes() == plain_of(place, manifest, SHARED)
    assert left_in(place) == {"plain.tar.gz"}


@pytest.mark.parametrize("command", ["drill", "decrypt"])
def test_an_interrupt_takes_effect_at_once_and_leaves_nothing_behind(place: Path, keys: Keys, command: str) -> None:
    manifest = store(place / "vault", SHARED, size=300 << 20)
    output = ["-o", "plain.tar.gz"] if command == "decrypt" else []
    running = subprocess.Popen(
        [str(part) for part in (A0BACKUP, command, manifest.id, *output, *keys.password)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    artifact = Vault(place / "vault").artifact(manifest)
    deadline = time.monotonic() + patience(60)
    while not (reads(running.pid, artifact) if command == "drill" else left_in(place)):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sent = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=patience(30))
    assert (running.returncode, "Traceback" in said.decode()) == (130, False), said
    assert time.monotonic() - sent < patience(5)
    assert left_in(place) == set()


def reads(pid: int, path: Path) -> bool:
    try:
        return path in [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False


# -- drill -------------------------------------------------------------------------------------------------------------


def test_a_drill_reads_the_newest_of_each_node_and_kind_and_writes_only_its_record(place: Path, keys: Keys) -> None:
    vault = place / "vault"
    old = store(vault, "old1", sealed=keys.seal("old1", "recovery"))
    newest = [
        store(vault, "new1", nights=1, sealed=keys.seal("new1", "recovery")),
        store(vault, SHARED, kind="backup-sensitive"),
        store(vault, SHARED, node="a0-2"),
    ]
    before = everything(place)
    ended = a0backup("drill", *keys.options(), cwd=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    records = [vault / manifest.id / "drilled.json" for manifest in newest]
    for record in records:
        assert json.loads(record.read_text())["passed"] is True
        record.unlink()
    assert everything(place) == before
    lines = ended.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(manifest.id for manifest in newest)
    assert all("  ok: " in line and " members, " in line for line in lines)
    assert old.id not in [line.split()[0] for line in lines]


def everything(place: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path): path.lstat() for path in place.rglob("*") if path.is_file()}
    return {path: (status.st_mtime_ns, status.st_size, status.st_mode) for path, status in found.items()}


def test_a_drill_of_a_copy_is_recorded_there_and_the_next_copy_brings_the_record_to_the_vault(
    place: Path, keys: Keys
) -> None:
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    with (place / "fleet.yaml").open("a") as fleet:
        fleet.write("copies: [{name: nas, url: nas}]\n")
    assert a0backup("copy", cwd=place).returncode == 0
    ended = a0backup("drill", "--vault", "nas", *keys.options(), cwd=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = place / "nas" / manifest.id / "drilled.json"
    assert not (place / "vault" / manifest.id / "drilled.json").exists()
    ended = a0backup("copy", cwd=place)
    assert "1 record of drills brought to the vault" in ended.stdout
    assert (place / "vault" / manifest.id / "drilled.json").read_bytes() == record.read_bytes()
    assert a0backup("verify", cwd=place).returncode == 0


def test_a_drill_reports_the_same_as_json(place: Path, keys: Keys) -> None:
    manifest = store(place / "vault", SHARED)
    [row] = json.loads(a0backup("drill", "--json", cwd=place).stdout)
    with tarfile.open(fileobj=io.BytesIO(plain_of(place, manifest, SHARED))) as tar:
        sizes = [member.size for member in tar]
    assert (row["id"], row["result"], row["odd"]) == (manifest.id, "ok", [])
    assert row["members"] == len(sizes)
    assert row["unpacked_size"] > sum(sizes)


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL.keys())
def test_a_drill_names_a_damaged_artifact_reads_the_others_and_ends_with_4(place: Path, keys: Keys, spoil) -> None:
    bad, good = store(place / "vault", SHARED), store(place / "vault", SHARED, node="a0-2")
    spoil(Vault(place / "vault").artifact(bad))
    ended = a0backup("drill", *keys.password, cwd=place)
    assert ended.returncode == 4
    assert f"{bad.id}  DAMAGED: " in ended.stdout
    assert f"{good.id}  ok" in ended.stdout
    assert "HINT: `a0backup verify --repair` brings it back from a place of `copies`; " in ended.stdout


def test_an_intact_artifact_that_holds_no_backup_is_damage_too(place: Path) -> None:
    gzip = subprocess.run(["gzip", "-c"], input=b"no tar at all " * 999, capture_output=True, check=True).stdout
    for number, plain in enumerate([gzip[:-9], gzip]):
        store(place / "vault", SHARED, nights=number, plain=plain)
        ended = a0backup("drill", cwd=place)
        assert ended.returncode == 4, ended.stdout
        assert "DAMAGED: a0-1: the contents of the backup cannot be read" in ended.stdout


def test_an_unreadable_manifest_is_damage(place: Path) -> None:
    manifest = store(place / "vault", SHARED)
    (place / "vault" / manifest.id / "manifest.json").write_text("{")
    for arguments in ([], [manifest.id]):
        ended = a0backup("drill", *arguments, cwd=place)
        assert ended.returncode == 4
        assert f"{manifest.id}  DAMAGED: " in ended.stdout


def test_a_wrong_password_ends_a_drill_with_1(place: Path, keys: Keys) -> None:
    store(place / "vault", SHARED)
    for arguments, secret in ((["--password-file", keys.folder / "wrong"], SHARED), ([], "Canary8Another")):
        ended = a0backup("drill", *arguments, cwd=place, password=secret)
        assert ended.returncode == 1
        assert "NOT OPENED: " in ended.stdout
        assert "Canary" not in ended.stdout + ended.stderr


def test_an_artifact_without_a_given_key_does_not_hide_the_others(place: Path, keys: Keys) -> None:
    sealed = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    shared = store(place / "vault", SHARED, node="a0-2")
    ended = a0backup("drill", cwd=place)
    assert ended.returncode == 1
    assert f"{sealed.id}  NOT OPENED: " in ended.stdout
    assert f"{shared.id}  ok" in ended.stdout


def test_a_bomb_ends_a_drill_with_1(place: Path) -> None:
    zeros = io.BytesIO()
    with tarfile.open(fileobj=zeros, mode="w:gz") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 100 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    store(place / "vault", SHARED, plain=zeros.getvalue())
    ended = a0backup("drill", cwd=place)
    assert ended.returncode == 1, ended.stdout
    assert "HINT: if the backup may be that large, raise contents." in ended.stdout


def test_members_that_would_escape_their_folder_are_named(place: Path) -> None:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../escape\x1b[2J"))
    store(place / "vault", SHARED, plain=held.getvalue())
    ended = a0backup("drill", cwd=place)
    assert ended.returncode == 0, ended.stdout
    assert "  odd: " in ended.stdout
    assert "escape" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_an_artifact_from_the_future_is_named_and_is_not_the_newest(place: Path, keys: Keys) -> None:
    sealed = keys.seal("abc123", "recovery")
    now = store(place / "vault", "abc123", sealed=sealed)
    ahead = store(place / "vault", "abc123", sealed=sealed, nights=40_000)
    ended = a0backup("drill", *keys.options(), cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert now.id in ended.stdout
    assert ahead.id not in ended.stdout
    assert f"{ahead.id}: its time lies in the future" in ended.stderr


def test_the_drill_of_an_empty_vault_asks_nothing_and_proves_nothing(place: Path) -> None:
    known_vault.create(Vault(place / "vault"))
    ended = a0backup("drill", cwd=place)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nothing is proven" in ended.stderr


@pytest.mark.parametrize("command", ["drill", "decrypt"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--passphrase-file", "x"], "--key"),
        (["--key", "missing.pem"], "no such file"),
        (["--vault", "nowhere"], "nowhere"),
        (["--password-file", "fleet.yaml"], "chmod 600"),
    ],
)
def test_unusable_options_are_explained(place: Path, command: str, options: list[str], words: str) -> None:
    manifest = store(place / "vault", SHARED)
    ended = a0backup(command, manifest.id, *options, *(["-o", "x"] if command == "decrypt" else []), cwd=place)
    assert ended.returncode in (1, 2)
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


# -- handoff -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def handed(place: Path, keys: Keys) -> Path:
    """The handoff of an artifact whose sealed password is `abc123`."""
    manifest = store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    ended = a0backup("handoff", manifest.id, "-o", "case-4711", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert left_in(place) == {"case-4711"}
    return place / "case-4711"


def test_a_handoff_is_complete_and_only_its_owner_can_read_it(handed: Path) -> None:
    names = {"backup.tar.gz.enc", "manifest.json", "MD5SUMS", "SHA256SUMS", "RESTORE.md"}
    assert {path.name for path in handed.iterdir()} == names
    assert stat.S_IMODE(handed.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in handed.iterdir()} == {0o600}


def test_the_check_commands_on_the_page_of_a_handoff_cover_every_checksum(handed: Path) -> None:
    [commands] = re.findall(r"```sh\n(md5sum.*?)```", (handed / "RESTORE.md").read_text(), re.DOTALL)
    shell = ["sh", "-ec", commands]
    checked = subprocess.run(shell, cwd=handed, capture_output=True, text=True, check=True).stdout
    assert sorted(checked.split()[::2]) == sorted(
        ["backup.tar.gz.enc:", "backup.tar.gz.enc:", "manifest.json:", "RESTORE.md:", "MD5SUMS:"]
    )
    flip(handed / "backup.tar.gz.enc")
    assert subprocess.run(shell, cwd=handed, capture_output=True).returncode


def test_a_handoff_contains_neither_the_password_nor_its_sealed_form(handed: Path) -> None:
    manifest = json.loads((handed / "manifest.json").read_text())
    assert manifest["encryption"]["password"] == {"mode": "sealed", "confirmed": False, "sealed": []}
    for path in handed.iterdir():
        assert b"abc123" not in path.read_bytes()
        assert b'"box"' not in path.read_bytes()


def test_the_commands_on_the_page_of_a_handoff_open_it(handed: Path) -> None:
    commands = re.findall(r"^openssl enc .*$", (handed / "RESTORE.md").read_text(), re.MULTILINE)
    script = "\n".join(commands).replace("-nosalt", "-nosalt -k abc123")
    listed = subprocess.run(["sh", "-ec", script], cwd=handed, capture_output=True, text=True, check=True).stdout
    assert "dump/auth0/users.bson" in listed.splitlines()
    assert (handed / "dump/auth0/users.bson").stat().st_size > 10_000


# -- show --------------------------------------------------------------------------------------------------------------


def test_the_commands_that_show_prints_open_a_sealed_artifact_with_openssl_alone(place: Path, keys: Keys) -> None:
    sealed = keys.seal("abc123", "other", "recovery")
    manifest = store(place / "vault", "abc123", sealed=sealed)
    shown = a0backup("show", manifest.id, cwd=place).stdout
    assert all(entry.recovery_key in shown for entry in sealed)
    commands = [line.strip() for line in shown.splitlines() if line.startswith("  ")]
    # Leave out the other recipient's command. openssl would ask for the passphrase at the terminal.
    mine = [line for line in commands if "sed -n 1p" not in line]
    script = "\n".join(mine).replace("-inkey", f"-passin file:{keys.folder / 'passphrase'} -inkey")
    shutil.copy(keys.folder / "recovery.key.pem", place)
    listed = subprocess.run(["sh", "-ec", script], cwd=place, capture_output=True, text=True, check=True).stdout
    assert "dump/auth0/users.bson" in listed
    assert stat.S_IMODE((place / "password").stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_decrypt_leaves_nothing_decrypted(tmp_path: Path, number: signal.Signals) -> None:
    manifest = store(tmp_path / "vault", "Passw0rd", size=150_000_000)
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "out" / "plain.tar.gz"
    target.parent.mkdir()
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    running = subprocess.Popen(
        [sys.executable, "-c", "from a0backup.cli.main import main; main()", *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + patience(60)
    while not any(path.stat().st_size for path in target.parent.iterdir()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(number)
    running.communicate(timeout=patience(30))
    left = [(path.name, path.stat().st_size, path.read_bytes()[:3]) for path in target.parent.iterdir()]
    shutil.rmtree(tmp_path / "vault")
    assert left == []


def test_a_highly_compressed_artifact_can_be_decrypted_without_a_fleet_yaml(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("dump/auth0/empty.bin")
        member.size = 80 << 20
        tar.addfile(member, io.BytesIO(bytes(80 << 20)))
    # The ratio is 220. A fleet with `contents: {max_ratio: 1032}` stores it in a run and opens it in a drill.
    manifest = store(tmp_path / "vault", "Passw0rd", plain=gzip.compress(out.getvalue(), 1))
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "plain.tar.gz"
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    ended = a0backup(*arguments)
    # An owner of password and vault wants the bytes. `ContentsLimits` only limit what a node may do to a run.
    assert ended.returncode == 0, ended.stdout


def test_a_target_that_cannot_be_created_is_reported_before_the_artifact_is_read(tmp_path: Path) -> None:
    manifest = store(tmp_path / "vault", "Passw0rd")
    artifact = tmp_path / "vault" / manifest.id / manifest.artifact.file
    artifact.write_bytes(artifact.read_bytes()[:-1])  # only reading the artifact detects this
    password = tmp_path / "password"
    password.write_text("Passw0rd\n")
    password.chmod(0o600)
    target = tmp_path / "not there" / "plain.tar.gz"
    arguments = ["decrypt", manifest.id, "-o", target, "--vault", tmp_path / "vault", "--password-file", password]
    ended = a0backup(*arguments)
    assert "not there" in f"{ended.stdout}{ended.stderr}", ended.stdout


async def test_handoff_accepts_a_vault_instead_of_a_fleet_file(desk: Any) -> None:
    await desk.night()
    [manifest] = desk.stored
    target = desk.room / "handed"
    arguments = ["handoff", "--vault", str(desk.vault.root), "-o", str(target), manifest.id]
    ended = a0backup(*arguments)
    assert ended.returncode == 0, ended.stdout


async def test_list_accepts_a_vault_instead_of_a_fleet_file(desk: Any) -> None:
    await desk.night()
    ended = a0backup("list", "--vault", str(desk.vault.root))
    assert ended.returncode == 0, ended.stdout


async def test_sealed_artifacts_are_drilled_even_if_another_one_cannot_be_opened(sealed: Any, tmp_path: Path) -> None:
    desk = sealed.desk
    desk.put()  # a foreign backup, preserved first
    await desk.night()
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    # Make it the newest artifact of another node.
    folder = desk.vault.root / "a0-other" / theirs.id.partition("/")[2]
    folder.mkdir(parents=True)
    place = desk.vault.root / theirs.id
    for path in place.iterdir():
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = content.replace(f'"{desk.name}/'.encode(), b'"a0-other/')
            content = content.replace(f'"name": "{desk.name}"'.encode(), b'"name": "a0-other"')
        (folder / path.name).write_bytes(content)
    ended = a0backup("drill", "--vault", str(desk.vault.root), "--key", str(sealed.private))
    # Without a terminal, or with an empty answer at one, the unknown one is 'not opened'. The others are still drilled.
    assert "ok:" in ended.stdout, (ended.returncode, ended.stdout)
    assert ended.returncode == 1


@pytest.mark.parametrize("written", [b"x" * 1100, b"twelve or more\r", b"twelve \0 or more"], ids=["long", "CR", "NUL"])
def test_a_new_key_pair_can_be_opened_again(tmp_path: Path, written: bytes) -> None:
    passphrase, private = tmp_path / "passphrase", tmp_path / "recovery.key.pem"
    passphrase.write_bytes(written + b"\n")
    passphrase.chmod(0o600)
    arguments = ["key", "create", "--passphrase-file", str(passphrase), str(tmp_path)]
    made = a0backup(*arguments)
    if made.returncode != 0:
        return  # fine: refused
    # With the software.
    recovery_keys.load_private(private, recovery_keys.read_passphrase(passphrase))
    # With the commands of docs/restore.md: `IFS= read -rsp` and `-passin env:`. Only bash drops a NUL or more from it.
    typed = 'IFS= read -r PASSPHRASE < "$1" && export PASSPHRASE && openssl pkey -in "$2" -passin env:PASSPHRASE -noout'
    ended = subprocess.run(["bash", "-c", typed, "-", passphrase, private], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    # A person who reads it from paper types no CR.
    seen = written.decode().rstrip("\r")
    recovery_keys.load_private(private, seen)


# -- names in place of ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "nights"),
    [
        (["latest"], {("a0-1", "backup", 1), ("a0-1", "user-export", 0), ("a0-2", "backup", 0)}),
        (["a0-1"], {("a0-1", "backup", 1), ("a0-1", "user-export", 0)}),
        (["a0-1/backup"], {("a0-1", "backup", 1)}),
        (["a0-2", "latest"], {("a0-1", "backup", 1), ("a0-1", "user-export", 0), ("a0-2", "backup", 0)}),
    ],
)
def test_nodes_kinds_and_latest_name_the_newest_artifacts(
    place: Path, words: list[str], nights: set[tuple[str, str, int]]
) -> None:
    made = {}
    for of in (("a0-1", "backup", 0), ("a0-1", "backup", 1), ("a0-1", "user-export", 0), ("a0-2", "backup", 0)):
        node, kind, number = of
        made[store(place / "vault", "abc123", node=node, kind=kind, nights=number).id] = of
    ended = a0backup("verify", "--json", *words, cwd=place)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert {made[row["id"]] for row in rows} == nights
    assert {row["result"] for row in rows} == {"ok"}


def test_a_command_for_one_artifact_needs_a_name_for_one(place: Path) -> None:
    only = store(place / "vault", "abc123")
    assert only.id in a0backup("show", "a0-1", cwd=place).stdout
    other = store(place / "vault", "abc123", kind="user-export")
    ended = a0backup("show", "a0-1", cwd=place)
    assert ended.returncode == 2
    assert only.id in ended.stderr
    assert other.id in ended.stderr
    assert other.id in a0backup("show", "a0-1/user-export", cwd=place).stdout


def test_show_tells_that_the_artifact_is_missing(place: Path) -> None:
    manifest = store(place / "vault", "abc123")
    (place / "vault" / manifest.id / "backup.tar.gz.enc").unlink()
    ended = a0backup("show", manifest.id, cwd=place)
    assert ended.returncode == 4
    assert "the artifact cannot be found" in ended.stderr


def test_nothing_is_decrypted_to_standard_output(place: Path, keys: Keys) -> None:
    store(place / "vault", "abc123")
    ended = a0backup("decrypt", "a0-1", "-o", "-", *keys.password, cwd=place)
    assert ended.returncode == 2
    assert not (place / "-").exists()
    assert "name a file" in ended.stderr


def test_a_sealed_artifact_that_was_tried_without_its_key_asks_for_the_key(place: Path, keys: Keys) -> None:
    store(place / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    ended = a0backup("drill", "--password-file", keys.folder / "wrong", cwd=place)
    assert ended.returncode == 1
    assert "--key" in ended.stdout


def test_the_shell_completes_ids_and_nodes(place: Path) -> None:
    manifest = store(place / "vault", "abc123")

    def completed(*words: str) -> list[str]:
        environment = {"_A0BACKUP_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": "2"}
        ended = subprocess.run(
            [A0BACKUP], cwd=place, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return [line.partition(",")[2] for line in ended.stdout.splitlines()]

    assert completed("a0backup", "show", "") == ["latest", "a0-1", manifest.id]
    assert completed("a0backup", "verify", "a0-1/") == [manifest.id]
    assert "a0-1" in completed("a0backup", "run", "a0")
    (place / "fleet.yaml").write_text("broken: [")
    assert "a0-1" not in completed("a0backup", "run", "a0")


def test_both_kinds_of_a_node_are_handed_off_in_one_folder(place: Path) -> None:
    made = [store(place / "vault", "abc123", kind=kind) for kind in ("backup", "backup-sensitive")]
    ended = a0backup("handoff", "a0-1", "-o", "case", cwd=place)
    assert ended.returncode == 0, ended.stderr
    for manifest in made:
        folder = place / "case" / manifest.id.replace("/", "-")
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
        assert (folder / manifest.artifact.file).stat().st_mode & 0o777 == 0o600
