"""Resampling of weighted particles: which ancestors go on, and what their copies weigh.

Of N particles with weights w_1..w_N, N copies are made whose weights W satisfy, for every ancestor i,
E[sum of W over the copies of i] = c*w_i with the same c for all, and whose sum is not random. So
sum(w)/sum(W) times their weights are again properly weighted, and the product of these ratios over a run is
an unbiased estimate of its normaliser.

systematic   copies of weight 1: one uniform for all of them (Carpenter, Clifford & Fearnhead, 1999)
multinomial  copies of weight 1: independent of each other, as a conditional run needs them (Andrieu, Doucet &
             Holenstein, 2010)
chopthin     weights that may differ by RATIO_BOUND: heavy particles are chopped into equal pieces, light ones
             are thinned, the rest stays as it is (Gandy & Lau, arXiv 1502.07532). Here the thinned ones share
             their summed weight, so that sum(W) = sum(w) in every draw.

Weights are logarithms, nats, -inf allowed; draws are functions of uniforms that the caller gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sglang_power.types import FloatArray

Scheme = Literal["systematic", "chopthin", "multinomial"]

RATIO_BOUND = 3.0 + math.sqrt(8.0)
"""Largest ratio of two weights after chopthin; it keeps the effective sample size at N/2 or above."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """The copies that go on.

    Args:
        ancestors: [N] index of each copy's ancestor.
        log_weights: [N] float64, nats.
    """

    ancestors: tuple[int, ...]
    log_weights: FloatArray


def log_sum(log_weights: FloatArray) -> float:
    """log sum exp; -inf where no weight is positive."""
    return float(np.logaddexp.reduce(log_weights))


def effective_sample_size(log_weights: FloatArray) -> float:
    """(sum w)^2 / sum w^2; 0 where no weight is positive."""
    total = log_sum(log_weights)
    return 0.0 if total == -math.inf else math.exp(2.0 * total - log_sum(2.0 * log_weights))


def pick(log_weights: FloatArray, u: float) -> int:
    """An index, with probability proportional to its weight, by inverse CDF of one uniform."""
    return int(_at(_scaled(log_weights), np.array([u]))[0])


def resample(scheme: Scheme, log_weights: FloatArray, uniforms: FloatArray) -> Resampled:
    """Copies of N particles.

    Args:
        scheme: see the module.
        log_weights: [N] float64, nats; at least one is finite.
        uniforms: [N] of [0, 1); all but "multinomial" use the first one only.
    """
    count = len(log_weights)
    if scheme == "chopthin":
        return chopthin(log_weights, float(uniforms[0]))
    positions = uniforms if scheme == "multinomial" else (uniforms[0] + np.arange(count)) / count
    ancestors = _at(_scaled(log_weights), positions)
    return Resampled(tuple(ancestors.tolist()), np.zeros(count))


def conditional(log_weights: FloatArray, uniforms: FloatArray) -> Resampled:
    """Multinomial copies given that copy 0 is one of particle 0, the reference (Andrieu et al., 2010)."""
    free = resample("multinomial", log_weights, uniforms)
    return Resampled((0, *free.ancestors[1:]), free.log_weights)


def chopthin(log_weights: FloatArray, u: float) -> Resampled:
    """Chop the heavy, thin the light, leave the rest.

    A particle of weight w is to have max(1, floor(w/mean)) copies of equal weight. That may be too many in
    all, and weights too far apart: then the lightest particles, as few as will do, share the copies that are
    left by systematic resampling, each copy with the same part of their summed weight. With all of them in
    it this is systematic resampling, so there is always an end.

    Args:
        log_weights: [N] float64, nats; at least one is finite.
        u: uniform of [0, 1).
    """
    weights = _scaled(log_weights)
    copies = np.maximum(1, np.floor(weights / weights.mean()).astype(np.int64))
    pieces = weights / copies
    lightest = np.argsort(weights, kind="stable")
    pool = next(
        lightest[:thinned]
        for thinned in range(len(weights) + 1)
        if _within_bound(weights, copies, pieces, lightest, thinned)
    )
    if len(pool):
        pool = np.sort(pool)
        left = len(weights) - int(np.delete(copies, pool).sum())
        drawn = pool[_at(weights[pool], (u + np.arange(left)) / left)]
        copies[pool] = 0
        np.add.at(copies, drawn, 1)
        pieces[pool] = weights[pool].sum() / left
    ancestors = np.repeat(np.arange(len(weights)), copies)
    scale = float(log_weights.max())
    return Resampled(tuple(ancestors.tolist()), np.log(pieces[ancestors]) + scale)


def _within_bound(
    weights: FloatArray,
    copies: NDArray[np.int64],
    pieces: FloatArray,
    lightest: NDArray[np.int64],
    thinned: int,
) -> bool:
    """Whether thinning so many of the lightest particles gives N copies whose weights are close enough."""
    pool, kept = lightest[:thinned], lightest[thinned:]
    left = len(weights) - copies[kept].sum()
    if thinned == 0:
        return bool(left == 0 and pieces.max() <= RATIO_BOUND * pieces.min())
    if left < 1:
        return False
    after = np.append(pieces[kept], weights[pool].sum() / left)
    return bool(after.max() <= RATIO_BOUND * after.min())


def _scaled(log_weights: FloatArray) -> FloatArray:
    """Weights of which the largest is 1."""
    return np.asarray(np.exp(log_weights - log_weights.max()), dtype=np.float64)


def _at(weights: FloatArray, positions: FloatArray) -> NDArray[np.int64]:
    """The index at each position of [0, 1) of the line on which every index is as long as its weight.

    An index of weight 0 has no place on it, whatever rounding does at the line's end.
    """
    line = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    found = np.searchsorted(line, positions * line[-1], side="right")
    return np.asarray(np.minimum(found, last), dtype=np.int64)
