"""One row per unit: what the statistics see of a phase.

Owns who is analysed and what a metric's value is. Takes requests that are joined already (`requests`); knows
neither lines nor statistics.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_power.experiments.analysis.observations import Column, Observations
from sglang_power.experiments.analysis.requests import EnrolledUnit, Joined, Request
from sglang_power.experiments.metrics import (
    FeedbackMetric,
    LatencyMetric,
    Metric,
    OutcomeMetric,
    TokensMetric,
)
from sglang_power.experiments.model import Experiment

SERVED = ("ok", "fallback")
"""Outcomes with an answer: its latency is a latency. All others are over any limit."""


@dataclass(frozen=True)
class Population:
    """The units of a phase.

    Args:
        enrolled: everybody, in order of first enrolment; whose arms the sample ratio is judged by.
        kept: without those that changed their arm, and the returning ones that make up for them.
        observations: those of the kept whose window has closed.
        requests: name of a kept unit -> its requests.
        excluded: reason -> units.
    """

    enrolled: Sequence[EnrolledUnit]
    kept: Sequence[EnrolledUnit]
    observations: Observations
    requests: Mapping[str, Sequence[Request]]
    excluded: Counter[str]


def population(joined: Joined) -> Population:
    """Who is analysed, with one value per metric and unit.

    A unit enters when its outcome window, and the grace for requests that still run, is over, in order of its
    first enrolment in the phase, under the arm of that enrolment. Requests count only while the phase lasts.
    """
    scope = joined.scope
    enrolled = sorted(joined.units.values(), key=lambda unit: (unit.first, unit.name))
    excluded: Counter[str] = Counter()
    kept = [unit for unit in enrolled if not _left_out(unit, joined, excluded)]
    requests: dict[str, list[Request]] = {unit.name: [] for unit in kept}
    for request in joined.counted():
        if request.unit.name in requests:
            requests[request.unit.name].append(request)
    closed = [unit for unit in kept if joined.is_closed(unit)]
    excluded["cut_units"] = sum(map(joined.is_cut, kept))
    excluded["open_windows"] = len(kept) - len(closed) - excluded["cut_units"]
    rows = [requests[unit.name] for unit in closed]
    return Population(
        enrolled=enrolled,
        kept=kept,
        observations=Observations(
            arms=[unit.arm for unit in closed],
            columns={name: column(name, metric, rows) for name, metric in scope.experiment.metrics.items()},
            weights=scope.experiment.weights(scope.phase),
            windows=[int(unit.name) for unit in closed] if scope.experiment.kind == "switchback" else None,
        ),
        requests=requests,
        excluded=excluded,
    )


def _left_out(unit: EnrolledUnit, joined: Joined, excluded: Counter[str]) -> bool:
    """Whether a unit is kept out for what it was in earlier phases."""
    earlier = joined.earlier.get(unit.name)
    if earlier is None:
        return False
    if set(earlier.values()) != {unit.arm}:
        excluded["moved_units"] += 1
        return True
    scope = joined.scope
    share = kept_shares(scope.experiment, [*earlier, scope.phase], scope.phase)[unit.arm]
    # Seeded by the unit's own name: the same units at every look.
    if random.Random(f"{scope.experiment.name}/{scope.phase}/{unit.name}").random() >= share:
        excluded["returning_units"] += 1
        return True
    return False


def kept_shares(experiment: Experiment, phases: Sequence[int], phase: int) -> dict[str, float]:
    """Which share of the units that stayed in their arm is kept, so that the arms keep the phase's weights.

    An arm of a ramp only grows, and keeps its units, or only shrinks, and gets none (`flags.reweighted`, and
    `model` refuses other ramps). So of an arm's w(phase) basis points m = min over the phases w(.) have been
    in it throughout. Analysing all of them would compare arms at other proportions than the statistics are
    told: a growing arm has lost none of its returning units, a shrinking one the moved. Kept is
    min over arms (m / w) divided by the arm's own m / w, which leaves every arm the same share of w. A flag
    provider of the user's own has to move units in the same way: the log cannot show that it does.

    Args:
        phases: in which the unit was seen, this one included.
        phase: this one.

    Returns:
        arm -> share in [0, 1]; 0 where some arm of the phase has nobody who stayed.
    """
    stayed = {
        arm: min(experiment.weights(seen)[arm] for seen in phases) / weight
        for arm, weight in experiment.weights(phase).items()
        if weight
    }
    least = min(stayed.values())
    shares = {arm: least / share if share else 0.0 for arm, share in stayed.items()}
    return {arm: shares.get(arm, 0.0) for arm in experiment.weights(phase)}


def column(name: str, metric: Metric, rows: Sequence[Sequence[Request]]) -> Column:
    """A metric of every unit.

    Args:
        rows: per unit its requests, one at least.
    """
    sums = np.array([_sum(name, metric, requests) for requests in rows], dtype=np.float64).reshape(-1, 2)
    if metric.is_ratio:
        return Column(sums[:, 0], sums[:, 1])
    values = sums[:, 0] / sums[:, 1]
    if metric.bounds is not None:
        values = np.clip(values, *metric.bounds)  # A mean may be rounded to just outside.
    return Column(values)


def _sum(name: str, metric: Metric, requests: Sequence[Request]) -> tuple[float, float]:
    """A sum over requests and what to divide it by."""
    match metric:
        case FeedbackMetric():
            return _feedback(name, metric, requests)
        case OutcomeMetric():
            bad = sum((request.outcome or "lost") in metric.outcomes for request in requests)
            return float(bad), float(len(requests))
        case LatencyMetric():
            return float(sum(_is_over(metric, request) for request in requests)), float(len(requests))
        case TokensMetric():
            completed = [request for request in requests if request.outcome is not None]
            return math.fsum(price(metric, request) for request in completed), float(len(completed))


def _feedback(name: str, metric: FeedbackMetric, requests: Sequence[Request]) -> tuple[float, float]:
    """A unit's mean of what it said; per request a sum, to which silent requests add `absent`."""
    said = [request.feedback[name][1] for request in requests if name in request.feedback]
    if metric.per == "request":
        return math.fsum(said) + metric.absent * (len(requests) - len(said)), float(len(requests))
    return (math.fsum(said), float(len(said))) if said else (metric.absent, 1.0)


def _is_over(metric: LatencyMetric, request: Request) -> bool:
    seconds = request.e2e_s if metric.of == "e2e" else request.ttft_s
    return request.outcome not in SERVED or seconds is None or seconds * 1000.0 > metric.over_ms


def price(metric: TokensMetric, request: Request) -> float:
    """Tokens of a request, or estimated GPU seconds where the metric declares what a token takes."""
    tokens = {"decoded": request.decoded, "prefilled": request.prefilled}
    prices = metric.gpu_seconds_per_token
    return math.fsum(tokens[kind] * (1.0 if prices is None else prices[kind]) for kind in metric.kinds)
