"""`python -m integration_tests.arithmetic.measure`: every sampler on held-out problems, by a real server.

Writes arithmetic.json and arithmetic.md outside the checkout; `--write` renews those that are committed. The
figures are what they are: no parameter was tuned on this task. Beside accuracy and cost it tells how closely
log p and being right go together, which decides whether any sampler of p^alpha can help.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx
from sglang_power.server.config import load_config

from integration_tests.arithmetic.correlation import Draw, correlation
from integration_tests.arithmetic.page import render
from integration_tests.arithmetic.problems import (
    ANSWER_REGEX,
    MAX_NEW_TOKENS,
    Problem,
    extract_answer,
    is_correct,
    problems,
)
from integration_tests.demo import CONFIGS, RESULTS, hardware, without
from integration_tests.evaluation import CONCURRENCY, Evaluator, Grading, Run, log_p, mcnemar_p
from integration_tests.outputs import add_outputs, results_of
from integration_tests.server import ARITHMETIC_MODEL, ServerSpec, running

__all__ = ["GRADING", "evaluate"]

PROBLEMS: Final = 200
SEED: Final = 20_261_130
ALPHA: Final = 4.0
DRAWS: Final = 8
"""Plain draws per problem, for the correlation and for `best_of`."""

GRADING: Final = Grading(is_correct, extract_answer, MAX_NEW_TOKENS)
ANSWER: Final[dict[str, Any]] = {"answer": "regex", "answer_regex": ANSWER_REGEX}

SAMPLERS: Final[dict[str, dict[str, Any]]] = {
    "power": {"sampler": "power", "alpha": ALPHA, "block_size": 16, "steps": 10},
    "smc": {"sampler": "smc", "alpha": ALPHA, "particles": 16, "block_size": 16},
    "fast_exact": load_config(CONFIGS / "fast-exact.yaml").presets["fast-exact"],
    "vote": {"sampler": "vote", "samples": DRAWS, **ANSWER},
    "best_of": {"sampler": "best_of", "samples": DRAWS, **ANSWER},
}
"""Defaults of the samplers, but for blocks, which are a quarter of an answer; the preset as it is served."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print the page."""
    parser = argparse.ArgumentParser(description="Measure every sampler on held-out arithmetic problems.")
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    add_outputs(parser, "arithmetic", RESULTS)
    options = parser.parse_args(argv)
    asked = problems(options.problems, SEED)
    arguments = ["--page-size", "1", "--max-running-requests", str(CONCURRENCY)]
    with tempfile.TemporaryDirectory() as logs:
        print("starting SGLang with the arithmetic model (half a minute) ...", flush=True)
        with running(ServerSpec(ARITHMETIC_MODEL, "arithmetic", arguments), Path(logs)) as server:
            runs, draws = asyncio.run(evaluate(server.url, asked))
    record = {
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("sglang", "sglang-power", "torch")},
        "command": f"python -m integration_tests.arithmetic.measure --problems {len(asked)}",
        "problems": len(asked),
        "rows": [run.row("arithmetic", runs["plain"]) for run in runs.values()],
        "paired_p": {name: _paired(runs, name) for name in SAMPLERS},
        "correlation": correlation(draws),
    }
    folder = results_of(options)
    (folder / "arithmetic.json").write_text(json.dumps(record, indent=1) + "\n")
    pivot = json.loads((RESULTS / "demo.json").read_text())
    page = render(record, pivot)
    (folder / "arithmetic.md").write_text(page)
    print(page)
    return 0


async def evaluate(url: str, asked: Sequence[Problem]) -> tuple[dict[str, Run], list[list[Draw]]]:
    """Return the run of every sampler, and plain draws problem by problem."""
    async with httpx.AsyncClient(base_url=url, timeout=7200) as client:
        evaluator = Evaluator(client, GRADING)
        plain = await evaluator.plain("plain", asked, 1.0)
        rows = [
            plain,
            await evaluator.plain("lowtemp", asked, 1.0 / ALPHA),
            await evaluator.plain("greedy", asked, 0.0),
        ]
        for name, params in SAMPLERS.items():
            sampler = str(params["sampler"])
            rows.append(await evaluator.own(sampler, asked, without(params, "sampler"), name))
        power = next(run for run in rows if run.sampler == "power")
        rows += await evaluator.controls(asked, plain, power)
        _, drawn = await evaluator.drawn("draws", asked, DRAWS)
    draws = [
        [_draw(problem, answer) for answer in answers] for problem, answers in zip(asked, drawn, strict=True)
    ]
    return {run.sampler: run for run in rows}, draws


def _draw(problem: Problem, answer: dict[str, Any]) -> Draw:
    return Draw(log_p(answer), len(answer["output_ids"]), is_correct(problem, answer["text"]))


def _paired(runs: dict[str, Run], own: str) -> dict[str, float]:
    """Return, for every other run, the chance of such wins were it as good (McNemar, one-sided)."""
    return {name: mcnemar_p(runs[own], run) for name, run in runs.items() if name != own}


if __name__ == "__main__":
    raise SystemExit(main())
