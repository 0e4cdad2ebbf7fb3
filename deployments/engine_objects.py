"""What the engine holds for the pipeline: work pool, limits, Secret block, deployments, automations.

Each object knows its wanted settings, reads the current ones from the server, and can apply the wanted ones:

    things = wanted(fleet, notify=None, secrets={}, pool_type=None)
    async with get_client() as client:
        changes = [await thing.compare(client) for thing in things]
        for thing in things: await thing.put(client)
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object
from pydantic import SecretStr

from a0backup.errors import EngineError
from a0backup.fleet.models import Fleet
from deployments.automations import POOL, Notify, automations
from deployments.prefect_yaml import Entry, prefect_yaml, read_deployments
from tasks.slots import ALL_NODES, limit_of

Verdict = Literal["there", "to make", "to change"]


_POOLS = Path(__file__).with_name("pools")


@dataclass(frozen=True)
class Change:
    """An object and what to do about it; each of *details* names a setting, its current and its new value."""

    kind: str
    name: str
    verdict: Verdict
    details: tuple[str, ...] = ()


class EngineObject(ABC):
    """Something that the engine must hold."""

    kind: str
    name: str

    @abstractmethod
    def wanted(self) -> dict[str, Any]:
        """Return the wanted settings."""

    @abstractmethod
    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        """Return the same settings as they are on the server, or None where it has no such object."""

    @abstractmethod
    async def put(self, client: PrefectClient) -> None:
        """Create the object, or change it to the wanted settings."""

    async def compare(self, client: PrefectClient) -> Change:
        """Return what has to be done. Raise EngineError where it must not be done."""
        current, wanted = await self.current(client), self.wanted()
        if current is None:
            return Change(self.kind, self.name, "to make")
        details = tuple(
            f"{key}: {_short(current.get(key))} -> {_short(value)}"
            for key, value in wanted.items()
            if current.get(key) != value
        )
        return Change(self.kind, self.name, "to change" if details else "there", details)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return text if len(text) <= 100 else f"{text[:80]} … ({len(text)} characters)"


@dataclass
class Pool(EngineObject):
    """The work pool, of *type* process, docker or kubernetes; None accepts an existing type and defaults to process."""

    type: str | None
    kind = "work pool"
    name: str = POOL

    def wanted(self) -> dict[str, Any]:
        return {"type": self.type} if self.type else {}

    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            pool = await client.read_work_pool(self.name)
        except ObjectNotFound:
            return None
        if self.type and pool.type != self.type:
            raise EngineError(
                f"the work pool {self.name} is of the type {pool.type}, and a pool's type cannot be changed",
                f"`prefect work-pool delete {self.name}` removes it and what waits in it, if {self.type} is right",
            )
        return {"type": pool.type}

    async def put(self, client: PrefectClient) -> None:
        of = self.type or "process"
        description = "Runs a0backup's flows: the workers of this pool reach the nodes and the vault."
        await client.create_work_pool(
            WorkPoolCreate(name=self.name, type=of, description=description, base_job_template=_job_template(of))
        )


def _job_template(of: str) -> dict[str, Any]:
    if of == "process":
        from prefect.workers.process import ProcessWorker

        return ProcessWorker.get_default_base_job_template()
    template: dict[str, Any] = json.loads((_POOLS / f"{of}.json").read_text(encoding="utf-8"))
    return template


@dataclass
class Limit(EngineObject):
    """A concurrency limit, which runs use for display and queueing."""

    name: str
    limit: int
    kind = "limit"

    def wanted(self) -> dict[str, Any]:
        return {"limit": self.limit}

    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            found = await client.read_global_concurrency_limit_by_name(self.name)
        except ObjectNotFound:
            return None
        return {"limit": found.limit}

    async def put(self, client: PrefectClient) -> None:
        await client.upsert_global_concurrency_limit_by_name(self.name, self.limit)


@dataclass
class SecretBlock(EngineObject):
    """A block with a secret, *what* it is; with *value* None an existing block is left alone."""

    name: str
    value: str | None = field(repr=False)
    what: str
    kind = "secret block"

    def wanted(self) -> dict[str, Any]:
        return {} if self.value is None else {"value": "the one given"}

    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            block: Secret[Any] = await Secret.aload(self.name, client=client)
        except ValueError:  # Prefect raises this for a missing block
            return None
        # Not get(), which parses a text as JSON where it can.
        return {"value": "the one given" if block.value.get_secret_value() == self.value else "another"}

    async def put(self, client: PrefectClient) -> None:
        assert self.value is not None, "a value is given before it is registered"
        block: Secret[str] = Secret(value=SecretStr(self.value))
        await block.asave(self.name, overwrite=True, client=client)


@dataclass
class Deployment(EngineObject):
    """A deployment of prefect.yaml for the file *fleet*; taken over from a fleet in another folder if it *may_move*."""

    entry: Entry
    fleet: Path
    may_move: bool = False
    kind = "deployment"
    name: str = ""

    def __post_init__(self) -> None:
        self.flow: Flow[..., Any] = import_object(self.entry.entrypoint)
        self.name = f"{self.flow.name}/{self.entry.name}"
        self._off = {_in_words(each) for each in self.entry.schedules if not each.active}

    def wanted(self) -> dict[str, Any]:
        entry = self.entry
        limit = entry.concurrency_limit
        return {
            "entrypoint": entry.entrypoint,
            "description": entry.description,
            "tags": sorted(entry.tags),
            "parameters": {**entry.parameters, "fleet": str(self.fleet)},
            "form": {k: v for k, v in parameter_schema(self.flow).model_dump_for_openapi().items() if v != {}},
            "form is enforced": entry.enforce_parameter_schema,
            "work pool": entry.work_pool.name,
            "job variables": entry.work_pool.job_variables,
            "schedules": sorted(self._shown(each, each.active) for each in entry.schedules),
            "limit": {"limit": limit.limit, "strategy": limit.collision_strategy} if limit else None,
            "folder": _FOLDER_OF_RUNS,
        }

    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            found = await client.read_deployment_by_name(self.name)
        except ObjectNotFound:
            return None
        limit, options = found.global_concurrency_limit, found.concurrency_options
        folder = _folder_of(found.pull_steps)
        there = {
            "entrypoint": found.entrypoint,
            "description": found.description,
            "tags": sorted(found.tags),
            "parameters": found.parameters,
            "form": found.parameter_openapi_schema,
            "form is enforced": found.enforce_parameter_schema,
            "work pool": found.work_pool_name,
            "job variables": found.job_variables,
            "schedules": sorted(self._shown(each.schedule, each.active) for each in found.schedules),
            "limit": {"limit": limit.limit, "strategy": options.collision_strategy} if limit and options else None,
            "folder": folder,
        }
        # `prefect deploy` registers a path relative to the folder of prefect.yaml.
        of = Path(folder or "", str(found.parameters.get("fleet", ""))).parent
        if not self.may_move and of.is_absolute() and of != self.fleet.parent:
            raise EngineError(
                f"the deployment {self.name} is registered for the fleet in {of}, not in {self.fleet.parent}",
                f"a server holds one fleet. `prefect deployment delete {self.name}` gives that one up here",
            )
        return there

    async def put(self, client: PrefectClient) -> None:
        wanted = self.wanted()
        paused = await self._paused(client)
        limit = wanted["limit"]
        await client.create_deployment(
            flow_id=await client.create_flow(self.flow),
            name=self.entry.name,
            entrypoint=wanted["entrypoint"],
            description=wanted["description"],
            tags=wanted["tags"],
            parameters=wanted["parameters"],
            parameter_openapi_schema=wanted["form"],
            enforce_parameter_schema=wanted["form is enforced"],
            work_pool_name=wanted["work pool"],
            job_variables=wanted["job variables"],
            schedules=[
                DeploymentScheduleCreate(
                    schedule=CronSchedule(cron=each.cron, timezone=each.timezone),
                    # Keep a pause set in the UI: the person who set it had a reason.
                    active=each.active and _in_words(each) not in paused,
                )
                for each in self.entry.schedules
            ],
            concurrency_limit=limit["limit"] if limit else None,
            concurrency_options=ConcurrencyOptions(collision_strategy=limit["strategy"]) if limit else None,
            pull_steps=[{_SET_FOLDER: {"directory": wanted["folder"]}}],
        )

    async def _paused(self, client: PrefectClient) -> set[str]:
        try:
            found = await client.read_deployment_by_name(self.name)
        except ObjectNotFound:
            return set()
        return {_in_words(each.schedule) for each in found.schedules if not each.active}

    def _shown(self, schedule: object, active: bool) -> str:
        """Return the schedule in words, with "off" where prefect.yaml says so, but not where a person paused it."""
        words = _in_words(schedule)
        return words if active or words not in self._off else f"{words}, off"


_SET_FOLDER = "prefect.deployments.steps.set_working_directory"
# Python and Prefect take code and settings from the folder in which a run starts, before the run judges its fleet file.
# Only root can write this one, and every worker has it.
_FOLDER_OF_RUNS = "/"


def _in_words(schedule: object) -> str:
    return f"{schedule.cron} {schedule.timezone}" if isinstance(schedule, CronSchedule) else str(schedule)


def _folder_of(pull_steps: list[dict[str, Any]] | None) -> str | None:
    for step in pull_steps or []:
        if isinstance(directory := step.get(_SET_FOLDER, {}).get("directory"), str):
            return directory
    return None


@dataclass
class Automation(EngineObject):
    """An automation, as Prefect's own model."""

    core: AutomationCore
    kind = "automation"
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.core.name

    def wanted(self) -> dict[str, Any]:
        return _settings(self.core)

    async def current(self, client: PrefectClient) -> dict[str, Any] | None:
        found = await client.read_automations_by_name(self.name)
        return _settings(found[0]) if found else None

    async def put(self, client: PrefectClient) -> None:
        found = await client.read_automations_by_name(self.name)
        if found:
            # The operator decides whether it is enabled.
            await client.update_automation(found[0].id, self.core.model_copy(update={"enabled": found[0].enabled}))
        else:
            await client.create_automation(self.core)


def _settings(core: AutomationCore) -> dict[str, Any]:
    def plain(value: object) -> object:
        # Sets come in any order, and the server adds ids to triggers.
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key != "id"}
        if isinstance(value, list):
            return sorted((plain(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
        return value

    dumped = core.model_dump(mode="json", include={"description", "trigger", "actions"})
    return {key: plain(value) for key, value in dumped.items()}


def wanted(
    fleet: Fleet,
    *,
    notify: Notify | None = None,
    secrets: Mapping[str, str] | None = None,
    pool_type: str | None = None,
    may_move: bool = False,
) -> list[EngineObject]:
    """Return all objects that the engine must hold for *fleet*, in the order of their creation.

    Without *notify* the automations that notify of failed and late runs are left as they are.
    Deployments of a fleet in another folder are taken over if they *may_move*. Raise EngineError where
    prefect.yaml is wrong.
    """
    things: list[EngineObject] = [Pool(pool_type), Limit(ALL_NODES, fleet.max_parallel)]
    things += [Limit(limit_of(node.name), 1) for node in fleet.nodes]
    things += [
        SecretBlock(block, (secrets or {}).get(block), f"the {source.what}")
        for block, source in fleet.secret_blocks.items()
    ]
    of_places = {copy.secret_block: copy.name for copy in reversed(fleet.copies) if copy.secret_block is not None}
    things += [
        SecretBlock(block, (secrets or {}).get(block), f"the credentials of the place {place}")
        for block, place in of_places.items()
    ]
    path = fleet.path.absolute()
    things += [Deployment(entry, path, may_move) for entry in read_deployments(prefect_yaml(path.parent))]
    things += [Automation(core) for core in automations(notify)]
    return things
