"""The `a0backup` command. Thin: each subcommand loads, calls the core or runs a flow, and prints.

Exit codes: 0 all well; 1 failed; 2 usage or fleet.yaml wrong; 3 some nodes failed, the others are stored; 4 a stored
artifact is damaged, missing or too old; 130 interrupted.
"""

import asyncio
import getpass
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import click

from a0backup import report, terminal
from a0backup.errors import (
    A0BackupError,
    ArtifactDamagedError,
    CheckFailedError,
    FleetFileError,
    LaterVersionError,
    RunFailedError,
)
from a0backup.fleet import EXAMPLE, ContentsLimits, Existing, Fleet, PasswordSource, schema
from a0backup.journal import JournalFile
from a0backup.lock import is_held, read_holder
from a0backup.progress import Checked, Ended, News, Warned, watched_by
from a0backup.vault import MANIFEST, Manifest, UnreadableManifest, Vault

if TYPE_CHECKING:
    from a0backup.drill import Secrets

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 4, 130

F = TypeVar("F", bound=Callable[..., Any])


def main() -> None:
    """Run the command; end with its exit code, an error as a message with what to do next, never as a traceback."""
    run_in_words(cli)


def run_in_words(command: click.Command) -> None:
    """Run *command*; end the process with its exit code, and with a message in place of a traceback."""
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):  # click makes one of the other
        goes_on = sys.argv[1:2] == ["run"]
        terminal.say("interrupted; the next run goes on from here" if goes_on else "interrupted")
        sys.exit(INTERRUPTED)
    except FleetFileError as error:
        terminal.say(f"error: {error}")
        sys.exit(USAGE)
    except A0BackupError as error:
        terminal.say(f"error: {error}")
        sys.exit(FAILED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        terminal.say(f"error: {error.filename or 'the system'}: {error.strerror}")
        sys.exit(FAILED)


def fleet_option(command: F) -> F:
    return click.option(
        "--fleet",
        "fleet_path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("fleet.yaml"),
        show_default=True,
        help="The fleet file.",
    )(command)


def vault_options(command: F) -> F:
    """--fleet, or the vault itself: for commands that only read it, also on a machine that makes no backups."""
    return fleet_option(
        click.option(
            "--vault",
            "vault_path",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="The vault itself, where there is no fleet.yaml: the private part of a recovery key stays off the"
            " machine that makes the backups.",
        )(command)
    )


def _vault_at(fleet_path: Path, vault_path: Path | None) -> Vault:
    return Vault(vault_path) if vault_path is not None else Vault(Fleet.load(fleet_path).vault)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs to read.")(command)


def existing_option(command: F) -> F:
    return click.option(
        "--existing",
        type=click.Choice(get_args(Existing)),
        help="What to do, this once, with a backup on a node that this vault did not start. With replace, also one of"
        " our own that cannot be verified is given up for a new one.",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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

    \b
    Exit codes: 0 all well, 1 failed, 2 usage or fleet.yaml wrong, 3 some nodes failed,
    4 a stored artifact is damaged or missing, 130 interrupted.
    """


@cli.command()
@click.option("--recovery-key", is_flag=True, help="Make a recovery key pair beside PATH instead.")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="The passphrase of the new private part is the first line of this file; asked for twice if not given.",
)
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=Path("fleet.yaml"))
def init(path: Path, recovery_key: bool, passphrase_file: Path | None) -> None:
    """Write a commented fleet.yaml (to PATH) to start from. One that exists is never overwritten.

    With --recovery-key make the pair that sealed passwords need, best on a machine that makes no backups.
    """
    if recovery_key:
        _init_recovery_key(path.parent, passphrase_file)
        return
    if passphrase_file is not None:
        raise click.UsageError("--passphrase-file goes with --recovery-key")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise click.UsageError(f"{path} exists already; name another PATH or move it away first") from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}")
    beside = "" if path.parent == Path() else f" {shlex.quote(str(path))}"
    click.echo(f"next: `a0backup init --recovery-key{beside}` makes the key pair that seals each backup's password,")
    click.echo(f"then name your nodes in {path}, then `a0backup check --fleet {path}`")


def _init_recovery_key(folder: Path, passphrase_file: Path | None) -> None:
    from a0backup import recovery

    private, public = folder / "recovery.key.pem", folder / "recovery.pub.pem"
    for path in (private, public):
        if os.path.lexists(path):
            raise click.UsageError(f"{path} exists already, and no key is ever overwritten; move it away first")
    if passphrase_file is not None:
        passphrase = recovery.read_passphrase(passphrase_file)
    else:
        passphrase = ask("passphrase of the new private part", "--passphrase-file")
        if ask("the same again", "--passphrase-file") != passphrase:
            raise click.UsageError("the two passphrases differ; nothing was written")
    key = recovery.make_pair(private, public, passphrase)
    click.echo(
        f"""\
wrote {public}   public part: leave it beside fleet.yaml, where `sealed_to: {public.name}` names it
wrote {private}   private part, encrypted with the passphrase: TAKE IT OFF THIS MACHINE
fingerprint {key.fingerprint}

next:
  1. Copy {private.name} to two places that are offline and apart, such as two USB sticks in two safes.
     Keep the passphrase in neither of them, but where it is found in years.
  2. Check each copy on the machine it is for; this prints the fingerprint above:
       openssl pkey -in {private.name} -pubout -outform DER | sha256sum
  3. Remove it here: shred -u {shlex.quote(str(private))}

Whoever has both opens every backup. If either is lost for good, nobody opens the backups that were sealed to this key
alone: name a second recovery key in sealed_to to be safe from that."""
    )


@cli.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of fleet.yaml, for editors that complete and check it."""
    click.echo(json.dumps(schema(), indent=2))


@cli.command()
@fleet_option
@json_option
@existing_option
@click.option("--engine", is_flag=True, help="Look at the engine in place of the nodes: what it lacks for the nights.")
@click.argument("nodes", nargs=-1)
def check(fleet_path: Path, as_json: bool, existing: Existing | None, engine: bool, nodes: tuple[str, ...]) -> None:
    """Look at every node (or the NODES named) without touching it: does it answer, what is on it, what would a run do.

    For a reply that is not known it prints the line for a0cli.replies in fleet.yaml that teaches it.

    With --engine look at your Prefect server, or the one of a running `a0backup serve`, instead: is all registered, is
    a run scheduled and a worker there, is somebody told of failures. Ends with 1 where a night would not run.
    """
    if engine:
        if nodes or existing:
            raise click.UsageError("--engine looks at no node: give it alone")
        _check_engine(Fleet.load(fleet_path), as_json)
    _check(fleet_path, nodes, existing, as_json)


@cli.command()
@fleet_option
@json_option
@existing_option
@click.option("--dry-run", is_flag=True, help="Only say, node by node, what a run would do.")
@click.argument("nodes", nargs=-1)
def run(fleet_path: Path, as_json: bool, existing: Existing | None, dry_run: bool, nodes: tuple[str, ...]) -> None:
    """Back up every node (or the NODES named): make, retrieve, verify, store, delete on the node.

    Where your Prefect profile names an API it is used; otherwise a server of our own runs for as long as this command.
    What a killed run left unfinished is finished first.
    """
    if dry_run:
        _check(fleet_path, nodes, existing, as_json)
    # What is wrong with the file is said before anything is started.
    order = [node.name for node in Fleet.load(fleet_path).chosen(nodes)]
    outcomes: list[report.Outcome] = []
    warnings: list[str] = []

    def collect(news: News) -> None:
        match news:
            case Ended():
                outcomes.append(news.outcome)
            case Warned():
                warnings.append(news.text)

    from deployments.local_run import run_here

    error: Exception | None = None
    try:
        with watched_by(collect), terminal.shown(quiet=as_json):
            error = run_here("backup-fleet", fleet_path, nodes, existing)
    finally:
        # Also when called off: what is stored by then is worth knowing.
        outcomes.sort(key=lambda outcome: order.index(outcome.node))
        if as_json:
            click.echo(json.dumps(report.to_json(outcomes, warnings), indent=2))
        elif outcomes:
            click.echo("\n".join(report.lines(outcomes, warnings)))
    _exit_with(report.exit_code(outcomes), error)


def _check_engine(fleet: Fleet, as_json: bool) -> NoReturn:
    from deployments.doctor import Verdict, check_engine

    remarks = check_engine(fleet)
    if as_json:
        click.echo(json.dumps([remark.to_json() for remark in remarks], indent=2))
    else:
        for remark in remarks:
            click.echo(f"{remark.verdict:<8} {report.plain(remark.text)}")
            if remark.hint:
                click.echo(f"{'':<8} HINT: {remark.hint}")
    sys.exit(FAILED if any(remark.verdict is Verdict.PROBLEM for remark in remarks) else 0)


@cli.command()
@fleet_option
@click.option("--port", type=click.IntRange(0, 65535), default=4200, show_default=True, help="Of 127.0.0.1; 0: any.")
def serve(fleet_path: Path, port: int) -> None:
    """Serve on this machine until interrupted: a server with pages, the schedules of prefect.yaml, and a worker.

    Registers first what the engine must hold, as `python -m deployments.register` does. The prefect.yaml beside the
    fleet file counts, else the one that came with this. `a0backup run` and `check` use this server while it runs.
    """
    from deployments.serve import serve as serve_all

    serve_all(Fleet.load(fleet_path), port)


def _check(fleet_path: Path, nodes: Sequence[str], existing: Existing | None, as_json: bool) -> None:
    fleet = Fleet.load(fleet_path)
    order = [node.name for node in fleet.chosen(nodes)]
    findings: list[report.Finding] = []
    warnings: list[str] = []

    def collect(news: News) -> None:
        match news:
            case Checked():
                findings.append(news.finding)
            case Warned():
                warnings.append(news.text)

    from a0backup.check import fleet_notes
    from deployments.local_run import run_here

    with watched_by(collect), terminal.shown(quiet=as_json):
        error = run_here("check-fleet", fleet_path, nodes, existing)
    findings.sort(key=lambda finding: order.index(finding.node))
    if as_json:
        click.echo(json.dumps(report.check_json(findings, warnings), indent=2))
    elif findings:
        click.echo("\n".join(report.check_lines(findings, warnings, fleet_notes(fleet))))
    _exit_with(report.check_exit_code(findings), error)


def _exit_with(code: int, error: BaseException | None) -> None:
    """End with *code*; where the run failed for another reason than the nodes that are named, say it too."""
    if error is not None and not isinstance(error, RunFailedError | CheckFailedError):
        terminal.say(f"error: {error}")
    sys.exit(FAILED if code == 0 and error is not None else code)


@cli.command()
@fleet_option
@json_option
def status(fleet_path: Path, as_json: bool) -> None:
    """Show for every node its last artifact, its unfinished backup and who holds its lock. No node is asked."""
    fleet = Fleet.load(fleet_path)
    vault = Vault(fleet.vault)
    rows = [_status_of(vault, node.name, kind) for node in fleet.nodes for kind in fleet.kinds]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['node']} {row['kind']}")
        click.echo(f"  last artifact  {row['last'] or 'none yet'}")
        click.echo(f"  unfinished     {row['journal'] or 'nothing'}")
        click.echo(f"  lock           {row['holder'] or 'free'}")


def _status_of(vault: Vault, node: str, kind: str) -> dict[str, str | None]:
    # Late: it brings all that drives a node, which the commands that only read the vault start faster without.
    from a0backup.backup.deletion import DeletionMark

    last = vault.newest(node, kind)
    lock = vault.folder(node) / "lock"
    holder = str(read_holder(lock) or "a process that has not given its name yet") if is_held(lock) else None
    try:
        journal = JournalFile(vault.folder(node), kind).read()
        unfinished = None
        if journal is not None:
            unfinished = f"started {journal.started_at:%Y-%m-%dT%H:%M:%SZ} by run {journal.flow_run}"
            if journal.history:
                unfinished += f"; last: {report.plain(journal.history[-1].what)}"
    except ValueError as error:
        unfinished = f"the journal cannot be read, the next run sets it aside ({error})"
    if DeletionMark(vault.folder(node), kind).is_there():
        sent = "a deletion was sent and is not confirmed; the next start lets it arrive first"
        unfinished = f"{unfinished}; {sent}" if unfinished else sent
    return {"node": node, "kind": kind, "last": last.id if last else None, "journal": unfinished, "holder": holder}


@cli.command("list")
@vault_options
@json_option
@click.argument("nodes", nargs=-1)
def list_artifacts(fleet_path: Path, vault_path: Path | None, as_json: bool, nodes: tuple[str, ...]) -> None:
    """List what is in the vault (of the NODES named), oldest first.

    Ends with 4 where a manifest cannot be read or an artifact is missing; `a0backup verify` reads them whole.
    """
    vault = _vault_at(fleet_path, vault_path)
    for node in set(nodes) - set(vault.nodes()):
        raise click.UsageError(f"the vault {vault.root} has no node {node!r}")
    entries = [entry for name in (nodes or [None]) for entry in vault.entries(name)]
    manifests = [entry for entry in entries if isinstance(entry, Manifest)]
    if as_json:
        click.echo(json.dumps([manifest.to_json() for manifest in manifests], indent=2))
    elif manifests:
        width = max(len(manifest.id) for manifest in manifests)
        click.echo(f"{'ID':<{width}}  {'SIZE':>9}  {'STORED':<20}  {'VERIFIED':<8}  {'PASSWORD':<8}  MD5")
        for manifest in manifests:
            artifact = manifest.artifact
            click.echo(
                f"{manifest.id:<{width}}  {report.human_size(artifact.size):>9}  "
                f"{manifest.stored_at:%Y-%m-%dT%H:%M:%SZ}  {manifest.verified.level:<8}  "
                f"{manifest.encryption.password.mode:<8}  {artifact.md5}"
            )
    elif not entries:
        terminal.say(f"the vault {vault.root} holds no artifact yet; `a0backup run` makes the first")
    unread = [entry for entry in entries if isinstance(entry, UnreadableManifest)]
    for entry in (entry for entry in unread if entry.later):
        terminal.say(f"not read: {report.plain(entry.id)}: {report.plain(entry.reason)}")
    problems = [f"{entry.id}: {entry.reason}" for entry in unread if not entry.later]
    problems += [f"{m.id}: {flaw}" for m in manifests if (flaw := _visible_flaw(vault, m))]
    for problem in problems:
        terminal.say(f"damaged: {report.plain(problem)}")
    sys.exit(DAMAGED if problems else FAILED if unread else 0)


def _visible_flaw(vault: Vault, manifest: Manifest) -> str:
    """Return what is wrong with an artifact that can be seen without reading it."""
    try:
        size = vault.artifact(manifest).lstat().st_size
    except OSError as error:
        return f"the artifact cannot be found: {error.strerror}"
    expected = manifest.artifact.size
    return "" if size == expected else f"the artifact has {size} bytes, its manifest says {expected}"


@cli.command()
@vault_options
@json_option
@click.argument("artifact_id", metavar="ID")
def show(fleet_path: Path, vault_path: Path | None, as_json: bool, artifact_id: str) -> None:
    """Show the manifest of the artifact ID, where its file is and how to open it without this software."""
    vault = _vault_at(fleet_path, vault_path)
    manifest = _get(vault, artifact_id)
    if as_json:
        click.echo(json.dumps(manifest.to_json(), indent=2))
        return
    password = manifest.encryption.password
    rows = {
        "id": manifest.id,
        "node": f"{manifest.node.name} ({manifest.node.host}:{manifest.node.port})",
        "kind": manifest.kind,
        "name on node": report.plain(manifest.name_on_node),
        "started": f"{manifest.started_at:%Y-%m-%dT%H:%M:%SZ}" if manifest.started_at else "not by this vault",
        "stored": f"{manifest.stored_at:%Y-%m-%dT%H:%M:%SZ} by run {report.plain(manifest.flow_run)}",
        "file": str(vault.artifact(manifest)),
        "size": f"{manifest.artifact.size} bytes ({report.human_size(manifest.artifact.size)})",
        "md5": manifest.artifact.md5,
        "sha256": manifest.artifact.sha256,
        "verified": _how_verified(manifest),
        "password": password.mode + ("" if password.confirmed else ", not proven to open it"),
    }
    if password.sealed:
        rows["sealed to"] = ", ".join(dict.fromkeys(report.plain(entry.recovery_key) for entry in password.sealed))
    for key, value in rows.items():
        click.echo(f"{key:<13} {value}")
    if len({entry.recovery_key for entry in password.sealed}) < len(password.sealed):
        click.echo("\na crash left it open which of several sealed passwords opens it: `a0backup drill` finds out with")
        click.echo("--key recovery.key.pem, and docs/restore.md, step 3a, without this software")
        return
    if password.sealed:
        click.echo("\nto take its password out with a private recovery key, and list what is in it (docs/restore.md):")
        for command in _unsealing(vault, manifest):
            click.echo(f"  {command}")
    else:
        click.echo("\nto list what is in it (the password is asked for):")
    key = " -pass file:password" if password.sealed else ""
    place = shlex.quote(str(vault.artifact(manifest)))
    click.echo(f"  openssl enc -d -aes-256-ctr -md md5 -nosalt{key} -in {place} | tar tz")


def _how_verified(manifest: Manifest) -> str:
    verified = manifest.verified
    if verified.level == "md5":
        return "md5; its contents were not read"
    return f"contents: {verified.members} members, {report.human_size(verified.unpacked_size or 0)} unpacked"


def _unsealing(vault: Vault, manifest: Manifest) -> Iterator[str]:
    """Yield the commands that take each sealed password of *manifest* out of it into a file."""
    place = shlex.quote(str(vault.artifact(manifest).with_name(MANIFEST)))
    sealed = manifest.encryption.password.sealed
    yield "umask 077"
    for number, entry in enumerate(sealed, 1):
        if len(sealed) > 1:
            yield f"# {'or, ' if number > 1 else ''}with the recovery key {report.plain(entry.recovery_key)}:"
        yield (
            f"""sed -n 's/^ *"box": "\\([^"]*\\)".*/\\1/p' {place} | sed -n {number}p | base64 -d |"""
            " openssl pkeyutl -decrypt -inkey recovery.key.pem -pkeyopt rsa_padding_mode:oaep"
            " -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 -out password"
        )


@cli.command()
@vault_options
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1)
def verify(fleet_path: Path, vault_path: Path | None, artifact_ids: tuple[str, ...]) -> None:
    """Read artifacts (all, or those named) again from the disk and compare them with their manifests.

    Ends with 4 where one is damaged or missing.
    """
    vault = _vault_at(fleet_path, vault_path)
    entries = [_find(vault, artifact_id) for artifact_id in artifact_ids] if artifact_ids else list(vault.entries())
    if not entries:
        terminal.say(f"the vault {vault.root} holds no artifact yet")
    codes = {0}
    for entry in entries:
        try:
            if isinstance(entry, UnreadableManifest):
                raise entry.error()
            vault.reread(entry)
        except LaterVersionError as error:
            codes.add(FAILED)
            click.echo(f"{entry.id}  NOT READ: {report.plain(error.message())}")
        except ArtifactDamagedError as error:
            codes.add(DAMAGED)
            click.echo(f"{entry.id}  DAMAGED: {report.plain(error.message())}")
        else:
            click.echo(f"{entry.id}  well")
    sys.exit(max(codes))


def _find(vault: Vault, artifact_id: str) -> Manifest | UnreadableManifest:
    found = vault.get(artifact_id)
    if found is None:
        hint = "`a0backup list` shows the ids"
        raise click.UsageError(f"the vault {vault.root} has no artifact {artifact_id!r}; {hint}")
    return found


def _get(vault: Vault, artifact_id: str) -> Manifest:
    found = _find(vault, artifact_id)
    if isinstance(found, UnreadableManifest):
        terminal.say(f"{'not read' if found.later else 'damaged'}: {found.id}: {report.plain(found.reason)}")
        raise click.exceptions.Exit(FAILED if found.later else DAMAGED)
    return found


def opening_options(command: F) -> F:
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
                help="Its passphrase is the first line of this file; asked for if not given.",
            ),
            click.option(
                "--password-file",
                type=click.Path(path_type=Path),
                help="The password, where it is not sealed, is in this file; asked for if not given.",
            ),
        )
    ):
        command = option(command)
    return command


# Whoever has artifact and password wants what is in it; what fleet.yaml allows is about what nodes may do to a run.
_WHATEVER_IT_IS = ContentsLimits(max_unpacked=10**15, max_ratio=1032)


@dataclass(frozen=True)
class _Opening:
    """What the options of `decrypt` and `drill` say."""

    fleet_path: Path
    vault_path: Path | None
    key: Path | None
    passphrase_file: Path | None
    password_file: Path | None

    def vault_and_fleet(self) -> tuple[Vault, Fleet | None]:
        if self.vault_path is not None:
            return Vault(self.vault_path), None
        fleet = Fleet.load(self.fleet_path)
        return Vault(fleet.vault), fleet

    def secrets(self, manifests: Sequence[Manifest], source: PasswordSource | None) -> "Secrets":
        """Return what opens *manifests*; what no option names and *source* does not give is asked for."""
        from a0backup import password, recovery
        from a0backup.drill import Secrets

        if self.passphrase_file is not None and self.key is None:
            raise click.UsageError("--passphrase-file goes with --key")
        key = None
        if self.key is not None:
            passphrase = None
            if self.passphrase_file is not None:
                passphrase = recovery.read_passphrase(self.passphrase_file)
            elif recovery.wants_passphrase(self.key):
                passphrase = ask(f"passphrase of {self.key}", "--passphrase-file")
            key = recovery.load_private(self.key, passphrase)
        if self.password_file is not None:
            source = PasswordSource(file=self.password_file)
        sealed = [bool(manifest.encryption.password.sealed) for manifest in manifests]
        if source is not None and (source.env or source.file) and (self.password_file or not all(sealed)):
            return Secrets(key, asyncio.run(password.load(source, block=_no_block)))
        # One that is not sealed, such as somebody else's, must not keep the others from being opened.
        if all(sealed) or (key is not None and any(sealed)):
            return Secrets(key)
        return Secrets(key, ask("password", "--password-file"))


async def _no_block(name: str) -> str:
    raise AssertionError("no Secret block is asked for without an engine")


def ask(what: str, option: str) -> str:
    """Ask for a secret at the terminal; it never comes from the arguments or from standard input."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise click.UsageError(f"there is no terminal to ask for the {what} at; give it with {option}") from None
    answer = getpass.getpass(f"{what}: ")
    if not answer:
        raise click.UsageError(f"no {what} was given")
    return answer


@contextmanager
def _at_work(text: str) -> Iterator[None]:
    """Show *text* and for how long it has taken, on a terminal, until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield


@cli.command("drill")
@vault_options
@opening_options
@json_option
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1)
def drill_artifacts(artifact_ids: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Prove that artifacts can be restored: decrypt, decompress, read every member. Nothing is written.

    Without IDs: the newest of each node and kind. The password is that of fleet.yaml where it names a file or an
    environment variable. Ends with 4 where one is damaged, else with 1 where one could not be opened.
    """
    from a0backup import drill

    opening = _Opening(**options)
    vault, fleet = opening.vault_and_fleet()
    entries = [_find(vault, artifact_id) for artifact_id in artifact_ids] if artifact_ids else _newest_of_each(vault)
    if not entries:
        terminal.say(f"the vault {vault.root} holds no artifact yet")
    readable = [entry for entry in entries if isinstance(entry, Manifest)]
    secrets = opening.secrets(readable, fleet.password if fleet else None) if readable else drill.Secrets()
    limits = fleet.contents if fleet else _WHATEVER_IT_IS
    rows: list[dict[str, object]] = []
    codes = {0}
    for number, entry in enumerate(entries, 1):
        try:
            if isinstance(entry, UnreadableManifest):
                raise entry.error()
            size = report.human_size(entry.artifact.size)
            with _at_work(f"reads {entry.id} to its end ({size}; {number} of {len(entries)})"):
                contents = drill.drill(vault, entry, secrets.passwords(entry), limits)
        except A0BackupError as error:
            damaged = drill.is_damage(error)
            codes.add(DAMAGED if damaged else FAILED)
            hint = drill.remedy(error, entry) if isinstance(entry, Manifest) else error.hint()
            result = "damaged" if damaged else "not opened"
            rows.append({"id": entry.id, "result": result, "reason": error.message(), "hint": hint})
        else:
            read = {"members": contents.members, "unpacked_size": contents.unpacked_size, "odd": list(contents.odd)}
            rows.append({"id": entry.id, "result": "well", **read})
        if not as_json:
            click.echo("\n".join(_drill_lines(rows[-1])))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    sys.exit(max(codes))


def _tidy_when_called_off() -> None:
    """Have SIGTERM and a lost terminal end this process as Ctrl-C does: what is half written is removed then."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # One that is ignored (nohup) stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _newest_of_each(vault: Vault) -> list[Manifest | UnreadableManifest]:
    # By the folder's name, which is all that can be read of some.
    newest = {(entry.id.partition("/")[0], entry.id.partition("Z-")[2]): entry for entry in vault.entries()}
    return list(newest.values())


def _drill_lines(row: Mapping[str, Any]) -> Iterator[str]:
    if row["result"] == "well":
        yield f"{row['id']}  well: {row['members']} members, {report.human_size(row['unpacked_size'])} unpacked"
        yield from (f"  odd: {report.plain(sentence)}" for sentence in row["odd"])
    else:
        yield f"{row['id']}  {row['result'].upper()}: {report.plain(row['reason'])}"
        if row["hint"]:
            yield f"  HINT: {report.plain(row['hint'])}"


@cli.command()
@vault_options
@opening_options
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The new file; one that exists is never overwritten.",
)
@click.argument("artifact_id", metavar="ID")
def decrypt(artifact_id: str, target: Path, **options: Any) -> None:
    """Write the artifact ID decrypted, a tar.gz, to a new FILE.

    FILE is there only once the artifact matched its manifest and its contents were read to their end. Ends with 4
    where the artifact is damaged, with 1 where password or key do not fit.
    """
    from a0backup import drill

    opening = _Opening(**options)
    vault, _ = opening.vault_and_fleet()
    manifest = _get(vault, artifact_id)
    if os.path.lexists(target):
        raise click.UsageError(f"{target} exists already, and nothing is overwritten; name another file")
    if not target.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {target.parent}; make it first, or name another file")
    secrets = opening.secrets([manifest], None)
    _tidy_when_called_off()
    try:
        with _at_work(
            f"reads {manifest.id} to its end, then decrypts it ({report.human_size(manifest.artifact.size)})"
        ):
            contents = drill.decrypt(vault, manifest, secrets.passwords(manifest), _WHATEVER_IT_IS, target)
    except A0BackupError as error:
        hint = drill.remedy(error, manifest)
        terminal.say(f"error: {report.plain(error.message())}" + (f"\nHINT: {report.plain(hint)}" if hint else ""))
        sys.exit(DAMAGED if drill.is_damage(error) else FAILED)
    click.echo(
        f"""\
wrote {target}: {contents.members} members, {report.human_size(contents.unpacked_size)} unpacked, NOT ENCRYPTED

next:
  tar tzf {shlex.quote(str(target))}    # what is in it
  Loading it into an appliance is done with the vendor's support; docs/restore.md says what to give them.
  Remove it when you are done: shred -u {shlex.quote(str(target))}"""
    )


@cli.command("handoff")
@vault_options
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    help="The new folder; one that exists is left alone.",
)
@click.argument("artifact_id", metavar="ID")
def hand_off(fleet_path: Path, vault_path: Path | None, artifact_id: str, target: Path) -> None:
    """Make the new folder DIR with what a support engineer needs to restore the artifact ID, but no password.

    Artifact, checksums, manifest, and how to check and open it. Ends with 4 where the artifact is damaged.
    """
    from a0backup.handoff import handoff

    vault = _vault_at(fleet_path, vault_path)
    manifest = _get(vault, artifact_id)
    _tidy_when_called_off()
    try:
        with _at_work(f"copies {manifest.id} ({report.human_size(manifest.artifact.size)})"):
            handoff(vault, manifest, target)
    except FileExistsError:
        raise click.UsageError(f"{target} exists already, and nothing is overwritten; name another folder") from None
    except ArtifactDamagedError as error:
        terminal.say(f"error: {report.plain(error.message())}\nHINT: {error.hint()}")
        sys.exit(DAMAGED)
    sealed = bool(manifest.encryption.password.sealed)
    of_it = (
        "it was made for this artifact alone, docs/restore.md says how to take it out"
        if sealed
        else ("if it is the one of all your backups, choose another for the next")
    )
    click.echo(
        f"""\
wrote {target}: {manifest.artifact.file} ({report.human_size(manifest.artifact.size)}), verified, with RESTORE.md

next:
  Send the folder to the support engineer, and the password by another way: {of_it}."""
    )


@cli.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the demo's vault and fleet.yaml; a new temporary directory if not given.",
)
def demo(directory: Path | None) -> None:
    """Start a simulated three-node fleet, back it up for real, and show what came of it. Needs no appliance."""
    from deployments.demo import run_demo

    sys.exit(run_demo(directory))
