"""`copies` in fleet.yaml: each address means one place, and an error says what to write."""

from pathlib import Path

import pytest
import yaml

from a0backup.errors import FleetFileError, UnknownPlaceError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet


def fleet_with(folder: Path, *copies: object, **more: object) -> Fleet:
    content = {
        "vault": "vault",
        "password": {"env": "A0_BACKUP_PASSWORD"},
        "nodes": [{"name": "a0-1", "host": "127.0.0.1"}],
        "copies": list(copies),
        **more,
    }
    (folder / "fleet.yaml").write_text(yaml.safe_dump(content))
    return load_fleet(folder / "fleet.yaml")


@pytest.mark.parametrize(
    ("url", "scheme", "root"),
    [
        ("nas", "file", "{folder}/nas"),
        ("/mnt/nas/a0", "file", "/mnt/nas/a0"),
        ("file:///mnt/my%20nas", "file", "/mnt/my nas"),
        ("s3://bucket", "s3", ""),
        ("s3://bucket/some/prefix/", "s3", "some/prefix"),
        ("sftp://a0@host:2222/srv/a0", "sftp", "srv/a0"),
        ("sftp://host/srv/a0", "sftp", "srv/a0"),
    ],
)
def test_an_address_names_a_kind_of_place_and_its_root(tmp_path: Path, url: str, scheme: str, root: str) -> None:
    [copy] = fleet_with(tmp_path, {"name": "nas", "url": url}).copies
    assert (copy.scheme, copy.root) == (scheme, root.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("copy", "says"),
    [
        ({"url": "s3://key:Canary7@bucket/x"}, "never write credentials into an address"),
        ({"url": "s3://key@bucket/x"}, "never write credentials into an address"),
        ({"url": "sftp://a0:Canary7@host/x"}, "never write credentials into an address"),
        ({"url": "ftp://host/x"}, "write a folder, s3://BUCKET/PREFIX or sftp://USER@HOST/FOLDER"),
        ({"url": "s3://"}, "write a folder, s3://BUCKET/PREFIX"),
        ({"url": "s3://bucket/../other"}, "write a folder, s3://BUCKET/PREFIX"),
        ({"url": "sftp://host"}, "write a folder, s3://BUCKET/PREFIX"),
        ({"url": "s3://bucket/x?versionId=1"}, "has '?' or '#' in it"),
        ({"url": 7}, "write a folder"),
        ({"url": "vault"}, "the folder is the vault, lies in it or contains it"),
        ({"url": "vault/copies"}, "the folder is the vault, lies in it or contains it"),
        ({"url": "."}, "the folder is the vault, lies in it or contains it"),
        ({"prove": "checksum"}, "prove: checksum is for s3:// places"),
        ({"prove": "trust"}, "write read or checksum"),
        ({"profile": "backup"}, "profile is for s3:// places"),
        ({"secret_block": "a0-nas"}, "secret_block is for s3:// and sftp:// places"),
        ({"url": "s3://bucket/a", "secret_block": "A0"}, "write a block's name"),
        ({"limit": "20MB"}, "write 20MB/s or 500kB/s"),
        ({"limit": 20}, "write 20MB/s or 500kB/s"),
        ({"limit": "1GB/s ", "at_most": 0}, "write a whole number from 1 to 32"),
        ({"name": "NAS"}, "write 1 to 32 lower-case letters"),
        ({"name": "vault"}, "`vault` names the vault itself"),
        ({"key": "AKIA"}, "unknown key"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_with_what_to_write(
    tmp_path: Path, copy: dict[str, object], says: str
) -> None:
    with pytest.raises(FleetFileError) as raised:
        fleet_with(tmp_path, {"name": "nas", "url": "/mnt/nas", **copy})
    assert says in str(raised.value)
    assert "Canary7" not in str(raised.value)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("/mnt/nas", "file:///mnt//nas/"),
        ("/mnt/nas", "/mnt/x/../nas"),
        ("sftp://a0@host/srv/a0", "sftp://a0@HOST:22/srv//a0/"),
        ("sftp://host/srv/a0", "sftp://host/srv/%610"),
        ("s3://bucket/a0", "s3://bucket//a0/"),
    ],
)
def test_two_spellings_of_one_address_are_one_place(tmp_path: Path, one: str, same: str) -> None:
    with pytest.raises(FleetFileError, match="two places have the same url"):
        fleet_with(tmp_path, {"name": "nas", "url": one}, {"name": "far", "url": same})


def test_a_link_to_the_vault_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "link").symlink_to("vault")
    with pytest.raises(FleetFileError, match="the folder is the vault"):
        fleet_with(tmp_path, {"name": "nas", "url": "link"})


@pytest.mark.parametrize("same", [{"name": "nas"}, {"url": "/mnt/nas"}])
def test_each_copy_has_a_name_and_a_place_of_its_own(tmp_path: Path, same: dict[str, str]) -> None:
    with pytest.raises(FleetFileError, match="two places have the same"):
        fleet_with(tmp_path, {"name": "nas", "url": "/mnt/nas"}, {"name": "far", "url": "/mnt/far", **same})


def test_one_copy_is_required_where_there_are_any(tmp_path: Path) -> None:
    places = [{"name": "nas", "url": "/mnt/nas"}, {"name": "far", "url": "/mnt/far"}]
    assert fleet_with(tmp_path).copies_required == 0
    assert fleet_with(tmp_path, *places).copies_required == 1
    assert fleet_with(tmp_path, *places, require_copies=0).copies_required == 0
    assert fleet_with(tmp_path, *places, require_copies=2).copies_required == 2
    with pytest.raises(FleetFileError, match="at most the number of copies, which is 2"):
        fleet_with(tmp_path, *places, require_copies=3)


def test_a_rate_is_in_bytes_per_second(tmp_path: Path) -> None:
    [copy] = fleet_with(tmp_path, {"name": "nas", "url": "/mnt/nas", "limit": "1.5MB/s"}).copies
    assert copy.limit == 1_500_000


def test_a_place_is_chosen_by_its_name(tmp_path: Path) -> None:
    fleet = fleet_with(tmp_path, {"name": "nas", "url": "/mnt/nas"}, {"name": "far", "url": "/mnt/far"})
    assert [copy.name for copy in fleet.chosen_copies(["far"])] == ["far"]
    assert fleet.chosen_copies([]) == fleet.copies
    with pytest.raises(UnknownPlaceError, match="did you mean nas"):
        fleet.chosen_copies(["nass"])
