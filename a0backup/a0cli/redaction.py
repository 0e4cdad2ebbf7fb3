"""Remove a secret from text, in every form in which a program may print it.

a0cli is a Node.js program: it prints a value as it is, escaped once or several times, encoded, as a
Buffer or as a list of numbers, and breaks long lines.

The text is not searched for all these forms. It is reduced, in several ways, to what they have in
common, and the secret is searched for in that. So the work is linear in the size of the text.
"""

import base64
import functools
import html
import itertools
import json
import re
import shlex
import unicodedata
import urllib.parse
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from a0backup.a0cli.characters import ANSI, BLANKS

Span = tuple[int, int]

LOOKED_FOR = 8  # characters: a shorter secret may be a part of any word
_SHORTEST = 4  # characters of a secret before a mark that the rest was left out
_MARKS = 1000  # such marks that are looked at
_LONGEST_PER_BYTE = 16  # characters, in any form
_DUMPED = 16  # bytes in a line of a dump

_ESCAPES = (
    r"(?<!\\)\\+(?:u\{(?P<point>[0-9a-f]{1,6})\}|u(?P<unit>[0-9a-f]{4})|x(?P<hex>[0-9a-f]{2})|(?P<octal>[0-3][0-7]{2}))"
    r"|%(?:25)*(?P<percent>[0-9a-f]{2})"
    r"|&(?:amp;)*(?:\#x0*(?P<hexref>[0-9a-f]{1,6})|\#0*(?P<ref>[0-9]{1,7})|(?P<name>[a-z]{2,6}));"
)
_ESCAPE = re.compile(_ESCAPES, re.IGNORECASE)
_PRINTABLE = re.compile(rf"{_ESCAPES}|=(?P<quoted>[0-9a-f]{{2}})|=\r?\n", re.IGNORECASE)  # quoted-printable
_OFFSET = re.compile(rf"(?m:^[0-9a-f]{{6,16}}:?(?=[ \t]))|{_ESCAPES}", re.IGNORECASE)
# The key of an element: {"0": 67, "1": 97}, Map { 0 => 67 }.
_KEY = re.compile(rf"""["']?(?<![0-9a-z])[0-9]{{1,6}}["']?[ \t]{{0,4}}(?::|=>)|{_ESCAPES}""", re.IGNORECASE)
# What JSON, C and shells have for control characters. None of them is shown.
_CONTROL = re.compile(rf"{_ESCAPES}|(?<!\\)\\+(?P<control>[abefnrtv0])", re.IGNORECASE)
_READINGS = (_ESCAPE, _KEY, _PRINTABLE, _OFFSET)
# The escapes of bytes, not of characters: those above 127 are parts of UTF-8, or Latin-1.
_OF_BYTES = ("hex", "octal", "percent", "quoted")
_BASES = {"point": 16, "unit": 16, "hex": 16, "octal": 8, "percent": 16, "hexref": 16, "ref": 10, "quoted": 16}
# What together is one character: the halves of a pair, or the bytes of UTF-8, which stand here as Python's own
# surrogate escapes.
_PARTS = re.compile(
    "[\\ud800-\\udbff][\\udc00-\\udfff]|[\\udcc2-\\udcdf][\\udc80-\\udcbf]|[\\udce0-\\udcef][\\udc80-\\udcbf]{2}"
    "|[\\udcf0-\\udcf4][\\udc80-\\udcbf]{3}|[\\udc80-\\udcff]"
)

_NUMBER = re.compile(r"(?<![0-9a-z])(?:0x|\\x)?([0-9a-f]+)(?![0-9a-z])", re.IGNORECASE)
_LINE_OFFSET = re.compile(r"[0-9a-f]{6,16}:?[ \t]+", re.IGNORECASE)
_COLUMN = re.compile(r"[ \t][|>]")
_LEFT_OUT = re.compile(r"\.\.\.|\N{HORIZONTAL ELLIPSIS}")


def longest_form(secret: str | None) -> int:
    """Return the maximum length in bytes of a form in which *secret* is recognised; 0 without a secret."""
    return _LONGEST_PER_BYTE * len(secret.encode("utf-8", "surrogatepass")) if secret else 0


def redact(text: str, secret: str | None) -> str:
    """Return *text* with *secret* replaced by ``***``, also if it is encoded, escaped, dumped or broken into lines."""
    if not secret or not text:
        return text
    return _without(text, sorted(_found(text, _forms(secret))))


def redact_both(first: str, second: str, secret: str) -> tuple[str, str]:
    """Return *first* and *second* as `redact` does, also without a *secret* of which each has a part.

    That is one that shows when the second follows the first on a new line.
    """
    cut = len(first)
    spans = sorted(_found(f"{first}\n{second}", _forms(secret)))
    return (
        _without(first, [(start, min(end, cut)) for start, end in spans if start < cut]),
        _without(second, [(max(start - cut - 1, 0), end - cut - 1) for start, end in spans if end > cut + 1]),
    )


def _without(text: str, spans: Iterable[Span]) -> str:
    parts, at = [], 0
    for start, end in spans:
        if start >= at:
            parts += [text[at:start], "***"]
        at = max(at, end)
    return "".join(parts) + text[at:]


# -- the forms of a secret ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Forms:
    """What is searched for: *exact* in the text itself, the others in what it is reduced to."""

    exact: re.Pattern[str]
    letters: tuple[str, ...]
    encoded: tuple[str, ...]  # in base64
    octets: tuple[str, ...]  # each character is a byte


@functools.lru_cache(maxsize=64)
def _forms(secret: str) -> _Forms:
    octets = secret.encode("utf-8", "surrogatepass")
    normal = [unicodedata.normalize(form, secret) for form in ("NFC", "NFD")]
    # UTF-8 taken for Latin-1, and Latin-1 taken for UTF-8.
    mistaken = [octets.decode("latin-1"), re.sub(r"[^\x00-\x7f]", "\N{REPLACEMENT CHARACTER}", secret)]
    texts = dict.fromkeys([secret, *normal, *mistaken])
    exact = {form for text in texts for form in (text, json.dumps(text)[1:-1], repr(text)[1:-1], shlex.quote(text))}
    exact |= {urllib.parse.quote(octets, safe=""), urllib.parse.quote(octets), urllib.parse.quote_plus(octets)}
    exact |= {html.escape(secret), secret.replace("/", "\\/"), octets.hex()}
    letters = dict.fromkeys(each for text in texts for each in (_reduced(text), "".join(_letters(text, _ESCAPE).text)))
    as_shown = "".join(_as_shown(secret).text)
    if len(as_shown) >= LOOKED_FOR:
        letters[as_shown] = None
    bytes_ = [octets, *(secret.encode(name, "surrogatepass") for name in ("utf-16-le", "utf-16-be"))]
    bytes_ += [normal[1].encode("utf-8", "surrogatepass"), secret.encode("latin-1", "ignore")]
    enough = [each for each in dict.fromkeys(bytes_) if len(each) >= _SHORTEST]
    return _Forms(
        exact=re.compile("|".join(map(re.escape, sorted(exact, key=len, reverse=True))), re.IGNORECASE),
        letters=tuple(each for each in letters if len(each) >= _SHORTEST),
        encoded=tuple(form for each in enough for form in _base64(each)),
        octets=tuple(each.decode("latin-1") for each in enough),
    )


def _base64(octets: bytes) -> Iterator[str]:
    """Yield base64 of a text with the secret at each of the three alignments: the digits that depend only on it."""
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + octets).decode()
        first, last = (0, 2, 3)[offset], (offset + len(octets)) * 8 // 6
        if last - first >= 6:
            yield whole[first:last]


def _reduced(text: str) -> str:
    return "".join(map(_folded, filter(_is_kept, text)))


def _is_kept(character: str) -> bool:
    """Return whether *character* tells apart: it is seen, and no quotation mark or what joins the parts of a value."""
    if character in "\\'\"`,+>|#[]{} " or character in BLANKS:
        return False
    # The parts of a character that are not put together yet count like it.
    return character.isprintable() or "\ud800" <= character <= "\udfff"


def _folded(character: str) -> str:
    """Return *character* without the difference of large and small, and an accent apart from its letter."""
    return character.lower() if character.isascii() else unicodedata.normalize("NFD", character.casefold())


def _unit(found: re.Match[str]) -> str:
    """Return what an escape stands for: a character, the half of a pair, or a byte. Empty if it is none."""
    kind = found.lastgroup
    if kind is None:
        return ""
    if kind == "name":
        named = html.unescape(f"&{found['name']};")
        return named if len(named) == 1 else found[0]
    if kind == "control":
        return {"e": "\x1b", "n": "\n", "r": "\n"}.get(found[kind].lower(), " ")
    value = int(found[kind], _BASES[kind])
    if kind in _OF_BYTES and value > 127:
        return chr(0xDC00 + value)
    return chr(value) if value < 0x110000 else ""


# -- what a text is reduced to -----------------------------------------------------------------------------------------


@dataclass
class _View:
    """A reduced text, and for each of its characters the span of the original that it stands for."""

    text: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add(self, characters: str, start: int, end: int) -> None:
        """Add *characters*, which all stand for the same span."""
        for character in characters:
            self.text.append(character)
            self.spans.append((start, end))

    def find(self, wanted: Iterable[str]) -> Iterator[Span]:
        """Yield the span of each occurrence of one of the texts *wanted*."""
        whole = "".join(self.text)
        for form in wanted:
            at = whole.find(form)
            while at >= 0:
                yield self.spans[at][0], self.spans[at + len(form) - 1][1]
                at = whole.find(form, at + len(form))

    def find_begun(self, wanted: Iterable[str], marks: Iterable[int]) -> Iterator[Span]:
        """Yield the span of each beginning of one of the texts *wanted* that ends where a mark stands."""
        whole, starts = "".join(self.text), [start for start, _ in self.spans]
        for mark in marks:
            end = bisect_right(starts, mark - 1)
            before = whole[max(0, end - 400) : end]
            for form in wanted:
                longest = min(len(form), len(before))
                for length in range(longest, _SHORTEST - 1, -1):
                    if before.endswith(form[:length]):
                        yield self.spans[end - length][0], self.spans[end - 1][1]
                        break


@dataclass(frozen=True)
class _Line:
    """A line with numbers: at most how many bytes they stand for, and the digits of each with its span."""

    most: int
    numbers: list[tuple[str, int, int]]


def _found(text: str, forms: _Forms) -> Iterator[Span]:
    yield from (found.span() for found in forms.exact.finditer(text))
    marks = [found.start() for found in itertools.islice(_LEFT_OUT.finditer(text), _MARKS)]
    for pattern in _READINGS:
        view = _letters(text, pattern)
        yield from view.find(forms.letters)
        if pattern is _ESCAPE:
            yield from view.find_begun(forms.letters, marks)
    yield from _as_shown(text).find(forms.letters)
    yield from _read(text, _ESCAPE, _is_base64, _standard).find(forms.encoded)
    hexadecimal = [form.encode("latin-1").hex() for form in forms.octets]
    for pattern in (_OFFSET, _ESCAPE):
        yield from _read(text, pattern, str.isalnum, str.casefold).find(hexadecimal)
    lines = list(_numbers(text))
    for read in _READERS:
        view = _octets(lines, read)
        yield from view.find(forms.octets)
        yield from view.find_begun(forms.octets, marks)


def _letters(text: str, special: re.Pattern[str]) -> _View:
    """Return what tells apart in *text*, with one spelling of each character; escapes that *special* finds are read."""
    return _joined(_read(text, special, _is_kept, _folded))


def _as_shown(text: str) -> _View:
    """Return what tells apart in *text* once its escapes are read and a terminal has followed its control sequences."""
    view = _read(text, _CONTROL, lambda character: True, str)
    whole, shown, at = "".join(view.text), _View(), 0
    for found in itertools.chain(ANSI.finditer(whole), [None]):
        for index in range(at, found.start() if found else len(whole)):
            if _is_kept(whole[index]):
                shown.add(_folded(whole[index]), *view.spans[index])
        at = found.end() if found else at
    return _joined(shown)


def _joined(view: _View) -> _View:
    """Return *view* with what together is one character put together."""
    whole, letters, at = "".join(view.text), _View(), 0
    for found in itertools.chain(_PARTS.finditer(whole), [None]):
        end = found.start() if found else len(whole)
        letters.text += view.text[at:end]
        letters.spans += view.spans[at:end]
        if found is not None:
            at = found.end()
            for character in filter(_is_kept, _whole(found[0])):
                letters.add(_folded(character), view.spans[end][0], view.spans[at - 1][1])
    return letters


def _whole(parts: str) -> str:
    """Return the character that *parts* are the halves or bytes of; bytes that are not UTF-8 as Latin-1 has them."""
    if parts[0] < "\udc00":
        return parts.encode("utf-16", "surrogatepass").decode("utf-16")
    octets = bytes(ord(part) - 0xDC00 for part in parts)
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def _read(text: str, special: re.Pattern[str], kept: Callable[[str], bool], form: Callable[[str], str]) -> _View:
    """Return the *kept* characters of *text*, as *form* returns them; escapes that *special* finds are read."""
    view, at = _View(), 0
    for found in itertools.chain(special.finditer(text), [None]):
        end = found.start() if found else len(text)
        for index in range(at, end):
            if kept(text[index]):
                view.add(form(text[index]), index, index + 1)
        if found is not None:
            character = _unit(found)
            if character and kept(character):
                view.add(form(character), found.start(), found.end())
            at = found.end()
    return view


def _is_base64(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character in "+/-_")


def _standard(character: str) -> str:
    return {"-": "+", "_": "/"}.get(character, character)


def _numbers(text: str) -> Iterator[_Line]:
    """Yield each line of *text* that shows numbers. A line of a dump has an offset before them or a column after."""
    start = 0
    for line in text.splitlines(keepends=True):
        offset = _LINE_OFFSET.match(line)
        begin = offset.end() if offset else 0
        column = _COLUMN.search(line, begin)
        dumped = bool(offset or column)
        keys = {found.start() for found in _KEY_OF_NUMBER.finditer(line)}
        numbers = []
        for found in _NUMBER.finditer(line, begin, column.start() if column else len(line)):
            if found.start() not in keys:
                # What a dump shows beside the numbers goes with them.
                end = len(line.rstrip("\r\n")) if dumped else found.end()
                numbers.append((found[1], start + found.start(), start + end))
        if numbers:
            yield _Line(_DUMPED if dumped else len(line), numbers)
        start += len(line)


def _octets(lines: Iterable[_Line], read: "_Reader") -> _View:
    """Return the bytes that *lines* show as numbers of the form that *read* knows, each as one character."""
    view = _View()
    for line in lines:
        left = line.most
        for digits, start, end in line.numbers:
            values = read(digits)
            if values and left >= len(values):
                view.add(values, start, end)
                left -= len(values)
    return view


_KEY_OF_NUMBER = re.compile(r"""(?<![0-9a-z])[0-9]{1,6}(?=["']?[ \t]{0,4}(?::|=>))""", re.IGNORECASE)
_Reader = Callable[[str], str]


def _decimal(digits: str) -> str:
    return chr(int(digits)) if len(digits) <= 3 and digits.isdecimal() and int(digits) < 256 else ""


def _octal(digits: str) -> str:
    return chr(int(digits, 8)) if len(digits) == 3 and digits[0] in "0123" and set(digits) <= set("01234567") else ""


def _binary(digits: str) -> str:
    return chr(int(digits, 2)) if len(digits) == 8 and set(digits) <= set("01") else ""


def _hexadecimal(digits: str) -> str:
    return bytes.fromhex(digits).decode("latin-1") if len(digits) % 2 == 0 else ""


def _swapped(digits: str) -> str:
    """Return the bytes of a number of 16 bits as small machines store it, as `od -x` prints it."""
    return _hexadecimal(digits[2:] + digits[:2]) if len(digits) == 4 else ""


_READERS = (_decimal, _hexadecimal, _swapped, _octal, _binary)
