"""`a0backup drill --key`: one artifact that is not sealed, such as a foreign one, and nothing at all is drilled."""

from pathlib import Path
from typing import Any

from tests.support.command import a0backup


async def test_the_sealed_artifacts_are_drilled_beside_one_that_is_not(sealed: Any, tmp_path: Path) -> None:
    desk = sealed.desk
    desk.put()  # a foreign backup, kept first ...
    await desk.night()
    theirs = next(manifest for manifest in desk.stored if manifest.started_at is None)
    # ... which is the newest of another node.
    folder = desk.vault.root / "a0-other" / theirs.id.partition("/")[2]
    folder.mkdir(parents=True)
    place = desk.vault.root / theirs.id
    for path in place.iterdir():
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = content.replace(f'"{desk.name}/'.encode(), b'"a0-other/')
            content = content.replace(f'"name": "{desk.name}"'.encode(), b'"name": "a0-other"')
        (folder / path.name).write_bytes(content)
    ended = a0backup("drill", "--vault", str(desk.vault.root), "--key", str(sealed.private))
    # Without a terminal (or with an empty answer at one) the unknown one is 'not opened'; the others are still proven.
    assert "well:" in ended.stdout, (ended.returncode, ended.stdout)
    assert ended.returncode == 1
