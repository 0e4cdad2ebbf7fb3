"""The read-only check of a node: it changes nothing and says what the next run would do."""
# Other processes make the awaited conditions true, and nothing else runs in a test's event loop.
# ruff: noqa: ASYNC110

import asyncio
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from a0backup.files import digests, make_private_directory
from a0backup.fleet.fields import FIRST_SPLIT_BUILD
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import KEYSTREAM_REUSE, Existing
from a0backup.identity import BackupIdentity
from a0backup.nodes.check import (
    check_node,
    fleet_notes,
    fleet_room,
    fleet_warnings,
    recovery_key_problems,
)
from a0backup.report.outcomes import Finding, Problem
from a0backup.vault.journal import Effect, Journal, JournalFile
from a0backup.vault.leftovers import verified_file
from a0backup.vault.manifest import ManifestNode, ManifestPassword
from a0backup.vault.storing import store
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet

NOW = datetime.now(UTC).replace(microsecond=0)
LOOKS = {"update-commands", "ping", "backup-status", "backup-sensitive-status", "user-export-status"}
BOTH = ["backup", "backup-sensitive"]
ONE_HALF = (
    "backup is made without backup-sensitive, and the node's build keeps the encryption keys out of backup: an"
    " installation cannot be fully recovered from it; add backup-sensitive to `kinds` in fleet.yaml; a `build` there"
    " must be 11638 or later"
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    # The first node, for `old_desk`, has the last build before the keys got their own backup.
    state, builds = tmp_path_factory.mktemp("fleet"), {"a0-1": FIRST_SPLIT_BUILD - 1}
    with SimulatedFleet(state, 60, size=20_000, backup_seconds=0.05, builds=builds) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def unused(simulated: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return itertools.chain(simulated.nodes[1:])


class Desk:
    """A node of the simulator and a vault, both as an earlier run may have left them."""

    def __init__(self, simulated: SimulatedFleet, node: dict[str, Any], room: Path) -> None:
        self.simulated, self.node, self.name, self.room = simulated, node, str(node["name"]), room
        self.configure()
        self.folder = self.vault.folder(self.name)
        make_private_directory(self.folder)

    def configure(self, **overrides: object) -> None:
        self.fleet = load_fleet(self.simulated.fleet_yaml(self.room / "fleet.yaml", nodes=[self.node], **overrides))

    @property
    def vault(self) -> Vault:
        return Vault(self.fleet.vault)

    def tell(self, command: str | None, fault: str, **settings: Any) -> None:
        self.simulated.tell(self.name, command, fault, **settings)

    def put(self) -> BackupIdentity:
        held = self.simulated.put(self.name, password="their own")
        return BackupIdentity(name=held["name"], md5=held["md5"])

    def journal(self, pinned: BackupIdentity | None = None) -> None:
        journal = Journal(
            node=self.name,
            kind="backup",
            host=self.node["host"],
            port=self.node["port"],
            flow_run="run-1",
            started_at=NOW,
            sealed=False,
            effect=Effect.OPENED if pinned else Effect.UNKNOWN,
            pinned=pinned,
        )
        JournalFile(self.folder, "backup").write(journal)

    def store(self) -> BackupIdentity:
        """Put a backup on the node that is already in the vault as ours."""
        pair = self.put()
        held = self.simulated.holds(self.name)
        assert held is not None
        content = Path(held["path"]).read_bytes()
        place = verified_file(self.vault, self.name, "backup")
        place.parent.mkdir(0o700, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o600)
        store(
            self.vault,
            node=ManifestNode(name=self.name, host="127.0.0.1", port=1),
            kind="backup",
            name_on_node=pair.name,
            expected=digests(place),
            started_at=NOW,
            password=ManifestPassword(mode="shared"),
            flow_run="run-1",
            now=NOW,
        )
        return pair

    async def check(self, existing: Existing | None = None) -> Finding:
        """Check the node and return the finding. Assert that the check changed nothing."""
        [node] = self.fleet.nodes
        before = self.state(), len(self.simulated.calls(self.name))
        finding = await check_node(self.fleet, node, existing=existing)
        assert self.state() == before[0]
        assert {call["command"] for call in self.simulated.calls(self.name)[before[1] :]} <= LOOKS
        return finding

    def state(self) -> dict[str, object]:
        """Return everything in the vault and on the node."""
        state: dict[str, object] = {"on the node": self.simulated.holds(self.name)}
        for path in sorted(self.fleet.vault.rglob("*")):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            state[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
        return state


@pytest.fixture
def desk(simulated: SimulatedFleet, unused: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    return Desk(simulated, next(unused), tmp_path)


@pytest.fixture
def old_desk(simulated: SimulatedFleet, tmp_path: Path) -> Desk:
    return Desk(simulated, simulated.nodes[0], tmp_path)


async def test_a_free_node_passes_and_would_be_backed_up(desk: Desk) -> None:
    finding = await desk.check()
    assert re.fullmatch(r"\d+\.\d [GT]B free", finding.room)
    assert finding == Finding(
        node=desk.name,
        room=finding.room,
        ok=True,
        reachable=True,
        status="nothing there",
        would="start a backup, retrieve, verify and store it, delete it on the node (nothing is on the node)",
        warnings=(ONE_HALF,),
    )


async def test_a_vault_without_space_for_the_next_artifact_is_a_problem(desk: Desk) -> None:
    desk.store()
    [manifest] = desk.vault.manifests(desk.name)
    finding = await desk.check()
    assert finding.room.endswith(f"GB free, the last backup took {manifest.artifact.size / 1000:.1f} kB")
    file = desk.vault.root / manifest.id / "manifest.json"
    file.write_text(file.read_text().replace(f'"size": {manifest.artifact.size}', f'"size": {10**18}'))
    finding = await desk.check()
    assert not finding.ok
    assert finding.room.endswith("the last backup took 1000.0 PB")
    [problem] = finding.problems
    assert problem.text.startswith(
        "no room for the backup: it may take 1,250,000,000,000,000,000 bytes, the vault's disk has"
    )
    assert problem.hint.startswith("free space")


async def test_space_for_each_node_but_not_for_all_of_them_is_a_problem_of_the_fleet(desk: Desk) -> None:
    desk.store()
    [manifest] = desk.vault.manifests(desk.name)
    assert fleet_room(desk.fleet, desk.fleet.nodes * 100) == ()
    share = shutil.disk_usage(desk.fleet.vault).free // 3
    file = desk.vault.root / manifest.id / "manifest.json"
    file.write_text(file.read_text().replace(f'"size": {manifest.artifact.size}', f'"size": {share}'))
    assert fleet_room(desk.fleet, desk.fleet.nodes) == ()
    [problem] = fleet_room(desk.fleet, desk.fleet.nodes * 4)
    assert problem.text.startswith("no room for the artifacts of all 4 nodes: they may take ")
    assert problem.hint.startswith("free space")


@pytest.mark.parametrize(
    ("existing", "would"),
    [
        ("preserve", "retrieve, verify and store it, delete it on the node, then start a backup ("),
        ("replace", "delete the backup on the node without keeping it, then start one ("),
        ("fail", "leave the node alone and fail ("),
    ],
)
async def test_a_foreign_backup_would_be_handled_as_the_policy_says(desk: Desk, existing: Existing, would: str) -> None:
    pair = desk.put()
    desk.configure(existing=existing)
    finding = await desk.check()
    assert finding.would.startswith(would)
    assert finding.status == f"found {pair.name} ({pair.md5})"
    said_for_once = await desk.check(existing="preserve")
    assert said_for_once.would.startswith("retrieve, verify and store it")


async def test_the_node_would_be_asked_again_for_an_unfinished_backup(desk: Desk) -> None:
    desk.journal()
    assert (await desk.check()).would.startswith(
        "check again for the backup that was started, and start one if it is missing "
    )


async def test_a_backup_of_ours_on_the_node_would_be_finished_and_no_other_started(desk: Desk) -> None:
    desk.journal(desk.put())
    assert (await desk.check()).would.startswith("retrieve, verify and store it, delete it on the node (")


async def test_a_stored_backup_would_be_read_back_and_deleted(desk: Desk) -> None:
    desk.journal(desk.store())
    assert (await desk.check()).would.startswith("read back what the vault has of it, delete it on the node (")


async def test_a_stored_backup_that_is_off_the_node_would_be_read_back(desk: Desk) -> None:
    desk.journal(desk.store())
    desk.simulated.remove(desk.name)
    assert (await desk.check()).would.startswith("read back the stored artifact, ")


@pytest.mark.parametrize(("ours", "then"), [(True, "node ("), (False, "node, then start a backup of its own (")])
async def test_a_backup_in_progress_would_be_awaited(desk: Desk, ours: bool, then: str) -> None:
    desk.tell("backup-status", "in_progress")
    if ours:
        desk.journal()
    finding = await desk.check()
    assert finding.status == "in progress"
    assert finding.would.startswith(
        f"await the backup in progress, retrieve, verify and store it, delete it on the {then}"
    )


async def test_an_unreadable_journal_would_be_set_aside_and_the_backup_preserved(desk: Desk) -> None:
    desk.configure(existing="replace")
    desk.put()
    (desk.folder / "journal-backup.json").write_text("torn")
    finding = await desk.check()
    assert finding.would.startswith("set the unreadable journal aside; retrieve, verify and store it")


async def test_a_node_locked_by_a_run_would_be_waited_for_and_is_not_disturbed(desk: Desk) -> None:
    descriptor = os.open(desk.folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        finding = await desk.check()
    finally:
        os.close(descriptor)
    assert finding.would.startswith("wait for the run that holds the node; then start a backup")


async def test_the_check_does_not_create_a_missing_vault(desk: Desk) -> None:
    desk.folder.rmdir()
    desk.fleet.vault.rmdir()
    assert (await desk.check()).ok
    assert not desk.fleet.vault.exists()


async def test_a_vault_that_cannot_be_created_is_a_problem(desk: Desk) -> None:
    desk.folder.rmdir()
    desk.fleet.vault.rmdir()
    desk.fleet.vault.write_text("a file in the way")
    finding = await desk.check()
    assert not finding.ok
    assert str(desk.fleet.vault) in finding.problems[0].text


async def test_an_unknown_wording_is_a_problem_with_the_configuration_line_that_teaches_it(desk: Desk) -> None:
    desk.tell("backup-status", "say", stdout="Zilch in the larder", when="absent")
    finding = await desk.check()
    assert not finding.ok
    assert finding.reachable
    assert "Zilch in the larder" in " ".join(problem.text for problem in finding.problems)
    assert finding.teach == 'a0cli: {replies: {absent: ["Zilch in the larder"]}}'
    desk.configure(a0cli={"replies": {"absent": ["Zilch in the larder"]}})
    taught = await desk.check()
    assert (taught.ok, taught.status, taught.teach) == (True, "nothing there", "")


async def test_an_unreachable_node_is_distinguished_from_one_that_refuses(desk: Desk) -> None:
    desk.tell(None, "unreachable")
    gone = await desk.check()
    assert (gone.ok, gone.reachable, gone.status, gone.would) == (False, False, "not asked", "nothing")
    desk.simulated.forget(desk.name)
    desk.tell("update-commands", "refuse", message="error: permission denied\n")
    refused = await desk.check()
    assert not refused.ok
    assert "permission denied" in " ".join(problem.text for problem in refused.problems)


async def test_a_node_without_the_backup_role_is_a_problem(desk: Desk) -> None:
    desk.tell(None, "no_role")
    finding = await desk.check()
    assert not finding.ok
    assert "backup" in finding.problems[0].text


async def test_a_build_that_is_too_old_is_reported_without_touching_the_node(desk: Desk) -> None:
    desk.node = desk.node | {"build": 6867}
    desk.configure()
    finding = await desk.check()
    assert not finding.ok
    assert desk.simulated.calls(desk.name) == []


async def test_problems_of_the_whole_fleet_are_also_problems_of_the_node(desk: Desk) -> None:
    [node] = desk.fleet.nodes
    finding = await check_node(desk.fleet, node, known=[Problem("no password")])
    assert (finding.ok, finding.problems) == (False, (Problem("no password"),))


async def test_a_check_can_be_cancelled(desk: Desk) -> None:
    desk.tell("backup-status", "hang")
    look = asyncio.ensure_future(desk.check())
    while not desk.simulated.calls(desk.name, "backup-status"):
        await asyncio.sleep(0.01)
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look


# ---------------------------------------------------------------------------------------------------------------------
# Two halves


async def test_a_node_that_makes_only_one_half_passes_with_a_warning(desk: Desk) -> None:
    finding = await desk.check()
    assert (finding.ok, finding.warnings) == (True, (ONE_HALF,))
    desk.configure(kinds=["backup-sensitive"])
    finding = await desk.check()
    [warning] = finding.warnings
    assert finding.ok
    assert warning.startswith("backup-sensitive is made without backup, ")


async def test_a_node_that_makes_both_halves_passes_without_a_warning(desk: Desk) -> None:
    desk.configure(kinds=[*BOTH, {"user-export": ["_id"]}])
    finding = await desk.check()
    assert (finding.ok, finding.warnings) == (True, ())
    assert finding.status == "backup: nothing there; backup-sensitive: nothing there; user-export: nothing there"


async def test_with_a_declared_build_the_missing_half_is_reported_even_if_the_node_is_unreachable(desk: Desk) -> None:
    desk.node = desk.node | {"build": FIRST_SPLIT_BUILD}
    desk.configure()
    desk.tell(None, "unreachable")
    finding = await desk.check()
    assert (finding.ok, finding.warnings) == (False, (ONE_HALF,))


async def test_an_older_build_keeps_everything_in_one_backup(old_desk: Desk) -> None:
    old_desk.configure(kinds=BOTH)
    undeclared = await old_desk.check()
    assert not undeclared.ok
    assert undeclared.problems[0].text == "backup-sensitive is not offered by the node"
    old_desk.node = old_desk.node | {"build": FIRST_SPLIT_BUILD - 1}
    old_desk.configure(kinds=BOTH)
    finding = await old_desk.check()
    assert (finding.ok, finding.status, finding.warnings) == (True, "nothing there", ())


async def test_an_outdated_declared_build_is_detected_from_what_the_node_offers(desk: Desk) -> None:
    desk.node = desk.node | {"build": FIRST_SPLIT_BUILD - 1}
    desk.configure(kinds=BOTH)
    finding = await desk.check()
    assert (finding.ok, finding.status, finding.warnings) == (True, "nothing there", (ONE_HALF,))


# ---------------------------------------------------------------------------------------------------------------------
# Password and keys


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, bytes]:
    """Return the public part of a recovery key, its private part unencrypted, and the same under a passphrase."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    forms = (serialization.NoEncryption(), serialization.BestAvailableEncryption(b"a passphrase"))
    private = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, form) for form in forms]
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), private[0], private[1]


@pytest.fixture
def sealed(desk: Desk, pair: tuple[bytes, bytes, bytes]) -> Desk:
    (desk.room / "keys").mkdir(0o700)
    (desk.room / "keys/recovery.pub.pem").write_bytes(pair[0])
    seal_to(desk, "keys/recovery.pub.pem")
    return desk


def seal_to(desk: Desk, *paths: str) -> None:
    path = desk.simulated.fleet_yaml(desk.room / "fleet.yaml", nodes=[desk.node], kinds=BOTH)
    text = path.read_text()
    assert '  env: "A0_BACKUP_PASSWORD"' in text
    path.write_text(text.replace('env: "A0_BACKUP_PASSWORD"', f"sealed_to: {list(paths)}"))
    desk.fleet = load_fleet(path)


def test_a_shared_password_causes_one_warning_for_the_whole_fleet(desk: Desk) -> None:
    assert fleet_warnings(desk.fleet) == (KEYSTREAM_REUSE,)
    assert "sealed_to" in KEYSTREAM_REUSE
    assert len(KEYSTREAM_REUSE) < 500  # a report truncates longer text
    assert (fleet_notes(desk.fleet), recovery_key_problems(desk.fleet)) == ((), ())


def test_sealed_passwords_are_reported_with_the_fingerprint_that_openssl_shows(sealed: Desk) -> None:
    path = sealed.room / "keys/recovery.pub.pem"
    der = subprocess.run(["openssl", "pkey", "-pubin", "-in", path, "-outform", "DER"], capture_output=True, check=True)
    fingerprint = hashlib.sha256(der.stdout).hexdigest()
    assert fleet_notes(sealed.fleet) == (
        f"the password of each backup is sealed to {path}, recovery key {fingerprint}",
    )
    assert (fleet_warnings(sealed.fleet), recovery_key_problems(sealed.fleet)) == ((), ())


def test_an_unusable_recovery_key_is_a_problem_with_a_hint(sealed: Desk, pair: tuple[bytes, bytes, bytes]) -> None:
    seal_to(sealed, "keys/recovery.pub.pem", "keys/gone.pem")
    [problem] = recovery_key_problems(sealed.fleet)
    assert problem.text.startswith(f"recovery key {sealed.room}/keys/gone.pem: ")
    assert problem.hint
    assert len(fleet_notes(sealed.fleet)) == 1
    (sealed.room / "keys/gone.pem").write_bytes(pair[1])
    assert "PRIVATE" in recovery_key_problems(sealed.fleet)[0].text


@pytest.mark.parametrize("form", [1, 2])
async def test_a_private_key_next_to_the_public_one_or_in_the_vault_causes_a_warning(
    sealed: Desk, pair: tuple[bytes, bytes, bytes], form: int
) -> None:
    places = [sealed.room / "keys/recovery.key.pem", sealed.fleet.vault / "notes.txt"]
    for place in places:
        place.write_bytes(b"kept here for now\n" + pair[form])
    assert [warning.split()[0] for warning in fleet_warnings(sealed.fleet)] == [str(place) for place in places]
    (sealed.folder / "recovery.key.pem").write_bytes(pair[form])
    (sealed.folder / "recovery.key.pem").chmod(0o600)
    finding = await sealed.check()
    assert finding.ok
    [warning] = finding.warnings
    assert warning.startswith(f"{sealed.folder}/recovery.key.pem looks like the private part of a recovery key")


def test_other_private_keys_and_odd_files_are_not_taken_for_a_recovery_key(sealed: Desk) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    folder = sealed.room / "keys"
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    (folder / "a0cli-key").write_bytes(pem)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "large").write_bytes(b"-----BEGIN ENCRYPTED PRIVATE KEY-----" + bytes(1 << 20))
    (folder / "bad").write_bytes(b"-----BEGIN RSA PRIVATE KEY-----\n\xff")
    (folder / "folder.pem").mkdir()
    assert fleet_warnings(sealed.fleet) == ()


def test_an_a0cli_key_that_others_can_use_causes_a_warning_but_a_public_key_does_not(desk: Desk) -> None:
    keys = desk.room / "a0cli keys"
    keys.mkdir()
    for name, mode in (("a0cli-key", 0o600), ("a0cli-key.pub", 0o644)):
        (keys / name).write_text("x")
        (keys / name).chmod(mode)
    desk.configure(a0cli={"key_dir": str(keys)})
    assert fleet_warnings(desk.fleet) == (KEYSTREAM_REUSE,)
    (keys / "a0cli-key").chmod(0o640)
    (keys / "linked").symlink_to("a0cli-key")
    [warning] = set(fleet_warnings(desk.fleet)) - {KEYSTREAM_REUSE}
    assert f"{keys}/a0cli-key has mode 0640, and 1 more; chmod go= '{keys}'/*" in warning
    assert "full rights on the nodes" in warning


def test_missing_keys_and_a_missing_vault_cause_no_warning(sealed: Desk) -> None:
    sealed.folder.rmdir()
    sealed.fleet.vault.rmdir()
    settings = sealed.fleet.a0cli.model_copy(update={"key_dir": sealed.room / "nowhere"})
    assert fleet_warnings(sealed.fleet.model_copy(update={"a0cli": settings})) == ()


async def test_a_vault_that_others_can_read_causes_a_warning_that_names_the_open_paths(desk: Desk) -> None:
    desk.configure(kinds=BOTH)
    desk.store()
    (desk.folder / "a link").symlink_to("lock")  # its mode means nothing
    assert (await desk.check()).warnings == ()
    root = desk.fleet.vault
    root.chmod(0o750)
    [warning] = fleet_warnings(desk.fleet)[1:]
    assert warning.startswith(f"others can read the vault: {root} has mode 0750; chmod go= {root} (")
    [manifest] = desk.vault.manifests(desk.name)
    artifact = desk.vault.artifact(manifest)
    for path in (artifact, desk.folder / "passwords"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(0o644)
    finding = await desk.check()
    assert finding.ok
    assert finding.warnings == (
        f"others can read the vault: {artifact} has mode 0644, and 1 more; chmod -R go= {desk.folder}",
    )
    await (await asyncio.create_subprocess_exec("chmod", "-R", "go=", desk.folder)).wait()
    assert (await desk.check()).warnings == ()


async def test_a_vault_with_thousands_of_artifacts_is_checked_quickly(desk: Desk) -> None:
    desk.configure(kinds=BOTH)
    for number in range(3000):
        folder = desk.folder / f"2020{number:04}T000000Z-backup"
        folder.mkdir(0o700)
        (folder / "open").touch(0o644)
    finding = await check_node(desk.fleet, desk.fleet.nodes[0])
    assert ", and 9 more" in finding.warnings[0]


@pytest.mark.parametrize("what", ["fleet.yaml", ".", "keys/recovery.pub.pem", "keys", "bin/a0cli", "bin", "a0cli-keys"])
def test_what_others_can_write_and_so_decide_what_a_run_does_causes_a_warning(sealed: Desk, what: str) -> None:
    (sealed.room / "bin").mkdir()
    (sealed.room / "bin" / "a0cli").write_text("#!/bin/sh\n")
    (sealed.room / "bin" / "a0cli").chmod(0o755)
    (sealed.room / "a0cli-keys").mkdir()
    settings = {"path": str(sealed.room / "bin" / "a0cli"), "key_dir": sealed.room / "a0cli-keys"}
    fleet = sealed.fleet.model_copy(update={"a0cli": sealed.fleet.a0cli.model_copy(update=settings)})
    fleet.loaded_from(sealed.fleet.path)
    assert fleet_warnings(fleet) == ()
    place = sealed.room / what
    place.chmod(place.stat().st_mode | 0o002)
    [warning] = fleet_warnings(fleet)
    assert warning.startswith(f"others can write {place} and so decide ")
    assert warning.endswith(f": chmod go-w {place}")
    if place.is_dir():
        place.chmod(place.stat().st_mode | 0o1000)
        # With the sticky bit nobody can replace what is there. A prefect.yaml or a key can still be added.
        assert bool(fleet_warnings(fleet)) == (what in (".", "a0cli-keys"))


def others_decide(desk: Desk, **a0cli: object) -> list[str]:
    """Return the places that a check names because others can write them."""
    fleet = desk.fleet.model_copy(update={"a0cli": desk.fleet.a0cli.model_copy(update=a0cli)})
    fleet.loaded_from(desk.fleet.path)
    said = [re.match(r"others can write (.*) and so decide ", warning) for warning in fleet_warnings(fleet)]
    return [match[1] for match in said if match]


def program(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("#!/bin/sh\n")
    place.chmod(0o755)
    return place


def test_a_link_to_a0cli_in_a_folder_of_others_causes_a_warning(desk: Desk) -> None:
    target, links = program(desk.room / "opt/a0cli"), desk.room / "links"
    links.mkdir()
    (links / "a0cli").symlink_to(target)
    assert others_decide(desk, path=str(links / "a0cli")) == []
    links.chmod(0o777)
    assert others_decide(desk, path=str(links / "a0cli")) == [str(links)]


def test_a_folder_of_others_that_path_names_before_a0clis_own_causes_a_warning(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, own, last = (desk.room / name for name in ("first", "own", "last"))
    for folder in (first, own, last):
        folder.mkdir()
    program(own / "a0cli")
    last.chmod(0o777)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (first, own, last))))
    assert others_decide(desk, path="a0cli") == []
    first.chmod(0o1777)
    assert others_decide(desk, path="a0cli") == [str(first)]


def test_a_folder_of_others_far_above_what_decides_causes_one_warning(desk: Desk) -> None:
    a0cli = program(desk.room / "far/above/opt/bin/a0cli")
    (desk.room / "far").chmod(0o777)
    assert others_decide(desk, path=str(a0cli)) == [str(desk.room / "far")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_that_belongs_to_another_user_causes_a_warning_that_names_the_owner(desk: Desk) -> None:
    keys = desk.room / "a0cli keys"
    keys.mkdir()
    for number in range(20):
        (keys / f"a0cli-key-{number:02}").touch(0o600)
    assert others_decide(desk, key_dir=keys) == []
    for key in keys.iterdir():
        os.chown(key, 65534, 65534)
    assert len(others_decide(desk, key_dir=keys)) == 5
    desk.configure(a0cli={"key_dir": str(keys)})
    assert any("which keys a0cli uses: it belongs to nobody" in warning for warning in fleet_warnings(desk.fleet))


def test_a_password_file_in_a_folder_of_others_causes_a_warning(desk: Desk) -> None:
    folder = desk.room / "secrets"
    folder.mkdir()
    (folder / "password").touch(0o600)
    password = desk.fleet.password.model_copy(update={"env": None, "file": folder / "password"})
    path = desk.fleet.path
    desk.fleet = desk.fleet.model_copy(update={"password": password})
    desk.fleet.loaded_from(path)
    assert others_decide(desk) == []
    folder.chmod(0o777)
    assert others_decide(desk) == [str(folder)]


async def test_a_check_leaves_no_copy_of_a_key(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert (await desk.check()).ok
    assert not [path for path in desk.room.rglob("*") if "a0backup-" in path.name]
    assert (tmp_path / "state" / "a0backup" / "keys").is_dir()


def test_what_decides_where_copies_go_and_others_can_write_causes_a_warning(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that is a place, and the settings by which the other places are reached."""
    home = desk.room / "home"
    files = [home / ".aws/config", home / ".ssh/known_hosts"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch(0o600)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    nas = desk.room / "nas"
    nas.mkdir()
    places = [("nas", str(nas)), ("offsite", "s3://bucket/a0"), ("far", "sftp://host/srv/a0")]
    desk.configure(copies=[{"name": name, "url": url} for name, url in places])
    assert others_decide(desk) == []
    for place in (nas, *files):
        place.chmod(0o777)
        assert others_decide(desk) == [str(place)]
        place.chmod(0o700)
