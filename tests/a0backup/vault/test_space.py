"""Space for the next artifacts: the last one plus a quarter, in addition to what others are about to write."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.errors import VaultFullError
from a0backup.files import digests
from a0backup.vault.leftovers import verified_file
from a0backup.vault.manifest import ManifestNode, ManifestPassword
from a0backup.vault.quarantine import drop_all_quarantines, keep_given_up, make_room, quarantine
from a0backup.vault.space import Others, claim, excess, leaves_room, release, require_space, space_for, spare
from a0backup.vault.storing import store
from a0backup.vault.vault import Vault
from tests.support.disks import as_root, small_disk
from tests.support.users import as_user, needs_root

STARTED = datetime(2026, 11, 23, 2, tzinfo=UTC)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path / "vault")
    yield made
    for node in ("a0-1", "a0-2", "a0-3"):
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


def arriving(vault: Vault, node: str, size: int) -> Path:
    """Return a directory in which *size* bytes of the next artifact have arrived, all of them zeros."""
    place = vault.work(node) / "run-1"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "backup-retrieve.tar.gz.enc").open("wb") as file:
        file.truncate(size)
    return place


@pytest.mark.parametrize(("last", "arrived", "stopped"), [(10**8, 19 * 10**8, False), (10**8, 21 * 10**8, True)])
def test_a_retrieval_ends_where_it_is_far_larger_than_the_last_artifact(
    vault: Vault, last: int, arrived: int, stopped: bool
) -> None:
    stored(vault, "a0-1", last)
    space = claim(vault, "a0-1", "backup", arriving=arriving(vault, "a0-1", arrived))
    why = excess(vault, "a0-1", space, None)
    assert ("2,100,000,000 bytes arrived, and the last artifact had 100,000,000" in why) == stopped
    assert excess(vault, "a0-1", space, 3 * 10**9) == "", "what the operator allows decides"


def test_a_retrieval_ends_at_the_maximum_size_that_the_operator_set(vault: Vault) -> None:
    space = claim(vault, "a0-1", "backup", arriving=arriving(vault, "a0-1", 1001))
    assert excess(vault, "a0-1", space, 1001) == ""
    assert "contents.max_size" in excess(vault, "a0-1", space, 1000)


def test_a_retrieval_ends_before_it_takes_the_space_of_another_node(vault: Vault) -> None:
    free = space_for(vault, "a0-1", "backup").free
    first = claim(vault, "a0-1", "backup", arriving=arriving(vault, "a0-1", 5000))
    assert excess(vault, "a0-1", first, None) == ""
    stored(vault, "a0-2", int(free * 0.995 / 1.25))
    other = claim(vault, "a0-2", "backup", arriving=arriving(vault, "a0-2", 5000))
    assert "kept free for other nodes" in excess(vault, "a0-1", first, None)
    assert excess(vault, "a0-2", other, None) == "", "it has not written more than it claimed"
    release(vault, "a0-2")
    assert excess(vault, "a0-1", first, None) == ""


def test_bytes_in_a_subfolder_have_arrived_too(vault: Vault) -> None:
    place = arriving(vault, "a0-1", 1000)
    (place / "sub" / "folder").mkdir(parents=True)
    (place / "sub" / "folder" / "more").write_bytes(bytes(500))
    space = claim(vault, "a0-1", "backup", arriving=place)
    assert excess(vault, "a0-1", space, 1500) == ""
    assert "more than 1,499 bytes arrived" in excess(vault, "a0-1", space, 1499)


@as_root
def test_a_retrieval_whose_bytes_have_no_name_ends_before_it_takes_the_space_of_another_node(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        vault = Vault(disk)
        stored(vault, "a0-1", 4_000_000)
        stored(vault, "a0-2", 8_000_000)
        space = claim(vault, "a0-1", "backup", arriving=arriving(vault, "a0-1", 1000))
        claim(vault, "a0-2", "backup", arriving=arriving(vault, "a0-2", 1000))
        with (disk / "removed").open("wb") as file:
            (disk / "removed").unlink()
            file.write(bytes(8_000_000))
            file.flush()
            assert excess(vault, "a0-1", space, None) == ""
            file.write(bytes(6_000_000))
            file.flush()
            assert "kept free for other nodes" in excess(vault, "a0-1", space, None)
        for node in ("a0-1", "a0-2"):
            release(vault, node)


def others(vault: Vault, *nodes: str, since: datetime = STARTED + timedelta(days=1)) -> Others:
    return Others(vault, {node: ["backup", "user-export"] for node in nodes}, since=since)


def test_a_retrieval_beyond_its_claim_leaves_the_space_for_the_next_artifact_of_every_other_node(vault: Vault) -> None:
    """Also of those that are not at work, or had their turn tonight: there is a next night."""
    free = space_for(vault, "a0-1", "backup").free
    stored(vault, "a0-1", 1000)
    for node in ("a0-2", "a0-3"):
        stored(vault, node, int(free * 0.5 / 1.25))
    fleet = others(vault, "a0-2", "a0-3", since=STARTED)
    space = claim(vault, "a0-1", "backup", arriving=arriving(vault, "a0-1", 1000), others=fleet)
    assert excess(vault, "a0-1", space, None, fleet) == "", "it has written no more than it claimed"
    arriving(vault, "a0-1", 2000)
    assert "kept free for other nodes" in excess(vault, "a0-1", space, None, fleet)
    assert excess(vault, "a0-1", space, None, others(vault, "a0-2")) == ""


def test_where_the_disk_is_short_smaller_artifacts_come_first(vault: Vault) -> None:
    free = space_for(vault, "a0-1", "backup").free
    stored(vault, "a0-1", int(free * 0.6 / 1.25))
    stored(vault, "a0-2", int(free * 0.25 / 1.25))
    stored(vault, "a0-2", int(free * 0.25 / 1.25), kind="user-export")
    with pytest.raises(VaultFullError):
        claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"), others=others(vault, "a0-2"))
    with pytest.raises(VaultFullError):
        require_space(vault, "a0-1", "backup", others=others(vault, "a0-2"))
    claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"), others=others(vault, "a0-1"))
    release(vault, "a0-2")
    had_its_turn = others(vault, "a0-2", since=STARTED)
    claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"), others=had_its_turn)


def test_what_may_be_taken_for_a_moment_is_what_the_claims_of_others_leave(vault: Vault) -> None:
    free = space_for(vault, "a0-1", "backup").free
    assert spare(vault, "a0-1") > free * 0.5
    stored(vault, "a0-2", int(free * 0.9 / 1.25))
    claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"))
    assert spare(vault, "a0-1") < free * 0.2


def test_a_look_at_the_space_claims_none(vault: Vault) -> None:
    most = int(space_for(vault, "a0-1", "backup").free * 0.9 / 1.25)
    for node in ("a0-1", "a0-2"):
        stored(vault, node, most)
        require_space(vault, node, "backup")
    claim(vault, "a0-2", "backup", arriving=vault.work("a0-2"))
    with pytest.raises(VaultFullError):
        require_space(vault, "a0-1", "backup")


def quarantined(vault: Vault, node: str, day: int, size: int) -> Path:
    vault.folder(node).mkdir(parents=True, exist_ok=True)
    bytes_ = vault.folder(node) / "arrived"
    with bytes_.open("wb") as file:
        file.truncate(size)
    return quarantine(vault, node, "backup", bytes_, reason={}, now=STARTED + timedelta(days=day))


def test_quarantines_of_all_nodes_give_way_to_an_artifact(vault: Vault) -> None:
    theirs, given_up = quarantined(vault, "a0-2", 1, 100), keep_given_up(quarantined(vault, "a0-3", 1, 100))
    stored(vault, "a0-1", 8 * 10**18)
    with pytest.raises(VaultFullError):
        claim(vault, "a0-1", "backup", arriving=vault.work("a0-1"))
    assert not theirs.exists()
    assert given_up.exists(), "its backup is no longer on the node"


@pytest.mark.parametrize("what", ["loop", "link to another node's", "closed", "file"])
def test_a_quarantine_that_cannot_be_read_or_is_a_link_does_not_disturb_other_nodes(vault: Vault, what: str) -> None:
    theirs = quarantined(vault, "a0-2", 1, 100)
    elsewhere = vault.root.parent / "elsewhere"
    (elsewhere / "20990101T000000Z-backup").mkdir(parents=True)
    with (elsewhere / "20990101T000000Z-backup" / "huge").open("wb") as file:
        file.truncate(shutil.disk_usage(vault.root.parent).total // 5)
    place = vault.folder("a0-1") / "quarantine"
    place.parent.mkdir(parents=True)
    match what:
        case "loop":
            place.symlink_to("quarantine")
        case "link to another node's":
            place.symlink_to(elsewhere)
        case "closed":
            place.mkdir(0)
        case _:
            place.touch()
    assert make_room(vault, "a0-9", "backup", 1)
    assert theirs.exists()
    drop_all_quarantines(vault)
    assert not theirs.exists()
    assert (elsewhere / "20990101T000000Z-backup").exists()


@needs_root
def test_a_quarantine_of_another_user_does_not_disturb_other_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    vault = Vault(Path("vault"))
    with as_user(12345, 54321):
        theirs = quarantined(vault, "a0-2", 1, 100)
    quarantined(vault, "a0-1", 1, 100)
    (vault.folder("a0-1") / "quarantine").chmod(0o700)
    with as_user(12345, 54321):
        assert make_room(vault, "a0-9", "backup", 1)
        drop_all_quarantines(vault)
        assert not theirs.exists()


def test_all_quarantines_together_are_bounded_and_the_oldest_goes_first(vault: Vault) -> None:
    disk = shutil.disk_usage(vault.root.parent).total
    oldest, newest = (quarantined(vault, node, day, int(disk * 0.04)) for node, day in (("a0-2", 1), ("a0-1", 2)))
    assert make_room(vault, "a0-3", "backup", int(disk * 0.01))
    assert oldest.exists()
    assert make_room(vault, "a0-3", "backup", int(disk * 0.05))
    assert newest.exists()
    assert not oldest.exists()
    assert not make_room(vault, "a0-3", "backup", int(disk * 0.11))


def test_what_was_given_up_is_never_removed_and_counts_against_its_own_node_only(vault: Vault) -> None:
    disk = shutil.disk_usage(vault.root.parent).total
    given_up = keep_given_up(quarantined(vault, "a0-1", 1, int(disk * 0.06)))
    assert not make_room(vault, "a0-1", "backup", int(disk * 0.05))
    assert make_room(vault, "a0-2", "backup", int(disk * 0.09))
    assert given_up.exists()


def test_a_quarantine_that_is_replaced_needs_no_room_of_others(vault: Vault) -> None:
    disk = shutil.disk_usage(vault.root.parent).total
    theirs, former = (quarantined(vault, node, day, int(disk * 0.045)) for node, day in (("a0-2", 1), ("a0-1", 2)))
    assert make_room(vault, "a0-1", "backup", int(disk * 0.045))
    assert theirs.exists()
    assert former.exists(), "it is removed when the new one is there"


def test_the_other_quarantines_of_a_node_go_before_those_of_others(vault: Vault) -> None:
    disk = shutil.disk_usage(vault.root.parent).total
    theirs, own = (quarantined(vault, node, day, int(disk * 0.045)) for node, day in (("a0-2", 1), ("a0-1", 2)))
    assert make_room(vault, "a0-1", "user-export", int(disk * 0.045))
    assert theirs.exists()
    assert not own.exists()


def test_a_quarantine_leaves_room_for_the_next_artifact_of_every_node(vault: Vault) -> None:
    free = space_for(vault, "a0-1", "backup").free
    for node in ("a0-1", "a0-2"):
        stored(vault, node, int(free * 0.6 / 1.25))
    assert leaves_room(vault, "a0-1", "backup", others(vault))
    assert not leaves_room(vault, "a0-1", "backup", others(vault, "a0-2"))
