"""A report with something in every field, for tests of what is made of reports."""

from __future__ import annotations

import math
from typing import Literal

from sglang_power.experiments.analysis.results import (
    ArmSummary,
    Effect,
    Excluded,
    ExperimentVerdict,
    Interval,
    Point,
    Report,
    ShadowSummary,
    Srm,
    Unmatched,
)

Role = Literal["primary", "guardrail", "shown"]
DAY = 86_400.0


def effect(
    role: Role,
    metric: str,
    low: float | None,
    high: float | None,
    *,
    control: str = "plain",
    direction: Literal["higher", "lower"] = "higher",
    threshold: float | None = 0.02,
) -> Effect:
    """An effect of the arm "power" with a path that narrows to its interval; none where low is None."""
    found = Interval(
        estimate=None if low is None or high is None else (low + high) / 2,
        low=low,
        high=high,
        confidence=0.975,
        method="betting",
        why_none="not enough data: 12 units with the event, 20 are needed" if low is None else None,
    )
    return Effect(
        metric=metric,
        arm="power",
        control=control,
        role=role,
        direction=direction,
        threshold=None if role == "shown" else threshold,
        units=4000,
        interval=found,
        path=_path(low, high),
    )


def _path(low: float | None, high: float | None) -> tuple[Point, ...]:
    if low is None or high is None:
        return (Point(units=2, estimate=0.0, low=None, high=None),)
    middle, half = (low + high) / 2, (high - low) / 2
    points = [Point(units=2, estimate=0.0, low=None, high=None)]
    for units in range(40, 4001, 40):
        wide = half * math.sqrt(4000 / units)
        wobble = 0.3 * wide * math.sin(units / 200)
        points.append(
            Point(
                units=units, estimate=middle + wobble, low=middle + wobble - wide, high=middle + wobble + wide
            )
        )
    return tuple(points)


def arm(name: str, control: str | None, slow: float, thumbs: float) -> ArmSummary:
    """An arm that takes `slow` times as long as the plain one."""
    return ArmSummary(
        name=name,
        control=control,
        weight=3333,
        units=1350,
        requests=5400,
        outcomes={"ok": 5300, "disconnect": 60, "lost": 40},
        tokens_per_request={"decoded": 210.0 * slow, "prefilled": 380.0 * slow},
        gpu_seconds_per_request=0.11 * slow,
        e2e_s={"p50": 1.1 * slow, "p95": 2.9 * slow, "p99": 4.2 * slow},
        means={"thumbs": thumbs, "failed": 0.01, "tokens": 590.0 * slow, "unheard": None},
    )


def full_report() -> Report:
    """Ship, against two controls."""
    return Report(
        experiment="power-vs-plain",
        owner="search team",
        hypothesis="Power sampling (alpha 4) gives answers that people like better than plain sampling.\n",
        kind="unit",
        config="0123456789abcdef",
        phase=1,
        began=1_760_000_000.0,
        until=1_760_000_000.0 + 9.5 * DAY,
        days=9.5,
        killed=None,
        outcome_window_h=24.0,
        completion_grace_s=600.0,
        units=6000,
        arms=(
            arm("plain", "plain", 1.0, 0.412),
            arm("best-of-8", "compute_matched", 6.5, 0.431),
            arm("power", None, 6.8, 0.478),
        ),
        srm=Srm(
            units={"plain": 2041, "best-of-8": 2013, "power": 1996},
            expected={"plain": 0.3334, "best-of-8": 0.3333, "power": 0.3333},
            log10_e=-1.2,
            red=False,
            chi_square_p=0.77,
            slices={"endpoint=chat": -0.9, "stream=true": -1.1},
        ),
        effects=(
            effect("primary", "thumbs", 0.031, 0.101),
            effect("primary", "thumbs", 0.022, 0.072, control="best-of-8"),
            effect("guardrail", "failed", -0.012, 0.009, direction="lower"),
            effect("guardrail", "failed", None, None, control="best-of-8", direction="lower"),
            effect("shown", "tokens", 3100.0, 3700.0, direction="lower"),
        ),
        verdict=ExperimentVerdict(
            decision="ship",
            arm="power",
            reason="thumbs of power is at least 0.022 better than best-of-8 and 0.031 better than plain.",
        ),
        metrics={"thumbs": "mean over units of what was said", "failed": "share that failed"},
        unmatched=(Unmatched(arm="power", control="best-of-8", arm_tokens=1428.0, control_tokens=1165.0),),
        shadows=(ShadowSummary(name="entropy", runs=512, ok=500, same_text=77, tokens_per_run=843.5),),
        excluded=Excluded(overrides=12, open_windows=50, duplicate_feedback=31, torn_lines=1),
    )
