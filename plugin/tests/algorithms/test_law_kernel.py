"""Every step of the running code leaves its target invariant, and the known mistakes do not.

Exact, nothing is sampled: the transition matrix K of a step is summed over all cuts and all suffixes from
the functions that serve requests, over every sequence of tabular models with variable length. Claims:
|pi K - pi|_1 < 1e-12 for each variant, > 1e-3 for each negative control. Error rate 0.
"""

from __future__ import annotations

import dataclasses
import math

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.algorithms import acceptance, cuts, mh
from sglang_power.algorithms.cuts import CutLaw, EntropyCut
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.policies.edt import EDT
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.policies.typical import Typical
from sglang_power.types import ProposalLaw, Tokens

INVARIANT = 1e-12
BROKEN = 1e-3
MANY = 1 << 14
ALPHA = exact.ALPHA

LAWS = {
    "tau=1/alpha": ProposalLaw(ALPHA),
    "tau=1": ProposalLaw(1.0),
    "kappa between": ProposalLaw(1.7),
    "kappa above alpha": ProposalLaw(4.0),
    "kappa below 1": ProposalLaw(0.6),
    "top_k": ProposalLaw(ALPHA, top_k=2),
    "top_k, tau=1": ProposalLaw(1.0, top_k=2),
    "top_p": ProposalLaw(1.0, top_p=0.8),
    "min_p": ProposalLaw(1.7, min_p=0.2),
    "joint": ProposalLaw(1.2, top_k=3, top_p=0.9, min_p=0.05),
    "policy, full support": ProposalLaw(1.7, policy=EDT(theta=0.5)),
    "policy, truncating": ProposalLaw(1.2, policy=TopNSigma(n=1.4)),
    "policy, then top_p": ProposalLaw(1.0, top_p=0.8, policy=Typical(mass=0.8)),
}
TRUNCATED = [name for name, law in LAWS.items() if law.truncated]

MODELS = {"narrow": exact.NARROW, "wide": exact.WIDE}


@pytest.fixture(params=exact.CUTS.values(), ids=list(exact.CUTS))
def cut(request: pytest.FixtureRequest) -> CutLaw:
    law: CutLaw = request.param
    return law


# --- invariance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "name"), [*[("narrow", name) for name in LAWS], *[("wide", name) for name in TRUNCATED]]
)
def test_every_proposal_law_leaves_the_target_invariant(size: str, name: str, cut: CutLaw) -> None:
    model = MODELS[size]
    config = exact.make_config(model, law=LAWS[name], cut=cut)
    kernel = exact.cached_kernel(model, config)
    assert kernel.drift(exact.target(model, config)) < INVARIANT


@pytest.mark.parametrize("law", [LAWS["tau=1/alpha"], LAWS["tau=1"], LAWS["joint"]])
def test_a_step_is_reversible(law: ProposalLaw, cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, law=law, cut=cut)
    kernel = exact.cached_kernel(exact.NARROW, config)
    flow = kernel.vector(exact.target(exact.NARROW, config))[:, None] * kernel.matrix
    assert np.abs(flow - flow.T).max() < INVARIANT


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncation_really_shrinks_the_support(name: str) -> None:
    config = exact.make_config(exact.WIDE, law=LAWS[name], cut=exact.UNIFORM)
    assert 1 < len(exact.target(exact.WIDE, config)) < len(exact.WIDE.sequences())


def test_proposals_never_leave_a_truncated_support(cut: CutLaw) -> None:
    config = exact.make_config(exact.WIDE, law=LAWS["joint"], cut=cut)
    kernel = exact.cached_kernel(exact.WIDE, config)
    inside = kernel.vector(exact.target(exact.WIDE, config)) > 0
    assert kernel.matrix[np.ix_(inside, ~inside)].max() == 0.0


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["tau=1/alpha", "tau=1", "joint"])
def test_each_stage_leaves_its_own_target_invariant(name: str, stage: int, cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, law=LAWS[name], cut=cut)
    kernel = exact.cached_kernel(exact.NARROW, config, stage)
    assert len(kernel.states) == len(exact.NARROW.sequences(min(2 * stage, 5)))
    assert kernel.drift(exact.target(exact.NARROW, config, stage=stage)) < INVARIANT


@pytest.mark.parametrize("frozen", [1, 2, 3])
@pytest.mark.parametrize("name", ["tau=1/alpha", "tau=1", "joint"])
def test_frozen_tokens_leave_the_conditional_law_invariant(name: str, frozen: int, cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, law=LAWS[name], cut=cut)
    kernel = exact.step_kernel(exact.NARROW, config, frozen=frozen)
    law = exact.target(exact.NARROW, config, frozen=frozen)
    assert kernel.drift(law) < INVARIANT
    heads = {y[:frozen] for y in law}
    assert len(heads) > 1
    for head in heads:
        given_head = exact.normalised({y: w for y, w in law.items() if y[:frozen] == head})
        assert kernel.drift(given_head) < INVARIANT
        assert all(y[:frozen] == head for y in kernel.after(given_head, 1))


@st.composite
def variants(draw: st.DrawFn) -> tuple[TabularModel, MHConfig, int]:
    vocab = draw(st.integers(2, 4))
    model = exact.random_model(
        draw(st.integers(0, 50)),
        vocab=vocab,
        horizon=draw(st.integers(1, 3)),
        concentration=draw(st.sampled_from([0.4, 3.0])),
    )
    cut: CutLaw = exact.UNIFORM
    if draw(st.booleans()):
        cut = EntropyCut(beta=draw(st.floats(0.5, 5.0)), epsilon=draw(st.floats(0.05, 1.0)))
    law = ProposalLaw(
        kappa=draw(st.floats(0.3, 6.0)),
        top_k=draw(st.none() | st.integers(1, vocab)),
        top_p=draw(st.none() | st.floats(0.3, 1.0)),
        min_p=draw(st.none() | st.floats(0.0, 0.5)),
    )
    block_size = draw(st.integers(1, 3))
    config = exact.make_config(
        model, alpha=draw(st.floats(1.0, 6.0)), law=law, cut=cut, block_size=block_size
    )
    return model, config, draw(st.integers(1, config.stages))


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(variants())
def test_any_variant_leaves_its_target_invariant(variant: tuple[TabularModel, MHConfig, int]) -> None:
    model, config, stage = variant
    for frozen in range(config.stage_horizon(stage)):
        kernel = exact.step_kernel(model, config, stage=stage, frozen=frozen)
        law = exact.target(model, config, stage=stage, frozen=frozen)
        assert not law or kernel.drift(law) < INVARIANT


# --- acceptance that is certain -----------------------------------------------------------------------


def ratios(model: TabularModel, config: MHConfig) -> list[float]:
    """The ratio of every possible proposal from every state."""
    found: list[float] = []

    def record(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
        found.append(exact.running_ratio(config, state, m, suffix))
        return found[-1]

    exact.step_kernel(model, config, ratio=record)
    return found


def test_alpha_one_tau_one_has_no_weights_and_accepts_every_answer_of_equal_length(cut: CutLaw) -> None:
    for model in (exact.NARROW, exact.endless_model(3)):
        config = exact.make_config(model, alpha=1.0, cut=cut)
        for y in model.sequences():
            assert abs(acceptance.log_weight(1.0, model.score(y, config.law))) < 1e-12
    fixed_length = exact.endless_model(3)
    found = ratios(fixed_length, exact.make_config(fixed_length, alpha=1.0, cut=exact.UNIFORM))
    assert np.abs(found).max() < 1e-12


def test_alpha_one_tau_one_pays_only_for_length() -> None:
    config = exact.make_config(exact.NARROW, alpha=1.0)
    possible = [math.log(t / other) for t in range(1, 6) for other in range(1, 6)]
    assert all(min(abs(r - p) for p in possible) < 1e-12 for r in ratios(exact.NARROW, config))


def test_horizon_one_with_tau_one_over_alpha_accepts_always(cut: CutLaw) -> None:
    model = exact.random_model(5, vocab=4, horizon=1)
    found = ratios(model, exact.make_config(model, cut=cut))
    assert len(found) == 16
    assert np.abs(found).max() < 1e-12


# --- convergence and the two schedules ----------------------------------------------------------------


@pytest.mark.parametrize("law", [LAWS["tau=1/alpha"], LAWS["tau=1"], LAWS["joint"]])
def test_the_exact_schedule_tends_to_the_target(law: ProposalLaw, cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, law=law, cut=cut, steps=MANY)
    pi = exact.target(exact.NARROW, config)
    assert exact.total_variation(exact.chain_law(exact.NARROW, config), pi) < 1e-8


def test_the_paper_schedule_tends_to_its_own_limit_and_not_to_the_target(cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, cut=cut, steps=MANY, schedule="paper")
    law = exact.chain_law(exact.NARROW, config)
    assert exact.total_variation(law, exact.paper_limit(exact.NARROW, config)) < 1e-8
    assert exact.total_variation(law, exact.target(exact.NARROW, config)) > 0.02


def test_a_draft_outside_the_truncated_support_is_left_behind(cut: CutLaw) -> None:
    config = exact.make_config(exact.WIDE, law=LAWS["joint"], cut=cut, steps=MANY)
    draft = next(y for y in exact.WIDE.sequences() if not exact.reachable(exact.WIDE, config.law, y))
    law = exact.chain_law(exact.WIDE, config, draft=draft)
    assert exact.total_variation(law, exact.target(exact.WIDE, config)) < 1e-8


# --- negative controls: mistakes found in public code -------------------------------------------------


def without_cut_ratio(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    terms = mh.hastings_terms(config, state, m, suffix)
    return terms.log_w_proposal - terms.log_w_current


def common_length_slice(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    """The old suffix is summed over the proposal's length only."""
    old = state.tokens.after(m).first(len(suffix))
    terms = mh.hastings_terms(config, state, m, suffix)
    return acceptance.log_ratio(
        dataclasses.replace(terms, log_w_current=acceptance.log_weight(config.alpha, old))
    )


def reversed_proposal_term(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    def log_weight(tokens: Tokens) -> float:
        return float(config.alpha * tokens.log_p.sum() + tokens.log_q.sum())

    terms = mh.hastings_terms(config, state, m, suffix)
    return acceptance.log_ratio(
        dataclasses.replace(
            terms, log_w_proposal=log_weight(suffix), log_w_current=log_weight(state.tokens.after(m))
        )
    )


def no_proposal_term(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    terms = mh.hastings_terms(config, state, m, suffix)
    current = state.tokens.after(m)
    return acceptance.log_ratio(
        dataclasses.replace(
            terms,
            log_w_proposal=float(config.alpha * suffix.log_p.sum()),
            log_w_current=float(config.alpha * current.log_p.sum()),
        )
    )


def uniform_ratio(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    """Entropy cuts, corrected as if they were uniform."""
    return exact.running_ratio(dataclasses.replace(config, cut=exact.UNIFORM), state, m, suffix)


def unfrozen_normaliser(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    """Cuts avoid the frozen tokens, the cut law's normaliser does not know it."""
    return exact.running_ratio(config, dataclasses.replace(state, frozen=0), m, suffix)


CONTROLS: dict[str, tuple[exact.Ratio, str]] = {
    "missing cut ratio": (without_cut_ratio, "tau=1/alpha"),
    "missing cut ratio, tau=1": (without_cut_ratio, "tau=1"),
    "common-length slicing": (common_length_slice, "tau=1/alpha"),
    "common-length slicing, tau=1": (common_length_slice, "tau=1"),
    "reversed proposal term": (reversed_proposal_term, "tau=1/alpha"),
    "reversed proposal term, tau=1": (reversed_proposal_term, "tau=1"),
    "no proposal term": (no_proposal_term, "tau=1/alpha"),
}


@pytest.mark.parametrize(("ratio", "name"), CONTROLS.values(), ids=CONTROLS)
def test_control_wrong_ratio(ratio: exact.Ratio, name: str, cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, law=LAWS[name], cut=cut)
    kernel = exact.step_kernel(exact.NARROW, config, ratio=ratio)
    assert kernel.drift(exact.target(exact.NARROW, config)) > BROKEN


def test_control_entropy_cut_with_the_uniform_ratio() -> None:
    config = exact.make_config(exact.NARROW, cut=exact.ENTROPY)
    kernel = exact.step_kernel(exact.NARROW, config, ratio=uniform_ratio)
    assert kernel.drift(exact.target(exact.NARROW, config)) > BROKEN


def test_control_frozen_tokens_in_the_normaliser(cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, cut=cut)
    kernel = exact.step_kernel(exact.NARROW, config, frozen=2, ratio=unfrozen_normaliser)
    assert kernel.drift(exact.target(exact.NARROW, config, frozen=2)) > BROKEN


def test_control_proposals_capped_at_the_current_length(cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, cut=cut)
    kernel = exact.step_kernel(exact.NARROW, config, capped_at_current_length=True)
    assert kernel.drift(exact.target(exact.NARROW, config)) > BROKEN


@pytest.mark.parametrize("name", TRUNCATED)
def test_control_log_probabilities_before_truncation(name: str, cut: CutLaw) -> None:
    config = exact.make_config(exact.WIDE, law=LAWS[name], cut=cut)
    whole = ProposalLaw(config.law.kappa)

    def before_truncation(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
        ids: Prefix = state.tokens.ids[:m] + suffix.ids
        rescored = dataclasses.replace(state, tokens=exact.WIDE.score(state.tokens.ids, whole))
        return exact.running_ratio(config, rescored, m, exact.WIDE.score(ids, whole).after(m))

    kernel = exact.step_kernel(exact.WIDE, config, ratio=before_truncation)
    assert kernel.drift(exact.target(exact.WIDE, config)) > BROKEN


@pytest.mark.parametrize("name", TRUNCATED)
def test_control_truncated_proposals_against_the_whole_power_law(name: str, cut: CutLaw) -> None:
    config = exact.make_config(exact.WIDE, law=LAWS[name], cut=cut)
    whole = exact.target(exact.WIDE, dataclasses.replace(config, law=ProposalLaw(config.law.kappa)))
    assert exact.cached_kernel(exact.WIDE, config).drift(whole) > BROKEN


def test_control_a_neighbouring_exponent_is_not_invariant(cut: CutLaw) -> None:
    """What tests by cosine similarity let pass: p^(1.05 alpha)."""
    config = exact.make_config(exact.NARROW, cut=cut)
    near = exact.target(exact.NARROW, dataclasses.replace(config, alpha=1.05 * ALPHA))
    assert exact.cached_kernel(exact.NARROW, config).drift(near) > BROKEN


def test_control_an_earlier_stage_does_not_keep_the_last_target(cut: CutLaw) -> None:
    config = exact.make_config(exact.NARROW, cut=cut)
    earlier = exact.cached_kernel(exact.NARROW, config, 2)
    conditional = {y: w for y, w in exact.target(exact.NARROW, config).items() if y in earlier.states}
    assert earlier.drift(exact.normalised(conditional)) > BROKEN


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_control_low_temperature_is_another_law(model: TabularModel) -> None:
    config = exact.make_config(model, cut=exact.UNIFORM)
    low_temperature = exact.extend(model, config.law, {(): 1.0}, model.horizon)
    assert exact.total_variation(low_temperature, exact.target(model, config)) > 0.1


def test_the_entropy_cut_of_these_models_is_far_from_uniform() -> None:
    entropy = exact.NARROW.score(max(exact.NARROW.sequences(), key=len), ProposalLaw(1.0)).entropy
    law = [math.exp(cuts.log_prob(exact.ENTROPY, m, entropy)) for m in range(len(entropy))]
    assert max(law) > 1.5 / len(law)
