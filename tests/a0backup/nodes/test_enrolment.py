"""Enrolment without an engine: the look at a new node, its backup role, and the proof of its first backup."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from a0backup.backup.session import NodeSession, Run, open_node
from a0backup.errors import A0cliMissingError, EnrolmentError, RefusedError, UnknownReplyError, WrongPasswordError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Fleet
from a0backup.nodes import enrolment
from a0backup.nodes.enrolment import NodeSnapshot, Plan, Role, give_role, look, prove
from a0backup.passwords.shared import Source
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Plainly, nothing_shared
from tests.support.stored import Keys, store

ROLE = Role("/dev/sdb")


@pytest.fixture(autouse=True)
def impatient(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "LOOK_INTERVAL", 0.05)
    desk.configure(a0cli={"call_timeout": "2s"})


@asynccontextmanager
async def at(desk: Desk) -> AsyncIterator[NodeSession]:
    run = Run.begin(desk.fleet, desk.fleet.nodes, id="run-1")
    async with open_node(run, desk.fleet.nodes[0], take=Plainly(), shared=nothing_shared) as session:
        await session.update_commands()
        await session.ping()
        yield session


async def given(desk: Desk, role: Role = ROLE, *, confirmed: NodeSnapshot | None = None) -> str:
    async with at(desk) as session:
        return (await give_role(session, role, confirmed=confirmed or NodeSnapshot(has_role=False))).text


def given_calls(desk: Desk) -> list[list[str]]:
    return [call["args"] for call in desk.simulated.calls(desk.name, "set-as-backup")]


async def test_a_look_reports_the_missing_role_and_what_the_node_holds(desk: Desk) -> None:
    desk.tell(None, "no_role")
    held = desk.put()
    async with at(desk) as session:
        seen = await look(session)
    assert not seen.has_role
    assert str(seen) == (
        "it has no backup role: it does not offer `backup`;"
        f" backup: found {held['name']} ({held['md5']}), not in the vault; backup-sensitive: nothing there"
    )
    assert [each.kind for each in seen.nowhere_else] == ["backup"]


async def test_a_backup_in_the_vault_does_not_count_as_one_that_is_only_on_the_node(desk: Desk) -> None:
    await desk.night()
    desk.tell("backup-delete", "false_delete")
    await desk.night(flow_run="run-3")
    held = desk.holds
    assert held is not None
    async with at(desk) as session:
        seen = await look(session)
    [manifest] = [each for each in desk.stored if each.artifact.md5 == held["md5"]]
    assert f"in the vault as {manifest.id}" in str(seen)
    assert not seen.nowhere_else


async def test_a_node_with_unknown_contents_can_be_enrolled_and_the_plan_says_so(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell("backup-status", "refuse", message="This node is not a backup node\n")
    desk.tell("backup-sensitive-status", "say", stdout="gibberish")
    async with at(desk) as session:
        seen = await look(session)
        plan = Plan(session.node, Role("/dev/sdb", force=True), seen)
        assert (await give_role(session, plan.role, confirmed=seen)).text.startswith("it offers `backup` now")
    assert "what is in it is not known: backup: not told (This node is not a backup node)" in "\n".join(plan.cautions)
    assert "backup-sensitive: not told (gibberish)" in "\n".join(plan.cautions)


async def test_an_unknown_command_listing_stops_the_enrolment_before_anything_is_sent(desk: Desk) -> None:
    client = desk.room / "a0cli"
    client.write_text(f'#!/bin/sh\n[ $# -gt 0 ] && exec {desk.simulated.a0cli} "$@"\necho "backup, ping, and more"\n')
    client.chmod(0o700)
    desk.configure(a0cli={"path": str(client)})
    async with at(desk) as session:
        with pytest.raises(UnknownReplyError, match="nor whether it has the backup role"):
            await look(session)
        with pytest.raises(UnknownReplyError):
            await give_role(session, ROLE, confirmed=NodeSnapshot(has_role=False))
    assert given_calls(desk) == []


async def test_the_role_is_given_once_and_the_device_is_a_separate_argument(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell(None, "backup_folder")
    assert await given(desk, Role("/dev/disk/by-id/x", force=True)) == (
        """it offers `backup` now; the reply to set-as-backup was '{"message":"OK"}'"""
    )
    assert given_calls(desk) == [["/dev/disk/by-id/x", "true"]]
    assert "nothing was sent" in await given(desk)
    assert len(given_calls(desk)) == 1


@pytest.mark.parametrize("device", ["-f", "/dev/../etc/passwd", "/dev/sdb\n", "/dev/sdb true", "a" * 300])
async def test_an_invalid_device_is_never_sent(desk: Desk, device: str) -> None:
    desk.tell(None, "no_role")
    with pytest.raises(EnrolmentError, match="is no device"):
        await given(desk, Role(device))
    assert given_calls(desk) == []


async def test_a_refusal_is_reported_at_once_with_what_the_node_said(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell(None, "backup_folder")
    desk.configure(a0cli={"call_timeout": "600s"})
    with pytest.raises(EnrolmentError) as told:
        await given(desk)
    assert "it offers no `backup` after set-as-backup /dev/sdb" in told.value.message()
    assert "A backup folder already exists" in told.value.message()
    assert "no backup folder is on the node" in told.value.hint()


async def test_the_wording_of_a_refusal_can_be_taught(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell("set-as-backup", "refuse", message="Das geht nicht\n")
    desk.configure(a0cli={"call_timeout": "600s", "replies": {"refused": ["Das geht nicht"]}})
    with pytest.raises(EnrolmentError, match="Das geht nicht"):
        await given(desk)


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "hang", "ignore_sigterm": True},
        {"fault": "lost_reply"},
        {"fault": "refuse", "message": "", "exit": 7},
        {"fault": "refuse", "message": "OK", "exit": 0, "stream": "stdout"},
    ],
)
async def test_a_call_with_an_unclear_reply_is_judged_by_its_effect_and_never_repeated(desk: Desk, fault: dict) -> None:
    desk.tell(None, "no_role")
    settings = dict(fault)
    desk.tell("set-as-backup", settings.pop("fault"), **settings)
    if fault["fault"] == "lost_reply":
        assert (await given(desk)).startswith("it offers `backup` now")
    else:
        with pytest.raises(EnrolmentError, match="it offers no `backup`"):
            await given(desk)
    assert len(given_calls(desk)) == 1


async def test_a_node_that_is_briefly_unreachable_after_the_call_is_waited_for(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell("set-as-backup", "exit", code=3)
    desk.tell("update-commands", "lost_reply", skip=1, times=3)
    assert (await given(desk)).startswith("it offers `backup` now")


async def test_a_node_that_stays_unreachable_is_reported_as_such(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell("update-commands", "lost_reply", skip=1)
    with pytest.raises(EnrolmentError, match="it cannot be asked"):
        await given(desk)


async def test_a_node_that_refuses_the_key_afterwards_is_reported_at_once(desk: Desk) -> None:
    desk.tell(None, "no_role")
    desk.tell("update-commands", "refuse", skip=1)
    with pytest.raises(RefusedError):
        await given(desk)


async def test_a_missing_a0cli_is_reported_as_such(desk: Desk) -> None:
    desk.tell(None, "no_role")
    client = desk.room / "a0cli"
    client.symlink_to(desk.simulated.a0cli)
    desk.configure(a0cli={"path": str(client)})
    async with at(desk) as session:
        seen = await look(session)
        client.unlink()
        with pytest.raises(A0cliMissingError):
            await give_role(session, ROLE, confirmed=seen)


def test_text_from_a_node_is_never_markup_in_the_plan(desk: Desk) -> None:
    from a0backup.a0cli.status import Found
    from a0backup.nodes.enrolment import ReportedBackup

    md5 = "0" * 32
    told = ReportedBackup("backup", Found("|<b>**x**](http://x)\n| a |", md5))
    page = Plan(
        desk.fleet.nodes[0], Role("/dev/sdb", force=True), NodeSnapshot(has_role=False, told=(told,))
    ).markdown()
    assert "<b>" not in page
    assert "**x" not in page
    assert len([line for line in page.splitlines() if line.startswith("|")]) == 8


def prepared(tmp_path: Path, password: dict[str, str]) -> Fleet:
    (tmp_path / "keys").mkdir(exist_ok=True)
    content = {
        "vault": str(tmp_path / "vault"),
        "a0cli": {"key_dir": str(tmp_path / "keys")},
        "password": password,
        "nodes": [{"name": "a0-1", "host": "127.0.0.1"}],
    }
    (tmp_path / "other.yaml").write_text(json.dumps(content))
    return load_fleet(tmp_path / "other.yaml")


async def shared(source: Source) -> str | None:
    return None if source.sealed_to else PASSWORD


async def test_the_proof_opens_the_stored_artifact_again_with_the_shared_password(tmp_path: Path) -> None:
    fleet = prepared(tmp_path, {"env": "X"})
    manifest = store(fleet.vault, PASSWORD)
    done = await prove(fleet, manifest.id, shared)
    assert done.text == f"opened {manifest.id} and read it to its end: 5 members"
    assert not done.cached
    other = store(fleet.vault, "another", nights=1)
    with pytest.raises(WrongPasswordError):
        await prove(fleet, other.id, shared)


async def test_a_sealed_artifact_that_nobody_has_opened_is_not_proven(tmp_path: Path) -> None:
    keys = Keys.make(tmp_path, PASSWORD)
    fleet = prepared(tmp_path, {"sealed_to": str(tmp_path / "recovery.pub.pem")})
    manifest = store(fleet.vault, PASSWORD, sealed=keys.seal(PASSWORD, "recovery"))
    with pytest.raises(EnrolmentError, match="is stored, and nobody has opened it") as told:
        await prove(fleet, manifest.id, shared)
    assert f"a0backup drill {manifest.id}" in told.value.hint()


async def test_a_missing_artifact_is_not_proven(tmp_path: Path) -> None:
    fleet = prepared(tmp_path, {"env": "X"})
    with pytest.raises(EnrolmentError, match="is not in the vault any more"):
        await prove(fleet, "a0-1/20261123T020000Z-backup", shared)
