"""Figures of answers with their uncertainty, where several answers belong to one problem. Pure.

Answers to one problem are alike, so a problem is the unit: an interval or a test counts problems, however
many answers each has (cluster-robust, Liang & Zeger 1986). With one answer each these are Wilson's interval
and McNemar's exact test. `scipy` has the laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from sglang_power.types import FloatArray

LEVEL: Final = 0.95

Test: TypeAlias = Literal[
    "McNemar, exact", "paired t over problems", "sign test, exact", "none: they never differ"
]

Groups: TypeAlias = Sequence[Sequence[float]]
"""Values of every problem's answers; no problem without one."""


class Interval(BaseModel):
    """A figure with its 95% interval.

    Args:
        value: the estimate.
        low, high: bounds; None where the data allow none.
        method: how they were computed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float | None
    high: float | None
    method: str


def share(groups: Groups) -> Interval:
    """Return the share of right answers.

    Args:
        groups: 1 for a right answer, 0 for a wrong one.

    Returns:
        Wilson's interval where each problem has one answer, or where no two problems differ (then counted
        in problems); else the mean plus and minus t, of one degree of freedom less than there are problems,
        times the cluster-robust standard error, within 0 and 1.
    """
    mean = float(np.mean([value for group in groups for value in group]))
    if max(map(len, groups)) == 1:
        return _wilson(round(math.fsum(group[0] for group in groups)), len(groups), "Wilson")
    error = clustered_error(groups)
    if len(groups) < 2 or error == 0.0:
        wilson = _wilson(round(mean * len(groups)), len(groups), "Wilson, in problems")
        return wilson.model_copy(update={"value": mean})
    reach = _t(len(groups) - 1) * error
    return Interval(value=mean, low=max(0.0, mean - reach), high=min(1.0, mean + reach), method="clustered t")


def _wilson(right: int, count: int, method: str) -> Interval:
    found = stats.binomtest(right, count).proportion_ci(LEVEL, method="wilson")
    return Interval(value=right / count, low=float(found.low), high=float(found.high), method=method)


def clustered_error(groups: Groups) -> float:
    """Return the standard error of the mean of all values: sqrt(n/(n-1) * sum_i (sum_j (y_ij - m))^2) / N.

    Args:
        groups: n of them, N values in all; 0 of fewer than two groups.
    """
    count = len(groups)
    if count < 2:
        return 0.0
    mean = float(np.mean([value for group in groups for value in group]))
    sums = np.array([math.fsum(value - mean for value in group) for group in groups])
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / sum(map(len, groups))


def _t(freedom: int) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2.0, freedom))


class Paired(BaseModel):
    """How two samplers differ on the same problems.

    Args:
        difference: mean over problems of the first one's accuracy minus the second one's, with t's interval.
        p: two-sided.
        test: McNemar's exact one, the paired t test on the problems' differences, or, where all differences
            are the same and t has no variance, the exact sign test.
        problems: that both answered.
        better, worse: problems on which the first one was right more, and less, often.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    difference: Interval
    p: float
    test: Test
    problems: int
    better: int
    worse: int


def paired(first: Groups, second: Groups) -> Paired:
    """Compare two samplers on problems that both answered.

    Args:
        first, second: 1 and 0, problem by problem, in one order; how many answers each has may differ.
    """
    gaps = np.array([np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True)])
    better, worse = int((gaps > 0.0).sum()), int((gaps < 0.0).sum())
    single = max(map(len, (*first, *second))) == 1
    test: Test
    if better + worse == 0:
        p, test = 1.0, "none: they never differ"
    elif single or float(np.ptp(gaps)) == 0.0:
        p = float(stats.binomtest(better, better + worse).pvalue)
        test = "McNemar, exact" if single else "sign test, exact"
    else:
        p, test = float(stats.ttest_1samp(gaps, 0.0).pvalue), "paired t over problems"
    return Paired(
        difference=mean_of(gaps, -1.0, 1.0), p=p, test=test, problems=len(gaps), better=better, worse=worse
    )


def mean_of(values: FloatArray, least: float, most: float) -> Interval:
    """Return the mean of independent values with t's interval; without bounds where they never vary.

    Args:
        values: one at least.
        least, most: what no value is below or above.
    """
    mean, count = float(values.mean()), len(values)
    if count < 2 or float(np.ptp(values)) == 0.0:
        return Interval(value=mean, low=None, high=None, method="t")
    reach = _t(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(value=mean, low=max(least, mean - reach), high=min(most, mean + reach), method="t")


def pass_at(count: int, right: int, k: int) -> float:
    """Return the unbiased estimate that one of k answers is right (Chen et al., arXiv 2107.03374, eq. 1).

    It is 1 - C(n-c, k) / C(n, k), the share of the sets of k answers that hold a right one.

    Args:
        count: n answers.  right: c of them.  k: at most n.
    """
    assert 1 <= k <= count, "so many answers there are"
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def correlation(x: Groups, y: Groups) -> Interval | None:
    """Return Pearson's correlation; of a number and a 0 or 1 that is the point-biserial one.

    Args:
        x, y: values of the same answers, problem by problem.

    Returns:
        Fisher's interval where each problem has one answer; else that of a jackknife that leaves out one
        problem at a time, on Fisher's z. None where one of the two never varies.
    """
    pairs = [np.array([a, b], dtype=np.float64) for a, b in zip(x, y, strict=True)]
    r = _pearson(pairs)
    if r is None:
        return None
    if max(map(len, x)) == 1:
        return _fisher(r, len(pairs))
    parts = [_pearson(pairs[:at] + pairs[at + 1 :]) for at in range(len(pairs))]
    if abs(r) >= 1.0 or len(pairs) < 3 or any(part is None or abs(part) >= 1.0 for part in parts):
        return Interval(value=r, low=None, high=None, method="jackknife over problems")
    z = np.arctanh(np.array(parts, dtype=np.float64))
    count = len(z)
    error = math.sqrt((count - 1) / count * float(((z - z.mean()) ** 2).sum()))
    low, high = np.tanh(math.atanh(r) + np.array([-1.0, 1.0]) * _t(count - 1) * error).tolist()
    return Interval(value=r, low=low, high=high, method="jackknife over problems")


def within(x: Groups, y: Groups) -> Interval | None:
    """Return the correlation inside of problems: of values minus their problem's mean. As `correlation`."""
    several = [at for at, group in enumerate(x) if len(group) > 1]
    if not several:
        return None
    return correlation([_centred(x[at]) for at in several], [_centred(y[at]) for at in several])


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _pearson(pairs: Sequence[FloatArray]) -> float | None:
    """The correlation of [2, answers] arrays side by side; None where one row never varies."""
    if not pairs:
        return None
    x, y = np.concatenate(pairs, axis=1)
    if len(x) < 2 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))


def _fisher(r: float, count: int) -> Interval:
    """Fisher's z interval of so many independent pairs."""
    if count < 4 or abs(r) >= 1.0:
        return Interval(value=r, low=None, high=None, method="Fisher")
    reach = float(stats.norm.ppf(0.5 + LEVEL / 2.0)) / math.sqrt(count - 3)
    z = math.atanh(r)
    return Interval(value=r, low=math.tanh(z - reach), high=math.tanh(z + reach), method="Fisher")
