"""Confidence sequences of a difference, arm minus control: the only module that calls ville's.

Takes one column and who was treated, gives an interval after every unit. Knows no experiment and no verdict.
An effect may change meanwhile (a novelty wears off, an arm breaks): see ConfidenceSequence.changed.
Both methods work on phi_i = (y_i - m_{i-1}) (A_i / pi - (1 - A_i) / (1 - pi)), whose mean given the past is
the effect for any centre m_{i-1} made of earlier units; pi is the chance of the arm within the pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from ville import AsymptoticABTest, BettingABTest

from sglang_power.experiments.analysis.enough import TOO_LARGE, Enough, enough
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
        that nobody was assigned by has the same symptom.
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
    early and late. Others: asymptotic (Waudby-Smith et al. 2024), from when `enough` agrees, and not
    intersected, because early intervals are the least reliable; of an effect that changes they are about its
    mean so far. 100,000 units take half a second by betting and 20 ms otherwise.

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
        low, high, known = _asymptotic(column, treated, propensity, alpha)
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


def _asymptotic(
    column: Column, treated: Mask, propensity: float, alpha: float
) -> tuple[FloatArray, FloatArray, Enough]:
    start, outcomes, levels = _outcomes(column, treated, propensity)
    test = AsymptoticABTest(alpha=alpha, propensity=propensity, min_samples=2)
    test.fit(outcomes[start:], treated[start:])
    known = enough(levels, np.concatenate([np.zeros(start), outcomes[start:]]), treated)
    low, high = (np.append(np.full(start, np.nan), side) for side in (test.lower_, test.upper_))
    return np.where(known.mask, low, np.nan), np.where(known.mask, high, np.nan), known


def _outcomes(column: Column, treated: Mask, propensity: float) -> tuple[int, FloatArray, FloatArray]:
    """From which unit on and with what the asymptotic sequence is fed, and each unit's plain value.

    A plain metric is taken relative to the first unit's value, which is spent on it: the test's centre starts
    at 0, far from metrics like tokens. A ratio metric (numerators N, denominators D) is linearised per unit
    with past units only,
        z_i = (N_i - r D_i) (pi / d_0 + (1 - pi) / d_1),
    r the ratio of both arms' sums, d_a the mean of D in arm a: Budylin et al. 2018, "Consistent
    transformation of ratio metrics", the delta method of Deng, Knoblich and Lu 2018. Equal arms have equal
    means of z whatever r and d are; otherwise E[z|1] - E[z|0] tends to N_1/D_1 - N_0/D_0 exactly, even where
    the arm changes D, since r splits the difference as pi d_1 : (1 - pi) d_0.
    """
    values, counts = column.values, column.counts
    if counts is None:
        return min(1, len(values)), values - values[:1], values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _before(values) / _before(counts)
        d_1, d_0 = (_before(np.where(rows, counts, 0.0)) / _before(rows) for rows in (treated, ~treated))
        outcomes = (values - ratio * counts) * (propensity / d_0 + (1.0 - propensity) / d_1)
        levels = np.where(counts > 0.0, values / counts, -np.inf)
    ready = (d_0 > 0.0) & (d_1 > 0.0)
    return int(np.argmax(ready)) if ready.any() else len(values), outcomes, levels


def _before(x: FloatArray | Mask) -> FloatArray:
    """[units] sums over the units before each."""
    sums: FloatArray = np.cumsum(x, dtype=np.float64) - x
    return sums


def _running_mean(column: Column, rows: Mask) -> FloatArray:
    """[units] mean, or ratio, of some of the units so far; NaN before the first."""
    counts = np.ones_like(column.values) if column.counts is None else column.counts
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.cumsum(np.where(rows, column.values, 0.0)) / np.cumsum(np.where(rows, counts, 0.0))
    return np.where(np.isfinite(mean), mean, np.nan)
