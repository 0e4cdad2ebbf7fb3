"""Compare `a0backup run` on a simulated fleet with a shell script that makes the same a0cli calls under `xargs -P`.

python bench/fleet.py --nodes 100

The script keeps no journal, lock, manifest or report, and waits for no disk: it is a lower bound, not an
equal. Both take turns on the same fleet, on an engine home that is already migrated. The fastest round
of each counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulator.fleet import SimulatedFleet

A0BACKUP = Path(sys.executable).with_name("a0backup")
BACKUP_SECONDS = 0.4
PAUSE = 0.2  # seconds between two polls
PARALLEL = 32

SCRIPT = """\
#!/bin/bash
# backup-one NODE PORT: what an operator's own script does for one node.
set -euo pipefail
cd "$(mktemp -d -p "$WORK")"
ln -s "$KEYS"/* .
node() { "$A0CLI" -t 127.0.0.1 -p "$2" "$1"; }
found() { [[ "$1" == *'"Backup found"'* ]]; }

node update-commands "$2" >/dev/null
node ping "$2" | grep -q PONG
"$A0CLI" | grep -q backup-retrieve
node backup-status "$2" | grep -q 'No backup found'
"$A0CLI" -t 127.0.0.1 -p "$2" backup "$A0_BACKUP_PASSWORD" >/dev/null
until sleep "$PAUSE"; status="$(node backup-status "$2")"; found "$status"; do :; done
node backup-retrieve "$2" >/dev/null
md5="$(sed 's/.*"md5":"\\([0-9a-f]*\\)".*/\\1/' <<<"$status")"
md5sum --check --status <<<"$md5  backup-retrieve.tar.gz.enc"
mv backup-retrieve.tar.gz.enc "$KEPT/$1.tar.gz.enc"
found "$(node backup-status "$2")"
node backup-delete "$2" >/dev/null
node backup-status "$2" | grep -q 'No backup found'
"""


def seconds_of(command: list[str], environment: dict[str, str], given: str | None = None) -> float:
    """Return the seconds that *command* took. Show its errors and raise CalledProcessError where it failed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, input=given, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    took = time.perf_counter() - began
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    done.check_returncode()
    return took


def measure(nodes: int, rounds: int, place: Path) -> dict[str, Any]:
    script = place / "backup-one"
    script.write_text(SCRIPT)
    script.chmod(0o700)
    environment = os.environ | {"A0_BACKUP_PASSWORD": "Passw0rd", "XDG_STATE_HOME": str(place / "state")}
    run, calls, xargs = [], [], []
    with SimulatedFleet(place / "simulator", nodes, backup_seconds=BACKUP_SECONDS) as fleet:
        polling = {"interval": f"{PAUSE}s", "max_interval": f"{PAUSE}s"}
        fleet_file = fleet.fleet_yaml(place / "fleet.yaml", polling=polling, max_parallel=PARALLEL)
        seconds_of([str(A0BACKUP), "check", "a0-1", "--fleet", str(fleet_file)], environment)
        for number in range(rounds):
            before = len(fleet.calls())
            run.append(seconds_of([str(A0BACKUP), "run", "--fleet", str(fleet_file)], environment))
            times = [call["time"] for call in fleet.calls()[before:]]
            calls.append(max(times) - min(times))

            paths = {"WORK": place / f"work-{number}", "KEPT": place / f"kept-{number}"}
            for path in paths.values():
                path.mkdir()
            paths |= {"A0CLI": fleet.a0cli, "KEYS": fleet.key_dir}
            settings = environment | {name: str(path) for name, path in paths.items()} | {"PAUSE": str(PAUSE)}
            rows = "".join(f"{node['name']} {node['port']}\n" for node in fleet.nodes)
            before = len(fleet.calls())
            seconds_of(["xargs", "-P", str(PARALLEL), "-n", "2", str(script)], settings, rows)
            times = [call["time"] for call in fleet.calls()[before:]]
            xargs.append(max(times) - min(times))
            assert len(list(paths["KEPT"].iterdir())) == nodes
        made = len(fleet.calls())
    assert len(list((place / "vault").glob("*/*/manifest.json"))) == nodes * rounds
    return {
        "nodes": nodes,
        "calls_recorded": made,
        "run_s": round(min(run), 1),
        "run_calls_s": round(min(calls), 1),
        "xargs_calls_s": round(min(xargs), 1),
        "ratio_run": round(min(run) / min(xargs), 2),
        "ratio_calls": round(min(calls) / min(xargs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="a0backup-bench-") as directory:
        measured = measure(given.nodes, given.rounds, Path(directory))
    if given.json:
        print(json.dumps(measured))
    else:
        print(
            "{nodes} nodes: first to last a0cli call {run_calls_s} s, xargs {xargs_calls_s} s: ratio {ratio_calls}; "
            "the whole command, engine's start and end included, {run_s} s: ratio {ratio_run}".format(**measured)
        )


if __name__ == "__main__":
    main()
