"""The flows that copy the vault to its places, and that read everything again."""

import shutil
from pathlib import Path

import pytest
import yaml

from a0backup.fleet.load import load_fleet
from a0backup.vault.known_vault import recognise
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.flows.conftest import run_and_read
from tests.support.places import ACCESS_KEY, BUCKET, s3_server
from tests.support.stored import store

pytestmark = pytest.mark.engine


@pytest.fixture
def with_places(fleet_yaml: Path) -> Path:
    """The fleet file with two places, and a vault with two artifacts."""
    content = yaml.safe_load(fleet_yaml.read_text())
    content["copies"] = [{"name": "nas", "url": "nas"}, {"name": "far", "url": "far"}]
    fleet_yaml.write_text(yaml.safe_dump(content))
    for night in range(2):
        store(fleet_yaml.parent / "vault", "Passw0rd", nights=night, size=4_000)
    return fleet_yaml


def test_a_night_copies_what_it_stores_as_a_step_of_its_own(
    engine: str, appliances: SimulatedFleet, with_places: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    run = run_and_read(backup_fleet, fleet=with_places, nodes=["a0-1"])
    assert run.flow_run.state.name == "Completed"
    assert run.states("copy-backup-a0-1") == ["Completed"]
    [stored] = [each for each in Vault(with_places.parent / "vault").manifests("a0-1") if each.flow_run != "run-1"]
    assert stored in Vault(with_places.parent / "nas").manifests()


def test_a_copy_brings_every_place_up_to_date_and_shows_it(engine: str, with_places: Path) -> None:
    from flows.copy_vault import copy_vault

    run = run_and_read(copy_vault, fleet=with_places)
    assert run.flow_run.state.name == "Completed"
    assert sorted(run.states("copy-to-")) == ["Completed", "Completed"]
    [table] = [artifact.data for artifact in run.artifacts if artifact.key == "copies-table"]
    assert '"copied": 2' in table
    for place in ("nas", "far"):
        assert len(Vault(with_places.parent / place).manifests()) == 2


def test_a_copy_fails_for_a_place_that_still_lacks_something(engine: str, with_places: Path) -> None:
    from flows.copy_vault import copy_vault

    (with_places.parent / "nas").write_text("not a folder")
    run = run_and_read(copy_vault, fleet=with_places)
    assert run.flow_run.state.name == "Failed"
    assert "nas: " in run.flow_run.state.message
    assert sorted(run.states("copy-to-")) == ["Completed", "Failed"]
    assert len(Vault(with_places.parent / "far").manifests()) == 2


def test_the_credentials_of_a_place_come_from_a_block_and_show_nowhere(
    engine: str, fleet_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.blocks.system import Secret

    from flows.backup_fleet import backup_fleet
    from flows.check_fleet import check_fleet
    from flows.copy_vault import copy_vault
    from flows.verify_vault import verify_vault

    (tmp_path / "s3").mkdir()
    with s3_server(tmp_path / "s3") as s3:
        for name, value in s3.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        content = yaml.safe_load(fleet_yaml.read_text())
        content["copies"] = [{"name": "offsite", "url": f"s3://{BUCKET}/vault", "secret_block": "a0-of-this-test"}]
        fleet_yaml.write_text(yaml.safe_dump(content))
        stored = store(fleet_yaml.parent / "vault", "Passw0rd", size=4_000)
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": s3.secret}

        missing = run_and_read(copy_vault, fleet=fleet_yaml)
        assert "Secret block a0-of-this-test cannot be loaded" in missing.flow_run.state.message
        Secret(value=keys).save("a0-of-this-test", overwrite=True)  # type: ignore[arg-type]  # it takes any JSON
        runs = [run_and_read(copy_vault, fleet=fleet_yaml), run_and_read(check_fleet, fleet=fleet_yaml)]
        runs.append(run_and_read(verify_vault, fleet=fleet_yaml, share="all"))
        assert [run.flow_run.state.name for run in runs] == ["Completed"] * 3
        assert (s3.folder / "vault" / stored.id / "manifest.json").exists()

        Secret(value=keys | {"aws_secret_access_key": s3.secret[::-1]}).save("a0-of-this-test", overwrite=True)  # type: ignore[arg-type]
        runs.append(run_and_read(verify_vault, fleet=fleet_yaml, share="all"))
        assert runs[-1].flow_run.state.name == "Failed"
        assert "SignatureDoesNotMatch" in runs[-1].flow_run.state.message
        # A lost vault is noticed, too, by the copies that only the block opens.
        Secret(value=keys).save("a0-of-this-test", overwrite=True)  # type: ignore[arg-type]
        shutil.rmtree(fleet_yaml.parent / "vault")
        runs.append(run_and_read(backup_fleet, fleet=fleet_yaml))
        assert "the place offsite holds the copies of one" in runs[-1].flow_run.state.message
        for run in runs:
            recorded = repr(
                [vars(run), *(each.model_dump_json() for each in [run.flow_run, *run.task_runs, *run.logs])]
            )
            assert s3.secret not in recorded
            assert s3.secret[::-1] not in recorded


def test_a_copy_does_nothing_where_there_are_no_places(engine: str, fleet_yaml: Path) -> None:
    from flows.copy_vault import copy_vault

    run = run_and_read(copy_vault, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Completed"
    assert not (fleet_yaml.parent / "vault").exists()


def test_a_verification_fails_for_what_is_damaged_and_mends_it_where_it_is_told_to(
    engine: str, with_places: Path
) -> None:
    from flows.copy_vault import copy_vault
    from flows.verify_vault import verify_vault

    run_and_read(copy_vault, fleet=with_places)
    [lost, _] = Vault(with_places.parent / "vault").manifests()
    shutil.rmtree(with_places.parent / "far" / lost.id)
    run = run_and_read(verify_vault, fleet=with_places, share="all")
    assert run.flow_run.state.name == "Failed"
    assert f"{lost.id} in far: missing" in run.flow_run.state.message
    assert run_and_read(verify_vault, fleet=with_places, share="all", repair=True).flow_run.state.name == "Completed"
    run = run_and_read(verify_vault, fleet=with_places, share="all")
    assert run.flow_run.state.name == "Completed"
    [table] = [artifact.data for artifact in run.artifacts if artifact.key == "verification-table"]
    assert table.count('"2 artifacts"') == 3


def test_a_stray_file_is_logged_whatever_its_name(engine: str, with_places: Path) -> None:
    from flows.copy_vault import copy_vault
    from flows.verify_vault import verify_vault

    run_and_read(copy_vault, fleet=with_places)
    for name in ("\udcff\udcfe", "\x1b[31mred\nERROR"):
        (with_places.parent / "nas" / name).write_bytes(b"1")
    run = run_and_read(verify_vault, fleet=with_places, share="all")
    assert run.flow_run.state.name == "Completed"
    strays = [log.message for log in run.logs if "belongs to no artifact" in log.message]
    assert len(strays) == 2
    assert all(line.isprintable() for line in strays)


def test_a_verification_has_nothing_to_do_before_the_first_night(engine: str, fleet_yaml: Path) -> None:
    from flows.verify_vault import verify_vault

    assert run_and_read(verify_vault, fleet=fleet_yaml).flow_run.state.name == "Completed"
    assert not (fleet_yaml.parent / "vault").exists()


def test_a_verification_fails_if_the_vault_that_was_used_is_gone(engine: str, with_places: Path) -> None:
    from flows.copy_vault import copy_vault
    from flows.verify_vault import verify_vault

    recognise(load_fleet(with_places))
    shutil.rmtree(with_places.parent / "vault")
    for flow in (copy_vault, verify_vault):
        run = run_and_read(flow, fleet=with_places)
        assert run.flow_run.state.name == "Failed"
        assert "does not exist" in run.flow_run.state.message
