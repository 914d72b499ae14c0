"""Counter-based random numbers: replayable, a prefix stays a prefix, and purposes never share numbers.

Exact checks, and Kolmogorov-Smirnov, correlation and uniqueness checks of draws. Family-wise error rate
1e-3 (Bonferroni over `FAMILY` tests), fixed seeds.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sglang_power.rng import SEED_BITS, Key, Purpose, fresh_seed

FAMILY = 20
LEVEL = 1e-3 / FAMILY
DRAWS = 3000

any_seed = st.integers(0, 2**64 - 1)
steps = st.integers(0, 2**31)


@given(any_seed, st.integers(0, 1000), steps, st.sampled_from(Purpose))
@settings(derandomize=True, database=None, deadline=None)
def test_a_draw_is_a_function_of_its_key(seed: int, chain: int, step: int, purpose: Purpose) -> None:
    one, other = Key(seed, chain), Key(seed, chain)
    other.uniform(step + 1, purpose)
    other.exponentials(step, purpose, 10)
    assert one.uniform(step, purpose) == other.uniform(step, purpose)
    assert one.child_seed(step, purpose) == other.child_seed(step, purpose)
    np.testing.assert_array_equal(one.exponentials(step, purpose, 5), other.exponentials(step, purpose, 5))


def test_the_numbers_stay_the_same_for_ever() -> None:
    """Seeds that were echoed to clients keep their chains: a change of these is a change of the format."""
    key = Key(1234, chain=5)
    assert key.uniform(6, Purpose.ACCEPT) == 0.3691763439198027
    assert key.child_seed(6, Purpose.PROPOSAL) == 151167578790490282


@given(any_seed, steps, st.integers(0, 60), st.integers(0, 60))
@settings(derandomize=True, database=None, deadline=None)
def test_a_shorter_request_is_a_prefix_of_a_longer_one(seed: int, step: int, short: int, more: int) -> None:
    key = Key(seed)
    longer = key.exponentials(step, Purpose.CUT, short + more)
    np.testing.assert_array_equal(key.exponentials(step, Purpose.CUT, short), longer[:short])


@given(any_seed, steps)
@settings(derandomize=True, database=None, deadline=None)
def test_ranges(seed: int, step: int) -> None:
    key = Key(seed)
    assert 0.0 <= key.uniform(step, Purpose.ACCEPT) < 1.0
    assert 0 <= key.child_seed(step, Purpose.PROPOSAL) < 1 << 62
    assert (key.exponentials(step, Purpose.CUT, 20) >= 0.0).all()


def test_every_seed_chain_step_and_purpose_gives_another_child_seed() -> None:
    grid = itertools.product(range(8), range(8), range(8), Purpose)
    found = [Key(seed, chain).child_seed(step, purpose) for seed, chain, step, purpose in grid]
    assert len(set(found)) == len(found)


def test_long_draws_of_neighbouring_steps_chains_and_purposes_do_not_overlap() -> None:
    """A race over 3,072 positions must not run into the next step's numbers."""
    streams = [
        Key(seed, chain).exponentials(step, purpose, 3072)
        for seed, chain, step, purpose in itertools.product(
            (0, 1), (0, 1), (0, 1), (Purpose.CUT, Purpose.ACCEPT)
        )
    ]
    numbers = np.concatenate(streams)
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize("purpose", Purpose)
def test_uniforms_are_uniform(purpose: Purpose) -> None:
    by_step = [Key(11).uniform(step, purpose) for step in range(DRAWS)]
    by_seed = [Key(seed).uniform(0, purpose) for seed in range(DRAWS)]
    assert stats.kstest(by_step, "uniform").pvalue > LEVEL
    assert stats.kstest(by_seed, "uniform").pvalue > LEVEL


def test_exponentials_are_exponential_over_steps_and_over_positions() -> None:
    key = Key(12)
    by_step = [key.exponentials(step, Purpose.CUT, 4)[3] for step in range(DRAWS)]
    assert stats.kstest(by_step, "expon").pvalue > LEVEL
    assert stats.kstest(key.exponentials(0, Purpose.CUT, DRAWS), "expon").pvalue > LEVEL


VARIED = {
    "purposes": lambda step: (Key(3).uniform(step, Purpose.ACCEPT), Key(3).uniform(step, Purpose.CUT)),
    "chains": lambda step: (
        Key(3, chain=0).uniform(step, Purpose.ACCEPT),
        Key(3, chain=1).uniform(step, Purpose.ACCEPT),
    ),
    "steps": lambda step: (
        Key(3).uniform(2 * step, Purpose.ACCEPT),
        Key(3).uniform(2 * step + 1, Purpose.ACCEPT),
    ),
    "seeds": lambda step: (
        Key(2 * step).uniform(0, Purpose.ACCEPT),
        Key(2 * step + 1).uniform(0, Purpose.ACCEPT),
    ),
}


@pytest.mark.parametrize("name", VARIED)
def test_neighbours_are_independent(name: str) -> None:
    """Chi-square over a 6 by 6 table of two neighbouring uniforms."""
    pairs = np.array([VARIED[name](step) for step in range(DRAWS)])
    table = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=6, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue > LEVEL


def test_control_the_same_numbers_are_not_independent() -> None:
    draws = [Key(3).uniform(step, Purpose.ACCEPT) for step in range(DRAWS)]
    table = np.histogram2d(draws, draws, bins=6, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(table.ravel()).pvalue < 1e-6


def test_a_fresh_seed_survives_json_in_javascript() -> None:
    seeds = {fresh_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 1 << SEED_BITS for seed in seeds)
