"""The simulated health endpoints answer as the vendor's pages say: over https, with a status and nothing else."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from simulator.fleet import SimulatedFleet
from simulator.health import USER


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedFleet]:
    with SimulatedFleet(tmp_path_factory.mktemp("fleet"), 6, health=True) as fleet:
        yield fleet


def ask(fleet: SimulatedFleet, node: str, what: str, key: str | None = None) -> httpx.Response:
    key = Path(fleet.health["key_file"]).read_text().strip() if key is None else key
    url = fleet.health["url"].replace("{host}", "127.0.0.1").replace("{name}", node)
    context = ssl.create_default_context(cafile=fleet.health["ca_file"])
    path = f"{url}/{what}" if what.startswith("status/") else f"{url.removesuffix('/health')}/{what}"
    return httpx.get(path, auth=(USER, key) if key else None, verify=context, trust_env=False)


def test_a_well_node_answers_204_without_a_body_and_testall_ok(fleet: SimulatedFleet) -> None:
    answer = ask(fleet, "a0-1", "status/disk")
    assert (answer.status_code, answer.content) == (204, b"")
    answer = ask(fleet, "a0-1", "testall", key="")
    assert (answer.status_code, answer.text) == (200, "OK")


def test_what_is_not_well_answers_520_without_a_body_and_testall_503(fleet: SimulatedFleet) -> None:
    fleet.tell("a0-2", None, "unwell")
    answer = ask(fleet, "a0-2", "status/replicaset")
    assert (answer.status_code, answer.content) == (520, b"")
    assert ask(fleet, "a0-2", "testall").status_code == 503
    fleet.forget("a0-2")
    assert ask(fleet, "a0-2", "status/replicaset").status_code == 204


def test_the_key_is_needed_and_no_other_path_is_there(fleet: SimulatedFleet) -> None:
    assert ask(fleet, "a0-3", "status/disk", key="").status_code == 401
    assert ask(fleet, "a0-3", "status/disk", key="wrong").status_code == 401
    assert ask(fleet, "a0-3", "status/tape").status_code == 404
    assert ask(fleet, "a0-99", "testall").status_code == 404


def test_more_than_ten_requests_in_a_second_are_answered_429(fleet: SimulatedFleet) -> None:
    key = Path(fleet.health["key_file"]).read_text().strip()
    url = fleet.health["url"].replace("{host}", "127.0.0.1").replace("{name}", "a0-4")
    context = ssl.create_default_context(cafile=fleet.health["ca_file"])
    with httpx.Client(auth=(USER, key), verify=context, trust_env=False) as client:
        client.get(f"{url}/status/disk")  # the handshake takes its time
        statuses = []
        while 429 not in statuses and len(statuses) < 500:
            statuses.append(client.get(f"{url}/status/disk").status_code)
    assert statuses[:9] == [204] * 9
    assert statuses[-1] == 429


def test_an_answer_can_be_ordered(fleet: SimulatedFleet) -> None:
    fleet.tell("a0-5", "status/db", "health_answer", status=429, headers={"Retry-After": "7"}, times=1)
    answer = ask(fleet, "a0-5", "status/db")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert ask(fleet, "a0-5", "status/db").status_code == 204
    assert [request["faults"] for request in fleet.health_requests("a0-5")] == [["health_answer"], []]


def test_the_certificate_is_trusted_only_by_who_has_the_authority(fleet: SimulatedFleet) -> None:
    url = fleet.health["url"].replace("{host}", "127.0.0.1").replace("{name}", "a0-6")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/status/disk", trust_env=False)
