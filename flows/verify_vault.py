"""Read stored artifacts again, in the vault and in every place, and compare them with their manifests."""

import logging
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.logging import get_run_logger

from a0backup.errors import VerificationFailedError
from a0backup.files import in_thread
from a0backup.places.places import Places
from a0backup.places.verification import Verification
from a0backup.places.verifying import Finding
from a0backup.report.words import plain
from a0backup.vault.known_vault import is_there
from a0backup.vault.vault import Vault
from flows.ending import now
from flows.fleet_file import fleet_of_run
from tasks.engine_task import engine_task
from tasks.publish import publish_verification
from tasks.secret_block import secret_block

Share = Literal["all", "1/2", "1/7", "1/30"]


@flow(
    name="verify-vault",
    flow_run_name=lambda: f"verify-vault-{now():%Y-%m-%d-%H:%M}",
    description="Read stored artifacts again, in the vault and in every place. Completed only if all are whole.",
    persist_result=False,
)
async def verify_vault(fleet: Path = Path("fleet.yaml"), share: Share = "1/7", repair: bool = False) -> list[Finding]:
    """Verify the artifacts of a fleet file's vault and places.

    Args:
        fleet: The fleet file, as an absolute path on the machine that runs this.
        share: How much to read, of what was not read for the longest time; seven runs with 1/7 read everything.
        repair: Whether to bring back what is damaged or missing from where it is whole.
    """
    settings = fleet_of_run(fleet)
    if not await in_thread(is_there, settings):
        get_run_logger().info("the vault %s is not made yet: there is nothing to verify", settings.vault)
        return []
    part = None if share == "all" else 1 / int(share.partition("/")[2])
    places = list(Places.of(settings, blocks=secret_block))
    verification = Verification(Vault(settings.vault), places, share=part, told=log_finding)
    findings = await read_artifacts(verification)
    if repair:
        findings = await repair_artifacts(verification, findings)
    await publish_verification(findings)
    bad = [f"{each.id} in {each.place}: {each.result}: {each.reason}" for each in findings if each.counts]
    if bad:
        raise VerificationFailedError(len(findings), bad)
    return findings


def log_finding(finding: Finding) -> None:
    """Write a finding to the run's log, unless all is well."""
    if not finding.ok:
        # A stray file has whatever name somebody gave it.
        texts = plain(finding.id), finding.place, finding.result, plain(finding.reason)
        get_run_logger().log(logging.ERROR if finding.counts else logging.WARNING, "%s in %s: %s: %s", *texts)


@engine_task(name="read-artifacts", task_run_name="read-artifacts")
async def read_artifacts(verification: Verification) -> list[Finding]:
    """Read the artifacts, several files at once."""
    return await verification.run()


@engine_task(name="repair-artifacts", task_run_name="repair-artifacts")
async def repair_artifacts(verification: Verification, findings: list[Finding]) -> list[Finding]:
    """Bring back what is damaged or missing."""
    return await verification.repaired(findings)
