"""Measure the memory of `a0backup run` for one large artifact, and its speed against `md5sum` and `cp` of that file.

python bench/big_artifact.py --size 5000000000

The exit code is 1 where the run failed or its process exceeded 200 MB. Needs three times the size free
below TMPDIR.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulator.fleet import SimulatedFleet

LIMIT_MB = 200
A0BACKUP = Path(sys.executable).with_name("a0backup")


@dataclass
class Sampled:
    """How a process ended, and its resident memory over time: (seconds since the epoch, bytes)."""

    exit_code: int
    resident: list[tuple[float, int]]

    def peak_mb(self, *, until: float = float("inf")) -> float:
        return round(max(size for at, size in self.resident if at <= until) / 1e6, 1)


def sampled(command: list[str], environment: dict[str, str]) -> Sampled:
    """Run *command* and sample its own resident memory, without its children."""
    resident: list[tuple[float, int]] = []
    with subprocess.Popen(command, env=environment) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            resident.append((time.time(), process.memory_info().rss))
            time.sleep(0.05)
    return Sampled(running.returncode, resident)


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(size: int, place: Path) -> dict[str, Any]:
    environment = os.environ | {"A0_BACKUP_PASSWORD": "Passw0rd", "XDG_STATE_HOME": str(place / "state")}
    with SimulatedFleet(place / "simulator", 1, size=size) as fleet:
        fleet_file = fleet.fleet_yaml(
            place / "fleet.yaml", a0cli={"retrieve_timeout": "1h"}, polling={"deadline": "1h"}
        )
        ran = sampled([str(A0BACKUP), "run", "--fleet", str(fleet_file)], environment)
        if ran.exit_code:
            sys.exit(ran.exit_code)
        calls = fleet.calls()
    # From the status that showed the backup to its deletion: retrieved, verified, stored and read back.
    retrieved = next(i for i, call in enumerate(calls) if call["command"] == "backup-retrieve")
    deleted = next(call for call in calls if call["command"] == "backup-delete")
    kept_in = deleted["time"] - calls[retrieved - 1]["time"]

    [artifact] = (place / "vault").glob("*/*/backup.tar.gz.enc")
    stored = artifact.stat().st_size
    plain = seconds_of(["cp", str(artifact), str(place / "copy")]) + seconds_of(["md5sum", str(place / "copy")])
    return {
        "size_gb": round(stored / 1e9, 2),
        "peak_rss_mb": ran.peak_mb(),
        "peak_rss_before_first_call_mb": ran.peak_mb(until=calls[0]["time"]),
        "kept_mb_per_s": round(stored / kept_in / 1e6),
        "cp_and_md5sum_mb_per_s": round(stored / plain / 1e6),
        "ratio": round(kept_in / plain, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=5_000_000_000, help="of the artifact in bytes, about")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="a0backup-bench-") as directory:
        place = Path(directory)
        if shutil.disk_usage(place).free < 3.2 * given.size:
            sys.exit(f"{place} has not three times {given.size} bytes free; set TMPDIR to a larger disk")
        measured = measure(given.size, place)
    if given.json:
        print(json.dumps(measured))
    else:
        print(
            "{size_gb} GB: peak {peak_rss_mb} MB resident, {peak_rss_before_first_call_mb} before the first a0cli; "
            "kept at {kept_mb_per_s} MB/s, cp then md5sum {cp_and_md5sum_mb_per_s} MB/s: {ratio} times as long".format(
                **measured
            )
        )
    sys.exit(measured["peak_rss_mb"] > LIMIT_MB)


if __name__ == "__main__":
    main()
