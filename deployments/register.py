"""Register all that the engine must hold: `python -m deployments.register [--fleet fleet.yaml] [--dry-run]`.

Work pool, concurrency limits, the Secret block that fleet.yaml names, the deployments of prefect.yaml, automations.
Running it again changes only what differs, and says what.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from a0backup import password, terminal
from a0backup.cli import ask, fleet_option, run_in_words
from a0backup.errors import EngineError
from a0backup.fleet import Fleet
from deployments.local_run import API_DEADLINE, NO_API
from deployments.server import default_home, operators_api, served_api, use_api

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

    from deployments.engine_objects import Change, Notify

NO_ENGINE = (
    "set PREFECT_API_URL (and PREFECT_API_AUTH_STRING) or choose a Prefect profile that names your server; or start"
    " `a0backup serve`, which registers by itself"
)
NO_NOTIFICATION = (
    "nobody is told of failed or late runs: make a notification block in the UI (Blocks, such as Slack Webhook), then"
    " run `python -m deployments.register --notify SLUG/NAME`, such as slack-webhook/ops"
)

NO_LOGIN = "set PREFECT_API_AUTH_STRING to the user:password that the server was started with"


@dataclass(frozen=True)
class Registered:
    """What was changed, or would be, and whether anybody is told of failed runs."""

    changes: "list[Change]"
    told_of_failures: bool


def main() -> None:
    """Run the command; an error ends it as a message with what to do next."""
    run_in_words(cli)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@fleet_option
@click.option("--dry-run", is_flag=True, help="Only say what would be made or changed.")
@click.option(
    "--notify",
    metavar="SLUG/NAME",
    help="The notification block, made in the UI, that is told of failed and late runs: slack-webhook/ops, say.",
)
@click.option(
    "--secret",
    "secret_files",
    metavar="NAME=FILE",
    multiple=True,
    help="Take the value of the Secret block NAME from the first line of FILE; else a missing one is asked for.",
)
@click.option(
    "--pool",
    "pool_type",
    type=click.Choice(["process", "docker", "kubernetes"]),
    help="What the workers start for each run; process where the work pool is not there yet.",
)
def cli(
    fleet_path: Path, dry_run: bool, notify: str | None, secret_files: tuple[str, ...], pool_type: str | None
) -> None:
    """Make the engine hold what the pipeline needs, and say what changed: work pool, concurrency limits, the Secret
    block that fleet.yaml names, the deployments and schedules of prefect.yaml, automations.

    The prefect.yaml beside the fleet file counts, else the one that came with this. The engine is the one that your
    Prefect profile or PREFECT_API_URL names, else a running `a0backup serve`.
    """
    fleet = Fleet.load(fleet_path)
    secrets = _secrets(fleet, secret_files)
    with engine_in_use() as api:
        terminal.say(f"engine: {api}")
        done = asyncio.run(
            register(fleet, notify=notify, secrets=secrets, pool_type=pool_type, dry_run=dry_run, asked=asked)
        )
    for line in lines(done.changes, dry_run=dry_run):
        click.echo(line)
    if not done.told_of_failures:
        terminal.say(NO_NOTIFICATION)


@contextmanager
def engine_in_use() -> Iterator[str]:
    """Use the operator's engine, else a running `a0backup serve`, inside the block. Raise EngineError for neither."""
    with ExitStack() as stack:
        api = operators_api()
        if api is None:
            home = default_home()
            api = served_api(home)
            if api is None:
                raise EngineError("no engine is named, and no `a0backup serve` runs", NO_ENGINE)
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
    """Make the engine in use hold what *fleet* needs and return what was done, or where *dry_run* what would be.

    *notify*: SLUG/NAME of a notification block. *secrets*: values by the names of their blocks; *asked* gives those
    that are missing. *may_move*: deployments of a fleet in another folder are taken over. Raise EngineError; nothing
    was changed then, unless the engine failed in the middle.
    """
    from deployments.engine_objects import TELL_OF_FAILED, SecretBlock, wanted

    async with engine_client() as client:
        block = await _notification_block(client, notify) if notify is not None else None
        things = wanted(fleet, notify=block, secrets=secrets, pool_type=pool_type, may_move=may_move)
        # All are looked at before the first is changed: what must not be done is found before anything is.
        changes = [await thing.compare(client) for thing in things]
        to_do = [] if dry_run else [t for t, change in zip(things, changes, strict=True) if change.verdict != "there"]
        for thing in to_do:
            if isinstance(thing, SecretBlock) and thing.value is None:
                if asked is None:
                    raise EngineError(
                        f"there is no Secret block {thing.name}, which fleet.yaml names for the password",
                        "start this once on a terminal, which asks for it",
                    )
                thing.value = asked(thing.name)
        for thing in to_do:
            await thing.put(client)
        told = notify is not None or bool(await client.read_automations_by_name(TELL_OF_FAILED))
        return Registered(changes, told)


@asynccontextmanager
async def engine_client() -> "AsyncIterator[PrefectClient]":
    """Give a client of the engine in use; an answer that it refuses, or none at all, becomes an EngineError."""
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
                raise EngineError(f"the engine at {api} does not let this user in", NO_LOGIN) from None
            raise EngineError(f"the engine at {api} refuses: {refusal}") from refusal
        except httpx.TransportError as lost:
            raise EngineError(f"the engine at {api} went away: {type(lost).__name__}: {lost}", NO_API) from lost


async def _notification_block(client: "PrefectClient", address: str) -> "Notify":
    from prefect.exceptions import ObjectNotFound

    from deployments.engine_objects import Notify

    slug, _, name = address.partition("/")
    try:
        block = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        raise EngineError(f"there is no block {address}", "the UI's page Blocks makes and lists them") from None
    schema = block.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise EngineError(f"the block {address} cannot send notifications", "name one such as slack-webhook/ops")
    return Notify(address, block.id)


def _secrets(fleet: Fleet, given: Sequence[str]) -> dict[str, str]:
    """Return the values by block name of the NAME=FILE that were *given*. Raise PasswordError, UsageError."""
    secrets = {}
    for each in given:
        name, _, file = each.partition("=")
        if name != fleet.password.secret_block:
            named = fleet.password.secret_block or "no Secret block"
            raise click.UsageError(f"--secret {name}: {fleet.path} names {named} for the password")
        secrets[name] = password.read_file(Path(file).expanduser(), f"file {file}")
    return secrets


def asked(name: str) -> str:
    """Ask for the value of the Secret block *name*, twice."""
    option = f"--secret {name}=FILE"
    value = password.checked(ask(f"password for the Secret block {name}", option), "what was typed")
    if ask("the same again", option) != value:
        raise click.UsageError("the two passwords differ; nothing was changed")
    return value


def lines(changes: "Sequence[Change]", *, dry_run: bool) -> Iterator[str]:
    """Yield what was changed, or would be, for people, with the sums at the end."""
    done = {"there": "there", "to make": "made", "to change": "changed"}
    width = max(len(change.name) for change in changes)
    for change in changes:
        verdict = change.verdict if dry_run else done[change.verdict]
        yield f"{change.kind:<12}  {change.name:<{width}}  {verdict}".rstrip()
        yield from (f"{'':<12}    {detail}" for detail in change.details)
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in done}
    words = ", ".join(f"{count} {key if dry_run else done[key]}" for key, count in counts.items() if count)
    yield f"{words}; nothing was changed, as this is a dry run" if dry_run else words


if __name__ == "__main__":
    main()
