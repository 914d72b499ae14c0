"""Effects that change while they are measured: what early units proved must not outlive it.

Betting sequences assume one effect for all units. Segments of units, each with rates of its own, break that;
of a constant effect the sequences must go on as if nobody asked.
"""

from __future__ import annotations

import numpy as np
import pytest
from ab_lines import HOUR, experiment
from ab_reports import full_report
from scipy.stats import binomtest
from sglang_power.experiments.analysis import plots, wording
from sglang_power.experiments.analysis.effects import Effort, effects_at
from sglang_power.experiments.analysis.observations import Column, Mask, Observations
from sglang_power.experiments.analysis.ramp import next_state
from sglang_power.experiments.analysis.results import Effect, ExperimentVerdict
from sglang_power.experiments.analysis.sequences import CHANGED, ConfidenceSequence, sequence
from sglang_power.experiments.analysis.srm import srm
from sglang_power.experiments.analysis.verdict import beyond, verdict, within
from sglang_power.experiments.state import State
from sglang_power.types import FloatArray

Segment = tuple[int, float, float]
"""Units, and the rate of an event with the control and with the arm."""

RAMP = [{"weights": {"plain": 5000, "power": 5000}}, {"weights": {"plain": 5000, "power": 5000}}]
DECLARED = experiment(
    metrics={
        "thumbs": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0},
        "failed": {"source": "outcome", "outcomes": ["error"]},
    },
    ramp=RAMP,
)
ROUGH = Effort(resolution=250, points=60)


def assigned(units: int, seed: int, propensity: float = 0.5) -> Mask:
    treated: Mask = np.random.default_rng([seed, 0]).random(units) < propensity
    return treated


def events(segments: list[Segment], treated: Mask, seed: int) -> FloatArray:
    sizes = [size for size, _, _ in segments]
    control, arm = (np.repeat([one[side] for one in segments], sizes) for side in (1, 2))
    drawn = np.random.default_rng([seed, 1]).random(len(treated))
    return (drawn < np.where(treated, arm, control)).astype(np.float64)


def told(
    thumbs: list[Segment], failed: list[Segment], looks: list[int]
) -> list[tuple[dict[str, Effect], ExperimentVerdict]]:
    """Metric -> effect, and the verdict, after some numbers of units."""
    treated = assigned(looks[-1], 0)
    arms = ["power" if one else "plain" for one in treated]
    columns = {"thumbs": Column(events(thumbs, treated, 1)), "failed": Column(events(failed, treated, 2))}
    rows = Observations(arms, columns, {"plain": 5000, "power": 5000})
    found = effects_at(rows, DECLARED, looks, ROUGH)
    ratio = srm(arms, rows.weights)
    return [
        ({effect.metric: effect for effect in effects}, verdict(DECLARED, effects, ratio, look, 30.0))
        for look, effects in zip(looks, found, strict=True)
    ]


HEALTHY_THEN_BROKEN = (
    [(6_000, 0.3, 0.45), (2_000, 0.3, 0.0)],
    [(6_000, 0.01, 0.01), (2_000, 0.01, 1.0)],
)
"""Thumbs and failures."""


def test_an_arm_that_breaks_late_neither_ships_nor_is_within_its_margin() -> None:
    (before, ships), (after, stops) = told(*HEALTHY_THEN_BROKEN, [6_000, 8_000])
    assert ships.decision == "ship"
    assert within(before["failed"])
    assert not within(after["failed"])
    assert beyond(after["failed"])
    assert (stops.decision, stops.arm) == ("stop", "power")
    assert f"{CHANGED}, margin 0.05" in stops.reason
    assert wording.judged(after["failed"]) == "beyond its margin"


def test_a_ramp_rolls_back_an_arm_that_breaks_late() -> None:
    (before, _), (after, _) = told(*HEALTHY_THEN_BROKEN, [6_000, 8_000])
    states = []
    for effects in (before, after):
        report = full_report().model_copy(update={"effects": tuple(effects.values()), "began": 0.0})
        states.append(next_state(report, DECLARED, State(), 1_000 * HOUR))
    assert [(state.phase, state.killed) for state in states] == [(1, False), (0, True)]
    assert f"so far, but {CHANGED}" in (states[1].reason or "")


@pytest.mark.parametrize("late", [(3_000, 0.4, 0.2), (9_000, 0.4, 0.4)], ids=["harmful", "novelty"])
def test_a_gain_that_fades_does_not_ship_by_its_early_interval(late: Segment) -> None:
    units = 3_000 + late[0]
    well = [(units, 0.01, 0.01)]
    (early, ships), (found, keeps) = told([(3_000, 0.4, 0.6), late], well, [3_000, units])
    assert ships.decision == "ship"
    thumbs = found["thumbs"].interval
    assert (thumbs.low, thumbs.high, thumbs.changed, thumbs.why_none) == (None, None, True, CHANGED)
    assert keeps.decision == "keep running"
    assert CHANGED in keeps.reason
    assert wording.judged(found["thumbs"]) == "no interval any more"
    assert not early["thumbs"].interval.changed


def test_an_arm_that_recovered_is_neither_within_nor_beyond() -> None:
    """The estimate is back inside of the margin, the interval still says what the early units said."""
    failed = [(3_000, 0.01, 0.21), (15_000, 0.01, 0.01)]
    broken, recovered = told([(18_000, 0.3, 0.3)], failed, [3_000, 18_000])
    assert beyond(broken[0]["failed"])
    assert not within(recovered[0]["failed"])
    assert not beyond(recovered[0]["failed"])
    assert recovered[1].decision == "keep running"


def test_the_picture_shows_where_the_estimate_went() -> None:
    (found, _) = told(*HEALTHY_THEN_BROKEN, [8_000])[0]
    path = found["failed"].path
    assert path[-1].low is None
    drawn = np.array([[p.low, p.high, p.estimate] for p in path], dtype=np.float64).T
    units = np.array([point.units for point in path], dtype=np.float64)
    assert plots._limits(units, drawn, 0.05)[1] > path[-1].estimate
    assert plots.path_svg(found["failed"]) is not None


def ever_contradicted(found: ConfidenceSequence) -> bool:
    return bool(found.changed.any())


@pytest.mark.parametrize("propensity", [0.5, pytest.param(0.1, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "rates",
    [(0.3, 0.5), *[pytest.param(r, marks=pytest.mark.long) for r in [(0.5, 0.5), (0.02, 0.02)]]],
    ids=str,
)
def test_a_constant_effect_is_rarely_called_changed(propensity: float, rates: tuple[float, float]) -> None:
    """Asked after every unit, at most alpha; nor is a guardrail stopped more often whose loss is its margin.

    Fails where a binomial test at 0.001 rejects that.
    """
    truth = rates[1] - rates[0]
    called = stopped = 0
    for run in range(150):
        treated = assigned(1_500, run, propensity)
        values = events([(1_500, *rates)], treated, run)
        found = sequence(
            Column(values), treated, propensity=propensity, bounds=(0.0, 1.0), alpha=0.05, resolution=100
        )
        called += ever_contradicted(found)
        stopped += bool(((found.low > truth) | (found.changed & (found.estimate > truth))).any())
    for false in (called, stopped):
        assert binomtest(false, 150, 0.05, alternative="greater").pvalue > 0.001


def test_extreme_means_are_not_called_changed_for_their_rounding() -> None:
    """0.9 and 0.1 in every unit: the difference of the means is the width of the bounds, but for rounding."""
    treated = assigned(1_000, 0)
    values = np.where(treated, 0.9, 0.1)
    found = sequence(Column(values), treated, propensity=0.5, bounds=(0.1, 0.9), alpha=0.05, resolution=250)
    assert not ever_contradicted(found)
    assert np.nanmax(found.estimate) <= 0.9 - 0.1
