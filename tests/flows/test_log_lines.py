"""The engine's log lines about a run's steps read like the rest of the log."""

import asyncio
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from simulator.fleet import SimulatedFleet
from tests.flows.conftest import Recorded, recorded, run_and_read

pytestmark = pytest.mark.engine


def lines(run: Recorded) -> list[str]:
    return [log.message for log in run.logs]


def test_expected_errors_are_logged_in_plain_words_with_what_comes_next(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet

    appliances.tell("a0-1", "backup", "duration", seconds=1.5)
    appliances.tell("a0-2", "backup-retrieve", "flip")
    appliances.tell("a0-3", None, "unreachable")
    run = run_and_read(backup_fleet, fleet=fleet_yaml)
    assert run.flow_run.state.name == "Failed"
    said = lines(run)
    for pattern in (
        r"a0-1: backup still in progress after \d s; checking again in \d\.\d s",
        r"a0-3: update-commands: the node does not answer \(.*\); retrying in \d\.\d s \(1 of 3\)",
        r"a0-2: md5 mismatch in 3 attempts: .*",
        r"a0-2: md5 mismatch in 3 attempts: .*\nHINT: .*",
        r"2 of 3 node backups failed: a0-2 .*; a0-3: .*",
    ):
        assert any(re.fullmatch(pattern, line) for line in said), (pattern, said)
    whole = "\n".join(said)
    for word in ("Traceback", "NoneType", "Task run failed", "Finished in state", "Error("):
        assert word not in whole, word
    # Once where it occurs, once where the node's backup fails with it, and once in the run's last line.
    assert whole.count("md5 mismatch in 3 attempts") == 3


def test_an_unexpected_error_keeps_its_traceback(engine: str) -> None:
    from prefect import flow

    from tasks.engine_task import engine_task

    @engine_task(name="surprise")
    async def surprise() -> None:
        raise ZeroDivisionError("nobody foresaw this")

    @flow(name="surprised", persist_result=False)
    async def surprised() -> None:
        await surprise()

    whole = "\n".join(lines(run_and_read(surprised)))
    assert whole.count("Traceback") == 2  # the step's and the flow's
    assert "raise ZeroDivisionError" in whole


def test_a_step_cancelled_with_its_run_is_not_a_crash(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    from flows.backup_fleet import backup_fleet
    from tasks.engine_task import task_runs

    appliances.tell("a0-1", "backup-retrieve", "hang")
    task_runs.clear()

    async def cancelled() -> Recorded:
        run: asyncio.Task[Any] = asyncio.create_task(backup_fleet(fleet=fleet_yaml, nodes=["a0-1"]))
        while not appliances.calls("a0-1", "backup-retrieve"):  # noqa: ASYNC110 - the calls are those of another process
            await asyncio.sleep(0.05)
        run.cancel()
        await asyncio.wait([run])
        return await recorded(UUID([*task_runs][-1]))

    of_steps = [log.message for log in asyncio.run(cancelled()).logs if log.name == "prefect.task_runs"]
    cancelled = [line for line in of_steps if line.endswith("cancelled")]
    assert sorted(cancelled) == ["backup-a0-1: cancelled", "retrieve-backup-a0-1: cancelled"]
    assert not [line for line in of_steps if "Crash" in line]
