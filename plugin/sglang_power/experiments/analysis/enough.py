"""When an asymptotic interval may be shown: after how many units the normal law is close enough.

Asked by `sequences` for metrics without bounds. Everything here looks at past units only, so that each rule
names a stopping time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sglang_power.experiments.analysis.observations import Mask
from sglang_power.types import FloatArray

IntArray: TypeAlias = NDArray[np.int64]

TOO_LARGE = "the values are too large to compute with"

RARE_UNITS = 20
"""Units with the event, and as many without it, that the smallest arm needs."""

PER_SQUARED_SKEWNESS = 5.0
"""Units that the smallest arm needs per squared skewness of the metric."""


@dataclass(frozen=True)
class Enough:
    """What the smallest arm has and needs, after every unit of a pair.

    Args:
        rare: [units] units that differ from their arm's most common value, in the arm that has fewer: where a
            metric has two values, as many units are with the event and as many without it.
        smallest: [units] units of the smaller arm.
        needed: [units] PER_SQUARED_SKEWNESS times the squared skewness over both arms so far. A fixed-sample
            interval needs 355 (Kohavi et al. 2014, "Seven rules of thumb", rule 7); a confidence sequence is
            wider. In A/A runs at 90/10 and 98/2 the rule kept false positives below alpha for exponential,
            lognormal and Pareto (index 2.5) metrics, where 20 rare units alone gave up to 4 alpha. Infinite,
            never NaN, where values are too large to compute it.
    """

    rare: IntArray
    smallest: IntArray
    needed: FloatArray

    @property
    def mask(self) -> Mask:
        """[units] whether there is an interval."""
        return (self.rare >= RARE_UNITS) & (self.smallest >= self.needed)

    def problem(self, row: int) -> str | None:
        """What was missing after unit `row` (from 0), if anything."""
        if self.rare[row] < RARE_UNITS:
            seen = f"{self.rare[row]} units with the event, or without it, in the smallest arm"
            return f"not enough data: {seen}, {RARE_UNITS} are needed"
        if np.isinf(self.needed[row]):
            return TOO_LARGE
        if self.smallest[row] < self.needed[row]:
            needed = f"{np.ceil(self.needed[row]):,.0f} are needed for a metric as skewed as this one"
            return f"not enough data: {self.smallest[row]} units in the smallest arm, {needed}"
        return None


def enough(levels: FloatArray, outcomes: FloatArray, treated: Mask) -> Enough:
    """What a pair of arms has and needs.

    Args:
        levels: [units] values whose most common one means "no event"; of a ratio metric each unit's ratio.
        outcomes: [units] what the confidence sequence is fed with.
        treated: [units] who had the arm; the others had the control.
    """
    return Enough(
        rare=np.minimum(_rare(levels, treated), _rare(levels, ~treated)),
        smallest=np.minimum(np.cumsum(treated), np.cumsum(~treated)),
        needed=PER_SQUARED_SKEWNESS * _skewness(outcomes) ** 2,
    )


def _rare(levels: FloatArray, rows: Mask) -> IntArray:
    """[units] how many of some rows so far differ from the most common value of these rows."""
    if not rows.any():
        return np.zeros(len(rows), dtype=np.int64)
    most_common = np.maximum.accumulate(_occurrences(levels[rows]))
    rare: IntArray = np.append(0, np.arange(1, len(most_common) + 1) - most_common)
    return rare[np.cumsum(rows)]


def _occurrences(levels: FloatArray) -> IntArray:
    """[units] 1 where a value is seen for the first time, 2 for the second time..."""
    order = np.argsort(levels, kind="stable")
    place = np.arange(len(levels))
    new = np.append(True, levels[order][1:] != levels[order][:-1])
    occurrence = np.empty(len(levels), dtype=np.int64)
    occurrence[order] = place - np.maximum.accumulate(np.where(new, place, 0)) + 1
    return occurrence


def _skewness(outcomes: FloatArray) -> FloatArray:
    """[units] sample skewness so far, of outcomes near 0: 0 while all are equal, infinite if it overflows."""
    n = np.arange(1, len(outcomes) + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        first, second, third = (np.cumsum(outcomes**power) / n for power in (1, 2, 3))
        variance = np.maximum(second - first**2, 0.0)
        centred = third - 3.0 * first * second + 2.0 * first**3
        spread = variance > 1e-12 * np.maximum(second, 1e-300)
        skewness = np.divide(centred, variance**1.5, out=np.zeros_like(centred), where=spread)
    return np.where(np.isfinite(centred), skewness, np.inf)
