"""Remove a secret from text, in every form in which a program may print it.

a0cli is a Node.js program: it prints a value as it is, escaped, encoded, as a Buffer or as a list of
numbers, and breaks long lines.
"""

import base64
import functools
import html
import json
import re
import shlex
import urllib.parse
from collections.abc import Iterator, Sequence

# A line break within the secret: as a terminal or a mail breaks a line, as a shell continues one, and as Node.js
# breaks a long string, which it closes and opens again.
_BREAK = r"""(?:['"`]? ?\+?[ \t]*[\\=]?\r?\n[ \t>|#]*['"`]?)?"""
_BETWEEN_HEX = r"[\s,:;|._-]{0,8}(?:0x|\\x)?"
_BETWEEN_NUMBERS = r"[\s,]{1,8}"
# A dump may show a column of text after its numbers, and an offset before those of the next line.
_NEXT_LINE = r"[ \t]{0,4}[^\n]{0,24}\r?\n(?:[0-9a-f]{4,16}:?)?[ \t]{1,4}"
_MORE = r"[\s,]{0,8}\.\.\. \d+ more"
_SHOWN = 100  # bytes: a longer Buffer or list is printed only in part
_LONGEST_PER_BYTE = 16  # characters, in any form below
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;", " ": "&nbsp;"}


def longest_form(secret: str | None) -> int:
    """Return the maximum length in bytes of a form in which *secret* is recognised; 0 without a secret."""
    return _LONGEST_PER_BYTE * len(_octets(secret)) if secret else 0


def redact(text: str, secret: str | None) -> str:
    """Return *text* with *secret* replaced by ``***``, also if it is encoded, escaped, dumped or broken into lines."""
    return _pattern(secret).sub("***", text) if secret else text


def _octets(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")


@functools.lru_cache(maxsize=256)
def _pattern(secret: str) -> re.Pattern[str]:
    octets = _octets(secret)
    texts = sorted({secret, shlex.quote(secret), *_base64(octets)}, key=len, reverse=True)
    parts = [_BREAK.join(map(re.escape, text)) for text in texts if text]
    parts.append(_BREAK.join(map(_any_escape, secret)))
    wide = (secret.encode(encoding, "surrogatepass") for encoding in ("utf-16-le", "utf-16-be"))
    for each in dict.fromkeys((octets, *wide)):
        parts += _dumps(each)
    return re.compile("|".join(parts), re.IGNORECASE)


def _any_escape(character: str) -> str:
    """Return a pattern for *character* in any escaped form: JSON, JavaScript, shell, URL, HTML, quoted-printable."""
    octets = _octets(character)
    forms = {character, json.dumps(character)[1:-1], repr(character)[1:-1], html.escape(character), f"\\{character}"}
    forms |= {urllib.parse.quote(octets, safe=""), urllib.parse.quote_plus(octets), _NAMED.get(character, character)}
    forms |= {"".join(f"{mark}{octet:02x}" for octet in octets) for mark in ("%", "=", "\\x")}
    forms |= {"".join(f"\\{octet:03o}" for octet in octets), f"\\u{{{ord(character):x}}}"}
    utf16 = character.encode("utf-16-be", "surrogatepass").hex()
    forms.add("".join(f"\\u{utf16[at : at + 4]}" for at in range(0, len(utf16), 4)))
    if character == "'":
        forms.add("'\\''")
    numbers = rf"&\#0{{0,4}}{ord(character)};|&\#x0{{0,4}}{ord(character):x};"
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))}|{numbers})"


def _base64(octets: bytes) -> Iterator[str]:
    """Yield base64 of a text with the secret at each of the three alignments: the digits that depend only on it."""
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + octets).decode()
        first, last = (0, 2, 3)[offset], (offset + len(octets)) * 8 // 6
        if last - first >= 6:
            yield whole[first:last]
            yield whole[first:last].translate(str.maketrans("+/", "-_"))


def _dumps(octets: bytes) -> Iterator[str]:
    """Yield patterns for a dump of *octets*: hexadecimal, decimal, or as characters with blanks between."""
    if len(octets) < 4:
        yield octets.hex()
        return
    pairs = [f"{octet:02x}" for octet in octets]
    # A dump over several lines shows the text beside the numbers: it is removed up to the end of the last line.
    lines = f"(?:{_BETWEEN_HEX}|{_NEXT_LINE})"
    yield _BETWEEN_HEX.join(pairs)
    yield lines.join(pairs) + r"[^\n]*"
    yield _part_of(pairs, _BETWEEN_HEX)
    decimals = [str(octet) for octet in octets]
    yield rf"(?<!\d){f'(?:{_BETWEEN_NUMBERS}|{_NEXT_LINE})'.join(decimals)}(?!\d)"
    yield rf"(?<!\d){_part_of(decimals, _BETWEEN_NUMBERS)}"
    characters = [re.escape(chr(octet)) if 32 < octet < 127 else rf"\\?{octet:03o}" for octet in octets]
    yield rf"(?:[ ]{{1,4}}|{_NEXT_LINE})".join(characters)


def _part_of(numbers: Sequence[str], between: str) -> str:
    """Return a pattern for the first *numbers*, at least four, of a dump that ends there: "... 12 more bytes"."""
    head, rest = numbers[:4], numbers[4:_SHOWN]
    pattern = ""
    for number in reversed(rest):
        pattern = f"(?:{between}{number}{pattern})?"
    return between.join(head) + pattern + _MORE
