"""Who besides this user can read or write what a run uses: the vault, the keys, and what decides what is run."""

import contextlib
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from a0backup.access import others_can_write, places_of_others
from a0backup.errors import RecoveryKeyError
from a0backup.files import owner_of
from a0backup.fleet.models import Fleet
from a0backup.passwords import recovery_keys
from a0backup.vault.space import nearest
from a0backup.vault.vault import Vault

_MAX_LOOKED_AT = 1000  # entries of a directory: a check must be quick, however large the vault
_NAMED = 5  # places of each kind: whoever reads that many looks at the rest
_NEWEST = 10  # artifact folders of a node whose files are checked


def of_fleet(fleet: Fleet) -> list[str]:
    """Return what others can do to *fleet*: read keys and vault, or write what decides what a run does."""
    warnings = [*filter(None, [_root_warning(fleet.vault)]), *_writable(fleet)]
    # `.pub` is the usual name of the public half of a key pair, which others may read.
    keys = {path: _mode(path) for path in _entries(fleet.a0cli.key_dir) if path.suffix != ".pub"}
    if exposed := _open_to_others({path: mode for path, mode in keys.items() if stat.S_ISREG(mode)}):
        warnings.append(
            f"others can use a0cli's key, which has full rights on the nodes: {exposed};"
            f" chmod go= {_quoted(fleet.a0cli.key_dir)}/*"
        )
    if exposed := _open_to_others({fleet.vault: _mode(fleet.vault)}):
        warnings.append(f"others can read the vault: {exposed}; chmod go= {_quoted(fleet.vault)}{_WITHOUT_MODES}")
    beside = dict.fromkeys(
        [*(path.parent for path in fleet.password.sealed_to or ()), fleet.vault, fleet.a0cli.key_dir]
    )
    return [*warnings, *_private_key_warnings(fleet, beside)]


_WITHOUT_MODES = " (where this file system has no modes: mount it with umask=077)"


def _writable(fleet: Fleet) -> Iterator[str]:
    """Yield a warning for each file, folder and link that others can change and that decides what a run does."""
    decides: dict[str, Iterable[Path]] = {
        # prefect.yaml is read beside the fleet file: others must not be able to make one there either.
        "what is run here and on which nodes": [fleet.path, fleet.path.parent, fleet.path.with_name("prefect.yaml")],
        "which program is run": _programs(fleet.a0cli.path),
        # All files there are keys.
        "which keys a0cli uses": [fleet.a0cli.key_dir, *_entries(fleet.a0cli.key_dir)],
        "which password later backups get": filter(None, [fleet.password.file]),
        "to which key later passwords are sealed": fleet.password.sealed_to or (),
        "which nodes count as well": filter(
            None, [fleet.health.key.file, fleet.health.ca_file] if fleet.health else []
        ),
        "where copies go": _settings_of_places(fleet),
    }
    seen = set[Path]()
    for what, files in decides.items():
        places = dict.fromkeys(place for file in files for place in _places_of_others(file))
        for place in islice((place for place in places if place not in seen), _NAMED):
            yield f"others can write {place} and so decide {what}: {_remedy(place)}"
        seen |= places.keys()


def _settings_of_places(fleet: Fleet) -> Iterator[Path]:
    """Yield the folders that are places, and the files that say how the others are reached."""
    schemes = {copy.scheme for copy in fleet.copies}
    yield from (Path(copy.root) for copy in fleet.copies if copy.scheme == "file")
    with contextlib.suppress(RuntimeError):  # this user has no home
        home = Path.home()
        if "s3" in schemes:
            yield Path(os.environ.get("AWS_CONFIG_FILE", home / ".aws" / "config"))
            yield Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / ".aws" / "credentials"))
        if "sftp" in schemes:
            yield from (home / ".ssh" / name for name in ("config", "known_hosts"))


def _programs(name: str) -> Iterator[Path]:
    """Yield the program that a0cli's *name* means, and the folders of PATH that are searched before its own."""
    program = shutil.which(name)
    if os.sep not in name:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            place = Path(folder or os.curdir)
            if program and place == Path(program).parent:
                break
            yield place
    if program:
        yield Path(program)


def _places_of_others(file: Path) -> Iterator[Path]:
    """Yield the places that let others decide what *file* contains: the file, the folders above, links on the way."""
    with contextlib.suppress(OSError):  # reported as a problem, if it matters
        yield from places_of_others(file)
        if others_can_write(file):
            yield file


def _remedy(place: Path) -> str:
    for follow in (False, True):
        if place.stat(follow_symlinks=follow).st_uid not in (0, os.geteuid()):
            return f"it belongs to {owner_of(place, follow=follow)}"
    return f"chmod go-w {_quoted(place)}"


def recovery_keys_of(fleet: Fleet) -> Iterator[tuple[Path, recovery_keys.RecoveryKey]]:
    """Yield each public recovery key that can be read, with its file."""
    for path in fleet.password.sealed_to or ():
        with contextlib.suppress(RecoveryKeyError):  # reported as a problem
            yield path, recovery_keys.load_public(path)


def _root_warning(vault: Path) -> str:
    """Return a warning if root is about to write into the vault of another user."""
    place = nearest(vault)
    if os.geteuid() != 0 or place.stat().st_uid == 0 or place != vault:
        return ""
    owner = owner_of(vault)
    return f"this is root, and the vault belongs to {owner}, who cannot read what root writes: run this as {owner}"


def of_node(fleet: Fleet, node: str) -> list[str]:
    """Return who else can read the node's folder in the vault, and which keys do not belong there."""
    vault = Vault(fleet.vault)
    folder, newest = vault.folder(node), list[Path]()
    with contextlib.suppress(OSError):  # reported as a problem
        newest = vault.folders(node)[-_NEWEST:]
    entries = chain([folder], *map(_entries, [folder, folder / "passwords", *newest]))
    exposed = _open_to_others({path: _mode(path, follow=False) for path in entries})
    warnings = _private_key_warnings(fleet, [folder])
    if exposed:
        warnings.append(f"others can read the vault: {exposed}; chmod -R go= {_quoted(folder)}")
    return warnings


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _entries(folder: Path) -> list[Path]:
    """Return up to 1000 entries of *folder*; none if it is missing or unreadable."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in islice(entries, _MAX_LOOKED_AT)]
    return []


def _mode(path: Path, *, follow: bool = True) -> int:
    """Return the mode of *path*; 0 if it cannot be seen, or is gone because a run has moved it."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except OSError:
        return 0


def _open_to_others(modes: Mapping[Path, int]) -> str:
    """Return text that names the paths that group or others may read or write; empty if there are none."""
    exposed = sorted(path for path, mode in modes.items() if mode & 0o077 and not stat.S_ISLNK(mode))
    if not exposed:
        return ""
    more = f", and {len(exposed) - 1} more" if len(exposed) > 1 else ""
    return f"{exposed[0]} has mode {stat.S_IMODE(modes[exposed[0]]):04o}{more}"


def _private_key_warnings(fleet: Fleet, folders: Iterable[Path]) -> list[str]:
    """Return a warning for each file directly in *folders* that is or may be the private part of a recovery key."""
    if not fleet.password.sealed_to:
        return []
    known = {key.fingerprint for _, key in recovery_keys_of(fleet)}
    return [
        f"{path} looks like the private part of a recovery key, which opens every backup: it must not be on a machine"
        " that makes them; keep it offline, in two places"
        for folder in folders
        for path in sorted(_entries(folder))
        if _may_open_backups(path, known)
    ]


def _may_open_backups(path: Path, known: set[str]) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > recovery_keys.MAX_BYTES:
            return False
        # An encrypted key cannot be identified. It is not a0cli's own key: a0cli asks for no passphrase.
        return recovery_keys.wants_passphrase(path) or recovery_keys.load_private(path, None).fingerprint in known
    except (OSError, RecoveryKeyError):
        return False
