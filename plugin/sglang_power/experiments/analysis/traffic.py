"""Simulated traffic: what is assumed of units and arms, and rows drawn from it.

The input of `simulate`. A plain model, stated here in full; it knows no statistics and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sglang_power.errors import ConfigError
from sglang_power.experiments.analysis.observations import Column, Observations
from sglang_power.experiments.metrics import Metric
from sglang_power.experiments.model import Experiment
from sglang_power.fields import FiniteFloat, Positive, PositiveFloat
from sglang_power.types import FloatArray

Counts: TypeAlias = NDArray[np.int64]


class Assumptions(BaseModel):
    """What is assumed of the traffic and of the arms.

    Args:
        base: metric -> mean of the controls; per request for metrics that are ratios.
        lift: metric -> what the other arms add to it, in its own unit; 0 where absent.
        units: enrolled until the end, all arms together; windows of a switchback.
        units_per_day: new ones; a switchback's follow from its window_s.
        requests_per_unit: mean; counts are 1 + Poisson(gamma of shape 1/2), a heavy tail.
        intra_unit_correlation: between requests of a unit; of their logarithms where values are unbounded.
        carry_over: switchbacks: share of a window's effect that belongs to the arm of the window before.
        runs: simulated experiments without and as many with the lift.
        seed: of everything random.
        looks: at how many evenly spaced numbers of units a verdict is asked for; switchbacks have their own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    base: dict[str, FiniteFloat]
    lift: dict[str, FiniteFloat] = {}
    units: Positive = 5_000
    units_per_day: PositiveFloat = 1_000.0
    requests_per_unit: Annotated[float, Field(ge=1.0, le=1_000.0)] = 5.0
    intra_unit_correlation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    carry_over: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    runs: Positive = 200
    seed: Annotated[int, Field(ge=0)] = 0
    looks: Positive = 20


def check(experiment: Experiment, assumptions: Assumptions) -> None:
    """Refuses assumptions that do not fit the experiment's metrics.

    Raises:
        ConfigError: naming the field, its value and what to do.
    """
    for field, named in (("base", assumptions.base), ("lift", assumptions.lift)):
        if unknown := sorted(named.keys() - experiment.metrics.keys()):
            raise ConfigError(f"{field}.{unknown[0]}: the experiment has no such metric. Drop it")
    for name, metric in experiment.metrics.items():
        if name not in assumptions.base:
            raise ConfigError(f"base.{name}: missing. Give the mean of the controls")
        base = assumptions.base[name]
        for field, mean in (("base", base), ("lift", base + assumptions.lift.get(name, 0.0))):
            _check_mean(f"{field}.{name}", metric, mean)


def _check_mean(field: str, metric: Metric, mean: float) -> None:
    if (bounds := _request_bounds(metric)) is None:
        if mean <= 0.0:
            raise ConfigError(
                f"{field}: a mean of {mean:g}. Metrics without bounds are simulated as positive ones"
            )
    elif not bounds[0] <= mean <= bounds[1]:
        raise ConfigError(f"{field}: a mean of {mean:g}. Choose one within {bounds[0]:g} and {bounds[1]:g}")


def draw(
    experiment: Experiment,
    assumptions: Assumptions,
    weights: Mapping[str, int],
    random: np.random.Generator,
) -> Observations:
    """Units of one simulated experiment, in order of enrolment, with a value of every metric."""
    names = list(weights)
    shares = np.array([weights[name] for name in names]) / sum(weights.values())
    arms = random.choice(np.array(names, dtype=object), size=assumptions.units, p=shares)
    treated = np.isin(arms, [arm.name for arm in experiment.served if arm.control is None]).astype(float)
    dose = treated
    if experiment.switchback is not None:
        before = np.append(treated[:1], treated[:-1])
        dose = (1.0 - assumptions.carry_over) * treated + assumptions.carry_over * before
    requests = _requests(assumptions, random)
    columns = {
        name: _column(
            metric,
            assumptions.base[name] + assumptions.lift.get(name, 0.0) * dose,
            requests,
            assumptions.intra_unit_correlation,
            random,
        )
        for name, metric in experiment.metrics.items()
    }
    return Observations(arms.tolist(), columns, weights)


def _requests(assumptions: Assumptions, random: np.random.Generator) -> Counts:
    """[units] requests of each."""
    rate = random.gamma(0.5, 2.0 * (assumptions.requests_per_unit - 1.0), assumptions.units)
    counts: Counts = 1 + random.poisson(rate)
    return counts


def _column(
    metric: Metric, means: FloatArray, requests: Counts, correlation: float, random: np.random.Generator
) -> Column:
    """[units] mean of each unit's requests, or their sum and count where the metric is a ratio."""
    bounds = _request_bounds(metric)
    if bounds is None:
        sums = _positive(means, requests, correlation, random)
    else:
        low, width = bounds[0], bounds[1] - bounds[0]
        hits = random.binomial(requests, _unit_rates((means - low) / width, correlation, random))
        sums = low * requests + width * hits
    counts = requests.astype(np.float64)
    return Column(sums, counts) if metric.is_ratio else Column(sums / counts)


def _request_bounds(metric: Metric) -> tuple[float, float] | None:
    """Between which one request's value lies."""
    if metric.source == "feedback" and metric.low is not None and metric.high is not None:
        return min(metric.low, metric.absent), max(metric.high, metric.absent)
    return metric.bounds


def _unit_rates(means: FloatArray, correlation: float, random: np.random.Generator) -> FloatArray:
    """[units] each unit's own rate: Beta with mean m and m k, (1 - m) k for k = 1 / correlation - 1."""
    inside = (means > 0.0) & (means < 1.0)
    if correlation == 0.0 or not inside.any():
        return means
    k = 1.0 / correlation - 1.0
    rates = means.copy()
    rates[inside] = random.beta(means[inside] * k, (1.0 - means[inside]) * k)
    return rates


def _positive(
    means: FloatArray, requests: Counts, correlation: float, random: np.random.Generator
) -> FloatArray:
    """[units] sums of lognormal values (standard deviation 1 of the logarithm) over each unit's requests."""
    mine = np.sqrt(correlation) * random.standard_normal(len(requests))
    each = np.repeat(mine, requests) + np.sqrt(1.0 - correlation) * random.standard_normal(requests.sum())
    values = np.exp(each - 0.5)
    first = np.append(0, np.cumsum(requests)[:-1])
    sums: FloatArray = means * np.add.reduceat(values, first)
    return sums
