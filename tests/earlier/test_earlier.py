"""What each earlier state of this software left in a vault is read, opened and finished by today's; README.md."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from a0backup import recovery
from a0backup.deletion import DeletionMark
from a0backup.drill import Secrets, drill, is_damage
from a0backup.errors import ArtifactDamagedError, GzipDamagedError, LaterVersionError
from a0backup.fleet import Fleet
from a0backup.journal import Journal, JournalFile, NotOpened
from a0backup.sealed_files import SealedFiles
from a0backup.vault import Manifest, Vault
from simulator.fleet import SimulatedFleet
from tests.earlier.make import CASES, HERE, NODE, PASSPHRASE, PASSWORD
from tests.nights import Night, night

FIXTURES = sorted(path for path in HERE.glob("*/*") if path.is_dir() and path.parent.name != "__pycache__")

each_fixture = pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), [NODE], size=3000, backup_seconds=0.05) as fleet:
        yield fleet


class Left:
    """What an earlier state left: its vault, copied, and the node as it was then."""

    def __init__(self, fixture: Path, room: Path, simulated: SimulatedFleet) -> None:
        self.case, _, self.password = fixture.name.partition("-")
        shutil.copytree(fixture / "vault", room / "vault")
        for path in [room / "vault", *(room / "vault").rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.simulated = simulated
        simulated.forget(NODE)
        simulated.remove(NODE)
        on_node = fixture / "on-node.json"
        self.on_node = json.loads(on_node.read_text()) if on_node.exists() else None
        if self.on_node is not None:
            simulated.put(NODE, password=PASSWORD, file=fixture / "on-node.tar.gz.enc", name=str(self.on_node["name"]))
        self._before = len(simulated.calls())
        source = {"sealed_to": str(HERE / "recovery.pub.pem")} if self.password == "sealed" else {"env": "NOT_READ"}
        quick = {"interval": "0.05s", "max_interval": "0.05s", "deadline": "20s"}
        file = simulated.fleet_yaml(room / "fleet.yaml", password=source, polling=quick, a0cli={"call_timeout": "1s"})
        self.fleet = Fleet.load(file)
        self.vault, self.folder = Vault(self.fleet.vault), self.fleet.vault / NODE
        self.journal, self.sealed = JournalFile(self.folder, "backup"), SealedFiles(self.folder, "backup")
        self.mark = DeletionMark(self.folder, "backup")

    def counts(self) -> tuple[int, int, int]:
        """How often a backup was started, retrieved and deleted since."""
        commands = [call["command"] for call in self.simulated.calls()[self._before :]]
        return commands.count("backup"), commands.count("backup-retrieve"), commands.count("backup-delete")

    def manifests(self) -> list[Manifest]:
        return self.vault.manifests(NODE)

    def opens(self, manifest: Manifest) -> bool:
        key = recovery.load_private(HERE / "recovery.key.pem", PASSPHRASE)
        secrets = Secrets(key=key, password=None if manifest.encryption.password.sealed else PASSWORD)
        return drill(self.vault, manifest, secrets.passwords(manifest), self.fleet.contents).members == 5

    async def night(self) -> Night:
        return await night(self.fleet, flow_run="today")

    def is_settled(self) -> None:
        assert self.simulated.holds(NODE) is None
        assert self.journal.read() is None
        assert list(self.vault.work(NODE).iterdir()) == []
        assert [path.name for path in self.folder.glob("*unreadable*")] == []
        assert self.sealed.all() == ()
        for manifest in self.manifests():
            self.vault.reread(manifest)


@pytest.fixture
def left(fixture: Path, tmp_path: Path, simulated: SimulatedFleet) -> Left:
    return Left(fixture, tmp_path, simulated)


@each_fixture
def test_all_that_was_left_is_read(fixture: Path, left: Left) -> None:
    assert [type(entry) for entry in left.vault.entries(NODE)] == [Manifest] * len(left.manifests())
    assert len(left.manifests()) == len(list(left.folder.glob("*/manifest.json")))
    assert (left.sealed.unreadable(), left.sealed.later()) == ([], [])
    journal = left.journal.read()
    assert (journal is None) is (left.case == "stored")
    assert bool(left.sealed.all()) is (left.password == "sealed" and journal is not None)
    # Nothing lies there that no test above looks at.
    known = ("manifest.json", "backup.tar.gz.enc", "backup-retrieve.tar.gz.enc", "journal-backup.json")
    sealed = {path.name for path in (left.folder / "passwords").glob("*.json")}
    found = {path.name for path in left.folder.rglob("*") if path.is_file()}
    assert found <= {*known, *sealed, left.mark.path.name, "reason.json"}


@each_fixture
def test_what_was_stored_opens(fixture: Path, left: Left) -> None:
    assert bool(left.manifests()) is (left.case in ("stored", "deleted"))
    assert all(left.opens(manifest) for manifest in left.manifests())


@each_fixture
async def test_what_was_begun_is_finished(fixture: Path, left: Left) -> None:
    journal, deletion_was_sent = left.journal.read(), left.mark.is_there()
    cut = left.on_node["md5"] if left.case == "cut" and left.on_node else ""
    ended = await left.night()
    assert ended.error is None, ended.error
    assert ended.outcome.well
    made, retrieved, _ = left.counts()
    last = left.manifests()[-1]
    match left.case:
        case "stored":
            assert (made, retrieved, len(left.manifests())) == (1, 1, 2)
        case "started" | "retrieved":
            assert made == 0
            assert retrieved == (1 if left.case == "started" else 0)
            assert [last] == left.manifests()
        case "deleted":
            assert (made, retrieved, left.counts()) == (0, 0, (0, 0, 0))
            assert [last] == left.manifests()
        case "cut" if left.password == "sealed" and journal is not None and journal.not_opened is None:
            # Nothing says that it cannot be opened, and its password is not at hand: it does not claim that it can.
            assert (made, retrieved, len(left.manifests())) == (0, 0, 1)
            assert not last.encryption.password.confirmed
            with pytest.raises(GzipDamagedError):
                left.opens(last)
        case "cut":
            assert (made, retrieved, len(left.manifests())) == (1, 1, 2)
            assert left.manifests()[0].started_at is None
    if left.case not in ("stored", "cut"):
        assert journal is not None
        assert last.started_at == journal.started_at
        assert last.artifact.md5 == (left.on_node or {"md5": last.artifact.md5})["md5"]
    assert last.artifact.md5 == cut or left.opens(last)
    left.is_settled()
    assert left.mark.is_there() is (deletion_was_sent or getattr(journal, "deletion_sent_at", None) is not None)


def test_a_deletion_that_an_earlier_journal_tells_of_keeps_its_mark_beyond_that_journal(tmp_path: Path) -> None:
    sent = datetime(2026, 11, 23, 2, tzinfo=UTC)
    [fixture] = [path for path in FIXTURES if (path.parent.name, path.name) == ("351f6a8", "deleted-shared")]
    journal = JournalFile(fixture / "vault" / NODE, "backup").read()
    assert journal is not None
    assert journal.deletion_sent_at is not None
    (tmp_path / NODE).mkdir()
    later = JournalFile(tmp_path / NODE, "backup")
    later.write(journal.noted(sent, "anything"))
    assert "deletion_sent_at" not in later.path.read_text()


def test_why_an_earlier_run_could_not_open_a_backup_is_still_known() -> None:
    [fixture] = [path for path in FIXTURES if (path.parent.name, path.name) == ("c36342a", "cut-sealed")]
    journal = JournalFile(fixture / "vault" / NODE, "backup").read()
    assert journal is not None
    assert journal.not_opened is not None
    assert "GzipDamagedError" in journal.not_opened.reason
    assert not journal.not_opened.password_fits


def test_each_folder_here_is_of_a_case_that_is_read() -> None:
    assert FIXTURES
    for fixture in FIXTURES:
        case, _, password = fixture.name.partition("-")
        assert case in CASES, fixture
        assert password in ("shared", "sealed"), fixture
        assert (fixture / "vault" / NODE).is_dir(), fixture
    others = {path.name for path in HERE.iterdir()} - {path.parent.name for path in FIXTURES}
    assert others <= {"README.md", "make.py", "test_earlier.py", "recovery.key.pem", "recovery.pub.pem", "__pycache__"}


def test_each_commit_here_is_named_with_its_reason() -> None:
    readme = (HERE / "README.md").read_text()
    assert {f"`{path.parent.name}`" for path in FIXTURES} <= set(readme.replace("|", " ").split())


# -- a later schema ----------------------------------------------------------------------------------------------------


@pytest.fixture
def from_the_future(tmp_path: Path, simulated: SimulatedFleet) -> Left:
    """A vault whose manifest, journal and sealed password have schema 2, with keys that nobody knows yet."""
    [fixture] = [path for path in FIXTURES if (path.parent.name, path.name) == ("ba1ccfb", "deleted-sealed")]
    left = Left(fixture, tmp_path, simulated)
    for path in [*left.folder.glob("*/manifest.json"), left.journal.path, *left.folder.glob("passwords/*.json")]:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"schema": 2, "something": {"new": True}}))
    return left


def test_a_later_manifest_is_told_as_such_and_not_as_damaged(from_the_future: Left) -> None:
    [entry] = from_the_future.vault.entries(NODE)
    assert not isinstance(entry, Manifest)
    assert entry.later
    assert entry.reason == "manifest.json has schema 2, and this a0backup knows 1: a later version wrote it"
    assert isinstance(entry.error(), LaterVersionError)
    assert not is_damage(entry.error())
    with pytest.raises(ValueError, match="has schema 2, and this a0backup knows 1"):
        from_the_future.journal.read()
    assert from_the_future.sealed.unreadable() == []
    assert len(from_the_future.sealed.later()) == 1


async def test_a_run_leaves_all_that_a_later_version_wrote(from_the_future: Left) -> None:
    left = from_the_future
    files = [path for path in left.folder.rglob("*") if path.is_file() and path != left.journal.path]
    before = {path: path.read_bytes() for path in files if path != left.mark.path}
    journal = left.journal.path.read_bytes()
    ended = await left.night()
    assert ended.outcome.well
    assert {path: path.read_bytes() for path in before} == before
    [aside] = left.folder.glob("journal-backup.json.unreadable-*")
    assert aside.read_bytes() == journal
    assert "has schema 2, and this a0backup knows 1" in ended.notes
    assert len(left.manifests()) == 1


def test_what_is_no_number_is_no_later_schema(from_the_future: Left) -> None:
    [path] = from_the_future.folder.glob("*/manifest.json")
    for wrong in (0, -1, "2", None, True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": wrong}))
        [entry] = from_the_future.vault.entries(NODE)
        assert not isinstance(entry, Manifest)
        assert isinstance(entry.error(), ArtifactDamagedError)


def test_a_reason_of_an_earlier_journal_and_one_of_today_are_both_read() -> None:
    base = {"schema": 1, "node": NODE, "kind": "backup", "flow_run": "r", "started_at": "2026-11-23T02:00:00Z"}
    known = NotOpened(reason="why", password_fits=True)
    assert Journal.model_validate(base | {"not_opened": "why"}).not_opened == NotOpened(
        reason="why", password_fits=False
    )
    assert Journal.model_validate(base | {"not_opened": known.model_dump()}).not_opened == known
