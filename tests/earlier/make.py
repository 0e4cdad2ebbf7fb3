"""Have an earlier commit's own code write a vault, for the tests that read it with today's.

    python -m tests.earlier.make 240a53e ...

Makes tests/earlier/COMMIT/CASE/ anew: `vault/a0-1` as that commit's `a0backup run` left it, and what the simulated node
held then. Needs the repository's history; see README.md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from simulator.fleet import SimulatedFleet
from tests.support.patience import until

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PASSWORD = "Passw0rd"
PASSPHRASE = "Canary9 Passphrase"  # of recovery.key.pem
NODE = "a0-1"
SMALL = 1500  # bytes of a backup, about

# What the simulator is told before the run that is to leave something. Each ends the run, but the first.
CASES: dict[str, list[dict[str, Any]]] = {
    "stored": [],
    "started": [{"command": "backup", "fault": "kill_parent", "when": "after"}],
    "retrieved": [{"command": "backup-retrieve", "fault": "kill_parent", "when": "after"}],
    "deleted": [{"command": "backup-delete", "fault": "kill_parent", "when": "after"}],
    "cut": [{"command": "backup", "fault": "contents", "are": "cut"}],
}


def make(commit: str, clone: Path) -> None:
    """Write every case that *commit*, checked out in *clone*, can be in."""
    shutil.rmtree(HERE / commit, ignore_errors=True)
    seals, opens = ((clone / "a0backup" / name).exists() for name in ("sealed_files.py", "contents.py"))
    for password in ["shared", "sealed"] if seals else ["shared"]:
        for case, orders in CASES.items():
            # What nobody opened is stored whatever is in it.
            if case != "cut" or opens:
                print(commit, case, password)
                write(HERE / commit / f"{case}-{password}", clone, orders, sealed=password == "sealed")


def write(target: Path, clone: Path, orders: list[dict[str, Any]], *, sealed: bool) -> None:
    """Run the *clone* once on a simulated node that is given *orders*, and keep what is left in *target*."""
    with tempfile.TemporaryDirectory() as name, SimulatedFleet(Path(name) / "sim", [NODE], size=SMALL) as fleet:
        room = Path(name)
        source = {"sealed_to": str(HERE / "recovery.pub.pem")} if sealed else {"env": "A0_BACKUP_PASSWORD"}
        fleet.fleet_yaml(room / "fleet.yaml", password=source)
        for order in orders:
            fleet.order("tell", node=NODE, **order)
        program = "from a0backup.cli import main; main()"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "PYTHONPATH": str(clone),
            "A0_BACKUP_PASSWORD": PASSWORD,
            "XDG_STATE_HOME": str(room / "state"),
            "DO_NOT_TRACK": "1",
        }
        ended = subprocess.run(
            [sys.executable, "-c", program, "run", "--fleet", room / "fleet.yaml"],
            cwd=room,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if (ended.returncode == 0) != (not orders):
            raise RuntimeError(f"{target}: the run ended with {ended.returncode}: {ended.stderr}")
        shutil.copytree(room / "vault" / NODE, target / "vault" / NODE, ignore=shutil.ignore_patterns("a0cli*", "lock"))
        if orders and orders[0]["command"] != "backup-delete":
            # Whether the run was killed or not, its backup is made to its end.
            until(lambda: fleet.holds(NODE))
        if held := fleet.holds(NODE):
            shutil.copy(held["path"], target / "on-node.tar.gz.enc")
            (target / "on-node.json").write_text(
                json.dumps({"name": held["name"], "md5": held["md5"]}, indent=1) + "\n"
            )


def main() -> None:
    for commit in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as name:
            clone = Path(name) / "clone"
            subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
            subprocess.run(["git", "-C", clone, "checkout", "-q", commit], check=True)
            make(commit, clone)


if __name__ == "__main__":
    main()
