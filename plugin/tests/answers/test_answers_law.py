"""Weighted votes estimate the answers' marginals of p^alpha on the exact language model.

Samples are drawn from a known law, their answers written in several notations, and the shares of the classes
compared with the enumerated marginals by a Wald chi-square test of the self-normalised estimate (delta
method). Family-wise error rate 1e-3 (Bonferroni over `FAMILY` tests), fixed seeds. Each control must be
rejected with p < 1e-6 at the same sample size.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

import exact
import numpy as np
import pytest
from scipy import stats
from sglang_power.answers import Choice, Classes, build_classes, choose, equivalence, power_weights
from sglang_power.engines.tabular import Prefix
from sglang_power.rng import Key
from sglang_power.types import FloatArray, ProposalLaw

MODEL = exact.NARROW
ALPHA = 2.5
SAMPLES = 20_000
KAPPAS = (1.0, 1.6, ALPHA)
FAMILY = len(KAPPAS)
LEVEL = 1e-3 / FAMILY
REJECTED = 1e-6


def answer_of(y: Prefix) -> str:
    """Half of the sum of the tokens, in a notation that depends on the sequence."""
    total = sum(y)
    return [f"{total}/2", f"{total / 2}", f"{50 * total}%"][len(y) % 3]


@functools.cache
def log_likelihoods(kappa: float) -> FloatArray:
    """[2, sequences] log p and log q of every sequence, q at inverse temperature kappa."""
    scored = [MODEL.score(y, ProposalLaw(kappa)) for y in MODEL.sequences()]
    return np.array([[y.log_p.sum() for y in scored], [y.log_q.sum() for y in scored]])


def draw(kappa: float, seed: int, count: int = SAMPLES) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of sequences drawn from q."""
    q = np.exp(log_likelihoods(kappa)[1])
    return np.random.default_rng(seed).choice(len(q), count, p=q / q.sum())


def marginals(alpha: float) -> dict[str, float]:
    """The exact law of the answers under p^alpha, by half sum."""
    law: dict[str, float] = {}
    for y, mass in zip(MODEL.sequences(), MODEL.power_law(alpha), strict=True):
        law[str(sum(y) / 2)] = law.get(str(sum(y) / 2), 0.0) + float(mass)
    return law


def vote(indices: Sequence[int], log_w: FloatArray) -> tuple[Classes, Choice]:
    sequences = MODEL.sequences()
    answers = [answer_of(sequences[i]) for i in indices]
    classes = asyncio.run(build_classes(answers, equivalence("number")))
    return classes, choose(classes, log_w, Key(1))


def wald(labels: FloatArray, log_w: FloatArray, shares: FloatArray, law: FloatArray) -> float:
    """p-value of shares = law, with the covariance of a ratio of means."""
    w = np.exp(log_w - log_w.max())
    indicator = labels[:, None] == np.arange(len(law))
    influence = w[:, None] * (indicator - shares) / w.sum()
    difference = (shares - law)[:-1]
    covariance = (influence.T @ influence)[:-1, :-1]
    return float(stats.chi2.sf(difference @ np.linalg.solve(covariance, difference), len(law) - 1))


def p_value(indices: Sequence[int], log_w: FloatArray, alpha: float) -> float:
    """Of the running code's class totals against the marginals of p^alpha."""
    classes, choice = vote(indices, log_w)
    law = marginals(alpha)
    half_sums = [str(sum(MODEL.sequences()[indices[c.members[0]]]) / 2) for c in classes.classes]
    assert set(half_sums) == set(law), "every answer is seen, and notations are merged"
    labels = np.empty(len(indices))
    for label, one in enumerate(classes.classes):
        labels[list(one.members)] = label
    totals = np.exp(np.array(choice.totals) - max(choice.totals))
    return wald(labels, log_w, totals / totals.sum(), np.array([law[h] for h in half_sums]))


def weights(indices: Sequence[int], kappa: float) -> FloatArray:
    log_p, log_q = log_likelihoods(kappa)[:, indices]
    return power_weights(ALPHA, log_p.tolist(), log_q.tolist())


@pytest.mark.parametrize("kappa", KAPPAS)
def test_power_weights_give_the_marginals_of_p_to_the_alpha(kappa: float) -> None:
    indices = draw(kappa, seed=11).tolist()
    p = p_value(indices, weights(indices, kappa), ALPHA)
    print(f"kappa={kappa}: p={p:.3g}")
    assert p > LEVEL


def test_draws_from_p_get_p_to_the_alpha_less_one() -> None:
    indices = draw(1.0, seed=11).tolist()
    log_p = log_likelihoods(1.0)[0][indices]
    np.testing.assert_allclose(weights(indices, 1.0), (ALPHA - 1.0) * log_p)


@pytest.mark.parametrize("kappa", [1.0, 1.6])
@pytest.mark.parametrize("control", ["unweighted", "p^alpha"])
def test_control_other_weights_are_rejected(kappa: float, control: str) -> None:
    indices = draw(kappa, seed=11).tolist()
    log_p = log_likelihoods(kappa)[0][indices]
    log_w = np.zeros(len(indices)) if control == "unweighted" else ALPHA * log_p
    p = p_value(indices, log_w, ALPHA)
    print(f"kappa={kappa}, {control}: p={p:.3g}")
    assert p < REJECTED


def test_what_the_controls_estimate_from_draws_of_p_is_another_power() -> None:
    indices = draw(1.0, seed=12).tolist()
    log_p = log_likelihoods(1.0)[0][indices]
    assert p_value(indices, np.zeros(len(indices)), 1.0) > LEVEL
    assert p_value(indices, ALPHA * log_p, ALPHA + 1.0) > LEVEL


def test_the_wald_test_keeps_its_level() -> None:
    """Samples of the law itself: one in twenty falls below 0.05, give or take (error rate 1e-4)."""
    law = marginals(ALPHA)
    names = {name: label for label, name in enumerate(law)}
    label_of = np.array([names[str(sum(y) / 2)] for y in MODEL.sequences()])
    found = []
    for seed in range(400):
        indices = draw(1.0, seed, count=4000)
        log_w = (ALPHA - 1.0) * log_likelihoods(1.0)[0][indices]
        labels = label_of[indices]
        w = np.exp(log_w)
        shares = np.bincount(labels, w, minlength=len(law)) / w.sum()
        found.append(wald(labels, log_w, shares, np.array(list(law.values()))))
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], len(found), 0.05)
    print(low, high, sum(p < 0.05 for p in found))
    assert low <= sum(p < 0.05 for p in found) <= high


def test_the_most_weighted_answer_is_the_mode_of_the_power_law() -> None:
    indices = draw(1.0, seed=13).tolist()
    classes, choice = vote(indices, weights(indices, 1.0))
    law = marginals(ALPHA)
    mode = max(law, key=lambda name: law[name])
    assert choice.chosen is not None
    assert str(sum(MODEL.sequences()[indices[classes.classes[choice.chosen].members[0]]]) / 2) == mode
    assert choice.ess is not None
    assert 100 < choice.ess < SAMPLES
