"""The warnings of a run, without duplicates."""

from collections.abc import Collection, Iterable, Sequence

from pydantic.dataclasses import dataclass

from a0backup.report.words import escaped, plain


@dataclass(frozen=True)
class RunWarning:
    """Something that does not stop the run but should be fixed. *node* is empty if it concerns the fleet.

    *of_place*: a place of copies fails. Even a quiet command prints that: copies are missing from now on.
    """

    text: str
    node: str = ""
    of_place: bool = False

    def __str__(self) -> str:
        return f"{self.node}: {self.text}" if self.node else self.text


def warning_lines(warnings: Iterable[RunWarning], nodes: Sequence[str] = ()) -> list[str]:
    """Return a line for each warning; one that concerns several of *nodes* appears once."""
    return [": ".join(("warning", *map(plain, parts))) for parts in _merged(warnings, nodes)]


def warning_paragraphs(warnings: Iterable[RunWarning], nodes: Sequence[str]) -> list[str]:
    """Return the same as Markdown."""
    return [": ".join(("**warning**", *map(escaped, parts))) for parts in _merged(warnings, nodes)]


def warnings_json(warnings: Iterable[RunWarning]) -> list[dict[str, object]]:
    """Return the warnings as JSON values, each text once: `nodes` is empty for one about the fleet."""
    about: dict[str, list[str]] = {}
    for warning in warnings:
        about.setdefault(warning.text, []).extend([plain(warning.node)] if warning.node else [])
    return [{"nodes": nodes, "text": plain(text)} for text, nodes in about.items()]


def _merged(warnings: Iterable[RunWarning], nodes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each warning once: the names of its nodes, if it concerns any of *nodes*, and its text.

    These are two texts, each cut separately: a long list of names must not cut off the warning.
    """
    known = dict.fromkeys(nodes)
    about: dict[str, dict[str, None]] = {}
    for warning in warnings:
        names = about.setdefault(warning.text, {})
        if warning.node:
            names[warning.node] = None
    return [(_names(named, known), text) if named else (text,) for text, named in about.items()]


def _names(nodes: Collection[str], known: Collection[str]) -> str:
    return "every node" if len(nodes) > 1 and set(nodes) == set(known) else ", ".join(nodes)
