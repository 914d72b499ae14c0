"""The arithmetic of the bounds, and R-hat and ESS of log p. Error rate 0 but for seeds that are fixed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sglang_power.diagnosis import bounds
from sglang_power.diagnosis.convergence import FEWEST_DRAWS, convergence


@pytest.mark.parametrize("replicas", [23, 64])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.95])
def test_the_share_apart_is_below_its_bound_as_often_as_stated(replicas: int, share: float) -> None:
    """Summed over every outcome: no simulation."""
    outcomes = range(replicas + 1)
    covered = [bounds.upper(count, replicas, 0.95) >= share for count in outcomes]
    assert float(stats.binom.pmf(outcomes, replicas, share)[covered].sum()) >= 0.95


def test_control_the_plug_in_share_covers_half_as_often() -> None:
    outcomes = np.arange(65)
    assert float(stats.binom.pmf(outcomes, 64, 0.1)[outcomes / 64 >= 0.1].sum()) < 0.6


def test_pairs_that_have_not_met_count_to_the_end() -> None:
    assert bounds.not_met([0, 2, None], 3) == [2, 2, 1, 1]
    assert bounds.upper(3, 3, 0.95) == 1.0
    assert bounds.distances([1.0, 0.6, 0.1], 0.5) == [1.0, 1.0, 0.2]


def test_a_pair_that_never_meets_keeps_every_bound_away_from_zero() -> None:
    unmet = bounds.not_met([1] * 63 + [None], 32)
    change = [bounds.upper(count, 64, 0.95) for count in unmet]
    assert change[-1] > 3 / 64
    assert change == sorted(change, reverse=True)


def test_pairs_that_hardly_meet_any_more_slow_the_assumed_rate() -> None:
    assert bounds.rate([64, 20, 10, 2, 0], lag=4) == 0.5
    assert bounds.rate([64, 20, 10, 10, 10], lag=4) == pytest.approx((10 / 11) ** 2)
    assert bounds.rate([64, 20, 10, 10, 10], lag=8) == pytest.approx((10 / 11) ** 4)
    assert bounds.rate([64, 64], lag=1) == pytest.approx(64 / 65)


@pytest.mark.parametrize("target", [0.25, 0.1])
def test_so_many_replicas_can_reach_a_target_and_one_fewer_cannot(target: float) -> None:
    fewest = bounds.replicas_for(target, 0.95)
    best = [bounds.distances([bounds.upper(0, count, 0.95)], 0.5)[0] for count in (fewest - 1, fewest)]
    assert best[1] <= target < best[0]


def test_the_first_time_below() -> None:
    assert bounds.first_below([1.0, 0.3, 0.2, 0.1], 0.25) == 2
    assert bounds.first_below([1.0, 0.3], 0.25) is None


def test_chains_that_agree_and_chains_that_do_not() -> None:
    rng = np.random.default_rng(0)
    agree = rng.normal(size=(32, 60))
    found = convergence(agree)
    assert (found.draws, found.remark) == (30, "")
    assert found.rhat == pytest.approx(1.0, abs=0.02)
    assert found.ess == pytest.approx(32 * 30, rel=0.3)
    apart = convergence(agree + 3.0 * np.arange(32)[:, None])
    assert apart.rhat is not None
    assert apart.rhat > 2.0
    assert "fewer than 400" in apart.remark


def test_a_first_half_that_climbs_is_no_part_of_it() -> None:
    draws = np.random.default_rng(1).normal(size=(32, 60))
    draws[:, :30] += 100.0
    found = convergence(draws)
    assert found.rhat == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("log_p", "remark"),
    [
        (np.zeros((4, 2 * FEWEST_DRAWS - 2)), "are needed"),
        (np.full((4, 40), -2.0) - np.arange(4)[:, None], "never changed"),
        (np.full((4, 40), -np.inf), "finite"),
    ],
)
def test_no_number_where_it_would_mean_nothing(log_p: np.ndarray, remark: str) -> None:
    found = convergence(log_p)
    assert (found.rhat, found.ess) == (None, None)
    assert remark in found.remark
