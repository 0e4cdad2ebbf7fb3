"""JSON as tools print it: commas may be missing (the vendor's page), keys unquoted, quotes single."""

import json
import re

Value = str | float | bool | None | list["Value"] | dict[str, "Value"]


# A string ends at its quote or at the end of the line. Matching an unclosed one as a whole keeps the work linear.
_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\]:,])|(?P<string>"(?:[^"\\\n]|\\[^\n])*\\?"?|'(?:[^'\\\n]|\\[^\n])*\\?'?)"""
    r"""|(?P<bare>[^\s{}\[\]:,"']+)|(?P<end>$))"""
)


JSON_BEGINS = re.compile(r"""\{\s*(?:["'}]|[A-Za-z_]\w*\s*:)""")
_CONSTANTS: dict[str, Value] = {"true": True, "false": False, "null": None, "undefined": None}
_DEEPEST = 16


class MalformedError(ValueError):
    """The text starts like a JSON object but does not continue like one."""


class Reader:
    """Reads one object at *position* and moves *position* past what was read, well-formed or not."""

    def __init__(self, text: str, position: int) -> None:
        self.text, self.position = text, position

    def _next(self) -> tuple[str, str]:
        found = _TOKEN.match(self.text, self.position)
        if found is None or found.lastgroup == "end":
            raise MalformedError
        self.position = found.end()
        return str(found.lastgroup), found[str(found.lastgroup)]

    def object(self, depth: int = 0) -> dict[str, Value]:
        if depth > _DEEPEST or self._next() != ("mark", "{"):
            raise MalformedError
        members: dict[str, Value] = {}
        while (token := self._next()) != ("mark", "}"):
            if token == ("mark", ","):
                continue
            if token[0] == "mark" or self._next() != ("mark", ":"):
                raise MalformedError
            key = (_string(token[1]) if token[0] == "string" else token[1]).casefold()
            value = self._value(depth + 1)
            if members.setdefault(key, value) != value:
                raise MalformedError
        return members

    def _list(self, depth: int) -> list[Value]:
        items: list[Value] = []
        while True:
            before = self.position
            token = self._next()
            if token == ("mark", "]"):
                return items
            if token != ("mark", ","):
                self.position = before
                items.append(self._value(depth + 1))

    def _value(self, depth: int) -> Value:
        before = self.position
        group, part = self._next()
        if group == "string":
            return _string(part)
        if group == "bare":
            if part in _CONSTANTS:
                return _CONSTANTS[part]
            try:
                return float(part)
            except ValueError:
                raise MalformedError from None
        if depth <= _DEEPEST and part == "[":
            return self._list(depth)
        if depth <= _DEEPEST and part == "{":
            self.position = before
            return self.object(depth)
        raise MalformedError


def _string(token: str) -> str:
    quotation, inner = token[0], token[1:-1]
    if len(token) < 2 or token[-1] != quotation:
        raise MalformedError
    if quotation == "'":
        inner = inner.replace("\\'", "'").replace('"', '\\"')
    try:
        text = json.loads(f'"{inner}"', strict=False)
    except ValueError:
        raise MalformedError from None
    # A lone surrogate can be neither printed nor written to the journal.
    return str(text).encode("utf-8", "replace").decode()
