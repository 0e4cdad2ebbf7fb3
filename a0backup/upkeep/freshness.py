"""Freshness: how old the newest backup of a node and kind is, from the manifests alone.

    newest = find_newest(vault, vault.ids("a0-1", "backup"), now=now)
    judgement = judge(newest, lacking={"nas": ids}, max_age=93_600, now=now)

The age counts from the moment at which the node began to make the backup, `started_at`, and not from `stored_at`: a
backup that lay on its node for a week is a week old when it is stored. For a backup that this vault did not start, that
moment is not known, and it may be older than any: it never counts as fresh.

A time that lies in the future proves that a clock was or is wrong. The distance tells which: a clock that is behind has
later nights before it, so the nearest such artifact is less than `max_age` away. Then no age is known, and nothing is
fresh. An artifact that is further away was made while the clock was ahead. It is named, and earlier ones count.
"""

from bisect import bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from a0backup.errors import ArtifactDamagedError, VaultError
from a0backup.report.words import counted, human_seconds
from a0backup.vault.manifest import Manifest, UnreadableManifest
from a0backup.vault.vault import CLOCKS_DIFFER, Vault, reading, time_of


@dataclass(frozen=True)
class Newest:
    """The newest artifacts of a node and kind.

    *last* is the newest that does not lie in the future, or the newest of all if each does. *known* is the newest that
    counts: whole as far as its size shows, with a known start. *ahead* are the ids of those in the future, oldest
    first. *unusable* says of those after *known* that cannot be read or have no whole file why that is.
    """

    last: Manifest | None = None
    known: Manifest | None = None
    ahead: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What is to be said of the newest backup of a node and kind; *age* and *max_age* in seconds.

    *problems* are the reasons why it is not fresh, *warnings* what a person should look at although it may be.
    """

    age: int | None
    taken_at: datetime | None
    max_age: float | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def fresh(self) -> bool | None:
        """Whether it is fresh, and the places are not too far behind; None if no age is too old."""
        return None if self.max_age is None else not self.problems


def find_newest(vault: Vault, ids: Sequence[str], *, now: datetime, doubted: Container[str] = ()) -> Newest:
    """Return the newest of the artifacts *ids*, all of one node and kind, oldest first; reads no more than needed.

    *doubted* are ids that the last verification did not find whole.
    """
    first_ahead = bisect_right(ids, _stamp(now + CLOCKS_DIFFER), key=_stamp_of)
    ahead = _from_first_manifest(vault, ids[first_ahead:])
    last, unusable = None, list[str]()
    for artifact_id in reversed(ids[:first_ahead]):
        entry = vault.get(artifact_id)
        if entry is None:
            continue
        if reason := _why_unusable(vault, entry, now, doubted):
            unusable.append(f"{artifact_id} does not count: {reason}")
        elif isinstance(entry, Manifest):
            last = last or entry
            if entry.started_at is not None:
                return Newest(last, entry, ahead, tuple(unusable))
    if last is None and ahead and isinstance(entry := vault.get(ahead[-1]), Manifest):
        last = entry
    return Newest(last, None, ahead, tuple(unusable))


def judge(newest: Newest, *, lacking: Mapping[str, Sequence[str]], max_age: float | None, now: datetime) -> Judgement:
    """Judge the *newest* artifacts of a node and kind. *lacking* has the ids that each place does not hold."""
    taken_at = newest.known.started_at if newest.known is not None else None
    # Negative only within the tolerance.
    age = None if taken_at is None else max(0, round((now - taken_at).total_seconds()))
    problems, warnings = [], list(newest.unusable)
    nearest = (time_of(newest.ahead[0]) - now).total_seconds() if newest.ahead else None
    if nearest is not None and max_age is not None and 0 < nearest <= max_age:
        problems.append(
            f"{newest.ahead[0]} is {human_seconds(nearest)} ahead of this machine's clock, so no age is known: set the"
            " clock, or wait until then if it is right"
        )
    elif newest.ahead:
        more = f" and {len(newest.ahead) - 1} more" if len(newest.ahead) > 1 else ""
        warnings.append(
            f"{newest.ahead[0]}{more}: its time lies in the future, so it does not count as the newest; the clock was"
            " ahead then, or is behind now"
        )
    if max_age is not None:
        if age is None:
            problems.append(_missing(newest))
        elif age > max_age:
            problems.append(f"{human_seconds(age)} old, and {human_seconds(max_age)} is the maximum")
        oldest_allowed = _stamp(now - timedelta(seconds=max_age))
        for place, ids in lacking.items():
            if late := bisect_right(ids, oldest_allowed, key=_stamp_of):
                problems.append(f"{place} lacks {counted(late, 'artifact')} older than {human_seconds(max_age)}")
    return Judgement(age, taken_at, max_age, tuple(problems), tuple(warnings))


def _missing(newest: Newest) -> str:
    if newest.last is not None and newest.last.started_at is None:
        return "no backup of known age: this vault started none of those that it holds"
    return "no backup that counts" if newest.unusable or newest.ahead else "no backup yet"


def _why_unusable(vault: Vault, entry: Manifest | UnreadableManifest, now: datetime, doubted: Container[str]) -> str:
    """Return why the artifact cannot be the newest backup of its node; nothing if it can."""
    if isinstance(entry, UnreadableManifest):
        return entry.error().text()
    if entry.started_at is not None and entry.started_at > now + CLOCKS_DIFFER:
        return "its manifest says that it was started in the future"
    try:
        with reading(vault, entry):
            pass
    except ArtifactDamagedError as error:
        return error.reason
    except VaultError as error:
        return error.text()
    return "the last `a0backup verify` did not find it whole" if entry.id in doubted else ""


def _from_first_manifest(vault: Vault, ids: Sequence[str]) -> tuple[str, ...]:
    """Return *ids* from the first that has a manifest on: a killed run leaves folders that are no backups."""
    for number, artifact_id in enumerate(ids):
        if vault.get(artifact_id) is not None:
            return tuple(ids[number:])
    return ()


def _stamp(moment: datetime) -> str:
    """Return *moment* as ids have it; ids of one kind sort like their times."""
    return f"{moment:%Y%m%dT%H%M%SZ}"


def _stamp_of(artifact_id: str) -> str:
    return artifact_id.rpartition("/")[2].partition("-")[0]
