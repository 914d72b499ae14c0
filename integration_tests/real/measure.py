"""`python -m integration_tests.real.measure`: what exact answers cost on SmolLM2, beside plain ones.

`sglang-power bench serve` measures the rows (plain, the preset fast-exact, a chain of `power`, the naive
client's chain, by 1 and 8 clients); single plain requests and batches of them are timed here. Writes
real.json and real.md outside the checkout; `--write` renews those that are committed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx
from sglang_power import cli
from sglang_power.errors import HostError, PowerError
from sglang_power.serve_benchmark.record import Record, Row
from sglang_power.server.config import load_config
from transformers import AutoTokenizer

from integration_tests.demo import RESULTS, hardware
from integration_tests.outputs import add_outputs, results_of
from integration_tests.real.catalogue import SMOLLM2
from integration_tests.real.page import render
from integration_tests.real.preparing import prepared
from integration_tests.real.tour import PRESETS, served_spec
from integration_tests.server import running

TOKENS: Final = 48
PRESET: Final = load_config(PRESETS).presets["fast-exact"]
BATCH: Final = PRESET["particles"] * PRESET["runs"]
"""Plain answers at once: as many as fast-exact has particles."""

CLIENTS: Final = (1, 8)
ROWS: Final = ("fast_exact", "power_uniform", "naive")
REPEATS: Final = 5
SUBJECTS: Final = (
    *(
        "a lighthouse",
        "a lost key",
        "a fox",
        "the first snow",
        "an old map",
        "a blue door",
        "a train",
        "a clock",
    ),
    *("a violin", "a river", "the Moon", "a market", "a ladder", "a letter", "a garden", "a storm"),
    *("a mirror", "a bridge", "an orchard", "a whale", "a candle", "a library", "a desert", "a kite"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print the page; 1 where a row failed."""
    parser = argparse.ArgumentParser(description="Measure exact answers on SmolLM2 beside plain ones.")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="after which a cell asks for nothing further"
    )
    add_outputs(parser, "real", RESULTS)
    options = parser.parse_args(argv)
    try:
        record = measured(prepared(SMOLLM2), options.seconds)
    except PowerError as error:
        print(error, file=sys.stderr)
        return 1
    folder = results_of(options)
    (folder / "real.json").write_text(json.dumps(record, indent=1) + "\n")
    page = render(record)
    (folder / "real.md").write_text(page)
    print(page)
    return 0


def measured(model: Path, seconds: float) -> dict[str, Any]:
    """Return what real.json holds.

    Args:
        model: the folder of SmolLM2.
        seconds: of a cell of the benchmark.

    Raises:
        HostError: the benchmark could not measure a row.
    """
    spec = served_spec(SMOLLM2)
    spec = replace(spec, arguments=[*spec.arguments, "--page-size", "1", "--max-running-requests", "256"])
    with tempfile.TemporaryDirectory() as place, running(spec, Path(place)) as server:
        texts = prompts(model)
        single = asyncio.run(singles(server.url, texts))
        asked = Path(place) / "stories.jsonl"
        asked.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        options = [
            *["--url", server.url, "--prompts", str(asked), "--max-tokens", str(TOKENS), "--rows", *ROWS],
            *["--concurrency", *map(str, CLIENTS), "--ladder", "--open-load", "0", "--seconds", str(seconds)],
            *["--output", str(Path(place) / "bench")],
        ]
        if cli.main(["bench", "serve", *options]) != 0:
            raise HostError("sglang-power bench serve could not measure every row: see above")
        rows = Record.read(Path(place) / "bench" / "serve.json").rows
    return {
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("sglang", "sglang-power", "torch", "transformers")},
        "command": f"python -m integration_tests.real.measure --seconds {seconds:g}",
        "model": SMOLLM2.title,
        "tokens": TOKENS,
        "batch": BATCH,
        "single": single,
        "rows": [row.model_dump(mode="json") for row in rows],
        "launch": launch(single, rows),
    }


def prompts(model: Path) -> list[str]:
    """Return chats that ask for a story, as the model's template writes them: answers longer than TOKENS."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [[{"role": "user", "content": f"Write a short story about {what}."}] for what in SUBJECTS]
    return [
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) for chat in chats
    ]


async def singles(url: str, texts: Sequence[str]) -> dict[str, float]:
    """Return the median seconds of plain answers whose prompts are cached: of one token, of TOKENS, and of
    TOKENS for BATCH at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def timed(tokens: int, count: int) -> float:
            began = time.perf_counter()
            await asyncio.gather(*(_plain(client, text, tokens) for text in _cycled(texts, count)))
            return time.perf_counter() - began

        await timed(2, len(texts))  # caches the prompts
        return {
            "one_token_s": statistics.median([await timed(1, 1) for _ in range(4 * REPEATS)]),
            "answer_s": statistics.median([await timed(TOKENS, 1) for _ in range(REPEATS)]),
            "batch_s": statistics.median([await timed(TOKENS, BATCH) for _ in range(REPEATS)]),
        }


async def _plain(client: httpx.AsyncClient, text: str, tokens: int) -> None:
    sampling = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
    response = await client.post("/generate", json={"text": text, "sampling_params": sampling})
    response.raise_for_status()


def _cycled(texts: Sequence[str], count: int) -> list[str]:
    return [texts[number % len(texts)] for number in range(count)]


def launch(single: Mapping[str, float], rows: Sequence[Row]) -> dict[str, float | None]:
    """Return what a decode step takes, and what one child of a chain costs beside its decode steps.

    `step_s` is the time of one decode step, (answer - one token) / (TOKENS - 1). `child_steps` is the mean
    time from the last token of a child to the first one of the next, its own prefill included, in decode
    steps: what the chain's answers took beyond their decode passes, by the number of launches.
    `request_steps` is the same for plain requests over HTTP, of one token.
    """
    step = (single["answer_s"] - single["one_token_s"]) / (TOKENS - 1)
    (chain,) = (row for row in rows if row.sampler == "power_uniform" and row.concurrency == 1)
    if chain.decode_passes_per_answer is None or chain.extend_passes_per_answer is None:
        raise HostError("the server counts no passes: it has to run with --enable-metrics")
    beyond = 60.0 / chain.answers_per_minute - chain.decode_passes_per_answer * step
    return {
        "step_s": step,
        "child_steps": beyond / chain.extend_passes_per_answer / step,
        "request_steps": single["one_token_s"] / step,
    }


if __name__ == "__main__":
    raise SystemExit(main())
