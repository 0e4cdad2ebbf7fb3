"""Clean, normalise and quote the text that a0cli prints."""

import re

from a0backup.a0cli.redaction import redact

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
