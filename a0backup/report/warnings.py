"""The warnings of a run, each once."""

from collections.abc import Collection, Iterable, Sequence

from pydantic.dataclasses import dataclass

from a0backup.report.words import escaped, plain


@dataclass(frozen=True)
class RunWarning:
    """What a run can go on with, and should be put right. *node* is empty where it is about the fleet."""

    text: str
    node: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.text}" if self.node else self.text


def warning_lines(warnings: Iterable[RunWarning], nodes: Sequence[str] = ()) -> list[str]:
    """Return a line for each; one that is about several of *nodes* comes once."""
    return [": ".join(("warning", *map(plain, parts))) for parts in _merged(warnings, nodes)]


def warning_paragraphs(warnings: Iterable[RunWarning], nodes: Sequence[str]) -> list[str]:
    """Return the same in Markdown."""
    return [": ".join(("**warning**", *map(escaped, parts))) for parts in _merged(warnings, nodes)]


def _merged(warnings: Iterable[RunWarning], nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each warning once: of which *nodes* it is where it is of any, and what it says.

    Two texts, each cut by itself: many names must not cut off what is said of them.
    """
    known = dict.fromkeys(nodes)
    about: dict[str, dict[str, None]] = {}
    for warning in warnings:
        names = about.setdefault(warning.text, {})
        if warning.node:
            names[warning.node] = None
    return [(_names(named, len(known)), text) if named else (text,) for text, named in about.items()]


def _names(nodes: Collection[str], of: int) -> str:
    return "every node" if len(nodes) == of > 1 else ", ".join(nodes)
