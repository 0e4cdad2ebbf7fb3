"""`a0backup demo`: back up a simulated three-node fleet with the real flow, and say what to look at afterwards."""

import json
import secrets
import shlex
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from a0backup.errors import EngineError
from a0backup.fleet.load import load_fleet
from a0backup.report import terminal
from a0backup.report.outcomes import Outcome, exit_code
from a0backup.report.progress import Ended, News, watched_by
from a0backup.report.run_report import lines
from a0backup.report.words import human_size
from a0backup.vault.vault import Vault
from deployments.local_run import run_here

NODES = ("a0-1", "a0-2", "a0-3")
ARTIFACT_BYTES = 3_000_000


def run_demo(directory: Path | None) -> int:
    """Back up a simulated fleet into *directory*, or a new temporary one; return the exit code of `a0backup run`."""
    place = directory.absolute() if directory else Path(tempfile.mkdtemp(prefix="a0backup-demo-"))
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    command = [sys.executable, "-m", "simulator", "serve", "--until-stdin-closes"]
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
    password_file = place / "password"
    if not password_file.exists():
        password_file.touch(0o600)
        letters = string.ascii_letters + string.digits
        password_file.write_text("".join(secrets.choice(letters) for _ in range(24)) + "\n")
    content = {
        "vault": "./vault",
        "a0cli": {"path": ready["a0cli"], "key_dir": ready["key_dir"]},
        "password": {"file": "./password"},
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
        password = shlex.quote(str(fleet.password.file))
        artifact = shlex.quote(str(vault.artifact(last)))
        print(
            f"""
look at it:
  a0backup list {at}
  a0backup show {at} {last.id}
  a0backup verify {at}
  openssl enc -d -aes-256-ctr -md md5 -nosalt -pass file:{password} -in {artifact} | tar tz

with your own nodes:
  a0backup init            # a commented fleet.yaml: name your nodes, a0cli's key pair and the password's place
  a0backup check           # looks at every node, changes nothing
  a0backup run

(`a0backup` is in {Path(sys.executable).parent}; the demo's files stay in {fleet_file.parent} until you remove them)"""
        )
