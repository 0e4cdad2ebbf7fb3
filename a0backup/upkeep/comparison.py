"""Compare a backup with the one before it: what is gone, and what has become much smaller, from manifests alone.

    before = previous(vault, manifest)
    losses = lost_since(before, manifest.verified, size=manifest.artifact.size, shrink=0.3)

An empty users collection where there were two million users last night is a whole backup of a broken database.
"""

from collections.abc import Iterator
from itertools import islice

from a0backup.report.words import documents_in_words, human_size
from a0backup.vault.manifest import MAX_COLLECTIONS, Manifest, Verified, VerifiedCollection
from a0backup.vault.vault import Vault, time_of

MAX_LOSSES = 10  # sentences
# A collection of a few documents loses a third of them in any night.
_FEW_DOCUMENTS = 100
_FEW_BYTES = 1 << 20  # likewise for a file
_OPLOG = "oplog"  # of `mongodump --oplog`: what was written during the dump, as much as that was
_LOOKED_AT = 30  # earlier backups; in some fleets, hardly one was opened


def previous(vault: Vault, manifest: Manifest) -> Manifest | None:
    """Return the backup of the same node and kind before *manifest*; None if there is none.

    That is the newest earlier one whose contents were read, if those of *manifest* were and one of the last thirty
    has them; otherwise the newest earlier one. Raise OSError if the node's folder cannot be read.
    """
    then = time_of(manifest.id)
    earlier = (each for each in reversed(vault.ids(manifest.node.name, manifest.kind)) if time_of(each) < then)
    entries = (vault.get(each) for each in islice(earlier, _LOOKED_AT))
    manifests = [entry for entry in entries if isinstance(entry, Manifest)]
    read = (each for each in manifests if each.verified.level == "contents")
    newest = manifests[0] if manifests else None
    return next(read, newest) if manifest.verified.level == "contents" else newest


def losses_of(vault: Vault, manifest: Manifest, shrink: float) -> tuple[str, ...]:
    """Return what *manifest* lacks of the backup before it, as sentences; see `lost_since`. Raise OSError."""
    before = previous(vault, manifest)
    return () if before is None else lost_since(before, manifest.verified, size=manifest.artifact.size, shrink=shrink)


def lost_since(before: Manifest, now: Verified, *, size: int, shrink: float) -> tuple[str, ...]:
    """Return what a backup of *size* bytes, of which *now* was verified, lacks of *before*, as sentences.

    Collections and members that are gone, an empty collection that was not, and what is smaller by more than the
    share *shrink*: the whole, a collection, one of the largest members. At most MAX_LOSSES sentences; the last one
    says how many more there are.
    """
    found = [*_collections(before.verified, now, shrink), *_members(before.verified, now, shrink)]
    found += _total(before, now, size, shrink)
    if len(found) > MAX_LOSSES:
        found[MAX_LOSSES - 1 :] = [f"and {len(found) - MAX_LOSSES + 1} more losses"]
    return tuple(f"{loss} (compared with {before.id})" for loss in found)


def _collections(before: Verified, now: Verified, shrink: float) -> Iterator[str]:
    """Yield what is lost of collections, the largest first."""
    if before.collections is None:
        return
    if now.collections is None:
        if now.level == "contents" and before.collections:
            yield f"no collection is in it, and there were {len(before.collections)}"
        return
    there = {each.name: each for each in now.collections}
    # A manifest names the largest alone: one that it does not name may be as large as the smallest that it does.
    rest = min((each.size for each in now.collections), default=0) if len(there) >= MAX_COLLECTIONS else 0
    for was in before.collections:
        have = there.get(was.name)
        if was.name.rpartition(".")[2] == _OPLOG:
            continue
        if have is None and not rest:
            yield f"the collection {was.name} is gone; it had {documents_in_words(was.documents)}"
        elif have is None:
            if _is_less(rest, was.size, shrink):
                yield f"the collection {was.name} is gone or below {human_size(rest)}; it had {human_size(was.size)}"
        else:
            yield from _shrunk(was, have, shrink)


def _shrunk(was: VerifiedCollection, have: VerifiedCollection, shrink: float) -> Iterator[str]:
    if was.documents and not have.documents:
        yield f"the collection {was.name} is empty; it had {documents_in_words(was.documents)}"
    elif was.documents >= _FEW_DOCUMENTS and _is_less(have.documents, was.documents, shrink):
        yield f"the collection {was.name} has {documents_in_words(have.documents)}; it had {was.documents:,}"
    elif was.size >= _FEW_BYTES and _is_less(have.size, was.size, shrink):
        yield f"the collection {was.name} has {human_size(have.size)}; it had {human_size(was.size)}"


def _members(before: Verified, now: Verified, shrink: float) -> Iterator[str]:
    if before.members is not None and now.members is not None and now.members < before.members:
        yield f"it has {now.members:,} members; it had {before.members:,}"
    if before.largest is None or now.largest is None or now.members is None:
        return
    there = {each.name: each.size for each in now.largest}
    # Likewise: only the largest are named.
    rest = min(there.values(), default=0) if now.members > len(now.largest) else 0
    counted = before.collections is not None and now.collections is not None
    for was in before.largest:
        have = there.get(was.name, rest)
        # Those of collections are named by their documents.
        is_counted = counted and was.name.endswith((".bson", ".bson.gz"))
        if not is_counted and was.size >= _FEW_BYTES and _is_less(have, was.size, shrink):
            have_text = human_size(have) if was.name in there else f"is gone or below {human_size(have)}"
            yield f"{was.name} {'has ' * (was.name in there)}{have_text}; it had {human_size(was.size)}"


def _total(before: Manifest, now: Verified, size: int, shrink: float) -> Iterator[str]:
    was_unpacked, have_unpacked = before.verified.unpacked_size, now.unpacked_size
    if was_unpacked is not None and have_unpacked is not None:
        if _is_less(have_unpacked, was_unpacked, shrink):
            yield f"it has {human_size(have_unpacked)} unpacked; it had {human_size(was_unpacked)}"
    elif _is_less(size, before.artifact.size, shrink):
        yield f"it has {human_size(size)}; it had {human_size(before.artifact.size)}"


def _is_less(have: int, was: int, shrink: float) -> bool:
    """Return whether *have* is smaller than *was* by more than the share *shrink*."""
    return was - have > was * shrink
