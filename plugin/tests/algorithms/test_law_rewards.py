"""The law with a reward: p^alpha * exp(lambda * R), step by step, in the limit, and of whole runs.

Exact, over every sequence of a tabular model: |pi K - pi|_1 < 1e-12 for each variant, > 1e-3 for each
negative control (error rate 0). Two G-tests of running chains share a family-wise error rate of 1e-3; their
controls must be rejected with p < 1e-6 at the same sample size. Early rejection under a reward is compared
bit for bit. Seeds are fixed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import early_rejection_cases
import exact
import exact_tilt
import numpy as np
import pytest
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import Prefix
from sglang_power.errors import RewardError
from sglang_power.rewards import NamedReward, Scorer
from sglang_power.rewards.base import FunctionReward
from sglang_power.rng import Key
from sglang_power.samplers.chain import ChainResult, StateReward
from sglang_power.types import ProposalLaw, Tokens

INVARIANT = 1e-12
BROKEN = 1e-3
MANY = 1 << 14
LEVEL = 1e-3 / 2
REJECTED = 1e-6
CHAINS = 1500

LAWS = {
    "tau=1/alpha": ProposalLaw(exact.ALPHA),
    "tau=1": ProposalLaw(1.0),
    "kappa above alpha": ProposalLaw(4.0),
    "joint": ProposalLaw(1.2, top_k=2, top_p=0.9, min_p=0.05),
}
WEIGHTS = [1.2, -1.2, 4.0, 0.0]
MODEL = exact.NARROW

every_cut = pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))


def config_of(cut: CutLaw, law: str = "tau=1/alpha", weight: float = exact_tilt.WEIGHT) -> MHConfig:
    return exact_tilt.tilted(exact.make_config(MODEL, law=LAWS[law], cut=cut), weight)


@every_cut
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_step_leaves_the_tilted_target_invariant(law: str, weight: float, cut: CutLaw) -> None:
    config = config_of(cut, law, weight)
    assert exact_tilt.kernel(MODEL, config).drift(exact_tilt.target(MODEL, config)) < INVARIANT


@every_cut
def test_a_step_is_reversible(cut: CutLaw) -> None:
    config = config_of(cut)
    kernel = exact_tilt.kernel(MODEL, config)
    flow = kernel.vector(exact_tilt.target(MODEL, config))[:, None] * kernel.matrix
    assert np.abs(flow - flow.T).max() < INVARIANT


@every_cut
def test_frozen_tokens_leave_the_conditional_law_invariant(cut: CutLaw) -> None:
    config = config_of(cut)
    kernel = exact_tilt.kernel(MODEL, config, frozen=2)
    assert kernel.drift(exact_tilt.target(MODEL, config, frozen=2)) < INVARIANT


def test_the_reward_of_these_tests_moves_the_target_and_keeps_its_bound() -> None:
    config = config_of(exact.UNIFORM)
    plain, tilted = exact.target(MODEL, config), exact_tilt.target(MODEL, config)
    assert exact.total_variation(plain, tilted) > 0.1
    assert max(exact_tilt.reward(y) for y in MODEL.sequences()) <= exact_tilt.UPPER_BOUND


@every_cut
def test_whole_runs_tend_to_the_tilted_target(cut: CutLaw) -> None:
    config = dataclasses.replace(config_of(cut), steps=MANY)
    law = exact_tilt.chain_law(MODEL, config)
    assert exact.total_variation(law, exact_tilt.target(MODEL, config)) < 1e-8


def test_earlier_stages_do_not_know_the_reward() -> None:
    config = config_of(exact.UNIFORM)
    for stage in range(1, config.stages):
        state = ChainState(MODEL.score((1, 1), config.law), finished=False, stage=stage)
        assert config.tilt_of(state) is None


# --- negative controls --------------------------------------------------------------------------------


def missing(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    terms = exact_tilt.running_terms(config, state, m, suffix)
    return dataclasses.replace(terms, log_tilt_proposal=0.0, log_tilt_current=0.0)


def reversed_sign(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    terms = exact_tilt.running_terms(config, state, m, suffix)
    return dataclasses.replace(
        terms, log_tilt_proposal=-terms.log_tilt_proposal, log_tilt_current=-terms.log_tilt_current
    )


def twice(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    """The reward is in the weights already, and is added once more."""
    terms = exact_tilt.running_terms(config, state, m, suffix)
    return dataclasses.replace(
        terms,
        log_w_proposal=terms.log_w_proposal + terms.log_tilt_proposal,
        log_w_current=terms.log_w_current + terms.log_tilt_current,
    )


def of_the_suffix(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    """The reward of what was regenerated instead of the whole answer's."""
    assert config.tilt is not None
    terms = exact_tilt.running_terms(config, state, m, suffix)
    return config.tilt.added(terms, exact_tilt.reward(suffix.ids), exact_tilt.reward(state.tokens.ids[m:]))


@every_cut
@pytest.mark.parametrize("terms", [missing, reversed_sign, twice, of_the_suffix])
def test_control_a_wrong_reward_term(terms: exact_tilt.TermsOf, cut: CutLaw) -> None:
    config = config_of(cut)
    kernel = exact.step_kernel(MODEL, config, ratio=exact_tilt.ratio_of(terms))
    assert kernel.drift(exact_tilt.target(MODEL, config)) > BROKEN


@every_cut
def test_control_a_neighbouring_weight_is_not_invariant(cut: CutLaw) -> None:
    kernel = exact_tilt.kernel(MODEL, config_of(cut))
    assert kernel.drift(exact_tilt.target(MODEL, config_of(cut, weight=1.05 * exact_tilt.WEIGHT))) > BROKEN


# --- the running chain --------------------------------------------------------------------------------

CASES: dict[str, MHConfig] = {
    "stages": config_of(exact.UNIFORM),
    "entropy cut, tau=1, early rejection": dataclasses.replace(
        config_of(exact.ENTROPY, "tau=1"), early_rejection=True
    ),
}


@functools.cache
def sample(name: str) -> list[Prefix]:
    keys = exact.seeds(61_000_000 + 1_000_000 * list(CASES).index(name), CHAINS)
    return exact.answers(exact.run_chains(MODEL, CASES[name], keys, reward=exact_tilt.scored))


@pytest.mark.parametrize("name", CASES)
def test_answers_follow_the_exact_law_of_their_steps(name: str) -> None:
    assert exact.g_test(sample(name), exact_tilt.chain_law(MODEL, CASES[name])) > LEVEL


@pytest.mark.parametrize("name", CASES)
def test_control_answers_do_not_follow_the_law_without_the_reward(name: str) -> None:
    assert exact.g_test(sample(name), exact.chain_law(MODEL, CASES[name])) < REJECTED


# --- early rejection under a reward with a bound ------------------------------------------------------

LONG = early_rejection_cases.LONG
SEEDS = range(15)


def long_config(law: ProposalLaw, cut: CutLaw, *, early: bool, bound: float = 2.0) -> MHConfig:
    plain = early_rejection_cases.config_of(law, cut, early=early)
    return exact_tilt.tilted(plain, upper_bound=bound)


def run_long(
    config: MHConfig, seed: int, *, reward: StateReward = exact_tilt.scored, shadow: bool = False
) -> ChainResult:
    return exact.run_chains(LONG, config, [Key(seed)], reward=reward, shadow=shadow)[0]


@every_cut
@pytest.mark.parametrize("law", [LAWS["tau=1/alpha"], LAWS["tau=1"], LAWS["joint"]])
def test_early_rejection_decides_the_same_and_saves_tokens(law: ProposalLaw, cut: CutLaw) -> None:
    last, saved = long_config(law, cut, early=True).stages, 0
    for seed in SEEDS:
        early = run_long(long_config(law, cut, early=True), seed)
        whole = run_long(long_config(law, cut, early=False), seed)
        early_rejection_cases.assert_same_chain(early, whole)
        assert early.usage.children == whole.usage.children, "nothing was stopped before it was lost"
        saved += sum(info.early_rejected for info in early.infos if info.stage == last)
    assert saved > 0


def test_what_was_rejected_early_is_never_scored() -> None:
    config = long_config(LAWS["tau=1"], exact.UNIFORM, early=True)
    for seed in SEEDS:
        asked: list[Prefix] = []

        async def counted(ids: Sequence[int], finished: bool, asked: list[Prefix] = asked) -> float | None:
            asked.append(tuple(ids))
            return await exact_tilt.scored(ids, finished)

        result = run_long(config, seed, reward=counted)
        last = [info for info in result.infos if info.stage == config.stages]
        assert len(asked) == 1 + sum(not info.early_rejected for info in last)
        assert result.state.reward == exact_tilt.reward(result.state.tokens.ids)


@pytest.mark.parametrize(("weight", "bound"), [(-1.0, 2.0), (1.0, None), (-1.0, None)])
def test_without_a_bound_from_above_it_is_off(weight: float, bound: float | None) -> None:
    plain = early_rejection_cases.config_of(LAWS["tau=1"], exact.UNIFORM, early=True)
    config = exact_tilt.tilted(plain, weight, bound)
    assert plain.rejects_early
    assert not config.rejects_early
    assert not any(info.early_rejected for seed in SEEDS for info in run_long(config, seed).infos)


def shadowed(bound: float) -> list[ChainResult]:
    config = long_config(LAWS["tau=1/alpha"], exact.UNIFORM, early=True, bound=bound)
    return [run_long(config, seed, shadow=True) for seed in range(40)]


def test_shadow_mode_finds_no_wrong_rejection() -> None:
    results = shadowed(exact_tilt.UPPER_BOUND)
    assert sum(exact.checked(result).resumed for result in results) > 0
    assert sum(exact.checked(result).violations for result in results) == 0


def test_control_a_bound_that_is_too_low_rejects_wrongly() -> None:
    assert sum(exact.checked(result).violations for result in shadowed(-5.0)) > 3


def test_a_score_above_the_declared_bound_ends_the_run() -> None:
    config = long_config(LAWS["tau=1"], exact.UNIFORM, early=True, bound=-5.0)
    called = FunctionReward(
        "lying", lambda _, answer: exact_tilt.reward(tuple(map(int, answer.split()))), -5.0
    )
    scorer = Scorer(NamedReward("lying", called))

    async def scored(ids: Sequence[int], _: bool) -> float | None:
        return await scorer.score("", " ".join(map(str, ids)))

    with pytest.raises(RewardError, match=r"above its declared upper_bound -5\.0"):
        run_long(config, 1, reward=scored)
