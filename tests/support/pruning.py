"""A vault with many nights, in which artifacts are tiny and no node is needed, for tests of retention.

nights = Nights(tmp_path)
nights.add(days_ago=3)
plan = nights.plan(keep_daily=7)
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.retention.planning import Plan, plan_vault
from a0backup.vault import known_vault
from a0backup.vault.drilled import Drilled, write_drilled
from a0backup.vault.vault import Vault

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=1)


class Nights:
    """A fleet file and its vault. Each artifact begins at 02:00 UTC on its day; the second kind 20 minutes later."""

    def __init__(self, folder: Path, *, now: datetime = NOW, vault: str = "vault", **settings: Any) -> None:
        self.folder, self.now = folder, now
        self.vault = Vault(folder / vault)
        self.fleet_yaml = folder / "fleet.yaml"
        self.settings: dict[str, Any] = {
            "vault": vault,
            "a0cli": {"key_dir": "keys"},
            "password": {"env": "A0_BACKUP_PASSWORD"},
            "nodes": [{"name": f"a0-{number}", "host": f"127.0.0.{number}"} for number in (1, 2, 3)],
            "retention": {"keep_daily": 3, "keep_min": 1, "prune_most": "100%"},
        }
        known_vault.create(self.vault)
        self.change(**settings)

    def change(self, **settings: Any) -> Fleet:
        """Change the fleet file, and return the fleet."""
        self.settings |= settings
        self.fleet_yaml.write_text(yaml.safe_dump(self.settings))
        return load_fleet(self.fleet_yaml)

    @property
    def fleet(self) -> Fleet:
        return load_fleet(self.fleet_yaml)

    def add(
        self,
        *,
        days_ago: int,
        node: str = "a0-1",
        kind: str = "backup",
        hour: int = 2,
        ours: bool = True,
        level: str = "contents",
        run: str = "",
        changed: Mapping[str, Any] | None = None,
    ) -> str:
        """Store an artifact and return its id."""
        start = (self.now - timedelta(days=days_ago)).replace(hour=hour, minute=20 if kind != "backup" else 0)
        folder = self.vault.folder(node) / f"{start:%Y%m%dT%H%M%SZ}-{kind}"
        folder.mkdir(parents=True, mode=0o700)
        artifact = f"{node} {folder.name}".encode()
        (folder / f"{kind}.tar.gz.enc").write_bytes(artifact)
        manifest = {
            "schema": 1,
            "id": f"{node}/{folder.name}",
            "node": {"name": node, "host": "127.0.0.1", "port": 10121},
            "kind": kind,
            "name_on_node": f"{start:%d-%m-%Y-%H-%M-%S}.tar.gz",
            "started_at": f"{start:%Y-%m-%dT%H:%M:%SZ}" if ours else None,
            "stored_at": f"{start + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
            "artifact": {
                "file": f"{kind}.tar.gz.enc",
                "size": len(artifact),
                "md5": hashlib.md5(artifact, usedforsecurity=False).hexdigest(),
                "sha256": hashlib.sha256(artifact).hexdigest(),
            },
            "encryption": {
                "cipher": "aes-256-ctr",
                "key_derivation": "EVP_BytesToKey-md5-nosalt",
                "password": {"mode": "shared", "confirmed": level == "contents", "sealed": []},
            },
            "verified": {"level": level},
            "flow_run": run or f"run of {start:%Y-%m-%d} {start.hour}",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | dict(changed or {})))
        return f"{node}/{folder.name}"

    def add_nights(self, number: int, *, node: str = "a0-1", kinds: tuple[str, ...] = ("backup",)) -> list[str]:
        """Store the last *number* nights, the newest of today; return the ids of the first kind, newest first."""
        ids = [self.add(days_ago=days, node=node, kind=kind) for days in range(number) for kind in kinds]
        return ids[:: len(kinds)]

    def drilled(self, artifact_id: str, *, passed: bool = True) -> None:
        problem = None if passed else "the tar is cut"
        drilled = Drilled(drilled_at=self.now, passed=passed, level="contents", problem=problem)
        write_drilled(self.vault.root / artifact_id, drilled)

    def plan(self) -> Plan:
        fleet = self.fleet
        assert fleet.retention is not None
        return plan_vault(self.vault, fleet, fleet.retention, now=self.now)

    def reasons(self) -> dict[str, tuple[str, ...]]:
        """Return the reasons to keep each artifact, by id; those that go are left out."""
        return {each.id: each.reasons for each in self.plan().decisions if each.action == "keep"}

    def held(self, place: str = "vault") -> set[str]:
        """Return the ids in a place, each read to its end."""
        vault = Vault(self.folder / place)
        for manifest in vault.manifests():
            vault.reread(manifest)
        return {manifest.id for manifest in vault.manifests()}
