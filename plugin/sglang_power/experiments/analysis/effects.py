"""Every metric of every arm against every control, as intervals.

Where one experiment's choices (pairs, alpha, roles) meet `sequences`, or `switchback` where windows are
randomised. Decides nothing: that is `verdict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from sglang_power.experiments.analysis import switchback
from sglang_power.experiments.analysis.observations import Column, Mask, Observations
from sglang_power.experiments.analysis.results import Effect, Interval, Point
from sglang_power.experiments.analysis.sequences import RESOLUTION, ConfidenceSequence, sequence
from sglang_power.experiments.metrics import Metric
from sglang_power.experiments.model import Experiment

Role: TypeAlias = Literal["primary", "guardrail", "shown"]
Method: TypeAlias = Literal["betting", "asymptotic", "randomisation"]


@dataclass(frozen=True)
class Effort:
    """How finely intervals are computed; less makes them wider, or rougher, never invalid.

    Args:
        resolution: see sequences.RESOLUTION.
        tail: see switchback.TAIL.
        points: of a path, at most.
    """

    resolution: int = RESOLUTION
    tail: int = switchback.TAIL
    points: int = 120


FULL = Effort()


@dataclass(frozen=True)
class Judged:
    """A metric and what it decides.

    Args:
        threshold: min_effect of the primary metric, margin of a guardrail.
    """

    name: str
    metric: Metric
    role: Role
    threshold: float | None


def judged(experiment: Experiment) -> list[Judged]:
    """All metrics of an experiment: the primary one, guardrails, those that are only shown."""
    primary = experiment.primary
    roles: list[tuple[str, Role, float | None]] = [(primary.metric, "primary", primary.min_effect)]
    roles += [(guard.metric, "guardrail", guard.margin) for guard in experiment.guardrails]
    decide = {name for name, _, _ in roles}
    roles += [(name, "shown", None) for name in experiment.metrics if name not in decide]
    return [Judged(name, experiment.metrics[name], role, threshold) for name, role, threshold in roles]


def estimand(metric: Metric, method: Method) -> str:
    """Return what an interval is about.

    Two things differ. Whose mean: each unit counts once, but for ratios, where each request does, so that
    units with many weigh more. And of which time: betting and permutations test one constant effect,
    asymptotic intervals follow the mean of an effect that changes.
    """
    rows = "windows" if method == "randomisation" else "units"
    mean = f"mean per request of all {rows}" if metric.is_ratio else f"mean over {rows}, each counting once"
    while_ = "so far" if method == "asymptotic" else "while it stays the same"
    return f"difference in the {mean}, {while_}"


def alpha_per_pair(experiment: Experiment) -> float:
    """The experiment's alpha, split over its arm x control pairs (Bonferroni).

    Every metric has its alpha to itself: a guardrail's intervals, too, miss with a chance of alpha at most.
    """
    return experiment.alpha / len(experiment.pairs)


def effects_of(observations: Observations, experiment: Experiment) -> tuple[Effect, ...]:
    """Each metric's difference, arm minus control, for every pair, after all units.

    Args:
        observations: units in order of their first enrolment; with switchbacks windows in order of time.
        experiment: whose metrics and pairs.
    """
    return next(effects_at(observations, experiment, [len(observations)]))


def effects_at(
    observations: Observations, experiment: Experiment, looks: Sequence[int], effort: Effort = FULL
) -> Iterator[tuple[Effect, ...]]:
    """The effects as they were after some numbers of units, all arms together.

    Args:
        observations, experiment: see effects_of.
        looks: numbers of units, or of windows.
        effort: see Effort.
    """
    pairs = [_Pair.of(observations, experiment, pair) for pair in experiment.pairs]
    metrics = judged(experiment)
    compared = [_compared(pair, metric, experiment, effort) for metric in metrics for pair in pairs]
    for look in looks:
        yield tuple(comparison.after(look) for comparison in compared)


@dataclass(frozen=True)
class _Pair:
    """An arm and a control.

    Args:
        rows: [units] who is in one of both.
        treated: [units] who is in the arm.
        propensity: chance of the arm among both; None where the phase gives one of them nobody.
        alpha: of this pair.
    """

    observations: Observations
    arm: str
    control: str
    rows: Mask
    treated: Mask
    propensity: float | None
    alpha: float

    @classmethod
    def of(cls, observations: Observations, experiment: Experiment, pair: tuple[str, str]) -> _Pair:
        arm, control = pair
        weight, other = observations.weights[arm], observations.weights[control]
        return cls(
            observations,
            arm,
            control,
            rows=observations.in_arms(arm, control),
            treated=observations.in_arms(arm),
            propensity=weight / (weight + other) if weight and other else None,
            alpha=alpha_per_pair(experiment),
        )

    def column(self, metric: Judged) -> Column:
        """The values of both arms' units."""
        return self.observations.columns[metric.name].of(self.rows)

    def units(self, look: int) -> int:
        """How many of the first units are in the pair."""
        return int(np.count_nonzero(self.rows[:look]))

    def effect(
        self,
        metric: Judged,
        units: int,
        interval: Interval,
        path: tuple[Point, ...] = (),
        carry_over_p: float | None = None,
    ) -> Effect:
        """What is known of a metric."""
        return Effect(
            metric=metric.name,
            arm=self.arm,
            control=self.control,
            role=metric.role,
            direction=metric.metric.direction,
            measured_in=metric.metric.measured_in,
            estimand=estimand(metric.metric, interval.method),
            threshold=metric.threshold,
            units=units,
            interval=interval,
            path=path,
            carry_over_p=carry_over_p,
        )


class _Compared(Protocol):
    """One metric of one pair, at any look."""

    def after(self, look: int) -> Effect: ...


def _compared(pair: _Pair, metric: Judged, experiment: Experiment, effort: Effort) -> _Compared:
    if pair.propensity is None:
        return _Nobody(pair, metric, experiment.kind == "switchback")
    if experiment.switchback is not None:
        return _Windows(pair, metric, experiment.switchback.min_windows, effort.tail)
    found = sequence(
        pair.column(metric),
        pair.treated[pair.rows],
        propensity=pair.propensity,
        bounds=metric.metric.bounds,
        alpha=pair.alpha,
        resolution=effort.resolution,
    )
    return _Units(pair, metric, found, effort.points)


@dataclass(frozen=True)
class _Units:
    pair: _Pair
    metric: Judged
    found: ConfidenceSequence
    points: int

    def after(self, look: int) -> Effect:
        units = self.pair.units(look)
        path = self.found.path(units, self.points)
        return self.pair.effect(self.metric, units, self.found.interval(units), path)


@dataclass(frozen=True)
class _Windows:
    pair: _Pair
    metric: Judged
    min_windows: int
    tail: int

    def after(self, look: int) -> Effect:
        pair = self.pair
        units = pair.units(look)
        seen = pair.column(self.metric).of(np.arange(np.count_nonzero(pair.rows)) < units)
        found, path = switchback.judge(
            seen,
            pair.treated[pair.rows][:units],
            min_windows=self.min_windows,
            alpha=pair.alpha,
            tail=self.tail,
        )
        planned = switchback.looks(units, self.min_windows)
        carried = self._carried(planned[-1]) if planned else None
        return pair.effect(self.metric, units, found, path, carried)

    def _carried(self, windows: int) -> float | None:
        """By the first windows of the pair; after a third arm, or a gap in the traffic, one says nothing."""
        pair = self.pair
        so_far = pair.rows & (np.cumsum(pair.rows) <= windows)
        follows = so_far & np.append(False, pair.rows[:-1]) & pair.observations.follows
        before = np.append(False, pair.treated[:-1])
        return switchback.carry_over_p(
            pair.observations.columns[self.metric.name].of(follows), pair.treated[follows], before[follows]
        )


@dataclass(frozen=True)
class _Nobody:
    pair: _Pair
    metric: Judged
    switchback: bool

    def after(self, look: int) -> Effect:
        by_units: Method = "asymptotic" if self.metric.metric.bounds is None else "betting"
        interval = Interval(
            estimate=None,
            low=None,
            high=None,
            confidence=1.0 - self.pair.alpha,
            method="randomisation" if self.switchback else by_units,
            why_none="one of the arms has no weight in this phase",
        )
        return self.pair.effect(self.metric, self.pair.units(look), interval)
