"""How long `list`, `prune --dry-run` and `status` take in a large vault, and how much memory.

python bench/catalogue.py --artifacts 100000

The vault has manifests of real size and artifacts of a few bytes, with a copy proven in a place: what these commands
read. Each command is a process of its own, as an operator or a monitoring calls it. The goal: under 5 s and under
300 MB for 100,000 artifacts on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

A0BACKUP = Path(sys.executable).with_name("a0backup")
GOAL_SECONDS, GOAL_BYTES = 5.0, 300_000_000
NODES, KINDS = 50, ("backup", "backup-sensitive")
FLEET = """\
vault: vault
a0cli: {{key_dir: keys}}
password: {{env: A0_BACKUP_PASSWORD}}
copies: [{{name: nas, url: nas}}]
kinds: [backup, backup-sensitive]
retention: {{keep_daily: 14, keep_weekly: 8, keep_monthly: 12, prune_most: 100%, timezone: Europe/Berlin}}
nodes: [{nodes}]
"""
COMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "prune --dry-run": ["prune", "--dry-run"],
    "status": ["status"],
}


def main() -> None:
    """Make the vault, run each command a few times, and print the best time and its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the vault there and use it again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "fleet.yaml").exists():
            make(folder, options.artifacts)
        print(f"{options.artifacts} artifacts of {NODES} nodes; goal {GOAL_SECONDS:.0f} s, {GOAL_BYTES / 1e6:.0f} MB")
        results = {name: measured(folder, words, options.rounds) for name, words in COMMANDS.items()}
    for name, (seconds, cpu, memory) in results.items():
        verdict = "ok" if seconds < GOAL_SECONDS and memory < GOAL_BYTES else "OVER THE GOAL"
        print(f"{name:<16} {seconds:5.2f} s  ({cpu:.2f} s of CPU)  {memory / 1e6:4.0f} MB  {verdict}")


def measured(folder: Path, words: list[str], rounds: int) -> tuple[float, float, int]:
    """Return the best time of *rounds*, its CPU time, both in seconds, and the most memory of one in bytes."""
    times, memory = list[tuple[float, float]](), 0
    for _ in range(rounds):
        began = time.perf_counter()
        # A process of its own starts the command, so that the memory of its children is that of this command alone.
        code = (
            "import resource, subprocess, sys;"
            "ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL);"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
            "print(ended.returncode, used.ru_maxrss, used.ru_utime + used.ru_stime)"
        )
        command = [
            sys.executable,
            "-c",
            code,
            str(A0BACKUP),
            words[0],
            "--fleet",
            str(folder / "fleet.yaml"),
            *words[1:],
        ]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.perf_counter() - began
        returned, kilobytes, cpu = printed.stdout.split()
        if returned != "0":
            sys.exit(f"{words} ended with {returned}: {printed.stderr}")
        times.append((took, float(cpu)))
        memory = max(memory, int(kilobytes) * 1024)
    return *min(times), memory


def make(folder: Path, artifacts: int) -> None:
    """Make a vault with this many artifacts, the newest of last night."""
    nights = artifacts // NODES // len(KINDS)
    newest = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=8)
    names = [f"a0-{number}" for number in range(1, NODES + 1)]
    vault = folder / "vault"
    vault.mkdir(parents=True)
    identity = {"schema": 1, "id": "catalogue", "made_at": "2026-01-01T00:00:00Z"}
    (vault / "vault.json").write_text(json.dumps(identity))
    for name in names:
        (vault / name).mkdir()
        for night in range(nights):
            for number, kind in enumerate(KINDS):
                store(vault / name, kind, newest - timedelta(days=night, minutes=-20 * number), night)
    (folder / "fleet.yaml").write_text(FLEET.format(nodes=", ".join(f"{{name: {n}, host: {n}}}" for n in names)))


def store(node: Path, kind: str, started: datetime, night: int) -> None:
    """Write an artifact with its manifest and the record of its copy."""
    folder = node / f"{started:%Y%m%dT%H%M%SZ}-{kind}"
    folder.mkdir()
    (folder / f"{kind}.tar.gz.enc").write_bytes(b"12345678")
    digest = f"{night:064x}"
    sealed = [{"recovery_key": "ab" * 32, "box": "A" * 512}]
    largest = [{"name": f"dump/auth0/collection-{n}.bson", "size": 1 << 30} for n in range(5)]
    manifest = {
        "schema": 1,
        "id": f"{node.name}/{folder.name}",
        "node": {"name": node.name, "host": "192.168.1.186", "port": 10121},
        "kind": kind,
        "name_on_node": f"{started:%d-%m-%Y-%H-%M-%S}.tar.gz",
        "started_at": f"{started:%Y-%m-%dT%H:%M:%SZ}",
        "stored_at": f"{started + timedelta(minutes=14):%Y-%m-%dT%H:%M:%SZ}",
        "artifact": {"file": f"{kind}.tar.gz.enc", "size": 8, "md5": digest[:32], "sha256": digest},
        "encryption": {
            "cipher": "aes-256-ctr",
            "key_derivation": "EVP_BytesToKey-md5-nosalt",
            "password": {"mode": "sealed", "confirmed": True, "sealed": sealed},
        },
        "verified": {"level": "contents", "members": 12, "unpacked_size": 1 << 34, "largest": largest},
        "flow_run": f"0190c2f0-0000-7000-8000-{night:012x}",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    proven = {"url": str(node.parent.parent / "nas"), "at": f"{started:%Y-%m-%dT%H:%M:%SZ}", "by": "read"}
    copies = {"schema": 1, "manifest": digest, "places": {"nas": proven}}
    (folder / "copies.json").write_text(json.dumps(copies, indent=1))


if __name__ == "__main__":
    main()
