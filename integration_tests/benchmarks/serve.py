"""The built-in model's part of `sglang-power bench serve`: its problems, its server, its committed results.

sglang-power bench serve --write       # about an hour on two cores; --quick: does it run?
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglang_power.serve_benchmark import page
from sglang_power.serve_benchmark.session import Results
from sglang_power.serve_benchmark.workloads import Task, Workload

from integration_tests.demo import ANSWER, POWER
from integration_tests.evaluation import MAX_NEW_TOKENS
from integration_tests.pivot.problems import Family, problems
from integration_tests.server import PIVOT_MODEL, ServerSpec, running

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "integration_tests" / "results"
GUIDE = ROOT / "plugin" / "docs" / "results.md"
PRESETS = ROOT / "configs" / "fast-exact.yaml"

SEED = 20_261_130
BLOCK = 8
"""Tokens between two decisions; a worked step of an R problem has seven."""

ROWS = 256
"""Of a batch: what the server decodes at once. Rows are cheap on an accelerator, and on this platform."""

CHAIN: dict[str, Any] = {
    "alpha": 4.0,
    "proposal_temperature": 1.0,
    "block_size": BLOCK,
    "steps": 10,
    "cut": "uniform",
}
"""What the naive client, the published algorithm and the rows of `power` that are compared with them run."""

PARTICLES: dict[str, Any] = {"alpha": 4.0, "proposal_temperature": 1.0, "block_size": BLOCK}
VOTES: dict[Family, dict[str, Any]] = {
    "Q": {"samples": 32, **ANSWER},
    "R": {"samples": 8, "base": {"sampler": "power", **CHAIN}, **ANSWER},
}
DECIDING = {"window": 4}
LEFT_OUT: dict[Family, dict[str, str]] = {
    "Q": {},
    "R": {"perfect": "about 1e8 trials an answer are expected (1/Z), so it would be a chain"},
}
QUICK_CHAIN = {"block_size": 32, "steps": 2}


def workloads(answers: int, *, quick: bool) -> list[Workload]:
    """Return both families; of a quick run R alone, with short chains.

    Args:
        answers: problems of each.
        quick: whether its figures are to mean nothing.
    """
    if not quick:
        return [_workload(family, answers) for family in ("Q", "R")]
    one = _workload("R", answers)
    base = {"sampler": "power", **CHAIN, **QUICK_CHAIN}
    return [
        replace(
            one,
            chain={**one.chain, **QUICK_CHAIN},
            power={**one.power, **QUICK_CHAIN},
            vote={**VOTES["R"], "samples": 2, "base": base},
            deciding={"window": 1},
        )
    ]


def _workload(family: Family, answers: int) -> Workload:
    asked = problems(family, answers, SEED)
    return Workload(
        name=family,
        tasks=[Task(problem.text, str(problem.answer)) for problem in asked],
        max_new_tokens=MAX_NEW_TOKENS,
        answer_regex=ANSWER["answer_regex"],
        chain=CHAIN,
        power=POWER[family],
        particles=PARTICLES,
        vote=VOTES[family],
        deciding=DECIDING,
        left_out=LEFT_OUT[family],
    )


@contextmanager
def served(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Serve the built-in model for the time of a with-block; yields its URL."""
    settings = ["--page-size", "1", "--max-running-requests", str(ROWS), "--enable-metrics", *arguments]
    environment = {"SGLANG_POWER_CONFIG": str(PRESETS)} if PRESETS.exists() else {}
    spec = ServerSpec(PIVOT_MODEL, "pivot", settings, environment)
    with tempfile.TemporaryDirectory() as logs:
        print("starting SGLang with the built-in model (half a minute) ...", flush=True)
        with running(spec, Path(logs)) as server:
            yield server.url


def renew(results: Results, guide: Path = GUIDE) -> Path:
    """Renew what the guide shows of the results, and return its path."""
    before, rest = guide.read_text().split("<!-- serve -->")
    after = rest.split("<!-- /serve -->")[1]
    shown = page.short(results.record, results.not_served, results.failed)
    guide.write_text(f"{before}<!-- serve -->\n{shown}\n<!-- /serve -->{after}")
    return guide
