"""The asymptotic confidence sequence of a difference of two means, or of two ratios.

Called by `sequences` for metrics without bounds. Takes one column and who was treated, gives bounds after
every unit; when they may be shown is asked of `enough`. Knows no experiment.

Where it comes from:

- *Sequence.* Robbins' normal mixture boundary, on any asymptotically linear estimator with an estimated
  variance: Waudby-Smith et al. 2024, "Time-uniform central limit theory and asymptotic confidence sequences".
- *Estimator.* The difference of the arms' own means, with each arm's own variance, s_1^2 / n_1 + s_0^2 / n_0:
  what inverse propensity weighting tends to with the best centre. One centre for both arms is far from the
  mean of an arm of another scale, which at 90/10 cost a fifth of the width.
- *Skewness.* A mean of skewed values that is too small comes with a variance that is too small, so the bound
  on the side of the long tail misses. With g the skewness of the difference, the law of a studentised
  difference is, to first order, P(T <= x) = Phi(x) + (g / 6) (2 x^2 + 1) phi(x) (Hall 1992, "The bootstrap
  and Edgeworth expansion"; for A/B tests Gong et al. 2025, "Beyond normality: reliable A/B testing with
  non-Gaussian data"). So z standard errors become z + |g| (2 z^2 + 1) / 6 on that side. The other side stays
  as it is: skewness is estimated, and an estimate must not narrow an interval.
- *Scale of time.* The mixture is tuned to NARROWEST units of the smaller arm, later than is usual: bounds are
  wider while the normal law is poor, and narrower afterwards.

No theorem covers the last two together; the gate (tests/test_ab_gate.py) measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ville import GaussianMixtureCS

from sglang_power.experiments.analysis.enough import Enough, enough
from sglang_power.experiments.analysis.observations import Column, Mask
from sglang_power.types import FloatArray

NARROWEST = 2_000.0
"""Units of the smaller arm at which an interval is narrowest, compared with a fixed-sample one.

Lognormal values (sigma 1), the arm three times the control at 50/50, alpha 5%, a look after every unit: of
1,000 runs 6.5% ever missed with 500, 5.7% with 1,000, 3.9% with 2,000 (7.6% with 1,000 and no skewness)."""


@dataclass(frozen=True)
class ArmMoments:
    """What is known of one arm after every unit of the pair.

    With numerators N and denominators D (1 for a plain metric), r = sum N / sum D and d the mean of D, the
    moments are those of (N - r D) / d, the influence of a unit on r: the delta method of Deng, Knoblich and
    Lu 2018.

    Args:
        units: [units] of the arm so far.
        ratio: [units] r, less a constant that both arms share.
        variance, third: [units] second and third central moment of the influence.
    """

    units: FloatArray
    ratio: FloatArray
    variance: FloatArray
    third: FloatArray

    @property
    def skewness(self) -> FloatArray:
        """[units] 0 while all influences are equal, infinite where they are too large to compute it."""
        with np.errstate(over="ignore", invalid="ignore"):
            spread = self.variance > 0.0
            skewness = np.divide(self.third, self.variance**1.5, out=np.zeros_like(self.third), where=spread)
        return np.where(np.isfinite(skewness) & np.isfinite(self.third), skewness, np.inf)


def arm_moments(numerators: FloatArray, denominators: FloatArray, rows: Mask) -> ArmMoments:
    """Return the moments of an arm by sums over its units so far; NaN before it has a denominator.

    Args:
        numerators: [units] best near 0, since powers of them are summed.
        denominators: [units] ones for a plain metric.
        rows: [units] who is in the arm.
    """
    seen = np.cumsum(rows).astype(np.float64)
    n = np.where(rows, numerators, 0.0)
    d = np.where(rows, denominators, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size, ratio = np.cumsum(d) / seen, np.cumsum(n) / np.cumsum(d)
        nn, nd, dd = (np.cumsum(x) / seen for x in (n * n, n * d, d * d))
        nnn, nnd, ndd, ddd = (np.cumsum(x) / seen for x in (n**3, n * n * d, n * d * d, d**3))
        variance = nn - 2.0 * ratio * nd + ratio**2 * dd
        third = nnn - 3.0 * ratio * nnd + 3.0 * ratio**2 * ndd - ratio**3 * ddd
        # Below that, what is left of the squares is rounding.
        variance = np.where(variance > 1e-12 * nn, variance, np.where(np.isnan(variance), np.nan, 0.0))
        return ArmMoments(seen, ratio, variance / size**2, third / size**3)


def asymptotic(
    column: Column, treated: Mask, *, propensity: float, alpha: float
) -> tuple[FloatArray, FloatArray, Enough]:
    """Return lower and upper bounds of arm minus control after every unit, and what they wait for.

    Bounds are NaN where there is not enough. Of an effect that changes they are about its mean so far.

    Args:
        column: one value per unit; with `counts` a ratio metric, whose effect is a difference of ratios.
        treated: [units] who had the arm; the others had the control.
        propensity: chance of the arm among both; sets the scale of time only.
        alpha: chance that the sequence ever misses, asymptotically.
    """
    counts = np.ones_like(column.values) if column.counts is None else column.counts
    values = column.values - _first_ratio(column.values, counts) * counts
    arm, control = (arm_moments(values, counts, rows) for rows in (treated, ~treated))
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.where(counts > 0.0, column.values / counts, -np.inf)
    known = enough(levels, treated, np.maximum(np.abs(arm.skewness), np.abs(control.skewness)))
    z = _boundary(len(values), NARROWEST / min(propensity, 1.0 - propensity), alpha)
    low, high = _bounds(arm, control, z)
    return np.where(known.mask, low, np.nan), np.where(known.mask, high, np.nan), known


def _first_ratio(values: FloatArray, counts: FloatArray) -> float:
    """Return the first unit's ratio, which all values are taken relative to: tokens are far from 0."""
    some = np.flatnonzero(counts > 0.0)
    return float(values[some[0]] / counts[some[0]]) if len(some) else 0.0


def _boundary(units: int, narrowest: float, alpha: float) -> FloatArray:
    """[units] how many standard errors a Gaussian mean never leaves, by ville's normal mixture."""
    if units == 0:
        return np.zeros(0)
    sequence = GaussianMixtureCS(sigma=1.0, alpha=alpha, t_opt=narrowest, intersect=False)
    margin: FloatArray = sequence.fit(np.zeros(units)).upper_
    standard_errors: FloatArray = margin * np.sqrt(np.arange(1, units + 1))
    return standard_errors


def _bounds(arm: ArmMoments, control: ArmMoments, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bounds of the difference, each as far away as its side's tail asks for."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        square = arm.variance / (arm.units - 1.0) + control.variance / (control.units - 1.0)
        error = np.sqrt(square)
        skewness = (arm.third / arm.units**2 - control.third / control.units**2) / error**3
        tail = skewness * (2.0 * z**2 + 1.0) / 6.0
        middle = arm.ratio - control.ratio
        low = middle - error * (z + np.maximum(-tail, 0.0))
        high = middle + error * (z + np.maximum(tail, 0.0))
    return low, high
