"""What a backup lacks of the one before it, from their manifests."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from a0backup.backup.loop import NodeOutcomes, back_up_node
from a0backup.report.run_report import lines, markdown, to_json
from a0backup.upkeep.comparison import MAX_LOSSES, losses_of, lost_since, previous
from a0backup.vault.manifest import (
    MAX_COLLECTIONS,
    Encryption,
    Manifest,
    ManifestArtifact,
    ManifestNode,
    ManifestPassword,
    Verified,
    VerifiedCollection,
    VerifiedMember,
)
from a0backup.vault.vault import Vault
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Plainly, run_of, sharing
from tests.support.stored import START

MB = 10**6
UNREAD = Verified()


def collections(**documents: int) -> tuple[VerifiedCollection, ...]:
    """Collections of documents of 1 kB, by their names, the largest first."""
    found = [
        VerifiedCollection(name=f"auth0.{name}", documents=count, size=1000 * count)
        for name, count in documents.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.size))


def read(members: int = 10, unpacked: int = 1000 * MB, **more: Any) -> Verified:
    return Verified(level="contents", members=members, unpacked_size=unpacked, **more)


def manifest(verified: Verified = UNREAD, *, nights: int = 0, size: int = 200 * MB) -> Manifest:
    then = START + timedelta(days=nights)
    return Manifest(
        id=f"a0-1/{then:%Y%m%dT%H%M%SZ}-backup",
        node=ManifestNode(name="a0-1", host="127.0.0.1", port=1),
        kind="backup",
        name_on_node="x.tar.gz",
        started_at=then,
        stored_at=then,
        artifact=ManifestArtifact(file="backup.tar.gz.enc", size=size, md5="0" * 32, sha256="0" * 64),
        encryption=Encryption(password=ManifestPassword(mode="shared")),
        verified=verified,
        flow_run="run",
    )


def losses(
    before: Verified, now: Verified, *, shrink: float = 0.3, sizes: tuple[int, int] = (200 * MB, 200 * MB)
) -> str:
    found = lost_since(manifest(before, size=sizes[0]), now, size=sizes[1], shrink=shrink)
    assert all(each.endswith("(compared with a0-1/20261122T020000Z-backup)") for each in found)
    return "\n".join(found)


@pytest.mark.parametrize("name", ["oplog", "dump.oplog"])
def test_the_writes_during_a_dump_are_not_compared(name: str) -> None:
    """`mongodump --oplog` adds them as oplog.bson: thousands in one night, none in the next."""
    users = collections(users=2_000_000)
    before = read(collections=(*users, VerifiedCollection(name=name, documents=5_000, size=20 * MB)))
    assert losses(before, read(collections=(*users, VerifiedCollection(name=name, documents=0, size=0)))) == ""
    assert (
        losses(before, read(9, collections=users))
        == "it has 9 members; it had 10 (compared with a0-1/20261122T020000Z-backup)"
    )


def test_an_equal_or_larger_backup_lacks_nothing() -> None:
    before = read(collections=collections(users=2_000_000, clients=50), largest=(VerifiedMember(name="x", size=MB),))
    assert losses(before, before) == ""
    assert losses(before, read(11, 1100 * MB, collections=collections(users=2_100_000, clients=50, more=0))) == ""
    assert losses(UNREAD, UNREAD) == ""


def test_an_empty_collection_is_named_with_what_it_had() -> None:
    found = losses(
        read(collections=collections(users=2_000_000, clients=3)), read(collections=collections(users=0, clients=3))
    )
    assert found.startswith("the collection auth0.users is empty; it had 2,000,000 documents (")
    assert "\n" not in found


def test_a_collection_that_is_gone_is_named() -> None:
    found = losses(read(collections=collections(users=5, clients=3)), read(collections=collections(users=5)))
    assert found.startswith("the collection auth0.clients is gone; it had 3 documents")


def test_a_dump_without_any_collection_is_named() -> None:
    assert "no collection is in it, and there were 1" in losses(read(collections=collections(users=5)), read())
    assert losses(read(), read(collections=collections(users=5))) == ""


@pytest.mark.parametrize(("now", "named"), [(700, False), (699, True), (2, True)])
def test_a_collection_that_lost_more_than_the_share_is_named(now: int, named: bool) -> None:
    found = losses(read(collections=collections(users=1000)), read(collections=collections(users=now)))
    assert (f"the collection auth0.users has {now:,} documents; it had 1,000" in found) == named


def test_a_small_collection_may_lose_some_but_not_all_of_its_documents() -> None:
    before = read(collections=collections(locks=5))
    assert losses(before, read(collections=collections(locks=1))) == ""
    assert "auth0.locks is empty" in losses(before, read(collections=collections(locks=0)))


def test_the_share_is_that_of_the_fleet() -> None:
    before, now = read(collections=collections(users=1000)), read(collections=collections(users=500))
    assert losses(before, now, shrink=0.5) == ""
    assert "auth0.users has 500" in losses(before, now, shrink=0.49)


def test_documents_that_became_smaller_are_named() -> None:
    few = (VerifiedCollection(name="auth0.users", documents=1000, size=60 * MB),)
    found = losses(read(collections=few), read(collections=(few[0].model_copy(update={"size": 30 * MB}),)))
    assert "the collection auth0.users has 30.0 MB; it had 60.0 MB" in found


def test_members_that_are_gone_and_a_smaller_whole_are_named() -> None:
    found = losses(read(10, 1000 * MB), read(8, 600 * MB))
    assert found.splitlines()[0].startswith("it has 8 members; it had 10")
    assert found.splitlines()[1].startswith("it has 600.0 MB unpacked; it had 1.0 GB")


def test_a_large_member_that_shrank_or_is_gone_is_named() -> None:
    before = read(
        2, largest=(VerifiedMember(name="a.json", size=100 * MB), VerifiedMember(name="b.json", size=50 * MB))
    )
    now = read(2, largest=(VerifiedMember(name="a.json", size=60 * MB), VerifiedMember(name="c.json", size=50 * MB)))
    first, second = losses(before, now).splitlines()
    assert first.startswith("a.json has 60.0 MB; it had 100.0 MB")
    assert second.startswith("b.json is gone or below 0 B; it had 50.0 MB")


def test_without_its_contents_the_size_of_the_artifact_is_compared() -> None:
    assert losses(UNREAD, UNREAD, sizes=(200 * MB, 141 * MB)) == ""
    assert "it has 100.0 MB; it had 200.0 MB" in losses(UNREAD, UNREAD, sizes=(200 * MB, 100 * MB))
    assert "it has 100.0 MB; it had 200.0 MB" in losses(read(), UNREAD, sizes=(200 * MB, 100 * MB))


def test_a_collection_below_those_that_a_manifest_names_is_judged_by_the_smallest_of_them() -> None:
    many = {f"c{number}": 1000 + number for number in range(MAX_COLLECTIONS)}
    now = read(collections=collections(**many))
    assert losses(read(collections=collections(users=1100)), now) == ""
    assert "auth0.users is gone or below 1.0 MB; it had 9.0 MB" in losses(
        read(collections=collections(users=9000)), now
    )


def test_at_most_ten_losses_are_named_the_largest_collections_first() -> None:
    before = read(collections=collections(**{f"c{number}": 100 + number for number in range(30)}))
    found = lost_since(manifest(before), read(collections=collections(other=1)), size=1, shrink=0.3)
    assert len(found) == MAX_LOSSES
    assert "auth0.c29 is gone" in found[0]
    assert "and 21 more losses" in found[-1]


# -- which backup is the one before ------------------------------------------------------------------------------------


def kept(vault: Vault, *manifests: Manifest) -> None:
    for each in manifests:
        folder = vault.root / each.id
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(each.model_dump_json(by_alias=True))


def test_the_backup_before_is_the_newest_earlier_one_that_was_read(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    nights = [manifest(read(), nights=0), manifest(UNREAD, nights=1), manifest(read(), nights=2)]
    kept(vault, *nights, manifest(read(), nights=3))
    assert previous(vault, nights[2]) == nights[0]
    assert previous(vault, nights[1]) == nights[0]
    assert previous(vault, nights[0]) is None
    assert losses_of(vault, nights[0], 0.3) == ()


def test_if_none_was_read_the_newest_earlier_one_counts_and_unreadable_ones_do_not(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    nights = [manifest(UNREAD, nights=0), manifest(UNREAD, nights=1), manifest(read(), nights=2)]
    kept(vault, *nights)
    assert previous(vault, nights[2]) == nights[1]
    (tmp_path / nights[1].id / "manifest.json").write_text("{")
    assert previous(vault, nights[2]) == nights[0]


# -- in a run ----------------------------------------------------------------------------------------------------------


async def test_a_night_whose_largest_collection_is_empty_is_stored_and_named_in_the_report(desk: Desk) -> None:
    async def night(flow_run: str) -> NodeOutcomes:
        [node] = desk.fleet.nodes
        outcomes = NodeOutcomes(node, desk.fleet)
        run = run_of(desk.fleet, flow_run)
        await back_up_node(run, outcomes, take=Plainly(), shared=sharing(PASSWORD))
        return outcomes

    desk.configure(kinds=["backup", "backup-sensitive"])
    assert (await night("run-1")).warnings == []
    desk.tell("backup", "contents", are="empty_users", times=1)
    second = await night("run-2")
    assert [outcome.ok for outcome in second.all] == [True, True]
    [warning, *_] = second.warnings
    assert warning.node == desk.name
    assert warning.text.startswith("the collection auth0.users is empty; it had ")
    report = "\n".join(lines(second.all, second.warnings))
    assert f"warning: {desk.name}: the collection auth0.users is empty" in report
    assert "auth0.users is empty" in str(to_json(second.all, second.warnings)["warnings"])
    assert "is empty; it had" in markdown(second.all, fleet="fleet.yaml", warnings=second.warnings)
