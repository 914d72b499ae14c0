"""Two servers with the plugin behind SGLang's own router, which is started as it comes, with its defaults.

The router is installed apart, by `make test-router`, since it is no part of SGLang's environment. Both
servers write their experiments' log into one folder, as servers that share a disk do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from integration_tests.helpers.clients import HTTP, eventually, quiet, scheduled
from integration_tests.helpers.trials import FEEDBACK_KEY, UNIT_KEY, Ground
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec, free_port, running, started

ROUTER_PYTHON = "SGLANG_ROUTER_PYTHON"
"""Environment variable with the Python that has sglang-router."""

MODEL = "pivot"

PRESETS: dict[str, dict[str, Any]] = {
    "short": {"sampler": "power", "alpha": 4.0, "block_size": 16, "steps": 2},
    "default": {"sampler": "power", "alpha": 3.0, "block_size": 16, "steps": 1},
}
"""The default's alpha is asked for by nobody, so that it is known where it shows."""

ROUTING_KEY = "x-smg-routing-key"
"""A header that the router passes on."""

REWARD = "gone"
"""A reward whose endpoint nobody serves: requests that ask for it are answered 502."""


@dataclass(frozen=True)
class Cluster:
    """What runs.

    Args:
        router: SGLang's.
        workers: the servers behind it.
        ground: of their experiments and the log.
    """

    router: Server
    workers: tuple[Server, ...]
    ground: Ground

    def scheduled(self) -> list[float]:
        """Return what each worker's scheduler has ever taken up."""
        return [scheduled(worker) for worker in self.workers]

    def quiet(self) -> None:
        """Wait until no worker has anything left to do."""
        for worker in self.workers:
            quiet(worker)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster for the time of a with-block.

    Args:
        folder: for logs and experiments.
    """
    ground = Ground(folder)
    ground.write("routed", unit={"metadata": "user_id"}, qa={"metadata": "arm", "units": ["tester"]})
    ground.write("by-user", unit={"field": "user"})
    ground.write("by-key", unit={"header": ROUTING_KEY})
    with ExitStack() as stack:
        specs = [_worker(ground, f"worker-{number}") for number in range(2)]
        workers = tuple(stack.enter_context(running(spec, folder)) for spec in specs)
        router = stack.enter_context(routing(workers, folder))
        yield Cluster(router, workers, ground)


def _worker(ground: Ground, name: str) -> ServerSpec:
    config = {
        "presets": PRESETS,
        "defaults": {MODEL: "default"},
        "rewards": {REWARD: {"url": "http://127.0.0.1:9/score", "retries": 0}},
        "experiments": {"directory": str(ground.experiments), "log": str(ground.log)},
    }
    path = ground.folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return ServerSpec(
        PIVOT_MODEL,
        name,
        [
            *["--served-model-name", MODEL, "--page-size", "1", "--enable-metrics", "--enable-cache-report"],
            *["--log-level-http", "warning"],
        ],
        {
            "SGLANG_POWER_CONFIG": str(path),
            "SGLANG_POWER_UNIT_KEY": UNIT_KEY,
            "SGLANG_POWER_FEEDBACK_KEY": FEEDBACK_KEY,
        },
    )


@contextmanager
def routing(workers: Sequence[Server], folder: Path) -> Iterator[Server]:
    """SGLang's router in front of servers of the built-in model, for the time of a with-block.

    Args:
        workers: the servers.
        folder: for its log.
    """
    if not (python := os.environ.get(ROUTER_PYTHON)):
        raise RuntimeError(f"{ROUTER_PYTHON} is not set: run these tests by `make test-router`")
    port = free_port()
    command = [
        *[python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)],
        *["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())],
        *["--worker-urls", *(worker.url for worker in workers)],
    ]
    here = Server(f"http://127.0.0.1:{port}", 0, folder / "router.log", "router")
    with started(here, command, "/health", {}) as router:
        eventually(lambda: _models_behind(router) == [MODEL] * len(workers), "the router has its workers")
        yield router


def _models_behind(router: Server) -> list[str]:
    workers = HTTP.get(router.url + "/workers").json()["workers"]
    return [worker["model_id"] for worker in workers if worker["is_healthy"]]
