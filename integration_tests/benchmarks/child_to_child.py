"""How long a chain waits between two children, in decode steps of a plain answer. One server, one run.

A child's first token comes from the pass that launches it, each further one from a decode pass. So a chain
that is alone on the server takes

    wall = children * gap + (decoded - children) * step

and two chains, one of few long children and one of many short ones, give both. The gap holds everything
between two children: the scheduler's result, the tokenizer process, acceptance, the next request and its
extend pass. It is told in plain decode steps: what a plain answer of 96 tokens takes longer than one of 16,
by 80. Chains and plain answers alternate; medians over rounds are reported.

    python -m integration_tests.benchmarks.child_to_child [--model pivot|smollm2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sglang_power.reports import report_of
from tqdm import tqdm

from integration_tests.measured import origin
from integration_tests.outputs import add_outputs, results_of
from integration_tests.real.preparing import folder_of
from integration_tests.server import PIVOT_MODEL, ServerSpec, running

RESULTS = Path(__file__).parents[1] / "results"
SHORT, LONG = 16, 96
CHAIN: dict[str, Any] = {"sampler": "power", "early_rejection": False}
CHAINS = ((LONG, 10), (8, 60))
"""Tokens of the answer and steps: few long children, many short ones."""

PROMPTS = {"pivot": "R7+3*2-8:", "smollm2": "Once upon a time there was a lighthouse"}
BOUNDS = {"pivot": 3.0, "smollm2": 0.2}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write child_to_child_MODEL.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=PROMPTS, default="pivot")
    parser.add_argument("--rounds", type=int, default=12)
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    folder = PIVOT_MODEL if options.model == "pivot" else folder_of(options.model)
    spec = ServerSpec(folder, options.model, ["--page-size", "1"])
    with tempfile.TemporaryDirectory() as logs, running(spec, Path(logs)) as server:
        record = measure(server.url, PROMPTS[options.model], options.rounds)
    bound = BOUNDS[options.model]
    record |= {
        "target": f"at most {bound:g} decode steps",
        "result": "met" if record["gap_in_steps"] <= bound else "missed",
        **origin(f"child_to_child --model {options.model} --rounds {options.rounds}"),
    }
    path = results_of(options) / f"child_to_child_{options.model}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


def measure(url: str, prompt: str, rounds: int) -> dict[str, Any]:
    """Return the medians over rounds: seconds, and plain decode steps."""
    plain, found = [], []
    with httpx.Client(timeout=600) as client:
        for number in tqdm(range(rounds + 1), unit="round"):
            step = (_plain(client, url, prompt, LONG) - _plain(client, url, prompt, SHORT)) / (LONG - SHORT)
            solved = _gap_and_step(client, url, prompt, number)
            if number:  # the first round warms up
                plain.append(step)
                found.append(solved)
    ratios = [gap / step for (gap, _), step in zip(found, plain, strict=True)]
    return {
        "plain_step_s": statistics.median(plain),
        "chain_step_s": statistics.median(step for _, step in found),
        "gap_s": statistics.median(gap for gap, _ in found),
        "gap_in_steps": statistics.median(ratios),
        "gap_in_steps_quartiles": statistics.quantiles(ratios, n=4),
    }


def _plain(client: httpx.Client, url: str, prompt: str, tokens: int) -> float:
    return _asked(client, url, prompt, {"max_new_tokens": tokens})[0]


def _gap_and_step(client: httpx.Client, url: str, prompt: str, seed: int) -> tuple[float, float]:
    """Return what lies between two children, and a decode pass of a chain, in seconds."""
    counts, walls = [], []
    for tokens, steps in CHAINS:
        chain = {
            "sampler": "power",
            "block_size": tokens,
            "steps": steps,
            "early_rejection": False,
            "seed": seed,
        }
        wall, meta = _asked(client, url, prompt, {"max_new_tokens": tokens, "custom_params": chain})
        report = report_of(meta.get("power"), "power")
        counts.append([int(report["children"]), int(report["decoded_tokens"]) - int(report["children"])])
        walls.append(wall)
    gap, step = np.linalg.solve(np.array(counts, dtype=float), np.array(walls))
    return float(gap), float(step)


def _asked(
    client: httpx.Client, url: str, prompt: str, params: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    body = {"text": prompt, "sampling_params": {"ignore_eos": True, **params}}
    started = time.perf_counter()
    response = client.post(url + "/generate", json=body)
    meta: dict[str, Any] = response.raise_for_status().json()["meta_info"]
    return time.perf_counter() - started, meta


if __name__ == "__main__":
    raise SystemExit(main())
