"""Words and numbers for people, shared by the terminal (`show`) and the page. Decides nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from sglang_power.experiments.analysis.results import ArmSummary, Effect, Report
from sglang_power.experiments.analysis.units import SERVED
from sglang_power.experiments.analysis.verdict import beyond, gain, within
from sglang_power.visible import spelled

EXCLUDED = {
    "overrides": "requests of testers, who may choose their arm",
    "washout": "requests within the washout of a switchback's window",
    "moved_units": "units that changed their arm since an earlier phase",
    "returning_units": "units of earlier phases, dropped at random to keep the phase's weights",
    "open_windows": "units whose outcome window, or the grace of its requests, is not over yet",
    "cut_units": "units whose outcome window a kill cut off",
    "after_kill": "requests that were enrolled while the experiment was killed",
    "after_drain": "requests of units that came after the drain began",
    "late_outcomes": "requests and values after their unit's outcome window, or ends after its grace",
    "other_configuration": "requests enrolled under another version of the experiment's file",
    "unmatched_feedback": "values for answers that no log line knows",
    "duplicate_feedback": "values that a later one for the same answer replaced",
    "unknown_metric": "values for metrics that the experiment does not define as feedback",
    "out_of_range": "values outside of their metric's bounds",
    "unmatched_completions": "completions of requests that no log line enrolled",
    "duplicate_lines": "second enrolments or completions of one request",
    "torn_lines": "last lines of files, torn by a kill or just being written",
    "bad_lines": "other lines that could not be read",
}
"""What each field of `results.Excluded` counts."""


NOBODY = "No request of this phase was enrolled under this version of the experiment's file."

_ONE_LINE = str.maketrans("\n\r\t", "   ")


def visible(text: str) -> str:
    """The text on one line, with every control and direction character spelled out, e.g. as ⟨U+202E⟩."""
    return "".join(map(spelled, text.translate(_ONE_LINE)))


def number(value: float | None) -> str:
    """Four digits; a dash for what is not known."""
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "-" if value is None else f"{value:+.3g}" if abs(value) < 1_000 else f"{value:+,.0f}"


def percent(share: float) -> str:
    """A share, e.g. 12.5%."""
    return f"{100 * share:.4g}%"


def moment(seconds: float | None) -> str:
    """Seconds since 1970 as date and time (UTC)."""
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def difference(effect: Effect) -> str:
    """The estimate and its interval, or why there is none."""
    found = effect.interval
    measured_in = f" {effect.measured_in}" if effect.measured_in else ""
    if found.changed:
        return f"{signed(found.estimate)}{measured_in} so far, but {found.why_none}"
    if found.low is None or found.high is None:
        return found.why_none or "no interval"
    between = f"{signed(found.estimate)}, between {signed(found.low)} and {signed(found.high)}{measured_in}"
    early = found.too_early if effect.role != "shown" else None
    return between if early is None else f"{between}; {early}"


def answered(arm: ArmSummary) -> str:
    """Which share of an arm's requests that have ended, or were lost, got an answer."""
    ended = arm.requests - arm.outcomes.get("running", 0)
    return percent(sum(arm.outcomes.get(outcome, 0) for outcome in SERVED) / ended) if ended else "-"


def warnings(report: Report) -> list[str]:
    """What somebody who reads the verdict must know, in sentences."""
    found = []
    if others := report.excluded.other_configuration:
        found.append(
            f"{others:,} requests were enrolled under another version of the experiment's file and do not "
            "count. `sglang-power ab check FILE --log DIR` tells the versions."
        )
    for pair in report.unmatched:
        share = percent(round(pair.control_tokens / pair.arm_tokens, 2))
        found.append(
            f"{pair.control} is no compute-matched control of {pair.arm}: it decodes "
            f"{number(pair.control_tokens)} tokens per request, {pair.arm} {number(pair.arm_tokens)} "
            f"({share} of them, 90% to 110% would do)."
        )
    if report.other_rules is not None:
        found.append(
            "Metrics, thresholds or windows were edited after data came in: until "
            f"{moment(report.other_rules)} UTC others were in force. Intervals and verdict hold for rules "
            "that are fixed beforehand."
        )
    return found


def standing(report: Report) -> tuple[str, str] | None:
    """A kill or a drain that holds, and the rest of the sentence on what it does; None where neither does."""
    if report.killed is not None:
        at = moment(report.killed)
        return "killed", f"at {at} UTC; units whose outcome window it cut off do not count."
    if report.draining is None:
        return None
    began = f"since {moment(report.draining)} UTC; units that came later do not count"
    if report.excluded.open_windows:
        return "draining", f"{began}, and the last window closes at {moment(report.last_window)} UTC."
    return "draining", f"{began}, and all windows are closed: end it with `kill: true`."


def windows(report: Report) -> str:
    """For how long what happens to a unit counts."""
    return (
        f"Outcomes count for {report.outcome_window_h:g} h from a unit's first request; requests of that "
        f"time may end up to {report.completion_grace_s:g} s later."
    )


def rates(report: Report, effect: Effect) -> str:
    """Means of the arm and of its control so far, with the relative lift where there is one."""
    means = {arm.name: arm.means.get(effect.metric) for arm in report.arms}
    ours, theirs = means.get(effect.arm), means.get(effect.control)
    lift = ""
    if ours is not None and theirs:
        lift = f": {100.0 * (ours - theirs) / abs(theirs):+.3g}%"
    return f"{effect.arm} {number(ours)}, {effect.control} {number(theirs)}{lift}"


def measured_in(report: Report, metric: str) -> str:
    """The unit of a metric, empty for plain numbers."""
    return next((effect.measured_in for effect in report.effects if effect.metric == metric), "")


def basis(effect: Effect) -> str:
    """What the interval rests on."""
    found = effect.interval
    kind = f"{percent(found.confidence)} {found.method} interval"
    if effect.estimand:
        kind += f" of the {effect.estimand}"
    if found.method != "randomisation":
        return f"{kind}; {effect.units:,} units"
    looked = f"as of the planned look at {effect.path[-1].units:,} of " if effect.path else ""
    return f"{kind}; {looked}{effect.units:,} windows"


def aim(effect: Effect) -> str:
    """What was asked of a metric before the experiment began."""
    if effect.role == "primary":
        return f"{effect.direction} is better; worth shipping from {number(effect.threshold)}"
    if effect.role == "guardrail":
        return f"{effect.direction} is better; may get worse by {number(effect.threshold)}"
    return f"{effect.direction} is better; decides nothing"


def judged(effect: Effect) -> str:
    """What the interval says of a metric, in a few words."""
    if effect.role == "guardrail" and beyond(effect):
        return "beyond its margin"
    if effect.interval.changed:
        return "no interval any more"
    if effect.interval.low is None:
        return "no interval yet"
    if effect.role == "guardrail":
        return "within its margin" if within(effect) else "undecided"
    worst, best = gain(effect)
    return "better" if worst > 0.0 else "worse" if best < 0.0 else "no difference shown"


def sample_ratio(report: Report) -> str:
    """The figures behind the light."""
    classical = report.srm.chi_square_p
    shown = "" if classical is None else f"; chi-square p = {number(classical)}, for comparison only"
    return f"log10 of the e-value is {signed(report.srm.log10_e)}, red from +3{shown}"


def excluded(report: Report) -> list[tuple[int, str]]:
    """How many of what was left out, where it was anything."""
    counts = report.excluded.model_dump()
    return [(counts[name], told) for name, told in EXCLUDED.items() if counts[name]]
