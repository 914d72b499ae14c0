"""Cut laws: they are probabilities, the race draws exactly them, and it couples sequences of two lengths.

Exact checks, and chi-square tests of draws. Family-wise error rate 1e-3 (Bonferroni over `FAMILY` tests),
fixed seeds; the control must be rejected with p < 1e-6 at the same sample size.
"""

from __future__ import annotations

import math

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sglang_power.algorithms import cuts
from sglang_power.algorithms.cuts import CutLaw, EntropyCut
from sglang_power.rng import Key
from sglang_power.types import FloatArray

FAMILY = 8
LEVEL = 1e-3 / FAMILY
DRAWS = 4000

ROW = np.array([0.5, 1.5, 1.0, 3.0, 3.0, 0.0, 0.2])
"""Entropies of a sequence of seven tokens, nats."""

LAWS: dict[str, CutLaw] = {
    "uniform": exact.UNIFORM,
    "entropy": EntropyCut(beta=2.0, epsilon=0.1),
    "paper's entropy": EntropyCut(beta=4.0, epsilon=0.1),
}

entropies = st.lists(st.floats(0.0, 12.0), min_size=1, max_size=40).map(np.array)


def probabilities(law: CutLaw, entropy: FloatArray, frozen: int = 0) -> FloatArray:
    """cut(m|y) for m = frozen..T-1."""
    return np.array([math.exp(cuts.log_prob(law, m, entropy, frozen)) for m in range(frozen, len(entropy))])


# --- the law ------------------------------------------------------------------------------------------


@given(entropies, st.floats(0.5, 6.0), st.floats(0.01, 1.0), st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_probabilities_sum_to_one_and_every_cut_is_possible(
    entropy: FloatArray, beta: float, epsilon: float, data: st.DataObject
) -> None:
    frozen = data.draw(st.integers(0, len(entropy) - 1))
    for law in (exact.UNIFORM, EntropyCut(beta, epsilon)):
        p = probabilities(law, entropy, frozen)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert p.min() >= law.epsilon / len(p) * (1 - 1e-12)


def test_the_uniform_cut_by_hand() -> None:
    assert probabilities(exact.UNIFORM, ROW) == pytest.approx(np.full(7, 1 / 7))
    assert probabilities(exact.UNIFORM, ROW, frozen=3) == pytest.approx(np.full(4, 1 / 4))


def test_the_entropy_cut_by_hand() -> None:
    """Jumps 0.5, 1.0, -0.5, 2.0, 0, -3.0, 0.2; squared where positive: total 5.29."""
    g = np.array([0.25, 1.0, 0.0, 4.0, 0.0, 0.0, 0.04])
    law = EntropyCut(beta=2.0, epsilon=0.1)
    assert cuts.gains(law, ROW) == pytest.approx(g)
    assert probabilities(law, ROW) == pytest.approx(0.9 * g / 5.29 + 0.1 / 7)


def test_frozen_tokens_leave_the_gain_of_the_first_free_one_as_it_is() -> None:
    """The jump at position 3 is measured from token 2, frozen or not."""
    g = np.array([4.0, 0.0, 0.0, 0.04])
    law = EntropyCut(beta=2.0, epsilon=0.1)
    assert probabilities(law, ROW, frozen=3) == pytest.approx(0.9 * g / 4.04 + 0.1 / 4)


def test_without_a_jump_the_entropy_cut_is_uniform() -> None:
    law = EntropyCut(beta=2.0, epsilon=0.1)
    assert probabilities(law, np.zeros(5)) == pytest.approx(np.full(5, 0.2))
    assert probabilities(law, np.array([2.0, 1.5, 1.0]), frozen=1) == pytest.approx(np.full(2, 0.5))


@given(entropies, st.integers(1, 20))
@settings(derandomize=True, database=None, deadline=None)
def test_gains_depend_on_the_kept_prefix_only(entropy: FloatArray, extra: int) -> None:
    law = EntropyCut(beta=3.0, epsilon=0.1)
    longer = np.concatenate([entropy, np.linspace(0.0, 5.0, extra)])
    np.testing.assert_array_equal(cuts.gains(law, longer)[: len(entropy)], cuts.gains(law, entropy))


@given(entropies, st.integers(1, 20))
@settings(derandomize=True, database=None, deadline=None)
def test_a_longer_sequence_never_makes_a_cut_likelier(entropy: FloatArray, extra: int) -> None:
    longer = np.concatenate([entropy, np.linspace(0.0, 5.0, extra)])
    for law in LAWS.values():
        before, after = probabilities(law, entropy), probabilities(law, longer)[: len(entropy)]
        assert (after <= before + 1e-12).all()


# --- the race -----------------------------------------------------------------------------------------


def chi_square(draws: list[int], law: FloatArray, frozen: int = 0) -> float:
    counts = np.bincount(np.array(draws) - frozen, minlength=len(law))
    return float(stats.chisquare(counts, len(draws) * law).pvalue)


def raced(law: CutLaw, frozen: int = 0) -> list[int]:
    return [cuts.draw(law, Key(7), step, ROW, frozen) for step in range(DRAWS)]


@pytest.mark.parametrize("frozen", [0, 3])
@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_the_race_draws_exactly_the_law(law: CutLaw, frozen: int) -> None:
    assert chi_square(raced(law, frozen), probabilities(law, ROW, frozen), frozen) > LEVEL


def test_cuts_of_different_seeds_follow_the_law() -> None:
    law = LAWS["entropy"]
    draws = [cuts.draw(law, Key(seed), 0, ROW) for seed in range(DRAWS)]
    assert chi_square(draws, probabilities(law, ROW)) > LEVEL


def test_cuts_of_consecutive_steps_are_independent() -> None:
    draws = np.array(raced(exact.UNIFORM))
    table = np.zeros((7, 7), dtype=np.int64)
    np.add.at(table, (draws[::2], draws[1::2]), 1)
    assert stats.chi2_contingency(table).pvalue > LEVEL


def test_control_a_neighbouring_law_is_rejected() -> None:
    near = probabilities(EntropyCut(beta=2.0, epsilon=0.3), ROW)
    assert chi_square(raced(LAWS["entropy"]), near) < 1e-6


def test_the_race_keeps_most_cuts_when_the_length_changes() -> None:
    """Uniform cuts, 40 against 50 tokens: the race keeps 4 of 5, inverting the CDF hardly any."""
    short, long = np.zeros(40), np.zeros(50)
    pairs = [
        (cuts.draw(exact.UNIFORM, Key(3), step, short), cuts.draw(exact.UNIFORM, Key(3), step, long))
        for step in range(1000)
    ]
    assert all(a == b or b >= 40 for a, b in pairs)
    assert sum(a == b for a, b in pairs) > 700
    inverted = [(int(u * 40), int(u * 50)) for u in np.random.default_rng(3).random(1000)]
    assert sum(a == b for a, b in inverted) < 150


def test_the_race_keeps_cuts_inside_the_common_prefix_for_entropy_cuts_too() -> None:
    rng = np.random.default_rng(5)
    law = LAWS["entropy"]
    kept = 0
    for step in range(400):
        prefix = rng.uniform(0.0, 3.0, 30)
        one = np.concatenate([prefix, rng.uniform(0.0, 3.0, 5)])
        other = np.concatenate([prefix, rng.uniform(0.0, 3.0, 15)])
        kept += cuts.draw(law, Key(1), step, one) == cuts.draw(law, Key(1), step, other)
    assert kept > 200
