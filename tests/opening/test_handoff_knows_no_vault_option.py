"""docs/restore.md: 'a0backup handoff ID -o DIR ... On the machine that holds the private part name the vault with
--vault DIR'.
"""

from typing import Any

from tests.support.command import a0backup


async def test_every_command_that_the_restore_page_names_takes_a_vault(desk: Any) -> None:
    await desk.night()
    [manifest] = desk.stored
    target = desk.room / "handed"
    arguments = ["handoff", "--vault", str(desk.vault.root), "-o", str(target), manifest.id]
    ended = a0backup(*arguments)
    assert ended.returncode == 0, ended.stdout


async def test_the_ids_can_be_had_on_the_machine_that_holds_the_private_part(desk: Any) -> None:
    await desk.night()
    ended = a0backup("list", "--vault", str(desk.vault.root))
    assert ended.returncode == 0, ended.stdout
