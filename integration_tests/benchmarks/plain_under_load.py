"""What plain requests pay for power requests beside them, by the side of as many plain tokens. Paired rounds.

One server. Each pair has two rounds in alternating order: clients that ask for power all the time, and plain
requests that make the server decode as many tokens a second (measured by SGLang's own counter in the power
round before). Beside both, the same few clients ask for plain streams, one after another: their latency,
the time between their tokens and their cache hits are compared. Reported: for each figure the median over
pairs of the ratio of power's round to the plain one, with a bootstrap interval (BCa, scipy) over pairs.

    python -m integration_tests.benchmarks.plain_under_load [--pairs 12] [--seconds 12]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy import stats
from sglang_power.reports import report_of
from tqdm import tqdm

from integration_tests.measured import origin
from integration_tests.outputs import add_outputs, results_of
from integration_tests.pivot.problems import problems
from integration_tests.server import PIVOT_MODEL, ServerSpec, running

RESULTS = Path(__file__).parents[1] / "results"
TOKENS = 48
PROBES = 4
POWER_CLIENTS = 8
POWER: dict[str, Any] = {"sampler": "power", "block_size": 16, "prefetch": 8}
RAMP_S = 2.0
DECODED = re.compile(r'^sglang:realtime_tokens_total{.*mode="decode".*} (\S+)$', re.MULTILINE)
"""What decode passes give, children's tokens too; the first token of each request comes from its prefill."""

TARGETS = {"p99_latency": ("at most", 1.2), "p99_gap": ("at most", 1.2), "cache_hits": ("at least", 0.95)}
"""Bounds of the ratios."""


@dataclass
class Seen:
    """What the probing clients saw in one round.

    Args:
        latencies: of whole answers, seconds.
        gaps: between two chunks of an answer, seconds.
        prompt_tokens, cached_tokens: of all prompts.
    """

    latencies: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def figures(self) -> dict[str, float]:
        """Return what is compared."""
        return {
            "p50_latency": float(np.percentile(self.latencies, 50)),
            "p99_latency": float(np.percentile(self.latencies, 99)),
            "p50_gap": float(np.percentile(self.gaps, 50)),
            "p99_gap": float(np.percentile(self.gaps, 99)),
            "cache_hits": self.cached_tokens / self.prompt_tokens,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds and write plain_under_load.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=12.0, help="of a round")
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    spec = ServerSpec(
        PIVOT_MODEL, "under-load", ["--page-size", "1", "--enable-metrics", "--max-running-requests", "256"]
    )
    with tempfile.TemporaryDirectory() as logs, running(spec, Path(logs)) as server:
        record = asyncio.run(measure(server.url, options.pairs, options.seconds))
    record |= {
        **origin(f"plain_under_load --pairs {options.pairs} --seconds {options.seconds:g}"),
    }
    (results_of(options) / "plain_under_load.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


async def measure(url: str, pairs: int, seconds: float) -> dict[str, Any]:
    """Alternate rounds; ratios of the figures under power to those under plain tokens."""
    rounds: dict[str, list[dict[str, float]]] = {"power": [], "plain": []}
    rates: dict[str, list[float]] = {"power": [], "plain": []}
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        _, rate = await one_round(
            client, url, power_load, seconds
        )  # warms up, and says how much plain load it is
        for number in tqdm(range(pairs), unit="pair"):
            loads: list[tuple[str, Load]] = [("power", power_load), ("plain", plain_load(rate))]
            for name, load in loads if number % 2 == 0 else reversed(loads):
                seen, measured = await one_round(client, url, load, seconds)
                rounds[name].append(seen.figures())
                rates[name].append(measured)
            rate += rates["power"][-1] - rates["plain"][-1]  # the probes decode, too
    return {
        "pairs": pairs,
        "decoded_tokens_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "median": {
            name: {figure: statistics.median(one[figure] for one in seen) for figure in seen[0]}
            for name, seen in rounds.items()
        },
        "power_over_plain": {figure: _ratio(rounds, figure) for figure in rounds["power"][0]},
    }


def _ratio(rounds: dict[str, list[dict[str, float]]], figure: str) -> dict[str, Any]:
    ratios = [a[figure] / b[figure] for a, b in zip(rounds["power"], rounds["plain"], strict=True)]
    interval = stats.bootstrap((ratios,), np.median, rng=np.random.default_rng(1)).confidence_interval
    told: dict[str, Any] = {"median": statistics.median(ratios), "ci95": [interval.low, interval.high]}
    if figure in TARGETS:
        sense, bound = TARGETS[figure]
        is_met = told["median"] <= bound if sense == "at most" else told["median"] >= bound
        told |= {"target": f"{sense} {bound}", "result": "met" if is_met else "missed"}
    return told


Load = Callable[[httpx.AsyncClient, str], Awaitable[None]]
"""Asks a server until it is cancelled."""


async def one_round(client: httpx.AsyncClient, url: str, load: Load, seconds: float) -> tuple[Seen, float]:
    """Return what the probes saw beside a load, and the tokens a second that the server decoded."""
    seen = Seen()
    async with beside(load(client, url)):
        await asyncio.sleep(RAMP_S)
        decoded, started = await _decoded(client, url), time.perf_counter()
        end = started + seconds
        await asyncio.gather(*[_probe(client, url, number, end, seen) for number in range(PROBES)])
        rate = (await _decoded(client, url) - decoded) / (time.perf_counter() - started)
    return seen, rate


@asynccontextmanager
async def beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Something that runs for the time of a with-block."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def power_load(client: httpx.AsyncClient, url: str) -> None:
    """Ask for power, several at once, all the time."""

    async def keep_asking(number: int) -> None:
        for problem in itertools.cycle(problems("R", 64, seed=number)):
            params = {"max_new_tokens": TOKENS, "custom_params": POWER}
            response = await client.post(
                url + "/generate", json={"text": problem.text, "sampling_params": params}
            )
            report_of(response.raise_for_status().json()["meta_info"].get("power"), "power")

    await asyncio.gather(*[keep_asking(number) for number in range(POWER_CLIENTS)])


def plain_load(tokens_per_s: float) -> Load:
    """Return a load of plain requests with Poisson arrivals.

    Args:
        tokens_per_s: that they decode together.
    """

    async def ask(client: httpx.AsyncClient, url: str) -> None:
        draw, prompts = random.Random(3), itertools.cycle(problems("R", 512, seed=3))
        async with asyncio.TaskGroup() as group:
            while True:
                params = {"max_new_tokens": TOKENS, "ignore_eos": True}
                body = {"text": next(prompts).text, "sampling_params": params}
                group.create_task(_answered(client, url, body))
                await asyncio.sleep(draw.expovariate(max(tokens_per_s, 1.0) / TOKENS))

    return ask


async def _answered(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    (await client.post(url + "/generate", json=body)).raise_for_status()


async def _probe(client: httpx.AsyncClient, url: str, number: int, end: float, seen: Seen) -> None:
    """Ask for plain streams, one after another, until the time is over."""
    for problem in itertools.cycle(problems("R", 32, seed=1000 + number)):
        if time.perf_counter() >= end:
            return
        params = {"max_new_tokens": TOKENS, "ignore_eos": True}
        body = {"text": problem.text * 4, "sampling_params": params, "stream": True}
        started = last = time.perf_counter()
        meta: dict[str, Any] = {}
        async with client.stream("POST", url + "/generate", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                now = time.perf_counter()
                if meta:
                    seen.gaps.append(now - last)
                meta, last = json.loads(line.removeprefix("data: "))["meta_info"], now
        seen.latencies.append(time.perf_counter() - started)
        seen.prompt_tokens += meta["prompt_tokens"]
        seen.cached_tokens += meta["cached_tokens"]


async def _decoded(client: httpx.AsyncClient, url: str) -> float:
    """Return the tokens that the server's decode passes ever gave."""
    text = (await client.get(url + "/metrics")).text
    return sum(float(count) for count in DECODED.findall(text))


if __name__ == "__main__":
    raise SystemExit(main())
