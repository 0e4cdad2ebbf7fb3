"""The `a0backup` command, as started by tests.

ended = a0backup("list", "--fleet", fleet_yaml)
ended = a0backup("run", "--fleet", fleet_yaml, api=engine_server)
"""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

from tests.support.login import reaching
from tests.support.patience import patience
from tests.support.warm import Warm

A0BACKUP = Path(sys.executable).with_name("a0backup")
PASSWORD = "Canary7Password"


def a0backup(
    *arguments: object, api: str = "", cwd: Path | None = None, password: str = PASSWORD
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end with *password* in the environment. *api* is the address of the engine, if any."""
    environment = {**os.environ, "A0_BACKUP_PASSWORD": password}
    if api:
        return a0backup_in(environment | {"PREFECT_API_URL": api}, *arguments, cwd=cwd)
    # Without a terminal, so that nothing is asked.
    return subprocess.run(
        [str(A0BACKUP), *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(60),
        cwd=cwd,
        start_new_session=True,
    )


def a0backup_in(
    environment: Mapping[str, str],
    *arguments: object,
    cwd: Path | None = None,
    program: str = "a0backup.cli.main",
    loud: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run the command, or the `main` of another module, to its end with exactly this environment.

    The process has already imported Prefect. *loud*: Prefect's log lines go where Prefect itself sends them.
    """
    words = [str(argument) for argument in arguments]
    run = _warm(loud).start_in(reaching(dict(environment)), *words, cwd=cwd or Path.cwd(), program=program)
    code = run.wait(180)
    return subprocess.CompletedProcess(words, code, run.out, run.err)


@functools.cache
def _warm(loud: bool) -> Warm:
    """The process that all tests of this worker share. It ends with this one, which holds its standard input."""
    room = Path(mkdtemp(dir=os.environ["A0BACKUP_TEST_ROOM"], prefix="warm-"))
    return Warm(room, {}, loud=loud).__enter__()
