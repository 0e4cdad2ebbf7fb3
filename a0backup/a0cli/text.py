"""Clean, normalise, redact and quote the text that a0cli prints."""

import base64
import html
import json
import re
import shlex
import urllib.parse

# Each alternative matches a whole sequence, closed or not, which keeps the work linear.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def clean(text: str) -> str:
    """Return *text* without colours, control and bidi characters; lines stay, other white space becomes blanks."""
    text = _ANSI.sub("", text).replace("\r", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)


def normalised(text: str) -> str:
    text = " ".join(clean(text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    text = re.sub(r"\bcan't\b", "cannot", text)
    text = re.sub(r"n't\b", " not", text)
    return text.rstrip(" .!\N{HORIZONTAL ELLIPSIS}")


def _secret_forms(secret: str) -> list[str]:
    """Return the forms that *secret* may take in the output of a program, longest first."""
    octets = secret.encode("utf-8", "surrogatepass")
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], shlex.quote(secret)}
    forms |= {repr(secret)[1:-1], html.escape(secret), secret.replace("'", "'\\''"), octets.hex()}
    forms.add(secret.replace("/", "\\/"))
    forms |= {urllib.parse.quote(octets, safe=""), urllib.parse.quote(octets), urllib.parse.quote_plus(octets)}
    # Base64 of a text with the secret at each of the three alignments: the digits that depend only on the secret.
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + octets).decode()
        first, last = (0, 2, 3)[offset], (offset + len(octets)) * 8 // 6
        if last - first >= 6:
            forms |= {whole[first:last], whole[first:last].translate(str.maketrans("+/", "-_"))}
    return sorted(forms - {""}, key=len, reverse=True)


def longest_form(secret: str | None) -> int:
    """Return the length in bytes of the longest form in which *secret* is recognised; 0 without a secret."""
    return max(len(form.encode("utf-8", "surrogatepass")) for form in _secret_forms(secret)) if secret else 0


def redact(text: str, secret: str | None) -> str:
    """Return *text* with *secret* replaced by ``***``, also if JSON-escaped, URL-encoded, in hex or in base64."""
    if not secret:
        return text
    return re.sub("|".join(map(re.escape, _secret_forms(secret))), "***", text, flags=re.IGNORECASE)


def quote(text: str, *, secret: str | None = None, limit: int = 200) -> str:
    """Return *text* fit for a message: one line, no control, colour or bidi characters, no *secret*, cut in the middle.

    The result has at most *limit* characters.
    """
    # Redact before and after cleaning: a stray colour may split the secret, a decoded one may be whole only afterwards.
    line = redact(" ".join(clean(redact(text, secret)).split()), secret)
    if len(line) <= limit:
        return line
    end = max(0, limit - 3) // 2
    return f"{line[: limit - 3 - end]} … {line[len(line) - end :]}"[:limit]
