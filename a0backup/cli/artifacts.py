"""`a0backup list` and `show`: the artifacts in the vault."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from a0backup.cli.options import complete_ids, complete_nodes, json_option, say_ahead, vault_at, vault_options
from a0backup.exit_codes import ExitCode
from a0backup.report import terminal
from a0backup.report.words import human_size, plain
from a0backup.vault.manifest import MANIFEST, Manifest, UnreadableManifest
from a0backup.vault.pinned import reason_to_keep
from a0backup.vault.vault import Vault, is_ahead, kind_of, visible_flaw


@click.command("list")
@vault_options
@json_option
@click.argument("nodes", nargs=-1, shell_complete=complete_nodes)
def list_artifacts(fleet_path: Path, vault_path: Path | None, as_json: bool, nodes: tuple[str, ...]) -> int:
    """List the artifacts in the vault, oldest first.

    Name NODES to list only their artifacts. Reads the manifests and the file sizes; `a0backup verify` reads the
    artifacts themselves. Prints ID, size, time stored, level of verification, mode of the password and md5; with
    --json, the manifests.

    \b
    Exit codes:
      0  success
      1  a manifest was not read: a later version wrote it, or it belongs to another user
      2  usage or fleet.yaml wrong, or no such node in the vault
      4  a manifest is unreadable, or an artifact is missing or has the wrong size
    """
    vault = vault_at(fleet_path, vault_path)
    for node in set(nodes) - set(vault.nodes()):
        raise click.UsageError(f"the vault {vault.root} has no node {node!r}")
    flaws = _Flaws(vault)
    entries = flaws.noted(entry for name in (nodes or [None]) for entry in vault.entries(name))
    manifests = (entry for entry in entries if isinstance(entry, Manifest))
    if as_json:
        terminal.echo_lines(json_lines(manifest.to_json() for manifest in manifests))
    else:
        # Only the text of each row is held, as a vault may have 100,000 manifests.
        terminal.echo_lines(_table([_row(manifest) for manifest in manifests]))
        if not flaws.number:
            terminal.say(f"the vault {vault.root} holds no artifact yet; `a0backup run` makes the first")
    return flaws.say()


def _row(manifest: Manifest) -> tuple[str, str]:
    """Return the id, and what follows it in the table."""
    artifact = manifest.artifact
    stored = manifest.stored_at.isoformat()[:19]
    return manifest.id, (
        f"{human_size(artifact.size):>9}  {stored}Z  {manifest.verified.level:<8}  "
        f"{manifest.encryption.password.mode:<8}  {artifact.md5}"
    )


def _table(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    if rows:
        width = max(len(artifact_id) for artifact_id, _ in rows)
        yield f"{'ID':<{width}}  {'SIZE':>9}  {'STORED':<20}  {'VERIFIED':<8}  {'PASSWORD':<8}  MD5"
        yield from (f"{artifact_id:<{width}}  {rest}" for artifact_id, rest in rows)


def json_lines(rows: Iterable[object]) -> Iterator[str]:
    """Yield the lines of a JSON array with one of *rows* on each line."""
    last = None
    for row in rows:
        yield "[" if last is None else f"  {last},"
        last = json.dumps(row)
    yield from ["[]"] if last is None else [f"  {last}", "]"]


class _Flaws:
    """The damage that is visible without reading the artifacts, noted while the manifests pass by."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._unread: list[UnreadableManifest] = []
        self._damaged: list[str] = []
        self.number = 0  # of all entries

    def noted(self, entries: Iterable[Manifest | UnreadableManifest]) -> Iterator[Manifest | UnreadableManifest]:
        """Yield *entries*, and note what is wrong with each."""
        for entry in entries:
            self.number += 1
            if isinstance(entry, UnreadableManifest):
                self._unread.append(entry)
            elif flaw := visible_flaw(self._vault, entry):
                self._damaged.append(f"{entry.id}: {flaw}")
            yield entry

    def say(self) -> int:
        """Print what was noted; return the exit code."""
        for entry in (entry for entry in self._unread if not entry.damaged):
            terminal.say(f"not read: {plain(entry.error().message())}\nHINT: {entry.error().hint()}")
        problems = [*(f"{entry.id}: {entry.reason}" for entry in self._unread if entry.damaged), *self._damaged]
        for problem in problems:
            terminal.say(f"damaged: {plain(problem)}")
        return ExitCode.DAMAGED if problems else ExitCode.FAILED if self._unread else ExitCode.OK


def find(vault: Vault, word: str) -> list[Manifest | UnreadableManifest]:
    """Return what *word* names: an id, `latest`, NODE or NODE/KIND. Raise UsageError if there is none.

    `latest` is the newest artifact of each node and kind, NODE that of each kind of the node.
    """
    exact = vault.get(word)
    if exact is not None:
        return [exact]
    node, _, kind = ("", "", "") if word == "latest" else word.partition("/")
    found = [
        entry
        for (of_node, of_kind), entry in newest_of_each(vault).items()
        if node in ("", of_node) and kind in ("", of_kind)
    ]
    if not found:
        hint = "`a0backup list` shows the ids; NODE, NODE/KIND and latest name the newest ones"
        raise click.UsageError(f"the vault {vault.root} has no artifact {word!r}; {hint}")
    return found


def find_all(vault: Vault, words: Sequence[str]) -> list[Manifest | UnreadableManifest]:
    """Return what *words* name, each artifact once. Raise UsageError."""
    return list({entry.id: entry for word in words for entry in find(vault, word)}.values())


def newest_of_each(vault: Vault) -> dict[tuple[str, str], Manifest | UnreadableManifest]:
    """Return the newest artifact of each node and kind; name those whose time lies in the future."""
    newest: dict[tuple[str, str], Manifest | UnreadableManifest] = {}
    now, ahead = datetime.now(UTC), []
    for entry in vault.entries():
        # By the name of the folder: of some, nothing else is readable.
        of = (entry.id.partition("/")[0], kind_of(entry.id))
        if is_ahead(entry.id, now):
            ahead.append(entry.id)
            newest.setdefault(of, entry)
        else:
            newest[of] = entry
    say_ahead(ahead)
    return newest


def get(vault: Vault, artifact_id: str) -> Manifest:
    """Return the one readable manifest that *artifact_id* names, an id or as in `find`.

    Raise UsageError if there is none or more than one, Exit if it is unreadable.
    """
    found, *more = find(vault, artifact_id)
    if more:
        several = ", ".join(entry.id for entry in (found, *more))
        raise click.UsageError(f"{artifact_id!r} names more than one artifact: {several}")
    if isinstance(found, UnreadableManifest):
        terminal.say(f"{'damaged' if found.damaged else 'not read'}: {found.id}: {plain(found.reason)}")
        raise click.exceptions.Exit(ExitCode.DAMAGED if found.damaged else ExitCode.FAILED)
    return found


# -- show --------------------------------------------------------------------------------------------------------------


@click.command()
@vault_options
@json_option
@click.argument("artifact_id", metavar="ID", shell_complete=complete_ids)
def show(fleet_path: Path, vault_path: Path | None, as_json: bool, artifact_id: str) -> int:
    """Show the manifest of an artifact, and how to open it.

    `a0backup list` prints the IDs; NODE, NODE/KIND or latest name the newest. Prints the manifest, the path of the
    file, and the commands that open the artifact without this software; with --json, only the manifest.

    \b
    Exit codes:
      0  shown
      1  a later version wrote the manifest, which this version cannot read
      2  usage or fleet.yaml wrong, or no such artifact
      4  the manifest is unreadable, or the artifact is missing or has the wrong size
    """
    vault = vault_at(fleet_path, vault_path)
    manifest = get(vault, artifact_id)
    if as_json:
        click.echo(json.dumps(manifest.to_json(), indent=2))
        return ExitCode.OK
    for name, value in _rows(vault, manifest).items():
        click.echo(f"{name:<13} {value}")
    click.echo("\n".join(_how_to_open(vault, manifest)))
    flaws = _Flaws(vault)
    list(flaws.noted([manifest]))
    return flaws.say()


def _rows(vault: Vault, manifest: Manifest) -> dict[str, str]:
    password = manifest.encryption.password
    rows = {
        "id": manifest.id,
        "node": plain(f"{manifest.node.name} ({manifest.node.host}:{manifest.node.port})"),
        "kind": manifest.kind,
        "name on node": plain(manifest.name_on_node),
        "started": f"{manifest.started_at:%Y-%m-%dT%H:%M:%SZ}" if manifest.started_at else "not by this vault",
        "stored": f"{manifest.stored_at:%Y-%m-%dT%H:%M:%SZ} by run {plain(manifest.flow_run)}",
        "file": str(vault.artifact(manifest)),
        "size": f"{manifest.artifact.size} bytes ({human_size(manifest.artifact.size)})",
        "md5": manifest.artifact.md5,
        "sha256": manifest.artifact.sha256,
        "verified": _how_verified(manifest),
        "password": password.mode + ("" if password.confirmed else ", not proven to open it"),
    }
    if pin := reason_to_keep(vault.root / manifest.id, datetime.now(UTC)):
        rows["retention"] = plain(pin)
    if password.sealed:
        rows["sealed to"] = ", ".join(dict.fromkeys(plain(entry.recovery_key) for entry in password.sealed))
    return rows


def _how_verified(manifest: Manifest) -> str:
    verified = manifest.verified
    if verified.level == "md5":
        return "md5; its contents were not read"
    return f"contents: {verified.members} members, {human_size(verified.unpacked_size or 0)} unpacked"


def _how_to_open(vault: Vault, manifest: Manifest) -> Iterator[str]:
    """Yield the lines on how to list the contents of the artifact without this software."""
    sealed = manifest.encryption.password.sealed
    if len({entry.recovery_key for entry in sealed}) < len(sealed):
        yield "\na crash left it open which of several sealed passwords opens it: `a0backup drill` finds out with"
        yield "--key recovery.key.pem, and docs/restore.md, step 3a, without this software"
        return
    if sealed:
        yield "\nto take its password out with a private recovery key, and list what is in it (docs/restore.md):"
        yield from (f"  {command}" for command in _unsealing(vault, manifest))
    else:
        yield "\nto list what is in it (the password is asked for):"
    key = " -pass file:password" if sealed else ""
    place = shlex.quote(str(vault.artifact(manifest)))
    yield f"  openssl enc -d -aes-256-ctr -md md5 -nosalt{key} -in {place} | tar tz"


def _unsealing(vault: Vault, manifest: Manifest) -> Iterator[str]:
    """Yield the commands that extract each sealed password of *manifest* into a file."""
    place = shlex.quote(str(vault.artifact(manifest).with_name(MANIFEST)))
    sealed = manifest.encryption.password.sealed
    yield "umask 077"
    for number, entry in enumerate(sealed, 1):
        if len(sealed) > 1:
            yield f"# {'or, ' if number > 1 else ''}with the recovery key {plain(entry.recovery_key)}:"
        yield (
            f"""sed -n 's/^ *"box": "\\([^"]*\\)".*/\\1/p' {place} | sed -n {number}p | base64 -d |"""
            " openssl pkeyutl -decrypt -inkey recovery.key.pem -pkeyopt rsa_padding_mode:oaep"
            " -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 -out password"
        )
