"""Perfect draws of p^alpha on Y_L: rejection sampling whose trials end as soon as they are lost.

With q the untruncated proposal at temperature 1/alpha, z_t = log sum_v p(v | c, y_<t)^alpha <= 0,

    q(y) = p(y)^alpha / exp(sum_t z_t),        pi(y) / q(y) = exp(sum_t z_t) / Z,        Z = sum_y p(y)^alpha,

so a y from q that is accepted with probability exp(sum z) is an independent and exact draw of pi; that takes
1/Z trials on average. z_t is a function of the prefix alone.

    for i = 0, 1, 2, ...:  draw u_i;  draw y from q, and stop it once sum z < log u_i
    the answer is the accepted trial of smallest i, whichever ends first

Taking the first one to end would favour short answers. With a reward that is never above R_max, y is accepted
with probability exp(sum z + lambda * (R(y) - R_max)). A trial is a function of (key, i), so how many of them
run at once, and when, changes no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_power.algorithms import acceptance
from sglang_power.algorithms.early_rejection import TrialRejection
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.tilt import Tilt
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, ProposalLaw, Tokens

AFFORDABLE = 8
"""Further trials that are worth trying where a chain is at hand, in units of `width`."""

Verdict = Literal["accepted", "rejected", "undecided"]


@dataclass(frozen=True, slots=True)
class PerfectConfig:
    """The frozen configuration of one draw.

    Args:
        alpha: exponent of the target, >= 1.
        horizon: L, the largest number of generated tokens.
        max_trials: how many there may be.
        width: how many run side by side.
        tilt: the reward's share of the target, bounded from above; None means none.
        weighs: whether the first `width` trials, should all be rejected, say if further ones are worth it.
    """

    alpha: float
    horizon: int
    max_trials: int
    width: int
    tilt: Tilt | None = None
    weighs: bool = False

    def __post_init__(self) -> None:
        assert self.tilt is None or self.tilt.bounded

    @property
    def law(self) -> ProposalLaw:
        """The proposal law q."""
        return ProposalLaw(self.alpha)


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial before it runs.

    Args:
        index: its place in the order.
        log_u: log of the uniform that decides.
        call: the continuation that makes it.
    """

    index: int
    log_u: float
    call: ContinuationCall


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One trial, as far as it came.

    Args:
        trial: which one.
        tokens, finished: what was drawn.
        whole: the tokens are a whole answer.
        log_w: log of the acceptance probability at these tokens, nats: an upper bound of that of the answer.
        verdict: "undecided" where the tokens do not reject it and are no whole answer.
        reward: R of a whole answer; None where none is known.
    """

    trial: Trial
    tokens: Tokens
    finished: bool
    whole: bool
    log_w: float
    verdict: Verdict
    reward: float | None = None

    @property
    def index(self) -> int:
        """The trial's place in the order."""
        return self.trial.index


def trial(config: PerfectConfig, key: Key, index: int) -> Trial:
    """Draw the uniform of a trial, and describe its call."""
    log_u = math.log1p(-key.uniform(index, Purpose.ACCEPT))
    seed = key.child_seed(index, Purpose.PROPOSAL)
    rules = (TrialRejection(log_u),)
    return Trial(index, log_u, ContinuationCall((), config.horizon, config.law, seed, rules=rules))


def log_weight(tokens: Tokens) -> float:
    """sum_t z_t, nats, in float64."""
    return float(tokens.log_z.sum())


def survives(drawn: Trial, tokens: Tokens) -> bool:
    """Whether the tokens so far do not reject a trial; a reward may still."""
    return acceptance.accepts(drawn.log_u, log_weight(tokens))


def judged(drawn: Trial, so_far: Continuation, tilt: Tilt | None, reward: float | None = None) -> Judged:
    """Decide a trial from its tokens; the engine's early end is a hint that changes no decision.

    Args:
        drawn: the trial.
        so_far: its tokens; where `cut_short`, the weight is an upper bound of the whole answer's.
        tilt: the reward's share, where it acts.
        reward: R of a whole answer; None for its upper bound.
    """
    log_w = log_weight(so_far.tokens)
    if tilt is not None and reward is not None:
        log_w += tilt.log_factor(reward) - tilt.log_bound
    verdict: Verdict = "rejected"
    if acceptance.accepts(drawn.log_u, log_w):
        verdict = "undecided" if so_far.cut_short else "accepted"
    whole = not so_far.cut_short
    return Judged(drawn, so_far.tokens, so_far.finished, whole, log_w, verdict, reward)


def affordable(config: PerfectConfig, max_total_tokens: int, reserved: int) -> int:
    """Return how many trials a budget of tokens stands for, before any of them is seen.

    A budget that ended trials by what they cost would favour short answers.

    Args:
        config: of the draw.
        max_total_tokens: the budget.
        reserved: tokens of it that stay for what follows the trials.
    """
    return min(config.max_trials, max(0, max_total_tokens - reserved) // config.horizon)


def mean_weight(log_weights: Sequence[float]) -> float:
    """The mean of exp(sum z) at the tokens that trials have: in expectation an upper bound of Z."""
    return math.fsum(map(math.exp, log_weights)) / len(log_weights)


def worth_more(config: PerfectConfig, log_weights: Sequence[float]) -> bool:
    """Whether trials, all of them rejected, leave it open that a few more would do."""
    return AFFORDABLE * config.width * mean_weight(log_weights) > 1.0
