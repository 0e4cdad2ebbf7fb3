"""Options that several commands share."""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from a0backup.errors import A0BackupError
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Existing, Fleet
from a0backup.report import terminal
from a0backup.vault.known_vault import require_known, require_vault
from a0backup.vault.vault import Vault

F = TypeVar("F", bound=Callable[..., Any])


def complete_nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of nodes that begin with *incomplete*, for the completion of a shell."""
    # Nothing can be said at a prompt: an unusable file completes nothing.
    with contextlib.suppress(A0BackupError):
        fleet = load_fleet(ctx.params.get("fleet_path") or Path("fleet.yaml"))
        return [node.name for node in fleet.nodes if node.name.startswith(incomplete)]
    return []


def complete_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of artifacts that begin with *incomplete*, and the names that stand for ids."""
    with contextlib.suppress(A0BackupError, OSError):
        vault = vault_at(ctx.params.get("fleet_path") or Path("fleet.yaml"), ctx.params.get("vault_path"))
        ids = [f"{node}/{folder.name}" for node in vault.nodes() for folder in vault.folders(node)]
        return [name for name in ("latest", *vault.nodes(), *ids) if name.startswith(incomplete)]
    return []


def complete_places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of places that begin with *incomplete*."""
    with contextlib.suppress(A0BackupError):
        fleet = load_fleet(ctx.params.get("fleet_path") or Path("fleet.yaml"))
        return [copy.name for copy in fleet.copies if copy.name.startswith(incomplete)]
    return []


def fleet_option(command: F) -> F:
    """Add --fleet."""
    return click.option(
        "--fleet",
        "fleet_path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("fleet.yaml"),
        show_default=True,
        help="The fleet file.",
    )(command)


def vault_options(command: F) -> F:
    """Add --fleet and --vault, for commands that only read the vault, even on a machine that makes no backups."""
    return fleet_option(
        click.option(
            "--vault",
            "vault_path",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="The vault, in place of --fleet, on a machine without fleet.yaml: the private part of a recovery key"
            " stays off the machine that makes the backups.",
        )(command)
    )


def vault_at(fleet_path: Path, vault_path: Path | None) -> Vault:
    """Return the vault that the `vault_options` name. Raise FleetFileError, UnknownVaultError."""
    if vault_path is None:
        return vault_of(load_fleet(fleet_path))
    vault = Vault(vault_path)
    # A copy, perhaps on a disk that cannot be written: its artifacts are enough.
    if next(vault.entries(), None) is None:
        require_vault(vault)
    return vault


def vault_of(fleet: Fleet) -> Vault:
    """Return the vault of *fleet*. Raise UnknownVaultError unless it is the one that was used last."""
    require_known(fleet)
    return Vault(fleet.vault)


def say_ahead(artifact_ids: Iterable[str]) -> None:
    """Name the artifacts whose time lies in the future."""
    for artifact_id in artifact_ids:
        terminal.say(
            f"{artifact_id}: its time lies in the future, so it does not count as the newest; the clock was ahead then,"
            " or is behind now"
        )


def json_option(command: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def quiet_option(command: F) -> F:
    """Add --quiet."""
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        help="Print nothing if all is well, for cron. A place of `copies` that fails is printed.",
    )(command)


def engine_option(command: F) -> F:
    """Add --engine."""
    return click.option(
        "--engine",
        type=click.Choice(["profile", "own"]),
        default="profile",
        show_default=True,
        help="The Prefect server: the one that your profile names, if any, or a server of our own. With own, a night"
        " does not depend on yours.",
    )(command)


def existing_option(command: F) -> F:
    """Add --existing."""
    return click.option(
        "--existing",
        type=click.Choice(get_args(Existing)),
        help="What to do, this time only, with a backup on a node that this vault did not start. With replace, a"
        " backup of our own that cannot be verified is also given up and replaced by a new one.",
    )(command)
