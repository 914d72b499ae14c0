"""Metropolis-Hastings as a client writes it: one call after the other, every proposal to its end.

Target p(y)^alpha on the sequences that stop within L tokens or have L; proposals from a law q whose log
probabilities the caller states; uniform cuts, acceptance min(1, exp(log_ratio)) with

    log_ratio = sum_{t>m} log w'_t - sum_{t>m} log w_t + log T - log T',   log w_t = alpha log p_t - log q_t

Karan & Du, arXiv 2510.14901, Algorithm 1, with the cut term that sequences of different lengths need. It is
written apart from `sglang_power.algorithms`, with none of its savings: the control of what those give.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

Schedule = Literal["exact", "paper"]
"""Where a sequence that has ended goes: through N steps at the full horizon, or out, as published."""

LAUNCH = 1
"""Steps of the critical path that a call takes beside those of its tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a call gave: tokens behind a prefix.

    Args:
        ids: the tokens, a stop included.
        log_p, log_q: of each, under the base law and under the law that it was drawn from; nats.
        finished: whether they end with a stop.
        prefilled: prompt tokens that were computed, not cached.
    """

    ids: tuple[int, ...]
    log_p: tuple[float, ...]
    log_q: tuple[float, ...]
    finished: bool
    prefilled: int = 0


Complete = Callable[[Sequence[int], int], Awaitable[Piece]]
"""Draws at most so many tokens behind the prefix."""


class ChainParams(Protocol):
    """What a chain is run with."""

    @property
    def alpha(self) -> float: ...
    @property
    def block_size(self) -> int: ...
    @property
    def steps(self) -> int: ...


@dataclass(slots=True)
class Cost:
    """What a chain's calls came to."""

    decoded: int = 0
    prefilled: int = 0
    depth: int = 0

    def add(self, piece: Piece) -> None:
        """Count one call."""
        self.decoded += len(piece.ids)
        self.prefilled += piece.prefilled
        self.depth += len(piece.ids) + LAUNCH


@dataclass(slots=True)
class Chain:
    """The sequence so far: its ids, the log weight of each, and whether it has ended."""

    ids: tuple[int, ...] = ()
    log_w: tuple[float, ...] = ()
    finished: bool = False
    cost: Cost = field(default_factory=Cost)


async def sample(
    complete: Complete, params: ChainParams, horizon: int, rng: np.random.Generator, schedule: Schedule
) -> Chain:
    """Return the chain's last state.

    Args:
        complete: draws from q.
        params: alpha, B and N.
        horizon: L.
        rng: of cuts and decisions.
        schedule: see `Schedule`.
    """
    chain, end = Chain(), 0
    while end < horizon:
        end = min(end + params.block_size, horizon)
        await _extend(complete, params, chain, end)
        if chain.finished and schedule == "exact":
            end = horizon
        for _ in range(params.steps):
            await _step(complete, params, chain, end, rng)
        if chain.finished and schedule == "paper":
            break
    return chain


async def _extend(complete: Complete, params: ChainParams, chain: Chain, end: int) -> None:
    """Continue a sequence that has not ended."""
    if chain.finished or len(chain.ids) >= end:
        return
    piece = await complete(chain.ids, end - len(chain.ids))
    chain.cost.add(piece)
    chain.ids += piece.ids
    chain.log_w += log_weights(params.alpha, piece)
    chain.finished = piece.finished


async def _step(
    complete: Complete, params: ChainParams, chain: Chain, end: int, rng: np.random.Generator
) -> None:
    """Propose another suffix behind a uniform cut, and accept or reject it."""
    cut = int(rng.integers(len(chain.ids)))
    piece = await complete(chain.ids[:cut], end - cut)
    chain.cost.add(piece)
    log_w = log_weights(params.alpha, piece)
    if math.log1p(-rng.random()) < log_ratio(chain.log_w, cut, log_w):
        chain.ids = chain.ids[:cut] + piece.ids
        chain.log_w = chain.log_w[:cut] + log_w
        chain.finished = piece.finished


def log_ratio(current: Sequence[float], cut: int, proposed: Sequence[float]) -> float:
    """Return the log of the acceptance ratio.

    Args:
        current: log weights of the whole sequence, one per token.
        cut: tokens that are kept.
        proposed: log weights of the suffix that is to follow them.
    """
    log_cut = math.log(len(current) / (cut + len(proposed)))
    return math.fsum(proposed) - math.fsum(current[cut:]) + log_cut


def log_weights(alpha: float, piece: Piece) -> tuple[float, ...]:
    """Return log w of each token of a piece, in nats."""
    return tuple(alpha * p - q for p, q in zip(piece.log_p, piece.log_q, strict=True))
