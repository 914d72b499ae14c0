"""Figures with their uncertainty: by scipy, by hand, by enumeration. Error rate 0, but for one simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sglang_power.evaluation.statistics import (
    Interval,
    clustered_error,
    correlation,
    paired,
    pass_at,
    share,
    within,
)


def bounds_of(found: Interval | None) -> list[float]:
    """Both bounds of an interval that has them."""
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return [found.low, found.high]


def test_a_share_of_single_answers_has_wilsons_interval() -> None:
    """Newcombe 1998, table I: 15 of 148."""
    found = share([[1.0]] * 15 + [[0.0]] * 133)
    assert found.value == pytest.approx(15 / 148)
    assert bounds_of(found) == pytest.approx([0.0624, 0.1605], abs=5e-5)
    assert found.method == "Wilson"


def test_a_share_of_several_answers_counts_problems() -> None:
    """With as many answers to each problem it is the t interval of the problems' means."""
    groups = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
    means = np.array([2 / 3, 0.0, 1.0, 1 / 3])
    found = share(groups)
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert found.value == pytest.approx(means.mean())
    assert clustered_error(groups) == pytest.approx(float(stats.sem(means)))
    assert bounds_of(found) == pytest.approx([max(0.0, low), min(1.0, high)])


def test_copies_of_an_answer_tell_nothing_new() -> None:
    """Ten copies of each answer leave the error as it is; independent ones would divide it by 3.2."""
    single = [[1.0], [0.0], [1.0], [1.0], [0.0]]
    assert clustered_error([group * 10 for group in single]) == pytest.approx(clustered_error(single))


def test_the_error_of_uneven_groups_by_hand() -> None:
    """N = 3, m = 2/3; sums of residuals 1/3 and -1/3 (1/3 - 2/3): sqrt(2/1 * 2/9) / 3."""
    assert clustered_error([[1.0], [1.0, 0.0]]) == pytest.approx(math.sqrt(2.0 * 2.0 / 9.0) / 3.0)


def test_where_no_problems_differ_there_is_an_interval_all_the_same() -> None:
    found = share([[1.0, 1.0]] * 20)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(stats.binomtest(20, 20).proportion_ci(method="wilson").low)


def test_clustered_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """600 simulated runs of 60 problems with 4 alike answers each: at least 91.5% of the 95% intervals hold
    the mean (a false alarm in 1e4), and those that take answers for independent do not.
    """
    rng = np.random.default_rng(1)
    held = naive = 0
    for _ in range(600):
        chances = rng.beta(0.5, 0.5, size=60)
        groups = (rng.random((60, 4)) < chances[:, None]).astype(float)
        found = share(groups.tolist())
        low, high = bounds_of(found)
        held += low <= 0.5 <= high
        reach = 1.96 * math.sqrt(0.25 / groups.size)
        naive += abs(groups.mean() - 0.5) <= reach
    assert held >= 549
    assert naive < 500


# --- paired ---


def test_single_answers_are_compared_by_mcnemars_exact_test() -> None:
    """By hand: 7 against 1 discordant, two-sided 2 * (C(8,0) + C(8,1)) / 2^8."""
    first = [[1.0]] * 7 + [[0.0]] + [[1.0]] * 5 + [[0.0]] * 3
    second = [[0.0]] * 7 + [[1.0]] + [[1.0]] * 5 + [[0.0]] * 3
    found = paired(first, second)
    assert (found.test, found.better, found.worse, found.problems) == ("McNemar, exact", 7, 1, 16)
    assert found.p == pytest.approx(2 * (1 + 8) / 256)
    assert found.difference.value == pytest.approx(6 / 16)


def test_several_answers_are_compared_by_the_paired_t_test() -> None:
    first = [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    second = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    found = paired(first, second)
    oracle = stats.ttest_rel([1.0, 0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.5, 0.5, 0.0])
    assert found.test == "paired t over problems"
    assert found.p == pytest.approx(float(oracle.pvalue))
    bounds = oracle.confidence_interval(0.95)
    assert bounds_of(found.difference) == pytest.approx([bounds.low, min(1.0, bounds.high)])
    assert (found.better, found.worse) == (3, 1)


def test_differences_that_are_all_the_same_are_a_sign_test() -> None:
    """t would divide by 0 and call four problems certain; by hand 2 / 2^4."""
    found = paired([[1.0, 1.0]] * 4, [[1.0, 0.0]] * 4)
    assert found.test == "sign test, exact"
    assert found.p == pytest.approx(2 / 16)
    assert (found.difference.value, found.difference.low) == (0.5, None)


def test_samplers_that_never_differ_have_no_test() -> None:
    found = paired([[1.0], [0.0]], [[1.0, 1.0], [0.0]])
    assert (found.p, found.test) == (1.0, "none: they never differ")


def test_which_one_comes_first_changes_the_sign_only() -> None:
    first, second = [[1.0], [1.0], [0.0], [1.0]], [[0.0], [1.0], [1.0], [0.0]]
    there, back = paired(first, second), paired(second, first)
    assert there.p == back.p
    assert there.difference.value == -back.difference.value


# --- pass@k ---


@pytest.mark.parametrize(("count", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_sets_with_a_right_answer(count: int, right: int, k: int) -> None:
    answers = [1] * right + [0] * (count - right)
    sets = list(itertools.combinations(answers, k))
    assert pass_at(count, right, k) == pytest.approx(sum(map(any, sets)) / len(sets))


def test_pass_at_32_of_many_answers_is_exact() -> None:
    """The usual product of 1 - k/i overflows nowhere either; here it is integers to the end."""
    product = math.prod(1.0 - 32 / i for i in range(1000 - 3 + 1, 1001))
    assert pass_at(1000, 3, 32) == pytest.approx(1.0 - product)


# --- correlation ---


def test_single_answers_have_the_point_biserial_correlation() -> None:
    rng = np.random.default_rng(2)
    right = (rng.random(40) < 0.4).astype(float)
    log_p = rng.normal(size=40) + right
    found = correlation([[x] for x in log_p], [[y] for y in right])
    assert found is not None
    assert found.value == pytest.approx(float(stats.pointbiserialr(right, log_p).statistic))
    bounds = stats.pearsonr(log_p, right).confidence_interval(0.95)
    assert bounds_of(found) == pytest.approx([float(bounds.low), float(bounds.high)])


def test_several_answers_have_a_jackknife_over_problems() -> None:
    """By a jackknife written out: leave a problem out, Fisher's z, variance (n-1)/n * sum of squares."""
    rng = np.random.default_rng(3)
    y = [(rng.random(3) < 0.5).astype(float).tolist() for _ in range(12)]
    x = [(rng.normal(size=3) + np.array(group)).tolist() for group in y]
    found = correlation(x, y)
    assert found is not None
    parts = []
    for left in range(12):
        flat_x = [value for at, group in enumerate(x) if at != left for value in group]
        flat_y = [value for at, group in enumerate(y) if at != left for value in group]
        parts.append(math.atanh(float(stats.pearsonr(flat_x, flat_y).statistic)))
    error = math.sqrt(11 / 12 * sum((z - sum(parts) / 12) ** 2 for z in parts))
    middle = math.atanh(found.value)
    reach = float(stats.t.ppf(0.975, 11)) * error
    assert bounds_of(found) == pytest.approx([math.tanh(middle - reach), math.tanh(middle + reach)])


def test_copies_do_not_narrow_a_correlation() -> None:
    x, y = [[0.1], [0.4], [0.2], [0.9], [0.5], [0.7]], [[0.0], [1.0], [0.0], [1.0], [0.0], [1.0]]
    few = correlation([group * 2 for group in x], [group * 2 for group in y])
    many = correlation([group * 50 for group in x], [group * 50 for group in y])
    assert bounds_of(few) == pytest.approx(bounds_of(many))


def test_there_is_no_correlation_with_what_never_varies() -> None:
    assert correlation([[0.1], [0.2]], [[1.0], [1.0]]) is None
    assert correlation([], []) is None


def test_the_correlation_within_problems_forgets_how_hard_they_are() -> None:
    """Hard problems have low log p, and within each the likelier answer is the wrong one."""
    x = [[-1.0, -1.1], [-1.2, -1.3], [-9.0, -9.1], [-9.3, -9.2]]
    y = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    over, inside = correlation(x, y), within(x, y)
    assert over is not None
    assert inside is not None
    assert over.value > 0.5
    assert inside.value < 0.0
    assert within([[1.0], [2.0]], [[0.0], [1.0]]) is None
