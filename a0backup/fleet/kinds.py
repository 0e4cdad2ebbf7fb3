"""The kinds of node backup that fleet.yaml can name, and the fields of an export."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import (
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from a0backup.fleet.fields import Place, quoted_value, suggestion

# The FIELDS of `user-export PASSWORD FIELDS` (vendor's page on the CLI).
EXPORT_FIELDS: Final = (
    *("_id", "email", "email_verified", "phone_number", "phone_verified"),
    *("name", "user_id", "lastLogin", "updated_at", "__tenant"),
)


class Kind(str):
    """The name of a kind of node backup; *fields* are what its start takes after the password."""

    fields: tuple[str, ...] = ()

    @classmethod
    def read(cls, entry: object) -> "Kind":
        """Return the kind that an entry of `kinds` names. Raise ValueError, which says what to write."""
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, Mapping) and list(entry) == ["user-export"]:
            kind = cls("user-export")
            kind.fields = _export_fields(entry["user-export"])
            return kind
        if entry == "user-export":
            raise ValueError("name the fields to export: `user-export: [_id, email]`")
        if isinstance(entry, Mapping) and set(entry) <= {"backup", "backup-sensitive", "user-export"}:
            raise ValueError("only user-export takes fields: write one kind for each entry")
        if isinstance(entry, str) and entry in ("backup", "backup-sensitive"):
            return cls(entry)
        raise ValueError("write backup, backup-sensitive or `user-export: [_id, email]`")

    def entry(self) -> str | dict[str, list[str]]:
        """Return the entry of `kinds` that names this kind."""
        return {str(self): list(self.fields)} if self.fields else str(self)


def _export_fields(given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise within(("user-export",), "write a list of at least one field: [_id, email]")
    for index, field in enumerate(given):
        if not isinstance(field, str) or field not in EXPORT_FIELDS:
            shown = f" {quoted_value(field)}" if isinstance(field, str | int) else ""
            raise within(("user-export", index), f"unknown field{shown}{suggestion(str(field), EXPORT_FIELDS)}")
        if field in given[:index]:
            raise within(("user-export", index), f"{quoted_value(field)} is written twice: write each field once")
    return tuple(given)


def within(place: Place, remedy: str) -> PydanticCustomError:
    """Return the error of a value at *place* within the validated value."""
    return PydanticCustomError("within", "{remedy}", {"remedy": remedy, "place": place})


_KIND_SCHEMA: Final = {
    "anyOf": [
        {"type": "string", "enum": ["backup", "backup-sensitive"]},
        {
            "type": "object",
            "properties": {
                "user-export": {
                    "type": "array",
                    "items": {"type": "string", "enum": list(EXPORT_FIELDS)},
                    "minItems": 1,
                    "uniqueItems": True,
                }
            },
            "required": ["user-export"],
            "additionalProperties": False,
        },
    ]
}


KindEntry = Annotated[
    Kind,
    PlainValidator(Kind.read),
    PlainSerializer(Kind.entry),
    WithJsonSchema(_KIND_SCHEMA),
]
