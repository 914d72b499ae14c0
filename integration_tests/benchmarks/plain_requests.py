"""Does the plugin slow plain requests down? A paired benchmark, with the plugin loaded and excluded.

Two servers of the same model run at once; rounds alternate between them, so that both see the same
machine. Reported: the median over rounds of the ratio of throughputs, and the throughput of plain
requests with eight power requests running beside them.

    python -m integration_tests.benchmarks.plain_requests
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
from sglang_power.reports import report_of
from tqdm import tqdm

from integration_tests.measured import origin
from integration_tests.outputs import add_outputs, results_of
from integration_tests.pivot.problems import problems
from integration_tests.server import PIVOT_MODEL, ServerSpec, running

RESULTS = Path(__file__).parent / "results"
TOKENS = 48
CONCURRENCY = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds and write plain_requests.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--requests", type=int, default=256, help="plain requests per round and server")
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as logs:
        loaded = ServerSpec(PIVOT_MODEL, "loaded")
        excluded = ServerSpec(PIVOT_MODEL, "excluded", environment={"SGLANG_PLUGINS": "torch_cpu"})
        with running(loaded, Path(logs)) as ours, running(excluded, Path(logs)) as stock:
            record = asyncio.run(measure(ours.url, stock.url, options.rounds, options.requests))
    record |= {
        **origin(f"plain_requests --rounds {options.rounds} --requests {options.requests}"),
    }
    (results_of(options) / "plain_requests.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


async def measure(ours: str, stock: str, rounds: int, requests: int) -> dict[str, object]:
    """Alternate rounds; throughputs in tokens per second."""
    ratios, beside = [], []
    async with httpx.AsyncClient(timeout=600) as client:
        for url in (ours, stock):
            await throughput(client, url, requests)  # warm both
        for number in tqdm(range(rounds), unit="round"):
            order = (ours, stock) if number % 2 == 0 else (stock, ours)
            measured = {url: await throughput(client, url, requests) for url in order}
            ratios.append(measured[ours] / measured[stock])
        for _ in range(3):
            alone = await throughput(client, ours, requests)
            beside.append(await throughput_beside_power(client, ours, requests) / alone)
    return {
        "loaded_over_excluded_median": statistics.median(ratios),
        "loaded_over_excluded_quartiles": statistics.quantiles(ratios, n=4),
        "rounds": rounds,
        "beside_8_power_over_alone_median": statistics.median(beside),
    }


async def throughput(client: httpx.AsyncClient, url: str, count: int) -> float:
    """Decoded tokens per second of plain sampled requests."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(text: str) -> int:
        body = {"text": text, "sampling_params": {"max_new_tokens": TOKENS, "ignore_eos": True}}
        async with slots:
            response = await client.post(url + "/generate", json=body)
        response.raise_for_status()
        return int(response.json()["meta_info"]["completion_tokens"])

    prompts = [problem.text for problem in problems("R", count, seed=1)]
    started = time.perf_counter()
    tokens = sum(await asyncio.gather(*(one(text) for text in prompts)))
    return tokens / (time.perf_counter() - started)


async def throughput_beside_power(client: httpx.AsyncClient, url: str, count: int) -> float:
    """The same with eight power requests running all the time."""

    async def keep_running(text: str) -> None:
        custom = {"sampler": "power", "block_size": 16}
        body = {"text": text, "sampling_params": {"max_new_tokens": TOKENS, "custom_params": custom}}
        while True:
            answer = (await client.post(url + "/generate", json=body)).raise_for_status().json()
            report_of(answer["meta_info"].get("power"), "power")

    tasks = [asyncio.create_task(keep_running(p.text)) for p in problems("R", 8, seed=2)]
    try:
        return await throughput(client, url, count)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    raise SystemExit(main())
