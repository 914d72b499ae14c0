"""Confidence sequences: what they estimate, cover and wait for. Their false positives are in test_ab_gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sglang_power.experiments.analysis.asymptotic import arm_moments
from sglang_power.experiments.analysis.enough import DECISIVE, RARE_UNITS, Enough
from sglang_power.experiments.analysis.observations import Column, Mask
from sglang_power.experiments.analysis.sequences import ConfidenceSequence, sequence
from sglang_power.types import FloatArray
from ville import GaussianMixtureCS

RUNS = 200
BOUNDS = [(0.0, 1.0), None]


def events(
    rates: tuple[float, float], units: int, propensity: float, random: np.random.Generator
) -> tuple[Column, Mask]:
    """Units with an event or without, at the control's rate and the arm's."""
    treated = random.random(units) < propensity
    return Column((random.random(units) < np.where(treated, rates[1], rates[0])).astype(float)), treated


def many(rates: tuple[float, float], units: int, propensity: float) -> Iterator[tuple[Column, Mask]]:
    for run in range(RUNS):
        yield events(rates, units, propensity, np.random.default_rng(run))


def of(
    column: Column,
    treated: Mask,
    *,
    propensity: float = 0.5,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    alpha: float = 0.05,
) -> ConfidenceSequence:
    return sequence(column, treated, propensity=propensity, bounds=bounds, alpha=alpha, resolution=40)


def covers(found: ConfidenceSequence, truth: float) -> bool:
    """At every look at once."""
    return not bool(((found.low > truth) | (found.high < truth)).any())


@pytest.mark.parametrize("propensity", [0.5, 0.1])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_covers_a_true_difference_at_every_look(
    bounds: tuple[float, float] | None, propensity: float
) -> None:
    """Fails where a binomial test at 0.001 rejects "misses in at most 5% of the runs"."""
    units = 600 if bounds else 900
    runs = [of(*run, bounds=bounds, propensity=propensity) for run in many((0.3, 0.5), units, propensity)]
    missed = sum(not covers(found, 0.2) for found in runs)
    assert binomtest(missed, RUNS, 0.05, alternative="greater").pvalue > 0.001
    assert np.mean([found.low[-1] for found in runs]) > -0.2
    # The same intervals do not cover a wrong sign: the test above can fail.
    assert sum(not covers(found, -0.2) for found in runs) > RUNS * 0.9


@pytest.mark.parametrize("bounds", BOUNDS)
def test_finds_a_difference_and_its_sign(bounds: tuple[float, float] | None) -> None:
    column, treated = events((0.3, 0.6), 2_000, 0.5, np.random.default_rng(0))
    better, worse = of(column, treated, bounds=bounds), of(column, ~treated, bounds=bounds)
    assert better.low[-1] > 0.1
    assert worse.high[-1] < -0.1
    assert better.estimate[-1] == pytest.approx(-worse.estimate[-1])
    assert better.estimate[-1] == pytest.approx(
        column.values[treated].mean() - column.values[~treated].mean()
    )


@pytest.mark.parametrize("bounds", BOUNDS)
def test_intervals_shrink_with_units_and_grow_with_confidence(bounds: tuple[float, float] | None) -> None:
    column, treated = events((0.5, 0.5), 4_000, 0.5, np.random.default_rng(1))
    found, surer = of(column, treated, bounds=bounds), of(column, treated, bounds=bounds, alpha=0.005)
    width = found.high - found.low
    assert width[-1] < 0.7 * width[999]
    assert (surer.high - surer.low)[-1] > width[-1]


def test_betting_intervals_are_nested_over_time() -> None:
    column, treated = events((0.2, 0.3), 3_000, 0.1, np.random.default_rng(2))
    found = of(column, treated, propensity=0.1)
    assert (np.diff(found.low) >= 0.0).all()
    assert (np.diff(found.high) <= 0.0).all()
    assert found.low[0] >= -1.0
    assert found.high[0] <= 1.0


def test_bounds_scale_the_interval() -> None:
    column, treated = events((0.4, 0.5), 1_000, 0.5, np.random.default_rng(3))
    unit = of(column, treated)
    stars = of(Column(1.0 + 4.0 * column.values), treated, bounds=(1.0, 5.0))
    assert stars.low == pytest.approx(4.0 * unit.low)
    assert stars.high == pytest.approx(4.0 * unit.high)


def test_a_shift_does_not_move_an_asymptotic_interval() -> None:
    """A metric far from 0, as tokens are, costs nothing."""
    random = np.random.default_rng(4)
    values, treated = random.normal(size=500), random.random(500) < 0.5
    near = of(Column(values), treated, bounds=None)
    far = of(Column(values + 1e6), treated, bounds=None)
    assert far.low[-1] == pytest.approx(near.low[-1], abs=1e-6)
    assert far.high[-1] - far.low[-1] == pytest.approx(near.high[-1] - near.low[-1])
    assert far.high[-1] - far.low[-1] < 0.7


def ratios(
    units: int, propensity: float, lift: float, more: float, random: np.random.Generator
) -> tuple[Column, Mask]:
    """Tokens over requests: the arm adds `lift` per request, and `more` requests in the mean."""
    treated = random.random(units) < propensity
    counts = 1.0 + random.poisson(np.where(treated, 2.0 + more, 2.0)).astype(np.float64)
    rate = random.gamma(4.0, 0.25, units) * (1.0 + lift * treated)
    return Column(rate * counts, counts), treated


@pytest.mark.parametrize("propensity", [0.5, 0.1])
@pytest.mark.parametrize("more", [0.0, 1.0])
def test_a_ratio_metric_finds_the_difference_of_ratios(propensity: float, more: float) -> None:
    """Also where the arm changes the denominators, which a linearisation by one common mean gets wrong."""
    centres, missed = [], 0
    for run in range(60):
        found = of(
            *ratios(6_000, propensity, 0.5, more, np.random.default_rng(run)),
            propensity=propensity,
            bounds=None,
        )
        centres.append((found.low[-1] + found.high[-1]) / 2.0)
        missed += not covers(found, 0.5)
    error = np.std(centres) / np.sqrt(len(centres))
    assert abs(np.mean(centres) - 0.5) < 4.0 * error + 0.005
    assert binomtest(missed, 60, 0.05, alternative="greater").pvalue > 0.001


def test_a_ratio_metric_is_unbiased_between_equal_arms() -> None:
    """Denominators do not move it: 40 runs of equal arms, mean within four standard errors of 0."""
    centres = []
    for run in range(40):
        found = of(*ratios(2_000, 0.1, 0.0, 0.0, np.random.default_rng(run)), propensity=0.1, bounds=None)
        centres.append((found.low[-1] + found.high[-1]) / 2.0)
    assert abs(np.mean(centres)) < 4.0 * np.std(centres) / np.sqrt(40)


def test_the_estimate_of_a_ratio_is_a_difference_of_ratios() -> None:
    column, treated = ratios(300, 0.5, 0.5, 1.0, np.random.default_rng(5))
    found = of(column, treated, bounds=None)
    assert column.counts is not None
    arm, control = (column.values[rows].sum() / column.counts[rows].sum() for rows in (treated, ~treated))
    assert found.estimate[-1] == pytest.approx(arm - control)


def told(column: Column, treated: Mask) -> Enough:
    known = of(column, treated, bounds=None).enough
    assert known is not None
    return known


def test_twenty_units_with_and_without_the_event_are_needed_in_each_arm() -> None:
    treated = np.arange(400) % 2 == 0
    for flip in (0.0, 1.0):
        values = np.zeros(400)
        values[:38] = 1.0
        short = told(Column(np.abs(flip - values)), treated)
        assert short.rare[-1] == 19
        assert "19 units" in str(short.problem(399))
        values[38:40] = 1.0
        assert told(Column(np.abs(flip - values)), treated).rare[-1] == RARE_UNITS


def test_the_smallest_arm_counts() -> None:
    values = np.tile([0.0, 0.0, 1.0, 1.0], 200)
    treated = np.arange(800) < 30
    for rows in (treated, ~treated):
        known = told(Column(values), rows)
        assert known.rare[-1] == 14
        assert known.smallest[-1] == 30
        assert not known.mask.any()


def test_skewed_metrics_need_more_units() -> None:
    treated = np.arange(1_000) % 2 == 0
    values = np.linspace(0.0, 1.0, 1_000)
    assert told(Column(values), treated).mask[-1]
    values[::50] = 100.0
    late = told(Column(values), treated)
    assert late.rare[-1] > RARE_UNITS
    assert late.needed[-1] > 10.0
    values[:] = np.linspace(0.0, 1.0, 1_000)
    values[-1] = 1e6
    broken = told(Column(values), treated)
    assert not broken.mask[-1]
    assert "as skewed as this one" in str(broken.problem(999))


def skewness(influence: FloatArray) -> float:
    centred = influence - influence.mean()
    return float((centred**3).mean() / (centred**2).mean() ** 1.5)


def test_what_is_needed_follows_the_arm_that_is_more_skewed() -> None:
    """Also where only one is, or where an arm of another scale would hide it in a skewness over both."""
    random = np.random.default_rng(6)
    treated = random.random(300) < 0.3
    values = np.where(treated, random.exponential(size=300), random.normal(size=300))
    for scale in (1.0, 0.01, 100.0):
        scaled = values * np.where(treated, scale, 1.0)
        for known in (told(Column(scaled), treated), told(Column(-scaled), ~treated)):
            for n in (30, 100, 300):
                arms = [skewness(scaled[:n][rows[:n]]) for rows in (treated, ~treated)]
                needed = 5.0 * max(arms, key=abs) ** 2
                assert known.needed[n - 1] == pytest.approx(needed)
                assert known.needed_to_decide[n - 1] == pytest.approx(DECISIVE * needed)


def test_moments_of_a_ratio_are_those_of_its_influence() -> None:
    column, treated = ratios(400, 0.3, 0.5, 1.0, np.random.default_rng(13))
    assert column.counts is not None
    known = arm_moments(column.values, column.counts, treated)
    for n in (50, 400):
        rows = treated[:n]
        numerators, denominators = column.values[:n][rows], column.counts[:n][rows]
        ratio = numerators.sum() / denominators.sum()
        influence = (numerators - ratio * denominators) / denominators.mean()
        assert known.units[n - 1] == rows.sum()
        assert known.ratio[n - 1] == pytest.approx(ratio)
        assert known.variance[n - 1] == pytest.approx((influence**2).mean())
        assert known.third[n - 1] == pytest.approx((influence**3).mean())
        assert known.skewness[n - 1] == pytest.approx(skewness(influence))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_side_of_the_long_tail_is_further_away(sign: float) -> None:
    """By |g| (2 z^2 + 1) / 6 standard errors; the other side is that of a symmetric law."""
    random = np.random.default_rng(14)
    treated = random.random(3_000) < 0.2
    tail = random.exponential(size=3_000) - 1.0
    found = of(Column(sign * np.where(treated, 3.0, 0.3) * tail), treated, propensity=0.2, bounds=None)
    above, below = found.high[-1] - found.estimate[-1], found.estimate[-1] - found.low[-1]
    far, near = (above, below) if sign > 0.0 else (below, above)
    arm, control = 3.0 * tail[treated], 0.3 * tail[~treated]
    error = np.sqrt(arm.var(ddof=1) / len(arm) + control.var(ddof=1) / len(control))
    z = near / error
    mixture = GaussianMixtureCS(alpha=0.05, t_opt=2_000 / 0.2, intersect=False).fit(np.zeros(3_000))
    assert z == pytest.approx(mixture.upper_[-1] * np.sqrt(3_000))
    cubes = [((part - part.mean()) ** 3).mean() / len(part) ** 2 for part in (arm, control)]
    tail_of_both = (cubes[0] - cubes[1]) / error**3
    assert far == pytest.approx((z + tail_of_both * (2.0 * z**2 + 1.0) / 6.0) * error)


def test_deciding_waits_longer_than_showing() -> None:
    random = np.random.default_rng(15)
    treated = random.random(6_000) < 0.2
    found = of(Column(random.lognormal(size=6_000)), treated, propensity=0.2, bounds=None)
    assert found.enough is not None
    shown = int(np.argmax(found.enough.mask)) + 1
    early = found.interval(shown)
    assert early.low is not None
    assert "units in the smallest arm" in str(early.too_early)
    assert "as skewed as this one" in str(early.too_early)
    decides = [units for units in range(shown, 6_001) if found.interval(units).too_early is None]
    assert found.interval(6_000).too_early is None
    assert decides[0] > 3 * shown
    bounded = of(Column(random.random(300)), treated[:300])
    assert bounded.interval(300).too_early is None


@pytest.mark.parametrize("huge", [1e110, 1e160, 1e200])
def test_values_that_overflow_have_no_interval_but_a_reason(huge: float) -> None:
    """Their cubes do, and then their squares; and what is shown and what is told agree at every unit."""
    random = np.random.default_rng(10)
    values, treated = random.normal(size=500), random.random(500) < 0.5
    values[250] = huge
    with np.errstate(over="ignore", invalid="ignore"):
        found = of(Column(values), treated, bounds=None)
    assert found.interval(250).low is not None
    for units in (251, 300, 500):
        told_then = found.interval(units)
        assert (told_then.low, told_then.high) == (None, None)
        assert told_then.why_none == "the values are too large to compute with"


def test_bounds_that_are_no_numbers_are_never_shown() -> None:
    column, treated = events((0.3, 0.5), 300, 0.5, np.random.default_rng(11))
    found = of(column, treated)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = replace(found, low=np.full(300, -1.0), high=np.full(300, bad))
        assert spoilt.interval(300).low is None
        assert spoilt.interval(300).why_none


@pytest.mark.parametrize("value", [1e50, -1e50])
def test_the_largest_values_that_are_taken_can_be_computed_with(value: float) -> None:
    random = np.random.default_rng(12)
    values, treated = random.choice([-value, value], 2_000), random.random(2_000) < 0.5
    found = of(Column(values), treated, bounds=None).interval(2_000)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.0 < found.high


def test_constant_metrics_have_no_asymptotic_interval() -> None:
    found = of(Column(np.ones(500)), np.arange(500) % 2 == 0, bounds=None)
    assert np.isnan(found.low).all()
    assert found.interval(500).estimate == 0.0


def test_what_is_told_after_some_units() -> None:
    column, treated = events((0.5, 0.5), 400, 0.5, np.random.default_rng(7))
    found = of(column, treated, bounds=None)
    first = int(np.argmax(np.isfinite(found.low))) + 1
    early, known = found.interval(first - 1), found.interval(first)
    assert early.low is None
    assert "20 are needed" in str(early.why_none)
    assert known.why_none is None
    assert known.low == found.low[first - 1]
    assert known.confidence == pytest.approx(0.95)
    assert found.interval(0).why_none == "no units in one of the arms"


def test_only_past_units_make_an_interval() -> None:
    """Every prefix says what the whole said then."""
    column, treated = ratios(600, 0.5, 0.2, 0.0, np.random.default_rng(8))
    for plain in (False, True):
        fed = Column(column.values) if plain else column
        whole = of(fed, treated, bounds=None)
        part = of(fed.of(np.arange(600) < 350), treated[:350], bounds=None)
        assert whole.interval(350) == part.interval(350)


def test_paths_are_thinned_and_end_with_the_interval() -> None:
    column, treated = events((0.5, 0.5), 900, 0.5, np.random.default_rng(9))
    found = of(column, treated)
    path = found.path(900, 50)
    assert 40 < len(path) <= 50
    assert [point.units for point in path] == sorted({point.units for point in path})
    last = found.interval(900)
    assert (path[-1].units, path[-1].low, path[-1].high) == (900, last.low, last.high)
    assert found.path(900, 0) == ()


def test_nothing_is_known_without_units() -> None:
    for bounds in BOUNDS:
        found = of(Column(np.zeros(0)), np.zeros(0, dtype=bool), bounds=bounds)
        assert found.interval(0).estimate is None
        assert found.path(0, 10) == ()


def test_one_empty_arm_has_no_interval() -> None:
    for column in (Column(np.linspace(0.0, 1.0, 50)), Column(np.linspace(0.0, 1.0, 50), np.ones(50))):
        found = of(column, np.ones(50, dtype=bool), bounds=None)
        assert found.interval(50).why_none == "no units in one of the arms"
