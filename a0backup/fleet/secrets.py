"""Where a secret comes from: never from fleet.yaml itself."""

from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from a0backup.fleet.fields import BLOCK_NAME, BlockName, FilePath, Strict, matching

ENVIRONMENT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"


class SecretSource(Strict):
    """Where a secret comes from: exactly one source. *what* it is, and the *section* that names the source."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    what: ClassVar[str]
    section: ClassVar[str]
    for_a0cli: ClassVar[bool]  # whether a0cli takes it as an argument, which not every text can be

    secret_block: BlockName | None = Field(
        default=None,
        max_length=255,
        description="The name of the Prefect Secret block that holds it.",
        json_schema_extra={"pattern": BLOCK_NAME},
    )
    env: Annotated[str, matching(ENVIRONMENT_NAME, "write an environment variable's name")] | None = Field(
        default=None,
        max_length=255,
        description="The name of the environment variable that holds it.",
        json_schema_extra={"pattern": ENVIRONMENT_NAME},
    )
    file: FilePath | None = Field(default=None, description="The file that holds it, relative to the fleet file.")

    @classmethod
    def _sources(cls) -> str:
        *others, last = sorted(cls.model_fields, key=["sealed_to", "secret_block", "env", "file"].index)
        return f"{', '.join(others)} or {last}"

    @model_validator(mode="before")
    @classmethod
    def _no_secret_itself(cls, given: object) -> object:
        if isinstance(given, str | int):
            text = (
                "never write the {what} itself into this file: write {sources} below `{section}:`, and change this"
                " {what} if the file was shared"
            )
            raise PydanticCustomError(
                "literal_password", text, {"what": cls.what, "sources": cls._sources(), "section": cls.section}
            )
        return given

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(f"name exactly one of {self._sources()}")
        return self
