"""`a0backup engine check`: what the engine lacks for the next night, and what else needs fixing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from a0backup.errors import EngineError
from a0backup.fleet.models import Fleet
from deployments.register import NO_NOTIFICATION, engine_client, engine_in_use

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from deployments.engine_objects import EngineObject

REGISTER = "`a0backup engine register` fixes it"
# The flows that back up, by their Prefect names.
_BACKUPS = ("backup-fleet", "backup-node")
# The server's scheduler runs every minute.
_SCHEDULED_WITHIN = timedelta(minutes=2)
# The rule of Prefect's foreman (server/services/foreman.py), which cannot set OFFLINE itself where services are down.
_MISSED_HEARTBEATS, _HEARTBEAT_SECONDS = 3, 30
_SWITCH_ON = "switch it on in the UI"
_MEMORY = "prefect.server.concurrency.lease_storage.memory"


class Verdict(StrEnum):
    """What a remark means for the next night."""

    OK = "ok"
    WARNING = "warning"  # the night runs, but fix this
    PROBLEM = "problem"  # the night does not run, or not as fleet.yaml and prefect.yaml say


@dataclass(frozen=True)
class Remark:
    """The result of one check."""

    verdict: Verdict
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check_engine(fleet: Fleet) -> list[Remark]:
    """Return the remarks about the engine in use, worst first. Raise EngineError where no engine is available."""
    with engine_in_use():
        remarks = asyncio.run(_all(fleet))
    return sorted(remarks, key=lambda remark: list(Verdict)[::-1].index(remark.verdict))


async def _all(fleet: Fleet) -> list[Remark]:
    from deployments.engine_objects import wanted

    things = wanted(fleet)
    async with engine_client() as client:
        # Use the server's clock, which set the times compared here: with a wrong clock of its own, a machine would not
        # detect dead workers and runs.
        answer = await client.request("GET", "/health")
        now = parsedate_to_datetime(answer.headers["date"])
        looks = (
            _registered(client, things),
            _workers(client, now),
            _coming(client, things, now),
            _switched_off(client),
            _stuck(client, now),
            _server(client),
        )
        return [remark for look in looks async for remark in look]


async def _registered(client: "PrefectClient", things: "Sequence[EngineObject]") -> AsyncIterator[Remark]:
    from deployments.automations import TELL_OF_FAILED

    there = 0
    for thing in things:
        try:
            change = await thing.compare(client)
        except EngineError as error:
            yield Remark(Verdict.PROBLEM, error.message(), error.hint())
            continue
        if change.verdict == "there":
            there += 1
        elif change.verdict == "to make":
            yield Remark(Verdict.PROBLEM, f"the {change.kind} {change.name} is missing", REGISTER)
        else:
            told = "; ".join(change.details)
            yield Remark(Verdict.PROBLEM, f"the {change.kind} {change.name} differs: {told}", REGISTER)
    yield Remark(Verdict.OK, f"{there} of {len(things)} required Prefect objects are registered")
    if not await client.read_automations_by_name(TELL_OF_FAILED):
        yield Remark(Verdict.WARNING, NO_NOTIFICATION)


async def _workers(client: "PrefectClient", now: datetime) -> AsyncIterator[Remark]:
    from prefect.exceptions import ObjectNotFound

    from deployments.automations import POOL

    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        return  # reported above
    if pool.is_paused:
        yield Remark(Verdict.PROBLEM, f"the work pool {POOL} is paused", f"`prefect work-pool resume {POOL}`")
    if pool.concurrency_limit == 0:
        hint = f"`prefect work-pool clear-concurrency-limit {POOL}`"
        yield Remark(Verdict.PROBLEM, f"the work pool {POOL} has a concurrency limit of 0: it runs nothing", hint)
    queue = await client.read_work_queue(pool.default_queue_id)
    if queue.is_paused:
        hint = f"`prefect work-queue resume default --pool {POOL}`"
        yield Remark(Verdict.PROBLEM, f"the work queue default of the pool {POOL} is paused", hint)
    if queue.concurrency_limit == 0:
        hint = f"`prefect work-queue clear-concurrency-limit default --pool {POOL}`"
        text = f"the work queue default of the pool {POOL} has a concurrency limit of 0: it runs nothing"
        yield Remark(Verdict.PROBLEM, text, hint)
    online = sorted(
        worker.name
        for worker in await client.read_workers_for_work_pool(POOL)
        if worker.status == "ONLINE"
        and worker.last_heartbeat_time is not None
        and (now - worker.last_heartbeat_time).total_seconds()
        <= (worker.heartbeat_interval_seconds or _HEARTBEAT_SECONDS) * _MISSED_HEARTBEATS
    )
    if online:
        yield Remark(Verdict.OK, f"workers of the pool {POOL}: {', '.join(online)}")
    else:
        hint = f"`prefect worker start --pool {POOL}`, or `a0backup serve`"
        yield Remark(Verdict.PROBLEM, f"no worker of the pool {POOL} is online, so nothing runs", hint)


async def _coming(client: "PrefectClient", things: "Sequence[EngineObject]", now: datetime) -> AsyncIterator[Remark]:
    """Check that each deployment with a schedule in prefect.yaml has a next run, whatever may prevent one."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.exceptions import ObjectNotFound

    from deployments.engine_objects import Deployment

    scheduled = [
        thing
        for thing in things
        if isinstance(thing, Deployment) and any(schedule.active for schedule in thing.entry.schedules)
    ]
    for thing in scheduled:
        try:
            found = await client.read_deployment_by_name(thing.name)
        except ObjectNotFound:
            continue  # reported above
        to_come = FlowRunFilter.model_validate(
            {
                "deployment_id": {"any_": [found.id]},
                "state": {"name": {"any_": ["Scheduled"]}},
                # The scheduler's own tag: a run that a person scheduled for tomorrow says nothing about the days after.
                "tags": {"all_": ["auto-scheduled"]},
                "next_scheduled_start_time": {"after_": now},
            }
        )
        on = [] if found.paused else [schedule for schedule in found.schedules if schedule.active]
        changed = any(each.updated and now - each.updated < _SCHEDULED_WITHIN for each in (found, *on))
        name = thing.entry.name
        coming = await client.read_flow_runs(flow_run_filter=to_come, limit=1, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
        if coming:
            begins = coming[0].next_scheduled_start_time or now
            yield Remark(Verdict.OK, f"the next run of {name}: {begins.astimezone(UTC):%Y-%m-%d %H:%M UTC}")
            if len(on) < sum(schedule.active for schedule in thing.entry.schedules):
                yield Remark(Verdict.WARNING, f"a schedule of {name} is paused", _SWITCH_ON)
        elif not on and thing.flow.name not in _BACKUPS:
            yield Remark(Verdict.WARNING, f"the schedule of {name} is paused", _SWITCH_ON)
        elif on and changed:
            hint = "the server schedules it within a minute: check again"
            yield Remark(Verdict.WARNING, f"no run of {name} is scheduled yet, because it was changed just now", hint)
        else:
            hint = "is its schedule on in the UI, and the deployment itself? do the server's services run?"
            yield Remark(Verdict.PROBLEM, f"no run of {name} is scheduled, so none will start by itself", hint)
    if not any(thing.flow.name in _BACKUPS for thing in scheduled):
        hint = "give a deployment such as nightly an active schedule, as ours has"
        yield Remark(Verdict.PROBLEM, "prefect.yaml schedules no backup", hint)


async def _switched_off(client: "PrefectClient") -> AsyncIterator[Remark]:
    for automation in await client.read_automations():
        if automation.name.startswith("a0backup: ") and not automation.enabled:
            yield Remark(Verdict.WARNING, f"the automation {automation.name!r} is off", _SWITCH_ON)


async def _stuck(client: "PrefectClient", now: datetime) -> AsyncIterator[Remark]:
    from prefect.client.schemas.filters import FlowRunFilter

    from deployments.automations import WATCHED_TAG
    from flows.node_runs import STARTS_WITHIN

    async def ours(**state: list[str]) -> "list[FlowRun]":
        wanted = {"state": {key: {"any_": values} for key, values in state.items()}, "tags": {"all_": [WATCHED_TAG]}}
        return await client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))

    def names(runs: "list[FlowRun]") -> str:
        return f"({len(runs)}): {', '.join(run.name for run in runs[:5])}"

    if late := await ours(name=["Late"]):
        yield Remark(Verdict.WARNING, f"late runs {names(late)}", "is a worker running, and is it free?")
    pending = await ours(type=["PENDING"])
    if stuck := [run for run in pending if run.state and (now - run.state.timestamp).total_seconds() > STARTS_WITHIN]:
        hint = "their worker or its machine died: give the runs the state Crashed in the UI; the next run resumes them"
        yield Remark(Verdict.WARNING, f"runs that a worker took up and did not start {names(stuck)}", hint)


async def _server(client: "PrefectClient") -> AsyncIterator[Remark]:
    """Check the server itself, as far as it reports its version and settings."""
    import prefect

    theirs = await client.api_version()
    if theirs != prefect.__version__:
        hint = "upgrade the server first, then its clients (docs/upgrade.md)"
        yield Remark(Verdict.WARNING, f"the server is Prefect {theirs}, this is {prefect.__version__}", hint)
    settings: dict[str, Any] = (await client.request("GET", "/admin/settings")).raise_for_status().json()["server"]
    local = urlsplit(str(client.api_url)).hostname in ("127.0.0.1", "localhost", "::1")
    if not settings["api"]["auth_string"]:
        who = "every user of this machine" if local else "whoever reaches it"
        yield Remark(
            Verdict.WARNING,
            f"the server requires no password: {who} can make the workers run any program",
            "PREFECT_SERVER_API_AUTH_STRING at the server, PREFECT_API_AUTH_STRING here and at the workers",
        )
    if settings["concurrency"]["lease_storage"] == _MEMORY:
        yield Remark(
            Verdict.WARNING,
            "the server keeps leases in memory: slots of runs that die with it are never released",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: prefect.server.concurrency.lease_storage.filesystem, or Redis",
        )
    vacuum = settings["services"]["db_vacuum"]["enabled"]
    if vacuum is not True and "flow_runs" not in (vacuum or ()):
        yield Remark(
            Verdict.WARNING,
            "the server keeps the history of all runs forever",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,flow_runs at the server",
        )
