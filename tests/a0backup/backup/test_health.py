"""A node is looked at before it is asked for a backup, and only then."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from a0backup.backup.loop import NodeOutcomes, back_up_node
from a0backup.errors import NodeUnwellError
from a0backup.passwords import shared
from a0backup.passwords.shared import Source
from simulator.fleet import SimulatedFleet
from tests.support.desk import Desk
from tests.support.nights import PASSWORD, Plainly, run_of

numbers = itertools.count(2)
LOOKS = ["status/disk", "status/replicaset", "testall"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 20, size=20_000, backup_seconds=0.05, health=True) as fleet:
        yield fleet


class Ended:
    """How a night ended, and what it did."""

    def __init__(self, outcomes: NodeOutcomes, errors: list[Exception], taken: list[str]) -> None:
        self.outcomes, self.errors, self.taken = outcomes.all, errors, taken
        # Each night of these nodes is warned of its missing half, whatever their health.
        self.warnings = [str(each) for each in outcomes.warnings if "backup-sensitive" not in each.text]


async def night(desk: Desk) -> Ended:
    async def load(source: Source) -> str | None:
        async def block(name: str) -> object:
            raise AssertionError(name)

        return PASSWORD if source.for_a0cli else await shared.load(source, block=block)

    errors: list[Exception] = []
    outcomes, plainly = NodeOutcomes(desk.fleet.nodes[0], desk.fleet, errors.append), Plainly()
    await back_up_node(run_of(desk.fleet, f"run-{next(numbers)}"), outcomes, take=plainly, shared=load)
    return Ended(outcomes, errors, plainly.taken)


def asked(desk: Desk) -> list[str]:
    return [request["what"] for request in desk.simulated.health_requests(desk.name)]


async def test_a_node_that_is_well_is_looked_at_once_right_before_its_start(desk: Desk) -> None:
    ended = await night(desk)
    assert [outcome.ok for outcome in ended.outcomes] == [True]
    assert ended.taken[ended.taken.index("start") - 1] == "health"
    assert (asked(desk), ended.warnings) == (LOOKS, [])


async def test_a_node_that_is_not_well_is_not_asked_for_a_backup_and_fails(desk: Desk) -> None:
    desk.tell("status/disk", "unwell")
    ended = await night(desk)
    [outcome], [error] = ended.outcomes, ended.errors
    assert isinstance(error, NodeUnwellError)
    assert (outcome.ending, outcome.step) == ("failed", "health")
    assert outcome.reason == ("the node is not asked for a backup: disk is not well (a volume is over 90 % full)")
    assert "on_failure: warn" in outcome.hint
    assert desk.counts == (0, 0, 0)
    assert desk.journal.read() is None


async def test_the_next_night_backs_it_up_once_it_is_well(desk: Desk) -> None:
    desk.tell("status/replicaset", "unwell", times=1)
    assert not (await night(desk)).outcomes[0].ok
    assert (await night(desk)).outcomes[0].ok
    desk.is_settled()


async def test_a_node_that_is_not_well_is_asked_with_a_warning_where_that_was_chosen(desk: Desk) -> None:
    desk.configure(health={"on_failure": "warn"})
    desk.tell("status/disk", "unwell")
    ended = await night(desk)
    assert ended.outcomes[0].ok
    assert ended.warnings == [f"{desk.name}: disk is not well (a volume is over 90 % full)"]


async def test_what_is_on_the_node_already_is_kept_although_the_node_is_not_well(desk: Desk) -> None:
    desk.put()
    desk.tell("status/disk", "unwell")
    ended = await night(desk)
    assert not ended.outcomes[0].ok
    assert [manifest.started_at for manifest in desk.stored] == [None]
    assert desk.holds is None
    assert desk.counted("backup") == 0


async def test_a_backup_is_kept_before_it_is_replaced_if_the_node_is_not_well(desk: Desk) -> None:
    """No new one is made, so nothing would be left."""
    desk.configure(existing="replace")
    desk.put()
    desk.tell("status/disk", "unwell", times=1)
    ended = await night(desk)
    assert [type(error) for error in ended.errors] == [NodeUnwellError]
    assert [manifest.started_at for manifest in desk.stored] == [None]
    assert (desk.holds, asked(desk)) == (None, LOOKS)
    assert (await night(desk)).outcomes[0].ok
    assert len(desk.stored) == 2


async def test_a_backup_is_replaced_without_a_copy_if_the_node_is_well(desk: Desk) -> None:
    desk.configure(existing="replace")
    desk.put()
    ended = await night(desk)
    assert ended.outcomes[0].ok
    assert (len(desk.stored), asked(desk)) == (1, LOOKS)


async def test_a_backup_that_an_earlier_run_started_is_finished_without_a_look(desk: Desk) -> None:
    await desk.killed_after("start")
    before = asked(desk)
    desk.tell("status/disk", "unwell")
    ended = await night(desk)
    assert ended.outcomes[0].ok, ended.outcomes
    assert asked(desk) == before
    desk.is_settled()


async def test_the_kinds_of_a_node_share_one_look(desk: Desk) -> None:
    desk.configure(kinds=["backup", "backup-sensitive"])
    assert [outcome.ok for outcome in (await night(desk)).outcomes] == [True, True]
    assert asked(desk) == LOOKS
    desk.tell("status/disk", "unwell")
    ended = await night(desk)
    assert [type(error) for error in ended.errors] == [NodeUnwellError, NodeUnwellError]
    assert [outcome.step for outcome in ended.outcomes] == ["health", "health"]
    assert asked(desk) == 2 * LOOKS


async def test_a_node_whose_health_is_not_known_is_backed_up_with_a_warning(desk: Desk) -> None:
    desk.configure(health={"url": "https://{host}:9/{name}/health"})
    ended = await night(desk)
    assert ended.outcomes[0].ok
    [warning] = ended.warnings
    assert warning.startswith(f"{desk.name}: its health is not known: its health endpoints cannot be reached; HINT: ")


async def test_no_node_is_looked_at_where_fleet_yaml_has_no_health(desk: Desk) -> None:
    desk.fleet = desk.fleet.model_copy(update={"health": None})
    ended = await night(desk)
    assert ended.outcomes[0].ok
    assert "health" not in ended.taken
    assert asked(desk) == []


@pytest.fixture
def key(simulated: SimulatedFleet) -> str:
    return Path(simulated.health["key_file"]).read_text().strip()


async def test_a_node_cannot_have_the_key_shown_in_what_it_says(desk: Desk, key: str) -> None:
    desk.tell("backup", "refuse", message=f"no: {key}\n")
    ended = await night(desk)
    assert not ended.outcomes[0].ok
    assert key not in repr(ended.outcomes) + repr(ended.errors) + str(ended.warnings)
