"""`a0backup check --engine`: what the engine lacks for the night to come, and what should not stay as it is."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from a0backup.errors import EngineError
from a0backup.fleet import Fleet
from deployments.register import NO_NOTIFICATION, engine_client, engine_in_use

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

REGISTER = "`python -m deployments.register` puts it right"
_MEMORY = "prefect.server.concurrency.lease_storage.memory"


class Verdict(StrEnum):
    """What a remark means for the next night."""

    WELL = "well"
    WARNING = "warning"  # the night runs, and this should not stay so
    PROBLEM = "problem"  # the night does not run, or not as fleet.yaml and prefect.yaml say


@dataclass(frozen=True)
class Remark:
    """One thing that was looked at."""

    verdict: Verdict
    text: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check_engine(fleet: Fleet) -> list[Remark]:
    """Return what was found of the engine in use, the worst first. Raise EngineError where none can be asked."""
    with engine_in_use():
        remarks = asyncio.run(_all(fleet))
    return sorted(remarks, key=lambda remark: list(Verdict)[::-1].index(remark.verdict))


async def _all(fleet: Fleet) -> list[Remark]:
    async with engine_client() as client:
        looks = (_registered(client, fleet), _workers(client), _switched_off(client), _late(client), _server(client))
        return [remark for look in looks async for remark in look]


async def _registered(client: "PrefectClient", fleet: Fleet) -> AsyncIterator[Remark]:
    from deployments.engine_objects import TELL_OF_FAILED, wanted

    there = 0
    for thing in wanted(fleet):
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
            yield Remark(Verdict.PROBLEM, f"the {change.kind} {change.name} is another: {told}", REGISTER)
    yield Remark(Verdict.WELL, f"{there} of the things that fleet.yaml and prefect.yaml ask for are registered")
    if not await client.read_automations_by_name(TELL_OF_FAILED):
        yield Remark(Verdict.WARNING, NO_NOTIFICATION)


async def _workers(client: "PrefectClient") -> AsyncIterator[Remark]:
    from prefect.exceptions import ObjectNotFound

    from deployments.engine_objects import POOL

    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        return  # said above
    if pool.is_paused:
        yield Remark(Verdict.PROBLEM, f"the work pool {POOL} is paused", f"`prefect work-pool resume {POOL}`")
    workers = await client.read_workers_for_work_pool(POOL)
    online = sorted(worker.name for worker in workers if worker.status == "ONLINE")
    if online:
        yield Remark(Verdict.WELL, f"workers of the pool {POOL}: {', '.join(online)}")
    else:
        hint = f"`prefect worker start --pool {POOL}`, or `a0backup serve`"
        yield Remark(Verdict.PROBLEM, f"no worker of the pool {POOL} is online, so nothing runs", hint)


async def _switched_off(client: "PrefectClient") -> AsyncIterator[Remark]:
    from deployments.engine_objects import NODE_TAG, WATCHED_TAG

    for deployment in await client.read_deployments():
        if not {WATCHED_TAG, NODE_TAG} & set(deployment.tags):
            continue
        if deployment.paused or not all(schedule.active for schedule in deployment.schedules):
            yield Remark(Verdict.WARNING, f"the schedule of {deployment.name} is paused", "switch it on in the UI")
    for automation in await client.read_automations():
        if automation.name.startswith("a0backup: ") and not automation.enabled:
            yield Remark(Verdict.WARNING, f"the automation {automation.name!r} is off", "switch it on in the UI")


async def _late(client: "PrefectClient") -> AsyncIterator[Remark]:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateName,
        FlowRunFilterTags,
    )

    from deployments.engine_objects import WATCHED_TAG

    late = FlowRunFilter(
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])), tags=FlowRunFilterTags(all_=[WATCHED_TAG])
    )
    runs = await client.read_flow_runs(flow_run_filter=late)
    if runs:
        names = ", ".join(run.name for run in runs[:5])
        yield Remark(Verdict.WARNING, f"late runs ({len(runs)}): {names}", "is a worker running, and is it free?")


async def _server(client: "PrefectClient") -> AsyncIterator[Remark]:
    """Look at the server itself, as far as it tells of itself."""
    import prefect

    theirs = await client.api_version()
    if theirs != prefect.__version__:
        hint = "upgrade the server first, then what speaks to it (docs/operations.md)"
        yield Remark(Verdict.WARNING, f"the server is Prefect {theirs}, this is {prefect.__version__}", hint)
    settings: dict[str, Any] = (await client.request("GET", "/admin/settings")).raise_for_status().json()["server"]
    local = urlsplit(str(client.api_url)).hostname in ("127.0.0.1", "localhost", "::1")
    if not settings["api"]["auth_string"]:
        who = "every user of this machine" if local else "whoever reaches it"
        yield Remark(
            Verdict.WARNING,
            f"the server asks for no password: {who} may have the workers run any program",
            "PREFECT_SERVER_API_AUTH_STRING at the server, PREFECT_API_AUTH_STRING here and at the workers",
        )
    if settings["concurrency"]["lease_storage"] == _MEMORY:
        yield Remark(
            Verdict.WARNING,
            "the server keeps leases in memory: slots of runs that die with it are never free again",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: prefect.server.concurrency.lease_storage.filesystem, or Redis",
        )
    vacuum = settings["services"]["db_vacuum"]["enabled"]
    if vacuum is not True and "flow_runs" not in (vacuum or ()):
        yield Remark(
            Verdict.WARNING,
            "the server keeps the history of all runs for ever",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,flow_runs at the server",
        )
