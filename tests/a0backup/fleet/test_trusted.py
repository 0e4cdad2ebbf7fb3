"""A worker takes no fleet file of others, and quotes nothing of it: anyone who can start a run in the UI names it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from a0backup.errors import FleetFileError
from a0backup.fleet.trusted import FOLDERS, folders, load_trusted

VALID = "vault: ./vault\npassword: {env: P}\nnodes: [{name: a0-1, host: a}]\n"


@pytest.fixture
def fleets(tmp_path: Path) -> Path:
    made = tmp_path / "fleets"
    made.mkdir(mode=0o755)
    (made / "fleet.yaml").write_text(VALID)
    (made / "fleet.yaml").chmod(0o644)
    return made


@pytest.mark.parametrize("configured", [True, False])
def test_a_fleet_file_that_only_the_worker_can_write_is_taken(fleets: Path, configured: bool) -> None:
    assert load_trusted(fleets / "fleet.yaml", [fleets] if configured else []).path == fleets / "fleet.yaml"


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


def in_a_folder_of_others(path: Path) -> None:
    path.parent.chmod(0o777)


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "make", [writable_by_others, in_a_folder_of_others, of_another_user, a_pipe, a_link_to_itself, gone]
)
def test_any_other_fleet_file_is_refused(fleets: Path, make: Callable[[Path], None]) -> None:
    make(fleets / "fleet.yaml")
    with pytest.raises(FleetFileError):
        load_trusted(fleets / "fleet.yaml", [fleets])


def test_a_folder_above_that_others_can_write_is_refused(fleets: Path) -> None:
    fleets.parent.chmod(0o777)
    with pytest.raises(FleetFileError, match="a folder above it"):
        load_trusted(fleets / "fleet.yaml", [fleets])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_with_the_sticky_bit_that_belongs_to_another_user_is_refused(fleets: Path) -> None:
    fleets.chmod(0o1777)
    os.chown(fleets, 65534, 65534)
    with pytest.raises(FleetFileError):
        load_trusted(fleets / "fleet.yaml", [fleets])


def test_a_folder_above_with_the_sticky_bit_is_no_folder_of_others(fleets: Path) -> None:
    fleets.parent.chmod(0o1777)
    load_trusted(fleets / "fleet.yaml", [fleets])


def test_a_folder_in_which_others_can_make_files_beside_the_fleet_file_is_refused(fleets: Path) -> None:
    (fleets.parent / "link.yaml").symlink_to(fleets / "fleet.yaml")
    fleets.chmod(0o1777)
    with pytest.raises(FleetFileError, match="other users can write"):
        load_trusted(fleets / "fleet.yaml", [fleets])
    fleets.chmod(0o755)
    fleets.parent.chmod(0o1777)
    with pytest.raises(FleetFileError, match="other users can write"):
        load_trusted(fleets.parent / "link.yaml", [fleets])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
@pytest.mark.parametrize("link", ["file", "folder", "link to the link"])
def test_a_link_of_another_user_on_the_way_to_the_fleet_file_is_refused(
    fleets: Path, tmp_path: Path, link: str
) -> None:
    """Its owner decides which file is read: between the check and the reading, too."""
    place = tmp_path / "place"
    place.mkdir(0o755)
    (place / "file").symlink_to(fleets / "fleet.yaml")
    (place / "folder").symlink_to(fleets)
    (place / "link to the link").symlink_to(place / "file")
    named = {"file": "file", "folder": "folder/fleet.yaml", "link to the link": "link to the link"}[link]
    assert load_trusted(place / named, [fleets]).nodes
    os.chown(place / ("folder" if link == "folder" else "file"), 65534, 65534, follow_symlinks=False)
    with pytest.raises(FleetFileError, match="other users can write"):
        load_trusted(place / named, [fleets])


@pytest.mark.parametrize("named", ["elsewhere/fleet.yaml", "fleets/../elsewhere/fleet.yaml", "fleets/link.yaml"])
def test_a_fleet_file_outside_of_the_configured_folders_is_refused_without_a_word_of_its_content(
    fleets: Path, tmp_path: Path, named: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "fleet.yaml").write_text("root:$6$somebodyelses:secret\n")
    (fleets / "link.yaml").symlink_to(tmp_path / "elsewhere" / "fleet.yaml")
    with pytest.raises(FleetFileError, match=FOLDERS) as refused:
        load_trusted(tmp_path / named, [fleets])
    assert "somebody" not in str(refused.value)


def test_whether_a_file_exists_outside_of_the_configured_folders_is_not_told(fleets: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "folder").mkdir(parents=True)
    (elsewhere / "file").touch()
    (elsewhere / "loop").symlink_to("loop")
    (fleets / "out").symlink_to(elsewhere)

    def reason(named: Path) -> tuple[str, ...]:
        with pytest.raises(FleetFileError) as refused:
            load_trusted(named, [fleets])
        return refused.value.problems

    names = ["file", "folder", "folder/more", "file/below", "nothing", "nothing/below", "loop", "loop/below"]
    said = {
        reason(place / name) for name in names for place in (elsewhere, fleets / "out", fleets / ".." / "elsewhere")
    }
    assert said == {(f"this worker takes only fleet files below {fleets} ({FOLDERS})",)}
    assert reason(fleets / "nothing") == ("cannot be read: No such file or directory",)


def test_without_configured_folders_an_error_quotes_nothing_of_the_file(fleets: Path) -> None:
    (fleets / "fleet.yaml").write_text("A0_BACKUP_PASSWORD=somebodyelses\n")
    with pytest.raises(FleetFileError, match="a0backup check --fleet") as refused:
        load_trusted(fleets / "fleet.yaml", [])
    assert "somebody" not in str(refused.value)
    with pytest.raises(FleetFileError, match="line 1"):
        load_trusted(fleets / "fleet.yaml", [fleets])


def test_the_folders_are_written_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDERS, raising=False)
    assert folders() == ()
    monkeypatch.setenv(FOLDERS, "/etc/a0backup:/srv/a0backup")
    assert folders() == (Path("/etc/a0backup"), Path("/srv/a0backup"))
