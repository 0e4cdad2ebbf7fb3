"""A verification names what is wrong in the vault and in each place; a repair brings it back from where it is whole."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from a0backup.fleet.copies import Copy
from a0backup.places import verification as module
from a0backup.places.catching_up import catch_up
from a0backup.places.places import Place
from a0backup.places.verification import Verification
from a0backup.places.verifying import Finding
from a0backup.vault.drilled import Drilled, read_drilled, write_drilled
from a0backup.vault.vault import Vault
from tests.support.stored import store

NIGHTS = 3
Damage = Callable[[Path], object]


class Room:
    """A vault with a few artifacts and two places that hold them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.vault = folder, Vault(folder / "vault")
        self.manifests = [store(folder / "vault", "Passw0rd", nights=night, size=4_000) for night in range(NIGHTS)]

    @property
    def places(self) -> list[Place]:
        """The places, as a new run sees them."""
        return [Place(self.vault, Copy(name=name, url=str(self.folder / name))) for name in ("nas", "far")]

    async def copy(self) -> None:
        for place in self.places:
            assert not (await catch_up(place, self.vault.manifests())).is_behind

    async def verify(self, **limits: object) -> list[Finding]:
        return await Verification(self.vault, self.places, **limits).run()  # type: ignore[arg-type]

    async def repair(self) -> list[Finding]:
        verification = Verification(self.vault, self.places)
        return await verification.repaired(await verification.run())

    def contents(self) -> dict[str, bytes]:
        """The bytes of each artifact and manifest, by place and path."""
        files = [self.folder / place / each.id for place in ("vault", "nas", "far") for each in self.manifests]
        return {
            str(file.relative_to(self.folder)): file.read_bytes()
            for folder in files
            for file in sorted(folder.iterdir())
            if file.name != "copies.json"
        }


@pytest.fixture
async def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    await room.copy()
    return room


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def bad(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.place, finding.id, finding.result) for finding in findings if not finding.ok]


async def test_every_artifact_is_read_in_the_vault_and_in_each_place(room: Room) -> None:
    findings = await room.verify()
    assert sorted((finding.place, finding.id) for finding in findings) == sorted(
        (place, manifest.id) for place in ("vault", "nas", "far") for manifest in room.manifests
    )
    assert bad(findings) == []


@pytest.mark.parametrize("name", ["backup.tar.gz.enc", "manifest.json"])
@pytest.mark.parametrize("place", ["vault", "nas", "far"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda file: file.write_bytes(b"")])
async def test_a_damaged_file_is_named_and_mended_from_where_it_is_whole(
    room: Room, place: str, name: str, damage: Damage
) -> None:
    before, damaged = room.contents(), room.manifests[1]
    damage(room.folder / place / damaged.id / name)
    assert [(where, what) for where, what, _ in bad(await room.verify()) if where == place] == [(place, damaged.id)]
    after = await room.repair()
    assert bad([finding for finding in after if finding.result != "stray"]) == []
    assert room.contents() == before
    assert bad(await room.verify()) == []


async def test_what_was_damaged_is_kept_in_quarantine(room: Room) -> None:
    for place in ("vault", "nas"):
        flip(room.folder / place / room.manifests[0].id / "backup.tar.gz.enc")
    spoilt = {
        place: (room.folder / place / room.manifests[0].id / "backup.tar.gz.enc").read_bytes()
        for place in ("vault", "nas")
    }
    await room.repair()
    for place in ("vault", "nas"):
        kept = list((room.folder / place / "a0-1" / "quarantine").rglob("backup.tar.gz.enc.damaged"))
        assert [file.read_bytes() for file in kept] == [spoilt[place]]
    assert bad(await room.verify()) == []


async def test_an_artifact_that_only_a_place_has_is_brought_back(room: Room) -> None:
    lost = room.manifests[2]
    before = room.contents()
    shutil.rmtree(room.vault.root / lost.id)
    assert ("vault", lost.id, "missing") in bad(await room.verify())
    await room.repair()
    assert room.contents() == before


async def test_two_whole_artifacts_that_differ_are_left_to_a_person(room: Room, tmp_path: Path) -> None:
    other = store(tmp_path / "other", "An0ther", nights=0, size=5_000)
    ours = room.manifests[0]
    assert other.id == ours.id
    shutil.rmtree(room.folder / "nas" / ours.id)
    shutil.copytree(tmp_path / "other" / other.id, room.folder / "nas" / ours.id)
    before = room.contents()
    assert bad(await room.verify()) == [("nas", ours.id, "differs")]
    assert bad(await room.repair()) == [("nas", ours.id, "differs")]
    assert room.contents() == before


async def test_the_manifest_of_another_artifact_is_foreign_and_mended(room: Room) -> None:
    first, second = room.manifests[:2]
    before = room.contents()
    shutil.copy(room.folder / "nas" / second.id / "manifest.json", room.folder / "nas" / first.id / "manifest.json")
    assert bad(await room.verify()) == [("nas", first.id, "foreign")]
    await room.repair()
    assert room.contents() == before


async def test_files_that_no_artifact_explains_are_named_and_left_alone(room: Room) -> None:
    stray = room.folder / "nas" / room.manifests[0].id / "notes.txt"
    stray.write_text("mine")
    (room.folder / "nas" / "elsewhere.txt").write_text("mine")
    found = bad(await room.repair())
    assert found == [
        ("nas", "elsewhere.txt", "stray"),
        ("nas", f"{room.manifests[0].id}/notes.txt", "stray"),
    ]
    assert stray.read_text() == "mine"


async def test_the_record_of_a_drill_belongs_to_its_artifact_and_is_not_copied(room: Room) -> None:
    drilled = Drilled(drilled_at=datetime(2026, 11, 29, tzinfo=UTC), passed=True, level="contents")
    for place in ("vault", "far"):
        write_drilled(room.folder / place / room.manifests[0].id, drilled)
    await room.copy()
    assert bad(await room.verify()) == []
    there = [place for place in ("vault", "nas", "far") if read_drilled(room.folder / place / room.manifests[0].id)]
    assert there == ["vault", "far"]


async def test_what_is_damaged_everywhere_stays_as_it_is_and_is_named(room: Room) -> None:
    lost = room.manifests[0]
    for place in ("vault", "nas", "far"):
        flip(room.folder / place / lost.id / "backup.tar.gz.enc")
    before = room.contents()
    found = await room.repair()
    assert bad(found) == [(place, lost.id, "damaged") for place in ("vault", "nas", "far")]
    [in_vault] = [finding for finding in found if finding.place == "vault" and finding.id == lost.id]
    assert "not mended: nas: its copy of" in in_vault.reason
    assert room.contents() == before


async def test_a_seventh_each_time_reads_everything_in_seven_runs(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.manifests += [store(tmp_path / "vault", "Passw0rd", nights=night, size=4_000) for night in range(NIGHTS, 10)]
    await room.copy()
    seen: dict[str, set[str]] = {"vault": set(), "nas": set(), "far": set()}
    for _ in range(7):
        findings = await room.verify(share=1 / 7)
        assert len(findings) == 3 * 2
        for finding in findings:
            seen[finding.place].add(finding.id)
    assert set(map(len, seen.values())) == {10}


async def test_an_interrupted_verification_continues_where_it_ended(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Reads, "_EVERY", timedelta(seconds=-1))
    honest = module._each

    async def one(read: Callable[[str], Awaitable[Finding]], ids: list[str], *, at_once: int) -> list[Finding]:
        await honest(read, ids[:1], at_once=1)
        raise InterruptedError

    monkeypatch.setattr(module, "_each", one)
    with pytest.raises(InterruptedError):
        await Verification(room.vault, []).run()
    monkeypatch.undo()
    verification = Verification(room.vault, [])
    findings = await verification.run()
    assert len(findings) == NIGHTS - 1
    assert verification.resumed == {"vault": 1}
    # The next one reads everything again.
    assert len(await Verification(room.vault, []).run()) == NIGHTS


async def test_a_damaged_copy_is_not_recorded_as_proven_any_more(room: Room) -> None:
    damaged = room.manifests[0]
    flip(room.folder / "nas" / damaged.id / "backup.tar.gz.enc")
    await room.verify()
    record = json.loads((room.vault.root / damaged.id / "copies.json").read_text())
    assert set(record["places"]) == {"far"}


@pytest.mark.parametrize("seed", [14, 41])
async def test_random_damages_in_all_places_are_all_named_and_all_mended(tmp_path: Path, seed: int) -> None:
    """Each round spoils two of three places of each artifact; one whole place is enough."""
    room, dice = Room(tmp_path), random.Random(seed)
    await room.copy()
    before, damages = room.contents(), 0
    while damages < 250:
        spoilt = set()
        for manifest in room.manifests:
            for place in dice.sample(("vault", "nas", "far"), 2):
                file = room.folder / place / manifest.id / dice.choice(("backup.tar.gz.enc", "manifest.json"))
                dice.choice((flip, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])))(file)
                spoilt.add((place, manifest.id))
                damages += 1
        named = {(place, what) for place, what, result in bad(await room.verify()) if result != "stray"}
        assert named == spoilt
        after = await room.repair()
        assert [f for f in after if not f.ok] == []
        assert room.contents() == before


async def test_a_place_that_nobody_can_change_is_not_mended_and_says_so(room: Room, tmp_path: Path) -> None:
    damaged = room.manifests[0].id
    flip(room.folder / "nas" / damaged / "backup.tar.gz.enc")
    with read_only(room.folder / "nas"):
        found = await room.repair()
    [finding] = [finding for finding in found if not finding.ok]
    assert (finding.place, finding.id, finding.result) == ("nas", damaged, "damaged")
    assert "not mended: " in finding.reason
    assert "Read-only file system" in finding.reason


async def test_a_copy_to_a_place_that_nobody_can_change_needs_no_change_there(room: Room) -> None:
    with read_only(room.folder / "nas"):
        for place in room.places:
            assert not (await catch_up(place, room.manifests)).is_behind


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody change the folder. Skip the test where that cannot be had."""
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", folder, folder], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
