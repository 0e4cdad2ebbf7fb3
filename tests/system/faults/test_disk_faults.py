"""The vault's disk fails, fills, slows, lies or vanishes at every point that matters, and the clock is stepped."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.extent import PARTS, deep, in_parts, matrix, share
from tests.support.patience import until
from tests.system.faults.disk import Operation
from tests.system.faults.scenarios import after, plain, reference
from tests.system.faults.trial import Arena, Trial

pytestmark = [pytest.mark.engine, pytest.mark.slow]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")


def points(arena: Arena, *names: str) -> list[Operation]:
    """Return the calls with these names that a plain run makes in the vault."""
    return [point for point in reference(arena, plain) if point.name in names]


@matrix
@in_parts
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_one_failed_write_sync_or_rename_loses_nothing(arena_: Arena, told: Any, error: int, part: int) -> None:
    telling = told(f"{errno.errorcode[error]} once, at each write, fsync and rename")
    for point in share(points(arena_, "create", "write", "fsync", "rename", "mkdir"), part, PARTS):
        trial = Trial(arena_)
        trial.disk.fail(point.ordinal, error)
        code, printed = trial.run()
        telling.point(f"{point.name} of {point.to or point.path}", after(trial, code, printed))


LASTING = {
    "disk full from then on": errno.ENOSPC,
    "disk read-only from then on": errno.EROFS,
    "permission lost from then on": errno.EACCES,
}


@matrix
@pytest.mark.parametrize("fault", LASTING)
def test_a_vault_that_becomes_unwritable_at_any_point_loses_nothing(arena_: Arena, told: Any, fault: str) -> None:
    telling = told(fault)
    for point in share(points(arena_, "create", "mkdir", "rename", "unlink")[::2]):
        trial = Trial(arena_)
        trial.disk.fail(point.ordinal, LASTING[fault], lasting=True)
        code, printed = trial.run()
        telling.point(f"from {point.name} of {point.to or point.path} on", after(trial, code, printed))


@pytest.mark.parametrize("file", ["*Z-backup/backup.tar.gz.enc", "*.manifest.json.*", "*journal*"])
def test_a_lying_disk_is_detected_before_anything_is_deleted(arena_: Arena, told: Any, file: str) -> None:
    trial = Trial(arena_)
    trial.disk.lie(file)
    trial.spoilt = True
    code, printed = trial.run()
    deleted = len(trial.events("deleted"))
    broken = after(trial, code, printed)
    if "journal" not in file and (code, deleted) != (1, 0):
        broken.append(f"it ended with {code} and {deleted} deletions: {printed}")
    told("a disk that lies").point(file, broken)


@deep
def test_a_run_waits_for_a_disk_that_takes_seconds_per_write(arena_: Arena, told: Any) -> None:
    trial = Trial(arena_)
    trial.disk.slow(1.0, only={"write", "rename"})
    code, printed = trial.run()
    told("disk slow by a second per write").point("", ([] if code == 0 else [printed]) + after(trial, code, printed))


@matrix
@pytest.mark.parametrize("hours", [-30, -3, 3, 30])
def test_a_clock_that_is_stepped_during_a_run_changes_nothing(arena_: Arena, told: Any, hours: int) -> None:
    telling = told("clock stepped by hours")
    for point in share(reference(arena_, plain)[::12]):
        trial = Trial(arena_)
        trial.disk.step_clock(hours * 3600, at=point.ordinal)
        code, printed = trial.run()
        broken = [] if code == 0 else [printed]
        started = len(trial.events("started"))
        broken += after(trial, code, printed)
        # The next run, whose clock is right again, has its own backup made.
        if len(trial.events("started")) != started + 1 or len(trial.manifests()) != 2:
            broken.append(f"{len(trial.manifests())} artifacts of {len(trial.events('started'))} backups")
        telling.point(f"{hours} h at {point.name} of {point.to or point.path}", broken)


# -- a vault on a disk of its own --------------------------------------------------------------------------------------


@contextmanager
def mounted(trial: Trial, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", trial.vault], check=True)
    try:
        trial.disk.start_anew()
        yield
    finally:
        subprocess.run(["umount", "-l", trial.vault], check=False, capture_output=True)


@as_root
@matrix
def test_a_full_disk_loses_nothing_however_much_is_free(arena_: Arena, told: Any) -> None:
    telling = told("a full tmpfs")
    for free in share(range(0, 68, 4)):
        trial = Trial(arena_)
        with mounted(trial, "size=1m"):
            filler = trial.vault / "filler"
            filler.write_bytes(bytes((1024 - free) * 1024))
            code, printed = trial.run()
            filler.unlink()
            telling.point(f"{free} KiB free", after(trial, code, printed))


@as_root
@deep
def test_a_disk_mounted_read_only_is_reported_and_nothing_is_started(arena_: Arena, told: Any) -> None:
    trial = Trial(arena_)
    with mounted(trial, "size=1m"):
        subprocess.run(["mount", "-o", "remount,ro", trial.vault], check=True)
        code, printed = trial.run()
        broken = [] if (code, trial.calls("backup")) == (1, 0) else [f"{code}: {printed}"]
        subprocess.run(["mount", "-o", "remount,rw", trial.vault], check=True)
        told("a read-only vault").point("from the start", broken + after(trial, code, printed))


def in_progress(trial: Trial) -> Any:
    """Start a run and return it once it awaits a backup that does not end."""
    trial.appliances.tell(trial.node, "backup-status", "in_progress", skip=1)
    run = trial.start()
    until(lambda: trial.calls("backup-status") > 2)
    return run


@deep
def test_a_vault_that_is_moved_away_during_a_run_is_reported_and_not_made_anew(arena_: Arena, told: Any) -> None:
    trial = Trial(arena_)
    run = in_progress(trial)
    away = trial.room / "away"
    trial.vault.rename(away)
    trial.appliances_calm()
    code = run.wait()
    broken = [] if code == 1 else [f"it ended with {code}: {run.out + run.err}"]
    if trial.vault.exists():
        broken.append(f"a vault was made anew: {list(trial.vault.rglob('*'))}")
        shutil.rmtree(trial.vault)
    away.rename(trial.vault)
    told("a vault that vanishes").point("moved away", broken + after(trial, code, run.out + run.err))


@as_root
@deep
def test_a_disk_that_is_unmounted_during_a_run_loses_nothing(arena_: Arena, told: Any) -> None:
    trial = Trial(arena_)
    kept = trial.room / "kept"
    kept.mkdir()
    with mounted(trial, "size=1m"):
        subprocess.run(["mount", "--bind", trial.vault, kept], check=True)
        run = in_progress(trial)
        subprocess.run(["umount", "-l", trial.vault], check=True)
        trial.appliances_calm()
        code = run.wait()
        broken = [] if code == 1 else [f"it ended with {code}: {run.out + run.err}"]
        broken += [f"{path} was made below the mount point" for path in trial.vault.iterdir()]
        subprocess.run(["mount", "--bind", kept, trial.vault], check=True)
        try:
            told("a vault that vanishes").point("unmounted", broken + after(trial, code, run.out + run.err))
        finally:
            subprocess.run(["umount", "-l", trial.vault, kept], check=True)


# -- a0cli's file ------------------------------------------------------------------------------------------------------


def removed(program: Path) -> None:
    program.unlink()


def not_executable(program: Path) -> None:
    program.chmod(0o600)


def says_nothing(program: Path) -> None:
    _replace(program, "#!/bin/sh\nexit 0\n")


def says_anything(program: Path) -> None:
    _replace(program, '#!/bin/sh\necho \'{"message": "All is well"}\'\n')


def no_program(program: Path) -> None:
    _replace(program, "\x7fELF and no more")


def _replace(program: Path, text: str) -> None:
    """Replace the program as an upgrade does: another file under the same name."""
    other = program.with_name("new")
    other.write_text(text)
    other.chmod(0o700)
    other.replace(program)


@deep
@pytest.mark.parametrize(
    "strike", [removed, not_executable, says_nothing, says_anything, no_program], ids=lambda strike: strike.__name__
)
def test_an_a0cli_that_is_replaced_or_removed_during_a_run_loses_nothing(
    arena_: Arena, told: Any, strike: Callable[[Path], None]
) -> None:
    place = arena_.room / f"bin-{strike.__name__}"
    place.mkdir()
    program = Path(shutil.copy(arena_.appliances.a0cli, place / "a0cli"))
    trial = Trial(arena_, a0cli={"call_timeout": "3s", "path": str(program)})
    trial.appliances.tell(trial.node, "backup", "duration", seconds=3)
    run = trial.start()
    until(lambda: trial.calls("backup-status") > 2)
    strike(program)
    code = run.wait()
    broken = [] if code == 1 else [f"it ended with {code}: {run.out + run.err}"]
    program.unlink(missing_ok=True)
    shutil.copy(arena_.appliances.a0cli, program)
    broken += after(trial, code, run.out + run.err)
    if trial.calls("backup") != 1:
        broken.append("another backup was started")
    told("a0cli replaced or missing").point(strike.__name__, broken)
