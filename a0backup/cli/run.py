"""`a0backup run` and `a0backup check`: the commands that drive the nodes, through a flow."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from a0backup.cli.options import (
    complete_nodes,
    engine_option,
    existing_option,
    fleet_option,
    json_option,
    quiet_option,
)
from a0backup.errors import CheckFailedError, RunFailedError
from a0backup.exit_codes import ExitCode
from a0backup.fleet.load import load_fleet
from a0backup.fleet.models import Existing
from a0backup.report import terminal
from a0backup.report.check_report import check_json, check_lines
from a0backup.report.outcomes import Finding, Outcome, check_exit_code, exit_code, interrupted
from a0backup.report.progress import Checked, Ended, News, Step, Warned, watched_by
from a0backup.report.run_report import lines, to_json
from a0backup.report.warnings import RunWarning


@click.command()
@fleet_option
@json_option
@quiet_option
@existing_option
@engine_option
@click.option("--dry-run", is_flag=True, help="Only print what a run would do on each node, like `a0backup check`.")
@click.argument("nodes", nargs=-1, shell_complete=complete_nodes)
def run(
    fleet_path: Path,
    as_json: bool,
    quiet: bool,
    existing: Existing | None,
    engine: str,
    dry_run: bool,
    nodes: tuple[str, ...],
) -> int:
    """Back up every node, or only the NODES named.

    For each node: makes the backup, retrieves it, verifies it, stores it in the vault and deletes it on the node.
    Finishes first what a killed run left unfinished.

    Needs fleet.yaml, a0cli with its key pair, and the password or the public recovery key that fleet.yaml names.
    Uses the API that your Prefect profile names, else a running `a0backup serve`, else starts its own server, which
    ends with the command.

    Prints one line per node backup with its outcome, and the reason and a hint if it failed.

    \b
    Exit codes:
      0    every node backup succeeded, and `require_copies` places hold each; a place that failed is named, even with
           --quiet
      1    every node failed, or the run itself
      2    usage or fleet.yaml wrong; nothing was touched
      3    some nodes failed; a backup stored but not deleted on its node counts as failed
      130  interrupted; the next run continues from what the nodes and the vault show
    """
    act = check_nodes if dry_run else back_up_nodes
    return act(fleet_path, nodes, existing, as_json=as_json, quiet=quiet, own_engine=engine == "own")


@click.command()
@fleet_option
@json_option
@quiet_option
@existing_option
@engine_option
@click.argument("nodes", nargs=-1, shell_complete=complete_nodes)
def check(
    fleet_path: Path, as_json: bool, quiet: bool, existing: Existing | None, engine: str, nodes: tuple[str, ...]
) -> int:
    """Check every node, and show what a run would do.

    Asks every node, or only the NODES named, whether it answers and which backup it holds, and changes nothing. Also
    checks the password, the keys and the vault. Needs what `a0backup run` needs; `a0backup engine check` checks the
    Prefect server.

    Prints one line per node, with its problems and warnings. For an unknown reply, prints the line for a0cli.replies in
    fleet.yaml that teaches it.

    \b
    Exit codes:
      0    every node is ok; a place that fails is named, even with --quiet, if enough others can be used
      1    no node is ok, or the check itself failed
      2    usage or fleet.yaml wrong; nothing was touched
      3    some nodes are not ok
      130  interrupted
    """
    return check_nodes(fleet_path, nodes, existing, as_json=as_json, quiet=quiet, own_engine=engine == "own")


def back_up_nodes(
    fleet_path: Path, nodes: Sequence[str], existing: Existing | None, *, as_json: bool, quiet: bool, own_engine: bool
) -> int:
    """Back up the nodes, print the outcomes, and return the exit code."""
    # Errors in the file are reported before anything is started.
    fleet = load_fleet(fleet_path)
    order = [node.name for node in fleet.chosen(nodes)]
    outcomes: list[Outcome] = []
    warnings: list[RunWarning] = []
    steps: dict[str, str] = {}  # the last step of each node

    def collect(news: News) -> None:
        match news:
            case Ended():
                outcomes.append(news.outcome)
            case Warned():
                warnings.append(news.warning)
            case Step():
                steps[news.node] = news.name

    from deployments.local_run import run_here

    error: Exception | None = None
    try:
        with watched_by(collect), terminal.shown(quiet=as_json or quiet):
            error = run_here("backup-fleet", fleet_path, nodes, existing, own_engine=own_engine)
    except KeyboardInterrupt:
        ended = {(outcome.node, outcome.kind) for outcome in outcomes}
        rest = [(node.name, kind) for node in fleet.chosen(nodes) for kind in fleet.kinds_of(node)]
        outcomes += [interrupted(*each, steps.get(each[0], "")) for each in rest if each not in ended]
        raise
    finally:
        outcomes.sort(key=lambda outcome: order.index(outcome.node))
        if as_json:
            terminal.report(json.dumps(to_json(outcomes, warnings), indent=2))
        elif outcomes and not (quiet and _is_all_well(outcomes)):
            terminal.report("\n".join(lines(outcomes, warnings)))
    return _code(exit_code(outcomes), error)


def check_nodes(
    fleet_path: Path, nodes: Sequence[str], existing: Existing | None, *, as_json: bool, quiet: bool, own_engine: bool
) -> int:
    """Check the nodes, print the findings, and return the exit code. Nothing is started or changed."""
    fleet = load_fleet(fleet_path)
    order = [node.name for node in fleet.chosen(nodes)]
    findings: list[Finding] = []
    warnings: list[RunWarning] = []

    def collect(news: News) -> None:
        match news:
            case Checked():
                findings.append(news.finding)
            case Warned():
                warnings.append(news.warning)

    from a0backup.nodes.check import fleet_notes
    from deployments.local_run import run_here

    with watched_by(collect), terminal.shown(quiet=as_json or quiet):
        error = run_here("check-fleet", fleet_path, nodes, existing, own_engine=own_engine)
    findings.sort(key=lambda finding: order.index(finding.node))
    if as_json:
        terminal.report(json.dumps(check_json(findings, warnings), indent=2))
    elif findings and not (
        quiet and check_exit_code(findings) == ExitCode.OK and not any(each.of_place for each in warnings)
    ):
        terminal.report("\n".join(check_lines(findings, warnings, fleet_notes(fleet))))
    return _code(check_exit_code(findings), error)


def _is_all_well(outcomes: Sequence[Outcome]) -> bool:
    """Return whether every backup is stored, and in every place: a run with enough other copies succeeds without."""
    return exit_code(outcomes) == ExitCode.OK and all(outcome.is_in_every_place for outcome in outcomes)


def _code(code: int, error: Exception | None) -> int:
    """Return *code*, or 1 in place of 0 after *error*; print *error* unless it is about the nodes already named."""
    if error is not None and not isinstance(error, RunFailedError | CheckFailedError):
        terminal.say(f"error: {error}")
    return ExitCode.FAILED if code == ExitCode.OK and error is not None else code
