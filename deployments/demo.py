"""`a0backup demo`: back up a simulated three-node fleet with the real flow, and say what to look at afterwards."""

import json
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from a0backup.errors import EngineError
from a0backup.files import make_private_directory
from a0backup.fleet.load import load_fleet
from a0backup.passwords import recovery_keys
from a0backup.report import terminal
from a0backup.report.outcomes import Outcome, exit_code
from a0backup.report.progress import Ended, News, watched_by
from a0backup.report.run_report import lines
from a0backup.report.words import human_size
from a0backup.vault.vault import Vault
from deployments.local_run import run_here

NODES = ("a0-1", "a0-2", "a0-3")
ARTIFACT_BYTES = 3_000_000
PUBLIC, PRIVATE, PASSPHRASE = "recovery.pub.pem", "offline/recovery.key.pem", "offline/passphrase"


def run_demo(directory: Path | None) -> int:
    """Back up a simulated fleet into *directory*, or a new temporary one; return the exit code of `a0backup run`."""
    place = directory.absolute() if directory else Path(tempfile.mkdtemp(prefix="a0backup-demo-"))
    make_private_directory(place)
    outcomes: list[Outcome] = []

    def collect(news: News) -> None:
        if isinstance(news, Ended):
            outcomes.append(news.outcome)

    with _simulated_fleet(place) as fleet_file:
        terminal.say(f"three simulated nodes are up; backing them up into {place / 'vault'}")
        with watched_by(collect), terminal.shown():
            error = run_here("backup-fleet", fleet_file, (), None)
    if error is not None:
        terminal.say(f"error: {error}")
    outcomes.sort(key=lambda outcome: outcome.node)
    print("\n".join(lines(outcomes)))
    _explain(fleet_file)
    return exit_code(outcomes)


@contextmanager
def _simulated_fleet(place: Path) -> Iterator[Path]:
    """Run the simulated appliance as a separate process; yield the fleet.yaml that names its nodes."""
    command = [sys.executable, "-P", "-m", "simulator", "serve", "--until-stdin-closes"]
    command += ["--state", str(place / "simulator"), "--nodes", ",".join(NODES)]
    command += ["--size", str(ARTIFACT_BYTES), "--backup-seconds", "2"]
    with subprocess.Popen(  # noqa: S603 - our own module, no shell
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as simulator:
        assert simulator.stdin is not None
        assert simulator.stdout is not None
        line = simulator.stdout.readline()
        if not line:
            raise EngineError("the simulated appliance did not come up", "check what it printed above")
        try:
            yield _write_fleet_file(place, json.loads(line))
        finally:
            simulator.stdin.close()


def _write_fleet_file(place: Path, ready: dict[str, Any]) -> Path:
    if not (place / PUBLIC).exists():
        passphrase = secrets.token_hex(12)
        # Away from the public part: for real, on another machine.
        (place / PRIVATE).parent.mkdir(mode=0o700, exist_ok=True)
        (place / PASSPHRASE).touch(0o600)
        (place / PASSPHRASE).write_text(f"{passphrase}\n")
        recovery_keys.make_pair(place / PRIVATE, place / PUBLIC, passphrase)
    content = {
        "vault": "./vault",
        "a0cli": {"path": ready["a0cli"], "key_dir": ready["key_dir"]},
        "password": {"sealed_to": PUBLIC},
        "polling": {"interval": "1s", "max_interval": "2s", "deadline": "5m"},
        "nodes": ready["nodes"],
    }
    fleet_file = place / "fleet.yaml"
    fleet_file.write_text(yaml.safe_dump(content, sort_keys=False))
    return fleet_file


def _explain(fleet_file: Path) -> None:
    fleet = load_fleet(fleet_file)
    vault = Vault(fleet.vault)
    manifests = vault.manifests()
    at = shlex.join(["--fleet", str(fleet_file)])
    print(f"\nin the vault {fleet.vault}:")
    for manifest in manifests:
        print(f"  {manifest.id}  {human_size(manifest.artifact.size)}  md5 {manifest.artifact.md5}")
    if manifests:
        last = manifests[-1]
        place = fleet_file.parent
        key = shlex.join(["--key", str(place / PRIVATE), "--passphrase-file", str(place / PASSPHRASE)])
        print(
            f"""
look at it:
  a0backup list {at}
  a0backup show {at} {last.id}
  a0backup verify {at}
  a0backup drill {at} {key}

with your own nodes:
  a0backup init            # a commented fleet.yaml: name your nodes and a0cli's key pair
  a0backup key create      # the recovery key pair, whose private part opens the backups
  a0backup check           # looks at every node, changes nothing
  a0backup run

(`a0backup` is in {Path(sys.executable).parent}; the demo's files stay in {fleet_file.parent} until you remove them)"""
        )
