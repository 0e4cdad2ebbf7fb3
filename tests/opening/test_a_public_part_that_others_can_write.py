"""Whoever can write the recovery public key seals all later backups to a key of his own; `check` says nothing of it."""

from typing import Any

from a0backup.nodes.check import fleet_notes, fleet_warnings


async def test_check_warns_of_a_public_part_that_others_can_replace(sealed: Any) -> None:
    sealed.public.chmod(0o666)
    said = "\n".join([*fleet_warnings(sealed.desk.fleet), *fleet_notes(sealed.desk.fleet)])
    assert "0666" in said, said
