"""The read-only look at a node: it changes nothing, and says what the next run would do."""
# Other processes make the conditions true, and nothing else runs in a test's loop.
# ruff: noqa: ASYNC110

import asyncio
import fcntl
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from a0backup.check import check_node, fleet_room
from a0backup.files import digests
from a0backup.fleet import Existing, Fleet
from a0backup.journal import Journal, JournalFile, Pair
from a0backup.report import Finding
from a0backup.vault import ManifestNode, ManifestPassword, Vault
from simulator.fleet import SimulatedFleet

NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
LOOKS = {"update-commands", "ping", "backup-status", "backup-sensitive-status"}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 40, size=20_000, backup_seconds=0.05) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def unused(simulated: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return itertools.chain(simulated.nodes)


class Desk:
    """A node of the simulator and a vault, both as an earlier run may have left them."""

    def __init__(self, simulated: SimulatedFleet, node: dict[str, Any], room: Path) -> None:
        self.simulated, self.node, self.name, self.room = simulated, node, str(node["name"]), room
        self.configure()
        self.folder = self.vault.folder(self.name)
        self.folder.mkdir(parents=True)

    def configure(self, **overrides: object) -> None:
        self.fleet = Fleet.load(self.simulated.fleet_yaml(self.room / "fleet.yaml", nodes=[self.node], **overrides))

    @property
    def vault(self) -> Vault:
        return Vault(self.fleet.vault)

    def tell(self, command: str | None, fault: str, **settings: Any) -> None:
        self.simulated.tell(self.name, command, fault, **settings)

    def put(self) -> Pair:
        held = self.simulated.put(self.name, password="their own")
        return Pair(name=held["name"], md5=held["md5"])

    def journal(self, pinned: Pair | None = None) -> None:
        journal = Journal(node=self.name, kind="backup", flow_run="run-1", started_at=NOW, pinned=pinned)
        JournalFile(self.folder, "backup").write(journal)

    def store(self) -> Pair:
        """Put a backup on the node that is in the vault already, as ours."""
        pair = self.put()
        held = self.simulated.holds(self.name)
        assert held is not None
        content = Path(held["path"]).read_bytes()
        place = self.vault.verified_file(self.name, "backup")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
        self.vault.store(
            node=ManifestNode(name=self.name, host="127.0.0.1", port=1),
            kind="backup",
            name_on_node=pair.name,
            expected=digests(place),
            started_at=NOW,
            password=ManifestPassword(mode="shared"),
            flow_run="run-1",
            now=NOW,
        )
        return pair

    async def check(self, existing: Existing | None = None) -> Finding:
        """Look, and see that nothing was changed by it."""
        [node] = self.fleet.nodes
        before = self.state(), len(self.simulated.calls(self.name))
        finding = await check_node(self.fleet, node, existing=existing)
        assert self.state() == before[0]
        assert {call["command"] for call in self.simulated.calls(self.name)[before[1] :]} <= LOOKS
        return finding

    def state(self) -> dict[str, object]:
        """Return all that is in the vault and on the node."""
        state: dict[str, object] = {"on the node": self.simulated.holds(self.name)}
        for path in sorted(self.fleet.vault.rglob("*")):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            state[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
        return state


@pytest.fixture
def desk(simulated: SimulatedFleet, unused: Iterator[dict[str, Any]], tmp_path: Path) -> Desk:
    return Desk(simulated, next(unused), tmp_path)


async def test_a_free_node_is_well_and_would_be_backed_up(desk: Desk) -> None:
    finding = await desk.check()
    assert re.fullmatch(r"\d+\.\d [GT]B free", finding.room)
    assert finding == Finding(
        node=desk.name,
        room=finding.room,
        well=True,
        reachable=True,
        status="nothing there",
        would="start a backup, retrieve, verify and store it, delete it on the node (nothing is on the node)",
    )


async def test_a_vault_without_room_for_the_next_artifact_is_a_problem(desk: Desk) -> None:
    desk.store()
    [manifest] = desk.vault.manifests(desk.name)
    finding = await desk.check()
    assert finding.room.endswith(f"GB free, the last backup took {manifest.artifact.size / 1000:.1f} kB")
    file = desk.vault.root / manifest.id / "manifest.json"
    file.write_text(file.read_text().replace(f'"size": {manifest.artifact.size}', f'"size": {10**18}'))
    finding = await desk.check()
    assert not finding.well
    assert finding.room.endswith("the last backup took 1000.0 PB")
    [problem, hint] = finding.problems
    assert problem.startswith(
        "no room for the backup: it may take 1,250,000,000,000,000,000 bytes, the vault's disk has"
    )
    assert hint.startswith("HINT: make room")


async def test_room_for_each_node_but_not_for_all_of_them_is_a_problem_of_the_fleet(desk: Desk) -> None:
    desk.store()
    [manifest] = desk.vault.manifests(desk.name)
    assert fleet_room(desk.fleet, desk.fleet.nodes * 100) == ()
    share = shutil.disk_usage(desk.fleet.vault).free // 3
    file = desk.vault.root / manifest.id / "manifest.json"
    file.write_text(file.read_text().replace(f'"size": {manifest.artifact.size}', f'"size": {share}'))
    assert fleet_room(desk.fleet, desk.fleet.nodes) == ()
    [problem, hint] = fleet_room(desk.fleet, desk.fleet.nodes * 4)
    assert problem.startswith("no room for the artifacts of all 4 nodes: they may take ")
    assert hint.startswith("HINT: make room")


@pytest.mark.parametrize(
    ("existing", "would"),
    [
        ("preserve", "retrieve, verify and store it, delete it on the node, then start a backup ("),
        ("replace", "delete the backup on the node unkept, then start one ("),
        ("fail", "leave the node alone and fail ("),
    ],
)
async def test_a_foreign_backup_would_be_dealt_with_as_the_policy_says(
    desk: Desk, existing: Existing, would: str
) -> None:
    pair = desk.put()
    desk.configure(existing=existing)
    finding = await desk.check()
    assert finding.would.startswith(would)
    assert finding.status == f"found {pair.name} ({pair.md5})"
    said_for_once = await desk.check(existing="preserve")
    assert said_for_once.would.startswith("retrieve, verify and store it")


async def test_an_unfinished_backup_would_be_asked_for_again(desk: Desk) -> None:
    desk.journal()
    assert (await desk.check()).would.startswith("ask again for the backup that was started, and start one if ")


async def test_a_backup_of_ours_that_is_found_would_be_finished_and_no_other_started(desk: Desk) -> None:
    desk.journal(desk.put())
    assert (await desk.check()).would.startswith("retrieve, verify and store it, delete it on the node (")


async def test_a_stored_backup_would_be_read_back_and_deleted(desk: Desk) -> None:
    desk.journal(desk.store())
    assert (await desk.check()).would.startswith("read back what the vault has of it, delete it on the node (")


async def test_a_stored_backup_that_is_off_the_node_would_only_be_tidied_up(desk: Desk) -> None:
    desk.journal(desk.store())
    desk.simulated.remove(desk.name)
    assert (await desk.check()).would.startswith("nothing but tidy up: the backup is stored (")


@pytest.mark.parametrize(("ours", "then"), [(True, "node ("), (False, "node, then start a backup of its own (")])
async def test_a_backup_in_progress_would_be_awaited(desk: Desk, ours: bool, then: str) -> None:
    desk.tell("backup-status", "in_progress")
    if ours:
        desk.journal()
    finding = await desk.check()
    assert finding.status == "in progress"
    assert finding.would.startswith(
        f"await the backup in progress, retrieve, verify and store it, delete it on the {then}"
    )


async def test_an_unreadable_journal_would_be_set_aside_and_the_backup_preserved(desk: Desk) -> None:
    desk.configure(existing="replace")
    desk.put()
    (desk.folder / "journal-backup.json").write_text("torn")
    finding = await desk.check()
    assert finding.would.startswith("set the unreadable journal aside; retrieve, verify and store it")


async def test_a_node_that_a_run_holds_would_be_waited_for_and_is_not_disturbed(desk: Desk) -> None:
    descriptor = os.open(desk.folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        finding = await desk.check()
    finally:
        os.close(descriptor)
    assert finding.would.startswith("wait for the run that holds the node; then start a backup")


async def test_a_vault_that_is_not_there_yet_is_not_made(desk: Desk) -> None:
    desk.folder.rmdir()
    desk.fleet.vault.rmdir()
    assert (await desk.check()).well
    assert not desk.fleet.vault.exists()


async def test_a_vault_that_cannot_be_made_is_a_problem(desk: Desk) -> None:
    desk.folder.rmdir()
    desk.fleet.vault.rmdir()
    desk.fleet.vault.write_text("a file in the way")
    finding = await desk.check()
    assert not finding.well
    assert str(desk.fleet.vault) in finding.problems[0]


async def test_an_unknown_wording_is_a_problem_with_the_line_that_would_teach_it(desk: Desk) -> None:
    desk.tell("backup-status", "say", stdout="Zilch in the larder", when="absent")
    finding = await desk.check()
    assert not finding.well
    assert finding.reachable
    assert "Zilch in the larder" in " ".join(finding.problems)
    assert finding.teach == 'a0cli: {replies: {absent: ["Zilch in the larder"]}}'
    desk.configure(a0cli={"replies": {"absent": ["Zilch in the larder"]}})
    taught = await desk.check()
    assert (taught.well, taught.status, taught.teach) == (True, "nothing there", "")


async def test_an_unreachable_node_is_told_from_one_that_refuses(desk: Desk) -> None:
    desk.tell(None, "unreachable")
    gone = await desk.check()
    assert (gone.well, gone.reachable, gone.status, gone.would) == (False, False, "not asked", "nothing")
    desk.simulated.forget(desk.name)
    desk.tell("update-commands", "refuse", message="error: permission denied\n")
    refused = await desk.check()
    assert not refused.well
    assert "permission denied" in " ".join(refused.problems)


async def test_a_node_without_the_backup_role_is_told(desk: Desk) -> None:
    desk.tell(None, "no_role")
    finding = await desk.check()
    assert not finding.well
    assert "backup" in finding.problems[0]


async def test_a_build_that_is_too_old_is_told_without_touching_the_node(desk: Desk) -> None:
    desk.node = desk.node | {"build": 6867}
    desk.configure()
    finding = await desk.check()
    assert not finding.well
    assert desk.simulated.calls(desk.name) == []


async def test_problems_of_the_whole_fleet_are_those_of_the_node_too(desk: Desk) -> None:
    [node] = desk.fleet.nodes
    finding = await check_node(desk.fleet, node, known=["no password"])
    assert (finding.well, finding.problems) == (False, ("no password",))


async def test_a_look_can_be_called_off(desk: Desk) -> None:
    desk.tell("backup-status", "hang")
    look = asyncio.ensure_future(desk.check())
    while not desk.simulated.calls(desk.name, "backup-status"):
        await asyncio.sleep(0.01)
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look
