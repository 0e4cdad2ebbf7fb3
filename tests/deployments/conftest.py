"""A folder with a fleet.yaml and an empty server, to test what is registered and what a check finds."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.server import own_server
from tests.support.command import a0backup_in
from tests.support.deployed import PatientClient
from tests.support.login import logged_in


@pytest.fixture(scope="module")
def api(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = shutil.copytree(migrated_home, tmp_path_factory.mktemp("register") / "engine")
    with own_server(home) as api:
        yield api


class Desk:
    """A folder with a fleet.yaml, and the server to register with, cleared of what other tests registered."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder, self.api = folder, api
        self.client = PatientClient(base_url=api, auth=logged_in())
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": ":".join(logged_in()),
            "PREFECT_HOME": str(folder / "prefect"),
        }
        self.fleet_yaml()

    def fleet_yaml(self, **settings: object) -> None:
        nodes = [{"name": f"a0-{number}", "host": f"127.0.0.{number}"} for number in (1, 2)]
        content = {"vault": "./vault", "password": {"env": "A0_BACKUP_PASSWORD"}, "nodes": nodes} | settings
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(content))

    def register(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = self.environment | environment
        return a0backup_in(settings, "engine", "register", *arguments, cwd=self.folder, loud=True)

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/deployments/name/{name}").raise_for_status().json()
        return found

    def clear(self) -> None:
        for what in ("deployments", "automations"):
            for each in self.client.post(f"/{what}/filter", json={}).raise_for_status().json():
                self.client.delete(f"/{what}/{each['id']}").raise_for_status()
        for each in self.client.post("/v2/concurrency_limits/filter", json={}).raise_for_status().json():
            self.client.delete(f"/v2/concurrency_limits/{each['id']}").raise_for_status()
        for each in self.client.post("/block_documents/filter", json={}).raise_for_status().json():
            self.client.delete(f"/block_documents/{each['id']}").raise_for_status()
        self.client.delete("/work_pools/appliance")


@pytest.fixture
def desk(tmp_path: Path, api: str) -> Iterator[Desk]:
    desk = Desk(tmp_path, api)
    try:
        yield desk
    finally:
        desk.clear()
