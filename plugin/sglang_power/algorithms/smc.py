"""Particles for p(y)^alpha: Sequential Monte Carlo over whole answers, as pure functions.

Power-SMC (arXiv 2602.10273) with a fixed proposal law q and bridging in the weights alone. N particles grow
together in blocks. The exponent alpha_t rises from 1 to alpha over the first `ramp` tokens, and

    log W_t = log W_{t-1} + alpha_t*l_t - log q_t + (alpha_t - alpha_{t-1})*log p(y_<t)

where a finished particle has no l_t and q_t, but still the last term; at its end every particle gets
(alpha - alpha_T)*log p(y). Over a block the terms add up to alpha_t*log p(y_1..t) less the same at the last
resampling, less log q of what was drawn since: that is how they are computed here. At the end of a block,
when 1/sum(Wbar^2) < ess_threshold*N, the particles are resampled (`resampling`).

Zhat, the product over resamplings and the end of (sum of weights before)/(sum of weights after the last
resampling), is an unbiased estimate of Z = sum p^alpha, and a particle drawn by its final weight makes of a
run an independence proposal: `next_run` accepts run k+1 over the current one with min(1, Zhat_{k+1}/Zhat_k)
(particle-independent Metropolis-Hastings, Andrieu, Doucet & Holenstein 2010, section 4.2). That leaves
p^alpha invariant for any N, ramp, scheme and threshold, provided that all runs have the same.

A conditional run has a reference in slot 0, an answer that is drawn from nothing and always goes on; it maps
a draw of p^alpha to another one (particle Gibbs, same paper, section 4.5).

A driver repeats `calls` and `absorbed` until `ended`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_power.algorithms import acceptance, resampling
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.resampling import Scheme
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Tokens, Usage


@dataclass(frozen=True, slots=True)
class SMCConfig:
    """The frozen configuration of a particle run; the same for all runs of an answer.

    Args:
        alpha: exponent of the target, >= 1.
        law: proposal law q.
        horizon: L, the largest number of generated tokens.
        particles: N.
        block_size: tokens between two times at which particles may be resampled.
        ess_threshold: share of N below which they are.
        scheme: how; "multinomial" where a run is conditional.
        ramp: tokens over which the exponent rises from 1 to alpha.
    """

    alpha: float
    law: ProposalLaw
    horizon: int
    particles: int
    block_size: int
    ess_threshold: float = 0.5
    scheme: Scheme = "systematic"
    ramp: int = 0

    def exponent(self, position: int) -> float:
        """alpha_t behind so many tokens."""
        if position >= self.ramp:
            return self.alpha
        return 1.0 + (self.alpha - 1.0) * position / self.ramp

    def block_end(self, block: int) -> int:
        """Tokens of an unfinished particle at the end of a block 0, 1, ..."""
        return min((block + 1) * self.block_size, self.horizon)


@dataclass(frozen=True, slots=True)
class Particle:
    """One answer in the making.

    Args:
        tokens, finished: as far as it is drawn.
        log_p: log p of all its tokens, nats.
        log_q: log q of those drawn since the last resampling.
        log_start: log weight after that, less alpha_s*log p of the tokens it had then.
        dead: its weight is 0 for good: something in it was no number, or q can draw a token of it never.
    """

    tokens: Tokens = Tokens.EMPTY
    finished: bool = False
    log_p: float = 0.0
    log_q: float = 0.0
    log_start: float = 0.0
    dead: bool = False

    def log_weight(self, exponent: float) -> float:
        """log W under p^exponent, nats."""
        return -math.inf if self.dead else self.log_start + exponent * self.log_p - self.log_q

    def grown(self, tokens: Tokens, finished: bool) -> Particle:
        """The particle with more tokens."""
        log_p = self.log_p + float(tokens.log_p.sum())
        log_q = self.log_q + float(tokens.log_q.sum())
        whole = self.tokens + tokens
        dead = self.dead or not (math.isfinite(log_p) and math.isfinite(log_q))
        return Particle(whole, finished, log_p, log_q, self.log_start, dead)

    def copied(self, log_weight: float, exponent: float) -> Particle:
        """A copy that starts with a weight of its own, behind resampling at p^exponent."""
        start = log_weight if self.dead else log_weight - exponent * self.log_p
        return dataclasses.replace(self, log_q=0.0, log_start=start)


@dataclass(frozen=True, slots=True)
class RunState:
    """One particle run.

    Args:
        particles: N.
        block: the one that comes next.
        log_z: log of the ratios of weights so far.
        log_after: log of the summed weights after the last resampling.
        ess: effective sample size at the end of each block, before resampling.
        resamplings: how many.
        died: particles that died so far, copies of dead ones not counted.
        reference: of a conditional run, the answer that goes through slot 0.
    """

    particles: tuple[Particle, ...]
    log_after: float
    block: int = 0
    log_z: float = 0.0
    ess: tuple[float, ...] = ()
    resamplings: int = 0
    died: int = 0
    reference: Continuation | None = None


def initial_state(config: SMCConfig, reference: Continuation | None = None) -> RunState:
    """N empty particles of weight 1.

    Args:
        config: of the run.
        reference: a whole answer, where the run is conditional; then the scheme is "multinomial".
    """
    assert reference is None or config.scheme == "multinomial"
    return RunState((Particle(),) * config.particles, math.log(config.particles), reference=reference)


def reference_of(tokens: Tokens, finished: bool) -> Continuation:
    """A whole answer as the reference of a conditional run."""
    return Continuation(tokens, finished, cut_short=False, usage=Usage())


def is_whole(config: SMCConfig, particle: Particle) -> bool:
    """Whether nothing is drawn any more: it has ended, or its weight is 0 for good."""
    return particle.finished or particle.dead or len(particle.tokens) >= config.horizon


def ended(config: SMCConfig, state: RunState) -> bool:
    """Whether a run has come to its end."""
    return all(is_whole(config, particle) for particle in state.particles)


def calls(config: SMCConfig, key: Key, state: RunState) -> dict[int, ContinuationCall]:
    """What the next block needs: slot -> the call that its particle goes on by.

    Args:
        config: of the run.
        key: the run's own.
        state: not ended.
    """
    end, found = config.block_end(state.block), {}
    for slot, particle in enumerate(state.particles):
        if is_whole(config, particle) or (slot == 0 and state.reference is not None):
            continue
        seed = key.split(slot, config.particles).child_seed(state.block, Purpose.EXTENSION)
        found[slot] = ContinuationCall(particle.tokens.ids, end, config.law, seed)
    return found


def absorbed(config: SMCConfig, key: Key, state: RunState, answers: Mapping[int, Continuation]) -> RunState:
    """The state behind a block: grown, weighed and, where the weights have become too unequal, resampled.

    Args:
        config, key, state: as `calls`.
        answers: to its calls.
    """
    grown = advanced(config, state, answers)
    position = config.block_end(state.block)
    weights = log_weights(grown, config.exponent(position))
    ess = resampling.effective_sample_size(weights)
    behind = dataclasses.replace(grown, block=state.block + 1, ess=(*state.ess, ess))
    if ess >= config.ess_threshold * config.particles or ended(config, behind) or ess == 0.0:
        return behind
    return _resampled(config, key, behind, weights, config.exponent(position))


def advanced(config: SMCConfig, state: RunState, answers: Mapping[int, Continuation]) -> RunState:
    """The state with the tokens of a block, or of as much of one as there is."""
    grown = list(state.particles)
    for slot, answer in answers.items():
        grown[slot] = grown[slot].grown(answer.tokens, answer.finished)
    if state.reference is not None:
        grown[0] = _followed(config, state, state.reference)
    died = sum(new.dead and not old.dead for old, new in zip(state.particles, grown, strict=True))
    return dataclasses.replace(state, particles=tuple(grown), died=state.died + died)


def _followed(config: SMCConfig, state: RunState, reference: Continuation) -> Particle:
    """The particle in slot 0 with the reference's tokens of a block."""
    particle, end = state.particles[0], config.block_end(state.block)
    tokens = reference.tokens.first(end).after(len(particle.tokens))
    over = len(reference.tokens) <= end
    return particle.grown(tokens, reference.finished and over)


def _resampled(
    config: SMCConfig, key: Key, state: RunState, weights: FloatArray, exponent: float
) -> RunState:
    uniforms = key.uniforms(state.block, Purpose.RESAMPLING, config.particles)
    if state.reference is None:
        drawn = resampling.resample(config.scheme, weights, uniforms)
    else:
        drawn = resampling.conditional(weights, uniforms)
    copies = [
        state.particles[ancestor].copied(float(log_weight), exponent)
        for ancestor, log_weight in zip(drawn.ancestors, drawn.log_weights, strict=True)
    ]
    return dataclasses.replace(
        state,
        particles=tuple(copies),
        log_z=state.log_z + resampling.log_sum(weights) - state.log_after,
        log_after=resampling.log_sum(drawn.log_weights),
        resamplings=state.resamplings + 1,
    )


def log_weights(state: RunState, exponent: float) -> FloatArray:
    """[N] nats, under p^exponent; -inf for dead particles."""
    return np.array([particle.log_weight(exponent) for particle in state.particles])


def final_log_weights(config: SMCConfig, state: RunState) -> FloatArray:
    """[N] nats, under the target."""
    return log_weights(state, config.alpha)


def log_z(config: SMCConfig, state: RunState) -> float:
    """log Zhat; -inf where all particles are dead."""
    return state.log_z + resampling.log_sum(final_log_weights(config, state)) - state.log_after


def drawn_slot(config: SMCConfig, key: Key, state: RunState) -> int:
    """The slot of a particle that is drawn by its weight; at least one is alive."""
    return resampling.pick(final_log_weights(config, state), key.uniform(0, Purpose.CHOICE))


def likeliest_slot(state: RunState) -> int:
    """The slot of the living particle of largest p, the first of equal ones."""
    alive = [(-particle.log_p, slot) for slot, particle in enumerate(state.particles) if not particle.dead]
    return min(alive)[1]


# --- runs ---------------------------------------------------------------------------------------------


def run_keys(key: Key, runs: int) -> list[Key]:
    """The key of each run."""
    return [key.split(run, runs) for run in range(runs)]


def next_run(key: Key, run: int, proposed_log_z: float, current_log_z: float) -> bool:
    """Whether run 1, 2, ... is accepted over the current one.

    Args:
        key: of the answer.
        run: the proposed one.
        proposed_log_z, current_log_z: log Zhat of each; -inf where all particles of it are dead.
    """
    log_u = math.log1p(-key.uniform(run, Purpose.ACCEPT))
    return proposed_log_z > -math.inf and acceptance.accepts(log_u, proposed_log_z - current_log_z)


def accepted_runs(key: Key, log_zs: Sequence[float]) -> list[int]:
    """The runs that were the current one, in order: run 0, and each that was accepted."""
    current = [0]
    for run in range(1, len(log_zs)):
        if next_run(key, run, log_zs[run], log_zs[current[-1]]):
            current.append(run)
    return current
