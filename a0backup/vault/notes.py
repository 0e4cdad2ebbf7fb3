"""What all records beside or about an artifact have in common: a schema, and hostile or unreadable ones are none."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Note(BaseModel):
    """A record about an artifact, in JSON (schema 1). What is read may come from a copy, which anybody may write."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = Field(default=1, alias="schema")

    @classmethod
    def parsed(cls, content: bytes) -> Self | None:
        """Return the record in *content*; None if it cannot be read as one."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return None

    def to_file(self) -> bytes:
        """Return the content of a file that holds this record alone."""
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"
