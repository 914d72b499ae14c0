"""What was seen of each arm, in figures that decide nothing. Takes the population that `units` made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sglang_power.experiments.analysis.observations import Column
from sglang_power.experiments.analysis.requests import Joined, Request
from sglang_power.experiments.analysis.results import ArmSummary, ShadowSummary, Unmatched
from sglang_power.experiments.analysis.units import Population, price
from sglang_power.experiments.metrics import TokensMetric
from sglang_power.experiments.model import Arm, Experiment

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

MATCHED_WITHIN = 0.10
"""How far the decoded tokens of a compute-matched control may be from its arm's, as a share of the arm's."""


def arm_summaries(joined: Joined, population: Population) -> tuple[ArmSummary, ...]:
    """The served arms, in the order of the experiment's file."""
    experiment = joined.scope.experiment
    return tuple(_arm_summary(arm, joined, population) for arm in experiment.served)


def _arm_summary(arm: Arm, joined: Joined, population: Population) -> ArmSummary:
    experiment, observations = joined.scope.experiment, population.observations
    units = [unit for unit in population.kept if unit.arm == arm.name]
    requests = [request for unit in units for request in population.requests[unit.name]]
    completed = [request for request in requests if request.outcome is not None]
    rows = observations.in_arms(arm.name)
    seconds = [request.e2e_s for request in completed if request.e2e_s is not None]
    return ArmSummary(
        name=arm.name,
        control=arm.control,
        weight=observations.weights[arm.name],
        units=len(units),
        requests=len(requests),
        outcomes=dict(Counter(_outcome(request, joined) for request in requests).most_common()),
        tokens_per_request=_tokens(completed),
        gpu_seconds_per_request=_gpu_seconds(experiment, completed),
        e2e_s={name: float(np.quantile(seconds, share)) for name, share in QUANTILES.items() if seconds},
        means={name: mean(column.of(rows)) for name, column in observations.columns.items()},
    )


def _outcome(request: Request, joined: Joined) -> str:
    if request.outcome is not None:
        return request.outcome
    return "lost" if joined.is_over(request.unit) else "running"


def _tokens(completed: Sequence[Request]) -> dict[str, float]:
    if not completed:
        return {}
    return {
        "decoded": sum(request.decoded for request in completed) / len(completed),
        "prefilled": sum(request.prefilled for request in completed) / len(completed),
    }


def _gpu_seconds(experiment: Experiment, completed: Sequence[Request]) -> float | None:
    """By the first metric that declares prices."""
    for metric in experiment.metrics.values():
        if isinstance(metric, TokensMetric) and metric.gpu_seconds_per_token is not None and completed:
            return sum(price(metric, request) for request in completed) / len(completed)
    return None


def mean(column: Column) -> float | None:
    """Over units, or the ratio of both sums; None where there is nothing to divide by."""
    weight = float(len(column.values) if column.counts is None else column.counts.sum())
    return float(column.values.sum()) / weight if weight else None


def unmatched(experiment: Experiment, arms: Sequence[ArmSummary]) -> tuple[Unmatched, ...]:
    """Compute-matched controls that spend noticeably more or less than an arm they are compared with.

    Judged by decoded tokens per completed request, at face value: with few requests they are off by chance.
    """
    spent = {arm.name: arm.tokens_per_request.get("decoded") for arm in arms}
    controls = [arm.name for arm in arms if arm.control == "compute_matched"]
    found = []
    for arm, control in experiment.pairs:
        ours, theirs = spent[arm], spent[control]
        if control in controls and ours and theirs is not None and abs(theirs / ours - 1.0) > MATCHED_WITHIN:
            found.append(Unmatched(arm=arm, control=control, arm_tokens=ours, control_tokens=theirs))
    return tuple(found)


def shadow_summaries(joined: Joined) -> tuple[ShadowSummary, ...]:
    """The shadow arms that have run."""
    shadows = (arm.name for arm in joined.scope.experiment.arms if arm.shadow)
    found = [(name, joined.shadows[name]) for name in shadows if name in joined.shadows]
    return tuple(
        ShadowSummary(
            name=name,
            runs=tally.runs,
            ok=tally.ok,
            same_text=tally.same_text,
            tokens_per_run=tally.tokens / tally.runs,
        )
        for name, tally in found
    )
