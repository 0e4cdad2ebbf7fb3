"""Text that a0cli prints: cleaned, normalised, without secrets, quoted for a message."""

import base64
import html
import json
import re
import shlex
import urllib.parse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# Every alternative takes what it began with, closed or not, so that the work stays linear.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def clean(text: str) -> str:
    """Return *text* with colours, control and bidi characters removed; lines are kept, other white space is blanks."""
    text = _ANSI.sub("", text).replace("\r", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)


def normalised(text: str) -> str:
    text = " ".join(clean(text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    text = re.sub(r"\bcan't\b", "cannot", text)
    text = re.sub(r"n't\b", " not", text)
    return text.rstrip(" .!\N{HORIZONTAL ELLIPSIS}")


def _secret_forms(secret: str) -> list[str]:
    """Return how *secret* may appear in what a program prints, longest first."""
    octets = secret.encode("utf-8", "surrogatepass")
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], shlex.quote(secret)}
    forms |= {repr(secret)[1:-1], html.escape(secret), secret.replace("'", "'\\''"), octets.hex()}
    forms.add(secret.replace("/", "\\/"))
    forms |= {urllib.parse.quote(octets, safe=""), urllib.parse.quote(octets), urllib.parse.quote_plus(octets)}
    # Base64 of a text that holds the secret at any of the three alignments: the digits that depend on it alone.
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + octets).decode()
        first, last = (0, 2, 3)[offset], (offset + len(octets)) * 8 // 6
        if last - first >= 6:
            forms |= {whole[first:last], whole[first:last].translate(str.maketrans("+/", "-_"))}
    return sorted(forms - {""}, key=len, reverse=True)


def longest_form(secret: str | None) -> int:
    """Return the length in bytes of the longest form in which *secret* is recognised, 0 without a secret."""
    return max(len(form.encode("utf-8", "surrogatepass")) for form in _secret_forms(secret)) if secret else 0


def redact(text: str, secret: str | None) -> str:
    """Return *text* with *secret*, also JSON-escaped, URL-encoded, in hex or base64, replaced by ``***``."""
    if not secret:
        return text
    return re.sub("|".join(map(re.escape, _secret_forms(secret))), "***", text, flags=re.IGNORECASE)


def quote(text: str, *, secret: str | None = None, limit: int = 200) -> str:
    """Return *text* fit for a message: one line, no control, colour or bidi characters, no *secret*, cut in the middle.

    The result is at most *limit* characters long.
    """
    # A stray colour may split the secret, and a decoded one may be whole only after cleaning: so on both sides.
    line = redact(" ".join(clean(redact(text, secret)).split()), secret)
    if len(line) <= limit:
        return line
    end = max(0, limit - 3) // 2
    return f"{line[: limit - 3 - end]} … {line[len(line) - end :]}"[:limit]
