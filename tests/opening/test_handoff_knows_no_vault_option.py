"""docs/restore.md: 'a0backup handoff ID -o DIR ... On the machine that holds the private part name the vault with
--vault DIR'.
"""

from typing import Any

from click.testing import CliRunner

from a0backup.cli import cli


async def test_every_command_that_the_restore_page_names_takes_a_vault(desk: Any) -> None:
    await desk.night()
    [manifest] = desk.stored
    target = desk.room / "handed"
    arguments = ["handoff", "--vault", str(desk.vault.root), "-o", str(target), manifest.id]
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 0, ended.output


async def test_the_ids_can_be_had_on_the_machine_that_holds_the_private_part(desk: Any) -> None:
    await desk.night()
    ended = CliRunner().invoke(cli, ["list", "--vault", str(desk.vault.root)])
    assert ended.exit_code == 0, ended.output
