"""A simulated node, its vault and an operator, for tests of the runs on one node."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from a0backup.fleet.load import load_fleet
from a0backup.vault.journal import JournalFile
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault
from simulator.fleet import SimulatedFleet
from tests.support.nights import REPOSITORY, Night, night
from tests.support.patience import patience


def killed_after(stage: str, fleet_file: str, flow_run: str) -> None:
    """Run a night in this process, and kill the process with SIGKILL after *stage*."""

    def kill(reached: str) -> None:
        if reached == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(night(load_fleet(fleet_file), flow_run=flow_run, after=kill))


class Desk:
    """A simulated node, its vault, and an operator who can call a0cli by hand."""

    def __init__(self, simulated: SimulatedFleet, node: dict[str, Any], room: Path) -> None:
        self.simulated, self.node, self.name, self.room = simulated, node, str(node["name"]), room
        self.configure()

    def configure(self, **overrides: object) -> None:
        quick = {"nodes": [self.node], "polling": {"interval": "0.05s", "max_interval": "0.05s", "deadline": "20s"}}
        self.file = self.simulated.fleet_yaml(self.room / "fleet.yaml", **quick | overrides)
        self.fleet = load_fleet(self.file)

    @property
    def vault(self) -> Vault:
        return Vault(self.fleet.vault)

    @property
    def journal(self) -> JournalFile:
        return JournalFile(self.vault.folder(self.name), "backup")

    def tell(self, command: str | None, fault: str, **settings: Any) -> None:
        self.simulated.tell(self.name, command, fault, **settings)

    def put(self) -> dict[str, Any]:
        return self.simulated.put(self.name, password="their own")

    def remove(self) -> None:
        self.simulated.remove(self.name)

    def forget(self) -> None:
        self.simulated.forget(self.name)

    @property
    def holds(self) -> dict[str, Any] | None:
        return self.simulated.holds(self.name)

    def counted(self, command: str) -> int:
        return len(self.simulated.calls(self.name, command))

    @property
    def counts(self) -> tuple[int, int, int]:
        """The number of starts, retrievals and deletions of a backup."""
        return self.counted("backup"), self.counted("backup-retrieve"), self.counted("backup-delete")

    @property
    def stored(self) -> list[Manifest]:
        return self.vault.manifests(self.name)

    def say_the_last_was(self, size: int) -> None:
        """Make the newest manifest claim an artifact of *size* bytes."""
        last = self.vault.newest(self.name)
        assert last is not None
        file = self.vault.root / last.id / "manifest.json"
        file.write_text(file.read_text().replace(f'"size": {last.artifact.size}', f'"size": {size}'))

    def say_the_last_was_huge(self) -> None:
        self.say_the_last_was(10**18)

    def quarantined(self) -> None:
        folder = self.vault.folder(self.name) / "quarantine" / "20200101T000000Z-backup"
        folder.mkdir(parents=True)
        (folder / "backup.tar.gz.enc").write_bytes(b"did not match")

    def by_hand(self, *command: str) -> None:
        """Call a0cli as an operator at another desk would."""
        place = self.room / "desk"
        if not place.exists():
            shutil.copytree(self.simulated.key_dir, place)
            self.by_hand("update-commands")
        call = [self.simulated.a0cli, "-t", self.node["host"], "-p", str(self.node["port"]), *command]
        subprocess.run(call, cwd=place, check=True, capture_output=True, timeout=patience(60))

    async def night(self, **said: Any) -> Night:
        return await night(self.fleet, **said)

    async def killed_after(self, stage: str, flow_run: str = "run-1") -> None:
        program = "import sys; from tests.support.desk import killed_after; killed_after(*sys.argv[1:])"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, stage, str(self.file), flow_run), cwd=REPOSITORY
        )
        assert await process.wait() == -signal.SIGKILL

    def is_settled(self) -> None:
        """Assert that no work is left on the node or in the vault, and that every manifest matches its artifact."""
        assert self.holds is None
        assert self.journal.read() is None
        assert list(self.vault.work(self.name).iterdir()) == []
        for manifest in self.stored:
            self.vault.reread(manifest)
