"""Text for people: sizes, durations, and text from nodes, which is hostile."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 500


def human_size(size: int) -> str:
    """Return a number of bytes as readable text, in powers of 1000."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if round(amount, 1) < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """Return a duration as `0.4 s`, `12 s`, `2 min 05 s`, `1 h 02 min` or, from two days on, `6 d 03 h`."""
    if round(seconds, 1) < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if seconds >= 2 * 86400:
        hours = round(seconds / 3600)
        return f"{hours // 24} d {hours % 24:02} h"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def plain(text: str) -> str:
    """Return the text on one line, truncated, without control, bidirectional, invisible or unpaired characters."""
    if len(text) <= _LONGEST and text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # almost all texts, and 100,000 of them in a large vault
    # Truncate before and after: this bounds the work, and removing characters never makes the text longer.
    shown = "".join(
        " " if character.isspace() else character
        for character in text[: 4 * _LONGEST]
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    shown = " ".join(shown.split())
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def escaped(text: str) -> str:
    """Return the plain text, escaped for Markdown: it cannot become a link, a tag or a table cell."""
    # Prefect's page decodes only these three entities; everything else gets a backslash.
    shown = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_{}\[\]|~!#$@])", r"\\\1", shown)
    # Some renderers turn these into links without any markup.
    shown = re.sub(r"(?i)(www)\.", r"\1\\.", shown.replace("://", "\\://"))
    # These would start a list or a heading at the beginning of a paragraph.
    return re.sub(r"^(\d{0,9})([-+=.)])", r"\1\\\2", shown)


def cell(text: str) -> str:
    """Return the plain text for a cell of Prefect's table artifact.

    One of Prefect's two pages shows a cell as Markdown, the other literally: only what Markdown would change is
    escaped.
    """
    shown = plain(text)
    harmless = re.fullmatch(r"(?!\d+[.)]( |$))([A-Za-z0-9][A-Za-z0-9 ,;:()/%'+=?._-]*)?", shown)
    mark = re.search(r"(?i)://|www\.|(?<![a-z0-9])_|_(?![a-z0-9])", shown)
    return shown if harmless and not mark else escaped(shown)


def code(text: str) -> str:
    # Ids and checksums have only these characters. Nothing else goes into a code span, where escapes do not work.
    shown = plain(text)
    return f"`{shown}`" if re.fullmatch(r"[A-Za-z0-9._/-]+", shown) else escaped(shown)


def emphasised(text: str, ok: bool) -> str:
    return escaped(text) if ok else f"**{escaped(text)}**"


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def markdown_page(
    head: str, fleet: str, table: list[str], paragraphs: list[str], notes: list[str], kept: Sequence[str] = ()
) -> str:
    parts = [f"**{head}**, fleet {escaped(fleet)}", "\n".join(table)]
    parts += paragraphs
    parts += ["\n".join(notes)] if notes else []
    parts += kept
    return "\n\n".join(parts) + "\n"


def counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def documents_in_words(number: int) -> str:
    return "1 document" if number == 1 else f"{number:,} documents"


def size_in_words(size: int | None) -> str:
    return "" if size is None else human_size(size)
