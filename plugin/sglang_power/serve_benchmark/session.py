"""One run of the benchmark against a running server: its files, before and after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from sglang_power.serve_benchmark import page, plots
from sglang_power.serve_benchmark.connection import connected
from sglang_power.serve_benchmark.driver import Driver, Gap, Server
from sglang_power.serve_benchmark.grid import Options
from sglang_power.serve_benchmark.record import Record
from sglang_power.serve_benchmark.workloads import Workload

FILE: Final = "serve.json"
PAGE: Final = "serve.md"
LOCAL_PACKAGES: Final = ("torch", "transformers")


@dataclass(frozen=True)
class Session:
    """Where and how a run measures.

    Args:
        url: of the server.  headers: of every request.
        status: what its status route says.
        folder: for the files.
        command: what gives these results.
        hardware: of the server, in words.
        model_path, own: see `driver.Server`.
        fresh: whether rows in the folder's file are measured again.
    """

    url: str
    headers: dict[str, str]
    status: dict[str, Any]
    folder: Path
    command: str
    hardware: str
    model_path: Path | None = None
    own: bool = False
    fresh: bool = False

    @property
    def versions(self) -> dict[str, str]:
        """Return those of the server, and of what the published algorithm runs on here."""
        own = {process["version"] for process in self.status["processes"] if process.get("version")}
        local = {name: number for name in LOCAL_PACKAGES if (number := _installed(name)) is not None}
        return {"sglang": self.status["sglang"], "sglang-power": ", ".join(sorted(own)), **local}


@dataclass(frozen=True)
class Results:
    """What a run came to.

    Args:
        record: serve.json.
        not_served: rows that the server does not know, or that were left out.
        failed: cells that went wrong.
        paths: of the files written.
    """

    record: Record
    not_served: Sequence[Gap]
    failed: Sequence[Gap]
    paths: Sequence[Path]


async def measure(session: Session, workloads: Sequence[Workload], options: Options) -> Results:
    """Run the grid and write serve.json, the page and the pictures.

    Raises:
        ConfigError: the folder holds another machine's results.
    """
    session.folder.mkdir(parents=True, exist_ok=True)
    path = session.folder / FILE
    record = Record(hardware=session.hardware, versions=session.versions, command=session.command)
    if not session.fresh:
        record = record.resumed(path)
    server = Server(
        model=session.status["served_model"],
        presets=session.status["presets"],
        model_path=session.model_path,
        own=session.own,
    )
    async with connected(session.url, session.headers) as connection:
        driver = Driver(connection, server, options, record, path)
        await driver.run(workloads)
    results = driver.record, driver.not_served, driver.failed
    driver.record.write(path)
    beside = session.folder / PAGE
    beside.write_text(page.render(*results), encoding="utf-8")
    return Results(*results, paths=[path, beside, *plots.draw(driver.record, session.folder)])


def local_hardware() -> str:
    """Return this machine, in words."""
    import torch
    from sglang_power_kernels.benchmark.machine import describe_machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe_machine(device)
    threads = os.environ.get("OMP_NUM_THREADS")
    each = f", {threads} thread{'s' if threads != '1' else ''} per process" if threads else ""
    return f"{machine['cpu']}{each}, {machine['gpu'] or 'no GPU'}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
