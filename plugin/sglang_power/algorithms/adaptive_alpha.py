"""Adaptive Power Sampling (APS): an exponent of its own for every prompt, from rounds of samples.

A round is K samples of p^alpha_t. With v_i the share of the other samples that give the answer of sample i,
and z_i = (log p(x_i) - mean) / standard deviation over the round,

    g_t         = mean_i (v_i - mean v) z_i
    alpha_{t+1} = clip(alpha_t + eta * g_t, 1, 8)

g estimates Cov(agreement, log p), in place of the derivative of the chance of a right answer, which is
dP/dalpha = Cov(right, log p) under p^alpha: where likelier answers are those that others agree with, the
exponent grows. It ends on unanimity, where the chains hardly move (acceptance < q_min), where |g| <= epsilon,
or where the samples are used up; the last round votes. Constants are the published ones. A sample without an
answer agrees with nobody. Pure: knows neither answers nor engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sglang_power.types import FloatArray

STEP: Final = 2.0
"""eta."""

LOWEST: Final = 1.0
HIGHEST: Final = 8.0
"""The exponent stays between them."""

SMALL_GRADIENT: Final = 0.05
"""epsilon."""

LOW_ACCEPTANCE: Final = 0.05
"""q_min."""

End = Literal["unanimity", "acceptance", "gradient", "budget"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Args:
        alpha: of its chains.
        agreement: [K] v_i.
        gradient: g.
        acceptance_rate: of all steps of its chains; None where none was taken.
        unanimous: all samples give one answer.
    """

    alpha: float
    agreement: tuple[float, ...]
    gradient: float
    acceptance_rate: float | None
    unanimous: bool

    @property
    def next_alpha(self) -> float:
        """The exponent of a further round."""
        return min(max(self.alpha + STEP * self.gradient, LOWEST), HIGHEST)

    def end(self, left: int) -> End | None:
        """Return why no further round is drawn; None where one is.

        Args:
            left: samples that may still be drawn.
        """
        if self.unanimous:
            return "unanimity"
        if self.acceptance_rate is not None and self.acceptance_rate < LOW_ACCEPTANCE:
            return "acceptance"
        if abs(self.gradient) <= SMALL_GRADIENT:
            return "gradient"
        return "budget" if left < len(self.agreement) else None


def finished_round(
    alpha: float, labels: Sequence[int | None], log_p: FloatArray, accepted: int, steps: int
) -> Round:
    """Return what a round says.

    Args:
        alpha: of its chains.
        labels: [K] the class of each sample's answer; None where it has none.
        log_p: [K] of the whole samples, nats, float64.
        accepted, steps: of all its chains together.
    """
    found = agreement(labels)
    return Round(
        alpha,
        tuple(found),
        gradient(np.array(found), log_p),
        accepted / steps if steps else None,
        unanimous=len(set(labels)) == 1 and labels[0] is not None,
    )


def agreement(labels: Sequence[int | None]) -> list[float]:
    """Return v: for each sample the share of the others that give its answer."""
    counts = Counter(labels)
    others = max(len(labels) - 1, 1)
    return [0.0 if label is None else (counts[label] - 1) / others for label in labels]


def gradient(agreed: FloatArray, log_p: FloatArray) -> float:
    """Return g = mean((v - mean v) z); 0 where all samples are equally likely."""
    deviation = log_p - log_p.mean()
    spread = float(deviation.std())
    return 0.0 if spread == 0.0 else float(((agreed - agreed.mean()) * deviation / spread).mean())
