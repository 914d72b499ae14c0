"""The sequential test of the split: its false alarms, what it finds, and that slices cost none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betaln, gammaln
from scipy.stats import binomtest, chisquare
from sglang_power.experiments.analysis.srm import IMPOSSIBLE, srm

HALVES = {"plain": 5_000, "power": 5_000}
THREE = {"plain": 5_000, "matched": 3_000, "power": 2_000}


def split(weights: dict[str, float], units: int, seed: int) -> list[str]:
    shares = np.array(list(weights.values())) / sum(weights.values())
    chosen = np.random.default_rng(seed).choice(len(shares), size=units, p=shares)
    names = list(weights)
    return [names[i] for i in chosen]


def test_two_arms_are_the_dirichlet_multinomial_test() -> None:
    """e = B(1 + n_1, 1 + n_2) / B(1, 1) / (p_1^n_1 p_2^n_2), at its largest."""
    arms = ["plain"] * 3 + ["power"] * 40
    logs = [betaln(1 + min(n, 3), 1 + max(n - 3, 0)) + n * math.log(2.0) for n in range(len(arms) + 1)]
    assert srm(arms, HALVES).log10_e == pytest.approx(max(logs) / math.log(10.0))
    n_1, n_2 = 3, 40
    dirichlet = gammaln(2) + gammaln(1 + n_1) + gammaln(1 + n_2) - gammaln(2 + n_1 + n_2)
    assert logs[-1] == pytest.approx(dirichlet + (n_1 + n_2) * math.log(2.0))


@pytest.mark.parametrize("weights", [HALVES, THREE, {"plain": 9_900, "power": 100}], ids=str)
def test_false_alarms_are_rare_at_every_look(weights: dict[str, int]) -> None:
    """Red at e >= 1,000 promises 1/1,000; at e >= 20 it promises 1/20, where 400 runs can tell."""
    found = [srm(split(dict(weights), 1_500, seed), weights) for seed in range(400)]
    assert not any(one.red for one in found)
    alarms = sum(one.log10_e >= math.log10(20.0) for one in found)
    assert binomtest(alarms, 400, 0.05, alternative="greater").pvalue > 0.001


def test_a_peeked_chi_square_test_would_raise_them() -> None:
    """The control of the test above: p < 0.05 at some of 150 looks."""
    alarms = 0
    for seed in range(100):
        power = np.cumsum([arm == "power" for arm in split(dict(HALVES), 1_500, seed)])
        looks = np.arange(10, 1_501, 10)
        pairs = ([power[n - 1], n - power[n - 1]] for n in looks)
        alarms += any(chisquare(pair).pvalue < 0.05 for pair in pairs)
    assert binomtest(alarms, 100, 0.05, alternative="greater").pvalue < 1e-6


def test_a_loss_of_some_units_of_one_arm_is_found() -> None:
    """A slow arm that loses 6% of its units: 50/50 becomes 51.5/48.5; and 53/47, much sooner."""
    assert srm(split({"plain": 0.53, "power": 0.47}, 8_000, 0), HALVES).red
    assert srm(split({"plain": 0.515, "power": 0.485}, 30_000, 0), HALVES).red
    assert not srm(split({"plain": 0.5, "power": 0.5}, 30_000, 0), HALVES).red


def test_a_loss_of_one_of_three_arms_is_found() -> None:
    assert srm(split({"plain": 0.5, "matched": 0.3, "power": 0.16}, 6_000, 0), THREE).red


def test_it_stays_red() -> None:
    """The largest e-value counts: units that arrive later do not heal the ratio."""
    broken = ["plain"] * 60
    assert srm(broken, HALVES).red
    assert srm([*broken, *["power"] * 60], HALVES).red


def grown(arms: list[str], slices: dict[str, list[str]]) -> list[float]:
    """What was known after every unit."""
    return [
        srm(arms[:n], HALVES, {name: values[:n] for name, values in slices.items()}).log10_e
        for n in range(1, len(arms) + 1)
    ]


def test_a_value_that_comes_later_does_not_change_the_past() -> None:
    """The ratio of /generate is wrong and known to be; then come the first stream and the second model."""
    broken = ["plain", "power"] * 20 + ["plain"] * 20
    slices = {
        "endpoint": ["chat"] * 40 + ["generate"] * 22,
        "stream": ["false"] * 61 + ["true"],
        "model": ["m"] * 60 + ["other"] * 2,
    }
    evidence = grown([*broken, "power", "power"], slices)
    assert evidence[59] > 3.0
    assert (np.diff(evidence) >= -1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_evidence_never_falls(seed: int) -> None:
    random = np.random.default_rng([seed, 2])
    models = [f"m{i}" for i in np.minimum(random.geometric(0.2, 120), np.arange(120) // 15 + 1)]
    streams = [str(i > 70) for i in range(120)]
    evidence = grown(split({"plain": 0.7, "power": 0.3}, 120, seed), {"stream": streams, "model": models})
    assert (np.diff(evidence) >= -1e-9).all()
    assert evidence[-1] > evidence[0]


def test_slices_raise_no_more_false_alarms() -> None:
    """Ten slices of one attribute and two of another, equal arms; the largest of them alone would."""
    alarms = naive = 0
    for seed in range(400):
        random = np.random.default_rng([seed, 1])
        models = [f"m{i}" for i in random.integers(0, 10, 800)]
        streams = [str(bool(i)) for i in random.integers(0, 2, 800)]
        found = srm(split(dict(HALVES), 800, seed), HALVES, {"model": models, "stream": streams})
        alarms += found.log10_e >= math.log10(20.0)
        naive += max(found.slices.values()) >= math.log10(20.0)
        assert len(found.slices) == 12
    assert binomtest(alarms, 400, 0.05, alternative="greater").pvalue > 0.001
    assert binomtest(naive, 400, 0.05, alternative="greater").pvalue < 0.001


def test_a_loss_within_one_slice_is_found() -> None:
    """Streams lose units of one arm, the rest makes up for it: the whole looks right."""
    stream = split({"plain": 0.65, "power": 0.35}, 2_000, 0)
    rest = split({"plain": 0.35, "power": 0.65}, 2_000, 1)
    arms = [arm for pair in zip(stream, rest, strict=True) for arm in pair]
    streamed = ["true", "false"] * 2_000
    assert not srm(arms, HALVES).red
    found = srm(arms, HALVES, {"stream": streamed})
    assert found.red
    assert found.slices.keys() == {"stream=true", "stream=false"}
    assert min(found.slices.values()) > 3.0


def test_an_attribute_with_one_value_is_not_shown() -> None:
    """It has its share from the first unit on, half of the half: a second value does not change the past."""
    arms = split({"plain": 0.6, "power": 0.4}, 500, 0)
    found, alone = srm(arms, HALVES, {"model": ["one"] * 500}), srm(arms, HALVES)
    assert found.log10_e == pytest.approx(math.log10(0.75 * 10.0**alone.log10_e + 0.25))
    assert found.model_copy(update={"log10_e": alone.log10_e}) == alone


def test_what_is_counted_and_expected() -> None:
    arms = split(dict(THREE), 1_000, 0)
    found = srm(arms, THREE)
    assert found.units == {name: arms.count(name) for name in THREE}
    assert found.expected == {"plain": 0.5, "matched": 0.3, "power": 0.2}
    assert found.chi_square_p == pytest.approx(
        chisquare(list(found.units.values()), [500.0, 300.0, 200.0]).pvalue
    )


def test_a_unit_in_an_arm_without_weight_is_red() -> None:
    weights = {"plain": 10_000, "power": 0}
    assert not srm(["plain"] * 500, weights).red
    assert srm(["plain"] * 500, weights).chi_square_p is None
    found = srm([*["plain"] * 500, "power"], weights)
    assert (found.red, found.log10_e) == (True, IMPOSSIBLE)


def test_nothing_is_known_without_units() -> None:
    found = srm([], HALVES, {"model": []})
    assert (found.log10_e, found.red, found.chi_square_p, found.slices) == (0.0, False, None, {})
