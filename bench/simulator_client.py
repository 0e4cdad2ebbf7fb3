"""Measure how long a call of the stand-in a0cli takes, compared with an interpreter that does nothing.

python bench/simulator_client.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulator.fleet import SimulatedFleet


def fastest(command: list[str], directory: Path, rounds: int) -> float:
    """Return the seconds of the fastest of *rounds* runs: other load on the machine only ever adds time."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as state, SimulatedFleet(Path(state), 1) as fleet:
        ping = [str(fleet.a0cli), "-t", "127.0.0.1", "-p", str(fleet.nodes[0]["port"])]
        subprocess.run([*ping, "update-commands"], cwd=fleet.key_dir, check=True, capture_output=True)
        bare = fastest([sys.executable, "-IS", "-c", "pass"], fleet.key_dir, given.rounds)
        client = fastest([*ping, "ping"], fleet.key_dir, given.rounds)
    measured = {"bare_ms": round(bare * 1e3, 1), "ping_ms": round(client * 1e3, 1), "ratio": round(client / bare, 2)}
    if given.json:
        print(json.dumps(measured))
    else:
        print("a0cli ping {ping_ms} ms, python -IS -c pass {bare_ms} ms: ratio {ratio}".format(**measured))


if __name__ == "__main__":
    main()
