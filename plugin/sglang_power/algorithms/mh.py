"""Metropolis-Hastings power sampling: the chain as pure functions.

Target on Y_L (sequences that stop within L tokens, or have exactly L): pi(y) proportional to p(y)^alpha,
times exp(lambda * R(y)) with a reward (`tilt`), whose values a driver hands in.
Karan & Du, arXiv 2510.14901, Algorithm 1, made exact. Stage k works at horizon L_k = min(k*B, L):

    1. extend an unfinished state with q to L_k or to a stop
    2. N times: draw a cut m, regenerate the suffix with q up to L_k, accept with min(1, exp(log_ratio))

schedule "exact": a state that is finished skips to the last stage (horizon L), whose steps leave pi
invariant: at once where the extension finished it, otherwise when its stage has had its steps.
schedule "paper": it is returned when its stage has had its steps; the limit law is then another one.

A driver repeats `next_action`; the action names a ContinuationCall; `extended` or `decide` takes the
answer and gives the next state; `ScoreState` asks for the state's reward (`steps` holds these records).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sglang_power.algorithms import acceptance, cuts
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.cuts import CutLaw, CutTable
from sglang_power.algorithms.early_rejection import EarlyRejection, is_exact
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.smc import SMCConfig
from sglang_power.algorithms.steps import Action, ChainState, Done, Extend, Info, Propose, ScoreState
from sglang_power.algorithms.tilt import Tilt
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, ProposalLaw, Tokens

Schedule = Literal["exact", "paper"]

CHAIN_VERSION = 2
"""Raised when the same seed gives another chain. 2: what an extension finished skips to the last stage."""


@dataclass(frozen=True, slots=True)
class MHConfig:
    """One chain's frozen configuration.

    Args:
        alpha: exponent of the target, >= 1.
        law: proposal law q.
        horizon: L, the largest number of generated tokens.
        block_size: B;  steps: N, per stage.
        cut: where proposals cut.
        schedule: "exact" or "paper".
        early_rejection: stop lost proposals; only used where it is exact.
        lookback_blocks: cuts reach at most this many blocks back; None means the whole sequence.
        tilt: the reward's share of the target; None means none.
        prefetch: steps whose proposals are generated at once; the chain does not depend on it.
        tries: proposals of a step, decided by `tries`.
        start: the particle run whose answer the last stage starts from; None: the stages before it.
    """

    alpha: float
    law: ProposalLaw
    horizon: int
    block_size: int
    steps: int
    cut: CutLaw
    schedule: Schedule = "exact"
    early_rejection: bool = True
    lookback_blocks: int | None = None
    tilt: Tilt | None = None
    prefetch: int = 1
    tries: int = 1
    start: SMCConfig | None = None

    @property
    def stages(self) -> int:
        """Number of stages K."""
        return math.ceil(self.horizon / self.block_size)

    def stage_horizon(self, stage: int) -> int:
        """L_k for stage k = 1..K."""
        return min(stage * self.block_size, self.horizon)

    @property
    def rejects_early(self) -> bool:
        """Whether lost proposals are stopped: where the ratio of half a proposal bounds the whole one's.

        Of several tries none is lost by itself: its weight is one of those that the others are held against.
        """
        bounded = self.tilt is None or self.tilt.bounded
        return self.early_rejection and is_exact(self.alpha, self.law) and bounded and self.tries == 1

    def alpha_of(self, state: ChainState) -> float:  # noqa: ARG002  (a ramp of stages will read it)
        """The exponent that acts on a state."""
        return self.alpha

    def tilt_of(self, state: ChainState) -> Tilt | None:
        """The tilt that acts on a state: none before the last stage, or once its reward was given up."""
        return self.tilt if state.stage == self.stages and state.untilted_at is None else None

    def bounds_proposals(self, state: ChainState) -> bool:
        """Whether the ratio of half a proposal is an upper bound of the whole one's, from a state on."""
        bounded = self.tilt is None or state.untilted_at is not None or self.tilt.bounded
        return is_exact(self.alpha, self.law) and bounded and self.tries == 1


def initial_state() -> ChainState:
    """The empty state before the first stage."""
    return ChainState(Tokens.EMPTY, finished=False)


def drafted_state(config: MHConfig, draft: Tokens, finished: bool) -> ChainState:
    """A chain that starts from a given answer, at the last stage (horizon L)."""
    return ChainState(draft, finished, stage=config.stages)


def next_action(config: MHConfig, key: Key, state: ChainState) -> Action:
    """What the chain needs next."""
    horizon = config.stage_horizon(state.stage)
    if not state.finished and len(state.tokens) < horizon:
        return Extend(extension_call(config, key, state, horizon))
    if state.stage_step >= config.steps:
        return Done()
    if config.tilt_of(state) is not None and state.reward is None:
        return ScoreState()
    return propose(config, key, state)


def _enter_next_stage_if_over(config: MHConfig, state: ChainState) -> ChainState:
    """The state itself, or where the schedule sends it once its stage has had its steps."""
    whole = state.finished or len(state.tokens) == config.stage_horizon(state.stage)
    if not whole or state.stage_step < config.steps or state.stage == config.stages:
        return state
    if state.finished:
        if config.schedule == "paper":
            return state
        return dataclasses.replace(state, stage=config.stages, stage_step=0)
    stage = state.stage + 1
    frozen = state.frozen
    if config.lookback_blocks is not None:
        frozen = max(frozen, (stage - config.lookback_blocks) * config.block_size)
    return dataclasses.replace(state, stage=stage, stage_step=0, frozen=frozen)


def extension_call(config: MHConfig, key: Key, state: ChainState, horizon: int) -> ContinuationCall:
    """Continue the state with q to `horizon` tokens or to a stop."""
    seed = key.child_seed(len(state.tokens), Purpose.EXTENSION)
    return ContinuationCall(state.tokens.ids, horizon, config.law, seed)


def propose(config: MHConfig, key: Key, state: ChainState) -> Propose:
    """Draw the cut and the uniform of this step, and describe the proposal."""
    return proposals(config, key, state, [state.step])[0]


def proposals(config: MHConfig, key: Key, state: ChainState, steps: Sequence[int]) -> list[Propose]:
    """What this state proposes at several steps of its stage, as long as none before them is accepted."""
    if not steps:
        return []
    table = cuts.table(config.cut, state.tokens.entropy, state.frozen)
    return [_proposal(config, key, state, table, step) for step in steps]


def steps_ahead(config: MHConfig, state: ChainState) -> range:
    """The steps behind this one whose proposals may be generated beside it: never those of another stage."""
    left = config.steps - state.stage_step
    return range(state.step + 1, state.step + min(config.prefetch, left))


def _proposal(config: MHConfig, key: Key, state: ChainState, table: CutTable, step: int) -> Propose:
    m = table.draw(key, step)
    log_u = math.log1p(-key.uniform(step, Purpose.ACCEPT))
    call = ContinuationCall(
        prefix=state.tokens.ids[:m],
        horizon=config.stage_horizon(state.stage),
        law=config.law,
        seed=key.child_seed(step, Purpose.PROPOSAL),
        rules=_early_rejection(config, state, table, m, log_u) if config.rejects_early else (),
    )
    if config.tries == 1:
        return Propose(step, m, log_u, call)
    seeds = [key.child_seed(step * config.tries + i, Purpose.TRY) for i in range(1, config.tries)]
    others = tuple(dataclasses.replace(call, seed=seed) for seed in seeds)
    return Propose(step, m, log_u, call, others, key.uniform(step, Purpose.PICK))


def _early_rejection(
    config: MHConfig, state: ChainState, table: CutTable, m: int, log_u: float
) -> tuple[EarlyRejection, ...]:
    log_w = acceptance.log_weight(config.alpha, state.tokens.after(m))
    if log_w == math.inf:
        return ()
    tilt, headroom = config.tilt_of(state), 0.0
    if tilt is not None and state.reward is not None:
        headroom = tilt.log_bound - tilt.log_factor(state.reward)
    rule = EarlyRejection(
        threshold=log_u + log_w + table.log_prob(m) - headroom,
        alpha=config.alpha,
        cut=config.cut,
        count=m - state.frozen,
        total_gain=float(table.gains[state.frozen : m].sum()),
        previous_entropy=float(state.tokens.entropy[m - 1]) if m else 0.0,
    )
    return (rule,)


def extended(config: MHConfig, state: ChainState, continuation: Continuation) -> ChainState:
    """The state after an extension; one that it finished has no use for the steps of an earlier stage."""
    grown = dataclasses.replace(
        state, tokens=state.tokens + continuation.tokens, finished=continuation.finished
    )
    if grown.finished and config.schedule == "exact":
        return dataclasses.replace(grown, stage=config.stages)
    return _enter_next_stage_if_over(config, grown)


def hastings_terms(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    """Every term of the ratio for replacing what follows `m` tokens by `suffix`."""
    candidate_entropy = np.concatenate([state.tokens.entropy[:m], suffix.entropy])
    return HastingsTerms(
        log_w_proposal=acceptance.log_weight(config.alpha, suffix),
        log_w_current=acceptance.log_weight(config.alpha, state.tokens.after(m)),
        log_cut_proposal=cuts.log_prob(config.cut, m, candidate_entropy, state.frozen),
        log_cut_current=cuts.log_prob(config.cut, m, state.tokens.entropy, state.frozen),
    )


def tilted_terms(
    config: MHConfig, state: ChainState, m: int, suffix: Tokens, reward: float | None
) -> HastingsTerms:
    """`hastings_terms` with those of the reward, where it acts.

    Args:
        reward: R(y'); None where there is no reward, and for a proposal that was cut short, whose reward is
            taken at its upper bound.
    """
    terms = hastings_terms(config, state, m, suffix)
    tilt = config.tilt_of(state)
    if tilt is None:
        return terms
    assert state.reward is not None
    return tilt.added(terms, reward, state.reward)


def undecided(config: MHConfig, state: ChainState, proposal: Propose, continuation: Continuation) -> bool:
    """True when generation was cut short although the tokens so far do not reject the proposal yet.

    Outside of 1 <= kappa <= alpha, or with an unbounded reward, the ratio of half a proposal says nothing.
    """
    if not continuation.cut_short:
        return False
    if not config.bounds_proposals(state):
        return True
    terms = tilted_terms(config, state, proposal.cut, continuation.tokens, None)
    return acceptance.accepts(proposal.log_u, acceptance.log_ratio(terms))


def decide(
    config: MHConfig,
    state: ChainState,
    proposal: Propose,
    continuation: Continuation,
    reward: float | None = None,
) -> tuple[ChainState, Info]:
    """Accept or reject one proposal, whose R(y') is `reward` where a tilt acts and it is whole.

    Where generation was cut short, the ratio over the tokens there are is an upper bound of the full
    one, and it rejects (`undecided` is False).
    """
    m = proposal.cut
    assert reward is not None or continuation.cut_short or config.tilt_of(state) is None
    terms = tilted_terms(config, state, m, continuation.tokens, reward)
    ratio = acceptance.log_ratio(terms)
    accepted = acceptance.accepts(proposal.log_u, ratio)
    assert not (accepted and continuation.cut_short)
    info = Info(
        stage=state.stage,
        step=state.step,
        cut=m,
        current_ids=state.tokens.ids,
        proposal=continuation.tokens,
        proposal_finished=continuation.finished,
        terms=terms,
        log_ratio=ratio,
        log_u=proposal.log_u,
        accepted=accepted,
        early_rejected=continuation.cut_short and config.rejects_early,
    )
    return stepped(config, state, info, reward), info


def stepped(config: MHConfig, state: ChainState, info: Info, reward: float | None) -> ChainState:
    """The state after a step; `reward` is R(y') where it was asked."""
    after = dataclasses.replace(state, stage_step=state.stage_step + 1, step=state.step + 1)
    if info.accepted:
        tokens = state.tokens.first(info.cut) + info.proposal
        after = dataclasses.replace(after, tokens=tokens, finished=info.proposal_finished, reward=reward)
    return _enter_next_stage_if_over(config, after)
