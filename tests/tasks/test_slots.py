"""The engine's slots: what happens to a run if the engine is away when the run takes or releases them."""

from pathlib import Path

import pytest

from deployments.home import use_api
from tests.system.faults.engines import operators_server

pytestmark = [pytest.mark.engine, pytest.mark.slow]


async def test_a_run_works_and_ends_although_the_engine_is_away_for_a_moment(own_home: Path) -> None:
    from prefect import flow

    from tasks.slots import slots

    with operators_server(own_home) as server, use_api(server.api, own_home):
        done = []

        @flow
        async def works() -> None:
            async with slots("a0-1", deadline=5):
                server.kill()
                done.append("with slots, which are to be given back while the engine is away")
            async with slots("a0-2", deadline=5):
                done.append("without, as the engine is away")
            server.start()

        await works()
    assert len(done) == 2
