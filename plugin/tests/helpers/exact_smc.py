"""The exact law of a particle run: every draw of the running code, with its probability.

What is drawn in `smc.absorbed` is enumerated: continuations from the tabular model, and of a resampling every
outcome, with the length of the uniforms that give it. What a run gives, log Zhat and an answer, is an atom.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from sglang_power.algorithms import resampling, smc
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.resampling import Resampled, Scheme
from sglang_power.algorithms.smc import RunState, SMCConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, FloatArray, Usage

Atoms = Mapping[tuple[float, Prefix], float]
"""(log Zhat, answer) -> probability."""


@dataclass(frozen=True)
class FixedUniforms:
    """A key whose uniforms are given."""

    values: FloatArray

    def uniforms(self, step: int, purpose: Purpose, count: int) -> FloatArray:
        assert (step > 0, purpose, count) == (True, Purpose.RESAMPLING, len(self.values))
        return self.values


def outcomes(scheme: Scheme, log_weights: FloatArray) -> list[tuple[float, FloatArray, Resampled]]:
    """Every outcome of a resampling: its probability, uniforms that give it, and it."""
    found: dict[Any, tuple[float, FloatArray, Resampled]] = {}
    for probability, uniforms in _cells(scheme, log_weights):
        drawn = resampling.resample(scheme, log_weights, uniforms)
        cell = (drawn.ancestors, tuple(np.round(drawn.log_weights, 9)))
        before = found[cell][0] if cell in found else 0.0
        found[cell] = (before + probability, uniforms, drawn)
    return list(found.values())


def _cells(scheme: Scheme, log_weights: FloatArray) -> Iterator[tuple[float, FloatArray]]:
    """Boxes of uniforms in which nothing changes, by their middle, and how large they are."""
    weights, count = np.exp(log_weights - log_weights.max()), len(log_weights)
    if scheme == "multinomial":
        edges = np.unique([0.0, *(np.cumsum(weights) / weights.sum())])
        for box in itertools.product(list(itertools.pairwise(edges)), repeat=count):
            yield math.prod(b - a for a, b in box), np.array([(a + b) / 2 for a, b in box])
        return
    cuts = {0.0, 1.0}
    order = np.argsort(weights, kind="stable")
    for size in range(1, count + 1):
        pool = weights[np.sort(order[:size])]
        if pool.sum() > 0:
            lines = np.cumsum(pool) / pool.sum()
            cuts |= {float(m * end % 1.0) for m in range(1, count + 1) for end in lines}
    for a, b in itertools.pairwise(sorted(cuts)):
        yield b - a, np.full(count, (a + b) / 2)


def runs(
    model: TabularModel, config: SMCConfig, reference: Prefix | None = None
) -> Iterator[tuple[float, RunState]]:
    """Every run: its probability and its last state."""
    given = None
    if reference is not None:
        given = smc.reference_of(model.score(reference, config.law), model.ends(reference))
    yield from _from(model, config, smc.initial_state(config, given), 1.0)


def _from(
    model: TabularModel, config: SMCConfig, state: RunState, probability: float
) -> Iterator[tuple[float, RunState]]:
    if smc.ended(config, state):
        yield probability, state
        return
    calls = smc.calls(config, Key(0), state)
    each = [_continuations(model, call) for call in calls.values()]
    for drawn in itertools.product(*each):
        likely = probability * math.prod(q for q, _ in drawn)
        answers = dict(zip(calls, (answer for _, answer in drawn), strict=True))
        for share, after in _absorbed(config, state, answers):
            yield from _from(model, config, after, likely * share)


def _continuations(model: TabularModel, call: ContinuationCall) -> list[tuple[float, Continuation]]:
    found = []
    for whole in model.sequences(call.horizon, call.prefix):
        tokens = model.score(whole, call.law).after(len(call.prefix))
        answer = Continuation(tokens, model.ends(whole), cut_short=False, usage=Usage())
        found.append((math.exp(tokens.log_q.sum()), answer))
    return [(q, answer) for q, answer in found if q > 0]


def _absorbed(
    config: SMCConfig, state: RunState, answers: Mapping[int, Continuation]
) -> Iterator[tuple[float, RunState]]:
    """Every state behind a block."""
    middle = FixedUniforms(np.full(config.particles, 0.5))
    after = smc.absorbed(config, cast(Key, middle), state, answers)
    if after.resamplings == state.resamplings:
        yield 1.0, after
        return
    grown = smc.advanced(config, state, answers)
    weights = smc.log_weights(grown, config.exponent(config.block_end(state.block)))
    for share, uniforms, _ in outcomes(config.scheme, weights):
        yield share, smc.absorbed(config, cast(Key, FixedUniforms(uniforms)), state, answers)


def atoms(model: TabularModel, config: SMCConfig) -> Atoms:
    """The law of what a run gives: log Zhat, and an answer that is drawn by its weight."""
    found: defaultdict[tuple[float, Prefix], float] = defaultdict(float)
    for probability, state in runs(model, config):
        log_z = round(smc.log_z(config, state), 12)
        for answer, share in answer_law(config, state).items():
            found[log_z, answer] += probability * share
    return found


def answer_law(config: SMCConfig, state: RunState) -> dict[Prefix, float]:
    """The law of the particle that is drawn from a run."""
    weights = smc.final_log_weights(config, state)
    shares, law = np.exp(weights - resampling.log_sum(weights)), defaultdict[Prefix, float](float)
    for particle, share in zip(state.particles, shares.tolist(), strict=True):
        law[particle.tokens.ids] += share
    return {answer: share for answer, share in law.items() if share > 0}


def estimated(found: Atoms) -> dict[Prefix, float]:
    """E[Zhat; answer], for every answer: p^alpha where the estimate is unbiased."""
    total: defaultdict[Prefix, float] = defaultdict(float)
    for (log_z, answer), probability in found.items():
        total[answer] += probability * math.exp(log_z)
    return dict(total)


def masses(model: TabularModel, config: SMCConfig) -> dict[Prefix, float]:
    """p^alpha of every answer that the proposals reach, not normalised."""
    found = {}
    for answer in model.sequences(config.horizon):
        scored = model.score(answer, config.law)
        if np.isfinite(scored.log_q).all():
            found[answer] = math.exp(config.alpha * scored.log_p.sum())
    return found
