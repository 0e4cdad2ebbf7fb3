"""`freshness` in fleet.yaml: how old the newest backup of a node may be."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema

from a0backup.fleet.fields import Between, Strict

OFF = "off"


@dataclass(frozen=True)
class BetweenOrOff(Between):
    """Marks a float as a duration with bounds, or None, which is written `off`."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [super().__get_pydantic_json_schema__(schema, handler), {"const": OFF}]}

    def _read(self, value: object, info: ValidationInfo) -> float | None:  # type: ignore[override]  # None is `off`
        if value == OFF:
            return None
        try:
            return super()._read(value, info)
        except ValueError as error:
            raise ValueError(f"{error}; or off") from None


class Freshness(Strict):
    """How old the newest backup of a node may be, for `a0backup status` and the deployment `watch-freshness`."""

    max_age: Annotated[float | None, BetweenOrOff("1s", "3650d")] = Field(
        default="26h",  # type: ignore[assignment]  # text, which the JSON Schema shows as it is written
        description="The maximum age of the newest backup of each kind, from its start: the time between two nights, "
        "plus what a backup takes. Also how long a place of `copies` may lack an artifact. `off`: no age is too old.",
    )
