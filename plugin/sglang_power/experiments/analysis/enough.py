"""When an asymptotic interval may be shown, and when something may be decided by it: after how many units.

Asked by `asymptotic` for metrics without bounds. Everything here looks at past units only, so that each rule
names a stopping time. Two rules, since they serve two purposes: an interval that is shown warns of harm, so
it must come early in small arms, too; one that a guardrail is called kept by, or an arm shipped, must not
rest on a tail of which little was seen.
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
"""Units that the smallest arm needs per squared skewness of the metric, for an interval."""

DECISIVE = 5.0
"""How many times as many it needs before a guardrail is called kept, or an arm shipped, by the interval.

Of lognormal values (sigma 1.5, skewness 33; the arm ten times the control at 50/50) the shown intervals ever
missed in 6.3% of 2,000 runs, those that may be decided by in 1.4%. Ten times as many would keep nine of ten
such runs of 8,000 units from any decision."""


@dataclass(frozen=True)
class Enough:
    """What the smallest arm has and needs, after every unit of a pair.

    Args:
        rare: [units] units that differ from their arm's most common value, in the arm that has fewer: where a
            metric has two values, as many units are with the event and as many without it.
        smallest: [units] units of the smaller arm.
        skewness: [units] of the arm that is more skewed, so far: a small arm's own is known late. Infinite,
            never NaN, where values are too large to compute it.
    """

    rare: IntArray
    smallest: IntArray
    skewness: FloatArray

    @property
    def needed(self) -> FloatArray:
        """[units] units that the smallest arm needs for an interval.

        A fixed-sample interval needs 355 per squared skewness (Kohavi et al. 2014, "Seven rules of thumb",
        rule 7); this one allows for skewness itself.
        """
        return PER_SQUARED_SKEWNESS * self.skewness**2

    @property
    def needed_to_decide(self) -> FloatArray:
        """[units] units that it needs before a guardrail is called kept or an arm shipped."""
        return DECISIVE * self.needed

    @property
    def mask(self) -> Mask:
        """[units] whether there is an interval."""
        return (self.rare >= RARE_UNITS) & (self.smallest >= self.needed)

    def problem(self, row: int) -> str | None:
        """Return what was missing for an interval after unit `row` (from 0), if anything."""
        if self.rare[row] < RARE_UNITS:
            seen = f"{self.rare[row]} units with the event, or without it, in the smallest arm"
            return f"not enough data: {seen}, {RARE_UNITS} are needed"
        if np.isinf(self.skewness[row]):
            return TOO_LARGE
        if self.smallest[row] < self.needed[row]:
            return f"not enough data: {self._short(row, self.needed)}"
        return None

    def too_early(self, row: int) -> str | None:
        """Return what was missing after unit `row` for a decision by the interval, if anything."""
        if self.smallest[row] < self.needed_to_decide[row]:
            return f"too early to decide by: {self._short(row, self.needed_to_decide)}"
        return None

    def _short(self, row: int, needed: FloatArray) -> str:
        asked = f"{np.ceil(needed[row]):,.0f} are needed for a metric as skewed as this one"
        return f"{self.smallest[row]:,} units in the smallest arm, {asked}"


def enough(levels: FloatArray, treated: Mask, skewness: FloatArray) -> Enough:
    """Return what a pair of arms has and needs.

    Args:
        levels: [units] values whose most common one means "no event"; of a ratio metric each unit's ratio.
        treated: [units] who had the arm; the others had the control.
        skewness: [units] see Enough.
    """
    return Enough(
        rare=np.minimum(_rare(levels, treated), _rare(levels, ~treated)),
        smallest=np.minimum(np.cumsum(treated), np.cumsum(~treated)),
        skewness=skewness,
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
