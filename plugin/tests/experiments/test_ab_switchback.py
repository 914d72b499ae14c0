"""Switchbacks: the randomisation interval against scipy's test, its coverage, looks and carry-over."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from ab_experiments import THUMBS, experiment
from scipy.stats import binomtest, permutation_test
from sglang_power.experiments.analysis import wording
from sglang_power.experiments.analysis.effects import effects_at, effects_of
from sglang_power.experiments.analysis.observations import Column, Mask, Observations
from sglang_power.experiments.analysis.results import Interval
from sglang_power.experiments.analysis.switchback import (
    alpha_at,
    carry_over_p,
    judge,
    looks,
    randomisation_interval,
    residuals,
    window_values,
)
from sglang_power.experiments.analysis.verdict import beyond, within
from sglang_power.types import FloatArray

RUNS = 200
PLAN = {"pool": "gpus", "window_s": 600.0}


def windows(
    count: int, effect: float, seed: int, *, propensity: float = 0.5, carried: float = 0.0
) -> tuple[FloatArray, Mask]:
    """Load that swings with the hour and with the day before, an effect, and what is carried over."""
    random = np.random.default_rng(seed)
    treated = random.random(count) < propensity
    noise = np.convolve(random.normal(size=count + 4), np.full(5, 0.4), mode="valid")
    load = np.sin(np.arange(count) / 7.0) + noise
    before = np.append(treated[0], treated[:-1])
    return load + effect * treated + carried * before, treated


def covers(ends: tuple[float, float] | None, truth: float) -> bool:
    assert ends is not None
    return ends[0] <= truth <= ends[1]


@pytest.mark.parametrize("propensity", [0.5, 0.2])
def test_covers_although_windows_are_not_alike(propensity: float) -> None:
    """Fails where a binomial test at 0.001 rejects "misses in at most 5% of the runs"."""
    missed, runs = 0, 800
    for seed in range(runs):
        values, treated = windows(60, 1.5, seed, propensity=propensity)
        missed += not covers(randomisation_interval(values, treated, 0.05, tail=5), 1.5)
    assert binomtest(missed, runs, 0.05, alternative="greater").pvalue > 0.001
    # It is not just wide.
    assert binomtest(missed, runs, 0.05, alternative="less").pvalue > 0.001


def test_the_ends_are_where_scipys_test_begins_to_reject() -> None:
    """By another route: the effect is taken off, and scipy permutes."""
    values, treated = windows(50, 1.0, 3)
    ends = randomisation_interval(values, treated, 0.05, tail=100)
    assert ends is not None

    def p_value(effect: float) -> float:
        test = permutation_test(
            (values[treated] - effect, values[~treated]),
            lambda arm, control, axis: arm.mean(axis=axis) - control.mean(axis=axis),
            n_resamples=4_000,
            vectorized=True,
            rng=np.random.default_rng(1),
        )
        return float(test.pvalue)

    margin = 0.15 * (ends[1] - ends[0])
    for end, outward in ((ends[0], -margin), (ends[1], margin)):
        assert p_value(end + outward) < 0.05 < p_value(end - outward)


def test_the_arms_swap_the_sign() -> None:
    values, treated = windows(80, 2.0, 4)
    one, other = (randomisation_interval(values, rows, 0.05) for rows in (treated, ~treated))
    assert one is not None
    assert other is not None
    assert one == pytest.approx((-other[1], -other[0]), abs=0.1)
    assert one[0] > 0.0


def test_too_few_windows_of_an_arm_exclude_nothing() -> None:
    values = np.linspace(0.0, 1.0, 40)
    assert randomisation_interval(values, np.arange(40) == 0, 0.02) is None
    found, _ = judge(Column(values), np.arange(40) == 0, min_windows=40, alpha=0.05)
    assert "too few of 40 windows" in str(found.why_none)


def test_looks_double_and_spend_alpha_once() -> None:
    assert looks(39, 40) == []
    assert looks(40, 40) == [40]
    assert looks(400, 40) == [40, 80, 160, 320]
    assert math.fsum(alpha_at(k, 0.05) for k in range(1, 1_000)) < 0.05
    assert alpha_at(1, 0.05) == 0.025


def test_it_is_judged_at_planned_looks_only() -> None:
    values, treated = windows(100, 2.0, 5)

    def after(count: int) -> Interval:
        return judge(Column(values[:count]), treated[:count], min_windows=40, alpha=0.05)[0]

    assert after(39).why_none == "not enough data: 39 windows, 40 are needed"
    assert after(40).low is not None
    assert after(79) == after(40)
    assert after(80) != after(40)
    path = judge(Column(values), treated, min_windows=40, alpha=0.05)[1]
    assert [point.units for point in path] == [40, 80]
    assert (path[-1].low, path[-1].high) == (after(80).low, after(80).high)


@pytest.mark.long
def test_looking_at_all_planned_looks_keeps_alpha() -> None:
    """The union over the looks at 40, 80 and 160 windows; unspent alpha at each would exceed it."""
    missed = naive = 0
    for seed in range(RUNS):
        values, treated = windows(160, 0.0, seed)
        for k, look in enumerate(looks(160, 40), start=1):
            rows = values[:look], treated[:look]
            if not covers(randomisation_interval(*rows, alpha_at(k, 0.05), tail=5), 0.0):
                missed += 1
                break
        ends = [randomisation_interval(values[:n], treated[:n], 0.05, tail=5) for n in range(40, 161, 10)]
        naive += not all(covers(end, 0.0) for end in ends)
    assert binomtest(missed, RUNS, 0.05, alternative="greater").pvalue > 0.001
    assert binomtest(naive, RUNS, 0.05, alternative="greater").pvalue < 0.001


def test_a_ratio_of_windows_is_a_difference_of_ratios() -> None:
    random = np.random.default_rng(6)
    treated = random.random(200) < 0.5
    counts = 10.0 + random.poisson(40.0, 200).astype(np.float64)
    column = Column((5.0 + 1.0 * treated) * counts, counts)
    found, _ = judge(column, treated, min_windows=40, alpha=0.05)
    assert found.estimate == pytest.approx(1.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0 < found.high
    assert found.high - found.low < 0.2
    assert np.isfinite(residuals(Column(np.zeros(3), np.zeros(3)))).all()


def tokens_of_windows(
    count: int, share: float, seed: int, *, propensity: float = 0.5, effect: float = 300.0
) -> tuple[Column, Mask]:
    """700 tokens a request, and the effect with the arm, which completes a share of the requests."""
    random = np.random.default_rng(seed)
    treated = random.random(count) < propensity
    load = random.gamma(20.0, 1.0 / 20.0, count)
    requests = random.poisson(np.where(treated, 400.0 * share, 400.0) * load).astype(np.float64)
    tokens = (700.0 + effect * treated) * requests * random.normal(1.0, 0.1, count)
    return Column(tokens, requests), treated


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 2.0])
def test_the_interval_is_about_the_estimate_whatever_the_arm_does_to_the_requests(share: float) -> None:
    """Fails where a binomial test at 0.001 rejects "misses in at most 5% of the runs".

    Control: with one mean of requests for both arms, all runs miss where the arm completes a tenth of them.
    """
    missed = common = 0
    for seed in range(RUNS):
        column, treated = tokens_of_windows(60, share, seed)
        values = window_values(column, treated)
        sides = [column.values[rows].sum() / requests_of(column)[rows].sum() for rows in (treated, ~treated)]
        assert values[treated].mean() - values[~treated].mean() == pytest.approx(sides[0] - sides[1])
        missed += not covers(randomisation_interval(values, treated, 0.05, tail=5), 300.0)
        naive = residuals(column) / requests_of(column).mean()
        common += not covers(randomisation_interval(naive, treated, 0.05, tail=5), 300.0)
    assert binomtest(missed, RUNS, 0.05, alternative="greater").pvalue > 0.001
    assert share != 0.1 or common == RUNS


def test_fewer_or_more_requests_alone_are_no_effect_on_their_tokens() -> None:
    """A fifth of the windows has the arm, which completes twice as many; error rate as above.

    Control: with one factor for all windows, whose arms then differ in spread, the same test fails.
    """
    missed = one_factor = 0
    for seed in range(RUNS):
        column, treated = tokens_of_windows(60, 2.0, seed, propensity=0.2, effect=0.0)
        values = window_values(column, treated)
        missed += not covers(randomisation_interval(values, treated, 0.05, tail=5), 0.0)
        ends = randomisation_interval(residuals(column), treated, 0.05, tail=5)
        one_factor += not covers(ends, 0.0)
    assert binomtest(missed, RUNS, 0.05, alternative="greater").pvalue > 0.001
    assert binomtest(one_factor, RUNS, 0.05, alternative="greater").pvalue < 0.001


def requests_of(column: Column) -> FloatArray:
    assert column.counts is not None
    return column.counts


def test_a_slow_arm_breaks_the_guardrail_of_tokens() -> None:
    """300 tokens more a request, margin 200: the arm's few requests must not make them look like 100."""
    column, treated = tokens_of_windows(160, 0.1, 1)
    tested = experiment(
        kind="switchback",
        unit=None,
        switchback=PLAN,
        metrics={"tokens": {"source": "tokens"}, "thumbs": THUMBS},
        guardrails=[{"metric": "tokens", "margin": 200.0}],
    )
    arms = np.where(treated, "power", "plain").tolist()
    columns = {"tokens": column, "thumbs": Column(np.zeros(160))}
    effects = effects_of(Observations(arms, columns, {"plain": 5_000, "power": 5_000}), tested)
    (guardrail,) = [effect for effect in effects if effect.role == "guardrail"]
    assert beyond(guardrail)
    assert not within(guardrail)


def test_windows_without_requests_in_an_arm_have_no_interval() -> None:
    treated = np.arange(40) % 2 == 0
    column = Column(np.where(treated, 0.0, 5.0), np.where(treated, 0.0, 1.0))
    assert judge(column, treated, min_windows=40, alpha=0.05)[0].why_none == "no windows in one of the arms"


def test_carry_over_is_found_and_rarely_invented() -> None:
    """Without it p < 0.05 in at most 5% of the runs, whatever the arm's effect; with it nearly always."""
    invented = found = 0
    for seed in range(100):
        for carried in (0.0, 1.5):
            values, treated = windows(160, 6.0, seed, carried=carried)
            p = carry_over_p(Column(values[1:]), treated[1:], treated[:-1])
            assert p is not None
            if carried:
                found += p < 0.05
            else:
                invented += p < 0.05
    assert binomtest(invented, 100, 0.05, alternative="greater").pvalue > 0.001
    assert found > 90


def test_carry_over_needs_windows_after_both_arms() -> None:
    treated = np.array([True, False] * 20)
    assert carry_over_p(Column(np.linspace(0.0, 1.0, 40)), treated, ~treated) is None


def observed(values: FloatArray, treated: Mask) -> Observations:
    arms = np.where(treated, "power", "plain").tolist()
    return Observations(arms, {"thumbs": Column(values)}, {"plain": 5_000, "power": 5_000})


def test_effects_of_a_switchback() -> None:
    tested = experiment(kind="switchback", unit=None, switchback=PLAN, metrics={"thumbs": THUMBS})
    values, treated = windows(90, 1.0, 7)
    (effect,) = effects_of(observed(values, treated), tested)
    assert effect.interval.method == "randomisation"
    assert effect.interval == judge(Column(values), treated, min_windows=40, alpha=0.05)[0]
    assert [point.units for point in effect.path] == [40, 80]
    assert effect.units == 90
    assert effect.carry_over_p == carry_over_p(Column(values[1:80]), treated[1:80], treated[:79])
    assert wording.basis(effect) == (
        "95% randomisation interval of the difference in the mean over windows, each counting once, while it "
        "stays the same; as of the planned look at 80 of 90 windows"
    )


def test_carry_over_is_judged_when_the_interval_is() -> None:
    """At planned looks only: between them p stays, before the first there is none."""
    tested = experiment(kind="switchback", unit=None, switchback=PLAN, metrics={"thumbs": THUMBS})
    values, treated = windows(90, 1.0, 7)
    looks = [39, 40, 79, 80, 90]
    found = [effect.carry_over_p for (effect,) in effects_at(observed(values, treated), tested, looks)]
    assert found[0] is None
    assert found[1] == found[2] != found[3] == found[4]


def test_a_window_without_traffic_has_no_neighbours() -> None:
    """Of 120 windows those of some nights have no row: rows on both sides of a gap are no neighbours."""
    tested = experiment(kind="switchback", unit=None, switchback=PLAN, metrics={"thumbs": THUMBS})
    values, treated = windows(120, 1.0, 7)
    seen = np.arange(120) % 12 < 8
    rows = replace(observed(values[seen], treated[seen]), windows=np.flatnonzero(seen).tolist())
    (effect,) = effects_of(rows, tested)
    neighbours = np.flatnonzero(seen[1:] & seen[:-1]) + 1
    told = carry_over_p(Column(values[neighbours]), treated[neighbours], treated[neighbours - 1])
    assert effect.units == 80
    assert len(neighbours) == 70
    assert effect.carry_over_p == told
    (blind,) = effects_of(replace(rows, windows=None), tested)
    assert blind.carry_over_p != told


def test_the_same_report_twice() -> None:
    values, treated = windows(90, 1.0, 8)
    tested = experiment(kind="switchback", unit=None, switchback=PLAN, metrics={"thumbs": THUMBS})
    assert effects_of(observed(values, treated), tested) == effects_of(observed(values, treated), tested)
