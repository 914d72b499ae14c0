"""Look-ahead sampling of p(y)^alpha, block by block: as pure functions.

Scalable Power Sampling (arXiv 2601.21590), in its form with blocks. Behind a prefix that is settled,

    p_pow(block | prefix)  is proportional to  p(block)^alpha * zeta(block)
    zeta(block) = sum over what may follow it of p(future)^alpha = E_{future~q}[p(future)^alpha / q(future)]

For every block: draw K candidates from q; behind each that has not ended draw M rollouts from q, of H tokens
at most; estimate zeta by the mean of exp(alpha*log p - log q) over the rollouts; draw one candidate k with
probability w_k, and go on behind it:

    w_k is proportional to  exp(alpha*log p(cand_k) - log q(cand_k)) * zeta_k

Candidates are draws of q, so that their own density is divided out. The published weights leave q(cand_k)
away, and tend to q*p^alpha*zeta as K grows. A candidate that has ended has zeta 1.

A ratio of estimates is biased by O(1/M). The jackknife leaves out rollout s of every candidate at a time,
w_k^(-s), and makes that O(1/M^2):

    w~_k = M*w_k - (M-1)/M * sum_s w_k^(-s)

Some w~_k may be negative; those are set to 0, and the rest is divided by its sum. The law tends to p^alpha as
K, M and H grow. For finite ones it is near it; a short H, too, overlooks that longer futures weigh less.

Every weight is a logarithm, nats. A driver repeats `candidate_calls`, `rollout_calls`, `chosen`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_power.algorithms import acceptance, resampling
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Tokens


@dataclass(frozen=True, slots=True)
class LookaheadConfig:
    """The frozen configuration of a look-ahead.

    Args:
        alpha: exponent of the target, >= 1.
        law: proposal law q, of candidates and of rollouts.
        horizon: L, the largest number of generated tokens.
        candidates: K;  rollouts: M, behind each of them.
        rollout_tokens: H, at most, of a rollout.
        block_size: B, of a candidate.
    """

    alpha: float
    law: ProposalLaw
    horizon: int
    candidates: int
    rollouts: int
    rollout_tokens: int
    block_size: int

    def block_end(self, length: int) -> int:
        """Tokens of the answer and of a candidate behind so many, at most."""
        return min(length + self.block_size, self.horizon)

    def rollout_end(self, length: int) -> int:
        """Tokens of the answer, a candidate and a rollout behind so many, at most."""
        return min(length + self.rollout_tokens, self.horizon)

    def most_tokens(self, length: int) -> int:
        """What the next block decodes at most, behind so many tokens."""
        end = self.block_end(length)
        looked = self.rollout_end(end) - end if self.candidates > 1 else 0
        return self.candidates * (end - length + self.rollouts * looked)


@dataclass(frozen=True, eq=False, slots=True)
class BlockWeights:
    """With which probability each candidate of a block is drawn.

    Args:
        shares: [K] float64, sums to 1; all 0 where no weight is a number.
        clipped: candidates whose corrected weight was below 0.
        broken: candidates and rollouts whose weight is no number; they count as weight 0.
    """

    shares: FloatArray
    clipped: int = 0
    broken: int = 0

    @property
    def dead(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.shares.any()

    @property
    def ess(self) -> float:
        """Effective number of candidates: 1/sum of the squared shares; 0 where there is nothing to draw."""
        return 0.0 if self.dead else float(1.0 / (self.shares**2).sum())


Rollouts = Mapping[int, Sequence[Continuation]]
"""Of each candidate, by its index; none of those that have ended or are at the horizon."""


def candidate_calls(config: LookaheadConfig, key: Key, block: int, prefix: Tokens) -> list[ContinuationCall]:
    """The candidates of a block.

    Args:
        config: of the look-ahead.
        key: of the answer.
        block: 0, 1, ...
        prefix: what is settled; shorter than the horizon.
    """
    end = config.block_end(len(prefix))
    keys = [key.split(k, config.candidates) for k in range(config.candidates)]
    seeds = [each.child_seed(block, Purpose.PROPOSAL) for each in keys]
    return [ContinuationCall(prefix.ids, end, config.law, seed) for seed in seeds]


def rollout_calls(
    config: LookaheadConfig, key: Key, block: int, prefix: Tokens, candidates: Sequence[Continuation]
) -> dict[int, list[ContinuationCall]]:
    """The rollouts of a block, by candidate; none where there is a single one, which is the choice anyway.

    Args:
        config, key, block, prefix: as `candidate_calls`.
        candidates: the answers to its calls.
    """
    if len(candidates) == 1:
        return {}
    found, parts = {}, config.candidates * config.rollouts
    for k, candidate in enumerate(candidates):
        ids = prefix.ids + candidate.tokens.ids
        if candidate.finished or len(ids) == config.horizon:
            continue
        keys = [key.split(k * config.rollouts + m, parts) for m in range(config.rollouts)]
        seeds = [each.child_seed(block, Purpose.FORK) for each in keys]
        end = config.rollout_end(len(ids))
        found[k] = [ContinuationCall(ids, end, config.law, seed) for seed in seeds]
    return found


def ending_call(config: LookaheadConfig, key: Key, prefix: Tokens) -> ContinuationCall:
    """What brings a prefix to a stop or to the horizon, without looking ahead."""
    seed = key.child_seed(len(prefix), Purpose.EXTENSION)
    return ContinuationCall(prefix.ids, config.horizon, config.law, seed)


def chosen(key: Key, block: int, weights: BlockWeights) -> int:
    """The candidate that is drawn by its weight; at least one has a positive one."""
    with np.errstate(divide="ignore"):
        return resampling.pick(np.log(weights.shares), key.uniform(block, Purpose.CHOICE))


# --- weights ------------------------------------------------------------------------------------------


def weighed(config: LookaheadConfig, candidates: Sequence[Continuation], rollouts: Rollouts) -> BlockWeights:
    """The weights of a block's candidates.

    Args:
        config: of the look-ahead.
        candidates: K.
        rollouts: M of each that has not ended.
    """
    own = np.array([log_weight(config.alpha, candidate.tokens) for candidate in candidates])
    futures = {
        k: np.array([log_weight(config.alpha, rollout.tokens) for rollout in each])
        for k, each in rollouts.items()
    }
    broken = sum(int((each == -math.inf).sum()) for each in (own, *futures.values()))
    return dataclasses.replace(corrected(own, futures), broken=broken)


def log_weight(alpha: float, tokens: Tokens) -> float:
    """alpha*log p - log q of a draw from q, nats; -inf where something in it is no number."""
    value = acceptance.log_weight(alpha, tokens)
    return value if math.isfinite(value) else -math.inf


def corrected(own: FloatArray, futures: Mapping[int, FloatArray]) -> BlockWeights:
    """The jackknifed shares of candidates.

    Args:
        own: [K] log weight of each candidate's own tokens.
        futures: by candidate, [M] log weight of each of its rollouts; M is the same for all. A candidate
            without an entry has zeta 1.
    """
    count = max((len(each) for each in futures.values()), default=0)
    whole, without = own.copy(), np.tile(own, (count, 1))
    for k, each in futures.items():
        whole[k] += resampling.log_sum(each) - math.log(count)
        if count > 1:
            without[:, k] += log_sums_without(each) - math.log(count - 1)
    shares = _shares(whole)
    # A rollout without which no candidate is left cannot be left out.
    if count < 2 or bool((without.max(axis=1) == -math.inf).any()):
        return BlockWeights(shares)
    left_out = np.array([_shares(row) for row in without])
    exact = count * shares - (count - 1) / count * left_out.sum(axis=0)
    kept = np.maximum(exact, 0.0)
    return BlockWeights(kept / kept.sum(), int((exact < 0.0).sum()))


def log_sums_without(values: FloatArray) -> FloatArray:
    """[M] log of the sum of all but one, for each one; without subtraction, which would lose digits."""
    nothing = np.array([-math.inf])
    before = np.logaddexp.accumulate(np.concatenate([nothing, values[:-1]]))
    behind = np.logaddexp.accumulate(np.concatenate([nothing, values[:0:-1]]))[::-1]
    return np.asarray(np.logaddexp(before, behind), dtype=np.float64)


def _shares(log_weights: FloatArray) -> FloatArray:
    """Weights divided by their sum; 0 where there is none."""
    total = resampling.log_sum(log_weights)
    return np.zeros(len(log_weights)) if total == -math.inf else np.exp(log_weights - total)
