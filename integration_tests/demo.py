"""`make demo`: power sampling against its controls on the built-in model, through a real server.

Starts the server, asks fresh problems of both families with every sampler, prints the tables and whether each
claim holds, and writes demo.json, demo.png and chain.png outside the checkout; `make demo-full` (--full) asks
as many problems as the committed figures come from; `make demo-results` (--write) renews those that are
committed, the tables of plugin/docs/results.md and the short one of the README. The model shows the
mechanism, not the quality of large models.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from sglang_power.reports import report_of
from sglang_power.server.config import load_config

from integration_tests import plots
from integration_tests.claims import check_claims
from integration_tests.evaluation import CONCURRENCY, MAX_NEW_TOKENS, Evaluator, Run, mcnemar_p
from integration_tests.next_steps import next_steps
from integration_tests.outputs import add_outputs, results_of
from integration_tests.pivot.problems import Family, problems
from integration_tests.server import PIVOT_MODEL, ServerSpec, running
from integration_tests.trees import tree_text

RESULTS = Path(__file__).parent / "results"
WRITTEN = ("demo.json", "demo.png", "chain.png")
README = Path(__file__).parents[1] / "README.md"
GUIDE = Path(__file__).parents[1] / "plugin" / "docs" / "results.md"
"""Holds the whole table; the README's short one has some of its rows."""

CONFIGS = Path(__file__).parents[1] / "configs"

IN_SHORT = (
    *("plain", "lowtemp", "greedy", "best_of @ power", "vote @ power"),
    *("power", "smc", "fast_exact", "branch", "cot"),
)
ALPHA = 4.0
PROBLEM_SEED = 20_261_122
PROBLEMS = 60
"""Per family: about three minutes on two free cores; fewer cannot show the claims."""

FULL = 200
"""Per family, of the committed figures."""

LEFT_OUT = frozenset(
    {
        *(("Q", name) for name in ("best_of @ power", "vote @ power", "smc", "smc_exact", "fast_exact")),
        *(("R", name) for name in ("cot", "smc_exact", "best_of @ fast_exact", "vote @ fast_exact")),
    }
)
"""Rows of full demos alone: no claim needs them, and they take about a third of the time."""

COMMANDS = {PROBLEMS: "make demo", FULL: "make demo-full"}

POWER: dict[Family, dict[str, Any]] = {
    "Q": {"alpha": ALPHA, "proposal_temperature": 1.0, "block_size": 96, "steps": 30},
    "R": {
        "alpha": ALPHA,
        "proposal_temperature": 1.0,
        "block_size": 8,
        "steps": 30,
        "cut": "entropy",
        "cut_beta": 1.0,
    },
}
"""Parameters per family. R has a pivot at every operation, which the entropy cut finds."""

ANSWER: dict[str, Any] = {"answer": "regex", "answer_regex": r"A(\d)"}
"""The answer is the digit behind the A, in both families."""

COT: dict[str, Any] = {"k": 10, **ANSWER}
"""CoT-decoding as published."""

BRANCH: dict[str, Any] = {"trigger": "entropy", "policy": "lookahead", "lookahead_tokens": 10, **ANSWER}
"""Two branches wherever the entropy is above the default threshold, each rolled out by ten tokens."""

PARTICLES: dict[str, dict[str, Any]] = {
    "smc": {"particles": 16, "proposal_temperature": 1.0, "block_size": 8, "resampling": "chopthin"},
    "smc_exact": {"particles": 8, "runs": 4, "proposal_temperature": 1.0, "block_size": 8},
    "fast_exact": load_config(CONFIGS / "fast-exact.yaml").presets["fast-exact"],
}
"""Rows of the sampler `smc`: one run, near the law; runs that are exact in their limit; the preset."""

SHORT = "S"
PERFECT: dict[str, Any] = {"alpha": 3.0, "width": 16}
"""Of a third suite: R with all operations but the last worked out in the prompt; about 15 trials each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit status is 1 where a claim failed."""
    options = parse(argv)
    results = results_of(options)
    arguments = ["--page-size", "1", "--max-running-requests", str(CONCURRENCY)]
    with tempfile.TemporaryDirectory() as logs:
        print("starting SGLang with the built-in model (half a minute) ...", flush=True)
        with running(ServerSpec(PIVOT_MODEL, "pivot", arguments), Path(logs)) as server:
            runs = asyncio.run(evaluate(server.url, options.problems))
            plots.chain(one_chain(server.url), results / "chain.png")
            tree = one_tree(server.url)
    print(tree)
    claims = check_claims(runs)
    record = {
        "hardware": hardware(),
        "versions": {
            name: version(name) for name in ("sglang", "sglang-power", "torch", "flashinfer-python")
        },
        "command": COMMANDS.get(options.problems, f"demo --problems {options.problems}"),
        "problems": options.problems,
        "rows": [
            run.row(suite, suite_runs["plain"])
            for suite, suite_runs in runs.items()
            for run in suite_runs.values()
        ],
        "paired_p": {suite: paired_p(suite_runs) for suite, suite_runs in runs.items() if suite != SHORT},
    }
    (results / "demo.json").write_text(json.dumps(record, indent=1) + "\n")
    plots.demo(record["rows"], results / "demo.png")
    print(table(record["rows"]))
    if options.problems < FULL:
        print(f"in `make demo-full` only: {', '.join(' '.join(row) for row in sorted(LEFT_OUT))}")
    for suite, values in record["paired_p"].items():
        print(
            f"{suite}: paired one-sided p, power against "
            + ", ".join(f"{k} {v:.1e}" for k, v in values.items())
        )
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if results == RESULTS:
        write_documents(record, tree)
    print(f"written: {', '.join(str(results / name) for name in WRITTEN)}")
    print(next_steps(README.read_text()))
    return 0 if all(claims.values()) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options: how many problems, and where the results go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--problems",
        type=int,
        default=PROBLEMS,
        help="problems per family (default: %(default)s; with fewer, claims fail by chance)",
    )
    parser.add_argument(
        "--full", dest="problems", action="store_const", const=FULL, help=f"as --problems {FULL}"
    )
    add_outputs(parser, "demo", RESULTS)
    options = parser.parse_args(argv)
    if options.results == RESULTS and options.problems != FULL:
        parser.error(f"the committed figures are those of {FULL} problems per family: add --full")
    return options


async def evaluate(url: str, count: int) -> dict[str, dict[str, Run]]:
    """Return the runs of every sampler on both families, in the order of the table."""
    runs: dict[str, dict[str, Run]] = {}
    left_out = LEFT_OUT if count < FULL else frozenset()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        evaluator = Evaluator(client)
        for suite, params in POWER.items():
            asked = problems(suite, count, PROBLEM_SEED)
            plain = await evaluator.plain("plain", asked, 1.0)
            lowtemp = await evaluator.plain("lowtemp", asked, 1.0 / ALPHA)
            rows = [plain, lowtemp, await evaluator.plain("greedy", asked, 0.0)]
            if (suite, "cot") not in left_out:
                rows.append(await evaluator.own("cot", asked, COT))
            branch = await evaluator.own("branch", asked, BRANCH)
            rows += [branch, *await evaluator.controls(asked, plain, branch)]
            power = await evaluator.own("power", asked, params)
            rows.append(power)
            if (suite, "best_of @ power") not in left_out:
                rows += await evaluator.controls(asked, plain, power)
            for name, own in PARTICLES.items():
                if (suite, name) in left_out:
                    continue
                particles = await evaluator.own("smc", asked, without(own, "sampler"), name)
                rows.append(particles)
                compared = suite == "R" and name != "smc_exact"
                if compared and (suite, f"best_of @ {name}") not in left_out:
                    rows += await evaluator.controls(asked, plain, particles)
            runs[suite] = {run.sampler: run for run in rows}
        runs[SHORT] = {run.sampler: run for run in await short_runs(evaluator, count)}
    return runs


async def short_runs(evaluator: Evaluator, count: int) -> list[Run]:
    """Return the runs on problems of which one operation is left."""
    asked = [replace(each, shown=len(each.operations) - 1) for each in problems("R", count, PROBLEM_SEED)]
    return [
        await evaluator.plain("plain", asked, 1.0),
        await evaluator.plain("lowtemp", asked, 1.0 / PERFECT["alpha"]),
        await evaluator.plain("greedy", asked, 0.0),
        await evaluator.own("perfect", asked, PERFECT),
    ]


def one_chain(url: str) -> list[dict[str, Any]]:
    """The steps of one power request on an R problem, for the picture."""
    custom = {"sampler": "power", **POWER["R"], "steps": 6, "seed": 7, "return_trace": True}
    steps: list[dict[str, Any]] = _one_answer(url, custom)["meta_info"]["power"]["trace"]
    return steps


def one_tree(url: str) -> str:
    """The tree of one `branch` request on an R problem, as text."""
    answer = _one_answer(url, {"sampler": "branch", **BRANCH, "seed": 7, "return_tree": True})
    head = f"{problems('R', 1, PROBLEM_SEED)[0].text} {answer['text']}"
    return f"{head}\n{tree_text(answer['meta_info']['power']['tree'])}"


def _one_answer(url: str, custom: dict[str, Any]) -> dict[str, Any]:
    body = {
        "text": problems("R", 1, PROBLEM_SEED)[0].text,
        "sampling_params": {"max_new_tokens": MAX_NEW_TOKENS, "custom_params": custom},
    }
    answer: dict[str, Any] = httpx.post(url + "/generate", json=body, timeout=600).raise_for_status().json()
    report_of(answer["meta_info"].get("power"), custom["sampler"])
    return answer


def without(params: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return parameters without some of them."""
    return {name: value for name, value in params.items() if name not in names}


def paired_p(runs: dict[str, Run], own: str = "power") -> dict[str, float]:
    """One of our samplers against every other sampler on the same problems."""
    return {name: mcnemar_p(runs[own], run) for name, run in runs.items() if name != own}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| suite | sampler | accuracy (95% interval) | decoded / returned | prefilled / returned "
        "| depth / returned | acceptance | wall / plain |\n|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(_table_line(row) for row in rows)])


def _table_line(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    acceptance = "" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.2f}"
    cells = [
        row["suite"],
        row["sampler"],
        f"{row['accuracy']:.3f} ({low:.2f} to {high:.2f})",
        f"{row['decoded_per_returned']:.1f}",
        f"{row['prefilled_per_returned']:.2f}",
        f"{row['depth_per_returned']:.1f}",
        acceptance,
        f"{row['wall_vs_plain']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the samplers of IN_SHORT: accuracy in both families, and what R costs."""
    found = {(row["suite"], row["sampler"]): row for row in rows}
    head = (
        "| sampler | accuracy, Q | accuracy, R | decoded / returned tokens, R | depth / returned, R |\n"
        "|---|---|---|---|---|"
    )
    lines = [
        f"| {sampler} | {found['Q', sampler]['accuracy']:.3f} | {found['R', sampler]['accuracy']:.3f} "
        + " ".join(f"| {found['R', sampler][f'{cost}_per_returned']:.1f}" for cost in ("decoded", "depth"))
        + " |"
        for sampler in IN_SHORT
    ]
    return "\n".join([head, *lines])


def caption(record: dict[str, Any]) -> str:
    """Return what was measured where, in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"{record['problems']} problems per family; {record['hardware']}; {versions}; `{record['command']}`."
    )


def parameters() -> str:
    """Return the parameters of our samplers, in words."""
    steps = "; ".join(f"{suite} {params}" for suite, params in POWER.items())
    branching = {key: value for key, value in BRANCH.items() if key not in ANSWER}
    particles = "; ".join(f"{name} {params}" for name, params in PARTICLES.items())
    said = f"Power parameters: {steps}. Branch: {branching}. Particles: {particles}. Perfect: {PERFECT}."
    return said.replace("'", "")


def write_documents(record: dict[str, Any], tree: str, readme: Path = README, guide: Path = GUIDE) -> None:
    """Renew what the documents show between their marks.

    Args:
        record: as in demo.json.
        tree: of `one_tree`.
        readme, guide: the documents.
    """
    rows, where = record["rows"], caption(record)
    _replace(readme, "demo", f"{short_table(rows)}\n\n{where}")
    _replace(guide, "demo", f"{table(rows)}\n\n{where}\n{parameters()}")
    _replace(guide, "tree", f"```text\n{tree}\n```")


def _replace(document: Path, mark: str, block: str) -> None:
    text = document.read_text()
    before, rest = text.split(f"<!-- {mark} -->")
    after = rest.split(f"<!-- /{mark} -->")[1]
    document.write_text(f"{before}<!-- {mark} -->\n{block}\n<!-- /{mark} -->{after}")


def hardware() -> str:
    """The machine, in words."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{os.cpu_count()} CPU cores ({model}), no GPU"


if __name__ == "__main__":
    raise SystemExit(main())
