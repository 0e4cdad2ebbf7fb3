"""The `a0backup` command. Thin: each subcommand loads, calls the core or runs a flow, and prints.

Exit codes: 0 all well; 1 failed; 2 usage or fleet.yaml wrong; 3 some nodes failed, the others are stored; 4 a stored
artifact is damaged, missing or too old; 130 interrupted.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from a0backup import report, terminal
from a0backup.errors import (
    A0BackupError,
    ArtifactDamagedError,
    CheckFailedError,
    FleetFileError,
    RunFailedError,
)
from a0backup.fleet import EXAMPLE, Existing, Fleet, schema
from a0backup.journal import JournalFile
from a0backup.lock import is_held, read_holder
from a0backup.progress import Checked, Ended, News, watched_by
from a0backup.vault import Manifest, UnreadableManifest, Vault

FAILED, USAGE, DAMAGED, INTERRUPTED = 1, 2, 4, 130

F = TypeVar("F", bound=Callable[..., Any])


def main() -> None:
    """Run the command; end with its exit code, an error as a message with what to do next, never as a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):  # click makes one of the other
        terminal.say("interrupted; the next run goes on from here")
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

    \b
    Exit codes: 0 all well, 1 failed, 2 usage or fleet.yaml wrong, 3 some nodes failed,
    4 a stored artifact is damaged or missing, 130 interrupted.
    """


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=Path("fleet.yaml"))
def init(path: Path) -> None:
    """Write a commented fleet.yaml (to PATH) to start from. One that exists is never overwritten."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise click.UsageError(f"{path} exists already; name another PATH or move it away first") from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}")
    click.echo(f"next: name your nodes and the password's place in it, then `a0backup check --fleet {path}`")


@cli.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of fleet.yaml, for editors that complete and check it."""
    click.echo(json.dumps(schema(), indent=2))


@cli.command()
@fleet_option
@json_option
@existing_option
@click.argument("nodes", nargs=-1)
def check(fleet_path: Path, as_json: bool, existing: Existing | None, nodes: tuple[str, ...]) -> None:
    """Look at every node (or the NODES named) without touching it: does it answer, what is on it, what would a run do.

    For a reply that is not known it prints the line for a0cli.replies in fleet.yaml that teaches it.
    """
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

    def collect(news: News) -> None:
        if isinstance(news, Ended):
            outcomes.append(news.outcome)

    from deployments.local_run import run_here

    error: Exception | None = None
    try:
        with watched_by(collect), terminal.shown(quiet=as_json):
            error = run_here("backup-fleet", fleet_path, nodes, existing)
    finally:
        # Also when called off: what is stored by then is worth knowing.
        outcomes.sort(key=lambda outcome: order.index(outcome.node))
        if as_json:
            click.echo(json.dumps(report.to_json(outcomes), indent=2))
        elif outcomes:
            click.echo("\n".join(report.lines(outcomes)))
    _exit_with(report.exit_code(outcomes), error)


def _check(fleet_path: Path, nodes: Sequence[str], existing: Existing | None, as_json: bool) -> None:
    order = [node.name for node in Fleet.load(fleet_path).chosen(nodes)]
    findings: list[report.Finding] = []

    def collect(news: News) -> None:
        if isinstance(news, Checked):
            findings.append(news.finding)

    from deployments.local_run import run_here

    with watched_by(collect), terminal.shown(quiet=as_json):
        error = run_here("check-fleet", fleet_path, nodes, existing)
    findings.sort(key=lambda finding: order.index(finding.node))
    if as_json:
        click.echo(json.dumps(report.check_json(findings), indent=2))
    elif findings:
        click.echo("\n".join(report.check_lines(findings)))
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
    from a0backup.deletion import DeletionMark

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
@fleet_option
@json_option
@click.argument("nodes", nargs=-1)
def list_artifacts(fleet_path: Path, as_json: bool, nodes: tuple[str, ...]) -> None:
    """List what is in the vault (of the NODES named), oldest first.

    Ends with 4 where a manifest cannot be read or an artifact is missing; `a0backup verify` reads them whole.
    """
    vault = Vault(Fleet.load(fleet_path).vault)
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
    else:
        terminal.say(f"the vault {vault.root} holds no artifact yet; `a0backup run` makes the first")
    problems = [f"{entry.id}: {entry.reason}" for entry in entries if isinstance(entry, UnreadableManifest)]
    problems += [f"{m.id}: {flaw}" for m in manifests if (flaw := _visible_flaw(vault, m))]
    for problem in problems:
        terminal.say(f"damaged: {report.plain(problem)}")
    sys.exit(DAMAGED if problems else 0)


def _visible_flaw(vault: Vault, manifest: Manifest) -> str:
    """Return what is wrong with an artifact that can be seen without reading it."""
    try:
        size = vault.artifact(manifest).lstat().st_size
    except OSError as error:
        return f"the artifact cannot be found: {error.strerror}"
    expected = manifest.artifact.size
    return "" if size == expected else f"the artifact has {size} bytes, its manifest says {expected}"


@cli.command()
@fleet_option
@json_option
@click.argument("artifact_id", metavar="ID")
def show(fleet_path: Path, as_json: bool, artifact_id: str) -> None:
    """Show the manifest of the artifact ID, where its file is and how to open it without this software."""
    vault = Vault(Fleet.load(fleet_path).vault)
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
        "verified": manifest.verified.level,
        "password": password.mode + ("" if password.confirmed else ", not proven to open it"),
    }
    for key, value in rows.items():
        click.echo(f"{key:<13} {value}")
    click.echo("\nto list what is in it (the password is asked for):")
    click.echo(
        f"  openssl enc -d -aes-256-ctr -md md5 -nosalt -in {shlex.quote(str(vault.artifact(manifest)))} | tar tz"
    )


@cli.command()
@fleet_option
@click.argument("artifact_ids", metavar="[ID]...", nargs=-1)
def verify(fleet_path: Path, artifact_ids: tuple[str, ...]) -> None:
    """Read artifacts (all, or those named) again from the disk and compare them with their manifests.

    Ends with 4 where one is damaged or missing.
    """
    vault = Vault(Fleet.load(fleet_path).vault)
    entries = [_find(vault, artifact_id) for artifact_id in artifact_ids] if artifact_ids else list(vault.entries())
    if not entries:
        terminal.say(f"the vault {vault.root} holds no artifact yet")
    damaged = 0
    for entry in entries:
        try:
            if isinstance(entry, UnreadableManifest):
                raise ArtifactDamagedError(entry.id, entry.reason)
            vault.reread(entry)
        except ArtifactDamagedError as error:
            damaged += 1
            click.echo(f"{entry.id}  DAMAGED: {report.plain(error.message())}")
        else:
            click.echo(f"{entry.id}  well")
    sys.exit(DAMAGED if damaged else 0)


def _find(vault: Vault, artifact_id: str) -> Manifest | UnreadableManifest:
    found = vault.get(artifact_id)
    if found is None:
        hint = "`a0backup list` shows the ids"
        raise click.UsageError(f"the vault {vault.root} has no artifact {artifact_id!r}; {hint}")
    return found


def _get(vault: Vault, artifact_id: str) -> Manifest:
    found = _find(vault, artifact_id)
    if isinstance(found, UnreadableManifest):
        terminal.say(f"damaged: {found.id}: {report.plain(found.reason)}")
        raise click.exceptions.Exit(DAMAGED)
    return found


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
