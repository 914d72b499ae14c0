"""Resampling is unbiased for every scheme, to 1e-12, and chopthin keeps its bound and the sum of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact_smc import outcomes
from hypothesis import given
from hypothesis import strategies as st
from sglang_power.algorithms import resampling
from sglang_power.algorithms.resampling import RATIO_BOUND, Scheme, effective_sample_size, log_sum
from sglang_power.types import FloatArray

SCHEMES: list[Scheme] = ["systematic", "chopthin", "multinomial"]

WEIGHTS = [
    [1.0, 1.0, 1.0],
    [1.0, 1e-6],
    [0.0, 1.0, 3.0, 0.0],
    [2.2, 1.0, 0.6, 0.2],
    [1e-9, 5.0, 1e-3, 0.4],
    [7.0, 0.3, 0.2, 0.1],
]

log_weights = st.lists(st.one_of(st.just(-math.inf), st.floats(-40.0, 40.0)), min_size=1, max_size=40).filter(
    lambda values: max(values) > -math.inf
)
uniform = st.floats(0.0, 1.0, exclude_max=True)


def in_nats(weights: list[float]) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(weights)) - 700.0  # far below what exp can hold


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_copies_stand_for_their_ancestor_on_average(scheme: Scheme, weights: list[float]) -> None:
    """E[weight of the copies of i] / (weight of all copies) = w_i / sum w; the latter is never random."""
    expected = np.zeros(len(weights))
    after = set()
    for probability, _, drawn in outcomes(scheme, in_nats(weights)):
        total = log_sum(drawn.log_weights)
        after.add(round(total, 9))
        for ancestor, weight in zip(drawn.ancestors, drawn.log_weights, strict=True):
            expected[ancestor] += probability * math.exp(weight - total)
    assert len(after) == 1
    assert expected == pytest.approx(np.array(weights) / sum(weights), abs=1e-12)


@given(log_weights, uniform)
def test_chopthin_bounds_the_ratio_and_keeps_the_sum(values: list[float], u: float) -> None:
    weights = np.array(values)
    drawn = resampling.chopthin(weights, u)
    assert len(drawn.ancestors) == len(drawn.log_weights) == len(weights)
    assert np.ptp(drawn.log_weights) <= math.log(RATIO_BOUND) + 1e-9
    assert log_sum(drawn.log_weights) == pytest.approx(log_sum(weights), abs=1e-9)
    assert effective_sample_size(drawn.log_weights) >= len(weights) / 2 - 1e-6


@given(log_weights, uniform, st.sampled_from(SCHEMES))
def test_the_dead_have_no_copies(values: list[float], u: float, scheme: Scheme) -> None:
    weights = np.array(values)
    drawn = resampling.resample(scheme, weights, np.full(len(weights), u))
    assert all(math.isfinite(weights[ancestor]) for ancestor in drawn.ancestors)


def test_chopthin_leaves_alone_what_is_even_enough() -> None:
    weights = np.log([1.0, 1.5, 1.9, 0.8])
    drawn = resampling.chopthin(weights, 0.3)
    assert drawn.ancestors == (0, 1, 2, 3)
    assert drawn.log_weights == pytest.approx(weights)


def test_chopthin_chops_without_chance_and_thins_the_lightest() -> None:
    """Of 2.2, 1, 0.6, 0.2 the first is halved, the second stays, one of the others goes on for both."""
    drawn = {resampling.chopthin(np.log([2.2, 1.0, 0.6, 0.2]), u).ancestors for u in np.linspace(0, 0.99, 50)}
    assert drawn == {(0, 0, 1, 2), (0, 0, 1, 3)}


def test_systematic_copies_are_as_many_as_expected_or_one_more_or_less() -> None:
    weights = np.array([0.3, 2.1, 0.9, 0.7])
    for u in np.linspace(0, 0.99, 50):
        counts = np.bincount(
            resampling.resample("systematic", np.log(weights), np.full(4, u)).ancestors, minlength=4
        )
        assert (np.abs(counts - weights) < 1).all()


def test_a_conditional_run_keeps_its_reference() -> None:
    weights = np.array([-50.0, 0.0, -1.0])
    drawn = resampling.conditional(weights, np.array([0.9, 0.1, 0.99]))
    assert drawn.ancestors == (0, 1, 2)


def test_weights_far_apart_have_an_effective_sample_size() -> None:
    assert effective_sample_size(np.array([0.0, -2000.0])) == pytest.approx(1.0)
    assert effective_sample_size(np.array([-3000.0] * 5)) == pytest.approx(5.0)
    assert effective_sample_size(np.array([-math.inf, -math.inf])) == 0.0
