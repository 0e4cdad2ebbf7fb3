"""`drills` in fleet.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from a0backup.errors import FleetFileError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet

FLEET = {"vault": "vault", "password": {"env": "A0_PASSWORD"}, "nodes": [{"name": "a0-1", "host": "192.168.1.186"}]}


def loaded(folder: Path, **drills: Any) -> Fleet:
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(FLEET | {"drills": drills}))
    return load_fleet(file)


def test_without_drills_the_defaults_count(tmp_path: Path) -> None:
    drills = loaded(tmp_path).drills
    assert (drills.max_age, drills.shrink) == (90 * 86_400, 0.3)


def test_an_age_and_a_share_are_read(tmp_path: Path) -> None:
    assert loaded(tmp_path, max_age="30d", shrink="5%").drills.shrink == 0.05
    assert loaded(tmp_path, max_age="off").drills.max_age is None


@pytest.mark.parametrize("shrink", ["0%", "101%", "30", 30, 0.3, "30 %", "-1%", "1e1%", "٣%", "1000%", True, None])
def test_another_share_is_refused_with_what_to_write(tmp_path: Path, shrink: Any) -> None:
    with pytest.raises(FleetFileError) as refused:
        loaded(tmp_path, shrink=shrink)
    assert "drills.shrink" in str(refused.value)
    assert "write a share from 1% to 100%" in str(refused.value)
