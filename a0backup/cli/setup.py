"""`a0backup init`, `schema`, `key create` and `vault use`: the steps before the first run."""

import json
import os
import shlex
from pathlib import Path

import click

from a0backup.cli.asking import ask_twice
from a0backup.cli.options import fleet_option
from a0backup.exit_codes import ExitCode
from a0backup.fleet.example import EXAMPLE
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import schema


@click.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=Path("fleet.yaml"))
def init(path: Path) -> int:
    """Write a commented fleet.yaml to start from.

    Writes to PATH, by default fleet.yaml in the current folder; an existing file is never overwritten. Prints the next
    steps.

    \b
    Exit codes:
      0  written
      2  the file exists or cannot be written
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise click.UsageError(f"{path} exists already; name another PATH or move it away first") from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}")
    beside = "" if path.parent == Path() else f" {shlex.quote(str(path.parent))}"
    click.echo(f"next: `a0backup key create{beside}` makes the key pair that seals each backup's password,")
    click.echo(f"then name your nodes in {path}, then `a0backup check --fleet {path}`")
    return ExitCode.OK


@click.command("schema")
def print_schema() -> int:
    """Print the JSON Schema of fleet.yaml, for editors.

    An editor uses it to complete and check the file. Always ends with exit code 0.
    """
    click.echo(json.dumps(schema(), indent=2))
    return ExitCode.OK


@click.group()
def vault() -> None:
    """Say which folder is the vault."""


@vault.command()
@fleet_option
def use(fleet_path: Path) -> int:
    """Use the vault of fleet.yaml from now on.

    A run refuses a vault that is not the one it used last: its disk may not be mounted. Run this after you have
    started a new, empty vault on purpose, or have replaced the old one. An empty folder becomes a vault; nothing else
    is changed. It does not bring back a vault that is lost: `a0backup verify --repair` does, from its copies.

    \b
    Exit codes:
      0  the vault is used from now on
      1  it cannot be read or written
      2  usage or fleet.yaml wrong
    """
    from a0backup.places.looking import require_no_lost_vault
    from a0backup.vault.known_vault import adopt

    fleet = load_fleet(fleet_path)
    require_no_lost_vault(fleet)
    click.echo(f"{fleet.vault} is the vault from now on ({adopt(fleet)})")
    return ExitCode.OK


@click.group()
def key() -> None:
    """Make the recovery key pair for sealed passwords."""


@key.command()
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="File whose first line is the passphrase of the new private part; asked for twice if not given.",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
def create(folder: Path, passphrase_file: Path | None) -> int:
    """Make a recovery key pair.

    Best run on a machine that makes no backups. Writes two files to FOLDER, by default the current one. No file is ever
    overwritten.

    recovery.pub.pem, the public part, seals the password of each backup: name it in fleet.yaml, under `password` in
    `sealed_to`. recovery.key.pem, the private part, opens these passwords and must be kept offline. It is encrypted
    with a passphrase of at least 12 characters. Prints the fingerprint and the next steps.

    \b
    Exit codes:
      0  made
      1  the passphrase is unsuitable, or a file cannot be written
      2  usage wrong, a file exists already, or the two passphrases differ
    """
    from a0backup.passwords import recovery_keys

    private, public = folder / "recovery.key.pem", folder / "recovery.pub.pem"
    for path in (private, public):
        if os.path.lexists(path):
            raise click.UsageError(f"{path} exists already, and no key is ever overwritten; move it away first")
    if passphrase_file is not None:
        passphrase = recovery_keys.read_passphrase(passphrase_file)
    else:
        differ = "the two passphrases differ; nothing was written"
        passphrase = ask_twice("passphrase of the new private part", "--passphrase-file", differ)
    made = recovery_keys.make_pair(private, public, passphrase)
    click.echo(
        f"""\
wrote {public}   public part: leave it beside fleet.yaml, where `sealed_to: {public.name}` names it
wrote {private}   private part, encrypted with the passphrase: TAKE IT OFF THIS MACHINE
fingerprint {made.fingerprint}

next:
  1. Copy {private.name} to two places that are offline and apart, such as two USB sticks in two safes.
     Keep the passphrase in neither of them, but where it is found in years.
  2. Check each copy on the machine it is for; this prints the fingerprint above:
       openssl pkey -in {private.name} -pubout -outform DER | sha256sum
  3. Remove it here: shred -u {shlex.quote(str(private))}

Whoever has both opens every backup. If either is lost for good, nobody opens the backups that were sealed to this key
alone: name a second recovery key in sealed_to to be safe from that."""
    )
    return ExitCode.OK
