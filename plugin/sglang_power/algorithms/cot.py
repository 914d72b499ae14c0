"""CoT-decoding: chains of thought hide behind the top-k first tokens (Wang & Zhou, arXiv 2402.10200).

Fork on the k most likely first tokens, continue each greedily, and trust the path whose *answer tokens* are
decoded with the largest margin:

    Delta(path) = mean over its answer tokens of p(y_t) - max p(other)        (the paper's Delta_{k,answer})

The margin is negative where the token taken is not the most likely one, as a first token of rank 2 or more
is. `max` returns the path of largest Delta; `aggregate` sums Delta over the paths that give the same answer
and returns the most confident path of the class with the largest sum. Pure: knows neither text nor server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.types import ProposalLaw, Tokens

GREEDY = ProposalLaw(1.0, top_k=1)
"""The law of the paper's continuations."""


@dataclass(frozen=True, slots=True)
class CotConfig:
    """One run.

    Args:
        k: paths.
        horizon: L, tokens of an answer.
        law: of continuations.
        min_first_p: first tokens below this probability are not tried; the most likely one always is.
    """

    k: int
    horizon: int
    law: ProposalLaw = GREEDY
    min_first_p: float = 0.0


def kept_first_tokens(config: CotConfig, ranked: Sequence[RankedToken]) -> list[RankedToken]:
    """Of the most likely first tokens, in order, those that are tried; a vocabulary may hold fewer than k."""
    floor = math.log(config.min_first_p) if config.min_first_p > 0 else -math.inf
    tried = [first for first in ranked[: config.k] if first.log_p > -math.inf and first.log_p >= floor]
    return tried or list(ranked[:1])


def path_call(
    config: CotConfig, prefix: tuple[int, ...], first: RankedToken, seed: int, deadline: float | None = None
) -> ContinuationCall:
    """The engine call of one path: the fork's token is emitted, the rest follows the law of continuations."""
    return ContinuationCall(
        prefix, config.horizon, config.law, seed, forced=(first.token,), deadline=deadline
    )


def confidence(tokens: Tokens, answer: Sequence[int]) -> float | None:
    """Delta of a path: the mean margin of its answer tokens; None where it has no answer.

    Args:
        tokens: the path.
        answer: indices of its answer tokens.
    """
    if len(answer) == 0:
        return None
    return float(tokens.margin[list(answer)].mean())


def most_confident(deltas: Sequence[float | None]) -> int | None:
    """`max`: the first path of largest Delta; None where no path has an answer."""
    known = [(delta, -i) for i, delta in enumerate(deltas) if delta is not None]
    return -max(known)[1] if known else None
