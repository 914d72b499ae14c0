"""Confidence sequences of a difference, arm minus control; with `asymptotic` all that calls ville's.

Takes one column and who was treated, gives an interval after every unit. Knows no experiment and no verdict.
An effect may change meanwhile (a novelty wears off, an arm breaks): see ConfidenceSequence.changed.
Betting works on phi_i = (y_i - m_{i-1}) (A_i / pi - (1 - A_i) / (1 - pi)), whose mean given the past is the
effect for any centre m_{i-1} made of earlier units; pi is the chance of the arm within the pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from ville import BettingABTest

from sglang_power.experiments.analysis.asymptotic import asymptotic
from sglang_power.experiments.analysis.enough import TOO_LARGE, Enough
from sglang_power.experiments.analysis.observations import Column, Mask
from sglang_power.experiments.analysis.results import Interval, Point
from sglang_power.types import FloatArray

RESOLUTION = 2_500
"""Candidate effects of a betting sequence per width of the metric's bounds; at most GRID_LIMIT in all."""

GRID_LIMIT = 100_001

CHANGED = "the effect changed while it was measured"


@dataclass(frozen=True)
class ConfidenceSequence:
    """An interval after every unit of a pair of arms.

    Args:
        estimate: [units] mean of the arm minus mean of the control; NaN before both have a unit.
        low, high: [units] cover the effect at every look with the stated confidence; NaN where there is none.
        confidence: 1 - alpha.
        enough: what asymptotic intervals wait for; None for the others.
    """

    estimate: FloatArray
    low: FloatArray
    high: FloatArray
    confidence: float
    method: Literal["betting", "asymptotic"]
    enough: Enough | None

    @cached_property
    def changed(self) -> Mask:
        """[units] whether the bounds contradict each other, or the estimate.

        Betting tests "the effect is this constant" and never takes an excluded candidate back. So of an
        effect that changes it tells what the early units said, until even the estimate lies outside; then
        it is no interval of anything. With a constant effect that is about as rare as a miss. A propensity
        that nobody was assigned by has the same symptom. Asymptotic bounds lie about the estimate: never.
        """
        crossed: Mask = self.low > self.high
        return crossed | (self.estimate < self.low) | (self.estimate > self.high)

    def interval(self, units: int) -> Interval:
        """What was known after so many units of the pair."""
        row = units - 1
        if row < 0 or math.isnan(self.estimate[row]):
            return self._none(None, "no units in one of the arms")
        problem = self.enough.problem(row) if self.enough is not None else None
        if problem is not None:
            return self._none(float(self.estimate[row]), problem)
        if self.changed[row]:
            return self._none(float(self.estimate[row]), CHANGED, changed=True)
        if not np.isfinite([self.low[row], self.high[row]]).all():
            return self._none(float(self.estimate[row]), TOO_LARGE)
        return Interval(
            estimate=float(self.estimate[row]),
            low=float(self.low[row]),
            high=float(self.high[row]),
            confidence=self.confidence,
            method=self.method,
            too_early=self.enough.too_early(row) if self.enough is not None else None,
        )

    def path(self, units: int, points: int) -> tuple[Point, ...]:
        """How the interval came about until then, thinned evenly to so many points at most."""
        looks: list[int] = np.unique(np.linspace(min(units, 1), units, points).astype(int)).tolist()
        known = [(look, self.interval(look)) for look in looks]
        return tuple(
            Point(units=look, estimate=seen.estimate, low=seen.low, high=seen.high)
            for look, seen in known
            if seen.estimate is not None
        )

    def _none(self, estimate: float | None, why: str, *, changed: bool = False) -> Interval:
        return Interval(
            estimate=estimate,
            low=None,
            high=None,
            confidence=self.confidence,
            method=self.method,
            why_none=why,
            changed=changed,
        )


def sequence(
    column: Column,
    treated: Mask,
    *,
    propensity: float,
    bounds: tuple[float, float] | None,
    alpha: float,
    resolution: int = RESOLUTION,
) -> ConfidenceSequence:
    """The confidence sequence of an arm against a control, over the units of both in their order.

    Bounded values: betting (Waudby-Smith and Ramdas 2024, theorem 3), intersected over time; valid for any
    law of the values and any number of units, provided that the mean effect is the same for units that come
    early and late. Others: asymptotic (see `asymptotic`), from when `enough` agrees, and not intersected,
    because early intervals are the least reliable; of an effect that changes they are about its mean so far.
    100,000 units take half a second by betting and 20 ms otherwise.

    Args:
        column: one value per unit; with `counts` a ratio metric, whose effect is a difference of ratios.
        treated: [units] who had the arm; the others had the control.
        propensity: chance of the arm among both.
        bounds: of the values; None selects the asymptotic sequence.
        alpha: chance that the sequence ever misses.
        resolution: see RESOLUTION; less gives wider intervals, never wrong ones.
    """
    known: Enough | None = None
    estimate = _running_mean(column, treated) - _running_mean(column, ~treated)
    if bounds is None:
        low, high, known = asymptotic(column, treated, propensity=propensity, alpha=alpha)
    else:
        low, high = _betting(column.values, treated, propensity, bounds, alpha, resolution)
        estimate = _within(estimate, bounds)  # Rounding may take a mean just outside.
    return ConfidenceSequence(
        estimate=estimate,
        low=low,
        high=high,
        confidence=1.0 - alpha,
        method="betting" if bounds is not None else "asymptotic",
        enough=known,
    )


def _betting(
    values: FloatArray,
    treated: Mask,
    propensity: float,
    bounds: tuple[float, float],
    alpha: float,
    resolution: int,
) -> tuple[FloatArray, FloatArray]:
    """The grid is odd, so that "no effect" is one of its points."""
    grid = 2 * round(resolution / min(propensity, 1.0 - propensity)) + 1
    test = BettingABTest(bounds=bounds, alpha=alpha, propensity=propensity, grid=min(grid, GRID_LIMIT))
    test.fit(values, treated)
    # Candidates reach beyond what a difference of two means within the bounds can be.
    return _within(test.lower_, bounds), _within(test.upper_, bounds)


def _within(differences: FloatArray, bounds: tuple[float, float]) -> FloatArray:
    """Cut to what a difference of two means within the bounds can be; NaN stays."""
    width = bounds[1] - bounds[0]
    cut: FloatArray = np.clip(differences, -width, width)
    return cut


def _running_mean(column: Column, rows: Mask) -> FloatArray:
    """[units] mean, or ratio, of some of the units so far; NaN before the first."""
    counts = np.ones_like(column.values) if column.counts is None else column.counts
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.cumsum(np.where(rows, column.values, 0.0)) / np.cumsum(np.where(rows, counts, 0.0))
    return np.where(np.isfinite(mean), mean, np.nan)
