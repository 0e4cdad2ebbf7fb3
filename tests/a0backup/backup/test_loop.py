"""A kind or node that fails, for whatever reason, is reported and stops no other."""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from a0backup.backup import session
from a0backup.backup.loop import NodeOutcomes, back_up_node
from a0backup.backup.session import NodeSession, Run, open_node
from a0backup.backup.steps import StepName
from a0backup.errors import A0cliError, UnreachableError, VaultUnusableError
from a0backup.files import digests, in_thread
from a0backup.report.outcomes import Ending
from a0backup.report.progress import News, Step, watched_by
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Failures, Plainly, nothing_shared, run_of, sharing

BOTH = ["backup", "backup-sensitive"]


async def backed_up(desk: Desk, take: Plainly, failed: Callable[[Exception], None] | None = None) -> NodeOutcomes:
    [node], failures = desk.fleet.nodes, Failures()
    outcomes = failures.outcomes = NodeOutcomes(node, desk.fleet, failed or failures)
    await back_up_node(run_of(desk.fleet, "run-1"), outcomes, take=take, shared=sharing(PASSWORD))
    return outcomes


def raising(error: Exception, at: StepName, times: int) -> Plainly:
    left = [error] * times

    def after(name: str) -> None:
        if name == at and left:
            raise left.pop()

    return Plainly(after)


@pytest.mark.parametrize("foreseen", [True, False])
async def test_an_error_in_one_kind_is_recorded_and_the_next_kind_is_backed_up(desk: Desk, foreseen: bool) -> None:
    desk.configure(kinds=BOTH)
    error = A0cliError(desk.name, "backup-status", "foreseen") if foreseen else ZeroDivisionError("unforeseen")
    outcomes = await backed_up(desk, raising(error, StepName.STATUS, 1))
    assert [(each.kind, each.ending) for each in outcomes.all] == [
        ("backup", Ending.FAILED),
        ("backup-sensitive", Ending.STORED),
    ]
    assert outcomes.failed.of_each_kind() == [error, None]
    assert outcomes.all[0].step == "status"
    assert "foreseen" in outcomes.all[0].reason


async def test_an_error_after_the_artifact_is_stored_is_reported_as_stored_and_not_deleted(desk: Desk) -> None:
    outcomes = await backed_up(desk, raising(ZeroDivisionError("unforeseen"), StepName.STORE, 1))
    [manifest] = desk.stored
    assert [(each.ending, each.id, each.step) for each in outcomes.all] == [
        (Ending.NOT_DELETED, manifest.id, "store"),
    ]


async def test_an_error_after_the_last_kind_is_a_warning_and_is_passed_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = VaultUnusableError(desk.name, "the folder cannot be removed")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("a0backup.backup.session.release", fail)
    failed: list[Exception] = []
    outcomes = await backed_up(desk, Plainly(), failed=failed.append)
    assert [each.ending for each in outcomes.all] == [Ending.STORED]
    assert [str(warning) for warning in outcomes.warnings][-1:] == [
        f"{desk.name}: after its last backup: the folder cannot be removed"
    ]
    assert failed == [error]


async def test_each_error_is_passed_on_before_the_next_kind_begins(desk: Desk) -> None:
    desk.configure(kinds=BOTH)
    seen: list[str] = []
    take = raising(ZeroDivisionError("unforeseen"), StepName.STATUS, 1)
    hook = take.after

    def after(name: str) -> None:
        seen.append(name)
        hook(name)

    await backed_up(desk, Plainly(after), failed=lambda error: seen.append("failed"))
    assert seen.count("failed") == 1
    assert seen[seen.index("failed") :][1] == StepName.STATUS


@pytest.mark.parametrize("at", [StepName.UPDATE_COMMANDS, StepName.PING])
async def test_an_error_before_the_first_kind_is_the_outcome_of_each_kind(desk: Desk, at: StepName) -> None:
    desk.configure(kinds=BOTH)
    error = UnreachableError(desk.name, str(at), "it is away")
    outcomes = await backed_up(desk, raising(error, at, 4))
    assert [(each.kind, each.ending, each.step) for each in outcomes.all] == [
        ("backup", Ending.UNREACHABLE, at),
        ("backup-sensitive", Ending.UNREACHABLE, at),
    ]
    assert outcomes.failed.of_each_kind() == [error, error]
    assert desk.counts == (0, 0, 0)


async def test_a_node_that_cannot_be_locked_fails_in_the_lock_step(desk: Desk) -> None:
    desk.vault.folder(desk.name).mkdir(parents=True)
    (desk.vault.folder(desk.name) / "lock").mkdir()
    [outcome] = (await backed_up(desk, Plainly())).all
    assert (outcome.ending, outcome.step) == (Ending.FAILED, "lock")


async def test_a_watcher_sees_each_step_under_its_step_name(desk: Desk) -> None:
    told: list[str] = []

    def hear(news: News) -> None:
        if isinstance(news, Step) and not news.text and news.watch is None:
            told.append(news.name)

    take = Plainly()
    with watched_by(hear):
        await backed_up(desk, take)
    assert list(dict.fromkeys(told)) == take.taken


async def test_a_failure_is_attributed_to_a_step_until_the_next_step_begins(desk: Desk) -> None:
    seen: list[str] = []

    class Watching(Plainly):
        async def __call__(self, name: StepName, session: NodeSession, *rest: object) -> object:  # type: ignore[override]
            result = await super().__call__(name, session, *rest)  # type: ignore[arg-type]
            seen.append(session.step)
            return result

    take = Watching()
    await backed_up(desk, take)
    assert seen == take.taken


async def test_the_run_says_that_the_vaults_disk_does_not_answer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SLOW", 0.1)
    news: list[News] = []
    run = Run.begin(desk.fleet, desk.fleet.nodes, id="run-1")
    with watched_by(news.append):
        async with open_node(run, desk.fleet.nodes[0], take=Plainly(), shared=nothing_shared) as opened:
            assert await opened.on_disk(lambda: time.sleep(0.3) or "done") == "done"
    told = [each.text for each in news if isinstance(each, Step)]
    assert [text for text in told if text.startswith("waiting for the vault's disk since ")]


async def test_no_name_of_a_file_adds_a_line_to_the_reason_of_a_failure(desk: Desk, tmp_path: Path) -> None:
    place = tmp_path / "x\x1b[31m\nWARNING  all is well.tar.gz.enc"
    place.mkdir()
    run = Run.begin(desk.fleet, desk.fleet.nodes, id="run-1")
    async with open_node(run, desk.fleet.nodes[0], take=Plainly(), shared=nothing_shared) as opened:
        with pytest.raises(VaultUnusableError) as failed:
            await opened.on_disk(digests, place)
    assert failed.value.reason.endswith("/x WARNING all is well.tar.gz.enc)")
    assert failed.value.message().isprintable()


async def test_what_is_cancelled_twice_still_waits_for_its_thread(desk: Desk) -> None:
    ended: list[bool] = []
    run = Run.begin(desk.fleet, desk.fleet.nodes, id="run-1")
    async with open_node(run, desk.fleet.nodes[0], take=Plainly(), shared=nothing_shared) as opened:
        work = asyncio.create_task(opened.on_disk(lambda: (time.sleep(0.5), ended.append(True))))
        for _ in range(3):
            await asyncio.sleep(0.05)
            work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert ended == [True]


@pytest.mark.parametrize("moment", range(1, 11))
async def test_a_run_that_is_cancelled_while_it_opens_or_leaves_a_node_leaves_no_directory_and_no_keys(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: int
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run, count = Run.begin(desk.fleet, desk.fleet.nodes, id="run-1"), itertools.count(1)
    loop = asyncio.get_running_loop()

    def left() -> list[Path]:
        return [*desk.vault.work(desk.name).glob("*"), *tmp_path.glob("state/a0backup/keys/*")]

    async def cancelled_at_the_moment(function: Callable[..., object], *args: object, **named: object) -> object:
        def work() -> object:
            if next(count) == moment:
                loop.call_soon_threadsafe(opening.cancel)
            try:
                return function(*args, **named)
            finally:
                if next(count) == moment:
                    loop.call_soon_threadsafe(opening.cancel)

        return await in_thread(work)

    async def open_and_leave() -> None:
        async with open_node(run, desk.fleet.nodes[0], take=Plainly(), shared=nothing_shared):
            assert left()

    monkeypatch.setattr(session, "in_thread", cancelled_at_the_moment)
    opening = asyncio.create_task(open_and_leave())
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert left() == []
