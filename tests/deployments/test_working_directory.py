"""Prefect takes no settings from a folder that others can write: they could make it run any code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.patience import patience

API = "http://127.0.0.1:9/api"
SHOW = """
import os
from deployments.working_directory import leave_untrusted_directory
leave_untrusted_directory()
from deployments.home import operators_api
print(operators_api(), os.getcwd())
"""
SETTINGS = {
    "prefect.toml": f'[api]\nurl = "{API}"\n',
    "pyproject.toml": f'[tool.prefect.api]\nurl = "{API}"\n',
    ".env": f"PREFECT_API_URL={API}\n",
}


def shown(here: Path, home: Path) -> tuple[str, str, str]:
    """Return the API address that Prefect finds in *here*, the directory it then works in, and what was said."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", SHOW],
        cwd=here,
        env={"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=True,
    )
    api, directory = ended.stdout.split()
    return api, directory, ended.stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    made = tmp_path / "here"
    made.mkdir(mode=0o755)
    return made


@pytest.mark.parametrize(("name", "content"), SETTINGS.items(), ids=SETTINGS)
def test_settings_beside_the_operators_own_files_are_used(here: Path, tmp_path: Path, name: str, content: str) -> None:
    (here / name).write_text(content)
    (here / name).chmod(0o644)
    assert shown(here, tmp_path) == (API, str(here), "")


@pytest.mark.parametrize(("name", "content"), SETTINGS.items(), ids=SETTINGS)
@pytest.mark.parametrize(("folder", "file"), [(0o777, 0o644), (0o1777, 0o600), (0o775, 0o644), (0o755, 0o666)])
def test_settings_that_others_can_write_are_ignored_and_named(
    here: Path, tmp_path: Path, name: str, content: str, folder: int, file: int
) -> None:
    (here / name).write_text(content)
    (here / name).chmod(file)
    if os.geteuid() == 0:
        os.chown(here, 0, 1)
    here.chmod(folder)
    api, directory, said = shown(here, tmp_path)
    assert (api, directory) == ("None", "/")
    assert f"{here / name} is ignored" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_settings_of_another_user_are_ignored(here: Path, tmp_path: Path) -> None:
    (here / "prefect.toml").write_text(SETTINGS["prefect.toml"])
    os.chown(here / "prefect.toml", 65534, 65534)
    assert shown(here, tmp_path)[:2] == ("None", "/")


def test_a_folder_that_others_can_write_is_left_without_a_word_if_it_has_no_settings(
    here: Path, tmp_path: Path
) -> None:
    here.chmod(0o777)
    assert shown(here, tmp_path) == ("None", "/", "")
