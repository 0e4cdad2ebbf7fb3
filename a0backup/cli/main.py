"""The `a0backup` command: its commands, and how it ends."""

import os
import sys
from typing import NoReturn

import click

from a0backup.cli import artifacts, engine, opening, run, serve, setup, status
from a0backup.errors import A0BackupError, FleetFileError
from a0backup.exit_codes import MEANINGS, ExitCode
from a0backup.report import terminal

COMMANDS = (
    *(setup.init, setup.key, setup.print_schema),
    *(run.check, run.run),
    *(status.status, artifacts.list_artifacts, artifacts.show, artifacts.verify),
    *(opening.drill_artifacts, opening.decrypt, opening.hand_off),
    *(serve.serve, engine.engine, serve.demo),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()),
)
@click.version_option(package_name="a0backup")
def cli() -> None:
    """Back up Auth0 PSaaS Appliance nodes: every node's backup off the box, verified, in your vault.

    \b
    First steps:
      a0backup init       write a commented fleet.yaml here, then name your nodes in it
      a0backup check      see that every node answers and what a run would do
      a0backup run        back up every node
      a0backup list       see what is in the vault
      a0backup serve      every night by itself, with pages to look at
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command; end with its exit code, an error as a message with what to do next, never as a traceback."""
    sys.exit(_run(cli))


def _run(command: click.Command) -> int:
    try:
        return int(command.main(standalone_mode=False) or ExitCode.OK)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):  # click makes one of the other
        goes_on = sys.argv[1:2] == ["run"]
        terminal.say("interrupted; the next run goes on from here" if goes_on else "interrupted")
        return ExitCode.INTERRUPTED
    except FleetFileError as error:
        terminal.say(f"error: {error}")
        return ExitCode.USAGE
    except A0BackupError as error:
        terminal.say(f"error: {error}")
        return ExitCode.FAILED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except OSError as error:
        terminal.say(f"error: {error.filename or 'the system'}: {error.strerror}")
        return ExitCode.FAILED
