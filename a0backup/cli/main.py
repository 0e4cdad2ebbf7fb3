"""The `a0backup` command: its subcommands, and how it exits."""

import sys
from typing import NoReturn

import click

from a0backup.cli import artifacts, copies, engine, opening, retention, run, serve, setup, status, verify
from a0backup.errors import A0BackupError, FleetFileError
from a0backup.exit_codes import MEANINGS, ExitCode
from a0backup.limits import keep_memory_private
from a0backup.report import terminal

COMMANDS = (
    *(setup.init, setup.key, setup.vault, setup.print_schema),
    *(run.check, run.run),
    *(status.status, artifacts.list_artifacts, artifacts.show, verify.verify, copies.copy_artifacts),
    *(retention.prune, retention.keep, retention.unkeep),
    *(opening.drill_artifacts, opening.decrypt, opening.hand_off),
    *(serve.serve, engine.engine, serve.demo),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()),
)
@click.version_option(package_name="a0backup")
def cli() -> None:
    """Back up Auth0 PSaaS Appliance nodes to a vault.

    Every node makes its backup; a0backup retrieves it, verifies it and stores it in your vault, off the node.

    \b
    First steps:
      a0backup init        write a commented fleet.yaml here; then name your nodes in it
      a0backup key create  make the recovery key pair for sealed passwords
      a0backup check       check that every node answers, and show what a run would do
      a0backup run         back up every node
      a0backup list        list the artifacts in the vault
      a0backup serve       back up every night on a schedule, with web pages
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command and exit with its code; print an error as a message with a hint, never as a traceback."""
    keep_memory_private()
    sys.exit(_run(cli))


def _run(command: click.Command) -> int:
    try:
        code = int(command.main(standalone_mode=False) or ExitCode.OK)
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):  # click turns one into the other
        goes_on = sys.argv[1:2] == ["run"]
        terminal.say(
            "interrupted; the next run continues from what the nodes and the vault show" if goes_on else "interrupted"
        )
        return ExitCode.INTERRUPTED
    except FleetFileError as error:
        terminal.say(f"error: {error}")
        return ExitCode.USAGE
    except A0BackupError as error:
        terminal.say(f"error: {error}")
        return ExitCode.FAILED
    except BrokenPipeError:
        # The reader of our output is gone.
        terminal.discard_output()
        return ExitCode.FAILED
    except OSError as error:
        terminal.say(f"error: {error.filename or 'standard output cannot be written'}: {error.strerror}")
        terminal.discard_output()
        return ExitCode.FAILED
