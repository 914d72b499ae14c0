"""The verdict: one case that ships, and for every clause one change that flips it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from ab_experiments import PLAIN, POWER, experiment
from sglang_power.experiments.analysis.results import Effect, ExperimentVerdict, Interval, Srm
from sglang_power.experiments.analysis.verdict import beyond, gain, verdict, within

Bounds = tuple[float, float] | None

MATCHED = {**PLAIN, "name": "matched", "control": "compute_matched", "weight": 2_000}
ARMS = [
    {**PLAIN, "weight": 4_000},
    MATCHED,
    {**POWER, "weight": 2_000},
    {**POWER, "name": "cot", "weight": 2_000},
]
METRICS = {
    "thumbs": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0},
    "errors": {"source": "outcome", "outcomes": ["error"]},
}
GREEN = Srm(units={}, expected={}, log10_e=0.4, red=False, chi_square_p=0.3)
RED = Srm(units={}, expected={}, log10_e=3.2, red=True, chi_square_p=0.0001)

EXPERIMENT = experiment(
    arms=ARMS,
    metrics=METRICS,
    primary={"metric": "thumbs", "min_effect": 0.01},
    guardrails=[{"metric": "errors", "margin": 0.02}],
    minimum_run={"days": 7.0, "units": 1_000},
)


def effect(
    role: Literal["primary", "guardrail", "shown"],
    bounds: Bounds,
    *,
    arm: str = "power",
    control: str = "plain",
    direction: Literal["higher", "lower"] | None = None,
    threshold: float | None = None,
    carry_over_p: float | None = None,
    too_early: str | None = None,
) -> Effect:
    """One effect; thumbs are better higher, errors lower."""
    low, high = bounds or (None, None)
    primary = role == "primary"
    return Effect(
        metric="thumbs" if primary else "errors",
        arm=arm,
        control=control,
        role=role,
        direction=direction or ("higher" if primary else "lower"),
        threshold=threshold if threshold is not None else (0.01 if primary else 0.02),
        units=1_000,
        interval=Interval(
            estimate=None if bounds is None else (bounds[0] + bounds[1]) / 2,
            low=low,
            high=high,
            confidence=0.9875,
            method="betting",
            why_none=None if bounds else "not enough data: 3 units, 20 are needed",
            too_early=too_early,
        ),
        carry_over_p=carry_over_p,
    )


@dataclass(frozen=True)
class Case:
    """What is known of the arm "power", and nothing of "cot"; as it stands it ships."""

    thumbs: Bounds = (0.02, 0.06)
    thumbs_matched: Bounds = (0.01, 0.05)
    errors: Bounds = (-0.01, 0.015)
    srm: Srm = GREEN
    units: int = 1_000
    days: float = 7.0
    more: list[Effect] = field(default_factory=list)

    def told(self, **sections: Any) -> ExperimentVerdict:
        effects = [
            effect("primary", self.thumbs),
            effect("primary", self.thumbs_matched, control="matched"),
            effect("primary", None, arm="cot"),
            effect("guardrail", self.errors),
            *self.more,
        ]
        changed = EXPERIMENT.model_copy(update=sections)
        return verdict(changed, effects, self.srm, self.units, self.days)


SHIPS = Case()


def test_the_case_ships_and_says_why() -> None:
    told = SHIPS.told()
    assert (told.decision, told.arm) == ("ship", "power")
    assert told.reason == (
        "thumbs of power is better by 0.01 or more than every control (against plain estimate +0.04, at "
        "least +0.02; against matched estimate +0.03, at least +0.01), and every guardrail is within its "
        "margin"
    )


@pytest.mark.parametrize(
    ("change", "decision", "words"),
    [
        ({"days": 6.9}, "keep running", ["minimum run", "6.9 of 7 days"]),
        ({"units": 999}, "keep running", ["minimum run", "999 of 1,000 units"]),
        ({"srm": RED}, "keep running", ["Sample ratio mismatch", "10^3.2"]),
        ({"thumbs": (0.009, 0.06)}, "keep running", ["thumbs of power against plain", "+0.009"]),
        ({"thumbs_matched": (0.009, 0.06)}, "keep running", ["power against matched", "0.01 is needed"]),
        ({"thumbs": (0.001, 0.009)}, "keep running", ["at most 0.009 better", "will not ship"]),
        ({"thumbs": None}, "keep running", ["not enough data"]),
        ({"errors": (-0.01, 0.021)}, "keep running", ["errors of power", "0.021 worse", "margin 0.02"]),
        ({"errors": None}, "keep running", ["errors of power", "not enough data"]),
        ({"thumbs": (-0.06, -0.01)}, "stop", ["thumbs of power is worse than of plain", "-0.01"]),
        ({"thumbs_matched": (-0.06, -0.01)}, "stop", ["worse than of matched"]),
        ({"errors": (0.021, 0.05)}, "stop", ["Guardrail errors of power", "at least 0.021 worse"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_clause_flips_it(change: dict[str, Any], decision: str, words: list[str]) -> None:
    told = replace(SHIPS, **change).told()
    assert told.decision == decision
    assert told.arm == ("power" if decision == "stop" else None)
    for word in words:
        assert word in told.reason


@pytest.mark.parametrize(
    "change",
    [
        {"thumbs": (0.01, 0.06)},
        {"errors": (-0.01, 0.02)},
        {"units": 1_001, "days": 7.5},
    ],
    ids=str,
)
def test_the_limits_themselves_ship(change: dict[str, Any]) -> None:
    assert replace(SHIPS, **change).told().decision == "ship"


@pytest.mark.parametrize("metric", ["thumbs", "thumbs_matched", "errors"])
def test_bounds_that_are_no_numbers_prove_nothing(metric: str) -> None:
    bounds: dict[str, Any] = {metric: (math.nan, math.nan)}
    assert replace(SHIPS, **bounds).told().decision == "keep running"


EARLY = (
    "too early to decide by: 120 units in the smallest arm, 640 are needed for a metric as skewed as this one"
)


def test_nothing_ships_by_an_interval_that_is_too_early() -> None:
    for early in (
        [effect("primary", (0.02, 0.03), too_early=EARLY), effect("guardrail", (-0.01, 0.01))],
        [effect("primary", (0.02, 0.03)), effect("guardrail", (-0.01, 0.01), too_early=EARLY)],
    ):
        told = verdict(EXPERIMENT, early, GREEN, 1_000, 7.0)
        assert (told.decision, told.arm) == ("keep running", None)
        assert EARLY in told.reason
        guarded = early[1].interval.too_early is not None
        assert told.reason.startswith("errors of power" if guarded else "thumbs of power")
        assert ("is within its margin" if guarded else "is better by enough") in told.reason
        settled = [
            e.model_copy(update={"interval": e.interval.model_copy(update={"too_early": None})})
            for e in early
        ]
        assert verdict(EXPERIMENT, settled, GREEN, 1_000, 7.0).decision == "ship"


def test_harm_stops_however_early() -> None:
    for harmful in (
        [effect("primary", (-0.03, -0.02), too_early=EARLY)],
        [effect("primary", (0.02, 0.03)), effect("guardrail", (0.03, 0.04), too_early=EARLY)],
    ):
        assert verdict(EXPERIMENT, harmful, GREEN, 10, 0.1).decision == "stop"
    assert not within(effect("guardrail", (-0.1, 0.01), too_early=EARLY))
    assert beyond(effect("guardrail", (0.03, 0.04), too_early=EARLY))


def test_what_is_too_early_may_lack_more() -> None:
    """An interval that would not do anyway says what it lacks, not that it is early."""
    short = verdict(EXPERIMENT, [effect("primary", (0.005, 0.03), too_early=EARLY)], GREEN, 1_000, 7.0)
    assert "0.01 is needed" in short.reason


@pytest.mark.parametrize("bounds", [(-0.06, 0.0), (-0.06, 0.001)])
def test_harm_must_be_sure(bounds: Bounds) -> None:
    assert replace(SHIPS, thumbs=bounds).told().decision == "keep running"
    assert replace(SHIPS, errors=(0.02, 0.05)).told().decision == "keep running"


@pytest.mark.parametrize("change", [{"days": 0.1}, {"units": 3}, {"srm": RED}])
def test_nothing_holds_a_stop_back(change: dict[str, Any]) -> None:
    told = replace(SHIPS, errors=(0.03, 0.05), **change).told()
    assert (told.decision, told.arm) == ("stop", "power")
    assert ("sample ratio" in told.reason) == ("srm" in change)


def test_of_two_arms_the_surer_one_ships() -> None:
    cot = [effect("primary", (0.03, 0.04), arm="cot"), effect("guardrail", (-0.01, 0.0), arm="cot")]
    better = [effect("primary", (0.02, 0.09)), effect("guardrail", (-0.01, 0.0))]
    for effects in (better + cot, cot + better):
        told = verdict(EXPERIMENT, effects, GREEN, 1_000, 7.0)
        assert (told.decision, told.arm) == ("ship", "cot")
    sure_of_one = [*better, effect("primary", (0.9, 0.95), control="matched")]
    assert verdict(EXPERIMENT, [*sure_of_one, *cot], GREEN, 1_000, 7.0).arm == "cot"


def test_an_arm_that_ships_ends_it_though_another_is_worse() -> None:
    worse = effect("primary", (-0.09, -0.02), arm="cot", control="matched")
    assert replace(SHIPS, more=[worse]).told().arm == "power"
    told = replace(SHIPS, more=[worse], days=1.0).told()
    assert (told.decision, told.arm) == ("stop", "cot")


def test_metrics_that_are_only_shown_decide_nothing() -> None:
    shown = effect("shown", (0.5, 0.9), threshold=None)
    assert replace(SHIPS, more=[shown]).told() == SHIPS.told()


def test_a_metric_without_guardrails_says_so() -> None:
    told = verdict(EXPERIMENT, [effect("primary", (0.02, 0.03))], GREEN, 1_000, 7.0)
    assert told.decision == "ship"
    assert "no guardrail was declared" in told.reason


def test_carry_over_is_never_shipped() -> None:
    for p, decision in ((0.009, "keep running"), (0.01, "ship")):
        told = verdict(EXPERIMENT, [effect("primary", (0.02, 0.03), carry_over_p=p)], GREEN, 1_000, 7.0)
        assert told.decision == decision
        assert ("washout_s" in told.reason) == (decision != "ship")


def test_the_direction_turns_the_interval() -> None:
    assert gain(effect("primary", (0.1, 0.3))) == (0.1, 0.3)
    assert gain(effect("primary", (0.1, 0.3), direction="lower")) == (-0.3, -0.1)
    assert gain(effect("primary", None)) == (-math.inf, math.inf)
    lower = [effect("primary", (-0.05, -0.02), direction="lower")]
    assert verdict(EXPERIMENT, lower, GREEN, 1_000, 7.0).decision == "ship"


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        ((-0.1, 0.02), True, False),
        ((0.0, 0.03), False, False),
        ((0.021, 0.1), False, True),
        (None, False, False),
    ],
)
def test_guardrails_of_a_ramp(bounds: Bounds, inside: bool, outside: bool) -> None:
    guardrail = effect("guardrail", bounds)
    assert (within(guardrail), beyond(guardrail)) == (inside, outside)
