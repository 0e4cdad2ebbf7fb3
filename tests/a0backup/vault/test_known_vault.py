"""A vault has an identity: one that is gone, or another in its place, is never taken for the vault."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from a0backup.errors import UnknownVaultError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.nodes.exposure import of_fleet
from a0backup.vault.known_vault import adopt, memory_warning, recognise, refusal, require_known, require_vault
from a0backup.vault.vault import Vault
from tests.support.paths import REPOSITORY
from tests.support.patience import patience
from tests.support.users import as_user, needs_root, open_folder


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / "operator"
    place.mkdir()
    (place / "fleet.yaml").write_text("vault: ../disk/vault\npassword: {env: P}\nnodes: [{name: a0-1, host: a}]\n")
    return load_fleet(place / "fleet.yaml")


def memory(fleet: Fleet) -> Path:
    return fleet.path.with_name(".fleet.yaml.vault")


def test_the_first_run_makes_the_vault_and_later_runs_recognise_it(fleet: Fleet) -> None:
    assert refusal(fleet) is None
    recognise(fleet)
    identity = require_vault(Vault(fleet.vault))
    recognise(fleet)
    require_known(fleet)
    assert require_vault(Vault(fleet.vault)) == identity
    assert (fleet.vault / "vault.json").stat().st_mode & 0o777 == 0o600
    assert json.loads(memory(fleet).read_text()) == {"schema": 1, "id": identity, "path": str(fleet.vault)}


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a folder with something else"])
def test_a_vault_that_is_not_there_is_refused_and_not_made_anew(fleet: Fleet, left: str) -> None:
    recognise(fleet)
    shutil.rmtree(fleet.vault)
    if left != "nothing":
        fleet.vault.mkdir()
    if left == "a folder with something else":
        (fleet.vault / "lost+found").mkdir()
    before = sorted(fleet.vault.parent.rglob("*"))
    for use in (recognise, require_known):
        with pytest.raises(UnknownVaultError, match=str(fleet.vault)) as caught:
            use(fleet)
        assert "a0backup vault use" in caught.value.hint()
    assert "it has no vault.json" in str(refusal(fleet))
    assert sorted(fleet.vault.parent.rglob("*")) == before


def test_another_vault_is_refused_until_the_operator_says_that_it_is_the_one(fleet: Fleet, tmp_path: Path) -> None:
    recognise(fleet)
    first = require_vault(Vault(fleet.vault))
    fleet.vault.rename(tmp_path / "aside")
    memory(fleet).unlink()
    recognise(fleet)
    shutil.rmtree(fleet.vault)
    (tmp_path / "aside").rename(fleet.vault)
    with pytest.raises(UnknownVaultError, match="is another vault than the one that was used last"):
        recognise(fleet)
    assert adopt(fleet) == first
    recognise(fleet)


def test_a_vault_that_was_moved_with_all_that_is_in_it_is_the_same(fleet: Fleet) -> None:
    recognise(fleet)
    moved = fleet.path.parent / "moved"
    fleet.vault.rename(moved)
    fleet.path.write_text(fleet.path.read_text().replace("../disk/vault", "moved"))
    require_known(load_fleet(fleet.path))


def with_read_only(folder: Path, code: str, fleet: Fleet) -> str:
    """Run Python *code*, which has the fleet as `fleet`, where *folder* is a read-only mount; return what it prints."""
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec {sys.executable} -c 'import sys;"
        " from a0backup.fleet.load import load_fleet; from a0backup.vault.known_vault import memory_warning, recognise;"
        f" fleet = load_fleet(sys.argv[1]); {code}'"
    )
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", f"{script} {fleet.path}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(f"no mount namespaces: {ended.stderr}")
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_vault_is_remembered_in_the_state_folder_where_nothing_can_be_written_beside_the_fleet_file(
    fleet: Fleet, tmp_path: Path
) -> None:
    assert with_read_only(fleet.path.parent, "recognise(fleet); print(memory_warning(fleet))", fleet) == "\n"
    assert not memory(fleet).exists()
    assert list((tmp_path / "state" / "a0backup" / "vaults").iterdir())
    shutil.rmtree(fleet.vault)
    with pytest.raises(UnknownVaultError, match="does not exist"):
        recognise(fleet)


def test_a_vault_that_nothing_can_remember_is_warned_of(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(fleet.path.parent / "state"))
    assert memory_warning(fleet) == ""
    said = with_read_only(fleet.path.parent, "recognise(fleet); print(memory_warning(fleet))", fleet)
    assert said.startswith(
        f"no run remembers which vault it used, as it cannot write {memory(fleet)} or {fleet.path.parent}/state/"
    )


@pytest.mark.parametrize("content", ["", "{torn"])
def test_a_memory_that_cannot_be_read_makes_no_new_vault(fleet: Fleet, content: str) -> None:
    recognise(fleet)
    shutil.rmtree(fleet.vault)
    memory(fleet).write_text(content)
    with pytest.raises(UnknownVaultError, match="cannot be recognised"):
        recognise(fleet)
    assert not fleet.vault.exists()


def test_a_torn_identity_is_set_aside_when_the_operator_says_that_this_is_the_vault(fleet: Fleet) -> None:
    recognise(fleet)
    (fleet.vault / "vault.json").write_text("{torn")
    identity = adopt(fleet)
    assert recognise(fleet) == identity
    [aside] = fleet.vault.glob("vault.json.unreadable-*")
    assert aside.read_text() == "{torn"


def test_an_unreadable_identity_is_refused(fleet: Fleet) -> None:
    recognise(fleet)
    (fleet.vault / "vault.json").write_text("{torn")
    with pytest.raises(UnknownVaultError, match=r"vault\.json cannot be read"):
        recognise(fleet)


def test_an_identity_of_a_later_schema_is_refused_as_such(fleet: Fleet) -> None:
    recognise(fleet)
    file = fleet.vault / "vault.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2, "more": 1}))
    with pytest.raises(UnknownVaultError, match="a later version wrote it"):
        recognise(fleet)


# -- file systems that do less -----------------------------------------------------------------------------------------


def looked_at(fleet: Fleet, *faults: str) -> str:
    """Return why a run would refuse the vault if the system calls of the process have these *faults*."""
    program = (
        "from a0backup.fleet.load import load_fleet; from a0backup.vault.known_vault import refusal;"
        f"error = refusal(load_fleet({str(fleet.path)!r})); print(error or 'able')"
    )
    named = ",".join(fault.partition(":")[0] for fault in faults)
    inject = [part for fault in faults for part in ("-e", f"inject={fault}")]
    call = ["strace", "-f", "-qq", "-e", f"trace={named}", *inject, "-o", "/dev/null", sys.executable, "-c", program]
    ended = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=patience(60))
    return ended.stdout.strip()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("flock:error=ENOSYS", "without locks (flock: Function not implemented)"),
        ("flock:retval=0", "whose locks lock nothing"),
        ("fsync:error=EINVAL", "cannot make names durable (fsync of a folder: Invalid argument)"),
    ],
)
def test_a_file_system_that_cannot_keep_a_vault_is_refused_with_the_call_and_its_meaning(
    fleet: Fleet, fault: str, says: str
) -> None:
    recognise(fleet)
    assert looked_at(fleet, "getppid:error=EPERM") == "able"
    said = looked_at(fleet, fault)
    assert says in said
    assert "HINT: move the vault to a file system of Linux" in said


@needs_root
def test_a_vault_in_a_folder_that_this_user_may_not_enter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_folder() as folder:
        (folder / "closed").mkdir(0o700)
        (folder / "fleet.yaml").write_text("vault: closed/vault\npassword: {env: P}\nnodes: [{name: a0-1, host: a}]\n")
        (folder / "fleet.yaml").chmod(0o644)
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        fleet = load_fleet(folder / "fleet.yaml")
        with as_user(12345, 54321):
            for use in (recognise, require_known, adopt):
                with pytest.raises(UnknownVaultError, match="Permission denied"):
                    use(fleet)
            assert "Permission denied" in str(refusal(fleet))
            assert isinstance(of_fleet(fleet), list)
            assert isinstance(memory_warning(fleet), str)
