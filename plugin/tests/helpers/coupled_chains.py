"""Pairs of lagged coupled chains on exact models: the running chain makes their moves, as a server does."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
from exact import (
    AMPLE,
    ENTROPY,
    NARROW,
    Masses,
    MemoModel,
    chain_law,
    endless_model,
    make_config,
    target,
    total_variation,
)
from scipy import stats
from sglang_power.algorithms.coupling import CoupledPair, Move, Place, moved, moves
from sglang_power.algorithms.mh import MHConfig
from sglang_power.diagnosis import bounds
from sglang_power.diagnosis.session import Maker, run_pair
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.chain import Chain
from sglang_power.types import FloatArray, ProposalLaw

REPLICAS, CONFIDENCE = 25, 0.95
"""Of the bounds of these tests."""


def trap_model(share: float, *, vocab: int = 4, horizon: int = 3) -> MemoModel:
    """Answers whose first token is 1 with probability `share`, and then the others are certain.

    After the other first token every answer is unlikely. So a chain of some power that does not begin at 1
    must find it, at a cut of 0, and hardly ever comes back.
    """

    def table(prefix: Prefix) -> FloatArray:
        first, second = np.zeros(vocab), np.full(vocab, 1.0 / vocab)
        first[:2] = 1.0 - share, share
        return first if not prefix else np.eye(vocab)[1] if prefix[0] == 1 else second

    return MemoModel(table, horizon=horizon, eos=-1)


TRAP = trap_model(0.3)
TRAPPED = make_config(TRAP, alpha=4.0, law=ProposalLaw(1.0), block_size=3, steps=1)
"""Finds the likely answer with probability 0.1 a step, and is there with probability 0.92 in the end."""


CASES = {
    "trap": (TRAP, TRAPPED),
    "uniform cuts": (NARROW, make_config(NARROW, block_size=5, steps=1)),
    "entropy cuts": (NARROW, make_config(NARROW, block_size=5, steps=1, cut=ENTROPY)),
    "tau 1, two steps at first": (NARROW, make_config(NARROW, block_size=5, law=ProposalLaw(1.0), steps=2)),
    "no stops": (endless_model(3), make_config(endless_model(3), block_size=4, steps=1)),
}

LAG, STEPS = 12, 8


def maker(model: TabularModel, config: MHConfig) -> Maker:
    """What `diagnosis.serving` asks of a server: the request itself first, then its answer as a draft."""
    engine = TabularEngine(model)

    async def make(move: Move) -> Place:
        asked = config if move.before is None else dataclasses.replace(config, steps=1)
        result = await Chain(engine, asked, Key(move.seed), AMPLE).run(move.before)
        return Place(result.state.tokens.ids, float(result.state.tokens.log_p.sum()))

    return make


def run_pairs(make: Maker, lag: int, steps: int, count: int, seed: int = 0) -> list[CoupledPair]:
    """Independent pairs."""

    async def run() -> list[CoupledPair]:
        return [await run_pair(make, Key(seed, number), lag, steps) for number in range(count)]

    return asyncio.run(run())


def run_on(make: Maker, lag: int, steps: int, count: int, seed: int = 0) -> list[CoupledPair]:
    """Pairs that all have their steps, also behind their meeting."""

    async def run(key: Key) -> CoupledPair:
        pair = CoupledPair(lag, steps)
        while pair.coupled_steps < steps or len(pair.leader) <= lag:
            pair = moved(pair, tuple([await make(move) for move in moves(key, pair)]))
        return pair

    async def all_of_them() -> list[CoupledPair]:
        return [await run(Key(seed, number)) for number in range(count)]

    return asyncio.run(all_of_them())


def law_after(model: TabularModel, config: MHConfig, further: int) -> Masses:
    """The exact law after `further` steps of the last stage: of a request with so many steps more."""
    assert config.stages == 1
    return chain_law(model, dataclasses.replace(config, steps=config.steps + further))


def exact_distances(model: TabularModel, config: MHConfig, steps: int) -> list[float]:
    """The exact total variation distance to the target after 0..steps further steps."""
    limit = target(model, config)
    return [total_variation(law_after(model, config, t), limit) for t in range(steps + 1)]


def bounds_of(pairs: Sequence[CoupledPair]) -> list[float]:
    """The bounds that the command states, by t."""
    unmet = bounds.not_met([pair.meeting for pair in pairs], pairs[0].steps)
    change = [bounds.upper(count, len(pairs), CONFIDENCE) for count in unmet]
    return bounds.distances(change, bounds.rate(unmet, pairs[0].lag))


def repeated(pairs: Sequence[CoupledPair], replicas: int = REPLICAS) -> list[list[float]]:
    """The bounds of each repetition, which is so many pairs."""
    return [bounds_of(pairs[at : at + replicas]) for at in range(0, len(pairs), replicas)]


def coverage(repetitions: Sequence[Sequence[float]], exact: Sequence[float]) -> list[float]:
    """By t, the share of repetitions whose bound covers the distance."""
    return [
        float(np.mean([bound[t] >= distance for bound in repetitions])) for t, distance in enumerate(exact)
    ]


def fewest_covering(repetitions: int, error: float = 1e-4) -> float:
    """The share of covering repetitions that falls short by chance with probability `error` at 95%."""
    return float(stats.binom.ppf(error, repetitions, CONFIDENCE)) / repetitions
