"""The same work for many nodes: what happens to all of it when one of them meets a signal."""

import asyncio
import signal
from types import FrameType

import pytest

from a0backup.fleet.models import Node

NODES = [Node(name=f"a0-{number}", host="127.0.0.1") for number in range(1, 5)]


async def test_a_signal_during_one_nodes_work_ends_all_and_is_passed_on_unchanged() -> None:
    from prefect.exceptions import TerminationSignal

    from flows.fan_out import for_each

    ended = []

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise TerminationSignal(number)

    async def work(node: Node) -> None:
        try:
            await asyncio.sleep(0.01 if node.name == "a0-2" else 600)
            signal.raise_signal(signal.SIGUSR1)
        finally:
            ended.append(node.name)

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        with pytest.raises(TerminationSignal):
            await for_each(NODES, work, at_most=4)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(ended) == [node.name for node in NODES]
