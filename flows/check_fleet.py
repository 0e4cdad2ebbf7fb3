"""The read-only preflight: what is on each node, what the next run would do, and what would stop it.

Nothing is started, deleted, stored or cached. Blocks: the Secret block named by
`password.secret_block` in fleet.yaml, if any; it is loaded only to check that it exists.
"""

from functools import partial
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from a0backup.backup.loop import error_kept
from a0backup.errors import CheckFailedError, PasswordError
from a0backup.files import in_thread
from a0backup.fleet.models import Existing, Fleet, Node
from a0backup.nodes.check import alias_warnings, check_node, fleet_notes, fleet_room, recovery_key_problems
from a0backup.passwords import shared as password
from a0backup.places.looking import look_at_places
from a0backup.report.outcomes import Finding, Problem
from a0backup.report.progress import Checked, tell
from a0backup.report.warnings import RunWarning
from flows.ending import ExistingChoice, chosen_policy, now, warn, warned_of
from flows.fan_out import for_each
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task, result_of
from tasks.publish import publish_findings
from tasks.secret_block import secret_block
from tasks.shared_password import shared_password


@flow(
    name="check-fleet",
    flow_run_name=lambda: f"check-fleet-{now():%Y-%m-%d-%H:%M}",
    description="Look at every node without touching it: does it answer, what is on it, what would a run do.",
    persist_result=False,
)
async def check_fleet(
    fleet: Path = Path("fleet.yaml"),
    nodes: list[str] = [],  # noqa: B006 - Prefect shows the default in its form; it is never mutated
    existing: ExistingChoice = "as in fleet.yaml",
) -> list[Finding]:
    """Check the nodes of a fleet file.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        nodes: Names of the nodes to check; an empty list means all of them.
        existing: The choice that the check assumes for the next run; see backup-fleet.
    """
    settings = fleet_of_run(fleet)
    chosen = settings.chosen(nodes)

    problems, doubts = await password_doubts(settings)
    problems += await in_thread(fleet_room, settings, chosen)
    doubts += tuple(map(RunWarning, await in_thread(alias_warnings, chosen)))
    of_places, behind = await look_at_places(settings, blocks=secret_block)
    problems += tuple(of_places)
    doubts += tuple(RunWarning(text, of_place=True) for text in behind)
    warn(doubts)
    notes, warnings = await in_thread(fleet_notes, settings), [*await warned_of(settings), *doubts]
    look = partial(finding_of, fleet=settings, existing=chosen_policy(existing), problems=problems)
    findings = await for_each(chosen, look, at_most=settings.max_parallel)
    await publish_findings(findings, fleet=str(fleet), warnings=warnings, notes=notes)
    bad = [f"{finding.node}: {finding.problems[0].text}" for finding in findings if not finding.ok]
    if bad:
        raise CheckFailedError(bad)
    return findings


@engine_task(name="check-node", task_run_name="check-{node.name}")
async def check_one_node(
    node: Node, fleet: Fleet, existing: Existing | None, problems: tuple[Problem, ...]
) -> State[Finding]:
    """Check one node; fail if it could not be backed up now, also because of *problems* of the whole fleet."""
    finding = await check_node(fleet, node, existing=existing, known=problems, shared=shared_password)
    tell(Checked(finding))
    if finding.ok:
        get_run_logger().info("%s: %s; the next run would %s", node.name, finding.status, finding.would)
        return Completed(message=finding.status, data=finding)
    problems_told = "; ".join(line for problem in finding.problems for line in problem.lines())
    get_run_logger().error("%s: %s", node.name, problems_told)
    return Failed(message=problems_told, data=finding)


async def finding_of(node: Node, *, fleet: Fleet, existing: Existing | None, problems: tuple[Problem, ...]) -> Finding:
    """Return what was found on the node, even if the engine itself failed."""
    with error_kept() as ended:
        return await result_of(check_one_node(node, fleet, existing, problems))
    problem = Problem(f"{type(ended.error).__name__}: {ended.error}")
    finding = Finding(node.name, ok=False, reachable=False, status="not asked", would="", problems=(problem,))
    tell(Checked(finding))
    return finding


async def password_doubts(fleet: Fleet) -> tuple[tuple[Problem, ...], tuple[RunWarning, ...]]:
    """Return what would keep a run from loading its password, or from sealing one, and a warning about the password.

    A loaded password is dropped.
    """
    if fleet.password.sealed_to is not None:
        return await in_thread(recovery_key_problems, fleet), ()
    try:
        text = await password.load(fleet.password, block=secret_block)
    except PasswordError as error:
        return (Problem.of(error),), ()
    twofold = text is not None and password.has_two_encodings(text)
    return (), (RunWarning(password.TWO_ENCODINGS),) if twofold else ()
