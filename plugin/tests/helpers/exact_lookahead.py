"""The blocks of a look-ahead on the exact language model: their weights, their futures, exact laws.

`corrected`, the running code's weights, is what everything here goes through. Laws of the running code with
two candidates and two rollouts are enumerated; those with many are averaged over drawn weights.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from exact import Masses, added
from sglang_power.algorithms import lookahead
from sglang_power.algorithms.lookahead import BlockWeights, LookaheadConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.types import Continuation, FloatArray, Usage

Weigh = Callable[[FloatArray, Mapping[int, FloatArray]], BlockWeights]


def blind(own: FloatArray, futures: Mapping[int, FloatArray]) -> BlockWeights:
    """A negative control: blocks at a low temperature of their own, zeta left out."""
    del futures
    return lookahead.corrected(own, {})


def uncorrected(own: FloatArray, futures: Mapping[int, FloatArray]) -> BlockWeights:
    """The plain ratio of estimates."""
    each = own.copy()
    for k, future in futures.items():
        each[k] += math.log(float(np.exp(future).mean()))
    weights = np.exp(each - each.max())
    return BlockWeights(weights / weights.sum())


@dataclass(frozen=True)
class Futures:
    """What may follow a block: [n] q of each future and alpha*log p - log q of it."""

    q: FloatArray
    log_w: FloatArray

    @property
    def log_zeta(self) -> float:
        """The exact value."""
        return float(np.logaddexp.reduce(np.log(self.q) + self.log_w))

    def draw(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Log weights of rollouts."""
        return self.log_w[rng.choice(len(self.q), count, p=self.q / self.q.sum())]


@dataclass(frozen=True)
class Blocks:
    """Every block behind a prefix.

    Args:
        blocks: each with the prefix.
        log_p, log_q: [n] of its own tokens.
        futures: of each that has not ended.
    """

    blocks: tuple[Prefix, ...]
    log_p: FloatArray
    log_q: FloatArray
    futures: Mapping[int, Futures]

    @classmethod
    def behind(cls, model: TabularModel, config: LookaheadConfig, prefix: Prefix = ()) -> Blocks:
        blocks = tuple(model.sequences(config.block_end(len(prefix)), prefix))
        scored = [model.score(block, config.law).after(len(prefix)) for block in blocks]
        futures = {}
        for i, block in enumerate(blocks):
            if model.ends(block) or len(block) == config.horizon:
                continue
            ends = model.sequences(config.rollout_end(len(block)), block)
            rest = [model.score(end, config.law).after(len(block)) for end in ends]
            log_q = np.array([float(tokens.log_q.sum()) for tokens in rest])
            log_p = np.array([float(tokens.log_p.sum()) for tokens in rest])
            futures[i] = Futures(np.exp(log_q), config.alpha * log_p - log_q)
        sums = [[float(getattr(tokens, name).sum()) for tokens in scored] for name in ("log_p", "log_q")]
        return cls(blocks, np.array(sums[0]), np.array(sums[1]), futures)

    def law(self, weights: BlockWeights) -> dict[Prefix, float]:
        """Of blocks that were each a candidate once."""
        return dict(zip(self.blocks, weights.shares.tolist(), strict=True))

    def mean_law_of_each_once(
        self, alpha: float, rollouts: int, repeats: int, weigh: Weigh = lookahead.corrected
    ) -> dict[Prefix, float]:
        """The law where every block is a candidate once, over draws of its rollouts."""
        rng, own = np.random.default_rng([rollouts, repeats]), alpha * self.log_p
        total = np.zeros(len(own))
        for _ in range(repeats):
            futures = {k: each.draw(rng, rollouts) for k, each in self.futures.items()}
            total += weigh(own, futures).shares
        return self.law(BlockWeights(total / repeats))

    def mean_law_of_drawn(
        self, alpha: float, candidates: int, rollouts: int, repeats: int, *, published: bool = False
    ) -> dict[Prefix, float]:
        """The law where candidates are drawn from q; the published weights, without q, are a control."""
        rng, q = np.random.default_rng([candidates, repeats]), np.exp(self.log_q)
        own = alpha * self.log_p - (0.0 if published else self.log_q)
        total = np.zeros(len(own))
        for _ in range(repeats):
            drawn = rng.choice(len(q), candidates, p=q / q.sum())
            futures = {
                k: self.futures[i].draw(rng, rollouts) for k, i in enumerate(drawn) if i in self.futures
            }
            np.add.at(total, drawn, lookahead.corrected(own[drawn], futures).shares)
        return self.law(BlockWeights(total / repeats))


def marginal(law: Masses, length: int) -> dict[Prefix, float]:
    """The law of the first tokens."""
    return added({y[:length]: mass} for y, mass in law.items())


def answers_law(
    model: TabularModel, config: LookaheadConfig, law_behind: Callable[[Prefix], Masses]
) -> dict[Prefix, float]:
    """The law of whole answers, from that of a block behind every prefix."""
    found: dict[Prefix, float] = defaultdict(float)
    live: dict[Prefix, float] = {(): 1.0}
    while live:
        grown = added(
            {block: mass * share for block, share in law_behind(prefix).items()}
            for prefix, mass in live.items()
        )
        live = {}
        for y, mass in grown.items():
            whole = model.ends(y) or len(y) == config.horizon
            (found if whole else live)[y] = mass
    return dict(found)


def enumerated_block(model: TabularModel, config: LookaheadConfig, prefix: Prefix) -> dict[Prefix, float]:
    """The exact law of the next block: every set of candidates, and every set of rollouts of each."""
    found = defaultdict[Prefix, float](float)
    options = _continuations(model, config, prefix, config.block_end(len(prefix)))
    for drawn in itertools.product(options, repeat=config.candidates):
        candidates = [candidate for _, candidate in drawn]
        for likely, rollouts in _rollouts(model, config, prefix, candidates):
            probability = math.prod(q for q, _ in drawn) * likely
            shares = lookahead.weighed(config, candidates, rollouts).shares
            for candidate, share in zip(candidates, shares.tolist(), strict=True):
                found[prefix + candidate.tokens.ids] += probability * share
    return dict(found)


def _rollouts(
    model: TabularModel, config: LookaheadConfig, prefix: Prefix, candidates: list[Continuation]
) -> Iterator[tuple[float, dict[int, tuple[Continuation, ...]]]]:
    open_ones = {
        k: prefix + candidate.tokens.ids
        for k, candidate in enumerate(candidates)
        if not candidate.finished and len(prefix + candidate.tokens.ids) < config.horizon
    }
    each = [
        itertools.product(
            _continuations(model, config, ids, config.rollout_end(len(ids))), repeat=config.rollouts
        )
        for ids in open_ones.values()
    ]
    for drawn in itertools.product(*each):
        likely = math.prod(q for rollouts in drawn for q, _ in rollouts)
        yield (
            likely,
            {
                k: tuple(rollout for _, rollout in rollouts)
                for k, rollouts in zip(open_ones, drawn, strict=True)
            },
        )


def _continuations(
    model: TabularModel, config: LookaheadConfig, prefix: Prefix, end: int
) -> list[tuple[float, Continuation]]:
    found = []
    for y in model.sequences(end, prefix):
        tokens = model.score(y, config.law).after(len(prefix))
        answer = Continuation(tokens, model.ends(y), cut_short=False, usage=Usage())
        found.append((math.exp(float(tokens.log_q.sum())), answer))
    return [(q, answer) for q, answer in found if q > 0]
