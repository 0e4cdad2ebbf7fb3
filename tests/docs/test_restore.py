"""docs/restore.md: its commands, run as printed, recover every byte with only what it says is needed."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from a0backup.fleet.copies import Copy
from a0backup.passwords.sealed import random_password
from a0backup.places.catching_up import catch_up
from a0backup.places.places import Place
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from tests.support.paths import REPOSITORY
from tests.support.stored import PASSPHRASE, Keys, store

PAGE = REPOSITORY / "docs" / "restore.md"
# The only tools that the page may use. Its commands can reach neither Python nor anything of this project.
TOOLS = [
    "openssl",
    "sed",
    "grep",
    "base64",
    "sha256sum",
    "md5sum",
    "sort",
    "cut",
    "ls",
    "cp",
    "mkdir",
    "rm",
    "shred",
    "tar",
    "gzip",
]
SHARED = "Canary7 Pässw0rd"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("offline"), SHARED)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def blocks(*, but: str) -> list[str]:
    """Return the runnable blocks of the page in order, except those of the section whose heading contains *but*."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = [section for section in sections if but not in section.partition("\n")[0]]
    assert len(wanted) == len(sections) - 1
    return re.findall(r"^<!-- runnable -->\n```sh\n(.*?)^```$", "\n".join(wanted), re.MULTILINE | re.DOTALL)


def with_places(block: str, artifact: Path, key: Path) -> str:
    """Fill in the two paths that the reader fills in."""
    for name, path in {"ARTIFACT": artifact, "KEY": key}.items():
        block, count = re.subn(rf"^{name}=\S+", f"{name}='{path}'", block, flags=re.MULTILINE)
        assert count == 1
    return block


def follow(
    place: Path,
    tools: Path,
    vault: Path,
    manifest: Manifest,
    key: Path,
    *,
    but: str,
    typed: str,
    clean_up: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Follow the page in *place*. Keep what it unpacks unless *clean_up*."""
    first, *rest = blocks(but=but)
    if not clean_up:
        rest.pop()
    script = "\n".join([with_places(first, Vault(vault).artifact(manifest), key), *rest])
    return subprocess.run(
        [shutil.which("bash") or "bash", "-e", "-c", script],
        cwd=place,
        env={"PATH": str(tools)},
        input=f"{typed}\n",
        capture_output=True,
        text=True,
    )


def unpacked(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(manifest: Manifest, vault: Path, password: str, place: Path) -> dict[str, bytes]:
    """Return the bytes of every member, read with Python's own tarfile."""
    from a0backup.artifact.encryption import decryptor

    plain = place / "expected.tar.gz"
    plain.write_bytes(decryptor(password).update(Vault(vault).artifact(manifest).read_bytes()))
    with tarfile.open(plain) as tar:
        members = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in members.items() if file is not None}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "restore").mkdir()
    return tmp_path / "restore"


@pytest.mark.parametrize("recipient", ["recovery", "other"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_recipient_opens_a_whole_sealed_artifact_whichever_candidate_fits(
    tmp_path: Path, place: Path, tools: Path, keys: Keys, recipient: str, which: int
) -> None:
    vault, candidates = tmp_path / "a vault", [random_password() for _ in range(3)]
    sealed = [box for password in candidates for box in keys.seal(password, "recovery", "other")]
    manifest = store(vault, candidates[which], sealed=sealed, size=300_000)
    key = keys.folder / f"{recipient}.key.pem"
    ended = follow(place, tools, vault, manifest, key, but="3b. Shared", typed=PASSPHRASE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"password-{which + 1} opens it, the whole file" in ended.stdout
    assert ended.stdout.count("opens it") == 1
    assert ended.stdout.count(": OK") == 2
    assert unpacked(place / "unpacked") == expected(manifest, vault, candidates[which], tmp_path)
    assert (place / "backup.tar.gz").read_bytes() == (tmp_path / "expected.tar.gz").read_bytes()
    assert {path.stat().st_mode & 0o077 for path in place.iterdir()} == {0}


def test_restoring_an_artifact_with_one_key_and_one_candidate_leaves_nothing_behind(
    tmp_path: Path, place: Path, tools: Path, keys: Keys
) -> None:
    password = random_password()
    manifest = store(tmp_path / "vault", password, sealed=keys.seal(password, "recovery"))
    key = keys.folder / "recovery.key.pem"
    vault = tmp_path / "vault"
    ended = follow(place, tools, vault, manifest, key, but="3b. Shared", typed=PASSPHRASE, clean_up=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "dump/auth0/users.bson" in ended.stdout
    assert list(place.iterdir()) == []


def test_a_whole_shared_artifact_is_opened(tmp_path: Path, place: Path, tools: Path, keys: Keys) -> None:
    manifest = store(tmp_path / "vault", SHARED)
    ended = follow(place, tools, tmp_path / "vault", manifest, Path("none"), but="3a. Sealed", typed=SHARED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "password: shared" in ended.stdout
    assert unpacked(place / "unpacked") == expected(manifest, tmp_path / "vault", SHARED, tmp_path)


async def test_a_copy_in_a_further_place_is_opened_like_the_vault(
    tmp_path: Path, place: Path, tools: Path, keys: Keys
) -> None:
    password = random_password()
    manifest = store(tmp_path / "vault", password, sealed=keys.seal(password, "recovery"))
    nas = Place(Vault(tmp_path / "vault"), Copy(name="nas", url=str(tmp_path / "nas")))
    assert not (await catch_up(nas, [manifest])).is_behind
    shutil.rmtree(tmp_path / "vault")
    key = keys.folder / "recovery.key.pem"
    ended = follow(place, tools, tmp_path / "nas", manifest, key, but="3b. Shared", typed=PASSPHRASE)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert unpacked(place / "unpacked") == expected(manifest, tmp_path / "nas", password, tmp_path)


def test_a_wrong_password_fails_as_the_page_says(tmp_path: Path, place: Path, tools: Path, keys: Keys) -> None:
    manifest = store(tmp_path / "vault", SHARED)
    ended = follow(place, tools, tmp_path / "vault", manifest, Path("none"), but="3a. Sealed", typed="wrong")
    assert ended.returncode
    assert "not in gzip format" in ended.stderr
    assert not (place / "password").exists()


def test_a_damaged_artifact_fails_its_checksums(tmp_path: Path, place: Path, tools: Path, keys: Keys) -> None:
    manifest = store(tmp_path / "vault", SHARED)
    artifact = Vault(tmp_path / "vault").artifact(manifest)
    artifact.write_bytes(artifact.read_bytes()[:-1])
    ended = follow(place, tools, tmp_path / "vault", manifest, Path("none"), but="3a. Sealed", typed=SHARED)
    assert ended.returncode
    assert "backup.tar.gz.enc: FAILED" in ended.stdout


def test_every_block_of_commands_is_run() -> None:
    # The other way to take a password, and the derivation of the key without openssl, which needs Python.
    assert PAGE.read_text(encoding="utf-8").count("```sh") == len(blocks(but="3a. Sealed")) + 3


def test_the_key_can_be_derived_where_openssl_cannot_do_it(tmp_path: Path, place: Path) -> None:
    manifest = store(tmp_path / "vault", "Canary7Password")
    text = PAGE.read_text(encoding="utf-8").partition("disabled for fips")[2]
    [block] = re.findall(r"```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[:1]
    (place / "password-1").write_text("Canary7Password\n")
    ended = subprocess.run(
        ["bash", "-e", "-c", block],
        cwd=place,
        env=os.environ | {"ARTIFACT": str(Vault(tmp_path / "vault").artifact(manifest))},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["1f", "8b"]), ended.stderr


def test_a_mistyped_passphrase_is_not_taken_for_a_wrong_key(
    tmp_path: Path, place: Path, tools: Path, keys: Keys
) -> None:
    manifest = store(tmp_path / "vault", "abc123", sealed=keys.seal("abc123", "recovery"))
    key = keys.folder / "recovery.key.pem"
    ended = follow(place, tools, tmp_path / "vault", manifest, key, but="3b. Shared", typed="mistyped")
    assert "yours is" not in ended.stdout
