"""The inspection keeps the names of the 32 largest members whole: a hostile node makes each run grow by over 100 MB."""

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

from a0backup.artifact.encryption import decryptor

CHILD = """
import sys
from pathlib import Path
from a0backup.artifact.inspection import inspect

class Bounds:
    max_unpacked, max_ratio = 1 << 40, 1e9

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

inspect(Path(sys.argv[1]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
before = peak()
seen = inspect(Path(sys.argv[2]), ["Passw0rd"], node="n", kind="backup", limits=Bounds())
assert seen.error is None, seen.error
print(peak() - before)
"""


def packed(name: str, count: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}{name}")
            member.size = number
            tar.addfile(member, io.BytesIO(bytes(number)))
    return decryptor("Passw0rd").update(gzip.compress(out.getvalue(), 1))


def test_memory_is_constant_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(packed("n", 2))
    # One character beyond the BMP makes Python keep each of the others in four bytes.
    (tmp_path / "large").write_bytes(packed("\U0001f600" + "n" * 1_000_000, 40))
    assert (tmp_path / "large").stat().st_size < 2_000_000
    run = [sys.executable, "-c", CHILD, tmp_path / "small", tmp_path / "large"]
    grown = subprocess.run(run, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    assert int(grown) < 30_000, f"{int(grown):,} KiB"  # as tests/a0backup/test_contents.py asks
