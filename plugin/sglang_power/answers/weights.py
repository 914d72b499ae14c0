"""What a sample counts for when answers are chosen by weight; the weights of classes are sums of these.

power    log w = alpha*log p(y) - log q(y) for a sample y drawn from q: the self-normalised weights of p^alpha
         (draws from p get p^(alpha-1); p^alpha would target p^(alpha+1))
uniform  log w = 0: the class with most samples, self-consistency (Wang et al., arXiv 2203.11171)

Natural logarithms, float64. Confidences, which may be negative, are summed by `delta_sum`, not in log space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_power.errors import UnsupportedError
from sglang_power.types import FloatArray


def power_weights(alpha: float, log_p: Sequence[float], log_q: Sequence[float | None]) -> FloatArray:
    """[samples] log weights, nats.

    Args:
        alpha: exponent of the target.
        log_p: log p of each whole sample, temperature 1.
        log_q: log of the density that each whole sample was drawn from; unknown: None, NaN, -inf (no draw).

    Raises:
        UnsupportedError: some log q is unknown: without it there is no weight.
    """
    drawn = np.array([math.nan if value is None else value for value in log_q], dtype=np.float64)
    unknown = np.flatnonzero(np.isnan(drawn) | np.isneginf(drawn))
    if len(unknown):
        problem = f"the density that sample {unknown[0]} was drawn from is unknown"
        raise UnsupportedError("weight", "power", problem, "Use uniform weights, or samples of one known law")
    return np.asarray(alpha * np.asarray(log_p, dtype=np.float64) - drawn, dtype=np.float64)


def uniform_weights(samples: int) -> FloatArray:
    """[samples] zeros: every sample counts once."""
    return np.zeros(samples)


def delta_sum(deltas: FloatArray) -> float:
    """Sum of confidences, the same whatever the order (CoT-decoding, arXiv 2402.10200, section 3.2)."""
    return math.fsum(deltas.tolist())


def log_sum(log_weights: FloatArray) -> float:
    """log sum exp, the same whatever the order; -inf of nothing."""
    top = float(log_weights.max(initial=-math.inf))
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(np.exp(log_weights - top).tolist()))


def effective_sample_size(log_weights: FloatArray) -> float:
    """(sum w)^2 / sum w^2: N for equal weights, 1 where one outweighs the others, 0 where none has any."""
    total = log_sum(log_weights)
    return 0.0 if total == -math.inf else math.exp(2.0 * total - log_sum(2.0 * log_weights))
