"""The node, its connection and anyone else who works on it strike at every call of a run."""

from typing import Any

import pytest

from tests.support.extent import PARTS, deep, in_parts, matrix, share
from tests.support.patience import until
from tests.system.faults.scenarios import after, calls_of, plain
from tests.system.faults.trial import Arena, Trial

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EVERY_CALL: dict[str, tuple[str, dict[str, Any]]] = {
    "out-of-memory kill of a0cli before it is done": ("kill_client", {"when": "before"}),
    "out-of-memory kill of a0cli after it is done": ("kill_client", {"when": "after"}),
    "reply lost": ("lost_reply", {}),
    "reply garbled": ("bad_json", {}),
    "another exit code": ("exit", {"code": 7}),
    "a0cli hangs, deaf to SIGTERM": ("hang", {"ignore_sigterm": True}),
}


@matrix
@in_parts
@pytest.mark.parametrize("fault", EVERY_CALL)
def test_a_single_fault_at_any_call_loses_nothing(arena_: Arena, told: Any, fault: str, part: int) -> None:
    telling = told(fault)
    name, settings = EVERY_CALL[fault]
    for skip, command in share(enumerate(calls_of(arena_, plain)), part, PARTS):
        trial = Trial(arena_, a0cli={"call_timeout": "2s", "retrieve_timeout": "2s"})
        trial.appliances.tell(trial.node, None, name, skip=skip, times=1, **settings)
        code, printed = trial.run()
        if not trial.met(name):
            continue  # this run asked for the status once less than the recorded one, so it has no such call
        broken = after(trial, code, printed)
        if len(trial.events("started")) > 2:
            broken.append(f"{len(trial.events('started'))} backups were started")
        telling.point(f"call {skip + 1}, {command}", broken)


@matrix
@pytest.mark.parametrize("fault", ["drop", "truncate", "flip", "kill_client"])
def test_a_backup_whose_transfer_fails_at_any_tenth_is_retrieved_again(arena_: Arena, told: Any, fault: str) -> None:
    telling = told(f"transfer: {fault} at each tenth")
    during = {"when": "during"} if fault == "kill_client" else {}
    for tenth in share(range(10)):
        trial = Trial(arena_)
        fraction = tenth / 10
        trial.appliances.tell(trial.node, "backup-retrieve", fault, times=1, fraction=fraction, **during)
        code, printed = trial.run()
        broken = [] if (code, trial.calls("backup"), trial.calls("backup-retrieve")) == (0, 1, 2) else [printed]
        telling.point(f"at {fraction:.0%}", broken + after(trial, code, printed))


LATE = [
    (command, seconds, reply)
    for command in ("backup", "backup-delete")
    for seconds in (0.3, 1.5)
    for reply in ("lost", "hang", "ok")
]


@matrix
@in_parts
def test_the_status_reveals_a_start_or_deletion_that_takes_effect_late(arena_: Arena, told: Any, part: int) -> None:
    telling = told("start or deletion that takes effect late")
    for command, seconds, reply in share(LATE, part, PARTS):
        trial = Trial(arena_)
        trial.appliances.tell(trial.node, command, "late", seconds=seconds, reply=reply, times=1)
        code, printed = trial.run()
        broken = after(trial, code, printed)
        telling.point(f"{command}, {seconds} s late, reply {reply}", broken)


@deep
def test_a_deletion_that_is_acknowledged_but_not_done_loses_nothing(arena_: Arena, told: Any) -> None:
    trial = Trial(arena_)
    trial.appliances.tell(trial.node, "backup-delete", "false_delete", times=1)
    code, printed = trial.run()
    told("deletion acknowledged and not done").point("", after(trial, code, printed))


@deep
def test_a_status_that_still_shows_the_old_backup_after_the_start_is_not_trusted(arena_: Arena, told: Any) -> None:
    telling = told("status that still shows the old backup")
    for seconds in share((0.1, 0.5, 1.5)):
        trial = Trial(arena_)
        assert trial.run()[0] == 0
        trial.appliances.tell(trial.node, "backup", "duration", seconds=0.3)
        trial.appliances.tell(trial.node, "backup-status", "stale_status", seconds=seconds)
        code, printed = trial.run()
        broken = [] if (code, len(trial.manifests())) == (0, 2) else [printed]
        telling.point(f"for {seconds} s", broken + after(trial, code, printed))


@deep
@pytest.mark.parametrize("fault", ["replaced", "taken"])
def test_a_backup_that_somebody_replaces_or_removes_at_any_call_is_detected(
    arena_: Arena, told: Any, fault: str
) -> None:
    telling = told(f"backup {fault} by hand")
    # The calls that find a finished backup. After the last one, the run does not ask the node again: the node has no
    # conditional delete, and a backup placed there in these milliseconds is deleted.
    calls = ["the status that finds it", "its retrieval", "the status right before its deletion"]
    for skip, call in enumerate(calls[:2] if fault == "replaced" else calls):
        trial = Trial(arena_)
        password = {"password": "their own"} if fault == "replaced" else {}
        trial.appliances.tell(trial.node, None, fault, skip=skip, times=1, **password)
        trial.spoilt = True
        code, printed = trial.run()
        broken = after(trial, code, printed)
        telling.point(f"after {call}", broken if trial.met(fault) else [*broken, "it was not"])


@deep
@pytest.mark.parametrize("when", ["while it is awaited", "after it was stored", "between two nights"])
def test_another_node_behind_the_same_host_name_loses_no_backup_of_either(arena_: Arena, told: Any, when: str) -> None:
    trial = Trial(arena_, 2)
    one, other = trial.nodes
    trial.appliances.put(other, password="their own")
    if when == "between two nights":
        assert trial.run(one)[0] == 0
        trial.appliances.swap(one, other)
        code, printed = trial.run(one)
    else:
        command = "backup-status" if when == "while it is awaited" else "backup-retrieve"
        if command == "backup-status":
            trial.appliances.tell(one, "backup", "duration", seconds=2)
        else:
            trial.appliances.tell(one, command, "drip", bytes_per_second=10_000)
        run = trial.start(one)
        until(lambda: len(trial.appliances.calls(one, "backup")) == 1 and trial.calls("backup-status") > 1)
        if command == "backup-retrieve":
            until(lambda: trial.vault.joinpath(one, "work").glob("*/backup-retrieve*"))
        trial.appliances.swap(one, other)
        code = run.wait()
        printed = run.out + run.err
    # Whatever the run made of it, the backups of both appliances end up in the vault.
    found = after(trial, code, printed)
    told("another node behind the same host name").point(when, found)
