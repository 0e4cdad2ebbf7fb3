"""What the engine holds for the pipeline: work pool, limits, Secret block, deployments, automations.

Each knows how it should be, reads how the server has it, and can make it so:

    things = wanted(fleet, notify=None, secrets={}, pool_type=None)
    async with get_client() as client:
        changes = [await thing.compare(client) for thing in things]
        for thing in things: await thing.put(client)
"""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, ScriptError
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from a0backup.errors import EngineError
from a0backup.fleet import Fleet
from tasks.slots import ALL_NODES, limit_of

POOL = "appliance"
TELL_OF_FAILED = "a0backup: tell of failed runs"
Verdict = Literal["there", "to make", "to change"]

# Of each run a person waits for; a node's run that the night started is told of by the night.
WATCHED_TAG = "a0backup"
NODE_TAG = "a0backup-node"
# Prefect's default is a heartbeat in 180 s: one that was missed, while a server restarts, is no death.
ZOMBIE_AFTER = timedelta(seconds=3 * 180)
_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")

_POOLS = Path(__file__).with_name("pools")
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Change:
    """What a thing is, and what is to be done about it: each *detail* names a setting, how it is and how it will be."""

    kind: str
    name: str
    verdict: Verdict
    details: tuple[str, ...] = ()


class Thing(ABC):
    """Something that the engine must hold."""

    kind: str
    name: str

    @abstractmethod
    def wanted(self) -> dict[str, Any]:
        """Return its settings as they should be."""

    @abstractmethod
    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
        """Return the same settings as the server has them; None where it has no such thing."""

    @abstractmethod
    async def put(self, client: PrefectClient) -> None:
        """Make it, or change it, so that it is as wanted."""

    async def compare(self, client: PrefectClient) -> Change:
        """Return what is to be done. Raise EngineError where it must not be."""
        there, wanted = await self.there(client), self.wanted()
        if there is None:
            return Change(self.kind, self.name, "to make")
        details = tuple(
            f"{key}: {_short(there.get(key))} -> {_short(value)}"
            for key, value in wanted.items()
            if there.get(key) != value
        )
        return Change(self.kind, self.name, "to change" if details else "there", details)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return text if len(text) <= 100 else f"{text[:80]} … ({len(text)} characters)"


@dataclass
class Pool(Thing):
    """The work pool; of *type* process, docker or kubernetes, None for whatever is there, else process."""

    type: str | None
    kind = "work pool"
    name: str = POOL

    def wanted(self) -> dict[str, Any]:
        return {"type": self.type} if self.type else {}

    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
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
class Limit(Thing):
    """A concurrency limit that runs show and queue at."""

    name: str
    limit: int
    kind = "limit"

    def wanted(self) -> dict[str, Any]:
        return {"limit": self.limit}

    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            found = await client.read_global_concurrency_limit_by_name(self.name)
        except ObjectNotFound:
            return None
        return {"limit": found.limit}

    async def put(self, client: PrefectClient) -> None:
        await client.upsert_global_concurrency_limit_by_name(self.name, self.limit)


@dataclass
class SecretBlock(Thing):
    """The block that holds the shared password; *value* None leaves alone what is there."""

    name: str
    value: str | None = field(repr=False)
    kind = "secret block"

    def wanted(self) -> dict[str, Any]:
        return {} if self.value is None else {"value": "the one given"}

    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            block: Secret[Any] = await Secret.aload(self.name, client=client)
        except ValueError:  # what Prefect raises where there is none
            return None
        # Not get(), which reads a text as JSON where it can.
        return {"value": "the one given" if block.value.get_secret_value() == self.value else "another"}

    async def put(self, client: PrefectClient) -> None:
        assert self.value is not None, "whoever registers has a value first"
        block: Secret[str] = Secret(value=SecretStr(self.value))
        await block.asave(self.name, overwrite=True, client=client)


class _Strict(BaseModel):
    # What is not honoured is refused, never dropped: a schedule that nobody meant is worse than none.
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkPool(_Strict):
    """Where the runs of a deployment go, and what their jobs are given."""

    name: str
    job_variables: dict[str, Any] = {}


class Schedule(CronSchedule):
    """When a deployment runs by itself; not at all while it is not *active*."""

    timezone: str = Field(min_length=1)
    day_or: Literal[True] = True
    active: bool = True


class RunsAtOnce(_Strict):
    """How many runs of a deployment may be under way, and what becomes of one more."""

    limit: int = Field(ge=1)
    collision_strategy: ConcurrencyLimitStrategy


class Entry(_Strict):
    """A deployment as prefect.yaml has it: the keys of Prefect's own that are honoured here."""

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
            raise ValueError(f"{entrypoint} is no flow")
        return entrypoint

    @field_validator("parameters")
    @classmethod
    def _are_the_flows(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "entrypoint" in info.data:  # else that is the error
            known = parameter_schema(import_object(info.data["entrypoint"])).properties
            if unknown := parameters.keys() - known.keys():
                raise ValueError(f"the flow has no {', '.join(sorted(unknown))}; it takes {', '.join(known)}")
        return parameters


class _PrefectYaml(_Strict):
    name: Any = None
    prefect_version: Any = Field(None, alias="prefect-version")
    definitions: Any = None
    deployments: list[Entry] = Field(strict=True)


@dataclass
class Deployment(Thing):
    """A deployment of prefect.yaml, for the fleet file in *folder*; taken from another one's only if it *may_move*."""

    entry: Entry
    folder: Path
    fleet_name: str
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
            "parameters": {**entry.parameters, "fleet": self.fleet_name},
            "form": {k: v for k, v in parameter_schema(self.flow).model_dump_for_openapi().items() if v != {}},
            "form is enforced": entry.enforce_parameter_schema,
            "work pool": entry.work_pool.name,
            "job variables": entry.work_pool.job_variables,
            "schedules": sorted(self._shown(each, each.active) for each in entry.schedules),
            "limit": {"limit": limit.limit, "strategy": limit.collision_strategy} if limit else None,
            "folder": str(self.folder),
        }

    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
        try:
            found = await client.read_deployment_by_name(self.name)
        except ObjectNotFound:
            return None
        limit, options = found.global_concurrency_limit, found.concurrency_options
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
            "folder": _folder_of(found.pull_steps),
        }
        if not self.may_move and there["folder"] not in (None, str(self.folder)):
            raise EngineError(
                f"the deployment {self.name} is registered for the fleet in {there['folder']}, not in {self.folder}",
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
                    # A person who paused it in the UI had a reason.
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
        """Return the schedule in words; that it is off where prefect.yaml says so, not where a person paused it."""
        words = _in_words(schedule)
        return words if active or words not in self._off else f"{words}, off"


_SET_FOLDER = "prefect.deployments.steps.set_working_directory"


def _in_words(schedule: object) -> str:
    return f"{schedule.cron} {schedule.timezone}" if isinstance(schedule, CronSchedule) else str(schedule)


def _folder_of(pull_steps: list[dict[str, Any]] | None) -> str | None:
    for step in pull_steps or []:
        if isinstance(directory := step.get(_SET_FOLDER, {}).get("directory"), str):
            return directory
    return None


@dataclass
class Automation(Thing):
    """An automation, as Prefect's own model of it."""

    core: AutomationCore
    kind = "automation"
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.core.name

    def wanted(self) -> dict[str, Any]:
        return _settings(self.core)

    async def there(self, client: PrefectClient) -> dict[str, Any] | None:
        found = await client.read_automations_by_name(self.name)
        return _settings(found[0]) if found else None

    async def put(self, client: PrefectClient) -> None:
        found = await client.read_automations_by_name(self.name)
        if found:
            # Whether it is on is for the operator to say.
            await client.update_automation(found[0].id, self.core.model_copy(update={"enabled": found[0].enabled}))
        else:
            await client.create_automation(self.core)


def _settings(core: AutomationCore) -> dict[str, Any]:
    def plain(value: object) -> object:
        # What is a set comes in any order, and the server gives triggers ids.
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key != "id"}
        if isinstance(value, list):
            return sorted((plain(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
        return value

    dumped = core.model_dump(mode="json", include={"description", "trigger", "actions"})
    return {key: plain(value) for key, value in dumped.items()}


# -- what is wanted ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notify:
    """The operator's notification block, as the address SLUG/NAME and the id of its document."""

    address: str
    document: UUID


def wanted(
    fleet: Fleet,
    *,
    notify: Notify | None = None,
    secrets: Mapping[str, str] | None = None,
    pool_type: str | None = None,
    may_move: bool = False,
) -> list[Thing]:
    """Return all that the engine must hold for *fleet*, in the order in which it is made.

    Without *notify* the automations that tell of failed and late runs are left as they are. Deployments of a fleet in
    another folder are taken over where they *may_move*. Raise EngineError where prefect.yaml is wrong.
    """
    things: list[Thing] = [Pool(pool_type), Limit(ALL_NODES, fleet.max_parallel)]
    things += [Limit(limit_of(node.name), 1) for node in fleet.nodes]
    if (block := fleet.password.secret_block) is not None:
        things.append(SecretBlock(block, (secrets or {}).get(block)))
    folder = fleet.path.absolute().parent
    entries = read_deployments(prefect_yaml(folder))
    things += [Deployment(entry, folder, fleet.path.name, may_move) for entry in entries]
    things += [Automation(core) for core in automations(notify)]
    return things


def prefect_yaml(folder: Path) -> Path:
    """Return the prefect.yaml that counts: the one beside fleet.yaml in *folder*, else the one that came with this."""
    candidates = (folder / "prefect.yaml", _HERE.parent / "prefect.yaml", _HERE / "prefect.yaml")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise EngineError(f"there is no prefect.yaml in {folder}", "copy the one of the repository there")


def read_deployments(path: Path) -> list[Entry]:
    """Return the deployments of prefect.yaml. Raise EngineError, which names deployment and key, for what is wrong."""
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
    """Return what is wrong, after the name of its deployment and the key in it."""
    where, parts = list(detail["loc"]), []
    if len(where) > 1 and where[0] == "deployments":
        entry, where = content["deployments"][where[1]], where[2:]
        parts.append(f"the deployment {entry.get('name') if isinstance(entry, dict) else entry}")
    if where:
        parts.append(".".join(str(each) for each in where))
    said = {"extra_forbidden": "is not known here", "missing": "is missing"}.get(detail["type"], detail["msg"])
    return ": ".join([*parts, said.removeprefix("Value error, ")])


def automations(notify: Notify | None) -> list[AutomationCore]:
    """Return the automations: a run whose process died is ended; with *notify*, failed and late ones are told of."""
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}"]}
    with_nodes = {**ours, "prefect.resource.id": [f"prefect.tag.{WATCHED_TAG}", f"prefect.tag.{NODE_TAG}"]}
    runs = {"prefect.resource.id": "prefect.flow-run.*"}
    ended = {f"prefect.flow-run.{name}" for name in _ENDS}
    cores = [
        AutomationCore(
            name="a0backup: end zombie runs",
            description=(
                f"A run that gives no sign for {ZOMBIE_AFTER.seconds} s, because its machine or worker died, is marked"
                " Crashed. The next run goes on where it was."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                match=runs,  # type: ignore[arg-type]  # a dict is what Prefect's own examples give
                match_related=with_nodes,  # type: ignore[arg-type]
                # A run may die before its first heartbeat, which comes with Running: the time runs from when a worker
                # takes it up.
                after={"prefect.flow-run.Pending", "prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat"} | ended,
                for_each={"prefect.resource.id"},
                threshold=1,
                within=ZOMBIE_AFTER,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    force=False,
                    message=f"No sign of its process for {ZOMBIE_AFTER.seconds} s; the next run goes on where it was.",
                )
            ],
        )
    ]
    if notify is None:
        return cores

    def told(subject: str, body: str) -> SendNotification:
        where = "\n{{ flow_run|ui_url }}"
        return SendNotification(block_document_id=notify.document, subject=subject, body=body + where)

    cores.append(
        AutomationCore(
            name=TELL_OF_FAILED,
            description=f"A backup or check that failed or crashed is told to {notify.address}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match=runs,  # type: ignore[arg-type]
                match_related=ours,  # type: ignore[arg-type]
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[told("a0backup: {{ flow_run.name }} {{ flow_run.state.name }}", "{{ flow_run.state.message }}")],
        )
    )
    cores.append(
        AutomationCore(
            name="a0backup: tell of late runs",
            description=f"A run that no worker has taken up in time is told to {notify.address}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match=runs,  # type: ignore[arg-type]
                match_related=ours,  # type: ignore[arg-type]
                expect={"prefect.flow-run.Late"},
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                told(
                    "a0backup: {{ flow_run.name }} is late",
                    f"No worker of the pool {POOL} has taken it up. Is one running?",
                )
            ],
        )
    )
    return cores
