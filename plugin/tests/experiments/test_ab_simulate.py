"""The simulation: its traffic has the law that was assumed, its verdicts the rates that theory asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ab_experiments import PLAIN, POWER, THUMBS, experiment
from pydantic import ValidationError
from sglang_power.errors import ConfigError
from sglang_power.experiments.analysis.observations import Observations
from sglang_power.experiments.analysis.simulate import SimulationResult, simulate
from sglang_power.experiments.analysis.traffic import Assumptions, check, draw
from sglang_power.experiments.model import Experiment

METRICS: dict[str, Any] = {
    "thumbs": THUMBS,
    "stars": {"source": "feedback", "low": 1.0, "high": 5.0, "absent": 3.0, "per": "request"},
    "tokens": {"source": "tokens"},
    "score": {"source": "feedback", "absent": 0.0},
}
BASE = {"thumbs": 0.3, "stars": 4.0, "tokens": 800.0, "score": 2.0}


def whole(**changes: Any) -> Experiment:
    return experiment(
        **{"metrics": METRICS, "pool": "separate", "minimum_run": {"days": 1.0, "units": 500}, **changes}
    )


def quick(**changes: Any) -> Experiment:
    """One metric only: a simulation of seconds."""
    return whole(metrics={"thumbs": THUMBS}, **changes)


def drawn(assumptions: Assumptions, chosen: Experiment | None = None) -> Observations:
    chosen = chosen or whole()
    return draw(chosen, assumptions, chosen.weights(0), np.random.default_rng(0))


def ratio(observations: Observations, metric: str, arm: str) -> float:
    column = observations.columns[metric].of(observations.in_arms(arm))
    return float(column.values.sum() / (len(column.values) if column.counts is None else column.counts.sum()))


def test_metrics_have_their_means_and_lifts() -> None:
    lift = {"thumbs": 0.1, "stars": -0.5, "tokens": 400.0}
    observations = drawn(Assumptions(base=BASE, lift=lift, units=60_000))
    for metric, mean in BASE.items():
        assert ratio(observations, metric, "plain") == pytest.approx(mean, rel=0.03)
        assert ratio(observations, metric, "power") == pytest.approx(mean + lift.get(metric, 0.0), rel=0.03)


def test_values_stay_within_their_bounds() -> None:
    observations = drawn(Assumptions(base=BASE, units=5_000))
    thumbs, stars = observations.columns["thumbs"], observations.columns["stars"]
    assert 0.0 <= thumbs.values.min() <= thumbs.values.max() <= 1.0
    assert stars.counts is not None
    assert ((stars.values >= stars.counts) & (stars.values <= 5.0 * stars.counts)).all()


def test_requests_and_arms_have_their_means() -> None:
    arms = [{**PLAIN, "weight": 9_000}, {**POWER, "weight": 1_000}]
    chosen = whole(arms=arms)
    observations = drawn(Assumptions(base=BASE, units=40_000, requests_per_unit=7.0), chosen)
    counts = observations.columns["tokens"].counts
    assert counts is not None
    assert counts.min() == 1.0
    assert counts.mean() == pytest.approx(7.0, rel=0.03)
    assert counts.var() > 3.0 * counts.mean()
    assert observations.in_arms("power").mean() == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_requests_of_a_unit_are_correlated(correlation: float) -> None:
    """Var(mean of n) = m (1 - m) (1 + (n - 1) correlation) / n, over units of the same n."""
    assumed = Assumptions(base=BASE, units=200_000, intra_unit_correlation=correlation)
    observations = drawn(assumed)
    counts = observations.columns["stars"].counts
    assert counts is not None
    means = observations.columns["thumbs"].values[counts == 4.0]
    assert means.var() == pytest.approx(0.21 * (1.0 + 3.0 * correlation) / 4.0, rel=0.06)


def test_carry_over_mixes_the_arm_of_the_window_before() -> None:
    plan = {"pool": "gpus", "window_s": 600.0}
    chosen = whole(kind="switchback", unit=None, switchback=plan)
    assumed = Assumptions(
        base=BASE,
        lift={"thumbs": 0.4},
        units=4_000,
        carry_over=0.25,
        intra_unit_correlation=0.0,
        requests_per_unit=20.0,
    )
    observations = drawn(assumed, chosen)
    treated = observations.in_arms("power")
    values = observations.columns["thumbs"].values[1:]
    for now, before, mean in ((1, 1, 0.7), (1, 0, 0.6), (0, 1, 0.4), (0, 0, 0.3)):
        rows = (treated[1:] == now) & (treated[:-1] == before)
        assert values[rows].mean() == pytest.approx(mean, abs=0.02)


def test_a_large_lift_ships_and_a_large_loss_stops() -> None:
    assumed = Assumptions(base={"thumbs": 0.3}, lift={"thumbs": 0.3}, units=2_000, runs=10, looks=8)
    won = simulate(quick(), assumed)
    assert won.shipped.share > 0.9
    assert won.stopped.count == 0
    assert won.median_units is not None
    assert 500 <= won.median_units < 2_000
    assert won.median_days == pytest.approx(won.median_units / 1_000.0)
    assert won.mean_estimate == pytest.approx(0.3, abs=0.03)
    lost = simulate(quick(), assumed.model_copy(update={"lift": {"thumbs": -0.25}}))
    assert lost.stopped.share > 0.9
    assert lost.shipped.count == 0


@pytest.mark.long
def test_equal_arms_are_rarely_told_apart() -> None:
    found = simulate(quick(), Assumptions(base={"thumbs": 0.3}, units=1_500, runs=30, looks=10))
    assert found.false_positives.low < 0.05
    assert found.false_ships.count <= found.false_positives.count
    assert found.false_ships == found.shipped
    assert found.looks == tuple(range(150, 1_501, 150))


def test_the_minimum_run_is_kept() -> None:
    """With 1,000 units a day, three days are 3,000 units."""
    slow = quick(minimum_run={"days": 3.0, "units": 500})
    assumed = Assumptions(base={"thumbs": 0.3}, lift={"thumbs": 0.4}, units=2_000, runs=3, looks=4)
    assert simulate(slow, assumed).shipped.count == 0
    assert simulate(slow, assumed.model_copy(update={"units_per_day": 600.0})).shipped.count == 3


def switchback(carry_over: float) -> SimulationResult:
    plan = {"pool": "gpus", "window_s": 1_800.0}
    chosen = quick(kind="switchback", unit=None, switchback=plan, minimum_run={"days": 0.5, "units": 40})
    return simulate(
        chosen,
        Assumptions(
            base={"thumbs": 0.3},
            lift={"thumbs": 0.2},
            units=160,
            runs=12,
            requests_per_unit=50.0,
            intra_unit_correlation=0.02,
            carry_over=carry_over,
        ),
    )


def test_a_switchback_without_carry_over_is_unbiased_and_ships() -> None:
    found = switchback(0.0)
    assert found.looks == (40, 80, 160)
    assert found.shipped.share > 0.8
    assert found.bias == pytest.approx(0.0, abs=0.02)


def test_carry_over_hides_its_share_of_the_effect() -> None:
    """A quarter of every window belongs to the arm before: 0.05 of 0.2."""
    assert switchback(0.25).bias == pytest.approx(-0.05, abs=0.02)


def test_the_seed_decides() -> None:
    assumed = Assumptions(base={"thumbs": 0.3}, lift={"thumbs": 0.1}, units=600, runs=3, looks=3)
    assert simulate(quick(), assumed) == simulate(quick(), assumed)
    other = assumed.model_copy(update={"seed": 1})
    assert simulate(quick(), assumed).mean_estimate != simulate(quick(), other).mean_estimate


def test_the_last_phase_is_simulated() -> None:
    ramp = [{"weights": {"plain": 10_000, "power": 0}}, {"weights": {"plain": 5_000, "power": 5_000}}]
    assumed = Assumptions(base={"thumbs": 0.3}, lift={"thumbs": 0.4}, units=1_500, runs=3, looks=3)
    assert simulate(quick(ramp=ramp), assumed).shipped.count == 3


def test_the_result_is_json() -> None:
    found = simulate(quick(), Assumptions(base={"thumbs": 0.3}, units=200, runs=2, looks=2))
    assert SimulationResult.model_validate_json(found.model_dump_json()) == found
    assert found.median_units is None
    assert found.false_positives.runs == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"base": {"thumbs": 0.3}}, "base.stars"),
        ({"base": {**BASE, "clicks": 0.1}}, "base.clicks"),
        ({"lift": {"clicks": 0.1}}, "lift.clicks"),
        ({"base": {**BASE, "thumbs": 1.2}}, "base.thumbs"),
        ({"lift": {"thumbs": 0.8}}, "lift.thumbs"),
        ({"lift": {"stars": 1.5}}, "lift.stars"),
        ({"lift": {"tokens": -800.0}}, "lift.tokens"),
    ],
    ids=str,
)
def test_assumptions_that_do_not_fit(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        check(whole(), Assumptions(**{"base": BASE, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 0},
        {"units": 0},
        {"carry_over": 1.1},
        {"requests_per_unit": 0.5},
        {"intra_unit_correlation": 1.0},
        {"speed": 1},
    ],
    ids=str,
)
def test_assumptions_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Assumptions(**{"base": BASE, **change})
