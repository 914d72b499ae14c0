"""Several tries of one step: the exact kernel, its known mistakes, and the law of the running chain.

Exact kernels are summed over all cuts and all tuples of suffixes from the functions that serve requests:
|pi K - pi|_1 < 1e-12 for the rule, > 1e-3 for each negative control. G-tests of whole runs at 1e-3 / 4, a
control at p < 1e-6 and the same sample size; seeds are fixed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import exact
import exact_tilt
import numpy as np
import pytest
from early_rejection_cases import assert_same_tokens
from sglang_power.algorithms import cuts, mh, tries
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.rng import Key
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Usage

SMALL = exact.random_model(19, vocab=3, horizon=3)
"""15 answers: 15^3 triples of suffixes."""

WIDER = exact.random_model(6, vocab=4, horizon=3)
"""40 answers, for pairs under a truncated proposal."""

Acceptance = Callable[[FloatArray, float, int], float]
Pick = Callable[[FloatArray], FloatArray]
Terms = Callable[[HastingsTerms], HastingsTerms]


def unchanged(terms: HastingsTerms) -> HastingsTerms:
    return terms


def kernel(
    model: TabularModel,
    config: MHConfig,
    *,
    accept: Acceptance = tries.log_acceptance,
    pick: Pick = tries.pick_probabilities,
    seen: Terms = unchanged,
    rewards: dict[Prefix, float] | None = None,
) -> exact.Kernel:
    """The exact kernel of one step of the last stage, by summing over cuts and tuples of suffixes."""
    states = tuple(model.sequences())
    index = {y: i for i, y in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    for y in states:
        tokens = model.score(y, config.law)
        state = ChainState(tokens, model.ends(y), config.stages, reward=(rewards or {}).get(y))
        for m in range(len(y)):
            row = _from(model, config, state, m, (accept, pick, seen), rewards)
            cut = math.exp(cuts.log_prob(config.cut, m, tokens.entropy))
            for other, mass in row.items():
                matrix[index[y], index[other]] += cut * mass
    assert np.abs(matrix.sum(axis=1) - 1.0).max() < 1e-12, "not a kernel"
    return exact.Kernel(states, matrix)


def _from(
    model: TabularModel,
    config: MHConfig,
    state: ChainState,
    m: int,
    rule: tuple[Acceptance, Pick, Terms],
    rewards: dict[Prefix, float] | None,
) -> dict[Prefix, float]:
    """Where a step leads from a state and a cut."""
    accept, pick, seen = rule
    prefix = state.tokens.ids[:m]
    every = {y: model.score(y, config.law).after(m) for y in model.sequences(None, prefix)}
    ids = [y for y, suffix in every.items() if np.isfinite(suffix.log_q).all()]
    suffixes = [every[y] for y in ids]
    density = [math.exp(suffix.log_q.sum()) for suffix in suffixes]
    terms = [
        seen(mh.tilted_terms(config, state, m, suffix, None if rewards is None else rewards[y]))
        for y, suffix in zip(ids, suffixes, strict=True)
    ]
    mass = dict.fromkeys([*ids, state.tokens.ids], 0.0)
    for chosen in itertools.product(range(len(ids)), repeat=config.tries):
        drawn = math.prod(density[i] for i in chosen)
        weights, current = tries.log_weights([terms[i] for i in chosen])
        for j, share in enumerate(pick(weights)):
            moved = drawn * share * exact.acceptance_probability(accept(weights, current, j))
            mass[ids[chosen[j]]] += moved
            mass[state.tokens.ids] += drawn * share - moved
    return mass


def config_of(
    model: TabularModel, count: int, law: ProposalLaw | None = None, cut: CutLaw = exact.UNIFORM
) -> MHConfig:
    config = exact.make_config(model, law=law, cut=cut, block_size=model.horizon, steps=3)
    return dataclasses.replace(config, tries=count)


LAWS = {
    "tau=1/alpha": ProposalLaw(exact.ALPHA),
    "tau=1": ProposalLaw(1.0),
    "kappa above alpha": ProposalLaw(4.0),
}


@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("count", [1, 2])
def test_every_number_of_tries_leaves_the_target_invariant(count: int, name: str, cut: CutLaw) -> None:
    config = config_of(SMALL, count, LAWS[name], cut)
    assert kernel(SMALL, config).drift(exact.target(SMALL, config)) < 1e-12


def test_three_tries_leave_it_invariant_too() -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"], exact.ENTROPY)
    assert kernel(SMALL, config).drift(exact.target(SMALL, config)) < 1e-12


@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
def test_a_truncated_proposal_keeps_the_target_on_its_support(cut: CutLaw) -> None:
    config = config_of(WIDER, 2, ProposalLaw(1.2, top_k=3, top_p=0.9), cut)
    assert kernel(WIDER, config).drift(exact.target(WIDER, config)) < 1e-12


def test_a_reward_tilts_the_target_of_several_tries() -> None:
    config = exact_tilt.tilted(config_of(SMALL, 2, LAWS["tau=1"]))
    rewards = {y: exact_tilt.reward(y) for y in SMALL.sequences()}
    assert kernel(SMALL, config, rewards=rewards).drift(exact_tilt.target(SMALL, config)) < 1e-12


def test_one_try_is_the_kernel_of_metropolis_hastings() -> None:
    config = config_of(SMALL, 1, LAWS["tau=1"])
    assert np.abs(kernel(SMALL, config).matrix - exact.step_kernel(SMALL, config).matrix).max() < 1e-12


def test_more_tries_move_further_per_step() -> None:
    config = config_of(SMALL, 1, LAWS["tau=1"])
    stays = [
        kernel(SMALL, dataclasses.replace(config, tries=count)).matrix.diagonal().sum() for count in (1, 2, 3)
    ]
    assert stays[0] > stays[1] > stays[2]


# --- negative controls --------------------------------------------------------------------------------


def always(weights: FloatArray, current: float, picked: int) -> float:  # noqa: ARG001
    """The current state's own weight is forgotten."""
    return 0.0


def as_if_alone(weights: FloatArray, current: float, picked: int) -> float:
    """The picked one is accepted by its own ratio."""
    return float(weights[picked] - current)


def best(weights: FloatArray) -> FloatArray:
    """The try of largest weight, always."""
    return np.asarray(np.arange(len(weights)) == np.argmax(weights), dtype=np.float64)


def even(weights: FloatArray) -> FloatArray:
    """Any try, whatever it weighs."""
    return np.full(len(weights), 1.0 / len(weights))


def without_cuts(terms: HastingsTerms) -> HastingsTerms:
    return dataclasses.replace(terms, log_cut_proposal=0.0, log_cut_current=0.0)


@pytest.mark.parametrize("accept", [always, as_if_alone])
def test_control_wrong_acceptance(accept: Acceptance) -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"])
    assert kernel(SMALL, config, accept=accept).drift(exact.target(SMALL, config)) > 1e-3


@pytest.mark.parametrize("pick", [best, even])
def test_control_wrong_pick(pick: Pick) -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"])
    assert kernel(SMALL, config, pick=pick).drift(exact.target(SMALL, config)) > 1e-3


def test_control_missing_cut_ratio() -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"])
    assert kernel(SMALL, config, seen=without_cuts).drift(exact.target(SMALL, config)) > 1e-3


# --- the rule -----------------------------------------------------------------------------------------


def test_the_rule_by_hand() -> None:
    """Weights 1, 3 and 4 against 2: the second is accepted with 8/7, so surely; the first with 8/9."""
    weights, current = np.log([1.0, 3.0, 4.0]), math.log(2.0)
    assert tries.pick_probabilities(weights) == pytest.approx([1 / 8, 3 / 8, 4 / 8])
    assert math.exp(tries.log_acceptance(weights, current, 1)) == pytest.approx(8 / 7)
    assert math.exp(tries.log_acceptance(weights, current, 0)) == pytest.approx(8 / 9)


def test_states_and_tries_of_no_weight() -> None:
    nothing, some = np.array([-math.inf, -math.inf]), np.array([-math.inf, 0.0])
    assert tries.log_acceptance(nothing, 0.0, 0) == -math.inf
    assert tries.log_acceptance(some, -math.inf, 1) == math.inf
    assert tries.pick_probabilities(some).tolist() == [0.0, 1.0]
    broken = HastingsTerms(math.nan, 0.0, 0.0, 0.0)
    weights, current = tries.log_weights([broken, HastingsTerms(0.0, math.inf, 0.0, 0.0)])
    assert weights.tolist() == [-math.inf, 0.0]
    assert current == 0.0


def test_a_draft_outside_the_support_is_replaced_by_any_try() -> None:
    terms = [HastingsTerms(-3.0, math.inf, -1.0, -1.0)] * 2
    weights, current = tries.log_weights(terms)
    assert tries.log_acceptance(weights, current, 0) > 0.0


# --- the running chain --------------------------------------------------------------------------------

CHAINS = 1000
LEVEL, REJECTED = 1e-3 / 4, 1e-6


def sample(config: MHConfig) -> list[Prefix]:
    return exact.answers(exact.run_chains(SMALL, config, exact.seeds(9_000_000, CHAINS)))


def test_answers_follow_the_exact_law_of_their_steps() -> None:
    config = config_of(SMALL, 2, LAWS["tau=1"], exact.ENTROPY)
    law = exact.chain_law(SMALL, config, last=kernel(SMALL, config))
    assert exact.g_test(sample(config), law) > LEVEL


def test_control_a_chain_that_accepts_as_if_alone_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"])
    law = exact.chain_law(SMALL, config, last=kernel(SMALL, config))
    assert exact.g_test(sample(config), law) > LEVEL
    monkeypatch.setattr(tries, "log_acceptance", as_if_alone)
    assert exact.g_test(sample(config), law) < REJECTED


def test_several_tries_are_prefetched_like_one() -> None:
    model = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)
    config = dataclasses.replace(exact.make_config(model, block_size=6, steps=8), tries=3)
    for seed in range(4):
        alone, many = (
            exact.run_chain(model, dataclasses.replace(config, prefetch=k), Key(seed)) for k in (1, 8)
        )
        assert_same_tokens(many.state.tokens, alone.state.tokens)
        assert [info.accepted for info in many.infos] == [info.accepted for info in alone.infos]
        assert [info.picked for info in many.infos] == [info.picked for info in alone.infos]
        taken = sum(len(each.proposal) for info in alone.infos for each in info.tries)
        assert 0 < alone.usage.decoded - taken <= model.horizon, "what is left are the extensions"


def test_early_rejection_is_off_and_every_try_is_scored() -> None:
    model = exact.random_model(3, vocab=5, horizon=8, stop_share=0.3)
    config = exact.make_config(model, law=LAWS["tau=1"], block_size=8, steps=6, early_rejection=True)
    assert config.rejects_early
    config = exact_tilt.tilted(dataclasses.replace(config, tries=4))
    assert not config.rejects_early
    asked: list[Prefix] = []

    async def scored(ids: Sequence[int], finished: bool) -> float | None:
        asked.append(tuple(ids))
        return await exact_tilt.scored(ids, finished)

    result = exact.run_chains(model, config, [Key(5)], reward=scored)[0]
    assert len(asked) == 1 + 4 * 6
    assert result.state.reward == exact_tilt.reward(result.state.tokens.ids)
    assert not any(info.early_rejected for info in result.infos)


def test_infos_hold_every_try() -> None:
    config = config_of(SMALL, 3, LAWS["tau=1"])
    for info in exact.run_chain(SMALL, config, Key(2)).infos:
        assert len(info.tries) == 3
        picked = info.tries[info.picked]
        assert (picked.proposal, picked.finished) == (info.proposal, info.proposal_finished)
        assert info.accepted == (info.log_u < info.log_ratio)


def test_a_single_try_decides_like_metropolis_hastings() -> None:
    config = config_of(SMALL, 1, LAWS["tau=1"])
    result = exact.run_chain(SMALL, config, Key(4))
    state = ChainState(result.state.tokens, result.state.finished, config.stages)
    proposal = mh.propose(config, Key(4), state)
    suffix = SMALL.score((1, 2, 0), config.law)
    whole = Continuation(suffix.after(proposal.cut), finished=True, cut_short=False, usage=Usage())
    alone, info = mh.decide(config, state, proposal, whole)
    other, many = tries.decide(config, state, proposal, [whole], [None])
    assert alone.tokens.ids == other.tokens.ids
    assert info.log_ratio == pytest.approx(many.log_ratio, abs=1e-12)
