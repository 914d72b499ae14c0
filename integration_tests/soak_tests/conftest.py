"""The servers of the soak: started as users start them, with SGLang's router in front of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from integration_tests.router_tests.cluster import routing
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec, running
from integration_tests.tests.conftest import TEST_CONFIG, logs, no_thread_is_left, third_party

__all__ = ["logs", "no_thread_is_left", "third_party"]


def pivot_spec(installed_at: Sequence[Path], environment: Mapping[str, str]) -> ServerSpec:
    """Return the pivot model's server with the distributions of some folders beside it.

    Args:
        installed_at: folders with installed distributions.
        environment: further variables.
    """
    path = os.pathsep.join([*map(str, installed_at), *filter(None, [os.environ.get("PYTHONPATH")])])
    return ServerSpec(
        PIVOT_MODEL,
        "pivot",
        ["--page-size", "1", "--enable-metrics", "--log-level-http", "warning"],
        {"SGLANG_POWER_CONFIG": str(TEST_CONFIG), "PYTHONPATH": path, **environment},
    )


def installed(module: Path, folder: Path) -> Path:
    """Install a plugin of SGLang, one module with a function `register`, into a new folder; return that."""
    info = folder / f"soak_{module.stem}-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(module, folder / f"soak_{module.name}")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: soak-{module.stem}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[sglang.srt.plugins]\nsoak_{module.stem} = soak_{module.stem}:register\n"
    )
    return folder


@pytest.fixture(scope="session")
def soaked(logs: Path, third_party: Path) -> Iterator[Server]:
    """The server of the soak."""
    with running(pivot_spec([third_party], {}), logs) as server:
        yield server


@pytest.fixture(scope="session")
def router(soaked: Server, logs: Path) -> Iterator[Server]:
    """SGLang's router in front of it."""
    with routing([soaked], logs) as router:
        yield router
