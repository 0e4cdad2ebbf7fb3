"""The deployments of prefect.yaml, with the keys supported here."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ScriptError
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from a0backup.access import others_can_replace, others_can_write
from a0backup.errors import EngineError

_HERE = Path(__file__).resolve().parent


class _Strict(BaseModel):
    # Unsupported keys are rejected, never ignored: an unintended schedule is worse than none.
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkPool(_Strict):
    """Where the runs of a deployment go, and the variables that their jobs get."""

    name: str
    job_variables: dict[str, Any] = {}


class Schedule(CronSchedule):
    """When a deployment runs by itself; never while the schedule is not *active*."""

    timezone: str = Field(min_length=1)
    day_or: Literal[True] = True
    active: bool = True


class RunsAtOnce(_Strict):
    """How many runs of a deployment may run at once, and what happens to one more."""

    limit: int = Field(ge=1)
    collision_strategy: ConcurrencyLimitStrategy


class Entry(_Strict):
    """A deployment in prefect.yaml, with those of Prefect's keys that are supported here."""

    name: str
    description: str
    entrypoint: str
    tags: list[str]
    parameters: dict[str, Any]
    enforce_parameter_schema: bool
    work_pool: WorkPool
    schedules: list[Schedule] = []
    concurrency_limit: RunsAtOnce | None = None

    @field_validator("entrypoint")
    @classmethod
    def _leads_to_a_flow(cls, entrypoint: str) -> str:
        try:
            flow = import_object(entrypoint)
        except (ImportError, AttributeError, TypeError, ValueError, SyntaxError, ScriptError) as error:
            raise ValueError(f"{entrypoint} cannot be loaded: {type(error).__name__}: {error}") from None
        if not isinstance(flow, Flow):
            raise ValueError(f"{entrypoint} is not a flow")
        return entrypoint

    @field_validator("parameters")
    @classmethod
    def _are_the_flows(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "entrypoint" in info.data:  # otherwise the entrypoint is the error
            known = parameter_schema(import_object(info.data["entrypoint"])).properties
            if unknown := parameters.keys() - known.keys():
                raise ValueError(f"the flow has no {', '.join(sorted(unknown))}; it takes {', '.join(known)}")
        return parameters


class _PrefectYaml(_Strict):
    name: Any = None
    prefect_version: Any = Field(None, alias="prefect-version")
    definitions: Any = None
    deployments: list[Entry] = Field(strict=True)


def prefect_yaml(folder: Path) -> Path:
    """Return the prefect.yaml to use: the one beside fleet.yaml in *folder*, else the one shipped with this package.

    Raise EngineError where neither exists, or others can write it: it names the code that runs.
    """
    candidates = (folder / "prefect.yaml", _HERE.parent / "prefect.yaml", _HERE / "prefect.yaml")
    for candidate in candidates:
        if candidate.is_file():
            if others_can_write(candidate) or others_can_replace(candidate):
                raise EngineError(
                    f"{candidate} can be written or replaced by others, and it names the code that runs",
                    "make it yours alone to write, or remove it: ours is then used",
                )
            return candidate
    raise EngineError(f"there is no prefect.yaml in {folder}", "copy the one of the repository there")


def read_deployments(path: Path) -> list[Entry]:
    """Return the deployments of prefect.yaml. Raise EngineError, naming deployment and key, where it is wrong."""
    content: object = None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = _PrefectYaml.model_validate(content).deployments
    except ValidationError as error:
        wrong = "; ".join(_in_place(content, each) for each in error.errors(include_url=False))
        raise EngineError(
            f"{path}: {wrong}", "compare it with ours; `prefect deploy --all` takes all that Prefect has"
        ) from None
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise EngineError(f"{path} cannot be used: {type(error).__name__}: {error}", "compare it with ours") from error
    names = Counter(f"{import_object(entry.entrypoint).name}/{entry.name}" for entry in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise EngineError(f"{path}: the deployment {twice[0]} is there twice", "give each a name of its own")
    return entries


def _in_place(content: Any, detail: ErrorDetails) -> str:
    """Return what is wrong, preceded by its deployment and key."""
    where, parts = list(detail["loc"]), []
    if len(where) > 1 and where[0] == "deployments":
        entry, where = content["deployments"][where[1]], where[2:]
        parts.append(f"the deployment {entry.get('name') if isinstance(entry, dict) else entry}")
    if where:
        parts.append(".".join(str(each) for each in where))
    said = {"extra_forbidden": "is not known here", "missing": "is missing"}.get(detail["type"], detail["msg"])
    return ": ".join([*parts, said.removeprefix("Value error, ")])
