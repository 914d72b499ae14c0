"""The test of goodness of fit of the law tests, and the p-values that decide."""

from __future__ import annotations

import numpy as np
from scipy import stats
from sglang_power.types import FloatArray

KEPT = 1e-3
"""A law is kept above this p-value (divided by the number of tests, where there are many)."""

REJECTED = 1e-6
"""A control is rejected below this one."""

LARGE = 5.0
"""Smallest expectation of a cell of its own."""


def g_test(counts: FloatArray, law: FloatArray) -> float:
    """p-value of the G-test; 0 where something was seen that the law rules out.

    Cells with an expectation below LARGE are pooled. 1 where the law leaves a single cell.
    """
    if counts[law == 0.0].any():
        return 0.0
    expected = law * counts.sum()
    large = expected >= LARGE
    seen = np.append(counts[large], counts[~large].sum())
    hoped = np.append(expected[large], expected[~large].sum())
    if hoped[-1] < LARGE:
        seen, hoped = _last_two_joined(seen), _last_two_joined(hoped)
    if len(seen) == 1:
        return 1.0
    return float(stats.power_divergence(seen, hoped * (seen.sum() / hoped.sum()), lambda_=0).pvalue)


def _last_two_joined(cells: FloatArray) -> FloatArray:
    return np.append(cells[:-2], cells[-2:].sum())
