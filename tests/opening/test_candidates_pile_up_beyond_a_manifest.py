"""Each refused start leaves a sealed password; all go into one manifest, which then is too large to be read."""

from datetime import UTC, datetime, timedelta
from typing import Any

from a0backup.vault.manifest import Manifest, SealedPassword, UnreadableManifest
from a0backup.vault.sealed_files import SealedFiles


async def test_a_backup_is_kept_however_many_starts_failed_before_it(sealed: Any) -> None:
    desk = sealed.desk
    files = SealedFiles(desk.vault.folder(desk.name), "backup")
    desk.vault.ensure_writable(desk.name)
    # 520 refused starts (22 days, hourly) of a fleet with 10 recovery keys of 4096 bits.
    now = datetime(2026, 1, 1, tzinfo=UTC)
    files.folder.mkdir(mode=0o700)
    for number in range(520):
        boxes = [SealedPassword(recovery_key=f"{key:064x}", box=f"{number:0>682}==") for key in range(10)]
        _quickly(files, now + timedelta(hours=number), boxes)
    desk.put()  # somebody makes one by hand
    ended = await desk.night()
    entries = list(desk.vault.entries(desk.name))
    unreadable = [entry for entry in entries if isinstance(entry, UnreadableManifest)]
    assert not unreadable, (ended.error, len(unreadable), unreadable[0], desk.counts)
    assert ended.error is None
    assert len([entry for entry in entries if isinstance(entry, Manifest)]) == 2


def _quickly(files: SealedFiles, made_at: datetime, sealed: list[SealedPassword]) -> None:
    """Write as SealedFiles does, without its fsyncs."""
    import json

    content = {"schema": 1, "node": files.node, "kind": files.kind, "made_at": made_at.isoformat()}
    path = files.folder / f"{made_at:%Y%m%dT%H%M%SZ}-{files.kind}.json"
    path.write_text(json.dumps({**content, "sealed": [each.model_dump() for each in sealed]}))
