"""The look at a node's health endpoints, over real HTTPS, against a node that answers as it likes."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from a0backup.errors import NodeUnwellError
from a0backup.fleet.health import Health, HealthKey
from a0backup.fleet.models import Node
from a0backup.passwords import shared
from a0backup.passwords.shared import Source
from a0backup.upkeep import health_endpoints
from a0backup.upkeep.health import Look, look_at
from simulator.fleet import SimulatedFleet

EACH = ("status/disk", "status/replicaset", "testall")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 80, health=True) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def unused(simulated: SimulatedFleet) -> Iterator[dict[str, Any]]:
    return itertools.chain(simulated.nodes)


class Desk:
    """A node whose health endpoints may be spoilt, and an operator with its key."""

    def __init__(self, simulated: SimulatedFleet, node: dict[str, Any]) -> None:
        self.simulated, self.node = simulated, Node(**node)
        self.health = Health(
            url=simulated.health["url"],
            key=HealthKey(file=Path(simulated.health["key_file"])),
            ca_file=Path(simulated.health["ca_file"]),
        )

    def spoil(self, endpoint: str | None, fault: str, **settings: Any) -> None:
        self.simulated.tell(self.node.name, endpoint, fault, **settings)

    def answers(self, status: int, what: str = "status/disk", **settings: Any) -> None:
        self.spoil(what, "health_answer", status=status, **settings)

    def look(self, **said: Any) -> Look:
        return asyncio.run(look_at(self.health, self.node, **{"load": load} | said))

    @property
    def asked(self) -> list[str]:
        return [request["what"] for request in self.simulated.health_requests(self.node.name)]

    def is_not_known(self, *words: str) -> None:
        """Assert that a look gives nothing but a warning with these words, and does not keep a run from a backup."""
        look = self.look()
        look.require_well(self.node.name)
        [warning] = look.warnings
        for word in words:
            assert word in warning


async def load(source: Source) -> str | None:
    async def block(name: str) -> object:
        raise AssertionError(name)

    return await shared.load(source, block=block)


@pytest.fixture
def desk(simulated: SimulatedFleet, unused: Iterator[dict[str, Any]]) -> Desk:
    return Desk(simulated, next(unused))


def test_a_node_that_is_well_gives_nothing_to_say(desk: Desk) -> None:
    assert desk.look() == Look()
    assert desk.asked == list(EACH)


def test_a_check_asks_every_endpoint(desk: Desk) -> None:
    assert desk.look(everything=True) == Look()
    parts = ("disk", "replicaset", "cpu", "memory", "services", "network", "internet", "email", "db")
    assert desk.asked == [*(f"status/{part}" for part in parts), "testall"]


@pytest.mark.parametrize(
    ("part", "said"), [("disk", "a volume is over 90 % full"), ("replicaset", "a replica is down")]
)
def test_a_node_that_cannot_bear_a_backup_is_not_asked_for_one(desk: Desk, part: str, said: str) -> None:
    desk.spoil(f"status/{part}", "unwell")
    look = desk.look()
    with pytest.raises(NodeUnwellError, match=re.escape(f"not asked for a backup: {part} is not well ({said})")):
        look.require_well(desk.node.name)
    assert look.warnings == ()


def test_such_a_node_is_asked_with_a_warning_where_that_was_chosen(desk: Desk) -> None:
    desk.health = desk.health.model_copy(update={"on_failure": "warn"})
    desk.spoil("status/disk", "unwell")
    look = desk.look()
    look.require_well(desk.node.name)
    assert look.warnings == ("disk is not well (a volume is over 90 % full)",)


@pytest.mark.parametrize("what", ["status/cpu", "status/memory", "status/db", "testall"])
def test_what_a_backup_does_not_need_is_only_a_warning(desk: Desk, what: str) -> None:
    desk.spoil(what, "unwell")
    look = desk.look(everything=True)
    look.require_well(desk.node.name)
    [warning] = look.warnings
    assert what.removeprefix("status/") in warning
    assert "not well" in warning


def test_no_node_is_asked_more_than_ten_times_in_a_second(desk: Desk) -> None:
    desk.look(everything=True)
    times = [request["time"] for request in desk.simulated.health_requests(desk.node.name)]
    assert len(times) == 10
    # Eleven requests take more than ten such pauses.
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.1


def test_a_node_that_is_asked_too_often_is_asked_again_when_it_says(desk: Desk) -> None:
    desk.answers(429, times=1, headers={"Retry-After": "1"})
    start = time.monotonic()
    assert desk.look() == Look()
    assert time.monotonic() - start >= 1
    assert desk.asked == ["status/disk", *EACH]


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("", 1, 1),
        ("3", 3, 3),
        ("86400", 10, 10),
        ("9" * 5000, 10, 10),
        ("-5", 1, 1),
        ("soon", 1, 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.1, 0.2),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 10, 10),
    ],
)
def test_how_long_a_node_may_make_us_wait_is_bounded(header: str, least: float, most: float) -> None:
    assert least <= health_endpoints.pause_after(header) <= most


def test_a_node_that_is_always_asked_too_often_is_not_asked_for_ever(desk: Desk) -> None:
    desk.answers(429)
    desk.is_not_known("disk is not known: the node was asked too often")
    assert desk.asked == ["status/disk"] * 3 + ["status/replicaset", "testall"]


def test_the_key_goes_to_no_other_address_and_not_to_testall(desk: Desk) -> None:
    desk.answers(302, times=1, headers={"Location": desk.health.url_of("127.0.0.1", "a0-1") + "/status/cpu"})
    desk.is_not_known("it answers with a redirect (status 302)", "HINT: correct health.url")
    assert desk.asked == ["status/disk"]
    desk.look()
    keys = {request["what"]: request["with_key"] for request in desk.simulated.health_requests(desk.node.name)}
    assert keys == {"status/disk": True, "status/replicaset": True, "testall": False}


def test_a_wrong_key_is_said_with_what_to_do(desk: Desk) -> None:
    async def wrong(source: Source) -> str:
        return "not-the-key"

    look = desk.look(load=wrong)
    look.require_well(desk.node.name)
    [warning] = look.warnings
    assert "the node refuses the key (status 401); HINT: put the key of the node's dashboard" in warning
    assert desk.asked == ["status/disk"]


def test_a_key_that_is_not_there_is_said_with_what_to_do(desk: Desk, tmp_path: Path) -> None:
    desk.health = desk.health.model_copy(update={"key": HealthKey(file=tmp_path / "health.key")})
    desk.is_not_known("the key", str(tmp_path / "health.key"), "HINT")
    assert desk.asked == []


def test_a_key_may_be_a_text_that_a0cli_could_not_take(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "health.key").write_text("-starts-like-an-option\n")
    (tmp_path / "health.key").chmod(0o600)
    desk.health = desk.health.model_copy(update={"key": HealthKey(file=tmp_path / "health.key")})
    desk.is_not_known("the node refuses the key")


def test_a_certificate_that_is_not_trusted_is_said_and_gets_no_key(desk: Desk) -> None:
    desk.health = desk.health.model_copy(update={"ca_file": None})
    desk.is_not_known("its certificate is not trusted", "HINT: set health.ca_file")
    assert desk.asked == []


def test_a_certificate_for_another_name_is_not_trusted(desk: Desk) -> None:
    node = desk.node.model_copy(update={"host": "localhost"})
    look = asyncio.run(look_at(desk.health, node, load=load))
    assert "its certificate is not trusted (Hostname mismatch" in look.warnings[0]
    assert desk.asked == []


@pytest.mark.parametrize("content", [None, "", "not a certificate"])
def test_an_unusable_ca_file_is_said(desk: Desk, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    desk.health = desk.health.model_copy(update={"ca_file": tmp_path / "ca.pem"})
    desk.is_not_known(f"{tmp_path / 'ca.pem'} ", "HINT: health.ca_file in fleet.yaml")
    assert desk.asked == []


@pytest.mark.parametrize("status", [200, 404, 500, 502])
def test_an_unexpected_status_is_no_verdict(desk: Desk, status: int) -> None:
    desk.answers(status)
    if status == 200:
        assert desk.look() == Look()
    else:
        desk.is_not_known(f"disk is not known: the node answers {status}")


def test_a_node_that_cannot_be_reached_is_only_a_warning(desk: Desk) -> None:
    desk.spoil(None, "unreachable")
    desk.is_not_known("its health is not known", "its health endpoints give no usable answer")
    desk.health = desk.health.model_copy(update={"url": "https://{host}:9/{name}/health"})
    desk.is_not_known("its health endpoints cannot be reached; HINT: check health.url and the firewall")


@pytest.mark.parametrize("fault", ["silent", "body", "headers", "drip"])
def test_a_node_that_never_ends_its_answer_holds_nobody(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(health_endpoints, "SILENCE", 1.0)
    monkeypatch.setattr(health_endpoints, "REQUEST", 2.0)
    if fault == "silent":
        desk.spoil("status/disk", "health_silent")
    else:
        desk.spoil("status/disk", "health_endless", what=fault)
    look = desk.look()
    look.require_well(desk.node.name)
    # An endless body follows a status that says enough.
    assert look.warnings == () if fault == "body" else "its health is not known" in look.warnings[0]


def test_all_requests_together_have_an_end(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_endpoints, "WHOLE", 0.5)
    desk.answers(429, headers={"Retry-After": "9"})
    desk.is_not_known("the endpoints did not all answer within")


def test_nothing_of_the_environment_sends_the_key_elsewhere(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    assert desk.look() == replace(Look(), refuse=True)
    assert desk.asked == list(EACH)
