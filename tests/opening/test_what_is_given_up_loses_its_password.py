"""A backup that was given up is kept in quarantine, and its sealed password is removed: nobody can look into it
any more.
"""

import json
from typing import Any

from a0backup.artifact.encryption import decryptor
from a0backup.passwords.recovery_keys import candidates, load_private
from a0backup.vault.manifest import SealedPassword


async def test_the_password_of_the_bytes_in_quarantine_is_kept_as_long_as_they_are(sealed: Any) -> None:
    desk = sealed.desk
    desk.tell("backup", "contents", are="cut", times=1)
    ended = await desk.night(existing="replace")
    assert ended.error is None
    [kept] = (desk.vault.folder(desk.name) / "quarantine").glob("*/backup.tar.gz.enc")
    boxes = json.loads((kept.parent / "reason.json").read_text()).get("sealed", [])
    for file in sealed.files:
        boxes += json.loads(file.read_text())["sealed"]
    for manifest in desk.stored:
        boxes += [entry.model_dump() for entry in manifest.encryption.password.sealed]
    found = candidates([SealedPassword(**box) for box in boxes], load_private(sealed.private, None))
    # Most of the dump is in there: all but its last bytes.
    assert any(decryptor(each).update(kept.read_bytes()).startswith(b"\x1f\x8b\x08") for each in found)
