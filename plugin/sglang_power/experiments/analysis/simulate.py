"""What an experiment's file would do before anyone runs it: false positives, power, time, carry-over.

Sends units (or windows) that `traffic` draws through the production path: `effects`, `srm`, `verdict`. Counts
verdicts; knows nothing of logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from sglang_power.experiments.analysis import switchback
from sglang_power.experiments.analysis.effects import Effort, effects_at
from sglang_power.experiments.analysis.results import Effect, ExperimentVerdict
from sglang_power.experiments.analysis.srm import srm
from sglang_power.experiments.analysis.traffic import Assumptions, check, draw
from sglang_power.experiments.analysis.verdict import verdict
from sglang_power.experiments.model import Experiment

ROUGH = Effort(resolution=250, tail=5, points=0)
"""Wider intervals than the report's, so that a simulation promises too little rather than too much."""

DAY_S = 86_400.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Share(_Part):
    """A share of runs with its 95% Clopper-Pearson interval."""

    count: int
    runs: int
    share: float
    low: float
    high: float


class SimulationResult(_Part):
    """What came out.

    Args:
        looks: numbers of units at which the verdict was asked for.
        false_positives: runs without any lift in which an interval of the primary metric excluded 0.
        false_ships: runs without any lift that ended with "ship".
        shipped, stopped: runs with the lift, by their verdict; shipped is the power.
        missed: runs with the lift in which an interval of the primary metric excluded the lift.
        median_units, median_days: until a verdict, over runs with the lift that reached one.
        mean_estimate: of the primary metric at the end, over runs with the lift and all pairs.
        bias: mean_estimate minus the lift: what carry-over hides, in a switchback.
    """

    experiment: str
    assumptions: Assumptions
    looks: tuple[int, ...]
    false_positives: Share
    false_ships: Share
    shipped: Share
    stopped: Share
    missed: Share
    median_units: float | None
    median_days: float | None
    mean_estimate: float | None
    bias: float | None


@dataclass(frozen=True)
class _Run:
    """One simulated experiment.

    Args:
        decided: the first verdict other than "keep running", and after how many units.
        excluded: whether an interval of the primary metric ever excluded the truth.
        estimates: of the primary metric at the end, one per pair.
    """

    decided: tuple[ExperimentVerdict, int] | None
    excluded: bool
    estimates: list[float]

    def ended(self, decision: str) -> bool:
        return self.decided is not None and self.decided[0].decision == decision


def simulate(experiment: Experiment, assumptions: Assumptions) -> SimulationResult:
    """Runs the experiment many times, with and without the lift, in the last phase of its ramp.

    Raises:
        ConfigError: the assumptions do not fit the experiment's metrics.
    """
    check(experiment, assumptions)
    looks = _looks(experiment, assumptions)
    null = assumptions.model_copy(update={"lift": {}})
    without = [_run(experiment, null, looks, number) for number in range(assumptions.runs)]
    lifted = [_run(experiment, assumptions, looks, number) for number in range(assumptions.runs)]
    ends = [run.decided[1] for run in lifted if run.decided is not None]
    estimates = [estimate for run in lifted for estimate in run.estimates]
    mean = float(np.mean(estimates)) if estimates else None
    lift = assumptions.lift.get(experiment.primary.metric, 0.0)
    units = float(np.median(ends)) if ends else None
    return SimulationResult(
        experiment=experiment.name,
        assumptions=assumptions,
        looks=tuple(looks),
        false_positives=_share(run.excluded for run in without),
        false_ships=_share(run.ended("ship") for run in without),
        shipped=_share(run.ended("ship") for run in lifted),
        stopped=_share(run.ended("stop") for run in lifted),
        missed=_share(run.excluded for run in lifted),
        median_units=units,
        median_days=None if units is None else _days(experiment, assumptions, units),
        mean_estimate=mean,
        bias=None if mean is None else mean - lift,
    )


def _run(experiment: Experiment, assumptions: Assumptions, looks: Sequence[int], number: int) -> _Run:
    random = np.random.default_rng([assumptions.seed, number])
    observations = draw(experiment, assumptions, experiment.weights(len(experiment.ramp) - 1), random)
    lift = assumptions.lift.get(experiment.primary.metric, 0.0)
    decided: tuple[ExperimentVerdict, int] | None = None
    excluded = False
    effects: tuple[Effect, ...] = ()
    for look, effects in zip(looks, effects_at(observations, experiment, looks, ROUGH), strict=True):
        excluded = excluded or any(_excludes(effect, lift) for effect in effects)
        if decided is None:
            ratio = srm(observations.arms[:look], observations.weights)
            found = verdict(experiment, effects, ratio, look, _days(experiment, assumptions, look))
            decided = None if found.decision == "keep running" else (found, look)
    ends = [effect.interval.estimate for effect in effects if effect.role == "primary"]
    return _Run(decided, excluded, [estimate for estimate in ends if estimate is not None])


def _excludes(effect: Effect, truth: float) -> bool:
    low, high = effect.interval.low, effect.interval.high
    if effect.role != "primary" or low is None or high is None:
        return False
    return not low <= truth <= high


def _share(hits: Iterable[bool]) -> Share:
    counted = [bool(hit) for hit in hits]
    test = binomtest(sum(counted), len(counted)).proportion_ci(0.95)
    share = sum(counted) / len(counted)
    return Share(
        count=sum(counted), runs=len(counted), share=share, low=float(test.low), high=float(test.high)
    )


def _looks(experiment: Experiment, assumptions: Assumptions) -> list[int]:
    """Evenly spaced, the last one at the end; a switchback's are planned."""
    units, count = assumptions.units, assumptions.looks
    if experiment.switchback is not None:
        return sorted({*switchback.looks(units, experiment.switchback.min_windows), units})
    looks: list[int] = np.unique(np.ceil(np.linspace(units / count, units, count)).astype(int)).tolist()
    return looks


def _days(experiment: Experiment, assumptions: Assumptions, units: float) -> float:
    if experiment.switchback is not None:
        return units * experiment.switchback.window_s / DAY_S
    return units / assumptions.units_per_day
