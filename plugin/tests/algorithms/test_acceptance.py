"""The acceptance rule and the weights: special values, the identity of the weights, the formula.

Deterministic; identities hold to 1e-9 in float64. Error rate 0.
"""

from __future__ import annotations

import math

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.algorithms import acceptance, mh
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.steps import ChainState, Propose
from sglang_power.rng import Key
from sglang_power.types import ROW_FIELDS, Continuation, ProposalLaw, Tokens, Usage

IDENTITY = 1e-9
LOG_P, LOG_Q, LOG_Z = (ROW_FIELDS.index(name) for name in ("log_p", "log_q", "log_z"))


def tokens_with(log_p: list[float], log_q: list[float]) -> Tokens:
    """Tokens whose rows carry these log-probabilities and nothing else."""
    rows = np.zeros((len(log_p), len(ROW_FIELDS)))
    rows[:, LOG_P], rows[:, LOG_Q] = log_p, log_q
    return Tokens.of(range(len(log_p)), rows)


# --- the decision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_u", [-math.inf, -700.0, -1.0, 0.0])
def test_a_ratio_that_is_not_a_number_never_accepts(log_u: float) -> None:
    assert not acceptance.accepts(log_u, math.nan)


@pytest.mark.parametrize("log_u", [-700.0, -1.0, 0.0])
def test_an_infinite_ratio_accepts_and_minus_infinity_rejects(log_u: float) -> None:
    assert acceptance.accepts(log_u, math.inf)
    assert not acceptance.accepts(log_u, -math.inf)


@given(st.floats(-50, 0), st.floats(-50, 50))
@settings(derandomize=True, database=None, deadline=None)
def test_accepts_if_and_only_if_log_u_is_below_the_ratio(log_u: float, ratio: float) -> None:
    assert acceptance.accepts(log_u, ratio) is (log_u < ratio)


def test_every_uniform_accepts_a_ratio_above_zero_and_none_a_ratio_of_zero_probability() -> None:
    log_us = np.log1p(-np.linspace(0.0, 1.0, 1001)[:-1]).tolist()
    assert all(acceptance.accepts(log_u, 1e-12) for log_u in log_us)
    assert not any(acceptance.accepts(log_u, -1000.0) for log_u in log_us)


# --- the ratio ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=6))
@settings(derandomize=True, database=None, deadline=None)
def test_the_ratio_is_the_sum_of_its_terms(terms: list[float]) -> None:
    ratio = acceptance.log_ratio(HastingsTerms(*terms))
    signs = (1, -1, 1, -1, 1, -1)
    assert ratio == pytest.approx(math.fsum(s * t for s, t in zip(signs, terms, strict=True)), abs=1e-9)


def test_a_current_state_of_zero_proposal_density_accepts_anything() -> None:
    outside = tokens_with([-1.0, -2.0], [-math.inf, -0.5])
    assert acceptance.log_weight(2.0, outside) == math.inf
    for log_w in (0.0, -500.0, math.inf):
        terms = HastingsTerms(log_w, acceptance.log_weight(2.0, outside), -1.0, -2.0)
        assert acceptance.log_ratio(terms) == math.inf


def test_a_token_that_the_model_rules_out_counts_as_outside_of_the_support() -> None:
    impossible = tokens_with([-math.inf, -2.0], [-math.inf, -0.5])
    assert acceptance.log_weight(2.0, impossible) == math.inf


def test_the_weight_of_no_tokens_is_zero() -> None:
    assert acceptance.log_weight(2.0, Tokens.EMPTY) == 0.0


def test_a_row_that_is_not_a_number_rejects_and_is_recorded() -> None:
    config = exact.make_config(exact.NARROW)
    state = ChainState(exact.NARROW.score((1, 2, 0), config.law), finished=True, stage=config.stages)
    proposal = mh.propose(config, Key(1), state)
    assert isinstance(proposal, Propose)
    broken = Tokens.of([1, 0], np.full((2, len(ROW_FIELDS)), math.nan))
    stepped, info = mh.decide(
        config, state, proposal, Continuation(broken, finished=True, cut_short=False, usage=Usage())
    )
    assert math.isnan(info.log_ratio)
    assert not info.accepted
    assert stepped.tokens is state.tokens
    assert (stepped.step, stepped.stage_step) == (1, 1)


# --- the weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.5, 1.0, 1.7, exact.ALPHA, 4.0])
def test_the_weight_identity(kappa: float) -> None:
    law = ProposalLaw(kappa)
    for y in exact.NARROW.sequences():
        rows = exact.NARROW.score(y, law).rows
        log_w = exact.ALPHA * rows[:, LOG_P] - rows[:, LOG_Q]
        identity = (exact.ALPHA - kappa) * rows[:, LOG_P] + rows[:, LOG_Z]
        assert np.abs(log_w - identity).max() < IDENTITY
        weight = acceptance.log_weight(exact.ALPHA, exact.NARROW.score(y, law))
        assert weight == pytest.approx(identity.sum(), abs=IDENTITY)


def test_at_tau_one_over_alpha_the_weight_depends_on_the_prefix_only() -> None:
    law = ProposalLaw(exact.ALPHA)
    for prefix in [(), (1,), (2, 1)]:
        weights = {
            round(exact.ALPHA * row[LOG_P] - row[LOG_Q], 9)
            for row in (exact.NARROW.row(prefix, token, law) for token in range(3))
        }
        assert len(weights) == 1


@pytest.mark.parametrize("law", [ProposalLaw(1.0), ProposalLaw(1.7), ProposalLaw(1.3, top_k=2, top_p=0.8)])
def test_weights_are_at_most_one_where_kappa_is_between_one_and_alpha(law: ProposalLaw) -> None:
    for y in exact.NARROW.sequences():
        if exact.reachable(exact.NARROW, law, y):
            tokens = exact.NARROW.score(y, law)
            assert (exact.ALPHA * tokens.log_p - tokens.log_q).max() <= IDENTITY


def test_truncation_only_lowers_weights() -> None:
    whole, truncated = ProposalLaw(1.3), ProposalLaw(1.3, top_k=2)
    for y in exact.NARROW.sequences():
        if exact.reachable(exact.NARROW, truncated, y):
            assert acceptance.log_weight(exact.ALPHA, exact.NARROW.score(y, truncated)) <= (
                acceptance.log_weight(exact.ALPHA, exact.NARROW.score(y, whole)) + IDENTITY
            )
