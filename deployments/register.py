"""What the engine must hold: work pool, concurrency limits, Secret block, deployments of prefect.yaml, automations.

`a0backup engine register` registers it. Run again, it changes only what differs and reports it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from a0backup.errors import EngineError
from a0backup.fleet.models import Fleet
from deployments.home import default_home, operators_api, use_api
from deployments.local_run import API_DEADLINE, NO_API
from deployments.server import served_api
from deployments.working_directory import leave_untrusted_directory

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from deployments.automations import Notify
    from deployments.engine_objects import Change

NO_ENGINE = (
    "set PREFECT_API_URL (and PREFECT_API_AUTH_STRING) or choose a Prefect profile that names your server; or start"
    " `a0backup serve`, which registers by itself"
)
NO_NOTIFICATION = (
    "nobody is notified of failed or late runs: make a notification block in the UI (Blocks, such as Slack Webhook),"
    " then run `a0backup engine register --notify SLUG/NAME`, such as slack-webhook/ops"
)

NO_LOGIN = "set PREFECT_API_AUTH_STRING to the user:password that the server was started with"


@dataclass(frozen=True)
class Registered:
    """What was changed, or would be, and whether anybody is notified of failed runs."""

    changes: "list[Change]"
    told_of_failures: bool


@contextmanager
def engine_in_use() -> Iterator[str]:
    """Use the operator's engine inside the block, else a running `a0backup serve`; yield the API address.

    Raise EngineError where there is neither.
    """
    leave_untrusted_directory()
    with ExitStack() as stack:
        api = operators_api()
        if api is None:
            home = default_home()
            api = served_api(home)
            if api is None:
                raise EngineError("no engine is named, and no `a0backup serve` is running", NO_ENGINE)
            stack.enter_context(use_api(api, home))
        yield api


async def register(
    fleet: Fleet,
    *,
    notify: str | None = None,
    secrets: Mapping[str, str] | None = None,
    pool_type: str | None = None,
    may_move: bool = False,
    dry_run: bool = False,
    asked: Callable[[str], str] | None = None,
) -> Registered:
    """Register what *fleet* needs on the engine in use; return what was done, or with *dry_run* what would be.

    *notify* is SLUG/NAME of a notification block. *secrets* are values by block name; *asked* returns
    the missing ones. *may_move* takes over deployments of a fleet in another folder. Raise EngineError;
    in that case nothing was changed, unless the engine failed in the middle.
    """
    from deployments.automations import TELL_OF_FAILED
    from deployments.engine_objects import SecretBlock, wanted

    async with engine_client() as client:
        block = await _notification_block(client, notify) if notify is not None else None
        things = wanted(fleet, notify=block, secrets=secrets, pool_type=pool_type, may_move=may_move)
        # Compare all before changing the first: a forbidden change is then found before anything is done.
        changes = [await thing.compare(client) for thing in things]
        to_do = [] if dry_run else [t for t, change in zip(things, changes, strict=True) if change.verdict != "there"]
        for thing in to_do:
            if isinstance(thing, SecretBlock) and thing.value is None:
                if asked is None:
                    raise EngineError(
                        f"there is no Secret block {thing.name}, which fleet.yaml names for {thing.what}",
                        "start this once on a terminal, which asks for it",
                    )
                thing.value = asked(thing.name)
        for thing in to_do:
            await thing.put(client)
        told = notify is not None or bool(await client.read_automations_by_name(TELL_OF_FAILED))
        return Registered(changes, told)


@asynccontextmanager
async def engine_client() -> "AsyncIterator[PrefectClient]":
    """Yield a client of the engine in use. Raise EngineError where the engine refuses or does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    async with get_client() as client:
        api = str(client.api_url)
        try:
            async with asyncio.timeout(API_DEADLINE):
                error = await client.api_healthcheck()
            if error is not None:
                raise EngineError(f"the engine at {api} does not answer: {type(error).__name__}: {error}", NO_API)
            yield client
        except TimeoutError:
            raise EngineError(f"the engine at {api} did not answer within {API_DEADLINE:.0f} s", NO_API) from None
        except PrefectHTTPStatusError as refusal:
            if refusal.response.status_code in (401, 403):
                raise EngineError(f"the engine at {api} rejects the credentials of this user", NO_LOGIN) from None
            raise EngineError(f"the engine at {api} refuses: {refusal}") from refusal
        except httpx.TransportError as lost:
            raise EngineError(f"the engine at {api} went away: {type(lost).__name__}: {lost}", NO_API) from lost


async def _notification_block(client: "PrefectClient", address: str) -> "Notify":
    from prefect.exceptions import ObjectNotFound

    from deployments.automations import Notify

    slug, _, name = address.partition("/")
    try:
        block = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        raise EngineError(f"there is no block {address}", "the UI's page Blocks makes and lists them") from None
    schema = block.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise EngineError(f"the block {address} cannot send notifications", "name one such as slack-webhook/ops")
    return Notify(address, block.id)


def lines(changes: "Sequence[Change]", *, dry_run: bool) -> Iterator[str]:
    """Yield what was changed, or would be, as lines for people, with the totals at the end."""
    done = {"there": "there", "to make": "made", "to change": "changed"}
    width = max(len(change.name) for change in changes)
    for change in changes:
        verdict = change.verdict if dry_run else done[change.verdict]
        yield f"{change.kind:<12}  {change.name:<{width}}  {verdict}".rstrip()
        yield from (f"{'':<12}    {detail}" for detail in change.details)
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in done}
    words = ", ".join(f"{count} {key if dry_run else done[key]}" for key, count in counts.items() if count)
    yield f"{words}; nothing was changed, as this is a dry run" if dry_run else words
