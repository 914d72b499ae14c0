"""What a sample counts for when answers are chosen.

power    log w = alpha*log p(y) - log q(y) for a sample y drawn from q: the self-normalised weights of p^alpha
         (draws from p get p^(alpha-1); p^alpha would target p^(alpha+1))
uniform  log w = 0: the class with most samples, self-consistency
Delta    a path's confidence, the mean of its gaps over the answer's tokens, summed per class
         (CoT-decoding, arXiv 2402.10200, equation 1 and section 3.2)

Natural logarithms, float64.
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
        log_q: log of the density that each whole sample was drawn from; None, NaN or -inf where it is unknown.

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


def confidence(gaps: FloatArray, tokens: Sequence[int]) -> float | None:
    """Delta of a path: the mean gap over its answer's tokens; None for a path without an answer.

    Args:
        gaps: [T] p(1st) - p(2nd) of every token's row; p(taken) - max p(other) where the token taken is not
            the most likely one.
        tokens: indices of the answer's tokens.
    """
    return float(gaps[list(tokens)].mean()) if tokens else None


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
