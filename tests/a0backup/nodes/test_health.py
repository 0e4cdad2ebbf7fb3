"""A check asks the health endpoints of a node, and says what a run would not do because of them."""

from collections.abc import Iterator

import pytest

from a0backup.nodes.check import check_node
from a0backup.passwords import shared
from a0backup.passwords.shared import Source
from a0backup.report.outcomes import Finding, Problem
from simulator.fleet import SimulatedFleet
from tests.support.desk import Desk


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    builds = {f"a0-{number}": 9000 for number in range(1, 6)}
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 5, builds=builds, health=True) as fleet:
        yield fleet


async def checked(desk: Desk) -> Finding:
    async def load(source: Source) -> str | None:
        async def block(name: str) -> object:
            raise AssertionError(name)

        return "Passw0rd" if source.for_a0cli else await shared.load(source, block=block)

    return await check_node(desk.fleet, desk.fleet.nodes[0], shared=load)


async def test_a_node_that_is_not_well_is_a_problem_and_what_else_is_not_well_a_warning(desk: Desk) -> None:
    desk.tell("status/disk", "unwell")
    desk.tell("status/email", "unwell")
    finding = await checked(desk)
    assert not finding.ok
    assert finding.problems == (
        Problem(
            "the node is not asked for a backup: disk is not well (a volume is over 90 % full)",
            "mend the node; `health: {on_failure: warn}` in fleet.yaml makes the backup all the same",
        ),
    )
    assert finding.warnings == ("email is not well",)


async def test_it_is_only_a_warning_where_that_was_chosen(desk: Desk) -> None:
    desk.configure(health={"on_failure": "warn"})
    desk.tell("status/disk", "unwell")
    finding = await checked(desk)
    assert (finding.ok, finding.warnings) == (True, ("disk is not well (a volume is over 90 % full)",))


async def test_a_certificate_that_is_not_trusted_is_found_before_the_night(desk: Desk) -> None:
    desk.configure(health={"ca_file": None})
    finding = await checked(desk)
    assert finding.ok
    assert "its certificate is not trusted" in finding.warnings[0]
    assert "HINT: set health.ca_file" in finding.warnings[0]


async def test_every_endpoint_is_asked_once(desk: Desk) -> None:
    assert (await checked(desk)).warnings == ()
    assert len(desk.simulated.health_requests(desk.name)) == 10
