"""`a0backup drill`, `decrypt` and `handoff`: open artifacts, and hand one over."""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from a0backup.cli.artifacts import find_all, get, newest_of_each
from a0backup.cli.asking import ask
from a0backup.cli.options import complete_ids, json_option, vault_at, vault_of, vault_options
from a0backup.errors import A0BackupError, ArtifactDamagedError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.drills import Drills
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import ContentsLimits, Fleet, PasswordSource
from a0backup.report import terminal
from a0backup.report.words import documents_in_words, human_size, plain
from a0backup.vault.manifest import Manifest
from a0backup.vault.vault import Vault

if TYPE_CHECKING:
    from a0backup.upkeep.drill import DrillResult, Secrets

F = TypeVar("F", bound=Callable[..., Any])

# The limits in fleet.yaml protect a run from its nodes. A user with artifact and password wants the contents.
_CODES = {"ok": ExitCode.OK, "damaged": ExitCode.DAMAGED, "not opened": ExitCode.FAILED}
_WHATEVER_IT_IS = ContentsLimits(max_unpacked=10**15, max_ratio=1032)


def opening_options(command: F) -> F:
    """Add --key, --passphrase-file and --password-file."""
    for option in reversed(
        (
            click.option(
                "--key",
                type=click.Path(path_type=Path),
                help="The private part of the recovery key that the password is sealed to.",
            ),
            click.option(
                "--passphrase-file",
                type=click.Path(path_type=Path),
                help="File whose first line is the passphrase of --key; asked for if not given.",
            ),
            click.option(
                "--password-file",
                type=click.Path(path_type=Path),
                help="File with the password, if it is not sealed; asked for if not given.",
            ),
        )
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class _Opening:
    """The options of `decrypt` and `drill`."""

    fleet_path: Path
    vault_path: Path | None
    key: Path | None
    passphrase_file: Path | None
    password_file: Path | None

    def vault_and_fleet(self) -> tuple[Vault, Fleet | None]:
        if self.vault_path is not None:
            return vault_at(self.fleet_path, self.vault_path), None
        fleet = load_fleet(self.fleet_path)
        return vault_of(fleet), fleet

    def secrets(self, manifests: Sequence[Manifest], source: PasswordSource | None) -> "Secrets":
        """Return what opens *manifests*; ask for what neither the options nor *source* provide."""
        from a0backup.passwords import recovery_keys, shared
        from a0backup.upkeep.drill import Secrets

        if self.passphrase_file is not None and self.key is None:
            raise click.UsageError("--passphrase-file goes with --key")
        key = None
        if self.key is not None:
            passphrase = None
            if self.passphrase_file is not None:
                passphrase = recovery_keys.read_passphrase(self.passphrase_file)
            elif recovery_keys.wants_passphrase(self.key):
                passphrase = ask(f"passphrase of {self.key}", "--passphrase-file")
            key = recovery_keys.load_private(self.key, passphrase)
        if self.password_file is not None:
            source = PasswordSource(file=self.password_file)
        sealed = [bool(manifest.encryption.password.sealed) for manifest in manifests]
        if source is not None and (source.env or source.file) and (self.password_file or not all(sealed)):
            return Secrets(key, asyncio.run(shared.load(source, block=_no_block, opening=True)))
        # An artifact without a sealed password, e.g. a foreign one, must not prevent opening the others.
        if all(sealed) or (key is not None and any(sealed)):
            return Secrets(key)
        return Secrets(key, ask("password", "--password-file"))


async def _no_block(name: str) -> str:
    raise AssertionError("no Secret block is asked for without an engine")


@contextmanager
def _at_work(text: str) -> Iterator[None]:
    """On a terminal, show *text* and the elapsed time until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def _tidy_when_cancelled() -> None:
    """Make SIGTERM and a lost terminal end this process like Ctrl-C, which deletes half-written files."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # An ignored signal (nohup) stays ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


# -- drill -------------------------------------------------------------------------------------------------------------


@click.command("drill")
@vault_options
@opening_options
@json_option
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1, shell_complete=complete_ids)
def drill_artifacts(artifact_ids: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Prove that artifacts can be restored.

    Decrypts and decompresses each artifact and reads every member; writes none of the contents. Without IDs, reads the
    newest artifact of each node and kind; NODE or NODE/KIND in place of an ID names its newest. Prints one line per
    artifact: ok, with the members, the unpacked size and the documents of the dump, or DAMAGED or NOT OPENED, with the
    reason; and warns of what it lacks of the backup before it.

    Records the result beside the artifact, in drilled.json. With --vault COPY it is recorded in that copy, and
    `a0backup copy` brings it from there to the vault, for `a0backup status`.

    A sealed password needs --key; its passphrase is asked for. A shared one is that of --password-file, or of
    fleet.yaml if it names a file or an environment variable, or is asked for.

    \b
    Exit codes:
      0  success
      1  there is no artifact, or one could not be opened, e.g. because the password or key does not fit
      2  usage or fleet.yaml wrong, or no such artifact
      4  an artifact is damaged or missing
    """
    from a0backup.upkeep import drill

    opening = _Opening(**options)
    vault, fleet = opening.vault_and_fleet()
    entries = find_all(vault, artifact_ids) if artifact_ids else list(newest_of_each(vault).values())
    if not entries:
        terminal.say(f"nothing is proven: the vault {vault.root} holds no artifact yet")
        return ExitCode.FAILED
    readable = [entry for entry in entries if isinstance(entry, Manifest)]
    secrets = opening.secrets(readable, fleet.password if fleet else None) if readable else drill.Secrets()
    limits = fleet.contents if fleet else _WHATEVER_IT_IS
    shrink = fleet.drills.shrink if fleet else Drills().shrink
    rows, codes = [], {ExitCode.OK}
    for number, entry in enumerate(entries, 1):
        size = human_size(entry.artifact.size) if isinstance(entry, Manifest) else "no manifest"
        with _at_work(f"reads {entry.id} to its end ({size}; {number} of {len(entries)})"):
            drilled = drill.prove(
                vault, entry, secrets, limits, shrink=shrink, now=datetime.now(UTC).replace(microsecond=0)
            )
        codes.add(_CODES[drilled.result])
        rows.append(row := _row(drilled))
        if not as_json:
            click.echo("\n".join(_lines(row)))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    return max(codes)


def _row(drilled: "DrillResult") -> dict[str, Any]:
    row: dict[str, Any] = {"id": drilled.id, "result": drilled.result, "warnings": list(drilled.warnings)}
    if drilled.contents is None:
        return row | {"reason": drilled.reason, "hint": drilled.hint}
    read = drilled.contents
    documents = None if read.collections is None else sum(each.documents for each in read.collections)
    sizes = {"members": read.members, "unpacked_size": read.unpacked_size, "documents": documents}
    return row | sizes | {"odd": list(read.odd)}


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    if row["result"] == "ok":
        documents = "" if row["documents"] is None else f", {documents_in_words(row['documents'])}"
        yield f"{row['id']}  ok: {row['members']} members, {human_size(row['unpacked_size'])} unpacked{documents}"
        yield from (f"  odd: {plain(sentence)}" for sentence in row["odd"])
    else:
        yield f"{row['id']}  {row['result'].upper()}: {plain(row['reason'])}"
        if row["hint"]:
            yield f"  HINT: {plain(row['hint'])}"
    yield from (f"  warning: {plain(sentence)}" for sentence in row["warnings"])


# -- decrypt -----------------------------------------------------------------------------------------------------------


@click.command()
@vault_options
@opening_options
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The new file; an existing file is never overwritten.",
)
@click.argument("artifact_id", metavar="ID", shell_complete=complete_ids)
def decrypt(artifact_id: str, target: Path, **options: Any) -> int:
    """Decrypt an artifact into a new tar.gz file.

    Creates the file that --output names only after the artifact matched its manifest and its contents were read to
    their end. The file is NOT ENCRYPTED. Prints the number of members, the unpacked size and the next steps.

    A sealed password needs --key; its passphrase is asked for. Any other password is asked for, or given with
    --password-file.

    \b
    Exit codes:
      0  decrypted
      1  the artifact could not be opened, e.g. because the password or key does not fit
      2  usage or fleet.yaml wrong, no such artifact, or the file exists
      4  the artifact is damaged or missing
    """
    from a0backup.upkeep import drill

    opening = _Opening(**options)
    vault, _ = opening.vault_and_fleet()
    manifest = get(vault, artifact_id)
    if target == Path("-"):
        raise click.UsageError("nothing is written to standard output before all of it is proven; name a file")
    if os.path.lexists(target):
        raise click.UsageError(f"{target} exists already, and nothing is overwritten; name another file")
    if not target.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {target.parent}; make it first, or name another file")
    secrets = opening.secrets([manifest], None)
    _tidy_when_cancelled()
    try:
        with _at_work(f"reads {manifest.id} to its end, then decrypts it ({human_size(manifest.artifact.size)})"):
            contents = drill.decrypt(vault, manifest, secrets.passwords(manifest), _WHATEVER_IT_IS, target)
    except A0BackupError as error:
        hint = drill.remedy(error, manifest, with_key=secrets.key is not None)
        terminal.say(f"error: {plain(error.message())}" + (f"\nHINT: {plain(hint)}" if hint else ""))
        return ExitCode.DAMAGED if drill.is_damage(error) else ExitCode.FAILED
    click.echo(
        f"""\
wrote {target}: {contents.members} members, {human_size(contents.unpacked_size)} unpacked, NOT ENCRYPTED

next:
  tar tzf {shlex.quote(str(target))}    # what is in it
  Loading it into an appliance is done with the vendor's support; docs/restore.md says what to give them.
  Remove it when you are done: shred -u {shlex.quote(str(target))}"""
    )
    return ExitCode.OK


# -- handoff -----------------------------------------------------------------------------------------------------------


@click.command("handoff")
@vault_options
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    help="The new folder; an existing folder is left unchanged.",
)
@click.argument("artifact_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_ids)
def hand_off(fleet_path: Path, vault_path: Path | None, artifact_ids: tuple[str, ...], target: Path) -> int:
    """Gather what support needs to restore artifacts.

    Creates the folder that --output names, with the artifact, its checksums, its manifest, and RESTORE.md on how to
    check and open it. Several artifacts, such as both kinds of a NODE, get a folder each in it. The folder contains no
    password: send that separately. Needs no password. Prints the next steps.

    \b
    Exit codes:
      0  made
      1  the folder cannot be written, or a later version wrote the manifest
      2  usage or fleet.yaml wrong, no such artifact, or the folder exists
      4  the artifact is damaged or missing
    """
    from a0backup.upkeep.handoff import handoff

    vault = vault_at(fleet_path, vault_path)
    manifests = [get(vault, entry.id) for entry in find_all(vault, artifact_ids)]
    size = human_size(sum(manifest.artifact.size for manifest in manifests))
    files = ", ".join(manifest.artifact.file for manifest in manifests)
    _tidy_when_cancelled()
    try:
        with _at_work(f"copies {', '.join(manifest.id for manifest in manifests)} ({size})"):
            handoff(vault, manifests, target)
    except FileExistsError:
        raise click.UsageError(f"{target} exists already, and nothing is overwritten; name another folder") from None
    except ArtifactDamagedError as error:
        terminal.say(f"error: {plain(error.message())}\nHINT: {error.hint()}")
        return ExitCode.DAMAGED
    of_it = (
        "it was made for this artifact alone, docs/restore.md says how to take it out"
        if any(manifest.encryption.password.sealed for manifest in manifests)
        else "if it is the one of all your backups, choose another for the next"
    )
    click.echo(
        f"""\
wrote {target}: {files} ({size}), verified, with RESTORE.md

next:
  Send the folder to the support engineer, and the password by a separate channel: {of_it}."""
    )
    return ExitCode.OK
