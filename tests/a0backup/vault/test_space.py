"""Space for the next artifacts: the last one plus a quarter, in addition to what others are about to write."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.errors import VaultFullError
from a0backup.files import digests
from a0backup.vault.leftovers import verified_file
from a0backup.vault.manifest import ManifestNode, ManifestPassword
from a0backup.vault.space import claim, release, space_for
from a0backup.vault.storing import store
from a0backup.vault.vault import Vault

STARTED = datetime(2026, 11, 23, 2, tzinfo=UTC)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path / "vault")
    yield made
    for node in ("a0-1", "a0-2"):
        release(made, node)


def stored(vault: Vault, node: str, size: int, *, kind: str = "backup", started_at: datetime = STARTED) -> None:
    """Store an artifact whose manifest says that it took *size* bytes."""
    place = verified_file(vault, node, kind)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"an artifact")
    manifest = store(
        vault,
        node=ManifestNode(name=node, host="127.0.0.1", port=1),
        kind=kind,
        name_on_node="n",
        expected=digests(place),
        started_at=started_at,
        password=ManifestPassword(mode="shared"),
        flow_run="run-1",
        now=started_at,
    )
    file = vault.root / manifest.id / "manifest.json"
    file.write_text(file.read_text().replace('"size": 11', f'"size": {size}'))


def test_the_needed_space_is_the_last_artifact_of_that_node_and_kind_plus_a_quarter(vault: Vault) -> None:
    stored(vault, "a0-1", 4_000_000)
    stored(vault, "a0-1", 1_000_000, started_at=STARTED + timedelta(days=1))
    stored(vault, "a0-1", 40, kind="backup-sensitive", started_at=STARTED + timedelta(days=2))
    stored(vault, "a0-2", 9_000_000)
    space = space_for(vault, "a0-1", "backup")
    assert (space.needed, space.last, space.enough) == (1_250_000, 1_000_000, True)
    assert space.free > 0


def test_a_first_artifact_has_no_known_size(vault: Vault) -> None:
    space = space_for(vault, "a0-1", "backup")
    assert (space.needed, space.last, space.enough) == (0, None, True)


def test_too_little_space_is_an_error_that_says_how_much_is_free(vault: Vault) -> None:
    stored(vault, "a0-1", 8 * 10**18)
    with pytest.raises(VaultFullError, match="a0-1: no room for the backup: it may take 10,000,000,000") as full:
        claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"))
    assert full.value.needed == 10**19
    assert full.value.free == pytest.approx(space_for(vault, "a0-1", "backup").free, rel=0.2)


def test_space_that_another_node_is_about_to_use_is_not_free(vault: Vault) -> None:
    half = int(space_for(vault, "a0-1", "backup").free * 0.55 / 1.25)
    stored(vault, "a0-1", half)
    stored(vault, "a0-2", half)
    claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"))
    claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"))  # the same node again
    with pytest.raises(VaultFullError):
        claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"))
    release(vault, "a0-1")
    claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"))


def test_bytes_that_have_already_arrived_are_counted_once(vault: Vault, tmp_path: Path) -> None:
    """They already reduce the free space on the disk and must not be subtracted again."""
    half = int(space_for(vault, "a0-1", "backup").free * 0.55 / 1.25)
    stored(vault, "a0-1", half)
    stored(vault, "a0-2", half)
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    claim(vault, "a0-1", "backup", arriving=arriving)
    with (arriving / "backup-retrieve.tar.gz.enc").open("wb") as file:
        file.truncate(int(half * 1.25))  # sparse: has the size without taking the space
    claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"))
