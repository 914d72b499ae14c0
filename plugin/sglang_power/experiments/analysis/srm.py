"""Sample ratio mismatch: whether units arrive in the arms as they were assigned, looked at after every unit.

A mismatch means that something between assignment and record loses units of one arm, and that no metric can
be trusted. Knows no metrics and nothing that happened after the assignment.

Each arm against the rest is a Bernoulli e-process with a uniform mixture (ville); their mean is an e-process
of the whole split, so the chance that it ever reaches 1,000 is at most 1/1,000. With two arms it is the
Dirichlet-multinomial test of Lindon and Malek 2022, "Anytime-valid inference for multinomial count data";
with more it costs at most a factor of the number of arms in evidence, and no closed form of our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import chisquare
from ville import BernoulliTest

from sglang_power.experiments.analysis.observations import Mask
from sglang_power.experiments.analysis.results import Srm
from sglang_power.types import FloatArray

Names: TypeAlias = NDArray[np.object_]

RED = 3.0
"""log10 of the e-value at which the ratio is called wrong."""

IMPOSSIBLE = 300.0
"""log10 of the e-value of a unit in an arm of weight 0; finite, because JSON has no infinity."""


def srm(
    arms: Sequence[str], weights: Mapping[str, int], slices: Mapping[str, Sequence[str]] | None = None
) -> Srm:
    """The sequential test of the declared weights, over all units and within slices.

    Half of the evidence comes from all units, half from slices; the j-th slice to appear has the share
    1 / (j (j + 1)) of that half, and shares of slices that have not appeared stay at 1. This weighted mean
    is one e-process however many slices there are: more of them raise no false alarm, and none that comes
    later changes what was known before. So an attribute is a slice from its first value on, though one that
    holds all units is not shown.

    Args:
        arms: [units] of every enrolled unit, once, in order of first enrolment.
        weights: arm -> basis points.
        slices: attribute -> [units] its value, known before the assignment.
    """
    total = sum(weights.values())
    expected = {arm: weight / total for arm, weight in weights.items()}
    units = {arm: sum(assigned_arm == arm for assigned_arm in arms) for arm in weights}
    assigned: Names = np.asarray(arms, dtype=object)
    everyone = _log_e(assigned, expected)
    masks = _masks(slices or {})
    parts = {name: _within(mask, assigned, expected) for name, mask in masks.items()}
    log10_e = _largest(_combined(everyone, list(parts.values())) if parts else everyone)
    return Srm(
        units=units,
        expected=expected,
        log10_e=log10_e,
        red=log10_e >= RED,
        chi_square_p=_chi_square_p(units, expected),
        slices={name: _largest(log_e) for name, log_e in parts.items() if not masks[name].all()},
    )


def _log_e(assigned: Names, expected: Mapping[str, float]) -> FloatArray:
    """[units] log e-value of the split after each unit."""
    shares = {arm: share for arm, share in expected.items() if 0.0 < share < 1.0}
    tests = [BernoulliTest(p0=share).fit(assigned == arm).log_e_values_ for arm, share in shares.items()]
    log_e = logsumexp(tests, axis=0) - math.log(len(tests)) if tests else np.zeros(len(assigned))
    allowed = [arm for arm, share in expected.items() if share > 0.0]
    impossible = np.maximum.accumulate(~np.isin(assigned, allowed))
    return np.where(impossible, IMPOSSIBLE * math.log(10.0), log_e)


def _masks(slices: Mapping[str, Sequence[str]]) -> dict[str, Mask]:
    """Slice -> [units] who is in it; slices in order of their first unit, and of their attributes."""
    masks: dict[str, Mask] = {}
    for attribute, values in slices.items():
        column = np.asarray(values, dtype=object)
        masks |= {f"{attribute}={value}": column == value for value in dict.fromkeys(values)}
    order = sorted(masks, key=lambda name: int(np.argmax(masks[name])))
    return {name: masks[name] for name in order}


def _within(mask: Mask, assigned: Names, expected: Mapping[str, float]) -> FloatArray:
    """[units] log e-value of a slice after each of all units."""
    return np.append(0.0, _log_e(assigned[mask], expected))[np.cumsum(mask)]


def _combined(everyone: FloatArray, parts: Sequence[FloatArray]) -> FloatArray:
    """The weighted mean; see srm."""
    shares = [1.0 / (j * (j + 1)) for j in range(1, len(parts) + 1)]
    unseen = np.zeros_like(everyone)
    weights = np.array([1.0, *shares, 1.0 - sum(shares)]) / 2.0
    combined: FloatArray = logsumexp([everyone, *parts, unseen], axis=0, b=weights[:, None])
    return combined


def _largest(log_e: FloatArray) -> float:
    """log10 of the largest e-value so far; before any unit it is 1."""
    return min(IMPOSSIBLE, float(np.max(log_e, initial=0.0)) / math.log(10.0))


def _chi_square_p(units: Mapping[str, int], expected: Mapping[str, float]) -> float | None:
    total = sum(units.values())
    cells = [(units[arm], share * total) for arm, share in expected.items() if share > 0.0]
    if not total or len(cells) < 2:
        return None
    return float(chisquare(*zip(*cells, strict=True)).pvalue)
