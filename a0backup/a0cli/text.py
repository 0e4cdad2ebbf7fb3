"""Normalise and quote the text that a0cli prints, and remove passwords from it."""

import re
from collections.abc import Sequence

from a0backup.a0cli.characters import clean, one_line
from a0backup.a0cli.redaction import redact, redact_both


def normalised(text: str) -> str:
    text = " ".join(clean(text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    text = re.sub(r"\bcan't\b", "cannot", text)
    text = re.sub(r"n't\b", " not", text)
    return text.rstrip(" .!\N{HORIZONTAL ELLIPSIS}")


def quote(text: str, *, secret: str | None = None, limit: int = 200) -> str:
    """Return *text* fit for a message: one line, no control, colour or bidi characters, no *secret*, cut in the middle.

    The result has at most *limit* characters.
    """
    # Redact before and after cleaning: a stray colour may split the secret, a decoded one may be whole only afterwards.
    line = redact(one_line(redact(text, secret)), secret)
    if len(line) <= limit:
        return line
    end = max(0, limit - 3) // 2
    return f"{line[: limit - 3 - end]} … {line[len(line) - end :]}"[:limit]


def without(secrets: Sequence[str], text: str) -> str:
    """Return *text* without *secrets*, even if a colour or control character splits one."""
    for secret in secrets:
        text = redact(text, secret)
        bare = clean(text)
        if (redacted := redact(bare, secret)) != bare:
            text = redacted
    return text


def without_both(secrets: Sequence[str], first: str, second: str) -> tuple[str, str]:
    """Return *first* and *second* as `without` does, also without a secret that shows when both are joined."""
    both = first, second
    for secret in filter(None, secrets):
        both = redact_both(*both, secret)
        bare = clean(both[0]), clean(both[1])
        if (redacted := redact_both(*bare, secret)) != bare:
            both = redacted
    return both
