"""From the answers of a cell to its figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_power.serve_benchmark.loads import Block, Timed
from sglang_power.serve_benchmark.passes import Passes
from sglang_power.serve_benchmark.workloads import Workload


@dataclass(frozen=True)
class Reference:
    """What a cell is compared with.

    Args:
        plain_s: median latency of plain answers under the same load; None where there is none.
        passes: of the server during the cell; None where it does not count them.
    """

    plain_s: float | None
    passes: Passes | None


def figures(workload: Workload, block: Block, reference: Reference) -> dict[str, Any]:
    """Return the measured fields of a row of serve.json.

    Args:
        workload: grades the answers.
        block: at least one answer.
        reference: see there.
    """
    answers = [timed.answer for timed in block.timed]
    returned, count = sum(answer.returned for answer in answers), len(answers)
    p50, p95, p99 = latencies(block.timed)
    passes = reference.passes
    return {
        "decoded_per_returned": sum(answer.decoded for answer in answers) / returned,
        "prefilled_per_returned": sum(answer.prefilled for answer in answers) / returned,
        "depth_per_returned": sum(answer.depth for answer in answers) / returned,
        "wall_vs_plain": None if reference.plain_s is None else p50 / reference.plain_s,
        "answers_per_minute": block.answers_per_minute,
        "p50_s": p50,
        "p95_s": p95,
        "p99_s": p99,
        **accuracy(workload, block.timed),
        "answers": count,
        "returned_per_answer": returned / count,
        "extend_passes_per_answer": None if passes is None else passes.extend / count,
        "decode_passes_per_answer": None if passes is None else passes.decode / count,
    }


def latencies(timed: Sequence[Timed]) -> tuple[float, float, float]:
    """Return the median, the 95th and the 99th percentile of the waits, in seconds."""
    p50, p95, p99 = np.percentile([each.seconds for each in timed], (50, 95, 99)).tolist()
    return p50, p95, p99


def accuracy(workload: Workload, timed: Sequence[Timed]) -> dict[str, Any]:
    """Return the share of right answers with Wilson's 95% interval; nothing where one is not known."""
    from scipy.stats import binomtest

    verdicts = [workload.is_correct(each.task, each.answer.text) for each in timed]
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) < len(verdicts):
        return {"accuracy": None, "ci95": None}
    interval = binomtest(sum(known), len(known)).proportion_ci(method="wilson")
    return {"accuracy": sum(known) / len(known), "ci95": (float(interval.low), float(interval.high))}
