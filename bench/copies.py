"""Measure `a0backup copy` to a local S3 server against rclone's `copy` and `check`, and `verify` against `sha256sum`.

python bench/copies.py --size 2000000000

The exit code is 1 where a copy or a verification failed, or where `copy` exceeded 250 MB. Needs four times the size
free below TMPDIR.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.big_artifact import A0BACKUP, sampled, seconds_of
from tests.support.places import ACCESS_KEY, BUCKET, S3Server, s3_server
from tests.support.stored import store

LIMIT_MB = 250
ARTIFACTS = 8
RCLONE = Path(sys.executable).with_name("rclone")
FLEET = """\
vault: vault
a0cli: {{key_dir: keys}}
password: {{env: A0_BACKUP_PASSWORD}}
nodes: [{{name: a0-1, host: 127.0.0.1}}]
copies: [{{name: offsite, url: "s3://{bucket}/ours"}}]
"""


@contextmanager
def served(place: Path) -> Iterator[tuple[S3Server, dict[str, str]]]:
    """Run the server; yield it with the environment in which both programs find it."""
    (place / "server").mkdir()
    with s3_server(place / "server") as server:
        (place / "credentials").write_text(
            f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {server.secret}\n"
        )
        (place / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:{server.port}\n")
        aws = {"AWS_SHARED_CREDENTIALS_FILE": str(place / "credentials"), "AWS_CONFIG_FILE": str(place / "config")}
        remote = {
            "RCLONE_CONFIG_S3_TYPE": "s3",
            "RCLONE_CONFIG_S3_PROVIDER": "Rclone",
            "RCLONE_CONFIG_S3_ENDPOINT": f"http://127.0.0.1:{server.port}",
            "RCLONE_CONFIG_S3_ACCESS_KEY_ID": ACCESS_KEY,
            "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": server.secret,
            "RCLONE_CONFIG": "/dev/null",
        }
        yield server, {**os.environ, **aws, **remote, "XDG_STATE_HOME": str(place / "state")}


def timed(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return time.perf_counter() - began


def drop_caches() -> bool:
    """Make the next reads come from the disk, where that is allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(size: int, place: Path) -> dict[str, Any]:
    (place / "fleet.yaml").write_text(FLEET.format(bucket=BUCKET))
    for night in range(ARTIFACTS):
        plain = secrets.token_bytes(size // ARTIFACTS)
        store(place / "vault", "Passw0rd", nights=night, plain=plain)
    ours = [str(A0BACKUP), "copy", "--fleet", str(place / "fleet.yaml")]
    with served(place) as (_, environment):
        began = time.perf_counter()
        ran = sampled(ours, environment)
        our_copy = time.perf_counter() - began
        if ran.exit_code:
            sys.exit(ran.exit_code)
        theirs = [str(place / "vault" / "a0-1"), f"s3:{BUCKET}/theirs"]
        # With --download, `check` reads the bytes back, as we do; without it, it compares the server's own md5 sums.
        their_copy = timed([str(RCLONE), "copy", *theirs], environment)
        believed = timed([str(RCLONE), "check", *theirs], environment)
        read_back = timed([str(RCLONE), "check", "--download", *theirs], environment)
    files = [str(path) for path in sorted((place / "vault").glob("*/*/backup.tar.gz.enc"))]
    cold = drop_caches()
    verified = seconds_of([str(A0BACKUP), "verify", "--vault", str(place / "vault")])
    drop_caches()
    summed = seconds_of(["sh", "-c", 'printf "%s\\0" "$@" | xargs -0 -n 1 -P 2 sha256sum', "sh", *files])
    return {
        "size_gb": round(size / 1e9, 2),
        "peak_rss_mb": ran.peak_mb(),
        "copy_mb_per_s": round(size / our_copy / 1e6),
        "rclone_mb_per_s": round(size / (their_copy + believed) / 1e6),
        "rclone_download_mb_per_s": round(size / (their_copy + read_back) / 1e6),
        "copy_ratio": round((their_copy + believed) / our_copy, 2),
        "copy_ratio_download": round((their_copy + read_back) / our_copy, 2),
        "verify_mb_per_s": round(size / verified / 1e6),
        "sha256sum_mb_per_s": round(size / summed / 1e6),
        "verify_ratio": round(summed / verified, 2),
        "cold_cache": cold,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2_000_000_000, help="of all artifacts in bytes")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="a0backup-bench-") as directory:
        place = Path(directory)
        if shutil.disk_usage(place).free < 4 * given.size:
            sys.exit(f"{place} has not four times {given.size} bytes free; set TMPDIR to a larger disk")
        measured = measure(given.size, place)
    if given.json:
        print(json.dumps(measured))
    else:
        print(
            "{size_gb} GB: copied and proven at {copy_mb_per_s} MB/s, peak {peak_rss_mb} MB; rclone copy and check "
            "{rclone_mb_per_s} MB/s: {copy_ratio} of its speed; with check --download "
            "{rclone_download_mb_per_s} MB/s: {copy_ratio_download}\n"
            "verified at {verify_mb_per_s} MB/s, xargs -P 2 sha256sum {sha256sum_mb_per_s} MB/s: "
            "{verify_ratio} of its speed".format(**measured)
        )
    sys.exit(measured["peak_rss_mb"] > LIMIT_MB)


if __name__ == "__main__":
    main()
