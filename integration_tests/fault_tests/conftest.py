"""The servers of the fault tests: one for what it survives; what kills a server starts one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.helpers.faults import MISBEHAVIOURS, endpoint, idle
from integration_tests.helpers.trials import Ground
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec
from integration_tests.tests.conftest import logs, no_thread_is_left

__all__ = ["logs", "no_thread_is_left"]


@pytest.fixture(scope="session")
def fault_ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """An experiment whose lines are written, and lost."""
    ground = Ground(tmp_path_factory.mktemp("faults"))
    ground.write("logged")
    return ground


@pytest.fixture(scope="session")
def one_fault_server(logs: Path, fault_ground: Ground) -> Iterator[Server]:
    """Behind `fault_server`, which looks whether it is idle afterwards."""
    with endpoint() as url:
        rewards = {
            name: {"url": f"{url}/{name}", "timeout_s": 0.5, "retries": 1, "backoff_s": 0.01}
            for name in ("well", *MISBEHAVIOURS)
        }
        rewards |= {f"{name}_optional": {**rewards[name], "on_error": "without"} for name in MISBEHAVIOURS}
        spec = ServerSpec(
            PIVOT_MODEL,
            "faults",
            [
                *["--page-size", "1", "--enable-metrics", "--log-level-http", "warning"],
                *["--max-running-requests", "16", "--max-queued-requests", "16"],
            ],
            fault_ground.environment(rewards=rewards),
        )
        with server.running(spec, logs, preloaded.fork) as running:
            yield running


@pytest.fixture
def fault_server(one_fault_server: Server) -> Iterator[Server]:
    """The server; whatever a test did to it, nothing is left in it."""
    yield one_fault_server
    idle(one_fault_server)
