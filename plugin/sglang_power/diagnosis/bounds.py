"""Upper confidence bounds on the distance of a chain's law to its limit, from meeting times. Pure.

Let pi_t be the law of a chain after t steps, pi its limit, f(t) = TV(pi_t, pi), which never grows with t, and
S(t) = P(a pair has not met after t coupled steps), with a lag of L >= t (`algorithms.coupling`).

1. TV(pi_t, pi_{t+L}) <= S(t), by the coupling inequality: L further steps change the law by no more. This
   needs no assumption. Of R independent pairs K(t) have not met after t steps, K(t) is binomial(R, S(t)),
   and u(t) = the (1 - delta) quantile of Beta(K + 1, R - K), 1 where K = R (Clopper & Pearson, 1934),
   is at least S(t) with probability 1 - delta. No meeting time is cut off unseen: a pair that has not met
   when it ends, after M steps, counts in K(t) at every t, and t goes no further than M.

2. f(t) <= TV(pi_t, pi_{t+L}) + f(t + L) <= S(t) + f(t + L). Biswas, Jacob & Vanetti (arXiv 1905.09971,
   Theorem 2.5) apply this again and again: f(t) <= sum_{j>=0} S(t + jL) = E[max(0, ceil((tau - L - t) / L))].
   The mean of an unbounded number has no confidence bound from any number of samples: meetings that are
   rarer than 1 in R may be late enough to make up most of it. So what is left after L steps is assumed:

       (A)   f(t + L) <= r f(t),   r = max(1/2, s^(2L/M)),   s = K(M) / (K(M/2) + 1)

   L further steps at least halve the distance; or, where pairs that are still apart after M/2 steps meet
   more slowly than that in the M/2 behind (s is the share that does not), shrink it at their rate. Then

       f(t) <= S(t) / (1 - r),   below u(t) / (1 - r) with confidence 1 - delta.

   For r = 1/2 that holds already where f(t + L) <= S(t), much less than (A). f(t + L) <= d(L) f(t) holds
   always, d(L) = the largest distance after L steps of two chains from anywhere; so (A) fails only where
   some starts are much worse than those that pairs have: where p^alpha has mass that hardly any chain came
   to. Nothing that is seen in chains can exclude this. A larger lag makes (A) weaker, and shows more of it.

u(t) never grows with t, so the first t at which the bound is below a target is itself a bound: it is too
early only where the bound fails at the one step before f comes below the target, with probability delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from scipy import stats

LEAST_RATE: Final = 0.5
"""What r is at least: (A) never takes more than a halving for granted."""


def not_met(meetings: Sequence[int | None], steps: int) -> list[int]:
    """Return K(t), how many pairs have not met after t = 0..steps coupled steps.

    Args:
        meetings: coupled steps of each pair until it met; None where it had not after `steps`.
        steps: coupled steps that each pair had, unless it met before.
    """
    return [sum(met is None or met > t for met in meetings) for t in range(steps + 1)]


def upper(count: int, replicas: int, confidence: float) -> float:
    """Return u, the upper confidence bound of Clopper and Pearson on a probability.

    Args:
        count: K, how often it happened.
        replicas: R.
        confidence: 1 - delta.
    """
    if count == replicas:
        return 1.0
    return float(stats.beta.ppf(confidence, count + 1, replicas - count))


def rate(unmet: Sequence[int], lag: int) -> float:
    """Return r, the factor by which `lag` further steps are taken to shrink the distance.

    Args:
        unmet: K(0), ..., K(M).
        lag: L.
    """
    steps = len(unmet) - 1
    share = unmet[-1] / (unmet[steps // 2] + 1)
    return float(max(LEAST_RATE, share ** (lag / (steps - steps // 2))))


def distances(change: Sequence[float], r: float) -> list[float]:
    """Return the bounds on the distance to the limit, u(t) / (1 - r), 1 at most."""
    return [min(1.0, u / (1.0 - r)) for u in change]


def replicas_for(target: float, confidence: float) -> int:
    """Return the fewest replicas with which the bound can be below a target: where all pairs have met.

    Then u = 1 - delta^(1/R), and the bound is twice that.
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-target * (1.0 - LEAST_RATE)))


def first_below(bounds: Sequence[float], target: float) -> int | None:
    """Return the first t at which a bound is at most a target; None where it never is."""
    return next((t for t, bound in enumerate(bounds) if bound <= target), None)
