"""The report of one experiment as one document: what `sglang-power ab report --json` writes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION: Literal[1] = 1

Decision = Literal["ship", "stop", "keep running"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Part):
    """An anytime-valid interval of a difference, arm minus control, in the metric's unit.

    Args:
        estimate: the difference so far; None without units in both arms.
        low, high: covers the true difference at every look with the stated confidence; None where `why_none`
            says what is missing.
        confidence: 1 - alpha of this pair.
        method: "betting", "asymptotic" or "randomisation".
        why_none: e.g. "not enough data: 12 units with the event in the smallest arm, 20 are needed".
        too_early: what is missing before a guardrail is called kept, or an arm shipped, by this interval;
            None where nothing is. Harm that it shows counts at once.
        changed: there is none because early and late units contradict each other: no one effect fits both.
    """

    estimate: float | None
    low: float | None
    high: float | None
    confidence: float
    method: Literal["betting", "asymptotic", "randomisation"]
    why_none: str | None = None
    too_early: str | None = None
    changed: bool = False


class Point(_Part):
    """An interval as it was after some units, for plots."""

    units: int
    estimate: float
    low: float | None
    high: float | None


class Effect(_Part):
    """One metric of one arm against one control.

    Args:
        metric, arm, control: which.
        role: what it decides; "shown" metrics decide nothing.
        direction: which way is better.
        measured_in: of estimate and bounds, e.g. "GPU seconds per request (estimated)"; empty for numbers.
        estimand: what the interval is about, e.g. "difference in the mean over units, each counting once,
            while it stays the same".
        threshold: min_effect of the primary metric, margin of a guardrail.
        units: in both arms together. A switchback's are windows, and its interval is that of the path's end.
        interval: see Interval.
        path: how the interval came about, thinned.
        carry_over_p: switchbacks only: p-value of "what a window measures does not depend on the arm of the
            window before", as of the last planned look, and for that look alone.
    """

    metric: str
    arm: str
    control: str
    role: Literal["primary", "guardrail", "shown"]
    direction: Literal["higher", "lower"]
    measured_in: str = ""
    estimand: str = ""
    threshold: float | None
    units: int
    interval: Interval
    path: tuple[Point, ...] = ()
    carry_over_p: float | None = None


class Srm(_Part):
    """Sample ratio mismatch: whether units arrived in the arms as they were assigned.

    Args:
        units: arm -> unique units that were enrolled.
        expected: arm -> share.
        log10_e: of the sequential test's largest e-value; 3 or more is red.
        red: whether it is.
        chi_square_p: of the classical test on all units, for comparison only.
        slices: pre-assignment attribute value ("endpoint=chat") -> log10 of its e-value.
    """

    units: dict[str, int]
    expected: dict[str, float]
    log10_e: float
    red: bool
    chi_square_p: float | None
    slices: dict[str, float] = {}


class ArmSummary(_Part):
    """One arm as it was seen; nothing here decides.

    Args:
        name, control, weight: as declared; weight in basis points.
        units, requests: enrolled within their windows, open ones included.
        outcomes: outcome -> requests; without a completion they are "lost", or "running" in open windows.
        tokens_per_request: kind -> mean over completed requests.
        gpu_seconds_per_request: estimated by the first metric that declares prices; others are in `means`.
        e2e_s: "p50", "p95", "p99" -> seconds.
        means: metric -> mean over units whose window has closed; of ratio metrics the ratio.
    """

    name: str
    control: str | None
    weight: int
    units: int
    requests: int
    outcomes: dict[str, int]
    tokens_per_request: dict[str, float]
    gpu_seconds_per_request: float | None
    e2e_s: dict[str, float]
    means: dict[str, float | None]


class Unmatched(_Part):
    """A compute-matched control that does not spend what its arm does.

    Args:
        arm, control: which.
        arm_tokens, control_tokens: decoded per completed request.
    """

    arm: str
    control: str
    arm_tokens: float
    control_tokens: float


class ShadowSummary(_Part):
    """A shadow arm beside the answers that were served."""

    name: str
    runs: int
    ok: int
    same_text: int
    tokens_per_run: float


class Excluded(_Part):
    """What is in the log but not in the statistics, and why: units where the name says so, else lines.

    Args:
        moved_units: changed their arm since an earlier phase.
        returning_units: kept it, and were dropped at random so that the others have the phase's weights.
        open_windows: units whose outcome window, or the grace after it, is not over.
        cut_units: units that a kill kept from being enrolled in a part of their window.
        after_kill: requests that a server enrolled before it had heard of a kill.
        after_drain: requests of units that came after a drain began.
        late_outcomes: requests and feedback after a unit's window, completions after its grace.
        other_configuration: enrolled under another version of the experiment's file.
        duplicate_feedback: all but the last value of a metric for one answer.
        duplicate_lines: further enrolments or completions of one request.
        unknown_metric, out_of_range: feedback for metrics, or with values, that the file does not allow.
        torn_lines, bad_lines: of all files, whatever experiment they belonged to.
    """

    overrides: int = 0
    washout: int = 0
    moved_units: int = 0
    returning_units: int = 0
    open_windows: int = 0
    cut_units: int = 0
    after_kill: int = 0
    after_drain: int = 0
    late_outcomes: int = 0
    other_configuration: int = 0
    unmatched_feedback: int = 0
    duplicate_feedback: int = 0
    unknown_metric: int = 0
    out_of_range: int = 0
    unmatched_completions: int = 0
    duplicate_lines: int = 0
    torn_lines: int = 0
    bad_lines: int = 0


class ExperimentVerdict(_Part):
    """What to do, and why."""

    decision: Decision
    arm: str | None
    reason: Annotated[str, Field(min_length=1)]


class Report(_Part):
    """Everything that is known of one phase of one experiment.

    Args:
        experiment, owner, hypothesis, kind: of its file.
        config: version of the file that the lines were written under.
        phase: of the ramp, from 0.
        began, until: first enrolment and last line, seconds since 1970; None where there is none.
        days: between both.
        killed: when the first server heard of the kill that holds; None where none does. Units whose window
            it cut off are excluded.
        draining: when the first server heard of the drain that holds; units that came later are excluded.
        last_window: when the last window of the units that are admitted so far closes.
        other_rules: until when servers had the file with other rules of judgement; None if they never had.
        outcome_window_h, completion_grace_s: of the file.
        units: in the analysis (window closed).
        metrics: name -> what a unit's value is, in a sentence.
        unmatched: compute-matched controls whose cost is more than 10% off.
    """

    version: Literal[1] = VERSION
    experiment: str
    owner: str
    hypothesis: str
    kind: Literal["unit", "switchback"]
    config: str | None
    phase: int
    began: float | None
    until: float | None
    days: float
    killed: float | None = None
    draining: float | None = None
    last_window: float | None = None
    other_rules: float | None = None
    outcome_window_h: float
    completion_grace_s: float
    units: int
    arms: tuple[ArmSummary, ...]
    srm: Srm
    effects: tuple[Effect, ...]
    verdict: ExperimentVerdict
    metrics: dict[str, str] = {}
    unmatched: tuple[Unmatched, ...] = ()
    shadows: tuple[ShadowSummary, ...] = ()
    excluded: Excluded
