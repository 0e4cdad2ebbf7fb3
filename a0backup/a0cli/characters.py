"""Which characters of a text can be seen."""

import re

# Each alternative matches a whole sequence, closed or not, which keeps the work linear.
ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)

# Unicode's characters that are to be ignored in display (DerivedCoreProperties), and some that look like nothing.
BLANKS = frozenset(
    chr(code)
    for first, last in (
        *((0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
        *((0x2065, 0x2065), (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8)),
        *((0x16FE4, 0x16FE4), (0x1BCA0, 0x1BCA3), (0x1D159, 0x1D159), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
    )
    for code in range(first, last + 1)
)


def one_line(text: str) -> str:
    """Return *text* clean and on one line, as for a log."""
    return " ".join(clean(text).split())


def clean(text: str) -> str:
    """Return *text* without colours, control and bidi characters; lines stay, other white space becomes blanks."""
    text = ANSI.sub("", text).replace("\r", "\n")
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "" for c in text)
