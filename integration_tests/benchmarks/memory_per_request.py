"""What a running power request holds in memory, beside a plain one. Two fresh servers, one load each.

So many requests run at once, plain ones on one server and chains on the other; of each server's processes the
resident memory is compared with that before the load, while it is at its highest. The difference of the
differences, by requests, is what a chain holds more than a plain answer: the plugin's own state, and its
children's in SGLang. It is an upper bound: an allocator keeps what it was given once.

    python -m integration_tests.benchmarks.memory_per_request
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from sglang_power.reports import report_of

from integration_tests.measured import origin
from integration_tests.outputs import add_outputs, results_of
from integration_tests.pivot.problems import problems
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec, running

RESULTS = Path(__file__).parents[1] / "results"
TOKENS = 96
CHAIN: dict[str, Any] = {"sampler": "power", "block_size": 48, "steps": 10, "early_rejection": False}
PER_TOKEN, PER_REQUEST = 256, 64 * 1024
"""Bytes that a request may hold: for every live token, and at all."""

EVERY_S = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write memory_per_request.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=192)
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    count: int = options.requests
    grown = {name: _grown(name, custom, count) for name, custom in (("plain", None), ("power", CHAIN))}
    per_request = (grown["power"] - grown["plain"]) / count
    live = TOKENS + len(problems("R", 1, seed=1)[0].text)
    bound = PER_TOKEN * live + PER_REQUEST
    record = {
        "requests": count,
        "live_tokens": live,
        "grown_bytes": grown,
        "bytes_per_power_request": per_request,
        "target": f"at most {PER_TOKEN} bytes a live token and {PER_REQUEST // 1024} kB: {bound}",
        "result": "met" if per_request <= bound else "missed",
        **origin(f"memory_per_request --requests {count}"),
    }
    (results_of(options) / "memory_per_request.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


def _grown(name: str, custom: dict[str, Any] | None, count: int) -> int:
    """Return what all processes of a fresh server grow by under the load, in bytes."""
    spec = ServerSpec(PIVOT_MODEL, name, ["--page-size", "1", "--max-running-requests", "256"])
    with tempfile.TemporaryDirectory() as logs, running(spec, Path(logs)) as server:
        asyncio.run(_asked(server, custom, 4))  # imports, buffers of the first batch
        before = _resident(server)
        return asyncio.run(_highest(server, custom, count)) - before


async def _highest(server: Server, custom: dict[str, Any] | None, count: int) -> int:
    """Return the most that the processes held while requests ran."""
    asking, most = asyncio.create_task(_asked(server, custom, count)), 0
    while not asking.done():
        most = max(most, _resident(server))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asking), EVERY_S)
    await asking
    return most


async def _asked(server: Server, custom: dict[str, Any] | None, count: int) -> None:
    """Ask for so many answers at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=1200, limits=limits) as client:

        async def ask(text: str) -> None:
            params = {"max_new_tokens": TOKENS, "ignore_eos": True}
            named = {} if custom is None else {"custom_params": custom}
            body = {"text": text, "sampling_params": {**params, **named}}
            response = await client.post("/generate", json=body)
            meta = response.raise_for_status().json()["meta_info"]
            if custom is not None:
                report_of(meta.get("power"), "power")

        await asyncio.gather(*[ask(problem.text) for problem in problems("R", count, seed=2)])


def _resident(server: Server) -> int:
    first = psutil.Process(server.pid)
    return sum(process.memory_info().rss for process in (first, *first.children(recursive=True)))


if __name__ == "__main__":
    raise SystemExit(main())
