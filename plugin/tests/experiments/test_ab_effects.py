"""Effects: which pairs, whose alpha, what chance, and the same at every look."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from ab_experiments import PLAIN, POWER, THUMBS, experiment, weighted
from sglang_power.experiments.analysis.effects import Effort, effects_at, effects_of, estimand, judged
from sglang_power.experiments.analysis.observations import Column, Observations
from sglang_power.experiments.analysis.results import Effect
from sglang_power.experiments.model import Experiment

METRICS: dict[str, Any] = {
    "thumbs": THUMBS,
    "errors": {"source": "outcome", "outcomes": ["error"]},
    "tokens": {"source": "tokens"},
}
ROUGH = Effort(resolution=100)


def several() -> Experiment:
    """Two controls, two arms, one metric per role."""
    matched = {**PLAIN, "name": "matched", "control": "compute_matched", "weight": 1_000}
    arms = [
        {**PLAIN, "weight": 4_000},
        matched,
        {**POWER, "weight": 4_000},
        {**POWER, "name": "cot", "weight": 1_000},
    ]
    return experiment(
        arms=arms, metrics=METRICS, guardrails=[{"metric": "errors", "margin": 0.02}], pool="separate"
    )


def observed(weights: Mapping[str, int], units: int = 3_000, seed: int = 0) -> Observations:
    """Treated units give more thumbs and use more tokens; errors do not differ."""
    random = np.random.default_rng(seed)
    names = list(weights)
    drawn = random.choice(len(names), size=units, p=np.array(list(weights.values())) / 10_000)
    better = np.array([name in ("power", "cot") for name in names])[drawn]
    counts = 1.0 + random.poisson(2.0, units).astype(np.float64)
    columns = {
        "thumbs": Column((random.random(units) < 0.3 + 0.3 * better).astype(np.float64)),
        "errors": Column((random.random(units) < 0.1).astype(np.float64)),
        "tokens": Column(counts * (100.0 + 50.0 * better) * random.gamma(4.0, 0.25, units), counts),
    }
    return Observations([names[i] for i in drawn], columns, weights)


def by_pair(effects: tuple[Effect, ...], metric: str) -> dict[tuple[str, str], Effect]:
    return {(one.arm, one.control): one for one in effects if one.metric == metric}


def test_every_metric_of_every_arm_against_every_control() -> None:
    tested = several()
    effects = effects_of(observed(tested.weights(0)), tested)
    pairs = {("power", "plain"), ("power", "matched"), ("cot", "plain"), ("cot", "matched")}
    for metric, role, threshold, direction in (
        ("thumbs", "primary", 0.01, "higher"),
        ("errors", "guardrail", 0.02, "lower"),
        ("tokens", "shown", None, "lower"),
    ):
        found = by_pair(effects, metric)
        assert found.keys() == pairs
        assert {(one.role, one.threshold, one.direction) for one in found.values()} == {
            (role, threshold, direction)
        }
    assert len(effects) == 12


def test_alpha_is_split_over_the_pairs() -> None:
    tested = several()
    effects = effects_of(observed(tested.weights(0), 200), tested)
    assert {one.interval.confidence for one in effects} == {1.0 - 0.05 / 4}


def test_the_methods_follow_the_bounds() -> None:
    tested = several()
    effects = effects_of(observed(tested.weights(0), 200), tested)
    assert {(one.metric, one.interval.method) for one in effects} == {
        ("thumbs", "betting"),
        ("errors", "betting"),
        ("tokens", "asymptotic"),
    }


def test_effects_are_arm_minus_control_by_their_own_chance() -> None:
    """power is 80% of its pair with matched, 50% of that with plain; a wrong chance would bias both."""
    tested = several()
    effects = effects_of(observed(tested.weights(0), 12_000), tested)
    for pair in (("power", "plain"), ("power", "matched"), ("cot", "plain")):
        thumbs, tokens = (by_pair(effects, metric)[pair].interval for metric in ("thumbs", "tokens"))
        assert thumbs.low is not None
        assert thumbs.high is not None
        assert 0.0 < thumbs.low < 0.3 < thumbs.high
        assert tokens.low is not None
        assert tokens.high is not None
        assert 20.0 < tokens.low < 50.0 < tokens.high
    units = {pair: one.units for pair, one in by_pair(effects, "thumbs").items()}
    assert units["power", "plain"] > 3 * units["cot", "matched"]


def test_a_wrong_chance_would_show() -> None:
    """The same rows under weights that nobody was assigned by.

    A betting interval contradicts the estimate. An asymptotic one compares the arms' own means: it is right.
    """
    tested = experiment(arms=weighted({"plain": 8_000, "power": 2_000}), metrics=METRICS, pool="separate")
    rows = observed({"plain": 8_000, "power": 2_000}, 12_000)
    lied = Observations(rows.arms, rows.columns, {"plain": 5_000, "power": 5_000})
    true, false = (effects_of(observations, tested) for observations in (rows, lied))
    for metric, effects, truth in (("thumbs", true, 0.3), ("tokens", true, 50.0), ("tokens", false, 50.0)):
        found = by_pair(effects, metric)["power", "plain"].interval
        assert found.low is not None
        assert found.high is not None
        assert found.low <= truth <= found.high
    found = by_pair(false, "thumbs")["power", "plain"].interval
    assert (found.low, found.high, found.changed) == (None, None, True)


def test_every_interval_says_what_it_is_about() -> None:
    tested = several()
    effects = effects_of(observed(tested.weights(0), 200), tested)
    about = {one.metric: one.estimand for one in effects}
    assert about == {
        "thumbs": "difference in the mean over units, each counting once, while it stays the same",
        "errors": "difference in the mean over units, each counting once, while it stays the same",
        "tokens": "difference in the mean per request of all units, so far",
    }
    score = experiment(metrics={**METRICS, "score": {"source": "feedback", "absent": 0.0}}).metrics["score"]
    assert estimand(score, "asymptotic") == "difference in the mean over units, each counting once, so far"
    assert estimand(score, "randomisation") == (
        "difference in the mean over windows, each counting once, while it stays the same"
    )


def test_an_arm_without_weight_has_no_interval() -> None:
    tested = experiment(arms=weighted({"plain": 10_000, "power": 0}), metrics=METRICS, pool="separate")
    for one in effects_of(observed({"plain": 10_000, "power": 0}, 50), tested):
        assert one.interval.low is None
        assert one.interval.why_none == "one of the arms has no weight in this phase"


def test_earlier_looks_are_what_a_report_said_then() -> None:
    tested = several()
    rows = observed(tested.weights(0), 900)
    looks = list(effects_at(rows, tested, [300, 900], ROUGH))
    then = Observations(
        rows.arms[:300],
        {name: column.of(np.arange(900) < 300) for name, column in rows.columns.items()},
        rows.weights,
    )
    assert looks[0] == next(effects_at(then, tested, [300], ROUGH))
    assert looks[1] == next(effects_at(rows, tested, [900], ROUGH))


def test_a_primary_metric_may_be_a_guardrail_too() -> None:
    tested = experiment(guardrails=[{"metric": "thumbs", "margin": 0.1}])
    assert [(one.name, one.role) for one in judged(tested)] == [
        ("thumbs", "primary"),
        ("thumbs", "guardrail"),
    ]


def test_no_units_yet() -> None:
    tested = several()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        effects = effects_of(observed(tested.weights(0), 0), tested)
    assert {one.interval.why_none for one in effects} == {"no units in one of the arms"}
    assert {one.units for one in effects} == {0}


@pytest.mark.parametrize("metric", ["thumbs", "tokens"])
def test_paths_are_short(metric: str) -> None:
    tested = experiment(metrics=METRICS, pool="separate")
    found = by_pair(effects_of(observed({"plain": 5_000, "power": 5_000}), tested), metric)["power", "plain"]
    assert 60 < len(found.path) <= 120
    assert found.path[-1].low == found.interval.low
