"""The fleet file of a run, and what its process must not leak."""

import subprocess
import sys
from pathlib import Path

from tests.support.paths import REPOSITORY

VALID = "vault: ./vault\npassword: {env: P}\nnodes: [{name: a0-1, host: a}]\n"


def test_a_run_writes_no_core_dump_from_its_start_on(tmp_path: Path) -> None:
    """Its environment holds the password."""
    (tmp_path / "fleet.yaml").write_text(VALID)
    program = f"""
import resource
from pathlib import Path
from flows.fleet_file import fleet_of_run
fleet_of_run(Path({str(tmp_path / "fleet.yaml")!r}))
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout == "(0, 0)\n"
