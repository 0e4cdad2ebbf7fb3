"""When the backups of a node and kind were last drilled, from the records beside them.

last = last_drill(vault, vault.ids("a0-1", "backup"), now=now)
newest = last_drill(vault, ids[-1:], now=now)
warnings = drill_warnings(last, newest, ids, max_age=7_776_000, now=now)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from a0backup.report.words import human_seconds
from a0backup.vault.drilled import Drilled, read_drilled
from a0backup.vault.vault import CLOCKS_DIFFER, Vault, time_of


@dataclass(frozen=True)
class LastDrill:
    """The last drill of a node and kind, and the artifact that was drilled."""

    id: str
    drilled: Drilled


def last_drill(vault: Vault, ids: Sequence[str], *, now: datetime) -> LastDrill | None:
    """Return the last drill of the artifacts *ids*; None if none is recorded. A record in the future does not count."""
    found = (LastDrill(each, drilled) for each in ids if (drilled := read_drilled(f"{vault.root}/{each}")) is not None)
    past = (each for each in found if each.drilled.drilled_at <= now + CLOCKS_DIFFER)
    return max(past, key=lambda each: each.drilled.drilled_at, default=None)


def drill_warnings(
    last: LastDrill | None, newest: LastDrill | None, ids: Sequence[str], *, max_age: float | None, now: datetime
) -> list[str]:
    """Warn if the drill of the *newest* backup or the *last* drill did not pass, or if that is *max_age* seconds old.

    Without a drill, the age of the oldest of *ids* counts: a new vault has that time for its first one.
    """
    failed = [each for each in dict.fromkeys((newest, last)) if each is not None and not each.drilled.passed]
    warnings = [
        f"the last drill of {each.id} did not pass: {each.drilled.problem or 'no reason is recorded'}"
        for each in failed
    ]
    since = last.drilled.drilled_at if last is not None else time_of(ids[0]) if ids else now
    age = (now - since).total_seconds()
    if max_age is not None and age > max_age:
        said = f"last drilled {human_seconds(age)} ago" if last is not None else "never drilled"
        warnings.append(f"{said}, and {human_seconds(max_age)} is the maximum: `a0backup drill` proves that it opens")
    return warnings
