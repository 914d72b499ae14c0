"""The acceptance rule, alone: one function computes the ratio, one decides.

log_ratio = sum_{t>m} log w(y'_t) - sum_{t>m} log w(y_t) + log cut(m|y') - log cut(m|y) + tilt' - tilt
log w_t   = alpha*log p_t - log q_t                      (sums over the WHOLE suffix after the cut)

Metropolis-Hastings for pi(y) proportional to p(y)^alpha (Karan & Du, arXiv 2510.14901, Algorithm 1,
with the cut law's ratio that variable length needs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_power.types import Tokens


@dataclass(frozen=True, slots=True)
class HastingsTerms:
    """Every term of the log ratio, nats. `proposal` is y', `current` is y."""

    log_w_proposal: float
    log_w_current: float
    log_cut_proposal: float
    log_cut_current: float
    log_tilt_proposal: float = 0.0
    log_tilt_current: float = 0.0


def log_weight(alpha: float, suffix: Tokens) -> float:
    """sum_t alpha*log p_t - log q_t over a suffix, in float64.

    +inf where some token has zero proposal density (a draft outside of a truncated proposal's support):
    such a state is outside of the target's support too.
    """
    log_q = float(suffix.log_q.sum())
    return math.inf if log_q == -math.inf else float(alpha * suffix.log_p.sum() - log_q)


def log_ratio(terms: HastingsTerms) -> float:
    """The log acceptance ratio. +inf when the current state has zero proposal density."""
    if terms.log_w_current == math.inf:
        return math.inf
    return (
        (terms.log_w_proposal - terms.log_w_current)
        + (terms.log_cut_proposal - terms.log_cut_current)
        + (terms.log_tilt_proposal - terms.log_tilt_current)
    )


def accepts(log_u: float, ratio: float) -> bool:
    """True when log u < log ratio. A ratio that is not a number never accepts."""
    return log_u < ratio
