"""Putting a node into service: what is asked, what is done after the answer, and what is otherwise left alone."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from a0backup.passwords.recovery_keys import make_pair
from a0backup.vault.lock import is_held
from deployments.home import use_api
from deployments.server import own_server
from simulator.fleet import SimulatedFleet
from tests.flows.conftest import Recorded, recorded
from tests.support.deployed import Deployed, deployed_in
from tests.support.patience import eventually, patience

pytestmark = pytest.mark.engine

DEVICE = "/dev/sdb"
GO_AHEAD, CHANGE_NOTHING = {"decision": "go ahead"}, {"decision": "change nothing"}
LOOK = ["update-commands", "ping", "backup-status", "backup-sensitive-status"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.enrol_node.LOOKS_EVERY", 0.1)
    monkeypatch.setattr("a0backup.nodes.enrolment.LOOK_INTERVAL", 0.1)


@pytest.fixture
def new_node(appliances: SimulatedFleet, fleet_yaml: Path) -> SimulatedFleet:
    """Return the fleet, with a0-1 not yet in the backup role."""
    appliances.tell("a0-1", None, "no_role")
    return appliances


@dataclass(frozen=True)
class Asked:
    """A run that waits for its confirmation, and what it shows."""

    flow_run: UUID
    question: str
    plan: str
    schema: dict[str, Any]


async def paused(flow_run: UUID) -> Asked:
    """Wait until the run asks, and return what it shows."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.client.schemas.sorting import ArtifactSort

    async with asyncio.timeout(patience(60)), get_client() as client:
        while True:
            state = (await client.read_flow_run(flow_run)).state
            assert state is not None
            assert not state.is_final(), state.message
            inputs = {each.key: each.value for each in await client.filter_flow_run_input(flow_run, "", 10, set())}
            keys = state.state_details.run_input_keyset or {}
            if keys and {keys["schema"], keys["description"]} <= inputs.keys():
                break
            await asyncio.sleep(0.05)
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run])),
            sort=ArtifactSort.KEY_ASC,
        )
    *_, plan = [str(artifact.data) for artifact in artifacts if artifact.key == "enrolment-plan"]
    return Asked(flow_run, json.loads(inputs[keys["description"]]), plan, json.loads(inputs[keys["schema"]]))


async def answer(asked: Asked, said: dict[str, Any]) -> str:
    """Resume the run as its page does. Return whether the answer was accepted."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return str((await client.resume_flow_run(asked.flow_run, run_input=said)).status.name)


def enrolled(
    fleet_yaml: Path,
    said: dict[str, Any] | None,
    *,
    meanwhile: Callable[[Asked], Awaitable[None] | None] = lambda asked: None,
    **parameters: object,
) -> tuple[Asked, Recorded]:
    """Run the flow for a0-1 and answer *said* once it asks, after *meanwhile*. None: do not answer."""
    from flows.enrol_node import enrol_node

    async def run() -> tuple[Asked, Recorded]:
        known: asyncio.Future[UUID] = asyncio.get_running_loop().create_future()
        flow = enrol_node.with_options()
        flow.on_running_hooks = [lambda flow, run, state: known.done() or known.set_result(run.id)]
        given = {"node": "a0-1", "device": DEVICE, "fleet": fleet_yaml} | parameters
        running = asyncio.ensure_future(flow(**given, return_state=True))
        await asyncio.wait({running, known}, return_when=asyncio.FIRST_COMPLETED)
        asked = await paused(known.result())
        if (waited := meanwhile(asked)) is not None:
            await waited
        if said is not None:
            assert await answer(asked, said) == "ACCEPT"
        state = await running
        return asked, await recorded(state.state_details.flow_run_id)

    return asyncio.run(run())


def commands(appliances: SimulatedFleet) -> list[str]:
    return [call["command"] for call in appliances.calls("a0-1")]


def test_a_confirmed_node_gets_its_role_and_its_first_backup_is_proven(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    _, run = enrolled(fleet_yaml, GO_AHEAD)
    assert run.flow_run.name == "enrol-a0-1"
    assert run.flow_run.state.message == "a0-1 is in service: its first backup is stored and proven to open"
    assert run.flow_run.state.name == "Completed"
    assert set(run.all_states()) == {"Completed"}
    assert commands(new_node)[:8] == LOOK * 2
    assert commands(new_node)[8:11] == ["set-as-backup", "update-commands", "update-commands"]
    [role] = new_node.calls("a0-1", "set-as-backup")
    assert role["args"] == [DEVICE]
    assert new_node.holds("a0-1") is None
    [manifest] = fleet_yaml.parent.glob("vault/a0-1/*/manifest.json")
    [drill] = [each for each in run.task_runs if each.name == "drill-a0-1"]
    assert drill.state.message == f"opened a0-1/{manifest.parent.name} and read it to its end: 5 members"
    assert {artifact.key for artifact in run.artifacts} >= {"enrolment-plan", "backup-report"}
    assert {call["node"] for call in new_node.calls()} == {"a0-1"}


def test_the_question_says_what_was_found_and_what_will_be_done_and_no_lock_is_held(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    def look(asked: Asked) -> None:
        assert not is_held(fleet_yaml.parent / "vault/a0-1/lock")
        assert commands(new_node) == LOOK
        assert list((fleet_yaml.parent / "vault/a0-1/work").iterdir()) == []

    asked, _ = enrolled(fleet_yaml, CHANGE_NOTHING, meanwhile=look)
    for page in (asked.question, asked.plan):
        assert f"`a0cli -t 127.0.0.1 set-as-backup {DEVICE}`: give it the backup role" in page
        assert "without force, a backup folder that exists on the node makes it fail" in page
    assert "| backup role | **no** |" in asked.plan
    assert "backup: nothing there" in asked.plan
    assert asked.schema["required"] == ["decision"]
    decision = asked.schema["properties"]["decision"]
    assert decision["enum"] == ["go ahead", "change nothing"]
    assert decision["description"].endswith(".")


def test_a_refusal_ends_the_run_as_cancelled_and_leaves_the_node_unchanged(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    _, run = enrolled(fleet_yaml, CHANGE_NOTHING)
    assert run.flow_run.state.name == "Cancelled"
    assert run.flow_run.state.message == "a0-1: cancelled at the confirmation; nothing was changed on it"
    assert commands(new_node) == LOOK
    assert set(run.all_states()) == {"Completed"}


def test_an_enrolment_that_nobody_confirms_fails_and_says_so(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.enrol_node.CONFIRMED_WITHIN", 2)
    _, run = enrolled(fleet_yaml, None)
    assert run.flow_run.state.name == "Failed"
    assert "nobody confirmed it within" in run.flow_run.state.message
    assert "nothing was changed on the node" in run.flow_run.state.message
    assert commands(new_node) == LOOK


def test_an_answer_that_decides_nothing_is_rejected(engine: str, new_node: SimulatedFleet, fleet_yaml: Path) -> None:
    async def answer_badly(asked: Asked) -> None:
        for said in ({}, {"decision": "whatever"}, {"decision": "go ahead", "device": "/dev/sda"}):
            assert await answer(asked, said) == "REJECT"

    _, run = enrolled(fleet_yaml, CHANGE_NOTHING, meanwhile=answer_badly)
    assert run.flow_run.state.name == "Cancelled"


def test_a_retry_of_the_run_asks_again(engine: str, new_node: SimulatedFleet, fleet_yaml: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow_async
    from prefect.states import Scheduled

    from flows.enrol_node import enrol_node

    new_node.tell("a0-1", "set-as-backup", "refuse", message="device is busy\n")
    _, first = enrolled(fleet_yaml, GO_AHEAD)
    assert first.flow_run.state.name == "Failed"
    new_node.forget()

    async def retry() -> str:
        async with get_client() as client:
            await client.set_flow_run_state(first.flow_run.id, Scheduled(name="AwaitingRetry"), force=True)
            flow_run = await client.read_flow_run(first.flow_run.id)
            parameters = {"node": "a0-1", "device": DEVICE, "fleet": fleet_yaml, "force": False}
            running = asyncio.ensure_future(
                run_flow_async(enrol_node, flow_run=flow_run, parameters=parameters, return_type="state")
            )
            asked = await paused(flow_run.id)
            assert await answer(asked, CHANGE_NOTHING) == "ACCEPT"
            await running
            return str((await client.read_flow_run(first.flow_run.id)).state.name)

    assert asyncio.run(retry()) == "Cancelled"
    assert len(new_node.calls("a0-1", "set-as-backup")) == 1


def test_a_node_that_has_the_role_keeps_it_and_is_backed_up(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    asked, run = enrolled(fleet_yaml, GO_AHEAD, force=True)
    assert run.flow_run.state.name == "Completed"
    assert "it offers `backup`, so it has the backup role already" in asked.question
    assert "lost" not in asked.question
    assert run.states("set-as-backup") == ["Cached"]
    assert appliances.calls("a0-1", "set-as-backup") == []
    assert len(appliances.calls("a0-1", "backup")) == 1


def test_a_role_that_somebody_set_meanwhile_is_not_set_again(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    _, run = enrolled(fleet_yaml, GO_AHEAD, meanwhile=lambda asked: new_node.forget("a0-1"))
    assert run.flow_run.state.name == "Completed"
    assert run.states("set-as-backup") == ["Cached"]
    assert new_node.calls("a0-1", "set-as-backup") == []


def test_a_role_that_was_lost_meanwhile_is_not_set_without_confirmation(
    engine: str, appliances: SimulatedFleet, fleet_yaml: Path
) -> None:
    _, run = enrolled(fleet_yaml, GO_AHEAD, meanwhile=lambda asked: appliances.tell("a0-1", None, "no_role"))
    assert run.flow_run.state.name == "Failed"
    assert "it has lost the backup role since that was confirmed" in run.flow_run.state.message
    assert appliances.calls("a0-1", "set-as-backup") == []


def test_a_refused_device_fails_the_run_before_any_backup(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    new_node.tell("a0-1", "set-as-backup", "refuse", message="sdb: device is busy\n")
    _, run = enrolled(fleet_yaml, GO_AHEAD)
    assert run.flow_run.state.name == "Failed"
    assert "a0-1: not in service: it offers no `backup` after set-as-backup /dev/sdb" in run.flow_run.state.message
    assert "device is busy" in run.flow_run.state.message
    assert len(new_node.calls("a0-1", "set-as-backup")) == 1
    assert new_node.calls("a0-1", "backup") == []


def test_a_backup_folder_blocks_enrolment_and_is_deleted_with_force(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    old = new_node.put("a0-1", password="theirs")
    _, refused = enrolled(fleet_yaml, GO_AHEAD)
    assert refused.flow_run.state.name == "Failed"
    assert "A backup folder already exists" in refused.flow_run.state.message
    assert "no backup folder is on the node" in refused.flow_run.state.message
    assert new_node.holds("a0-1")["md5"] == old["md5"]

    asked, forced = enrolled(fleet_yaml, GO_AHEAD, force=True)
    for page in (asked.question, asked.plan):
        assert f"set-as-backup {DEVICE} true`" in page
        assert "with force, what is in a backup folder that exists on the node is lost" in page
        assert f"lost, and nowhere else: backup: found {old['name']} ({old['md5']})" in page.replace("\\", "")
    assert forced.flow_run.state.name == "Completed"
    assert new_node.calls("a0-1", "set-as-backup")[-1]["args"] == [DEVICE, "true"]
    gone = [event["md5"] for event in new_node.events("a0-1") if event["event"] == "deleted"]
    assert gone[0] == old["md5"]
    assert len(gone) == 2


def test_force_destroys_nothing_that_was_not_confirmed(engine: str, new_node: SimulatedFleet, fleet_yaml: Path) -> None:
    later: list[dict[str, Any]] = []
    _, run = enrolled(
        fleet_yaml, GO_AHEAD, force=True, meanwhile=lambda asked: later.append(new_node.put("a0-1", password="theirs"))
    )
    assert run.flow_run.state.name == "Failed"
    assert "force would destroy more than was confirmed" in run.flow_run.state.message
    assert new_node.calls("a0-1", "set-as-backup") == []
    assert new_node.holds("a0-1")["md5"] == later[0]["md5"]


@pytest.mark.parametrize("reply", ["lost", "ok"])
def test_a_role_that_takes_effect_late_is_waited_for_and_never_set_twice(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path, reply: str
) -> None:
    new_node.tell("a0-1", "set-as-backup", "late", seconds=1, reply=reply)
    _, run = enrolled(fleet_yaml, GO_AHEAD)
    assert run.flow_run.state.name == "Completed"
    assert len(new_node.calls("a0-1", "set-as-backup")) == 1


def test_a_failed_first_backup_fails_the_run(engine: str, new_node: SimulatedFleet, fleet_yaml: Path) -> None:
    new_node.tell("a0-1", "backup-retrieve", "flip")
    _, run = enrolled(fleet_yaml, GO_AHEAD)
    assert run.flow_run.state.name == "Failed"
    assert "md5 mismatch" in run.flow_run.state.message
    assert run.states("set-as-backup") == ["Completed"]
    assert run.states("drill") == []


def test_a_sealed_first_backup_is_proven_by_the_run_that_made_it(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path
) -> None:
    make_pair(fleet_yaml.parent / "recovery.key.pem", fleet_yaml.parent / "recovery.pub.pem", "a long passphrase")
    new_node.fleet_yaml(fleet_yaml, password={"sealed_to": str(fleet_yaml.parent / "recovery.pub.pem")})
    _, run = enrolled(fleet_yaml, GO_AHEAD)
    assert run.flow_run.state.name == "Completed"
    [drill] = [each for each in run.task_runs if each.name == "drill-a0-1"]
    assert drill.state.name == "Cached"
    assert re.search(r"the run opened a0-1/\S+ while its password was at hand: 5 members", drill.state.message)


@pytest.mark.parametrize(
    "device", ["", "sdb", "-f", "/dev/", "/dev/../etc", "/dev/-sdb", "/dev/sdb\n", "/dev/sd b", "/etc/sdb", "/dev//sdb"]
)
def test_an_invalid_device_is_refused_before_the_node_is_called(
    engine: str, new_node: SimulatedFleet, fleet_yaml: Path, device: str
) -> None:
    from flows.enrol_node import enrol_node

    async def run() -> str:
        state = await enrol_node(node="a0-1", device=device, fleet=fleet_yaml, return_state=True)
        return str((await recorded(state.state_details.flow_run_id)).flow_run.state.message)

    assert "device" in asyncio.run(run())
    assert new_node.calls() == []


def test_each_parameter_is_described_and_the_form_has_a_pattern_for_the_device() -> None:
    from flows.enrol_node import enrol_node

    for name, parameter in enrol_node.parameters.properties.items():
        assert parameter["description"].endswith("."), name
    assert re.search(enrol_node.parameters.properties["device"]["pattern"], "/dev/disk/by-id/scsi-0QEMU_1")
    assert enrol_node.parameters.required == ["node", "device"]


@pytest.fixture
def deployed(tmp_path: Path, own_home: Path, new_node: SimulatedFleet) -> Iterator[Deployed]:
    folder = tmp_path / "operator"
    folder.mkdir()
    new_node.fleet_yaml(folder / "fleet.yaml")
    with own_server(own_home) as api, use_api(api, own_home), deployed_in(folder, api) as place:
        place.prefect("deploy", "flows.enrol_node.enrol_node", "--name", "tried", "--pool", "appliance")
        yield place


@pytest.mark.slow
def test_under_a_worker_enrolment_continues_when_confirmed_and_ends_at_once_when_cancelled(
    deployed: Deployed, new_node: SimulatedFleet
) -> None:
    def started() -> tuple[str, psutil.Process]:
        parameters = {"node": "a0-1", "device": DEVICE, "fleet": str(deployed.folder / "fleet.yaml")}
        run = deployed.run("enrol-node/tried", **parameters).raise_for_status().json()["id"]
        assert eventually(lambda: deployed.state(run) in ("Paused", "Failed", "Crashed"), 60)
        assert deployed.state(run) == "Paused", deployed.log.read_text()[-4000:]
        [process] = psutil.Process(deployed.worker.pid).children()
        return run, process

    cancelled, process = started()
    assert not is_held(deployed.folder / "vault/a0-1/lock")
    deployed.set_state(cancelled, type="CANCELLING", name="Cancelling")
    assert deployed.ends_as("Cancelled", cancelled, 30)
    assert eventually(lambda: not process.is_running(), 10)
    assert commands(new_node) == LOOK

    confirmed, _ = started()
    assert asyncio.run(answer(asyncio.run(paused(UUID(confirmed))), GO_AHEAD)) == "ACCEPT"
    assert deployed.ends_as("Completed", confirmed)
    assert len(new_node.calls("a0-1", "set-as-backup")) == 1

    def states() -> set[str]:
        return {(each["state"] or {}).get("name") for each in deployed.filter("task_runs", confirmed)}

    # The engine records the task runs a moment later than the flow run.
    assert eventually(lambda: states() == {"Completed"}, 30), states()
