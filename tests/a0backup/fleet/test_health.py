"""`health` in fleet.yaml: each node has an address of its own, and the key is never in the file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from a0backup.errors import FleetFileError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet

KEY = {"file": "health.key"}


def fleet_with(folder: Path, **more: Any) -> Fleet:
    content = {"vault": "vault", "password": {"env": "A"}, "nodes": [{"name": "a0-1", "host": "127.0.0.1"}]}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(content | more))
    return load_fleet(folder / "fleet.yaml")


@pytest.mark.parametrize(
    ("url", "host", "address"),
    [
        ("https://{host}/health", "10.0.0.1", "https://10.0.0.1/health"),
        ("https://{host}/health/", "10.0.0.1", "https://10.0.0.1/health"),
        ("https://{host}:9110", "10.0.0.1", "https://10.0.0.1:9110"),
        ("https://{host}/health", "fe80::1", "https://[fe80::1]/health"),
        ("https://{name}.example.com/health", "10.0.0.1", "https://a0-1.example.com/health"),
    ],
)
def test_the_address_is_that_of_each_node(tmp_path: Path, url: str, host: str, address: str) -> None:
    health = fleet_with(tmp_path, health={"url": url, "key": KEY}).health
    assert health is not None
    assert health.url_of(host, "a0-1") == address
    assert health.on_failure == "refuse"
    assert health.key.file == tmp_path / "health.key"


@pytest.mark.parametrize(
    ("health", "says"),
    [
        ({"url": "http://{host}:9110"}, "write https://: the key is sent with each request"),
        ({"url": "https://manage.example.com/health"}, "is the same for all nodes"),
        ({"url": "{host}/health"}, "write https://{host}/health"),
        ({"url": "https://{node}/health"}, "write https://{host}/health"),
        ({"url": "https://{host}/health?x=1"}, "write https://{host}/health"),
        ({"url": "https://{host}:port/health"}, "write https://{host}/health"),
        ({"key": {}}, "name exactly one of secret_block, env or file"),
        ({"key": {"env": "A", "file": "b"}}, "name exactly one of secret_block, env or file"),
        ({"on_failure": "ignore"}, "write refuse or warn"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(tmp_path: Path, health: dict[str, Any], says: str) -> None:
    with pytest.raises(FleetFileError, match="health") as caught:
        fleet_with(tmp_path, health={"url": "https://{host}/health", "key": KEY} | health)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "health",
    [
        {"key": "Canary5Key"},
        {"key": {"env": "Canary5Key=x"}},
        {"key": {"Canary5Key": "x"}},
        {"key": {"file": "f", "Canary5Key": None}},
        {"key": ["Canary5Key"]},
        {"key": KEY, "url": "https://api_keys_health:Canary5Key@{host}/health"},
    ],
)
def test_a_key_that_was_written_into_the_file_is_never_repeated(tmp_path: Path, health: dict[str, Any]) -> None:
    with pytest.raises(FleetFileError) as caught:
        fleet_with(tmp_path, health={"url": "https://{host}/health"} | health)
    assert "Canary5Key" not in str(caught.value)


def test_a0cli_does_not_get_the_variable_of_the_key(tmp_path: Path) -> None:
    with pytest.raises(FleetFileError, match="remove HEALTH_KEY, which holds the key"):
        fleet_with(
            tmp_path,
            a0cli={"env": ["HEALTH_KEY"]},
            health={"url": "https://{host}/health", "key": {"env": "HEALTH_KEY"}},
        )
